//! Fields that the kinds have and whose effect is not built yet: refused, never ignored.
//!
//! Every entry here is a promise to take it out again.

use crate::model_deployment::{Device, ModelDeploymentSpec, Prefill, Runtime, Task};
use crate::quota_policy::{OnExceed, OnStoreFailure, QuotaPolicySpec};
use crate::validate::FieldError;

/// Where the object is to take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On one machine, by `strata up`.
    Host,
    /// On Kubernetes.
    Cluster,
}

/// Why a host cannot have what is on a volume.
const NO_CLAIMS: &str = "names a PersistentVolumeClaim, and a host has none: use file://PATH";
/// Why a pod cannot have what is in a home folder.
const NO_HOME: &str = "names a home folder, and pods have none: put the files on a PersistentVolumeClaim and use pvc://CLAIM/PATH, or file:// with an absolute path in the image";

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

/// What a ModelDeployment asks for that is not built, or has no meaning in this place.
pub fn model_deployment(spec: &ModelDeploymentSpec, place: Place) -> Vec<FieldError> {
    let mut r = Refusals(Vec::new());
    match place {
        Place::Host => host(&mut r, spec),
        Place::Cluster => cluster(&mut r, spec),
    }
    task(&mut r, spec);
    adapters(&mut r, spec, place);
    r.refuse(!spec.experimental.is_empty(), "spec.experimental", "remove it; there are no such switches");
    if spec.runtime() == Runtime::Native {
        native(&mut r, spec);
    }
    if let Some(asked) = &spec.prefill {
        prefill(&mut r, spec, asked, place);
    }
    r.0
}

/// Strata's engine is told to embed, or sees it in the checkpoint; others would need flags.
fn task(r: &mut Refusals, spec: &ModelDeploymentSpec) {
    match (spec.task.unwrap_or_default(), spec.runtime()) {
        (Task::Generate, _) | (Task::Embed, Runtime::Native) => {}
        (Task::Embed, _) => r.refuse(true, "spec.task", "remove it, or use the runtime Native, which embeds"),
        // The engine answers /rerank and /classify, and gateway and scheduler do not pass them on.
        _ => r.refuse(true, "spec.task", "remove it, or set Generate or Embed"),
    }
}

/// Engines are given adapters by flags, and only of a model that generates.
fn adapters(r: &mut Refusals, spec: &ModelDeploymentSpec, place: Place) {
    if spec.adapters.is_empty() {
        return;
    }
    r.impossible(
        spec.runtime() == Runtime::Custom,
        "spec.adapters",
        "needs flags, and Strata cannot know those of a Custom engine: remove it, and give the image its adapters by `engine.args`",
    );
    r.impossible(
        spec.task == Some(Task::Embed),
        "spec.adapters",
        "is for models that generate: remove it, or `task: Embed`",
    );
    let args = spec.engine.iter().flat_map(|engine| &engine.args);
    r.impossible(
        args.into_iter().any(|arg| arg.starts_with("--lora-modules")),
        "spec.engine.args",
        "must not have --lora-modules beside `spec.adapters`: list all adapters there",
    );
    for (index, adapter) in spec.adapters.iter().enumerate() {
        let path = format!("spec.adapters[{index}].uri");
        match place {
            Place::Host => r.impossible(adapter.uri.starts_with("pvc://"), &path, NO_CLAIMS),
            Place::Cluster => r.impossible(is_in_home(&adapter.uri), &path, NO_HOME),
        }
    }
}

/// A prompt is computed in one place and used in another only where the engine can hand it over.
fn prefill(r: &mut Refusals, spec: &ModelDeploymentSpec, asked: &Prefill, place: Place) {
    if place == Place::Host {
        return r.refuse(true, "spec.prefill", "remove it; replicas on a host compute prompts themselves");
    }
    let path = "spec.prefill.parallelism";
    match spec.runtime() {
        Runtime::Native => r.refuse(
            true,
            "spec.prefill",
            "remove it, or use the runtime Vllm; Strata's engine cannot hand its KV cache to another yet",
        ),
        Runtime::Vllm => {
            let on_cpu = spec.engine.as_ref().and_then(|e| e.device) == Some(Device::Cpu);
            r.impossible(
                on_cpu && asked.parallelism.is_some(),
                path,
                "is over GPUs: remove it, or `engine.device: Cpu`",
            );
        }
        Runtime::Custom => r.impossible(
            asked.parallelism.is_some(),
            path,
            "needs flags, and Strata cannot know those of a Custom engine: remove it, let the image follow STRATA_ROLE, and put GPUs into `spec.prefill.podTemplate.resources`",
        ),
    }
}

