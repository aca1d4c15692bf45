//! The two kinds of objects, with the few fields that matter: the rest of an object is never kept, and
//! what is wrong with it elsewhere is nothing to the scheduler.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use strata_kinds::model_deployment::{Canary, Routing, RoutingPolicy};
use strata_wire::replicas::{Affinity, KvEvents, Objectives, Policy, Role, Track};

use crate::discovery::{Model, Pod};

/// Where an engine listens when its pod does not say.
const PORT: u16 = 8000;
/// The name of the port that takes requests.
const PORT_NAME: &str = "http";
/// The names of those where a vLLM publishes what its KV cache holds, and has published.
const EVENTS_PORT_NAME: &str = "kv-events";
const REPLAY_PORT_NAME: &str = "kv-replay";

/// A kind of objects that is watched.
pub(super) trait Readable:
    Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// What is kept of an object.
    type Plain: Clone + Send + 'static;
    /// Which objects, by their labels. All when absent.
    const LABELS: Option<&str>;
    /// The kind, for logs and metrics.
    const KIND: &str;
    /// Whether a cluster may lack it, or not let it be read.
    const OPTIONAL: bool = false;

    /// What matters of it.
    fn plain(self) -> Self::Plain;
}

/// An engine pod.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = k8s_openapi::api::core::v1::Pod)]
pub(super) struct PodObject {
    metadata: ObjectMeta,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Clone, Debug, Deserialize)]
struct PodSpec {
    containers: Option<Vec<Container>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    ports: Option<Vec<Port>>,
    readiness_probe: Option<Probe>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    http_get: Option<HttpGet>,
}

#[derive(Clone, Debug, Deserialize)]
struct HttpGet {
    scheme: Option<String>,
}

impl Container {
    /// Its port of this name.
    fn port(&self, name: &str) -> Option<u16> {
        let ports = self.ports.as_deref().unwrap_or_default();
        ports.iter().find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port)
    }

    /// Whether its readiness is asked for by TLS.
    fn is_tls(&self) -> bool {
        let get = self.readiness_probe.as_ref().and_then(|probe| probe.http_get.as_ref());
        get.is_some_and(|get| get.scheme.as_deref() == Some("HTTPS"))
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    name: Option<String>,
    container_port: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodStatus {
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    conditions: Option<Vec<Condition>>,
    container_statuses: Option<Vec<ContainerStatus>>,
}

impl PodStatus {
    /// The pod's address, once it has one.
    pub(super) fn ip(&self) -> Option<&str> {
        self.pod_ip.as_deref().filter(|ip| !ip.is_empty())
    }

    /// Whether the kubelet says that it can serve.
    pub(super) fn is_ready(&self) -> bool {
        let conditions = self.conditions.as_deref().unwrap_or_default();
        conditions.iter().any(|c| c.kind == "Ready" && c.status == "True")
    }

    /// Whether it has been up.
    pub(super) fn is_started(&self) -> bool {
        let containers = self.container_statuses.as_deref().unwrap_or_default();
        containers.iter().any(|c| c.started == Some(true))
    }
}

#[derive(Clone, Debug, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

#[derive(Clone, Debug, Deserialize)]
struct ContainerStatus {
    started: Option<bool>,
}

impl Readable for PodObject {
    type Plain = Pod;
    const LABELS: Option<&str> = Some("app.kubernetes.io/component=engine");
    const KIND: &str = "Pod";

    fn plain(self) -> Pod {
        let mut labels = self.metadata.labels.unwrap_or_default();
        let mut annotations = self.metadata.annotations.unwrap_or_default();
        let containers = self.spec.and_then(|s| s.containers).unwrap_or_default();
        let serves = containers.iter().find_map(|c| Some((c.port(PORT_NAME)?, c.is_tls())));
        let (port, tls) = serves.unwrap_or((PORT, false));
        let status = self.status.unwrap_or_default();
        let host = status.ip().map(|ip| if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() });
        let socket = |name: &str| {
            let port = containers.iter().find_map(|container| container.port(name))?;
            host.as_ref().map(|host| format!("tcp://{host}:{port}"))
        };
        let kv_events =
            socket(EVENTS_PORT_NAME).map(|publish| KvEvents { publish, replay: socket(REPLAY_PORT_NAME) });
        let authority = host.map(|host| format!("{host}:{port}"));
        Pod {
            model: labels.remove("strata.dev/model-deployment").unwrap_or_default(),
            adapters: annotations
                .remove("strata.dev/adapters")
                .map(|names| names.split(',').map(str::to_owned).collect())
                .unwrap_or_default(),
            handover: labels.remove("strata.dev/handover"),
            track: match labels.get("strata.dev/track").map(String::as_str) {
                Some("canary") => Track::Canary,
                _ => Track::Stable,
            },
            role: match labels.get("strata.dev/role").map(String::as_str) {
                Some("prefill") => Role::Prefill,
                _ => Role::Decode,
            },
            authority,
            kv_events,
            tls,
            ready: status.is_ready(),
            started: status.is_started(),
            leaving: self.metadata.deletion_timestamp.is_some(),
        }
    }
}

