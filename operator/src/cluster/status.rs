//! What is said about a model.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition as KubeCondition, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use strata_kinds::ModelDeployment;
use strata_kinds::model_deployment::ModelDeploymentStatus;

use super::{ClusterSite, ModelSeen, REVISION_LABEL, pods};
use crate::condition::{Condition, Reason, Truth, stamp};
use crate::plan::Verdict;
use crate::render::selector;
use crate::workload::EngineWorkload;
use kube::ResourceExt;

/// The status of a model.
pub fn model_status(
    object: &ModelDeployment,
    verdict: &Verdict,
    engine: Option<&EngineWorkload>,
    seen: &ModelSeen<'_>,
    _site: &ClusterSite,
    now: Timestamp,
) -> ModelDeploymentStatus {
    let before = object.status.as_ref();
    let generation = object.metadata.generation.unwrap_or(0);
    let name = object.name_any();
    let staying = || seen.pods.iter().filter(|p| !pods::is_leaving(p));
    let revision = seen
        .deployments
        .iter()
        .find(|d| d.name_any() == format!("{name}-engine"))
        .and_then(|d| d.spec.as_ref()?.template.metadata.as_ref()?.labels.as_ref()?.get(REVISION_LABEL))
        .cloned();
    let ready = staying()
        .filter(|p| pods::is_ready(p) && Some(pods::label(p, REVISION_LABEL)) == revision.as_deref())
        .count() as i32;
    let condition = match (verdict, engine) {
        (Verdict::Refused { reason, message }, _) => {
            Condition::main("ModelDeployment", Truth::False, *reason, message.clone())
        }
        (Verdict::Accepted, Some(engine)) => {
            let wanted = engine.spec.wanted_replicas();
            let trouble = staying().find_map(|p| pods::trouble(p));
            let (status, reason) = match &trouble {
                Some(_) if ready < wanted => (Truth::False, Reason::Failing),
                _ if ready < wanted || staying().count() as i32 != wanted => (Truth::False, Reason::Starting),
                _ if wanted == 0 => (Truth::True, Reason::ScaledToZero),
                _ => (Truth::True, Reason::Serving),
            };
            let message = trouble.unwrap_or_else(|| format!("{ready} of {wanted} replicas serve"));
            Condition::main("ModelDeployment", status, reason, message)
        }
        (Verdict::Accepted, None) => {
            Condition::main("ModelDeployment", Truth::Unknown, Reason::Starting, "not looked at yet")
        }
    };
    ModelDeploymentStatus {
        observed_generation: Some(generation),
        conditions: stamp(before.map_or(&[], |s| &s.conditions), &[condition], generation, now),
        replicas: Some(staying().count() as i32),
        ready_replicas: Some(ready),
        selector: Some(selector(&name)),
        url: before.and_then(|s| s.url.clone()),
        revision,
        ..ModelDeploymentStatus::default()
    }
}

/// The conditions of an object that is none of its kind, such as one from before a rule was made.
pub fn malformed_status(
    meta: &ObjectMeta,
    error: &str,
    before: &[KubeCondition],
    now: Timestamp,
) -> Vec<KubeCondition> {
    let generation = meta.generation.unwrap_or(0);
    let said = [
        Condition::main("ModelDeployment", Truth::False, Reason::Invalid, error),
        Condition {
            kind: "Stalled".to_owned(),
            status: Truth::True,
            reason: Reason::Invalid,
            message: error.to_owned(),
        },
    ];
    stamp(before, &said, generation, now)
}