/// What Strata's own engine cannot do yet.
fn native(r: &mut Refusals, spec: &ModelDeploymentSpec) {
    let device = spec.engine.as_ref().and_then(|e| e.device);
    r.refuse(device == Some(Device::Cuda), "spec.engine.device", "remove it, or set Cpu");
    let spreads = spec.parallelism.as_ref().is_some_and(|p| p.devices() > 1 || p.expert.unwrap_or(1) > 1);
    r.refuse(spreads, "spec.parallelism", "remove it; a replica uses one device");
    let resources = spec.pod_template.as_ref().and_then(|t| t.resources.as_ref());
    let gpu =
        resources.is_some_and(|r| r.limits.keys().chain(r.requests.keys()).any(|name| name.contains("gpu")));
    r.refuse(gpu, "spec.podTemplate.resources", "the engine uses no GPU; remove the GPU");
}

fn host(r: &mut Refusals, spec: &ModelDeploymentSpec) {
    r.impossible(spec.model.uri.starts_with("pvc://"), "spec.model.uri", NO_CLAIMS);
    r.impossible(
        spec.model.cache.is_some(),
        "spec.model.cache",
        "has no meaning on a host, where fetched models are kept in ~/.cache/strata/models or STRATA_MODELS: remove it",
    );
    r.refuse(spec.runtime() != Runtime::Native, "spec.engine.runtime", "remove it, or set Native");
    r.refuse(spec.autoscaling.is_some(), "spec.autoscaling", "remove it, and set `spec.replicas`");
    r.refuse(
        spec.rollout.is_some(),
        "spec.rollout",
        "remove it; a new replica is ready before an old one stops",
    );
    let startup = spec.engine.as_ref().is_some_and(|e| e.startup_timeout.is_some());
    r.refuse(startup, "spec.engine.startupTimeout", "remove it; a model on a host has ten minutes");
    let Some(template) = &spec.pod_template else { return };
    if let Some(resources) = &template.resources {
        let unheld = resources.limits.keys().any(|name| name != "cpu" && !name.contains("gpu"));
        r.impossible(
            unheld,
            "spec.podTemplate.resources.limits",
            "holds only for cpu on a host: remove the others (the KV cache has `spec.engine.kvCache.memory`)",
        );
    }
    let only = "has no meaning on a host, which has one node and no accounts: remove it";
    for (set, field) in [
        (!template.node_selector.is_empty(), "nodeSelector"),
        (!template.tolerations.is_empty(), "tolerations"),
        (template.service_account_name.is_some(), "serviceAccountName"),
        (template.runtime_class_name.is_some(), "runtimeClassName"),
        (template.priority_class_name.is_some(), "priorityClassName"),
        (!template.image_pull_secrets.is_empty(), "imagePullSecrets"),
        (template.termination_grace_period_seconds.is_some(), "terminationGracePeriodSeconds"),
    ] {
        r.impossible(set, &format!("spec.podTemplate.{field}"), only);
    }
}

fn cluster(r: &mut Refusals, spec: &ModelDeploymentSpec) {
    r.impossible(is_in_home(&spec.model.uri), "spec.model.uri", NO_HOME);
}

