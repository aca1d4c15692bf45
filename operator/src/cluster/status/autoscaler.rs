//! What keeps a model from being scaled by load.

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::ResourceExt;

use super::super::{ClusterSite, scale};
use crate::condition::{Condition, Reason, Truth};
use crate::plan::Verdict;
use crate::workload::EngineWorkload;

/// Said only while it is so. The model serves on with the replicas that it has.
pub(super) fn trouble(
    engine: &EngineWorkload,
    verdict: &Verdict,
    seen: Option<&HorizontalPodAutoscaler>,
    site: &ClusterSite,
) -> Option<Condition> {
    let scaling = engine.spec.autoscaling.as_ref()?;
    let least = scaling.min.max(1);
    if *verdict != Verdict::Accepted || scaling.max <= least {
        return None;
    }
    let (reason, message) = if scale::has_autoscaler(site.capabilities) {
        (Reason::AutoscalerFailing, failing(seen?)?)
    } else {
        let message = format!(
            "nothing scales it beyond {least}: the cluster has neither KEDA nor an API for external metrics"
        );
        (Reason::AutoscalerMissing, message)
    };
    Some(Condition { kind: "Autoscaling".to_owned(), status: Truth::False, reason, message })
}

/// What the autoscaler says against itself. That it is switched off for a model that sleeps is meant.
fn failing(autoscaler: &HorizontalPodAutoscaler) -> Option<String> {
    let conditions = autoscaler.status.as_ref()?.conditions.as_deref()?;
    let against = conditions.iter().find(|c| {
        let matters = ["AbleToScale", "ScalingActive"].contains(&c.type_.as_str());
        matters && c.status == "False" && c.reason.as_deref() != Some("ScalingDisabled")
    })?;
    let said = against.message.as_deref().or(against.reason.as_deref()).unwrap_or("it does not say why");
    Some(format!(
        "the HorizontalPodAutoscaler {} cannot scale it: {}; the guide's chapter on metrics says what it needs",
        autoscaler.name_any(),
        said.trim_end_matches('.')
    ))
}
