//! What a namespace with models has once: its scheduler.

use super::{Child, ClusterSite};
use crate::render::{Site, render};
use crate::workload::{EngineWorkload, SchedulerWorkload, Workload};

/// The objects that the accepted models of a namespace share; none when there is no model, or no
/// scheduler in this mode.
pub fn namespace_step(namespace: &str, engines: &[EngineWorkload], site: &ClusterSite) -> Vec<Child> {
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
