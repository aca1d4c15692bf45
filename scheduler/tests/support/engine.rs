//! An engine that does as it is told. It runs on a runtime of its own, so that it can be killed as a
//! process is: with every connection at once.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use strata_wire::engine_events::EngineEvent;
use strata_wire::metrics::engine as names;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};

/// What the engine does with the next requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Does {
    /// Answers at once: a stream of three pieces, or the whole.
    Answer,
    /// Sends the stream's head at once, and each piece only when it is let go.
    Held,
    /// Never answers, not even with a head.
    Nothing,
    /// Sends so many pieces of a stream, then breaks the connection.
    Break(usize),
    /// Sends one piece and a half, then breaks the connection.
    BreakWithin,
    /// Sends half of an answer that is no stream, and breaks the connection when let go.
    BreakJson,
    /// 503.
    Refuse,
    /// 401, as an engine does that wants another hop token.
    Forbid,
    /// 400, as an engine refuses a wrong request.
    Reject,
    /// Sends as much as is taken from it.
    Flood,
    /// Answers when it is let go.
    Late,
    /// Takes so long until it answers.
    Slow(Duration),
    /// Answers, and keeps nothing of a prompt that it is to keep.
    Forget,
    /// 500.
    Fail,
    /// 500 for a request whose prompt it is to fetch, as when that cannot be done; answers others.
    FailToFetch,
}

/// What an engine says of a prompt that it has kept, as vLLM does.
pub(crate) const KEPT: &str = r#"{"do_remote_prefill": true,"do_remote_decode": false,"remote_block_ids":[[7,8]],"remote_engine_id":"e","remote_request_id":"r","remote_host":"10.0.0.9","remote_port":5600,"tp_size":1}"#;

/// A request as the engine got it.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// What the engine says of its load.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Load {
    pub(crate) waiting: f64,
    pub(crate) max_sequences: f64,
    /// This text instead of metrics of its own.
    pub(crate) text: Option<String>,
    /// Whether it tells the truth about running requests, or says none.
    pub(crate) counts: bool,
}

pub(crate) struct Inner {
    pub(crate) does: Mutex<Does>,
    pub(crate) load: Mutex<Load>,
    pub(crate) got: Mutex<Vec<Got>>,
    /// What it says of its health; 0 for nothing ever.
    pub(crate) health: AtomicU16,
    /// What asking for its metrics is answered with; 0 for never.
    pub(crate) metrics_status: AtomicU16,
    /// How often its metrics were asked for.
    pub(crate) scrapes: AtomicUsize,
    /// Pieces that held streams may send.
    pub(crate) pieces: Semaphore,
    /// Requests under way.
    pub(crate) open: AtomicUsize,
    /// Bytes that a flood has got rid of.
    pub(crate) sent: AtomicU64,
    pub(crate) prompts: AtomicU64,
    pub(crate) model: String,
    pub(crate) ended: AtomicBool,
    /// Whether it says that it is Strata's, and not vLLM.
    pub(crate) ours: AtomicBool,
    /// Whether it says that its model is an adapter of another.
    pub(crate) adapts: AtomicBool,
    /// Tokens that it says its answers have.
    pub(crate) answer_tokens: AtomicU64,
    /// What it says that it had cached of each prompt, of how many tokens; it says nothing when absent.
    usage: Mutex<Option<(u64, u64)>>,
    script: watch::Sender<Script>,
    /// From where on it was asked to tell, each time that it was.
    followed: Mutex<Vec<String>>,
    /// Whether it tells the tokens of a prompt, and how often it was asked.
    tokenises: AtomicBool,
    tokenised: AtomicUsize,
}

/// What the engine tells everybody who follows it. It tells nothing when there are no messages.
#[derive(Clone, Debug, Default)]
struct Script {
    messages: Option<Vec<EngineEvent>>,
    /// Whoever followed another script is hung up on.
    number: usize,
}

