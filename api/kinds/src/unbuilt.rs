//! Fields that the kinds have and whose effect is not built yet: refused, never ignored.
//!
//! Every entry here is a promise to take it out again.

use crate::model_deployment::{Device, ModelDeploymentSpec, Parallelism, PodTemplate, Runtime, Task};
use crate::quota_policy::{OnExceed, OnStoreFailure, QuotaPolicySpec};
use crate::tenant::TenantSpec;
use crate::validate::FieldError;

/// Where the object is to take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On one machine, by `strata up`.
    Host,
    /// On Kubernetes.
    Cluster,
}

struct Refusals(Vec<FieldError>);

impl Refusals {
    fn refuse(&mut self, condition: bool, path: &str, advice: &str) {
        if condition {
            self.0.push(FieldError { path: path.to_owned(), message: format!("is not built yet: {advice}") });
        }
    }

    fn impossible(&mut self, condition: bool, path: &str, message: &str) {
        if condition {
            self.0.push(FieldError { path: path.to_owned(), message: message.to_owned() });
        }
    }
}

/// What a ModelDeployment asks for that is not built.
pub fn model_deployment(spec: &ModelDeploymentSpec, place: Place) -> Vec<FieldError> {
    let mut r = Refusals(Vec::new());
    if local_path(&spec.model.uri).is_none() {
        let scheme = spec.model.uri.split("://").next().unwrap_or_default();
        r.0.push(FieldError {
            path: "spec.model.uri".to_owned(),
            message: format!(
                "uses {scheme}://, which is not built yet: fetch the model yourself and use file://PATH"
            ),
        });
    }
    r.refuse(spec.model.revision.is_some(), "spec.model.revision", "remove it; file:// has no revisions");
    r.refuse(spec.model.credentials_secret_ref.is_some(), "spec.model.credentialsSecretRef", "remove it");
    r.refuse(spec.model.cache.is_some(), "spec.model.cache", "remove it; file:// is read where it is");
    r.refuse(spec.task.unwrap_or_default() != Task::Generate, "spec.task", "remove it, or set Generate");
    r.refuse(!spec.adapters.is_empty(), "spec.adapters", "remove it");
    if let Some(engine) = &spec.engine {
        let native = engine.runtime.unwrap_or_default() == Runtime::Native;
        r.refuse(!native, "spec.engine.runtime", "remove it, or set Native");
        r.refuse(engine.device == Some(Device::Cuda), "spec.engine.device", "remove it, or set Cpu");
    }
    r.refuse(
        spec.parallelism.as_ref().is_some_and(spreads),
        "spec.parallelism",
        "remove it; a replica uses one device",
    );
    r.refuse(spec.prefill.is_some(), "spec.prefill", "remove it; replicas compute prompts themselves");
    r.refuse(spec.autoscaling.is_some(), "spec.autoscaling", "remove it, and set `spec.replicas`");
    r.refuse(
        spec.rollout.is_some(),
        "spec.rollout",
        "remove it; a new replica is ready before an old one stops",
    );
    r.refuse(!spec.experimental.is_empty(), "spec.experimental", "remove it; there are no such switches");
    if let Some(template) = &spec.pod_template {
        pod_template(&mut r, template, place);
    }
    r.0
}

fn spreads(parallelism: &Parallelism) -> bool {
    let Parallelism { tensor, pipeline, data, expert } = parallelism;
    [tensor, pipeline, data, expert].into_iter().any(|n| n.is_some_and(|n| n > 1))
}

fn pod_template(r: &mut Refusals, template: &PodTemplate, place: Place) {
    if let Some(resources) = &template.resources {
        let gpu = resources.limits.keys().chain(resources.requests.keys()).any(|name| name.contains("gpu"));
        r.refuse(gpu, "spec.podTemplate.resources", "the engine uses no GPU; remove the GPU");
        if place == Place::Host {
            let unheld = resources.limits.keys().any(|name| name != "cpu" && !name.contains("gpu"));
            r.impossible(
                unheld,
                "spec.podTemplate.resources.limits",
                "holds only for cpu on a host: remove the others (the KV cache has `spec.engine.kvCache.memory`)",
            );
        }
    }
    if place == Place::Host {
        let only = "has no meaning on a host, which has one node and no accounts: remove it";
        r.impossible(!template.node_selector.is_empty(), "spec.podTemplate.nodeSelector", only);
        r.impossible(!template.tolerations.is_empty(), "spec.podTemplate.tolerations", only);
        r.impossible(template.service_account_name.is_some(), "spec.podTemplate.serviceAccountName", only);
    }
}

/// What a Tenant asks for that is not built.
pub fn tenant(spec: &TenantSpec) -> Vec<FieldError> {
    let mut r = Refusals(Vec::new());
    r.refuse(
        spec.priority.is_some_and(|p| p != 0),
        "spec.priority",
        "remove it; the scheduler serves all tenants alike",
    );
    r.0
}

/// What a QuotaPolicy asks for that is not built.
pub fn quota_policy(spec: &QuotaPolicySpec) -> Vec<FieldError> {
    let mut r = Refusals(Vec::new());
    let amount = spec.budget.as_ref().is_some_and(|b| b.amount.is_some());
    r.refuse(amount, "spec.budget.amount", "set `spec.budget.tokens` instead");
    r.refuse(!spec.pricing.is_empty(), "spec.pricing", "remove it; usage is metered in tokens");
    r.refuse(spec.objectives.is_some(), "spec.objectives", "remove it");
    let other_store = spec.on_store_failure.is_some_and(|f| f != OnStoreFailure::Deny);
    r.refuse(
        other_store,
        "spec.onStoreFailure",
        "remove it, or set Deny; counters are in the gateway's own store",
    );
    for (index, limit) in spec.limits.iter().enumerate() {
        let path = format!("spec.limits[{index}].onExceed");
        r.refuse(
            limit.on_exceed == Some(OnExceed::Fallback),
            &path,
            "remove it and `fallbackModel`, or set Reject",
        );
    }
    r.0
}

/// The path of a model that is on this machine: of `file://PATH`, or of a plain absolute path.
pub fn local_path(uri: &str) -> Option<&str> {
    let path = uri.strip_prefix("file://").unwrap_or(uri);
    (path.starts_with('/') || path.starts_with("~/")).then_some(path)
}
