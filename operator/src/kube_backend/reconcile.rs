//! One object at a time: plan, render, apply, say what is seen.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::runtime::controller::Action;
use kube::runtime::reflector::Store;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use strata_kinds::model_deployment::ModelDeploymentStatus;
use strata_kinds::quota_policy::QuotaPolicyStatus;
use strata_kinds::tenant::TenantStatus;
use strata_kinds::unbuilt::Place;
use strata_kinds::{ModelDeployment, QuotaPolicy, Tenant};

use super::observe::{self, REVISION_LABEL};
use super::{ClusterOptions, FIELD_MANAGER, conditions};
use crate::cluster::ClusterSite;
use crate::plan::{ModelObservation, ObjectStatus, Plan, World, plan, statuses};
use crate::render::{ENDPOINTS_CONFIG, ENDPOINTS_FILE, MODEL_LABEL, Rendered, Site, render, selector};
use crate::workload::{EngineWorkload, Workload};

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(300);

/// What all reconcilers share.
pub(super) struct Cluster {
    client: Client,
    options: ClusterOptions,
    models: Store<ModelDeployment>,
    failures: Mutex<BTreeMap<String, u32>>,
}

type Outcome = Result<Action, kube::Error>;

impl Cluster {
    pub(super) fn new(client: Client, options: ClusterOptions, models: Store<ModelDeployment>) -> Self {
        Self { client, options, models, failures: Mutex::default() }
    }

    fn site(&self) -> ClusterSite {
        ClusterSite::new(self.options.image.clone(), self.options.mode, self.options.namespace.clone())
    }

    fn plan_models(&self) -> Plan {
        let models: Vec<ModelDeployment> = self.models.state().iter().map(|m| (**m).clone()).collect();
        let world = World {
            models: &models,
            tenants: &[],
            policies: &[],
            secrets: None,
            namespace: &self.options.namespace,
        };
        plan(&world, Place::Cluster, self.options.mode)
    }

    fn done(&self, key: &str) -> Action {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        Action::await_change()
    }

    async fn apply<K>(&self, object: &K) -> Result<(), kube::Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default());
        let params = PatchParams::apply(FIELD_MANAGER).force();
        api.patch(&object.name_any(), &params, &Patch::Apply(object)).await.map(drop)
    }

    async fn apply_rendered(&self, mut rendered: Rendered) -> Result<(), kube::Error> {
        let revision = rendered.revision();
        if let Some(meta) = rendered.deployment.spec.as_mut().and_then(|s| s.template.metadata.as_mut()) {
            meta.labels.get_or_insert_default().insert(REVISION_LABEL.to_owned(), revision);
        }
        self.apply(&rendered.deployment).await
    }

    async fn pods_of(&self, namespace: &str, model: &str) -> Result<Vec<Pod>, kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        Ok(api.list(&ListParams::default().labels(&selector(model))).await?.items)
    }

    /// Writes a status, if it is another than the one that is there.
    async fn write_status<K, S>(&self, object: &K, before: Option<&S>, status: &S) -> Result<(), kube::Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
        S: Serialize + PartialEq,
    {
        if before == Some(status) {
            return Ok(());
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default());
        let patch = json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()),
            "metadata": { "name": object.name_any() }, "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        api.patch_status(&object.name_any(), &params, &Patch::Apply(patch)).await.map(drop)
    }
}

// The signature is kube's.
#[allow(clippy::needless_pass_by_value)]
/// Tries again after a while that doubles, spread by chance.
pub(super) fn try_again<K>(object: Arc<K>, error: &kube::Error, cluster: Arc<Cluster>) -> Action
where
    K: Resource<DynamicType = ()>,
{
    let key = key_of(&*object);
    let failures = {
        let mut all = cluster.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = all.entry(key.clone()).or_insert(0);
        *failures = failures.saturating_add(1);
        *failures
    };
    tracing::debug!(object = key, %error, failures, "will be tried again");
    let mut byte = [0u8];
    let chance = if getrandom::fill(&mut byte).is_ok() { f64::from(byte[0]) / 255.0 } else { 0.5 };
    let full = FIRST_RETRY.saturating_mul(1 << (failures - 1).min(16)).min(LAST_RETRY);
    Action::requeue(full.mul_f64(0.75 + 0.25 * chance))
}

fn key_of<K: Resource<DynamicType = ()>>(object: &K) -> String {
    format!("{}/{}/{}", K::kind(&()), object.namespace().unwrap_or_default(), object.name_any())
}

/// A ModelDeployment: its Deployment and Service, its namespace's scheduler, and its status.
pub(super) async fn model(object: Arc<ModelDeployment>, cluster: Arc<Cluster>) -> Outcome {
    if object.metadata.deletion_timestamp.is_some() {
        // Everything is owned: the garbage collector undoes it.
        return Ok(cluster.done(&key_of(&*object)));
    }
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let plan = cluster.plan_models();
    let mut seen = BTreeMap::new();
    let is_mine = |e: &EngineWorkload| e.namespace == namespace && e.owner.name == name;
    for workload in &plan.workloads {
        match workload {
            Workload::Engine(engine) if is_mine(engine) => {
                seen.insert((namespace.clone(), name.clone()), serve(&cluster, engine, workload).await?);
            }
            Workload::Scheduler(scheduler) if scheduler.namespace == namespace => {
                cluster.apply_rendered(render(workload, Site::Cluster(&cluster.site()))).await?;
                publish_endpoints(&cluster, &plan, &namespace).await?;
            }
            _ => {}
        }
    }
    let said = statuses(&plan, &seen).into_iter().find(|s| s.namespace == namespace && s.name == name);
    let Some(said) = said else { return Ok(cluster.done(&key_of(&*object))) };
    let before = object.status.as_ref();
    let status = model_status(before, &said, object.metadata.generation.unwrap_or(0), Timestamp::now());
    cluster.write_status(&*object, before, &status).await?;
    Ok(cluster.done(&key_of(&*object)))
}