pub(crate) struct Engine {
    name: String,
    addr: SocketAddr,
    pub(crate) inner: Arc<Inner>,
    runtime: Option<Runtime>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Engine {
    /// An engine that serves the model `m`.
    pub(crate) fn start(name: &str) -> Self {
        Self::serving(name, "m")
    }

    pub(crate) fn serving(name: &str, model: &str) -> Self {
        let inner = Arc::new(Inner {
            does: Mutex::new(Does::Answer),
            load: Mutex::new(Load { waiting: 0.0, max_sequences: 16.0, text: None, counts: true }),
            got: Mutex::default(),
            health: AtomicU16::new(200),
            metrics_status: AtomicU16::new(200),
            scrapes: AtomicUsize::new(0),
            pieces: Semaphore::new(0),
            open: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            prompts: AtomicU64::new(0),
            model: model.to_owned(),
            ended: AtomicBool::new(false),
            ours: AtomicBool::new(false),
            adapts: AtomicBool::new(false),
            answer_tokens: AtomicU64::new(1),
            usage: Mutex::default(),
            script: watch::Sender::default(),
            followed: Mutex::default(),
            tokenises: AtomicBool::new(false),
            tokenised: AtomicUsize::new(0),
        });
        let (runtime, addr) = serve(&inner, "127.0.0.1:0".parse().unwrap());
        Self { name: name.to_owned(), addr, inner, runtime: Some(runtime) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn does(&self, does: Does) -> &Self {
        *self.inner.does.lock().unwrap() = does;
        self
    }

    pub(crate) fn load(&self, change: impl FnOnce(&mut Load)) {
        change(&mut self.inner.load.lock().unwrap());
    }

    /// Says from now on that so many tokens of each prompt were cached, of so many.
    pub(crate) fn says_cached(&self, cached: u64, of: u64) {
        *self.inner.usage.lock().unwrap() = Some((cached, of));
    }

    /// The requests that it got, scrapes aside.
    pub(crate) fn got(&self) -> Vec<Got> {
        self.inner.got.lock().unwrap().clone()
    }

    /// Panics unless it got requests with these texts, and no others, in this order. On a busy machine one
    /// that was sent right after another may come before it.
    pub(crate) fn got_in_order(&self, texts: &[String]) {
        let got: Vec<String> =
            self.got().iter().map(|got| String::from_utf8_lossy(&got.body).into_owned()).collect();
        assert_eq!(got.len(), texts.len(), "{got:?}");
        for (at, text) in texts.iter().enumerate() {
            let place = got.iter().position(|body| body.contains(text));
            assert!(place.is_some_and(|place| place.abs_diff(at) <= 2), "{text} in {got:?}");
        }
    }

    pub(crate) fn open(&self) -> usize {
        self.inner.open.load(Ordering::SeqCst)
    }

    /// Lets held streams send so many pieces more.
    pub(crate) fn let_go(&self, pieces: usize) {
        self.inner.pieces.add_permits(pieces);
    }

    /// Hangs up on all who follow its events, and tells this from now on.
    pub(crate) fn tells(&self, messages: Vec<EngineEvent>) {
        self.inner.script.send_modify(|script| {
            script.messages = Some(messages);
            script.number += 1;
        });
    }

    /// Tells one thing more.
    pub(crate) fn adds(&self, message: EngineEvent) {
        self.inner.script.send_modify(|script| script.messages.get_or_insert_default().push(message));
    }

    /// From where on it was asked to tell, each time that it was.
    pub(crate) fn followed(&self) -> Vec<String> {
        self.inner.followed.lock().unwrap().clone()
    }

    /// Tells the tokens of prompts from now on, as vLLM does: one for each character.
    pub(crate) fn tokenises(&self) -> &Self {
        self.inner.tokenises.store(true, Ordering::SeqCst);
        self
    }

    /// How often it was asked for a prompt's tokens.
    pub(crate) fn tokenised(&self) -> usize {
        self.inner.tokenised.load(Ordering::SeqCst)
    }

    /// Ends the engine with all its connections.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Starts it again at the same address, with an empty cache and counters at zero.
    pub(crate) fn restart(&mut self) {
        self.inner.prompts.store(0, Ordering::SeqCst);
        let (runtime, _) = serve(&self.inner, self.addr);
        self.runtime = Some(runtime);
    }
}

/// Listens at an address, which may still be held for a moment by connections of the one killed before.
pub(super) fn listen(addr: SocketAddr) -> std::net::TcpListener {
    let deadline = std::time::Instant::now() + super::PATIENCE;
    loop {
        match std::net::TcpListener::bind(addr) {
            Ok(listener) => {
                listener.set_nonblocking(true).unwrap();
                return listener;
            }
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
        std::thread::yield_now();
    }
}

fn serve(inner: &Arc<Inner>, addr: SocketAddr) -> (Runtime, SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = listen(addr);
    let addr = listener.local_addr().unwrap();
    let answers = |router: Router<Arc<Inner>>, (path, _): &(&str, _)| match *path {
        "/tokenize" => router.route(path, post(tokenise)),
        _ => router.route(path, post(answer)),
    };
    let router = strata_scheduler::call::ROUTES
        .iter()
        .fold(Router::new(), answers)
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/internal/v1/events", get(events))
        .route("/sleep", post(answer))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(Arc::clone(inner));
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        axum::serve(listener, router).await.unwrap();
    });
    (runtime, addr)
}

/// Counts a request as long as it is under way.
struct Open(Arc<Inner>);

impl Open {
    fn enter(inner: &Arc<Inner>) -> Self {
        inner.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(inner))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn events(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    inner.followed.lock().unwrap().push(request.uri().query().unwrap_or_default().to_owned());
    let script = inner.script.subscribe();
    let number = script.borrow().number;
    if script.borrow().messages.is_none() {
        return StatusCode::NOT_FOUND.into_response();
    }
    let body = futures::stream::unfold((script, 0), move |(mut script, told)| async move {
        let has = |script: &Script| {
            script.number != number || script.messages.as_ref().is_some_and(|all| all.len() > told)
        };
        let now = script.wait_for(has).await.ok()?.clone();
        let message = now.messages.filter(|_| now.number == number)?[told].clone();
        let text = format!("data: {}\n\n", serde_json::to_string(&message).unwrap());
        Some((Ok::<_, std::io::Error>(Bytes::from(text)), (script, told + 1)))
    });
    ([("content-type", "text/event-stream")], Body::from_stream(body)).into_response()
}

async fn health(State(inner): State<Arc<Inner>>) -> StatusCode {
    match StatusCode::from_u16(inner.health.load(Ordering::SeqCst)) {
        Ok(status) => status,
        Err(_) => std::future::pending().await,
    }
}

async fn models(State(inner): State<Arc<Inner>>) -> axum::Json<Value> {
    let owner = if inner.ours.load(Ordering::SeqCst) { "strata" } else { "vllm" };
    axum::Json(json!({"object": "list", "data": [{"id": inner.model, "object": "model", "created": 5,
        "owned_by": owner, "max_model_len": 2048, "template_overhead": 24, "root": "x", "permission": [],
        "parent": inner.adapts.load(Ordering::SeqCst).then_some("base")}]}))
}

async fn metrics(State(inner): State<Arc<Inner>>) -> Response {
    inner.scrapes.fetch_add(1, Ordering::SeqCst);
    let Ok(status) = StatusCode::from_u16(inner.metrics_status.load(Ordering::SeqCst)) else {
        return std::future::pending().await;
    };
    let load = inner.load.lock().unwrap().clone();
    let open = if load.counts { inner.open.load(Ordering::SeqCst) as f64 } else { 0.0 };
    let prompts = inner.prompts.load(Ordering::SeqCst);
    let text = load.text.unwrap_or_else(|| {
        format!(
            "{}{{model_name=\"m\"}} {}\n{} {}\n{} {}\n{} {}\n{} 1000\n{} 0.25\n{}_total {}\n{}_total 40\n{}_total 30\n",
            names::RUNNING,
            (open - load.waiting).max(0.0),
            names::WAITING,
            load.waiting,
            names::WAITING_TOKENS,
            load.waiting * 100.0,
            names::MAX_SEQUENCES,
            load.max_sequences,
            names::PREFILL_RATE,
            names::KV_USAGE,
            names::PROMPT_TOKENS,
            prompts * 100,
            names::PREFIX_QUERIES,
            names::PREFIX_HITS,
        )
    });
    (status, text).into_response()
}

async fn answer(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let open = Open::enter(&inner);
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let path = head.uri.path().to_owned();
    inner.got.lock().unwrap().push(Got { path, headers: head.headers, body: body.clone() });
    inner.prompts.fetch_add(1, Ordering::SeqCst);
    let stream = serde_json::from_slice::<Value>(&body).is_ok_and(|b| b["stream"] == json!(true));
    let transfer = serde_json::from_slice::<Value>(&body).map(|b| b["kv_transfer_params"].clone());
    let transfer = transfer.unwrap_or_default();
    let keeps = transfer["do_remote_decode"] == json!(true);
    let mut does = *inner.does.lock().unwrap();
    if does == Does::Late {
        inner.pieces.acquire().await.unwrap().forget();
        does = Does::Answer;
    }
    if let Does::Slow(for_so_long) = does {
        tokio::time::sleep(for_so_long).await;
        does = Does::Answer;
    }
    if does == Does::FailToFetch {
        does = if transfer.is_null() { Does::Answer } else { Does::Fail };
    }
    match does {
        Does::Refuse => {
            let error = json!({"error": {"message": "draining", "type": "server_error", "param": null, "code": "draining"}});
            (StatusCode::SERVICE_UNAVAILABLE, axum::Json(error)).into_response()
        }
        Does::Reject => {
            let error = json!({"error": {"message": "max_tokens must be positive", "type": "invalid_request_error", "param": "max_tokens", "code": null}});
            (StatusCode::BAD_REQUEST, axum::Json(error)).into_response()
        }
        Does::Fail | Does::FailToFetch => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Does::Answer if keeps && !stream => {
            let answer = format!(r#"{{"id":"c","choices":[{{"message":{{"content":"y"}}}}],"kv_transfer_params": {KEPT} }}"#);
            ([("content-type", "application/json")], answer).into_response()
        }
        Does::Forbid => StatusCode::UNAUTHORIZED.into_response(),
        Does::BreakJson => {
            let first = futures::stream::iter([Ok(Bytes::from_static(b"{\"id\":"))]);
            let rest = futures::stream::once(async move {
                open.0.pieces.acquire().await.unwrap().forget();
                Err(std::io::Error::other("killed"))
            });
            let body = Body::from_stream(first.chain(rest));
            ([("content-type", "application/json")], body).into_response()
        }
        Does::Nothing => {
            let _open = open;
            std::future::pending().await
        }
        Does::Answer | Does::Forget if !stream => axum::Json(json!({"id": "chatcmpl-1", "object": "chat.completion", "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
            "usage": usage(&inner)}))
        .into_response(),
        Does::Answer | Does::Forget | Does::Late | Does::Slow(_) => pieces(open, 3, false, End::Done),
        Does::Held => pieces(open, usize::MAX, true, End::Done),
        Does::Break(after) => pieces(open, after, false, End::Break),
        Does::BreakWithin => pieces(open, 1, false, End::Half),
        Does::Flood => flood(open),
    }
}

/// What it says of the tokens of an answer.
fn usage(inner: &Inner) -> Value {
    let answer = inner.answer_tokens.load(Ordering::SeqCst);
    match *inner.usage.lock().unwrap() {
        None => json!({"prompt_tokens": 100, "completion_tokens": answer, "total_tokens": 100 + answer}),
        Some((cached, of)) => {
            json!({"prompt_tokens": of, "completion_tokens": answer, "total_tokens": of + answer,
            "prompt_tokens_details": {"cached_tokens": cached}})
        }
    }
}

/// The prompt that a chat is rendered to.
pub(crate) fn rendered(chat: &Value) -> String {
    let turn =
        |turn: &Value| format!("<|{}|>{}", turn["role"].as_str().unwrap(), turn["content"].as_str().unwrap());
    chat["messages"].as_array().unwrap().iter().map(turn).collect()
}

async fn tokenise(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    if !inner.tokenises.load(Ordering::SeqCst) {
        return answer(State(inner), request).await;
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let asked: Value = serde_json::from_slice(&body).unwrap();
    let mut prompt = rendered(&asked);
    if inner.ours.load(Ordering::SeqCst) && asked["add_generation_prompt"] != json!(false) {
        prompt += "<|assistant|>";
    }
    let tokens: Vec<u32> = prompt.chars().map(u32::from).collect();
    let texts = (asked["return_token_strs"] == json!(true))
        .then(|| prompt.chars().map(String::from).collect::<Vec<_>>());
    inner.tokenised.fetch_add(1, Ordering::SeqCst);
    axum::Json(json!({"count": tokens.len(), "tokens": tokens, "token_strs": texts, "max_model_len": 2048}))
        .into_response()
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Done,
    Half,
    Break,
}

fn piece(n: usize) -> Bytes {
    Bytes::from(format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{n}\"}}}}]}}\n\n"))
}

/// A stream of pieces. A held one sends each when a permit is there, and ends when told to.
fn pieces(open: Open, count: usize, held: bool, end: End) -> Response {
    let stream = futures::stream::unfold((0, open), move |(n, open)| async move {
        let whole = if held { open.0.ended.load(Ordering::SeqCst) } else { n == count };
        if held && !whole {
            open.0.pieces.acquire().await.unwrap().forget();
        }
        let ended = if held { open.0.ended.load(Ordering::SeqCst) } else { n >= count };
        let item = match n {
            usize::MAX => return None,
            n if !ended => return Some((Ok(piece(n)), (n + 1, open))),
            n => match end {
                End::Done if n == count && open.0.usage.lock().unwrap().is_some() => {
                    let last = json!({"choices": [], "usage": usage(&open.0)});
                    return Some((Ok(Bytes::from(format!("data: {last}\n\n"))), (n + 1, open)));
                }
                End::Done => Ok(Bytes::from_static(b"data: [DONE]\n\n")),
                End::Half if n == count => {
                    return Some((Ok(Bytes::from_static(b"data: {\"choices\":[{\"ind")), (n + 1, open)));
                }
                End::Half | End::Break => Err(std::io::Error::other("killed")),
            },
        };
        Some((item, (usize::MAX, open)))
    });
    sse(stream)
}

fn flood(open: Open) -> Response {
    let chunk = Bytes::from(format!("data: {}\n\n", "x".repeat(16 * 1024)));
    let stream = futures::stream::unfold(open, move |open| {
        let chunk = chunk.clone();
        async move {
            open.0.sent.fetch_add(chunk.len() as u64, Ordering::SeqCst);
            Some((Ok(chunk), open))
        }
    });
    sse(stream)
}

fn sse(stream: impl futures::Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static) -> Response {
    // Each piece leaves by itself, as a real engine's do.
    let body = Body::from_stream(stream.then(|item| async {
        tokio::task::yield_now().await;
        item
    }));
    (
        [
            ("content-type", "text/event-stream; charset=utf-8"),
            ("server", "mock"),
            ("x-strata-decision", "forged"),
        ],
        body,
    )
        .into_response()
}
