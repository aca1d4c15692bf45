//! What is said about a model.

use k8s_openapi::jiff::Timestamp;
use strata_kinds::ModelDeployment;
use strata_kinds::model_deployment::ModelDeploymentStatus;

use super::{ModelSeen, REVISION_LABEL, pods};
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
    }
}