async fn serve(
    cluster: &Cluster,
    engine: &EngineWorkload,
    workload: &Workload,
) -> Result<ModelObservation, kube::Error> {
    let rendered = render(workload, Site::Cluster(&cluster.site()));
    let revision = rendered.revision();
    let url = format!("http://{}.{}.svc:{}/v1", rendered.name(), engine.namespace, crate::render::PORT);
    cluster.apply_rendered(rendered).await?;
    let pods = cluster.pods_of(&engine.namespace, &engine.owner.name).await?;
    Ok(observe::observe(&pods, &revision, Some(url)))
}

/// Tells the namespace's schedulers where replicas are.
async fn publish_endpoints(cluster: &Cluster, plan: &Plan, namespace: &str) -> Result<(), kube::Error> {
    let engines: Vec<&EngineWorkload> = plan
        .workloads
        .iter()
        .filter_map(|w| match w {
            Workload::Engine(engine) if engine.namespace == namespace => Some(engine),
            _ => None,
        })
        .collect();
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let mut pods: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
    for pod in api.list(&ListParams::default().labels(MODEL_LABEL)).await? {
        if let Some(model) = pod.labels().get(MODEL_LABEL).cloned() {
            pods.entry(model).or_default().push(pod);
        }
    }
    let file = serde_json::to_string_pretty(&observe::endpoints(&engines, &pods)).unwrap_or_default();
    let mut config =
        ConfigMap { data: Some(BTreeMap::from([(ENDPOINTS_FILE.to_owned(), file)])), ..ConfigMap::default() };
    config.metadata.name = Some(ENDPOINTS_CONFIG.to_owned());
    config.metadata.namespace = Some(namespace.to_owned());
    config.metadata.labels =
        Some(BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), FIELD_MANAGER.to_owned())]));
    cluster.apply(&config).await
}

fn model_status(
    before: Option<&ModelDeploymentStatus>,
    said: &ObjectStatus,
    generation: i64,
    now: Timestamp,
) -> ModelDeploymentStatus {
    let old = before.map(|s| s.conditions.as_slice()).unwrap_or_default();
    ModelDeploymentStatus {
        observed_generation: Some(generation),
        conditions: conditions::merge(old, &said.conditions, generation, now),
        replicas: Some(said.replicas.unwrap_or(0)),
        ready_replicas: Some(said.ready_replicas.unwrap_or(0)),
        selector: Some(selector(&said.name)),
        url: said.url.clone(),
        revision: said.revision.clone(),
        ..ModelDeploymentStatus::default()
    }
}

/// A Tenant: what is made of it.
pub(super) async fn tenant(object: Arc<Tenant>, cluster: Arc<Cluster>) -> Outcome {
    let tenants = [(*object).clone()];
    let world = World {
        models: &[],
        tenants: &tenants,
        policies: &[],
        secrets: None,
        namespace: &cluster.options.namespace,
    };
    let generation = object.metadata.generation.unwrap_or(0);
    let before = object.status.as_ref();
    for said in statuses(&plan(&world, Place::Cluster, cluster.options.mode), &BTreeMap::new()) {
        let old = before.map(|s| s.conditions.as_slice()).unwrap_or_default();
        let status = TenantStatus {
            observed_generation: Some(generation),
            conditions: conditions::merge(old, &said.conditions, generation, Timestamp::now()),
            policies: before.map(|s| s.policies.clone()).unwrap_or_default(),
            ..TenantStatus::default()
        };
        cluster.write_status(&*object, before, &status).await?;
    }
    Ok(cluster.done(&key_of(&*object)))
}

/// A QuotaPolicy: what is made of it.
pub(super) async fn policy(object: Arc<QuotaPolicy>, cluster: Arc<Cluster>) -> Outcome {
    let policies = [(*object).clone()];
    let world = World {
        models: &[],
        tenants: &[],
        policies: &policies,
        secrets: None,
        namespace: &cluster.options.namespace,
    };
    let generation = object.metadata.generation.unwrap_or(0);
    let before = object.status.as_ref();
    for said in statuses(&plan(&world, Place::Cluster, cluster.options.mode), &BTreeMap::new()) {
        let old = before.map(|s| s.conditions.as_slice()).unwrap_or_default();
        let status = QuotaPolicyStatus {
            observed_generation: Some(generation),
            conditions: conditions::merge(old, &said.conditions, generation, Timestamp::now()),
            tenants: None,
        };
        cluster.write_status(&*object, before, &status).await?;
    }
    Ok(cluster.done(&key_of(&*object)))
}
