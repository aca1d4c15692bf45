//! From workloads to Kubernetes objects. Pure.

mod args;
mod engine;
mod files;
mod hop;
mod host;
mod lora;
mod pod;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sha2::{Digest, Sha256};
use strata_kinds::model_deployment::Runtime;
use strata_wire::replicas::Role;

use crate::cluster::ClusterSite;
use crate::workload::{Component, Workload};

pub(crate) use engine::{egress_ports, is_device, too_few_devices};
pub(crate) use files::FETCH;
pub use hop::HOP_SECRET;
pub(crate) use hop::Scheme;

/// The port of every component's container. On a host each process gets a port of its own by
/// `STRATA_LISTEN`.
pub const PORT: i32 = 8000;
/// The port at which schedulers are asked where requests should go, by gateway proxies.
pub const PICKER_PORT: i32 = 9002;
/// Names of the ports of an engine's pod at which it tells what its KV cache holds, and has held, as vLLM
/// does.
pub const EVENTS_PORT_NAME: &str = "kv-events";
/// See [`EVENTS_PORT_NAME`].
pub const REPLAY_PORT_NAME: &str = "kv-replay";
/// The environment variable that says where to listen.
pub const LISTEN_ENV: &str = "STRATA_LISTEN";
/// The ConfigMap with the endpoints file of a namespace.
pub const ENDPOINTS_CONFIG: &str = "strata-endpoints";
/// The endpoints file's name.
pub const ENDPOINTS_FILE: &str = "endpoints.json";
/// Label of an engine's pod: `decode`, or `prefill` for those that compute prompts for others. Pods of a
/// model without the latter have none.
pub const ROLE_LABEL: &str = "strata.dev/role";
/// Label beside [`ROLE_LABEL`]: pods that have the same value can use what the others make of a prompt. In
/// the midst of a change there are pods of two.
pub const HANDOVER_LABEL: &str = "strata.dev/handover";
/// Annotation of an engine's pod: the names of the adapters that it serves, with commas between them. In
/// the midst of a change there are pods with others.
pub const ADAPTERS_ANNOTATION: &str = "strata.dev/adapters";
/// Label: the ModelDeployment that a pod belongs to.
pub const MODEL_LABEL: &str = "strata.dev/model-deployment";

/// Where workloads are rendered for.
#[derive(Clone, Copy, Debug)]
pub enum Site<'a> {
    /// Kubernetes.
    Cluster(&'a ClusterSite),
    /// One machine.
    Host(&'a HostSite),
}

/// The addresses and folders of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostSite {
    /// The folder of manifests.
    pub folder: String,
    /// The state folder.
    pub state: String,
    /// The user's home folder, for `file://~/`.
    pub home: Option<String>,
    /// The folder that stands for `~/.cache/strata/models`, where it is another.
    pub models: Option<String>,
    /// The endpoints file.
    pub endpoints: String,
    /// What the platform sends requests to.
    pub platform_upstream: String,
    /// Whether that is a gateway.
    pub platform_upstream_is_gateway: bool,
    /// What the gateway sends requests to.
    pub gateway_upstream: String,
    /// Lets the platform listen beyond this machine without authentication.
    pub insecure_no_auth: bool,
    /// Whether engines have a fixed address, because no scheduler stands before them.
    pub fixed_engines: bool,
}

/// A workload as Kubernetes objects.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// Its layer.
    pub component: Component,
    /// The ModelDeployment's name, of an engine.
    pub model: Option<String>,
    /// What runs its replicas.
    pub deployment: Deployment,
}

impl Rendered {
    /// The workload's name.
    pub fn name(&self) -> &str {
        self.deployment.metadata.name.as_deref().unwrap_or_default()
    }

    /// The pod template.
    pub fn template(&self) -> PodTemplateSpec {
        self.deployment.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default()
    }

    /// How many replicas are wanted.
    pub fn replicas(&self) -> u32 {
        let replicas = self.deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
        u32::try_from(replicas).unwrap_or(0)
    }

    /// Hash of the pod template: replicas with another one are of an older revision.
    pub fn revision(&self) -> String {
        revision(&self.template())
    }

    /// Whether replicas of a new template must wait until the old ones have stopped.
    pub fn recreates(&self) -> bool {
        let strategy = self.deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
        strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
    }
}

