//! A scripted next layer, a platform above it, and a client.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use strata_hop::{Body, Bound, Upstream, forward};
use strata_platform::{App, PlatformOptions, UpstreamKind, router};
use strata_wire::sse;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Nothing here takes longer, unless it hangs.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// What the next layer does with one request.
pub(crate) enum Reply {
    /// Streams these events.
    Events(Vec<Bytes>),
    /// Streams what the test sends, as it sends it; an error breaks the connection.
    Held(mpsc::UnboundedReceiver<Result<Bytes, std::io::Error>>),
    /// Answers at once.
    Whole(StatusCode, Vec<(&'static str, &'static str)>, String),
}

/// A request as the next layer saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

#[derive(Default)]
struct Script {
    replies: VecDeque<Reply>,
    seen: Vec<Seen>,
    asked_who: usize,
}

/// The scripted next layer and the platform above it.
pub(crate) struct World {
    script: Arc<Mutex<Script>>,
    pub(crate) url: String,
    client: Upstream,
    stop: CancellationToken,
    folder: Option<tempfile::TempDir>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn answer(State(script): State<Arc<Mutex<Script>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().unwrap().to_string();
    if path == "/health" {
        return "ok".into_response();
    }
    if path == "/internal/v1/whoami" {
        script.lock().unwrap().asked_who += 1;
        let key = parts.headers.get("authorization").and_then(|v| v.to_str().ok()).unwrap_or_default();
        return match key.strip_prefix("Bearer ") {
            Some(name) if !name.starts_with("bad") => {
                let adopts: &[&str] = if name.starts_with("heir") { &["local"] } else { &[] };
                axum::Json(json!({"owner": format!("owner-of-{name}"), "roles": [], "adopts": adopts}))
                    .into_response()
            }
            _ => (
                StatusCode::UNAUTHORIZED,
                axum::Json(json!({"error": {"message": "no such key", "type": "invalid_request_error",
                    "param": null, "code": "invalid_api_key"}})),
            )
                .into_response(),
        };
    }
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let reply = {
        let mut script = script.lock().unwrap();
        script.seen.push(Seen { method: parts.method, path, headers: parts.headers, body });
        script.replies.pop_front().expect("the next layer was asked more often than scripted")
    };
    let streamed = [
        ("content-type", "text/event-stream"),
        ("x-request-id", "minted-below"),
        ("x-strata-decision", "replica-1"),
        ("x-strata-cache-scope", "secret"),
        ("x-ratelimit-remaining-requests", "7"),
    ];
    match reply {
        Reply::Events(events) => (
            streamed,
            Body::from_stream(futures::stream::iter(events.into_iter().map(Ok::<_, std::io::Error>))),
        )
            .into_response(),
        Reply::Held(receive) => (
            streamed,
            Body::from_stream(futures::stream::unfold(receive, |mut r| async move {
                r.recv().await.map(|item| (item, r))
            })),
        )
            .into_response(),
        Reply::Whole(status, headers, body) => {
            let mut response = (status, body).into_response();
            for (name, value) in headers {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        }
    }
}

async fn serve(router: Router, stop: &CancellationToken) -> String {
    let bound = Bound::bind("127.0.0.1:0").await.unwrap();
    let url = bound.url();
    tokio::spawn(bound.serve(router, stop.clone(), Duration::from_secs(1)));
    url
}

impl World {
    /// A platform without a gateway, in a folder of its own.
    pub(crate) async fn new() -> Self {
        Self::of(UpstreamKind::Ungoverned).await
    }

    pub(crate) async fn of(kind: UpstreamKind) -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut world = Self::in_folder(kind, state.path()).await;
        world.folder = Some(state);
        world
    }

    /// A platform whose state is in this folder.
    pub(crate) async fn in_folder(kind: UpstreamKind, state: &Path) -> Self {
        let (script, stop) = (Arc::new(Mutex::new(Script::default())), CancellationToken::new());
        let below = serve(Router::new().fallback(answer).with_state(script.clone()), &stop).await;
        let mut options = PlatformOptions::new(below, kind, state);
        options.max_body_bytes = 100_000;
        options.hop_token = strata_hop::HopToken::new("run-token");
        let url = serve(router(App::open(options).unwrap()), &stop).await;
        Self { script, url, client: Upstream::new(), stop, folder: None }
    }

    pub(crate) fn script(&self, replies: impl IntoIterator<Item = Reply>) {
        self.script.lock().unwrap().replies.extend(replies);
    }

    /// What the next layer saw, whoami left out.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.script.lock().unwrap().seen.clone()
    }

