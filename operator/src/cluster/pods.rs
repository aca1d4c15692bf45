//! What pods say about themselves.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

/// Whether the kubelet says that the pod serves.
pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Whether the pod is on its way out.
pub(super) fn is_leaving(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// The value of a label; empty when there is none.
pub(super) fn label<'a>(pod: &'a Pod, name: &str) -> &'a str {
    pod.labels().get(name).map_or("", String::as_str)
}

/// Why a pod does not come up, if that is more than a matter of time.
pub(super) fn trouble(pod: &Pod) -> Option<String> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().filter(|r| r.ends_with("BackOff") || r.starts_with("Err"))?;
        let last = container.last_state.as_ref().and_then(|s| s.terminated.as_ref());
        let said = last
            .and_then(|t| t.message.clone())
            .or_else(|| last.map(|t| format!("ended with status {}", t.exit_code)))
            .or_else(|| waiting.message.clone())
            .unwrap_or_default();
        Some(format!("pod {}: {reason}: {said}", pod.name_any()))
    })
}
