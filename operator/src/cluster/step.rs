//! What to apply for one model.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kube::core::ApiResource;
use serde_json::{Value, json};
use strata_wire::replicas::{Role as Part, Track};

use super::assess::Assessment;
use super::revision::Revision;
use super::rollout::Tracks;
use super::{
    Capabilities, Child, ClusterSite, ModelSeen, REVISION_LABEL, TRACK_LABEL, meta, pods, policy, prefill,
    route, scale,
};
use crate::render::match_labels;
use crate::workload::{Component, EngineWorkload, Workload};
use crate::{Mode, plan};

/// The Service by which mode development's platform finds the one model.
pub const DEVELOPMENT_SERVICE: &str = "strata-model";

/// What to do for a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelStep {
    /// The objects that the model has, in the order in which to apply them. Those of the kinds of
    /// [`swept_kinds`] that the model owns and that are not here are to be deleted.
    pub apply: Vec<Child>,
    /// Names of ControllerRevisions that stay as they are, beside those in `apply`.
    pub keep: Vec<String>,
    /// Replicas to set on the Deployment `<model>-engine` through its `/scale`, by a server-side apply
    /// of the field manager `strata-operator-scale`, before anything else is applied.
    pub scale: Option<i32>,
    /// When the same state will mean something else.
    pub look_again: Option<Duration>,
}

/// What to do for an accepted model.
pub fn model_step(
    engine: &EngineWorkload,
    seen: &ModelSeen<'_>,
    site: &ClusterSite,
    now: Timestamp,
) -> ModelStep {
    let workload = Workload::Engine(engine.clone());
    let assessment = Assessment::of(engine, seen, site, now);
    let settled = assessment.settle(engine, site);
    let current = &settled.revision;
    let tracks = assessment.tracks(engine, &current.hash);
    let meta = meta::of_model(engine);
    let name = assessment.workload.as_str();

    let mut scale = Scale::default();
    if let (Some(scaling), Some(live)) = (&engine.spec.autoscaling, &assessment.stable) {
        let others = scale::has_autoscaler(site.capabilities);
        let decision = scale::decide(engine, scaling, live.replicas, seen, others, now);
        // A number that is no longer applied is somebody else's before it is let go of.
        scale.set = decision.set.or(live.owns_replicas.then_some(live.replicas));
        scale.look_again = decision.look_again;
        scale.asleep = scale.set.unwrap_or(live.replicas) == 0;
    }

    let mut apply = Vec::new();
    if settled.record {
        apply.push(Child::of(&current.object(name, &meta)));
    }
    apply.push(Child::of(&meta::service(&workload, site, &meta, name)));
    if site.mode == Mode::Development {
        apply.push(Child::of(&meta::service(&workload, site, &meta, DEVELOPMENT_SERVICE)));
    }
    apply.extend(disruption_budget(engine, &meta).as_ref().map(Child::of));
    apply.extend(policy::fetch(engine, name, &meta, site).as_ref().map(Child::of));
    let revision_of = |hash: &str| {
        if hash == current.hash { Some(current) } else { assessment.history.get(hash) }
    };
    if let Some(revision) = revision_of(&tracks.stable) {
        let replicas = engine.spec.autoscaling.is_none().then(|| engine.spec.wanted_replicas());
        apply.push(deployment(engine, name, &Track::Stable.to_string(), revision, replicas, &tracks, &meta));
    }
    if let Some(canary) = &tracks.canary
        && let Some(revision) = revision_of(&canary.revision)
    {
        let name = &assessment.canary_workload;
        let track = Track::Canary.to_string();
        apply.push(deployment(engine, name, &track, revision, Some(canary.replicas), &tracks, &meta));
    }
    if let Some(scaling) = &engine.spec.autoscaling {
        apply.extend(scale::object(engine, scaling, name, scale.asleep, &meta, site));
    }
    apply.extend(route::of_model(engine, &meta, site));
    let mut keep = kept(&assessment, &tracks, &current.hash);
    let prefill = plan::prefill::workload(engine, scale.asleep)
        .map(|prefill| prefill::step(&prefill, seen, site, &meta, now))
        .unwrap_or_default();
    apply.extend(prefill.apply);
    keep.extend(prefill.keep);

    let looks = [scale.look_again, assessment.look_again, prefill.look_again];
    ModelStep { keep, apply, scale: scale.set, look_again: looks.into_iter().flatten().min() }
}

