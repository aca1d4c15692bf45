//! What to apply to a Kubernetes cluster and what to say about it, from what is seen there. Pure: no
//! clock, no I/O. [`crate::kube_backend`] carries it out.
//!
//! Nothing is remembered between two calls: all state is in the children.

mod assess;
mod child;
mod events;
mod governance;
mod judge;
mod live;
mod meta;
mod namespace;
pub(crate) mod pods;
mod policy;
mod prefill;
mod revision;
mod rollout;
mod route;
mod scale;
mod site;
mod status;
mod step;
#[cfg(test)]
mod tests;
mod trouble;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Pod;
use strata_wire::replicas::ReplicaReport;

pub use crate::plan::workload;
pub use strata_wire::download::DownloadProgress as Progress;

pub use child::{Child, ChildKey};
pub use events::{EventNote, events};
pub use governance::{GatewayView, policy_status, tenant_status};
pub use judge::{judge, judge_policy, judge_tenant};
pub use meta::shared_owners;
pub use namespace::{NamespaceSeen, namespace_step};
pub(crate) use revision::digest;
pub use scale::METRIC_LABEL;
pub use site::{Capabilities, ClusterSite, Picker, Trust};
pub use status::{malformed_status, model_status};
pub use step::{DEVELOPMENT_SERVICE, ModelStep, model_step, swept_kinds};

/// Label of a pod: the revision of the template that it was made from.
pub const REVISION_LABEL: &str = "strata.dev/revision";
/// Label of a pod: `stable`, `canary` for those that try a new revision, or `prefill` for those that
/// compute prompts for the others. By it each Deployment knows its own.
pub const TRACK_LABEL: &str = "strata.dev/track";
/// Label of everything that the operator made.
pub const MANAGED_LABEL: (&str, &str) = ("app.kubernetes.io/managed-by", "strata-operator");

/// What is seen of a model's children. All of them are of this one model.
#[derive(Clone, Copy, Debug)]
pub struct ModelSeen<'a> {
    /// The Deployments `<model>-engine`, `<model>-engine-canary` and `<model>-engine-prefill`.
    pub deployments: &'a [Arc<Deployment>],
    /// Pods with the model's label.
    pub pods: &'a [Arc<Pod>],
    /// Its ControllerRevisions.
    pub revisions: &'a [Arc<ControllerRevision>],
    /// One for each scheduler pod of the namespace; empty in mode development.
    pub schedulers: &'a [SchedulerView],
    /// By pod: how far the download is, for pods whose container `fetch` was asked.
    pub downloads: &'a BTreeMap<String, Progress>,
    /// The HorizontalPodAutoscaler, where it has one.
    pub autoscaler: Option<&'a HorizontalPodAutoscaler>,
    /// What the API server did not take of the last step.
    pub refused: &'a [Refused],
}

/// An object that the API server did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which, such as `Deployment a/b`.
    pub what: String,
    /// The API server's reason, such as `Forbidden`.
    pub reason: String,
    /// What it said.
    pub message: String,
    /// Whether trying again may help.
    pub transient: bool,
}

/// What one scheduler pod says.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerView {
    /// The pod's name.
    pub pod: String,
    /// Whether the kubelet says that it serves. Those that do not get no requests and are not asked.
    pub ready: bool,
    /// What `GET /replicas` returned, or why it could not be asked.
    pub report: Result<Arc<ReplicaReport>, String>,
}
