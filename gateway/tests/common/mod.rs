//! A gateway on a free port, in front of an upstream that does as the test says.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::disallowed_methods, clippy::unwrap_used)]

pub mod api_server;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use strata_gateway::{Clock, Gateway, GatewayOptions, KeyStore, Ledger, Role, Source};
use strata_hop::{Body, Bound, HopToken, Upstream, forward};
use tokio_util::sync::CancellationToken;

pub const PATIENCE: Duration = Duration::from_secs(10);

/// What the upstream saw.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

type Script = Box<dyn FnMut(&Seen) -> Response + Send>;

/// An upstream that records and answers by a script.
#[derive(Clone)]
pub struct Mock {
    seen: Arc<Mutex<Vec<Seen>>>,
    script: Arc<Mutex<Script>>,
}

impl Mock {
    pub fn new() -> Self {
        Self { seen: Arc::default(), script: Arc::new(Mutex::new(Box::new(|_| answer(10, 5)))) }
    }

    pub fn script(&self, script: impl FnMut(&Seen) -> Response + Send + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn last(&self) -> Seen {
        self.seen().pop().expect("the upstream was asked")
    }
}

/// Serves a mock on a free port until the guard is dropped.
pub async fn serve_mock(mock: &Mock) -> (String, tokio_util::sync::DropGuard) {
    let bound = Bound::bind("127.0.0.1:0").await.unwrap();
    let (url, stop) = (bound.url(), CancellationToken::new());
    let router = Router::new().fallback(upstream).with_state(mock.clone());
    tokio::spawn(bound.serve(router, stop.clone(), Duration::ZERO));
    (url, stop.drop_guard())
}

async fn upstream(State(mock): State<Mock>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if parts.uri.path() == "/v1/models" {
        let model = |id: &str| {
            json!({"id": id, "object": "model", "created": 1, "owned_by": "strata", "max_model_len": 8192,
                   "template_overhead": 10, "extra": {"kept": true}})
        };
        let data: Vec<Value> = ["m", "big", "org/deep"].into_iter().map(model).collect();
        return axum::Json(json!({"object": "list", "data": data})).into_response();
    }
    let body = strata_hop::spool::read(body, 1 << 26).await.unwrap();
    let seen = Seen { path: parts.uri.path().to_owned(), headers: parts.headers, body };
    mock.seen.lock().unwrap().push(seen.clone());
    let mut script = mock.script.lock().unwrap();
    script(&seen)
}

/// A whole chat answer with this usage.
pub fn answer(prompt: u64, completion: u64) -> Response {
    axum::Json(json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
                  "prompt_tokens_details": {"cached_tokens": 4}},
    }))
    .into_response()
}

pub fn event(data: &Value) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}

/// A chunk with text, and the usage so far.
pub fn chunk(text: &str, usage: Option<(u64, u64)>) -> Bytes {
    let mut chunk = json!({"id": "1", "choices": [{"index": 0, "delta": {"content": text}}]});
    if let Some((prompt, completion)) = usage {
        chunk["usage"] = usage_of(prompt, completion);
    }
    event(&chunk)
}

pub fn usage_of(prompt: u64, completion: u64) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
}

pub fn last_chunk(prompt: u64, completion: u64) -> Bytes {
    event(&json!({"id": "1", "choices": [], "usage": usage_of(prompt, completion)}))
}

pub const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// An event stream of these pieces.
pub fn stream(pieces: Vec<Bytes>) -> Response {
    streaming(Body::from_stream(futures::stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>))))
}

pub fn streaming(body: Body) -> Response {
    ([(http::header::CONTENT_TYPE, "text/event-stream; charset=utf-8")], body).into_response()
}

/// A running gateway.
pub struct World {
    pub gateway: Option<Gateway>,
    pub url: String,
    pub mock: Mock,
    pub folder: tempfile::TempDir,
    pub state: PathBuf,
    pub clock: Clock,
    pub keys: KeyStore,
    pub adopt_local: Option<String>,
    client: Upstream,
    upstream_url: String,
    stop: CancellationToken,
    served: Option<tokio::task::JoinHandle<()>>,
    _upstream_stop: tokio_util::sync::DropGuard,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.body))
    }

    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}