/// Hash of a pod template, in ten hexadecimal digits.
pub fn revision(template: &PodTemplateSpec) -> String {
    // Maps in a template are sorted, so that equal templates have equal text.
    let text = serde_json::to_vec(template).unwrap_or_default();
    short_hash(&text)
}

/// The first ten hexadecimal digits of the SHA-256 of `text`.
pub(crate) fn short_hash(text: &[u8]) -> String {
    Sha256::digest(text).iter().take(5).fold(String::new(), |mut hash, byte| {
        use std::fmt::Write as _;
        let _ = write!(hash, "{byte:02x}");
        hash
    })
}

/// The label selector of a model's pods, as `/scale` has it. Those that compute prompts for others, where
/// there are such, are not scaled by it. kubectl and the autoscaler read `notin`, and not `!=`.
pub fn selector(model: &str, has_prefill: bool) -> String {
    let labels = match_labels(Component::Engine, Some(model));
    let others = has_prefill.then(|| format!("{ROLE_LABEL} notin ({})", Role::Prefill));
    labels.iter().map(|(k, v)| format!("{k}={v}")).chain(others).collect::<Vec<_>>().join(",")
}

/// The labels that tell one workload's pods from all others.
pub fn match_labels(component: Component, model: Option<&str>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "strata".to_owned()),
        ("app.kubernetes.io/component".to_owned(), component.name().to_owned()),
    ]);
    if let Some(model) = model {
        labels.insert(MODEL_LABEL.to_owned(), model.to_owned());
    }
    labels
}

pub(crate) fn labels(component: Component, model: Option<&str>) -> BTreeMap<String, String> {
    let mut labels = match_labels(component, model);
    let instance = model.map_or_else(|| "strata".to_owned(), ToOwned::to_owned);
    labels.insert("app.kubernetes.io/instance".to_owned(), instance);
    labels.insert("app.kubernetes.io/part-of".to_owned(), "strata".to_owned());
    labels.insert("app.kubernetes.io/managed-by".to_owned(), "strata-operator".to_owned());
    labels
}

/// The objects of a workload.
pub fn render(workload: &Workload, site: Site<'_>) -> Rendered {
    let (component, model) = (workload.component(), workload.model());
    let deployment = Deployment {
        metadata: metadata(workload),
        spec: Some(DeploymentSpec {
            replicas: Some(replicas(workload, site)),
            selector: LabelSelector {
                match_labels: Some(match_labels(component, model)),
                ..LabelSelector::default()
            },
            strategy: Some(strategy(component, site)),
            template: pod::template(workload, site, labels(component, model)),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    };
    Rendered { component, model: model.map(ToOwned::to_owned), deployment }
}

fn metadata(workload: &Workload) -> ObjectMeta {
    let namespace = match workload {
        Workload::Engine(e) => e.namespace.as_str(),
        Workload::Scheduler(s) => s.namespace.as_str(),
        Workload::Gateway | Workload::Platform => strata_kinds::NAMESPACE,
    };
    ObjectMeta {
        name: Some(workload.name()),
        namespace: Some(namespace.to_owned()),
        labels: Some(labels(workload.component(), workload.model())),
        ..ObjectMeta::default()
    }
}

/// What the listener behind a Service speaks.
pub(crate) fn protocol(workload: &Workload, site: &ClusterSite) -> Scheme {
    match workload {
        Workload::Engine(engine) if engine.spec.runtime() != Runtime::Native => Scheme::Http,
        _ => Scheme::of(site),
    }
}

fn replicas(workload: &Workload, site: Site<'_>) -> i32 {
    match (workload, site) {
        (Workload::Engine(engine), _) => engine.spec.wanted_replicas(),
        (Workload::Scheduler(_), Site::Cluster(_)) => 2,
        _ => 1,
    }
}

/// A new replica is ready before an old one stops, but where both would need one address.
fn strategy(component: Component, site: Site<'_>) -> DeploymentStrategy {
    let fixed = match site {
        Site::Cluster(_) => false,
        Site::Host(host) => component != Component::Engine || host.fixed_engines,
    };
    if fixed {
        return DeploymentStrategy { type_: Some("Recreate".to_owned()), rolling_update: None };
    }
    DeploymentStrategy {
        type_: Some("RollingUpdate".to_owned()),
        rolling_update: Some(RollingUpdateDeployment {
            max_surge: Some(IntOrString::Int(1)),
            max_unavailable: Some(IntOrString::Int(0)),
        }),
    }
}
