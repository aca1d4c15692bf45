//! What is said about a model.
//!
//! `Ready` is true only when all that the spec asks for is so: every replica is of the current revision,
//! serves, and every scheduler sends it requests. `Reconciling` is there while time will bring it about,
//! `Stalled` while somebody must do something; never both.

mod autoscaler;
mod download;
mod routed;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition as KubeCondition, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use strata_kinds::ModelDeployment;
use strata_kinds::model_deployment::{CanaryStatus, ModelDeploymentStatus};
use strata_wire::replicas::Role;

use super::assess::{Assessment, is_over_quota};
use super::rollout::{Scarcity, Tracks};
use super::{ClusterSite, ModelSeen, REVISION_LABEL, pods, route, trouble};
use crate::condition::{Condition, Reason, Truth, stamp};
use crate::plan::{self, Verdict, workload};
use crate::render::{PORT, selector};
use crate::workload::EngineWorkload;

const KIND: &str = "ModelDeployment";

/// The status of a model.
pub fn model_status(
    object: &ModelDeployment,
    verdict: &Verdict,
    engine: Option<&EngineWorkload>,
    seen: &ModelSeen<'_>,
    site: &ClusterSite,
    now: Timestamp,
) -> ModelDeploymentStatus {
    let before = object.status.as_ref();
    let generation = object.metadata.generation.unwrap_or(0);
    // A refused model may have replicas from before: they are counted as they are.
    let own = workload(object);
    let engine_seen = engine.unwrap_or(&own);
    let assessment = Assessment::of(engine_seen, seen, site, now);
    let tracks = assessment.recorded().map(|r| assessment.tracks(engine_seen, &r.hash));
    let stable = tracks
        .as_ref()
        .map(|t| t.stable.clone())
        .or_else(|| Some(assessment.stable.as_ref()?.revision.clone()));
    let count = Count::of(&assessment, stable.as_deref());
    let said = match verdict {
        // What has pods is left as it is, repairs included: it is not known what they should be.
        Verdict::Refused { reason, message } if count.stable > 0 => Said::stalled(
            *reason,
            format!(
                "{message}. Until then its pods are those of before, and nothing of them is changed or mended"
            ),
        ),
        Verdict::Refused { reason, message } => Said::stalled(*reason, message.clone()),
        Verdict::Accepted => {
            let said = judge(engine_seen, &assessment, tracks.as_ref(), &count, seen, site);
            let asleep = assessment.is_asleep(engine_seen);
            match plan::prefill::workload(engine_seen, asleep) {
                Some(prefill) if said.ready == Truth::True => said.and(of_prefill(&prefill, seen, site, now)),
                _ => said,
            }
        }
    };
    let mut conditions = said.conditions();
    conditions.extend(autoscaler::trouble(engine_seen, verdict, seen.autoscaler, site));
    let canary = tracks.as_ref().and_then(|t| t.canary.as_ref());
    ModelDeploymentStatus {
        observed_generation: Some(generation),
        conditions: stamp(before.map_or(&[], |s| &s.conditions), &conditions, generation, now),
        replicas: Some(count.stable),
        ready_replicas: Some(count.ready),
        selector: Some(selector(&object.name_any(), engine_seen.role.is_some())),
        url: Some(format!("http://{}.{}.svc:{PORT}/v1", route::entrance(site), site.namespace)),
        revision: stable,
        canary: canary.map(|c| CanaryStatus {
            revision: c.revision.clone(),
            replicas: count.canary,
            ready_replicas: count.canary_ready,
        }),
        download: download::status(before.and_then(|s| s.download.as_ref()), seen, now),
    }
}

/// The conditions of an object that is none of its kind, such as one from before a rule was made.
pub fn malformed_status(
    meta: &ObjectMeta,
    error: &str,
    before: &[KubeCondition],
    now: Timestamp,
) -> Vec<KubeCondition> {
    let said = Said::stalled(Reason::Invalid, error.to_owned());
    stamp(before, &said.conditions(), meta.generation.unwrap_or(0), now)
}

/// What is said: `Ready`, and what follows when it is not.
struct Said {
    ready: Truth,
    reason: Reason,
    message: String,
    /// Whether somebody must do something.
    stalled: bool,
}

impl Said {
    fn stalled(reason: Reason, message: String) -> Self {
        Self { ready: Truth::False, reason, message, stalled: true }
    }

    fn waits(reason: Reason, message: String) -> Self {
        Self { ready: Truth::False, reason, message, stalled: false }
    }

