//! Whether every scheduler sends requests to every replica.

use strata_wire::replicas::{ReplicaReport, Role};

use super::super::assess::Assessment;
use super::super::{SchedulerView, pods};
use crate::workload::EngineWorkload;
use kube::ResourceExt;

/// What is missing; nothing when all is well.
pub(super) fn missing(
    engine: &EngineWorkload,
    assessment: &Assessment<'_>,
    schedulers: &[SchedulerView],
) -> Option<String> {
    let mut serving = schedulers.iter().filter(|view| view.ready).peekable();
    if serving.peek().is_none() {
        return Some("its replicas serve; no scheduler does yet".to_owned());
    }
    let pods: Vec<String> = assessment
        .stable_pods
        .iter()
        .chain(&assessment.canary_pods)
        .filter(|p| pods::is_ready(p))
        .map(|p| p.name_any())
        .collect();
    serving.find_map(|view| match &view.report {
        Err(error) => {
            Some(format!("its replicas serve; the scheduler {} cannot be asked: {error}", view.pod))
        }
        Ok(report) => {
            let role = engine.role.unwrap_or_default();
            let routed = pods.iter().filter(|pod| routes(report, &engine.spec.model.name, pod, role)).count();
            let (sends, replicas) = match role {
                Role::Decode => ("requests", "replicas"),
                Role::Prefill => ("prompts", "prefill replicas"),
            };
            (routed < pods.len()).then(|| {
                format!("the scheduler {} sends {sends} to {routed} of {} {replicas}", view.pod, pods.len())
            })
        }
    })
}

fn routes(report: &ReplicaReport, model: &str, pod: &str, role: Role) -> bool {
    let replicas = report.models.get(model);
    replicas.is_some_and(|replicas| replicas.iter().any(|r| r.name == pod && r.ready && r.role == role))
}