pub const TENANT: &str = "
apiVersion: strata.dev/v1alpha1
kind: Tenant
metadata: {name: acme}
spec: {tier: gold, models: [\"*\"]}
";

/// A policy of this body.
pub fn policy(name: &str, spec: &Value) -> String {
    let object = json!({"apiVersion": "strata.dev/v1alpha1", "kind": "QuotaPolicy", "metadata": {"name": name}, "spec": spec});
    format!("---\n{object}\n")
}

/// Midday, far from any edge of a period.
pub fn midday() -> i64 {
    "2026-11-18T12:00:00Z".parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

impl World {
    pub async fn new(manifests: &str) -> Self {
        Self::with(manifests, Clock::manual(midday())).await
    }

    pub async fn with(manifests: &str, clock: Clock) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("manifests")).unwrap();
        std::fs::write(folder.path().join("manifests/all.yaml"), manifests).unwrap();
        let mock = Mock::new();
        let (upstream_url, upstream_stop) = serve_mock(&mock).await;
        let state = folder.path().join("state/ledger.db");
        let keys = KeyStore::open_at(&state, clock.clone()).unwrap();
        let mut world = Self {
            gateway: None,
            url: String::new(),
            mock,
            folder,
            state,
            clock,
            keys,
            adopt_local: None,
            client: Upstream::new(),
            upstream_url,
            stop: CancellationToken::new(),
            served: None,
            _upstream_stop: upstream_stop,
        };
        world.start().await;
        world
    }

    pub fn upstream(&self) -> String {
        self.upstream_url.clone()
    }

    pub fn options(&self) -> GatewayOptions {
        GatewayOptions {
            source: Source::Folder {
                upstream: self.upstream_url.clone(),
                folder: self.folder.path().join("manifests"),
            },
            listen: "127.0.0.1:0".to_owned(),
            state: self.state.clone(),
            hop_token: HopToken::new("hop-secret"),
            internal_listen: None,
            mtls: None,
            grace: Duration::from_secs(5),
            adopt_local: self.adopt_local.clone(),
        }
    }

    pub async fn start(&mut self) {
        let options = self.options();
        let deadline = Instant::now() + PATIENCE;
        let gateway = loop {
            match Gateway::start(&options, self.clock.clone()).await {
                Ok(gateway) => break gateway,
                // The one before still lets go of the ledger.
                Err(error) if Instant::now() > deadline => panic!("{error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let bound = Bound::bind("127.0.0.1:0").await.unwrap();
        self.url = bound.url();
        self.stop = CancellationToken::new();
        self.served =
            Some(tokio::spawn(bound.serve(gateway.router(), self.stop.clone(), Duration::from_secs(5))));
        self.gateway = Some(gateway);
    }

    /// Stops in order.
    pub async fn halt(&mut self) {
        self.stop.cancel();
        self.served.take().unwrap().await.unwrap();
        self.gateway.take().unwrap().stop().await;
    }

    /// Stops in order, and starts again on the same state.
    pub async fn restart(&mut self) {
        self.halt().await;
        self.start().await;
    }

    pub fn edit(&self, manifests: &str) {
        let path = self.folder.path().join("manifests");
        std::fs::write(self.folder.path().join("next.yaml"), manifests).unwrap();
        std::fs::rename(self.folder.path().join("next.yaml"), path.join("all.yaml")).unwrap();
    }

    /// A key of `tenant`, known to the gateway.
    pub async fn key(&self, tenant: &str, role: Role) -> String {
        let key = self.keys.create(tenant, "test", role, None).unwrap().0;
        // Seldom enough not to be slowed down as one who guesses keys.
        eventually_every(Duration::from_millis(30), "the key is known", async || {
            self.get("/internal/v1/whoami", &key).await.status == StatusCode::OK
        })
        .await;
        key
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        key: &str,
        body: impl Into<Body>,
    ) -> http::Response<hyper::body::Incoming> {
        let mut request = http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        if !key.is_empty() {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request.header("content-type", "application/json").body(body.into()).unwrap();
        self.client.send(request, PATIENCE).await.unwrap()
    }

    pub async fn send_request(&self, request: http::Request<Body>) -> http::Response<hyper::body::Incoming> {
        self.client.send(request, PATIENCE).await.unwrap()
    }

    pub async fn ask(&self, method: Method, path: &str, key: &str, body: impl Into<Body>) -> Answer {
        read(self.send(method, path, key, body).await).await
    }

    pub async fn get(&self, path: &str, key: &str) -> Answer {
        self.ask(Method::GET, path, key, Body::empty()).await
    }

    pub async fn post(&self, path: &str, key: &str, body: &Value) -> Answer {
        self.ask(Method::POST, path, key, body.to_string()).await
    }

    pub async fn chat(&self, key: &str, body: &Value) -> Answer {
        self.post("/v1/chat/completions", key, body).await
    }

    pub fn ledger(&self) -> Ledger {
        Ledger::open(&self.state).unwrap()
    }

    /// The usage rows, when there are as many as wanted.
    pub async fn rows(&self, wanted: usize) -> Vec<strata_gateway::ledger::UsageRow> {
        let ledger = self.ledger();
        let read = || -> Vec<_> { ledger.rows_after(0, 0).unwrap().into_iter().map(|r| r.1).collect() };
        eventually("the usage is written", async || read().len() >= wanted).await;
        read()
    }
}

pub async fn read(response: http::Response<hyper::body::Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = forward::collect(body, PATIENCE, 1 << 26).await.unwrap();
    Answer { status: parts.status, headers: parts.headers, body }
}

/// Waits until a condition holds.
pub async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) -> Duration {
    eventually_every(Duration::from_millis(5), what, condition).await
}

pub async fn eventually_every(
    pause: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> bool,
) -> Duration {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < PATIENCE, "in vain: {what}");
        tokio::time::sleep(pause).await;
    }
    started.elapsed()
}

/// A short chat request.
pub fn question(max_tokens: u64) -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": max_tokens})
}
