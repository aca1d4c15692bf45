//! The Deployments of a model as they are.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::{ModelSeen, REVISION_LABEL};

/// The field manager of what is applied.
pub(super) const MANAGER: &str = "strata-operator";

/// A Deployment, as far as decisions depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Live {
    /// Hash of its template.
    pub revision: String,
    /// The replicas that it is to have.
    pub replicas: i32,
    /// Whether a rollout may take no replica above that number.
    pub without_surge: bool,
    /// Whether what is applied holds the number of replicas.
    pub owns_replicas: bool,
    /// What keeps it from making pods.
    pub refusal: Option<String>,
}

/// The Deployment of this name.
pub(super) fn find(seen: &ModelSeen<'_>, name: &str) -> Option<Live> {
    seen.deployments.iter().find(|d| d.name_any() == name).map(|d| read(d))
}

fn read(deployment: &Deployment) -> Live {
    let spec = deployment.spec.as_ref();
    let rolling = spec.and_then(|s| s.strategy.as_ref()).and_then(|s| s.rolling_update.as_ref());
    let conditions = deployment.status.iter().flat_map(|s| s.conditions.iter().flatten());
    Live {
        revision: spec
            .and_then(|s| s.template.metadata.as_ref()?.labels.as_ref()?.get(REVISION_LABEL))
            .cloned()
            .unwrap_or_default(),
        replicas: spec.and_then(|s| s.replicas).unwrap_or(1),
        without_surge: rolling.and_then(|r| r.max_surge.as_ref()).is_some_and(is_zero),
        owns_replicas: owns_replicas(deployment),
        refusal: conditions
            .filter(|c| c.type_ == "ReplicaFailure" && c.status == "True")
            .find_map(|c| c.message.clone()),
    }
}

pub(super) fn is_zero(share: &IntOrString) -> bool {
    match share {
        IntOrString::Int(n) => *n == 0,
        IntOrString::String(text) => text == "0%",
    }
}

fn owns_replicas(deployment: &Deployment) -> bool {
    deployment.managed_fields().iter().any(|entry| {
        entry.manager.as_deref() == Some(MANAGER)
            && entry.subresource.as_deref().unwrap_or_default().is_empty()
            && entry.fields_v1.as_ref().is_some_and(|f| f.0.pointer("/f:spec/f:replicas").is_some())
    })
}
