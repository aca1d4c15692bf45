//! What a namespace with models has once: its scheduler.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;

use super::{Child, ClusterSite};
use crate::render::{Site, render};
use crate::workload::{EngineWorkload, SchedulerWorkload, Workload};

/// What is seen of a namespace's own children: those that belong to no single model.
#[derive(Clone, Copy, Debug, Default)]
pub struct NamespaceSeen<'a> {
    /// ControllerRevisions of the scheduler.
    pub revisions: &'a [Arc<ControllerRevision>],
}

/// The objects that the accepted models of a namespace share; none when there is no model, or no
/// scheduler in this mode.
///
/// A model that is refused now and has children from before counts as well: see [`super::workload`].
pub fn namespace_step(
    namespace: &str,
    engines: &[EngineWorkload],
    _seen: &NamespaceSeen<'_>,
    site: &ClusterSite,
) -> Vec<Child> {
    let Some(first) = engines.first() else { return Vec::new() };
    if !site.mode.has_scheduler() {
        return Vec::new();
    }
    let scheduler = SchedulerWorkload {
        namespace: namespace.to_owned(),
        owners: engines.iter().map(|e| e.owner.clone()).collect(),
        policy: first.spec.routing.as_ref().and_then(|r| r.policy).unwrap_or_default(),
    };
    let rendered = render(&Workload::Scheduler(scheduler), &Site::Cluster { image: site.image.clone() });
    let mut apply: Vec<Child> = rendered.service.iter().map(Child::of).collect();
    apply.push(Child::of(&rendered.deployment));
    apply
}
