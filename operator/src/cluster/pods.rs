//! What pods say about themselves.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use strata_wire::replicas::Role;

use super::TRACK_LABEL;

/// Whether the kubelet says that the pod serves.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Since when the pod serves.
pub(super) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|c| c.status == "True")?;
    Some(ready.last_transition_time.as_ref()?.0)
}

/// Whether the pod is neither on its way out nor at its end.
pub(super) fn stays(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Failed" | "Succeeded"))
}

/// Whether the pod computes prompts for others of its model.
pub(super) fn is_prefill(pod: &Pod) -> bool {
    label(pod, TRACK_LABEL) == Role::Prefill.to_string()
}

/// The value of a label; empty when there is none.
pub(super) fn label<'a>(pod: &'a Pod, name: &str) -> &'a str {
    pod.labels().get(name).map_or("", String::as_str)
}

/// A condition of the pod.
pub(super) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Whether a node was found for the pod.
pub(super) fn is_placed(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|s| s.node_name.is_some())
}

/// Why no node has room for the pod, and since when.
pub(super) fn unschedulable(pod: &Pod) -> Option<(&str, Option<Timestamp>)> {
    let scheduled = condition(pod, "PodScheduled")?;
    let waits = scheduled.status == "False" && scheduled.reason.as_deref() == Some("Unschedulable");
    let since = scheduled.last_transition_time.as_ref().map(|t| t.0);
    waits.then(|| (scheduled.message.as_deref().unwrap_or("no node has room"), since))
}

/// Since when something else, such as Kueue, keeps the pod from being placed.
pub(super) fn gated(pod: &Pod) -> Option<Timestamp> {
    let scheduled = condition(pod, "PodScheduled")?;
    let waits = scheduled.status == "False" && scheduled.reason.as_deref() == Some("SchedulingGated");
    let since = scheduled.last_transition_time.as_ref().or(pod.metadata.creation_timestamp.as_ref());
    waits.then(|| since.map_or(Timestamp::UNIX_EPOCH, |t| t.0))
}

/// The devices that a message of the Kubernetes scheduler says are lacking.
pub(super) fn lacking_device(message: &str) -> Option<&str> {
    message.split("Insufficient ").skip(1).find_map(|rest| {
        let name = rest.split([' ', ',', ';']).next()?.trim_end_matches(['.', ':']);
        crate::render::is_device(name).then_some(name)
    })
}

/// Time from `since` to `now`; none when the clocks disagree.
pub(super) fn age(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}
