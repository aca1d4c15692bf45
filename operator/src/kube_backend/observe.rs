//! What pods say about a model. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use strata_wire::replicas::{Endpoint, Endpoints, ModelEndpoints};

use crate::plan::ModelObservation;
use crate::render::PORT;
use crate::workload::EngineWorkload;

/// Label of a pod: hash of the template that it was made from.
pub(super) const REVISION_LABEL: &str = "strata.dev/revision";

/// What is seen of a model whose current template has this revision.
pub(super) fn observe(pods: &[Pod], revision: &str, url: Option<String>) -> ModelObservation {
    let mut seen =
        ModelObservation { revision: Some(revision.to_owned()), url, ..ModelObservation::default() };
    for pod in pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()) {
        seen.replicas += 1;
        if pod.labels().get(REVISION_LABEL).map(String::as_str) != Some(revision) {
            seen.outdated += 1;
        } else if is_ready(pod) {
            seen.ready += 1;
        } else if seen.trouble.is_none() {
            seen.trouble = trouble(pod);
        }
    }
    seen
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Why a pod does not come up, if that is more than a matter of time.
fn trouble(pod: &Pod) -> Option<String> {
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

/// The endpoints file of a namespace: ready pods that are not about to go.
pub(super) fn endpoints(engines: &[&EngineWorkload], pods: &BTreeMap<String, Vec<Pod>>) -> Endpoints {
    let mut file = Endpoints::default();
    for engine in engines {
        let replicas = pods.get(&engine.owner.name).into_iter().flatten().filter_map(|pod| {
            let stays = pod.metadata.deletion_timestamp.is_none() && is_ready(pod);
            let ip = pod.status.as_ref()?.pod_ip.as_ref().filter(|_| stays)?;
            let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
            Some(Endpoint::new(pod.name_any(), format!("http://{host}:{PORT}")))
        });
        let mut replicas: Vec<Endpoint> = replicas.collect();
        replicas.sort();
        let weights = crate::workload::weights(&engine.spec);
        file.models.insert(
            engine.spec.model.name.clone(),
            ModelEndpoints { replicas, weights, ..ModelEndpoints::default() },
        );
    }
    file
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::workload::Owner;

    fn pod(name: &str, revision: &str, ready: bool, leaving: bool) -> Pod {
        let deleted = leaving.then_some("2026-01-01T00:00:00Z");
        serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { REVISION_LABEL: revision }, "deletionTimestamp": deleted },
            "status": {
                "podIP": "10.0.0.1",
                "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }],
                "containerStatuses": [{
                    "name": "engine", "image": "i", "imageID": "", "ready": ready, "restartCount": 3,
                    "state": if ready { json!({}) } else { json!({ "waiting": { "reason": "CrashLoopBackOff" } }) },
                    "lastState": { "terminated": { "exitCode": 1, "message": "no such file" } },
                }],
            },
        }))
        .unwrap()
    }

    #[test]
    fn only_ready_pods_of_the_current_revision_count() {
        let pods = [
            pod("a", "new", true, false),
            pod("b", "new", false, false),
            pod("c", "old", true, false),
            pod("d", "new", true, true),
        ];
        let seen = observe(&pods, "new", None);
        assert_eq!((seen.replicas, seen.ready, seen.outdated), (3, 1, 1));
        assert_eq!(seen.trouble.as_deref(), Some("pod b: CrashLoopBackOff: no such file"));
    }

    #[test]
    fn requests_go_to_ready_pods_of_any_revision() {
        let spec =
            json!({ "model": { "name": "m", "uri": "/m" }, "routing": { "weights": { "prefix": 70.0 } } });
        let engine = EngineWorkload {
            namespace: "strata".into(),
            owner: Owner { name: "x".into(), uid: None },
            spec: serde_json::from_value(spec).unwrap(),
            refresh: None,
        };
        let pods = vec![
            pod("a", "new", true, false),
            pod("b", "old", true, false),
            pod("c", "new", false, false),
            pod("d", "new", true, true),
        ];
        let file = endpoints(&[&engine], &BTreeMap::from([("x".to_owned(), pods)]));
        insta::assert_snapshot!(serde_json::to_string(&file).unwrap());
    }
}
