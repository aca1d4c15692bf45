//! Follows a Kubernetes API server: Tenants, QuotaPolicies and the keys' Secrets of the gateway's own
//! namespace, ModelDeployments and the schedulers' endpoints of the namespaces whose models it serves.
//! The only module of this crate that knows the API server.
//!
//! What was read last stays in force while the server is away. Nothing is ever written to it.

mod cache;
mod object;
mod reflect;
mod take_over;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use strata_kinds::{ModelDeployment, QuotaPolicy, Tenant};
use tokio::sync::Notify;

use self::cache::Cache;
use self::object::{Object, SecretObject};
use self::reflect::Reflector;
use crate::directory::{Objects, Problem, Told};
use crate::gateway::{Gateway, Inner};
use crate::manifests::Manifests;
use crate::options::{Cluster, GatewayError};

/// Label of the Secrets that hold keys; others are never asked for.
const KEY_LABEL: &str = "strata.dev/api-key=true";
/// Label of the EndpointSlices of the schedulers' Services.
const SCHEDULER_LABEL: &str = "kubernetes.io/service-name=strata-scheduler";
/// Time to establish a connection to the API server.
const CONNECT: Duration = Duration::from_secs(5);

/// An API server, and what is read there.
pub(crate) struct Api {
    client: Client,
    cluster: Cluster,
}

impl Api {
    /// Finds out how to reach the API server; does not reach for it yet.
    pub(crate) async fn connect(cluster: &Cluster) -> Result<Self, GatewayError> {
        let failed = |error: &dyn std::fmt::Display| GatewayError::Cluster(error.to_string());
        let mut config = match &cluster.kubeconfig {
            None => Config::infer().await.map_err(|e| failed(&e))?,
            Some(path) => {
                let read = Kubeconfig::read_from(path).map_err(|e| failed(&e))?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(read, &options).await.map_err(|e| failed(&e))?
            }
        };
        config.connect_timeout = Some(CONNECT);
        let client = Client::try_from(config).map_err(|e| failed(&e))?;
        Ok(Self { client, cluster: cluster.clone() })
    }

    /// The namespaces whose models are served; `None` stands for all.
    fn model_namespaces(&self) -> Vec<Option<&str>> {
        match self.cluster.model_namespaces.as_slice() {
            [] => vec![None],
            some => some.iter().map(|n| Some(n.as_str())).collect::<BTreeSet<_>>().into_iter().collect(),
        }
    }
}

/// Everything that was read.
#[derive(Debug, Default)]
struct Seen {
    tenants: Cache<Tenant>,
    policies: Cache<QuotaPolicy>,
    secrets: Cache<SecretObject>,
    models: Cache<ModelDeployment>,
    slices: Cache<EndpointSlice>,
}

impl Seen {
    fn manifests(&self) -> Manifests<'_> {
        let age = |meta: &kube::api::ObjectMeta| {
            let created = meta.creation_timestamp.as_ref().map_or(i64::MAX, |t| t.0.as_second());
            (created, meta.namespace.clone(), meta.name.clone())
        };
        let mut models: Vec<&ModelDeployment> = self.models.good().map(|(_, kept)| kept).collect();
        models.sort_by_cached_key(|model| age(&model.metadata));
        let mut tenants: Vec<&Tenant> = self.tenants.good().map(|(_, kept)| kept).collect();
        tenants.sort_by_cached_key(|tenant| age(&tenant.metadata));
        Manifests {
            models,
            tenants,
            policies: self.policies.good().map(|(_, kept)| kept).collect(),
            keys: self.secrets.good().map(|(key, kept)| (key.name.clone(), kept.clone())).collect(),
            key_label: "the label strata.dev/api-key=true and ",
        }
    }

    /// What is to be told of tenants and policies, with what is wrong with them beside others.
    fn objects(&self, problems: &[Problem]) -> Objects {
        let mut more: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for problem in problems {
            more.entry((problem.kind, &problem.object)).or_default().push(&problem.message);
        }
        let known = |kind: &str, mut known: Told| {
            let found = more.get(&(kind, known.name.as_str()));
            known.problems.extend(found.into_iter().flatten().map(ToString::to_string));
            known
        };
        Objects {
            tenants: self.tenants.known().map(|k| known("Tenant", k)).collect(),
            policies: self.policies.known().map(|k| known("QuotaPolicy", k)).collect(),
        }
    }
}

/// How one kind in one place is being followed.
#[derive(Debug, Default)]
struct Following {
    listed: bool,
    failure: Option<String>,
}