fn is_in_home(uri: &str) -> bool {
    local_path(uri).is_some_and(|path| path.starts_with('~'))
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refused(engine: &Value, prefill: &Value, place: Place) -> Vec<String> {
        let spec =
            json!({ "model": { "name": "m", "uri": "pvc://c/m" }, "engine": engine, "prefill": prefill });
        let spec = serde_json::from_value(spec).unwrap();
        let prefill = |error: &FieldError| error.path.starts_with("spec.prefill");
        let errors = model_deployment(&spec, place).into_iter().filter(prefill);
        errors.map(|error| error.to_string()).collect()
    }

    #[test]
    fn only_strata_s_engine_embeds() {
        let refused = |task: &str, runtime: &str| {
            let engine = json!({ "runtime": runtime, "image": "x" });
            let spec =
                json!({ "model": { "name": "m", "uri": "pvc://c/m" }, "engine": engine, "task": task });
            let errors = model_deployment(&serde_json::from_value(spec).unwrap(), Place::Cluster);
            let errors = errors.into_iter().filter(|error| error.path == "spec.task");
            errors.map(|error| error.to_string()).collect::<Vec<_>>()
        };
        assert!(refused("Generate", "Vllm").is_empty() && refused("Embed", "Native").is_empty());
        insta::assert_snapshot!(
            [refused("Embed", "Vllm"), refused("Rerank", "Native")].concat().join("\n"),
            @"
        `spec.task` is not built yet: remove it, or use the runtime Native, which embeds
        `spec.task` is not built yet: remove it, or set Generate or Embed
        "
        );
    }

    #[test]
    fn adapters_are_for_engines_that_are_known_to_serve_them() {
        let refused = |engine: &Value, task: &str, uri: &str, place| {
            let spec = json!({
                "model": { "name": "m", "uri": "/m" }, "task": task, "engine": engine,
                "adapters": [{ "name": "a", "uri": "/a" }, { "name": "b", "uri": uri }],
            });
            let errors = model_deployment(&serde_json::from_value(spec).unwrap(), place);
            let of_host = |error: &FieldError| error.path == "spec.engine.runtime";
            errors.into_iter().filter(|e| !of_host(e)).map(|e| e.to_string()).collect::<Vec<_>>()
        };
        let (native, vllm) = (json!({}), json!({ "runtime": "Vllm", "image": "x" }));
        let none: [String; 0] = [];
        for place in [Place::Host, Place::Cluster] {
            assert_eq!(refused(&native, "Generate", "hf://a/b", place), none);
            assert_eq!(refused(&vllm, "Generate", "oci://r/a:1", place), none);
        }
        assert_eq!(refused(&native, "Generate", "file://~/b", Place::Host), none);
        assert_eq!(refused(&native, "Generate", "pvc://c/b", Place::Cluster), none);
        let said = [
            refused(&json!({ "runtime": "Custom", "image": "x" }), "Generate", "/b", Place::Cluster),
            refused(&native, "Embed", "/b", Place::Cluster),
            refused(&json!({ "args": ["--lora-modules", "c=/c"] }), "Generate", "/b", Place::Cluster),
            refused(&native, "Generate", "pvc://c/b", Place::Host),
            refused(&native, "Generate", "file://~/b", Place::Cluster),
        ];
        assert!(said.iter().all(|errors| errors.len() == 1), "{said:?}");
        insta::assert_snapshot!(said.concat().join("\n"), @"
        `spec.adapters` needs flags, and Strata cannot know those of a Custom engine: remove it, and give the image its adapters by `engine.args`
        `spec.adapters` is for models that generate: remove it, or `task: Embed`
        `spec.engine.args` must not have --lora-modules beside `spec.adapters`: list all adapters there
        `spec.adapters[1].uri` names a PersistentVolumeClaim, and a host has none: use file://PATH
        `spec.adapters[1].uri` names a home folder, and pods have none: put the files on a PersistentVolumeClaim and use pvc://CLAIM/PATH, or file:// with an absolute path in the image
        ");
    }

    #[test]
    fn prompts_are_computed_elsewhere_only_where_that_can_be() {
        let (vllm, custom) =
            (json!({ "runtime": "Vllm", "image": "x" }), json!({ "runtime": "Custom", "image": "x" }));
        let spread = json!({ "parallelism": { "tensor": 2 } });
        let none: [String; 0] = [];
        assert_eq!(refused(&vllm, &json!({}), Place::Cluster), none);
        assert_eq!(refused(&vllm, &spread, Place::Cluster), none);
        assert_eq!(refused(&custom, &json!({ "replicas": 2 }), Place::Cluster), none);
        let on_cpu = json!({ "runtime": "Vllm", "image": "x", "device": "Cpu" });
        let said = [
            refused(&json!({}), &json!({}), Place::Cluster),
            refused(&vllm, &json!({}), Place::Host),
            refused(&custom, &spread, Place::Cluster),
            refused(&on_cpu, &spread, Place::Cluster),
        ];
        assert!(said.iter().all(|errors| errors.len() == 1));
        insta::assert_snapshot!(said.concat().join("\n"), @"
        `spec.prefill` is not built yet: remove it, or use the runtime Vllm; Strata's engine cannot hand its KV cache to another yet
        `spec.prefill` is not built yet: remove it; replicas on a host compute prompts themselves
        `spec.prefill.parallelism` needs flags, and Strata cannot know those of a Custom engine: remove it, let the image follow STRATA_ROLE, and put GPUs into `spec.prefill.podTemplate.resources`
        `spec.prefill.parallelism` is over GPUs: remove it, or `engine.device: Cpu`
        ");
    }
}
