//! Whether every scheduler sends requests to every replica.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use strata_wire::replicas::{ReplicaReport, Role};

use super::super::assess::Assessment;
use super::super::{SchedulerView, pods};
use crate::render::ADAPTERS_ANNOTATION;
use crate::workload::EngineWorkload;

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
    let pods: Vec<(String, Vec<&str>)> = assessment
        .stable_pods
        .iter()
        .chain(&assessment.canary_pods)
        .filter(|p| pods::is_ready(p))
        .map(|p| (p.name_any(), names(engine, p)))
        .collect();
    serving.find_map(|view| match &view.report {
        Err(error) => {
            Some(format!("its replicas serve; the scheduler {} cannot be asked: {error}", view.pod))
        }
        Ok(report) => {
            let role = engine.role.unwrap_or_default();
            let routed = pods
                .iter()
                .filter(|(pod, names)| names.iter().all(|name| routes(report, name, pod, role)))
                .count();
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

/// The names by which requests reach a pod: of the adapters, those that it has.
fn names<'e>(engine: &'e EngineWorkload, pod: &Pod) -> Vec<&'e str> {
    let serves = pod.annotations().get(ADAPTERS_ANNOTATION).map_or("", String::as_str);
    let has = |name: &&str| *name == engine.spec.model.name || serves.split(',').any(|its| its == *name);
    engine.spec.served_names().filter(has).collect()
}

fn routes(report: &ReplicaReport, model: &str, pod: &str, role: Role) -> bool {
    let replicas = report.models.get(model);
    replicas.is_some_and(|replicas| replicas.iter().any(|r| r.name == pod && r.ready && r.role == role))
}
