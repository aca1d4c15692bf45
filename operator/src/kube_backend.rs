//! The Kubernetes backend: carries out what [`crate::cluster`] decides, by server-side apply with one
//! field manager.
//!
//! It watches the three kinds and what it made of them, one watch a kind, and writes children, status
//! and events. Everything that it knows is in the cluster: it keeps nothing of its own.

mod api;
mod apply;
mod backoff;
mod cache;
mod caches;
mod election;
mod gate;
mod hop;
mod kept;
mod key;
mod lease;
mod metrics;
mod optional;
mod poll;
mod queue;
mod schedule;
mod serve;
mod shell;
mod views;
mod watch;
mod watches;
mod work;

use std::sync::Arc;
use std::time::Duration;

use kube::api::ListParams;
use kube::runtime::events::{Recorder, Reporter};
use kube::{Api, Client, Config};
use strata_hop::ListenError;
use strata_hop::listen::Bound;
use strata_kinds::{ModelDeployment, QuotaPolicy, Tenant};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::api::Counted;
use self::apply::Applier;
use self::caches::Caches;
use self::election::Candidate;
use self::gate::Gate;
use self::hop::HopSecret;
use self::metrics::Metrics;
use self::poll::Poller;
use self::queue::Queue;
use self::serve::Probes;
use self::shell::Shell;
use self::views::Views;
use self::watch::Filling;
use self::watches::Watches;
use self::work::{WORKERS, Worker};
use crate::cluster::{ClusterSite, Trust};
use crate::trust::Authority;

pub use cache::FIELD_MANAGER;

/// What is being written when it stops gets so long.
const FINISH: Duration = Duration::from_secs(10);

/// What the Kubernetes backend is told.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// What it renders for. Its capabilities are found out.
    pub site: ClusterSite,
    /// Where probes and metrics are served, such as `0.0.0.0:8000`; port 0 takes a free one.
    pub listen: String,
    /// By which the others know this process: the pod's name.
    pub identity: String,
    /// Whether several processes agree on one that writes. Without it there must be only this one.
    pub leader_election: bool,
}

/// A name for this process where none is given: two on one machine differ by their process.
pub fn default_identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}

/// Why the operator cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no cluster to talk to.
    #[error("no Kubernetes cluster to run against: {0}; run it in a pod, or set KUBECONFIG")]
    NoCluster(#[source] kube::config::InferConfigError),
    /// The cluster's configuration cannot be used.
    #[error("cannot talk to the Kubernetes cluster: {0}")]
    BadConfig(#[source] kube::Error),
    /// The definitions are missing or may not be read.
    #[error(
        "cannot read {kind} objects: {source}; install the definitions with `strata crds | kubectl apply --server-side -f -`"
    )]
    NoDefinition {
        /// The kind.
        kind: &'static str,
        /// What the API server said.
        source: kube::Error,
    },
    /// The probes cannot be served.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// Runs against the cluster of the environment until `shutdown`.
pub async fn run(options: ClusterOptions, shutdown: CancellationToken) -> Result<(), ClusterError> {
    let config = Config::infer().await.map_err(ClusterError::NoCluster)?;
    run_with(config, options, shutdown).await
}

