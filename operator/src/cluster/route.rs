//! The Gateway API's objects, where the cluster has their kinds: a route to each model, the pool of its
//! replicas, and an objective for each priority.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::meta::{self, SCHEDULER};
use super::{Capabilities, Child, ClusterSite};
use crate::render::{PICKER_PORT, PORT};
use crate::workload::{Component, EngineWorkload};

/// The route and the pool of a model, both by the model's own name.
pub(super) fn of_model(engine: &EngineWorkload, meta: &ObjectMeta, site: &ClusterSite) -> Vec<Child> {
    let [route, pool, ..] = Capabilities::kinds();
    let name = engine.owner.name.as_str();
    let mut children = Vec::new();
    if site.capabilities.http_route {
        children.push(Child::custom(
            route,
            json!({ "metadata": meta::named(meta, name), "spec": http_route(engine, site) }),
        ));
    }
    if site.capabilities.inference_pool && is_asked(site) {
        children.push(Child::custom(
            pool,
            json!({
                "metadata": meta::named(meta, name),
                "spec": {
                    "selector": { "matchLabels": meta::answering(engine) },
                    "targetPorts": [{ "number": PORT }],
                    "endpointPickerRef": {
                        "group": "", "kind": "Service", "name": SCHEDULER, "port": { "number": PICKER_PORT },
                        // Past the picker no engine would know the caller.
                        "failureMode": "FailClose",
                    },
                },
            }),
        ));
    }
    children
}

/// Whether there are schedulers that answer the picker's protocol, without which a pool has no picker.
fn is_asked(site: &ClusterSite) -> bool {
    site.mode.has_scheduler() && site.picker.is_some()
}

/// `/NAMESPACE/MODEL/v1` at the Gateway is `/v1` at Strata's entrance, so that no layer is left out.
fn http_route(engine: &EngineWorkload, site: &ClusterSite) -> serde_json::Value {
    let mut backend = json!({
        "group": "", "kind": "Service", "name": entrance(site), "port": PORT, "weight": 1,
    });
    if engine.namespace != site.namespace {
        backend["namespace"] = json!(site.namespace);
    }
    let mut spec = json!({
        "rules": [{
            "matches": [{
                "path": {
                    "type": "PathPrefix",
                    "value": format!("/{}/{}/v1", engine.namespace, engine.owner.name),
                },
            }],
            "filters": [{
                "type": "URLRewrite",
                "urlRewrite": { "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/v1" } },
            }],
            // As long as a stream may take is for Strata to say.
            "timeouts": { "request": "0s" },
            "backendRefs": [backend],
        }],
    });
    if let Some((namespace, name)) = site.gateway.as_deref().and_then(|g| g.split_once('/')) {
        spec["parentRefs"] = json!([{
            "group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": namespace, "name": name,
        }]);
    }
    spec
}

/// The Service that users call.
pub(super) fn entrance(site: &ClusterSite) -> &'static str {
    if site.mode.has_gateway() { "strata-gateway" } else { "strata-platform" }
}

/// An objective for each priority of tenants, by the name that the gateway writes into
/// `x-gateway-inference-objective`. An objective names one pool: it is that of the namespace's first model.
pub(super) fn of_namespace(namespace: &str, engines: &[EngineWorkload], site: &ClusterSite) -> Vec<Child> {
    let Some(pool) = engines.iter().map(|e| e.owner.name.as_str()).min() else { return Vec::new() };
    if !(site.capabilities.inference_objective && site.capabilities.inference_pool && is_asked(site)) {
        return Vec::new();
    }
    let [_, _, kind, _] = Capabilities::kinds();
    let meta = meta::of_namespace(namespace, Component::Scheduler, engines);
    let priorities: BTreeSet<i32> = site.priorities.iter().copied().chain([0]).collect();
    priorities
        .into_iter()
        .map(|priority| {
            Child::custom(
                kind.clone(),
                json!({
                    "metadata": meta::named(&meta, &format!("priority-{priority}")),
                    "spec": {
                        "priority": priority,
                        "poolRef": { "group": "inference.networking.k8s.io", "kind": "InferencePool", "name": pool },
                    },
                }),
            )
        })
        .collect()
}
