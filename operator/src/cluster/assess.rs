//! What is seen of a model, put together: the part that what to apply and what to say have in common.
//!
//! Replicas that compute prompts for others are a workload of their own: of each there is an assessment,
//! with the pods that are its own.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use strata_wire::replicas::{Role, Track};

use super::live::{self, Live};
use super::revision::{History, Revision, Settled, engine_inputs};
use super::rollout::{Have, Tracks, Want, tracks};
use super::{ClusterSite, ModelSeen, REVISION_LABEL, TRACK_LABEL, pods};
use crate::render::{Site, is_device, render};
use crate::workload::{EngineWorkload, Workload};

/// How long a pod waits for a device before an old one gives it up.
const SCARCE_AFTER: Duration = Duration::from_secs(10);

/// A model's tracks and pods.
pub(super) struct Assessment<'a> {
    /// Name of the stable Deployment, and of the other children.
    pub workload: String,
    /// Name of the canary's Deployment.
    pub canary_workload: String,
    /// Hash of the inputs of the wanted template.
    pub inputs: String,
    /// The recorded templates.
    pub history: History,
    /// The Deployments.
    pub stable: Option<Live>,
    pub canary: Option<Live>,
    /// Pods that stay, by track.
    pub stable_pods: Vec<&'a Pod>,
    pub canary_pods: Vec<&'a Pod>,
    /// When a lack of devices will count as one.
    pub look_again: Option<Duration>,
    /// What is lacking that old pods hold, once it counts.
    pub scarce: Option<&'a str>,
}

impl<'a> Assessment<'a> {
    pub(super) fn of(
        engine: &EngineWorkload,
        seen: &ModelSeen<'a>,
        site: &ClusterSite,
        now: Timestamp,
    ) -> Self {
        let workload = engine.name();
        let prefill = engine.role == Some(Role::Prefill);
        let canary_workload = format!("{workload}-canary");
        let (canary_pods, stable_pods) = seen
            .pods
            .iter()
            .map(|p| &**p)
            .filter(|p| pods::stays(p) && pods::is_prefill(p) == prefill)
            .partition(|p| pods::label(p, TRACK_LABEL) == Track::Canary.to_string());
        let mut made = Self {
            inputs: engine_inputs(engine, site),
            history: History::of(&workload, seen.revisions),
            stable: live::find(seen, &workload),
            canary: live::find(seen, &canary_workload).filter(|c| c.replicas > 0),
            stable_pods,
            canary_pods,
            look_again: None,
            scarce: None,
            workload,
            canary_workload,
        };
        // Pods on their way out give their devices back by themselves.
        let going = seen.pods.iter().any(|p| !pods::stays(p) && pods::is_placed(p));
        if !going {
            made.find_scarcity(engine, now);
        }
        made
    }

    /// The revision that the spec asks for: the recorded one, or else one that is rendered now.
    pub(super) fn settle(&self, engine: &EngineWorkload, site: &ClusterSite) -> Settled {
        let render = || render(&Workload::Engine(engine.clone()), Site::Cluster(site)).template();
        self.history.settle(&self.inputs, render)
    }

    /// The recorded revision that the spec asks for, once it is recorded.
    pub(super) fn recorded(&self) -> Option<&Revision> {
        self.history.with_inputs(&self.inputs)
    }

    /// Which revisions to run, when the spec asks for `current`.
    pub(super) fn tracks(&self, engine: &EngineWorkload, current: &str) -> Tracks {
        let want = Want {
            current,
            replicas: engine.spec.autoscaling.is_none().then(|| engine.spec.wanted_replicas()),
            rollout: engine.spec.rollout.as_ref(),
        };
        let recorded = self.stable.as_ref().is_some_and(|s| self.history.get(&s.revision).is_some());
        tracks(
            want,
            Have {
                stable: self.stable.as_ref(),
                canary: self.canary.as_ref(),
                stable_recorded: recorded,
                serving: self.serving(engine),
                scarce: self.scarce.is_some(),
            },
        )
    }

    /// Whether an autoscaler has put it to sleep.
    pub(super) fn is_asleep(&self, engine: &EngineWorkload) -> bool {
        engine.spec.autoscaling.is_some() && self.stable.as_ref().is_some_and(|live| live.replicas == 0)
    }

    /// Replicas that the stable track is to have.
    pub(super) fn wanted(&self, engine: &EngineWorkload) -> i32 {
        match (&engine.spec.autoscaling, &self.stable) {
            (None, _) => engine.spec.wanted_replicas(),
            (Some(_), Some(live)) => live.replicas,
            (Some(_), None) => 1,
        }
    }

    /// The revision that all of the stable track's replicas have, ready and as many as wanted.
    fn serving(&self, engine: &EngineWorkload) -> Option<&str> {
        let revision = self.stable.as_ref()?.revision.as_str();
        let ready = |p: &&Pod| pods::is_ready(p) && pods::label(p, REVISION_LABEL) == revision;
        let whole = self.stable_pods.len() as i64 == i64::from(self.wanted(engine));
        (whole && self.stable_pods.iter().all(ready)).then_some(revision)
    }

    /// A pod of the stable track's revision that waits for a device, or cannot be made within the
    /// namespace's quota, while old pods hold some of it (kueue#8769).
    fn find_scarcity(&mut self, engine: &EngineWorkload, now: Timestamp) {
        let Some(live) = &self.stable else { return };
        let is_new = |p: &&&Pod| pods::label(p, REVISION_LABEL) == live.revision;
        let held = self.stable_pods.iter().chain(&self.canary_pods).any(|p| {
            pods::is_placed(p)
                && (pods::label(p, REVISION_LABEL) != live.revision || self.canary_pods.contains(p))
        });
        if held && live.refusal.as_deref().is_some_and(is_over_quota) {
            self.scarce = Some("room in the namespace's ResourceQuota");
            return;
        }
        if !held || !uses_devices(engine) {
            return;
        }
        let waiting = self.stable_pods.iter().filter(is_new).filter(|p| !pods::is_placed(p)).find_map(|p| {
            if let Some(since) = pods::gated(p) {
                return Some(("device by what admits its pods", Some(since)));
            }
            let (message, since) = pods::unschedulable(p)?;
            Some((pods::lacking_device(message)?, since))
        });
        let Some((device, since)) = waiting else { return };
        let waited = since.map_or(SCARCE_AFTER, |since| pods::age(since, now));
        if waited >= SCARCE_AFTER {
            self.scarce = Some(device);
        } else {
            self.look_again = Some(SCARCE_AFTER.saturating_sub(waited));
        }
    }
}

/// Whether pods were refused because the namespace has used up what it may.
pub(super) fn is_over_quota(refusal: &str) -> bool {
    refusal.contains("exceeded quota")
}

fn uses_devices(engine: &EngineWorkload) -> bool {
    let limits =
        engine.spec.pod_template.iter().flat_map(|t| t.resources.iter().flat_map(|r| r.limits.keys()));
    engine.spec.runtime() == strata_kinds::model_deployment::Runtime::Vllm
        || limits.into_iter().any(|name| is_device(name))
}
