//! What to apply for the replicas of a model that compute prompts for its other ones: a Deployment with a
//! history of its own, so that an edit of either restarts none of the other.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use strata_wire::replicas::Role;

use super::assess::Assessment;
use super::{Child, ClusterSite, ModelSeen, policy, step};
use crate::workload::EngineWorkload;

/// Their part of a model's step.
#[derive(Default)]
pub(super) struct PrefillStep {
    pub apply: Vec<Child>,
    pub keep: Vec<String>,
    pub look_again: Option<Duration>,
}

/// What to do for `engine`, which is of the role `prefill`. `meta` is that of the model's other children.
pub(super) fn step(
    engine: &EngineWorkload,
    seen: &ModelSeen<'_>,
    site: &ClusterSite,
    meta: &ObjectMeta,
    now: Timestamp,
) -> PrefillStep {
    let assessment = Assessment::of(engine, seen, site, now);
    let settled = assessment.settle(engine, site);
    let current = &settled.revision;
    let tracks = assessment.tracks(engine, &current.hash);
    let name = assessment.workload.as_str();
    let mut apply = Vec::new();
    if settled.record {
        apply.push(Child::of(&current.object(name, meta)));
    }
    apply.extend(step::disruption_budget(engine, meta).as_ref().map(Child::of));
    apply.extend(policy::peers(engine, name, meta, site).as_ref().map(Child::of));
    let (track, replicas) = (Role::Prefill.to_string(), Some(engine.spec.wanted_replicas()));
    apply.push(step::deployment(engine, name, &track, current, replicas, &tracks, meta));
    PrefillStep {
        keep: step::kept(&assessment, &tracks, &current.hash),
        apply,
        look_again: assessment.look_again,
    }
}