    pub(crate) fn asked_who(&self) -> usize {
        self.script.lock().unwrap().asked_who
    }

    /// The bodies that the next layer saw.
    pub(crate) fn chats(&self) -> Vec<Value> {
        self.seen().iter().map(Seen::json).collect()
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.client.send(request.body(body.into()).unwrap(), LONG).await.unwrap();
        let (head, body) = response.into_parts();
        Answer { status: head.status, headers: head.headers, chunks: Box::pin(forward::chunks(body, LONG)) }
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send("GET", path, &[], Body::empty()).await.json().await
    }

    pub(crate) async fn delete(&self, path: &str) -> (StatusCode, Value) {
        self.send("DELETE", path, &[], Body::empty()).await.json().await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.send("POST", path, &[], body.to_string()).await.json().await
    }

    /// Creates a response that must succeed.
    pub(crate) async fn create(&self, body: Value) -> Value {
        let (status, answer) = self.post("/v1/responses", body).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Creates a streamed response and returns its events.
    pub(crate) async fn create_streamed(&self, mut body: Value) -> Vec<Value> {
        body["stream"] = json!(true);
        let mut answer = self.send("POST", "/v1/responses", &[], body.to_string()).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
        let mut events = Events::default();
        let mut all = Vec::new();
        while let Some(event) = events.next(&mut answer).await {
            all.push(event);
        }
        all
    }
}

/// A response that may still be streaming.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    chunks: futures::stream::BoxStream<'static, std::io::Result<Bytes>>,
}

impl Answer {
    /// All the bytes.
    pub(crate) async fn bytes(mut self) -> Bytes {
        let mut whole = Vec::new();
        while let Some(chunk) = self.chunks.next().await {
            whole.extend_from_slice(&chunk.unwrap());
        }
        whole.into()
    }

    pub(crate) async fn json(self) -> (StatusCode, Value) {
        let status = self.status;
        let bytes = self.bytes().await;
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&bytes)));
        (status, value)
    }

    /// The next bytes that come.
    pub(crate) async fn chunk(&mut self) -> Option<Bytes> {
        self.chunks.next().await.map(|c| c.unwrap())
    }
}

/// Reads events one by one and checks that name, type and sequence number agree.
#[derive(Default)]
pub(crate) struct Events {
    splitter: sse::Splitter,
    count: u64,
}

impl Events {
    pub(crate) async fn next(&mut self, answer: &mut Answer) -> Option<Value> {
        loop {
            if let Some(event) = self.splitter.next_event() {
                let value: Value = serde_json::from_str(&event.data).unwrap();
                assert_eq!(value["type"].as_str(), event.name.as_deref());
                assert_eq!(value["sequence_number"].as_u64(), Some(self.count));
                self.count += 1;
                return Some(value);
            }
            self.splitter.push(&answer.chunk().await?);
        }
    }

    /// Reads on until an event of this type.
    pub(crate) async fn until(&mut self, answer: &mut Answer, kind: &str) -> Value {
        loop {
            let event = self.next(answer).await.unwrap_or_else(|| panic!("the stream ended before {kind}"));
            if event["type"] == kind {
                return event;
            }
        }
    }
}

/// One chunk of a chat completion.
pub(crate) fn chunk(delta: Value, finish: Option<&str>) -> Bytes {
    sse::data(
        &json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
        .to_string(),
    )
}