    fn good(reason: Reason, message: String) -> Self {
        Self { ready: Truth::True, reason, message, stalled: false }
    }

    /// What is said of two that are good only together, when this one is.
    fn and(self, other: Self) -> Self {
        match other.reason {
            Reason::Serving => Self { message: format!("{}; {}", self.message, other.message), ..self },
            Reason::ScaledToZero => self,
            _ => other,
        }
    }

    fn conditions(self) -> Vec<Condition> {
        let Self { ready, reason, message, stalled } = self;
        let kind = if stalled { "Stalled" } else { "Reconciling" };
        let why = (ready != Truth::True).then(|| Condition {
            kind: kind.to_owned(),
            status: Truth::True,
            reason,
            message: message.clone(),
        });
        [Condition::main(KIND, ready, reason, message)].into_iter().chain(why).collect()
    }
}

/// Pods of a model.
struct Count {
    /// On the stable track.
    stable: i32,
    /// Of these, ready and of the wanted revision.
    ready: i32,
    /// Of these, of another revision.
    outdated: i32,
    /// Of the latter, ready.
    outdated_ready: i32,
    /// On the canary's track.
    canary: i32,
    /// Of these, ready and of the wanted revision.
    canary_ready: i32,
}

impl Count {
    fn of(assessment: &Assessment<'_>, stable: Option<&str>) -> Self {
        let count = |pods: &[&Pod], test: &dyn Fn(&Pod) -> bool| {
            i32::try_from(pods.iter().filter(|p| test(p)).count()).unwrap_or(i32::MAX)
        };
        let is = |p: &Pod| stable == Some(pods::label(p, REVISION_LABEL));
        let tried = assessment.canary.as_ref().map(|c| c.revision.as_str());
        let tries = |p: &Pod| tried == Some(pods::label(p, REVISION_LABEL));
        Self {
            stable: count(&assessment.stable_pods, &|_| true),
            ready: count(&assessment.stable_pods, &|p| is(p) && pods::is_ready(p)),
            outdated: count(&assessment.stable_pods, &|p| !is(p)),
            outdated_ready: count(&assessment.stable_pods, &|p| !is(p) && pods::is_ready(p)),
            canary: count(&assessment.canary_pods, &|_| true),
            canary_ready: count(&assessment.canary_pods, &|p| tries(p) && pods::is_ready(p)),
        }
    }
}

/// What is said of the replicas that compute prompts for the others: the same, of them alone.
fn of_prefill(engine: &EngineWorkload, seen: &ModelSeen<'_>, site: &ClusterSite, now: Timestamp) -> Said {
    let assessment = Assessment::of(engine, seen, site, now);
    let tracks = assessment.recorded().map(|r| assessment.tracks(engine, &r.hash));
    let count = Count::of(&assessment, tracks.as_ref().map(|t| t.stable.as_str()));
    judge(engine, &assessment, tracks.as_ref(), &count, seen, site)
}

