//! The Kubernetes backend: the same plan and the same templates as on a host, by server-side apply
//! with one field manager.
//!
//! It watches the three kinds and what it made of them, and writes status conditions. Children are
//! found by owner references and labels alone: it keeps nothing of its own.

mod conditions;
mod observe;
mod reconcile;

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::runtime::controller::{Config, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use strata_kinds::{ModelDeployment, NAMESPACE, QuotaPolicy, Tenant};
use tokio_util::sync::CancellationToken;

use self::reconcile::Cluster;
use crate::Mode;
use crate::render::MODEL_LABEL;

/// The one field manager of everything that is applied.
pub const FIELD_MANAGER: &str = "strata-operator";

/// What the Kubernetes backend is told.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Image of the pods that it renders.
    pub image: String,
    /// Which layers the chart installed.
    pub mode: Mode,
    /// The namespace in which Tenants and QuotaPolicies are read.
    pub namespace: String,
}

impl ClusterOptions {
    /// The defaults for an image.
    pub fn new(image: impl Into<String>) -> Self {
        Self { image: image.into(), mode: Mode::Enterprise, namespace: NAMESPACE.to_owned() }
    }
}

/// Why the operator cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no cluster to talk to.
    #[error("no Kubernetes cluster to run against: {0}; run it in a pod, or set KUBECONFIG")]
    NoCluster(#[source] kube::Error),
    /// The definitions are missing or may not be read.
    #[error(
        "cannot read {kind} objects: {source}; install the definitions with `strata crds | kubectl apply -f -`"
    )]
    NoDefinition {
        /// The kind.
        kind: &'static str,
        /// What the API server said.
        source: kube::Error,
    },
}

/// Runs against the cluster of the environment until `shutdown`.
pub async fn run(options: ClusterOptions, shutdown: CancellationToken) -> Result<(), ClusterError> {
    let client = Client::try_default().await.map_err(ClusterError::NoCluster)?;
    run_with(client, options, shutdown).await
}

/// Runs with a client until `shutdown`.
pub async fn run_with(
    client: Client,
    options: ClusterOptions,
    shutdown: CancellationToken,
) -> Result<(), ClusterError> {
    let models: Api<ModelDeployment> = Api::all(client.clone());
    let tenants: Api<Tenant> = Api::namespaced(client.clone(), &options.namespace);
    let policies: Api<QuotaPolicy> = Api::namespaced(client.clone(), &options.namespace);
    let one = kube::api::ListParams::default().limit(1);
    let missing = |kind| move |source| ClusterError::NoDefinition { kind, source };
    models.list(&one).await.map_err(missing("ModelDeployment"))?;
    tenants.list(&one).await.map_err(missing("Tenant"))?;
    policies.list(&one).await.map_err(missing("QuotaPolicy"))?;
    tracing::info!(image = options.image, mode = %options.mode, "operator runs");

    let model_controller = Controller::new(models.clone(), watcher::Config::default());
    let all_models = model_controller.store();
    let cluster = Arc::new(Cluster::new(client.clone(), options, all_models.clone()));
    let stop = || {
        let shutdown = shutdown.clone();
        async move { shutdown.cancelled().await }
    };
    let same_name = move |changed: ModelDeployment| {
        let name = changed.spec.model.name;
        let others = all_models.state().into_iter().filter(move |m| m.spec.model.name == name);
        others.map(|m| ObjectRef::from_obj(&*m)).collect::<Vec<_>>()
    };
    let of_model = |pod: Pod| {
        let model = pod.labels().get(MODEL_LABEL).cloned();
        model
            .map(|name| ObjectRef::<ModelDeployment>::new(&name).within(&pod.namespace().unwrap_or_default()))
    };
    let runs: Vec<BoxStream<'static, ()>> = vec![
        model_controller
            .with_config(Config::default())
            .owns(Api::<Deployment>::all(client.clone()), watcher::Config::default().labels(MODEL_LABEL))
            .owns(Api::<Service>::all(client.clone()), watcher::Config::default().labels(MODEL_LABEL))
            .watches(Api::<Pod>::all(client), watcher::Config::default().labels(MODEL_LABEL), of_model)
            .watches(models, watcher::Config::default(), same_name)
            .graceful_shutdown_on(stop())
            .run(reconcile::model, reconcile::try_again, cluster.clone())
            .map(|result| log("ModelDeployment", result.map(drop)))
            .boxed(),
        Controller::new(tenants, watcher::Config::default())
            .graceful_shutdown_on(stop())
            .run(reconcile::tenant, reconcile::try_again, cluster.clone())
            .map(|result| log("Tenant", result.map(drop)))
            .boxed(),
        Controller::new(policies, watcher::Config::default())
            .graceful_shutdown_on(stop())
            .run(reconcile::policy, reconcile::try_again, cluster)
            .map(|result| log("QuotaPolicy", result.map(drop)))
            .boxed(),
    ];
    futures::stream::select_all(runs).for_each(|()| std::future::ready(())).await;
    Ok(())
}

fn log<E: std::fmt::Display>(kind: &'static str, result: Result<(), E>) {
    if let Err(error) = result {
        tracing::warn!(kind, %error, "reconciling failed; trying again");
    }
}