pub(crate) fn text(text: &str) -> Bytes {
    chunk(json!({"content": text}), None)
}

/// The chunk with the usage, and the end.
pub(crate) fn ending(prompt: u64, cached: u64, completion: u64) -> Bytes {
    let usage = strata_wire::Usage::new(prompt, cached, completion);
    let last = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [], "usage": usage});
    [sse::data(&last.to_string()), sse::data(sse::DONE)].concat().into()
}

/// The model says these pieces: 10 tokens of prompt, 4 of them cached, one for each piece.
pub(crate) fn says(pieces: &[&str]) -> Reply {
    let mut events = vec![chunk(json!({"role": "assistant", "content": ""}), None)];
    events.extend(pieces.iter().map(|p| text(p)));
    events.push(chunk(json!({}), Some("stop")));
    events.push(ending(10, 4, pieces.len() as u64));
    Reply::Events(events)
}

/// The model calls these functions; the arguments come in two pieces.
pub(crate) fn calls(calls: &[(&str, &str)]) -> Reply {
    let mut events = Vec::new();
    for (i, (name, arguments)) in calls.iter().enumerate() {
        let (a, b) = arguments.split_at(arguments.len() / 2);
        events.push(chunk(
            json!({"tool_calls": [{"index": i, "id": format!("call_{i}"), "type": "function",
                "function": {"name": name, "arguments": a}}]}),
            None,
        ));
        events.push(chunk(json!({"tool_calls": [{"index": i, "function": {"arguments": b}}]}), None));
    }
    events.push(chunk(json!({}), Some("tool_calls")));
    events.push(ending(20, 8, 5));
    Reply::Events(events)
}

pub(crate) fn sum(expression: &str) -> String {
    json!({ "expression": expression }).to_string()
}

/// The text of a response.
pub(crate) fn output_text(response: &Value) -> String {
    response["output"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|i| i["type"] == "message")
        .flat_map(|i| i["content"].as_array().unwrap().clone())
        .map(|part| part["text"].as_str().unwrap().to_owned())
        .collect()
}

/// Ids and times replaced by what is the same in every run.
pub(crate) fn normal(text: &str) -> String {
    let mut known: Vec<String> = Vec::new();
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('_') {
        let (before, after) = rest.split_at(at + 1);
        out.push_str(before);
        let hex = after.bytes().take_while(u8::is_ascii_hexdigit).count();
        if hex == 32 {
            let id = &after[..hex];
            let n = known.iter().position(|k| k == id).unwrap_or_else(|| {
                known.push(id.to_owned());
                known.len() - 1
            });
            out.push_str(&n.to_string());
            rest = &after[hex..];
        } else {
            rest = after;
        }
    }
    out.push_str(rest);
    for key in ["\"created_at\":", "\"completed_at\":"] {
        let mut parts = out.split(key).map(str::to_owned);
        let mut timeless = parts.next().unwrap_or_default();
        for part in parts {
            let rest = part.trim_start_matches(|c: char| c == ' ' || c.is_ascii_digit());
            timeless.push_str(key);
            timeless.push_str(" \"now\"");
            timeless.push_str(rest);
        }
        out = timeless;
    }
    out
}

/// A stream as one line an event; the response objects are cut to what changes.
pub(crate) fn transcript(events: &[Value]) -> String {
    let lines: Vec<String> = events
        .iter()
        .map(|event| {
            let mut event = event.clone();
            if let Some(response) = event.get_mut("response") {
                let keep = ["id", "status", "error", "incomplete_details", "output", "usage"];
                *response = keep
                    .iter()
                    .map(|k| ((*k).to_owned(), response[*k].clone()))
                    .collect::<serde_json::Map<_, _>>()
                    .into();
            }
            event.to_string()
        })
        .collect();
    normal(&lines.join("\n"))
}

/// Waits for a condition, with a deadline.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut check: impl FnMut() -> F,
) -> T {
    let wait = async {
        loop {
            if let Some(value) = check().await {
                return value;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("never: {what}"))
}