/// A ModelDeployment.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = strata_kinds::ModelDeployment)]
pub(super) struct ModelObject {
    metadata: ObjectMeta,
    spec: ModelSpec,
}

#[derive(Clone, Debug, Deserialize)]
struct ModelSpec {
    model: Named,
    #[serde(default)]
    adapters: Vec<Named>,
    routing: Option<Routing>,
    rollout: Option<Rollout>,
}

#[derive(Clone, Debug, Deserialize)]
struct Named {
    name: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Rollout {
    canary: Option<Canary>,
}

impl Readable for ModelObject {
    type Plain = Model;
    const LABELS: Option<&str> = None;
    const KIND: &str = "ModelDeployment";

    fn plain(self) -> Model {
        let routing = self.spec.routing.unwrap_or_default();
        let (ttft_ms, tpot_ms) = routing.objectives_ms();
        let canary = self.spec.rollout.and_then(|rollout| rollout.canary);
        Model {
            served: self.spec.model.name,
            adapters: self.spec.adapters.into_iter().map(|adapter| adapter.name).collect(),
            created: self.metadata.creation_timestamp.map_or(0, |at| at.0.as_second()),
            leaving: self.metadata.deletion_timestamp.is_some(),
            weights: routing.weights(),
            objectives: Objectives { ttft_ms, tpot_ms },
            policy: routing.policy.map(|policy| match policy {
                RoutingPolicy::PrefixAware => Policy::Prefix,
                RoutingPolicy::RoundRobin => Policy::RoundRobin,
                RoutingPolicy::WeightedRandom => Policy::WeightedRandom,
                RoutingPolicy::PowerOfTwo => Policy::PowerOfTwo,
                RoutingPolicy::LeastLoaded => Policy::LeastLoaded,
                RoutingPolicy::Random => Policy::Random,
                RoutingPolicy::SloAware => Policy::SloAware,
            }),
            canary_percent: canary.map(|canary| canary.weight.clamp(0, 100) as u8),
            affinity: Affinity {
                session_header: routing.session_header,
                output_percentile: routing.output_percentile.map(|percent| percent.clamp(0, 99) as u8),
                hash_prefixes: routing.hash_prefixes,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "m-engine-1", "namespace": "team", "resourceVersion": "7",
                "labels": {"strata.dev/model-deployment": "m", "strata.dev/track": "canary"},
                "annotations": {"strata.dev/adapters": "sql,team/fr"},
                "managedFields": [{"manager": "kubelet"}],
            },
            "spec": {"containers": [
                {"name": "sidecar", "ports": [{"containerPort": 15000}]},
                {"name": "engine", "image": "strata", "ports": [{"name": "http", "containerPort": 8123}]},
            ]},
            "status": {
                "podIP": "10.1.2.3", "phase": "Running",
                "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "engine", "started": true, "ready": true}],
            },
        });
        change(&mut object);
        serde_json::from_value::<PodObject>(object).unwrap().plain()
    }