#[derive(Default)]
struct Scale {
    set: Option<i32>,
    look_again: Option<Duration>,
    asleep: bool,
}

/// Names of the recorded revisions that stay.
pub(super) fn kept(assessment: &Assessment<'_>, tracks: &Tracks, current: &str) -> Vec<String> {
    let pods = assessment.stable_pods.iter().chain(&assessment.canary_pods);
    let mut in_use: BTreeSet<&str> = pods.map(|p| pods::label(p, REVISION_LABEL)).collect();
    in_use.extend([tracks.stable.as_str(), current]);
    in_use.extend(tracks.canary.as_ref().map(|c| c.revision.as_str()));
    let name = |hash: &str| format!("{}-{hash}", assessment.workload);
    assessment.history.keep(&in_use).into_iter().map(name).collect()
}

/// The Deployment of a track.
pub(super) fn deployment(
    engine: &EngineWorkload,
    name: &str,
    track: &str,
    revision: &Revision,
    replicas: Option<i32>,
    tracks: &Tracks,
    meta: &ObjectMeta,
) -> Child {
    let mut spec = json!({
        "selector": { "matchLabels": meta::of_track(engine, track) },
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": { "maxSurge": tracks.surge, "maxUnavailable": tracks.unavailable },
        },
        "revisionHistoryLimit": 2,
        // A large model may take hours to arrive: whether it gets on is told from its pods.
        "progressDeadlineSeconds": i32::MAX,
        "template": revision.labelled(&[(REVISION_LABEL, &revision.hash), (TRACK_LABEL, track)]),
    });
    // Where an autoscaler owns the number it is never written here, or the two would take turns.
    if let Some(replicas) = replicas {
        spec["replicas"] = Value::from(replicas);
    }
    let mut object = Child::of(&Deployment { metadata: meta::named(meta, name), ..Deployment::default() });
    object.object["spec"] = spec;
    object
}

/// A drained node takes one replica at a time. With one replica there is none: it could only forbid
/// every drain, or allow it as if there were none.
///
/// A pod may have one budget: where there are two roles, each has its own.
pub(super) fn disruption_budget(engine: &EngineWorkload, meta: &ObjectMeta) -> Option<PodDisruptionBudget> {
    let most = engine.spec.autoscaling.as_ref().map_or(engine.spec.wanted_replicas(), |a| a.max);
    let mut made =
        (most > 1).then(|| budget(&engine.name(), Component::Engine, Some(&engine.owner.name), meta))?;
    if let (Some(role), Some(spec)) = (engine.role, &mut made.spec) {
        let operator = if role == Part::Prefill { "In" } else { "NotIn" };
        let of_role = LabelSelectorRequirement {
            key: TRACK_LABEL.to_owned(),
            operator: operator.to_owned(),
            values: Some(vec![Part::Prefill.to_string()]),
        };
        spec.selector.get_or_insert_default().match_expressions = Some(vec![of_role]);
    }
    Some(made)
}

/// At most one pod away at a time. One that does not serve anyway may always go.
pub(super) fn budget(
    name: &str,
    component: Component,
    model: Option<&str>,
    meta: &ObjectMeta,
) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: meta::named(meta, name),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some(match_labels(component, model)),
                ..LabelSelector::default()
            }),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

/// Kinds whose objects are deleted when a model or namespace no longer has them: those with the label
/// `app.kubernetes.io/managed-by=strata-operator` that a ModelDeployment owns. Those of
/// [`Capabilities::kinds`] count where the cluster has them.
pub fn swept_kinds() -> Vec<ApiResource> {
    let mut kinds = vec![
        ApiResource::erase::<Deployment>(&()),
        ApiResource::erase::<Service>(&()),
        ApiResource::erase::<ControllerRevision>(&()),
        ApiResource::erase::<PodDisruptionBudget>(&()),
        ApiResource::erase::<NetworkPolicy>(&()),
        ApiResource::erase::<HorizontalPodAutoscaler>(&()),
        ApiResource::erase::<ServiceAccount>(&()),
        ApiResource::erase::<Role>(&()),
        ApiResource::erase::<RoleBinding>(&()),
    ];
    kinds.extend(Capabilities::kinds());
    kinds
}
