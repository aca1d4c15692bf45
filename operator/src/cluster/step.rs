//! What to apply for one model.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::Timestamp;
use kube::core::ApiResource;

use super::{Child, ClusterSite, ModelSeen, REVISION_LABEL, TRACK_LABEL};
use crate::render::{Site, render};
use crate::workload::{EngineWorkload, Workload};

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
    _seen: &ModelSeen<'_>,
    site: &ClusterSite,
    _now: Timestamp,
) -> ModelStep {
    let mut rendered =
        render(&Workload::Engine(engine.clone()), &Site::Cluster { image: site.image.clone() });
    let revision = rendered.revision();
    if let Some(meta) = rendered.deployment.spec.as_mut().and_then(|s| s.template.metadata.as_mut()) {
        let labels = meta.labels.get_or_insert_default();
        labels.insert(REVISION_LABEL.to_owned(), revision);
        labels.insert(TRACK_LABEL.to_owned(), "stable".to_owned());
    }
    let mut apply: Vec<Child> = rendered.service.iter().map(Child::of).collect();
    apply.push(Child::of(&rendered.deployment));
    ModelStep { apply, ..ModelStep::default() }
}

/// Kinds whose objects are deleted when a model or namespace no longer has them: those with the label
/// `app.kubernetes.io/managed-by=strata-operator` that a ModelDeployment owns.
pub fn swept_kinds() -> Vec<ApiResource> {
    vec![ApiResource::erase::<Deployment>(&()), ApiResource::erase::<Service>(&())]
}
