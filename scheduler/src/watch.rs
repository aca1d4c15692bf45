//! Learns models and replicas from a Kubernetes API server: lists them, then watches what changes. The
//! only place in the scheduler that knows of Kubernetes, and it only reads.
//!
//! Nothing that happens to the API server or to one object stops it. While there is no answer the last
//! state stays in force; replicas that die meanwhile are noticed by their scrapes.

mod beside;
mod object;
mod pool;
mod stream;

use std::time::Duration;

use futures::StreamExt;
use kube::{Api, Client};

use self::object::{ModelObject, PodObject, Readable};
use crate::discovery::{Change, Found, Kept, Model, Pod, find};
use crate::options::{Kubernetes, SchedulerError};
use crate::scheduler::Scheduler;

/// Changes that are taken over together, when they come together.
const AT_ONCE: usize = 1024;

/// A namespace of a cluster.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    namespace: String,
    watch: Duration,
    /// The InferencePool whose pods are the replicas; when absent, the ModelDeployments say.
    pool: Option<String>,
    /// The pod of this process, if it is in one.
    pod: Option<String>,
}

impl Cluster {
    /// Where the options say, or else the kubeconfig, or else the pod's own account. Asks the cluster
    /// nothing yet.
    pub async fn find(which: &Kubernetes) -> Result<Self, SchedulerError> {
        let mut config = match &which.server {
            Some(url) => kube::Config::new(url.parse().map_err(|error| {
                SchedulerError::Options(format!("`{url}` is no API server's address: {error}"))
            })?),
            None => {
                kube::Config::infer().await.map_err(|error| SchedulerError::NoCluster(error.to_string()))?
            }
        };
        // A server that takes a request and never answers is noticed a little after a watch would have
        // ended.
        let watch = which.watch.max(Duration::from_secs(1));
        config.read_timeout = Some(watch + watch / 6);
        config.reset_reader_on_write = true;
        // Failures are told and paced in one place: `stream`.
        config.default_retry = false;
        let namespace = which.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client =
            Client::try_from(config).map_err(|error| SchedulerError::NoCluster(error.to_string()))?;
        Ok(Self { client, namespace, watch, pool: which.inference_pool.clone(), pod: which.pod.clone() })
    }

    fn changes<K: Readable>(
        &self,
        scheduler: &Scheduler,
    ) -> impl futures::Stream<Item = Change<K::Plain>> + Send + use<K> {
        let api = Api::namespaced(self.client.clone(), &self.namespace);
        let mut config = kube::runtime::watcher::Config::default().timeout(self.watch.as_secs() as u32);
        if let Some(labels) = K::LABELS {
            config = config.labels(labels);
        }
        stream::changes::<K>(api, config, self.watch, scheduler.clone())
    }
}

enum Event {
    Pod(Change<Pod>),
    Model(Change<Model>),
}

/// Follows the models and pods of a cluster's namespace, until the scheduler stops.
pub fn follow(scheduler: &Scheduler, cluster: Cluster) {
    let scheduler = scheduler.clone();
    tracing::info!(
        namespace = cluster.namespace,
        pool = cluster.pool,
        "reads models and pods from the Kubernetes API"
    );
    tokio::spawn(async move {
        let stop = scheduler.stop.clone();
        let follow = async {
            match &cluster.pool {
                Some(name) => pool::take_over(&scheduler, &cluster, name).await,
                None => take_over(&scheduler, &cluster).await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = follow => {}
            () = beside::take_over(&scheduler, &cluster) => {}
        }
    });
}

async fn take_over(scheduler: &Scheduler, cluster: &Cluster) {
    let pods = cluster.changes::<PodObject>(scheduler).map(Event::Pod);
    let models = cluster.changes::<ModelObject>(scheduler).map(Event::Model);
    let mut events = std::pin::pin!(futures::stream::select(pods, models).ready_chunks(AT_ONCE));
    let (mut pods, mut models, mut known) = (Kept::default(), Kept::default(), Found::default());
    while let Some(events) = events.next().await {
        for event in events {
            match event {
                Event::Pod(change) => pods.take(change),
                Event::Model(change) => models.take(change),
            }
        }
        if !pods.is_whole() || !models.is_whole() {
            continue;
        }
        let found = find(models.objects(), pods.objects(), scheduler.options.mtls.is_some());
        if found != known || !scheduler.is_discovered() {
            scheduler.list(&found.endpoints, &found.resting);
            scheduler.discovered();
            known = found;
        }
    }
}