fn judge(
    engine: &EngineWorkload,
    assessment: &Assessment<'_>,
    tracks: Option<&Tracks>,
    count: &Count,
    seen: &ModelSeen<'_>,
    site: &ClusterSite,
) -> Said {
    if let Some(refused) = seen.refused.iter().min_by_key(|r| r.transient) {
        let message =
            format!("the API server refuses {}: {}: {}", refused.what, refused.reason, refused.message);
        return if refused.transient {
            Said::waits(Reason::ApplyFailed, message)
        } else {
            Said::stalled(Reason::ApplyFailed, message)
        };
    }
    let (Some(tracks), Some(live)) = (tracks, &assessment.stable) else {
        return match &assessment.stable {
            Some(_) => Said::waits(Reason::Updating, "the change is being applied".to_owned()),
            None => Said::waits(Reason::Starting, "its pods are being asked for".to_owned()),
        };
    };
    let wanted = assessment.wanted(engine);
    let canary = tracks.canary.as_ref().map_or(0, |c| c.replicas);
    let replicas = if engine.role == Some(Role::Prefill) { "prefill replicas" } else { "replicas" };
    let serve = if count.outdated > 0 {
        let old = count.outdated_ready;
        format!(
            "{} of {wanted} {replicas} are of the new revision and serve, {old} of the old one",
            count.ready
        )
    } else {
        format!("{} of {wanted} {replicas} serve", count.ready.min(wanted))
    };
    if let Some(said) = in_the_way(assessment, tracks, count, wanted, &serve) {
        return said;
    }
    if live.revision != tracks.stable || count.outdated > 0 {
        return Said::waits(Reason::Updating, serve);
    }
    if count.ready < wanted {
        return match download::running(seen) {
            Some(download) => Said::waits(Reason::Downloading, format!("{serve}; {download}")),
            None => Said::waits(Reason::Starting, serve),
        };
    }
    if count.stable > wanted {
        let more = count.stable - wanted;
        return Said::waits(Reason::Starting, format!("{serve}; {more} more have to go"));
    }
    if count.canary_ready != canary || count.canary != canary {
        let message = format!("{serve}; of the canary {} of {canary}", count.canary_ready);
        return Said::waits(Reason::Updating, message);
    }
    if wanted == 0 {
        let wakes = engine.spec.autoscaling.is_none() || seen.schedulers.iter().any(|view| view.ready);
        return if wakes || !site.mode.has_scheduler() {
            Said::good(Reason::ScaledToZero, asleep(engine))
        } else {
            Said::waits(Reason::NotRouted, "asleep; no scheduler serves that could wake it".to_owned())
        };
    }
    if site.mode.has_scheduler()
        && let Some(message) = routed::missing(engine, assessment, seen.schedulers)
    {
        return Said::waits(Reason::NotRouted, message);
    }
    match &tracks.canary {
        Some(canary) if canary.asked => {
            let weight = engine.spec.rollout.as_ref().and_then(|r| r.canary.as_ref()).map_or(0, |c| c.weight);
            let message = format!(
                "{serve}; {} of the new revision {} get {weight}% of the requests",
                canary.replicas, canary.revision
            );
            Said::good(Reason::CanaryServing, message)
        }
        Some(_) => Said::waits(Reason::Updating, format!("{serve}; the canary is on its way out")),
        None => Said::good(Reason::Serving, serve),
    }
}

fn asleep(engine: &EngineWorkload) -> String {
    if engine.spec.autoscaling.is_some() {
        "asleep: the next request wakes it".to_owned()
    } else {
        "no replica is wanted".to_owned()
    }
}

/// What keeps replicas from serving, if it is more than a matter of time.
fn in_the_way(
    assessment: &Assessment<'_>,
    tracks: &Tracks,
    count: &Count,
    wanted: i32,
    serve: &str,
) -> Option<Said> {
    let complete = count.ready >= wanted && count.outdated == 0;
    if let Some(scarcity) = tracks.scarcity.filter(|_| !complete) {
        let device = assessment.scarce.unwrap_or("device");
        return Some(match scarcity {
            Scarcity::OneAtATime => {
                let meaning = if wanted == 1 {
                    "the one replica stops before the new one starts, and requests wait meanwhile"
                } else {
                    "an old replica stops before a new one starts"
                };
                let message = format!(
                    "{serve}; there is no spare {device}, so they are replaced one at a time: {meaning}"
                );
                Said::waits(Reason::NoSpareDevice, message)
            }
            Scarcity::Forbidden => Said::stalled(
                Reason::NoSpareDevice,
                format!(
                    "{serve}; there is no spare {device} for a new replica, and `spec.rollout.maxUnavailable` is 0: set it to 1 to replace them one at a time, or add one"
                ),
            ),
        });
    }
    // Those of another revision are on their way out: what ails them needs nobody.
    let unready = |pods: &[&'_ Pod], revision: &str| {
        let stays = |p: &&&Pod| !pods::is_ready(p) && pods::label(p, REVISION_LABEL) == revision;
        let mut troubles: Vec<_> = pods.iter().filter(stays).filter_map(|p| trouble::of(p)).collect();
        troubles.sort_by_key(|t| !t.lasting);
        troubles.into_iter().next()
    };
    let found = unready(&assessment.stable_pods, &tracks.stable)
        .filter(|_| !complete)
        .or_else(|| unready(&assessment.canary_pods, &tracks.canary.as_ref()?.revision));
    if let Some(found) = found {
        let message = format!("{serve}; {}", found.message);
        return Some(Said { ready: Truth::False, reason: found.reason, message, stalled: found.lasting });
    }
    let live = [&assessment.stable, &assessment.canary];
    let refusal = live.into_iter().flatten().find_map(|live| live.refusal.as_ref()).filter(|_| !complete)?;
    let reason = if is_over_quota(refusal) { Reason::QuotaExceeded } else { Reason::PodsRefused };
    let advice = if reason == Reason::QuotaExceeded {
        "raise the namespace's ResourceQuota, or ask for less"
    } else {
        "change what refuses them, or the spec"
    };
    Some(Said::stalled(reason, format!("{serve}; pods cannot be made: {refusal}; {advice}")))
}