/// What is read of a cluster, and whether it is in force.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    seen: Mutex<Seen>,
    changed: Notify,
    following: Mutex<BTreeMap<String, Following>>,
    taken_over: AtomicBool,
    /// What was seen of the objects of the newest state, so that a problem is logged once.
    told: Mutex<Objects>,
    /// There is a state whose counters are to be made.
    uncounted: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watched {
    /// Whether the first full list of everything is in force.
    pub(crate) fn is_taken_over(&self) -> bool {
        self.taken_over.load(Ordering::Acquire)
    }

    /// Notes that all of a state is in force.
    fn is_in_force(&self, inner: &Inner) {
        let (tenants, models, rules) = inner.directory.load().sizes();
        if self.taken_over.swap(true, Ordering::AcqRel) {
            tracing::debug!(tenants, models, rules, "took over a change");
        } else {
            tracing::info!(tenants, models, rules, "read the cluster for the first time");
        }
    }

    /// What is still missing before the gateway can serve, in words.
    pub(crate) fn awaited(&self) -> String {
        let following = lock(&self.following);
        let missing: Vec<String> = following
            .iter()
            .filter(|(_, f)| !f.listed)
            .map(|(what, f)| match &f.failure {
                None => what.clone(),
                Some(failure) => format!("{what} ({failure})"),
            })
            .collect();
        if missing.is_empty() {
            "taking over what the API server listed".to_owned()
        } else {
            format!("waiting for the first list of {}", missing.join("; "))
        }
    }

    fn is_complete(&self) -> bool {
        let following = lock(&self.following);
        !following.is_empty() && following.values().all(|f| f.listed)
    }

    /// Notes that a list or an event came: `true` when that ends a failure.
    fn went_well(&self, what: &str, listed: bool) -> bool {
        let mut following = lock(&self.following);
        let entry = following.entry(what.to_owned()).or_default();
        entry.listed |= listed;
        entry.failure.take().is_some()
    }

    /// Notes a failure: `true` when it is another one than before.
    fn failed(&self, what: &str, why: &str) -> bool {
        let mut following = lock(&self.following);
        let entry = following.entry(what.to_owned()).or_default();
        let is_new = entry.failure.as_deref() != Some(why);
        entry.failure = Some(why.to_owned());
        is_new
    }
}

/// Starts to follow everything.
pub(crate) fn spawn(gateway: &Gateway, api: &Api) {
    let own = Some(api.cluster.namespace.as_str());
    follow::<Tenant>(gateway, api, own, None);
    follow::<QuotaPolicy>(gateway, api, own, None);
    follow::<SecretObject>(gateway, api, own, Some(KEY_LABEL));
    for namespace in api.model_namespaces() {
        follow::<ModelDeployment>(gateway, api, namespace, None);
        follow::<EndpointSlice>(gateway, api, namespace, Some(SCHEDULER_LABEL));
    }
    gateway.0.tasks.spawn(take_over::changes(gateway.0.clone()));
    gateway.0.tasks.spawn(take_over::counters(gateway.0.clone()));
}

fn follow<O: Object>(gateway: &Gateway, api: &Api, namespace: Option<&str>, labels: Option<&'static str>) {
    let reflector = Reflector::<O>::new(gateway.0.clone(), api, namespace, labels);
    if let Some(watched) = &gateway.0.watched {
        lock(&watched.following).insert(reflector.what().to_owned(), Following::default());
    }
    gateway.0.tasks.spawn(reflector.run());
}

/// Makes the endpoints of a namespace's schedulers known. Addresses of another family are left out where
/// a pod has several.
fn set_endpoints(inner: &Inner, watched: &Watched, namespace: &str) {
    let seen = lock(&watched.seen);
    let mut by_pod: BTreeMap<&str, &str> = BTreeMap::new();
    for (key, targets) in seen.slices.good() {
        if key.namespace == namespace {
            for target in targets {
                let address = by_pod.entry(&target.pod).or_insert(&target.authority);
                // The same whichever slice comes first.
                *address = (*address).min(&target.authority);
            }
        }
    }
    // Schedulers of a Strata whose layers have certificates speak TLS alone.
    let scheme = if inner.upstream.is_secured() { "https" } else { "http" };
    let urls: BTreeSet<String> =
        by_pod.into_values().map(|authority| format!("{scheme}://{authority}")).collect();
    tracing::debug!(namespace, endpoints = urls.len(), "a namespace's schedulers changed");
    // Set under the lock, so that of two changes the later one stays.
    inner.place(&namespace.into()).pool.set(&urls);
}