    #[test]
    fn what_matters_of_a_pod() {
        assert_eq!(
            pod(|_| ()),
            Pod {
                model: "m".to_owned(),
                adapters: vec!["sql".to_owned(), "team/fr".to_owned()],
                track: Track::Canary,
                role: Role::Decode,
                handover: None,
                authority: Some("10.1.2.3:8123".to_owned()),
                kv_events: None,
                tls: false,
                ready: true,
                started: true,
                leaving: false,
            }
        );
        let leaving = pod(|p| p["metadata"]["deletionTimestamp"] = json!("2026-11-24T00:00:00Z"));
        assert!(leaving.leaving);
        let six = pod(|p| {
            p["status"]["podIP"] = json!("fd00::7");
            p["spec"]["containers"][1]["ports"] = json!([]);
        });
        assert_eq!(six.authority.as_deref(), Some("[fd00::7]:8000"));
        let secured = pod(|p| {
            p["spec"]["containers"][1]["readinessProbe"] =
                json!({"httpGet": {"path": "/ready", "port": "http", "scheme": "HTTPS"}});
        });
        assert!(secured.tls);
        let beside = pod(|p| {
            p["spec"]["containers"][0]["readinessProbe"] = json!({"httpGet": {"scheme": "HTTPS"}});
        });
        assert!(!beside.tls, "a container beside it");
        let prefill = pod(|p| {
            p["metadata"]["labels"]["strata.dev/role"] = json!("prefill");
            p["metadata"]["labels"]["strata.dev/handover"] = json!("h");
        });
        assert_eq!((prefill.role, prefill.handover.as_deref()), (Role::Prefill, Some("h")));
        let publishes = pod(|p| {
            let more = [("kv-events", 5557), ("kv-replay", 5558)];
            let more = more.map(|(name, port)| json!({"name": name, "containerPort": port}));
            p["spec"]["containers"][1]["ports"].as_array_mut().unwrap().extend(more);
        });
        let (publish, replay) = ("tcp://10.1.2.3:5557".to_owned(), Some("tcp://10.1.2.3:5558".to_owned()));
        assert_eq!(publishes.kv_events, Some(KvEvents { publish, replay }));
        let bare = pod(|p| {
            *p = json!({"metadata": {"name": "x"}, "spec": {"containers": null}, "status": {"podIP": ""}});
        });
        assert_eq!(bare, Pod::default());
    }

    #[test]
    fn what_matters_of_a_model() {
        let object = json!({
            "metadata": {"name": "m", "creationTimestamp": "1970-01-01T00:01:00Z"},
            "spec": {
                "model": {"name": "meta/m", "uri": "file:///m"},
                "engine": {"runtime": "OfALaterVersion"},
                "adapters": [{"name": "sql", "uri": "hf://a/b"}],
                "routing": {"policy": "SloAware", "objectives": {"ttft": "2s", "tpot": "50ms"}, "weights": {"prefix": 70, "latency": 0}, "sessionHeader": "x-chat", "outputPercentile": 90, "hashPrefixes": false},
                "rollout": {"maxSurge": "25%", "canary": {"weight": 20}},
            },
        });
        let model = serde_json::from_value::<ModelObject>(object).unwrap().plain();
        assert_eq!(
            model,
            Model {
                served: "meta/m".to_owned(),
                adapters: vec!["sql".to_owned()],
                created: 60,
                leaving: false,
                weights: [("latency".to_owned(), 0.0), ("prefix".to_owned(), 70.0)].into(),
                objectives: Objectives { ttft_ms: Some(2000), tpot_ms: Some(50) },
                policy: Some(Policy::SloAware),
                canary_percent: Some(20),
                affinity: Affinity {
                    session_header: Some("x-chat".to_owned()),
                    output_percentile: Some(90),
                    hash_prefixes: Some(false),
                },
            }
        );
    }
}
