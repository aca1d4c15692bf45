//! A scheduler in this process, before engines that do as they are told.

pub(crate) mod api_server;
pub(crate) mod collector;
pub(crate) mod engine;
pub(crate) mod envoy;
pub(crate) mod picker;
pub(crate) mod publisher;

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Request, StatusCode};
use serde_json::{Value, json};
use strata_hop::{Bound, Upstream, forward};
use strata_scheduler::{Scheduler, SchedulerOptions, router};
use strata_wire::replicas::{Endpoint, Endpoints, ModelEndpoints, ReplicaState, Role};
use strata_wire::sse::{Event, Splitter};
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) use api_server::ApiServer;
pub(crate) use collector::Collector;
pub(crate) use engine::{Does, Engine};
pub(crate) use publisher::Publisher;

/// The longest that any test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until a condition holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A scheduler that serves on a free port until it is dropped.
pub(crate) struct Rig {
    pub(crate) url: String,
    pub(crate) scheduler: Scheduler,
    client: Upstream,
    _stop: DropGuard,
}

/// A response, read whole.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    /// `error.code` and `error.type` of the body, `-` for none.
    pub(crate) fn error(&self) -> (u16, String, String) {
        let body = self.json();
        let part = |name: &str| body["error"][name].as_str().unwrap_or("-").to_owned();
        (self.status.as_u16(), part("code"), part("type"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
    }
}

/// A response that is still coming.
pub(crate) struct Coming {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    chunks: std::pin::Pin<Box<dyn futures::Stream<Item = std::io::Result<Bytes>> + Send>>,
    splitter: Splitter,
}

impl Coming {
    /// The next event; `None` at the end. Panics when the connection breaks.
    pub(crate) async fn event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.splitter.next_event() {
                return Some(event);
            }
            let chunk =
                tokio::time::timeout(PATIENCE, self.chunks.next()).await.expect("an event in time")?;
            self.splitter.push(&chunk.expect("the stream is framed whole"));
        }
    }

    /// The text of all events to the end.
    pub(crate) async fn rest(mut self) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(event) = self.event().await {
            all.push(event.data);
        }
        all
    }

    /// Whether the connection broke before the body's end.
    pub(crate) async fn breaks(mut self) -> bool {
        while let Some(chunk) = self.chunks.next().await {
            if chunk.is_err() {
                return true;
            }
        }
        false
    }
}

/// Options that make tests quick.
pub(crate) fn quick() -> SchedulerOptions {
    SchedulerOptions {
        scrape_interval: Duration::from_millis(20),
        queue_timeout: Duration::from_secs(10),
        ..SchedulerOptions::default()
    }
}

impl Rig {
    /// A scheduler with these options.
    pub(crate) async fn start(options: SchedulerOptions) -> Self {
        let bound = Bound::bind("127.0.0.1:0").await.unwrap();
        let (url, stop) = (bound.url(), CancellationToken::new());
        let scheduler = Scheduler::start(options, stop.clone()).await.unwrap();
        tokio::spawn(bound.serve(router(scheduler.clone()), stop.clone(), Duration::ZERO));
        Self { url, scheduler, client: Upstream::new(), _stop: stop.drop_guard() }
    }

    /// A scheduler before these engines, when all of them are ready.
    pub(crate) async fn before(engines: &[&Engine], mut options: SchedulerOptions) -> Self {
        options.replicas = engines.iter().map(|e| e.url()).collect();
        let rig = Self::start(options).await;
        rig.ready("m", engines.len()).await;
        rig
    }

    /// Waits until so many replicas of a model are ready.
    pub(crate) async fn ready(&self, model: &str, count: usize) {
        let ready = || self.states(model).iter().filter(|s| s.ready).count();
        eventually(&format!("{count} replicas of {model} are ready"), || ready() == count).await;
    }

    pub(crate) fn states(&self, model: &str) -> Vec<ReplicaState> {
        self.scheduler.registry.report(self.scheduler.now()).models.remove(model).unwrap_or_default()
    }

    /// Requests held back for a model.
    pub(crate) fn held(&self, model: &str) -> usize {
        let pool = self.scheduler.registry.pool(model);
        pool.map_or(0, |pool| pool.held.load(std::sync::atomic::Ordering::SeqCst))
    }

    pub(crate) async fn open(&self, request: Request<Body>) -> Coming {
        let response = self.client.send(request, PATIENCE).await.unwrap();
        let (head, body) = response.into_parts();
        let chunks = Box::pin(forward::chunks(body, PATIENCE));
        Coming { status: head.status, headers: head.headers, chunks, splitter: Splitter::default() }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        let mut coming = self.open(request).await;
        let mut body = Vec::new();
        while let Some(chunk) = coming.chunks.next().await {
            body.extend_from_slice(&chunk.unwrap());
        }
        Reply { status: coming.status, headers: coming.headers, body: body.into() }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(format!("{}{path}", self.url)).body(Body::empty()).unwrap()).await
    }

    pub(crate) fn request(&self, path: &str, body: impl Into<Body>) -> Request<Body> {
        let request = Request::post(format!("{}{path}", self.url)).header("content-type", "application/json");
        request.body(body.into()).unwrap()
    }

    pub(crate) fn chat_request(&self, text: &str, stream: bool) -> Request<Body> {
        let body = json!({"model": "m", "stream": stream, "messages": [{"role": "user", "content": text}]});
        self.request("/v1/chat/completions", body.to_string())
    }

    /// Asks, and reads the whole answer.
    pub(crate) async fn chat(&self, text: &str) -> Reply {
        self.send(self.chat_request(text, false)).await
    }

    /// Asks for a stream.
    pub(crate) async fn stream(&self, text: &str) -> Coming {
        self.open(self.chat_request(text, true)).await
    }

    /// The value of a sample in `GET /metrics`, whose line begins so.
    pub(crate) async fn metric(&self, begins: &str) -> f64 {
        let text = self.get("/metrics").await;
        let text = String::from_utf8_lossy(&text.body).into_owned();
        let line = text.lines().find(|l| l.starts_with(begins));
        let value = line.and_then(|l| l.rsplit(' ').next()).and_then(|v| v.parse().ok());
        value.unwrap_or_else(|| panic!("no {begins} in\n{text}"))
    }
}

/// An endpoints file.
pub(crate) struct EndpointsFile(tempfile::TempDir);

impl EndpointsFile {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.0.path().join("endpoints.json")
    }

    /// Lists these engines for the model `m`, replacing the file as the host backend does.
    pub(crate) fn list(&self, engines: &[&Engine]) {
        self.write(&Endpoints { models: [("m".to_owned(), listed(engines))].into() });
    }

    pub(crate) fn write(&self, endpoints: &Endpoints) {
        self.write_text(&serde_json::to_string(endpoints).unwrap());
    }

    pub(crate) fn write_text(&self, text: &str) {
        let new = self.0.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.path()).unwrap();
    }
}

/// The same, and others that compute prompts for them.
pub(crate) fn listed_with(engines: &[&Engine], prefill: &[&Engine]) -> ModelEndpoints {
    let mut model = listed(engines);
    let others = prefill.iter().map(|e| Endpoint { role: Role::Prefill, ..Endpoint::new(e.name(), e.url()) });
    model.replicas.extend(others);
    model
}

/// Engines as an endpoints file lists them, named `m-0`, `m-1` and so on.
pub(crate) fn listed(engines: &[&Engine]) -> ModelEndpoints {
    let replicas = engines.iter().map(|e| Endpoint::new(e.name(), e.url()));
    ModelEndpoints { replicas: replicas.collect(), ..ModelEndpoints::default() }
}