/// Runs against a cluster until `shutdown`.
pub async fn run_with(
    config: Config,
    options: ClusterOptions,
    shutdown: CancellationToken,
) -> Result<(), ClusterError> {
    let (gate, metrics, queue) =
        (Arc::new(Gate::new()), Arc::new(Metrics::new()), Arc::new(Queue::default()));
    let rules = Counted { metrics: metrics.clone(), queue: queue.clone(), gate: Some(gate.clone()) };
    let client = rules.client(config.clone()).map_err(ClusterError::BadConfig)?;
    let ungated = Counted { gate: None, ..rules };
    let lease_client = ungated.client(config.clone()).map_err(ClusterError::BadConfig)?;
    let bound = Bound::bind(&options.listen).await?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        cluster = %config.cluster_url,
        listen = %bound.addr(),
        image = options.site.image,
        mode = %options.site.mode,
        trust = ?options.site.trust,
        namespace = options.site.namespace,
        model_namespaces = ?options.site.model_namespaces,
        identity = options.identity,
        leader_election = options.leader_election,
        "operator runs"
    );
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        checked = check_definitions(&client, &options.site) => checked?,
    }

    let caches = Arc::new(Caches::new());
    let reporter =
        Reporter { controller: "strata-operator".to_owned(), instance: Some(options.identity.clone()) };
    let shell = Arc::new(Shell {
        site: options.site.clone(),
        caches: caches.clone(),
        queue: queue.clone(),
        views: Arc::new(Views::default()),
        applier: Applier::new(client.clone(), caches, metrics.clone()),
        recorder: Recorder::new(client.clone(), reporter),
        hop: HopSecret,
        authority: (options.site.trust == Trust::Mtls).then(|| Authority::new(&options.site.namespace)),
        certified: std::sync::Mutex::default(),
        priorities: std::sync::Mutex::default(),
    });
    let filling = Filling::new();
    let watches = Watches { shell: shell.clone(), client, filling: filling.clone() };
    let _watching = watches.begin();

    let mut tasks = JoinSet::new();
    let probes = Probes {
        filling: filling.clone(),
        gate: gate.clone(),
        metrics: metrics.clone(),
        queue,
        shell: shell.clone(),
    };
    let stopped = CancellationToken::new();
    let serving = tokio::spawn(serve::serve(bound, probes, stopped.clone()));
    for _ in 0..WORKERS {
        let (worker, shutdown) =
            (Worker { shell: shell.clone(), gate: gate.clone(), metrics: metrics.clone() }, shutdown.clone());
        tasks.spawn(async move { worker.run(&shutdown).await });
    }
    let mut background = JoinSet::new();
    let poller = Poller { shell: shell.clone(), gate: gate.clone(), metrics };
    background.spawn(async move { poller.run().await });
    {
        let (shell, gate, filling) = (shell.clone(), gate.clone(), filling.clone());
        background.spawn(async move { work::begin_terms(&shell, &gate, &filling).await });
    }

    // A process that could not take over at once is of no use as a leader, and half-filled caches would
    // make it take away what is wanted.
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = filling.full() => {}
    }
    if options.leader_election {
        let candidate = Candidate {
            client: lease_client,
            namespace: options.site.namespace.clone(),
            identity: options.identity.clone(),
            gate: &gate,
        };
        candidate.run(&shutdown, async || work::idle(&shell, FINISH).await).await;
    } else {
        if !shutdown.is_cancelled() {
            gate.open(None);
        }
        shutdown.cancelled().await;
        work::idle(&shell, FINISH).await;
        gate.shut();
    }
    // Whoever still writes is cut off by the gate.
    while tasks.join_next().await.is_some() {}
    stopped.cancel();
    let _ = serving.await;
    tracing::info!("operator stopped");
    Ok(())
}

/// Fails early, with words, where the definitions are missing.
async fn check_definitions(client: &Client, site: &ClusterSite) -> Result<(), ClusterError> {
    let one = ListParams::default().limit(1);
    let missing = |kind| move |source| ClusterError::NoDefinition { kind, source };
    let models: Api<ModelDeployment> = match site.model_namespaces.first() {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    settled(|| models.list_metadata(&one)).await.map_err(missing("ModelDeployment"))?;
    let tenants: Api<Tenant> = Api::namespaced(client.clone(), &site.namespace);
    settled(|| tenants.list_metadata(&one)).await.map_err(missing("Tenant"))?;
    let policies: Api<QuotaPolicy> = Api::namespaced(client.clone(), &site.namespace);
    settled(|| policies.list_metadata(&one)).await.map_err(missing("QuotaPolicy"))?;
    Ok(())
}

/// How long the API server may be busy or away when the operator starts.
const START: Duration = Duration::from_secs(60);

/// Asks again while the API server is busy or away, which says nothing about the definitions.
async fn settled<T, F>(ask: impl Fn() -> F) -> Result<T, kube::Error>
where
    F: Future<Output = Result<T, kube::Error>>,
{
    let end = tokio::time::Instant::now() + START;
    loop {
        match ask().await {
            Err(error) if tokio::time::Instant::now() > end => return Err(error),
            Err(kube::Error::Api(status)) if !matches!(status.code, 429 | 500..=599) => {
                return Err(kube::Error::Api(status));
            }
            Err(error) => {
                tracing::warn!(%error, "the API server does not answer yet; asked again in a second");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Ok(found) => return Ok(found),
        }
    }
}
