//! The workload that computes a model's prompts. Pure.

use strata_kinds::ModelDeploymentSpec;
use strata_kinds::model_deployment::{PodTemplate, Prefill, Rollout};
use strata_wire::replicas::Role;

use crate::workload::EngineWorkload;

/// The replicas that compute the prompts of a model's other ones; none when it has no such. They sleep
/// while the others do, for nobody would use what they compute.
pub(crate) fn workload(engine: &EngineWorkload, asleep: bool) -> Option<EngineWorkload> {
    let mut spec = spec(&engine.spec)?;
    if asleep {
        spec.replicas = Some(0);
    }
    Some(EngineWorkload { spec: Box::new(spec), role: Some(Role::Prefill), ..engine.clone() })
}

/// The model's spec as its prefill replicas have it: what they are not given of their own is as for the
/// others. They are scaled by nobody, and no canary is tried of them: it would answer no request.
pub(super) fn spec(of: &ModelDeploymentSpec) -> Option<ModelDeploymentSpec> {
    let Prefill { replicas, parallelism, pod_template } = of.prefill.clone()?;
    Some(ModelDeploymentSpec {
        prefill: None,
        replicas: Some(replicas.unwrap_or(1)),
        autoscaling: None,
        rollout: of.rollout.clone().map(|rollout| Rollout { canary: None, ..rollout }),
        parallelism: parallelism.or_else(|| of.parallelism.clone()),
        pod_template: match pod_template {
            Some(own) => Some(over(own, of.pod_template.clone().unwrap_or_default())),
            None => of.pod_template.clone(),
        },
        ..of.clone()
    })
}

/// Each field that is set in `own`, and of `others` what is not.
fn over(own: PodTemplate, others: PodTemplate) -> PodTemplate {
    fn of<T: Default + PartialEq>(own: T, other: T) -> T {
        if own == T::default() { other } else { own }
    }
    PodTemplate {
        labels: of(own.labels, others.labels),
        annotations: of(own.annotations, others.annotations),
        node_selector: of(own.node_selector, others.node_selector),
        tolerations: of(own.tolerations, others.tolerations),
        resources: of(own.resources, others.resources),
        env: of(own.env, others.env),
        service_account_name: of(own.service_account_name, others.service_account_name),
        runtime_class_name: of(own.runtime_class_name, others.runtime_class_name),
        priority_class_name: of(own.priority_class_name, others.priority_class_name),
        image_pull_secrets: of(own.image_pull_secrets, others.image_pull_secrets),
        termination_grace_period_seconds: of(
            own.termination_grace_period_seconds,
            others.termination_grace_period_seconds,
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_prefill_replicas_are_not_given_is_as_for_the_others() {
        let model: ModelDeploymentSpec = serde_json::from_value(json!({
            "model": { "name": "m", "uri": "pvc://c/m" }, "autoscaling": { "min": 0, "max": 4 },
            "rollout": { "maxSurge": 2, "canary": { "weight": 10 } }, "parallelism": { "tensor": 2 },
            "podTemplate": {
                "nodeSelector": { "pool": "a" }, "runtimeClassName": "nvidia",
                "env": [{ "name": "A", "value": "1" }],
            },
            "prefill": { "podTemplate": { "nodeSelector": { "pool": "b" } } },
        }))
        .unwrap();
        let made = serde_json::to_value(spec(&model).unwrap()).unwrap();
        assert_eq!(
            made,
            json!({
                "model": { "name": "m", "uri": "pvc://c/m" }, "replicas": 1, "rollout": { "maxSurge": 2 },
                "parallelism": { "tensor": 2 },
                "podTemplate": {
                    "nodeSelector": { "pool": "b" }, "runtimeClassName": "nvidia",
                    "env": [{ "name": "A", "value": "1" }],
                },
            })
        );
        assert_eq!(spec(&ModelDeploymentSpec { prefill: None, ..model }), None);
    }
}
