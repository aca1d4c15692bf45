//! A gateway, and the API server that it follows.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use strata_gateway::keys::KeyHash;
use strata_gateway::{Clock, Cluster, Gateway, GatewayOptions, Source};
use strata_hop::{Body, Bound, HopToken, Upstream};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::common::api_server::ApiServer;
use crate::common::{Answer, PATIENCE, eventually, question, read};

pub const KEY: &str = "sk-strata-team1_s3cret";
/// In which a revocation must hold.
pub const SECOND: Duration = Duration::from_secs(1);

pub struct World {
    pub api: ApiServer,
    pub gateway: Gateway,
    pub url: String,
    pub client: Upstream,
    pub folder: tempfile::TempDir,
    _stop: DropGuard,
}

pub fn object(kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "strata.dev/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": namespace},
           "spec": spec})
}

pub fn tenant(spec: Value) -> Value {
    object("Tenant", "strata", "acme", spec)
}

pub fn keyed() -> Value {
    json!({"models": ["*"], "tier": "gold", "apiKeys": [{"name": "git", "secretRef": {"name": "team1"}}]})
}

pub fn base64(text: &str) -> Value {
    json!(k8s_openapi::ByteString(text.as_bytes().to_vec()))
}

pub fn secret(namespace: &str, name: &str, id: &str, secret: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret",
           "metadata": {"name": name, "namespace": namespace, "labels": {"strata.dev/api-key": "true"}},
           "data": {"id": base64(id), "hash": base64(&KeyHash::of(id, secret).to_text()), "note": base64("plain")}})
}

pub fn model(namespace: &str, name: &str, served: &str) -> Value {
    object(
        "ModelDeployment",
        namespace,
        name,
        json!({"model": {"name": served, "uri": "pvc://models/m.gguf"}}),
    )
}

/// The EndpointSlice of a namespace's schedulers; those marked `false` are not ready.
pub fn slice(namespace: &str, urls: &[(&str, bool)]) -> Value {
    let ports: Vec<u16> =
        urls.iter().map(|(url, _)| url.rsplit(':').next().unwrap().parse().unwrap()).collect();
    let endpoints: Vec<Value> = urls
        .iter()
        .map(|(_, ready)| json!({"addresses": ["127.0.0.1"], "conditions": {"ready": ready}}))
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
           "metadata": {"name": format!("scheduler-{}", ports.first().copied().unwrap_or(0)), "namespace": namespace,
                        "labels": {"kubernetes.io/service-name": "strata-scheduler"}},
           "ports": [{"name": "http", "port": ports.first()}], "endpoints": endpoints})
}

impl World {
    /// A gateway that follows what `api` has, once it serves.
    pub async fn new(api: ApiServer, model_namespaces: &[&str]) -> Self {
        let world = Self::starting(api, model_namespaces).await;
        eventually("the gateway is ready", async || world.get("/ready", "").await.status == StatusCode::OK)
            .await;
        world
    }

    pub async fn starting(api: ApiServer, model_namespaces: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, api.kubeconfig()).unwrap();
        let options = GatewayOptions {
            source: Source::Kubernetes(Cluster {
                kubeconfig: Some(kubeconfig),
                namespace: "strata".to_owned(),
                model_namespaces: model_namespaces.iter().map(|n| (*n).to_owned()).collect(),
                answer_within: Duration::from_secs(1),
            }),
            listen: "127.0.0.1:0".to_owned(),
            state: folder.path().join("ledger.db"),
            internal_listen: None,
            mtls: None,
            hop_token: HopToken::new("hop-secret"),
            grace: Duration::from_secs(5),
            adopt_local: None,
        };
        let gateway = Gateway::start(&options, Clock::System).await.unwrap();
        let bound = Bound::bind("127.0.0.1:0").await.unwrap();
        let (url, stop) = (bound.url(), CancellationToken::new());
        tokio::spawn(bound.serve(gateway.router(), stop.clone(), Duration::ZERO));
        Self { api, gateway, url, client: Upstream::new(), folder, _stop: stop.drop_guard() }
    }

    pub async fn ask(&self, method: Method, path: &str, key: &str, body: impl Into<Body>) -> Answer {
        let mut request = http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        if !key.is_empty() {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        read(self.client.send(request.body(body.into()).unwrap(), PATIENCE).await.unwrap()).await
    }

    pub async fn get(&self, path: &str, key: &str) -> Answer {
        self.ask(Method::GET, path, key, Body::empty()).await
    }

    pub async fn chat(&self, model: &str) -> Answer {
        let mut body = question(1);
        body["model"] = json!(model);
        self.ask(Method::POST, "/v1/chat/completions", KEY, body.to_string()).await
    }

    pub async fn knows(&self, key: &str) -> bool {
        self.get("/internal/v1/whoami", key).await.status == StatusCode::OK
    }

    pub async fn models(&self) -> Vec<String> {
        let listed = self.get("/v1/models", KEY).await.json();
        listed["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap().to_owned()).collect()
    }
}

/// A server with one tenant and its key.
pub async fn governed() -> ApiServer {
    let api = ApiServer::start().await;
    api.apply(tenant(keyed()));
    api.apply(secret("strata", "team1", "team1", "s3cret"));
    api
}
