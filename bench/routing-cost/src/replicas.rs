//! Engines that compute nothing: they read a request whole and answer at once, or stream an answer with
//! a pause before each chunk. Several of them run in one process, each on a thread of its own.
//!
//! They answer what every router in `run.py` asks of an engine before it sends requests there.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::{Instant, Sleep};

use crate::prompt::{self, MODEL};

/// Chunks of a streamed answer.
pub const CHUNKS: usize = 33;

/// How a streamed answer comes.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time before the first chunk.
    pub first: Duration,
    /// Time before each of the others.
    pub think: Duration,
}

/// What a process of replicas has seen.
#[derive(Debug, Default)]
pub struct Seen {
    answered: AtomicU64,
    running: AtomicU64,
    /// Requests that broke off, or whose bodies were not what the load sent.
    broken: AtomicU64,
    /// Streams that the router left before their ends.
    left: AtomicU64,
}

impl Seen {
    /// Requests that were answered, those that were broken, and streams that nobody read to the end.
    pub fn counts(&self) -> [u64; 3] {
        [&self.answered, &self.broken, &self.left].map(|count| count.load(Ordering::Relaxed))
    }
}

/// Starts one replica on each of these ports of the loopback interface, 0 for any that is free. They
/// run until the process ends. Returns where they listen.
pub fn start(ports: &[u16], pace: Pace, seen: &Arc<Seen>) -> anyhow::Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for port in ports {
        let listener = StdListener::bind(("127.0.0.1", *port))
            .with_context(|| format!("cannot listen on port {port}"))?;
        listener.set_nonblocking(true)?;
        addresses.push(listener.local_addr()?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let seen = Arc::clone(seen);
        std::thread::Builder::new().name("replica".to_owned()).spawn(move || {
            runtime.block_on(async move {
                match TcpListener::from_std(listener) {
                    Ok(listener) => serve(listener, pace, seen).await,
                    Err(error) => eprintln!("a replica could not begin: {error}"),
                }
            });
        })?;
    }
    Ok(addresses)
}

async fn serve(listener: TcpListener, pace: Pace, seen: Arc<Seen>) {
    let http = hyper::server::conn::http1::Builder::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("a replica could not take a connection: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let seen = Arc::clone(&seen);
        let service = hyper::service::service_fn(move |request| {
            let seen = Arc::clone(&seen);
            async move { Ok::<_, Infallible>(answer(request, pace, &seen).await) }
        });
        tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
    }
}

type Answer = Response<Pin<Box<dyn http_body::Body<Data = Bytes, Error = Infallible> + Send>>>;

async fn answer(request: Request<Incoming>, pace: Pace, seen: &Arc<Seen>) -> Answer {
    let path = request.uri().path();
    match (request.method(), path) {
        (&Method::POST, "/v1/chat/completions" | "/v1/completions") => complete(request, pace, seen).await,
        (&Method::GET, "/metrics") => text(StatusCode::OK, "text/plain; version=0.0.4", metrics(seen)),
        (&Method::GET, "/seen") => {
            let [answered, broken, left] = seen.counts();
            let running = seen.running.load(Ordering::Relaxed);
            json(
                &serde_json::json!({"answered": answered, "broken": broken, "left": left, "running": running}),
            )
        }
        _ => about(path),
    }
}

/// What routers ask before they send anything.
fn about(path: &str) -> Answer {
    match path {
        // vLLM's and SGLang's ways to ask whether it is there.
        "/health" | "/health_generate" | "/ready" | "/ping" | "/" => {
            text(StatusCode::OK, "text/plain", String::new())
        }
        "/v1/models" => json(&serde_json::json!({"object": "list", "data": [
            {"id": MODEL, "object": "model", "created": 0, "owned_by": "strata", "root": MODEL, "max_model_len": 1 << 20},
        ]})),
        "/version" => json(&serde_json::json!({"version": "0.32.0"})),
        // SGLang's ways to ask what it is.
        "/get_server_info" | "/server_info" | "/get_model_info" | "/model_info" => json(&serde_json::json!({
            "model_path": MODEL, "tokenizer_path": MODEL, "served_model_name": MODEL, "is_generation": true,
            "version": "0.5.0", "dp_size": 1, "tp_size": 1, "max_total_num_tokens": 1 << 24,
        })),
        "/get_load" | "/v1/loads" => {
            json(&serde_json::json!([{"dp_rank": 0, "num_reqs": 0, "num_waiting_reqs": 0, "num_tokens": 0}]))
        }
        _ => text(StatusCode::NOT_FOUND, "text/plain", "no such path".to_owned()),
    }
}

async fn complete(request: Request<Incoming>, pace: Pace, seen: &Arc<Seen>) -> Answer {
    seen.running.fetch_add(1, Ordering::Relaxed);
    let running = Running { seen: Arc::clone(seen), done: false };
    let Ok(body) = request.into_body().collect().await.map(http_body_util::Collected::to_bytes) else {
        return broken(seen, "the body broke off");
    };
    let Some(number) = prompt::number_of(&body) else {
        return broken(seen, "the body bears no number: it is not what the load sent");
    };
    let number = String::from_utf8_lossy(number);
    // Routers that write the body anew write it without spaces too, or with one.
    let streams = [&b"\"stream\":true"[..], b"\"stream\": true"]
        .into_iter()
        .any(|member| memchr::memmem::find(&body, member).is_some());
    if streams {
        let answer = Answered { running, due: None, chunks: chunks(&number), pace };
        return response(StatusCode::OK, "text/event-stream", Box::pin(answer));
    }
    let mut running = running;
    running.done = true;
    let body = format!(
        "{{\"id\":\"chatcmpl-0\",\"object\":\"chat.completion\",\"created\":0,\"model\":\"{MODEL}\",\"choices\":[{{\"index\":0,\
         \"message\":{{\"role\":\"assistant\",\"content\":\"{number}\"}},\"logprobs\":null,\"finish_reason\":\"stop\"}}],\
         \"usage\":{{\"prompt_tokens\":8,\"completion_tokens\":32,\"total_tokens\":40}}}}"
    );
    text(StatusCode::OK, "application/json", body)
}

fn broken(seen: &Seen, why: &str) -> Answer {
    seen.broken.fetch_add(1, Ordering::Relaxed);
    text(StatusCode::BAD_REQUEST, "text/plain", why.to_owned())
}

/// A request under way.
struct Running {
    seen: Arc<Seen>,
    done: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.seen.running.fetch_sub(1, Ordering::Relaxed);
        let count = if self.done { &self.seen.answered } else { &self.seen.left };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// The events of a stream, each a chunk; the last bears what ends a stream too.
fn chunks(number: &str) -> VecDeque<Bytes> {
    let event = |delta: &str, finish: &str| {
        format!(
            "data: {{\"id\":\"chatcmpl-0\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":\"{MODEL}\",\
             \"choices\":[{{\"index\":0,\"delta\":{delta},\"finish_reason\":{finish}}}]}}\n\n"
        )
    };
    let delta = |at: usize| Bytes::from(event(&format!("{{\"content\":\"{number}{at:02} \"}}"), "null"));
    let end = Bytes::from(event("{}", "\"stop\"") + "data: [DONE]\n\n");
    (0..CHUNKS - 1).map(delta).chain([end]).collect()
}

/// A streamed answer.
struct Answered {
    running: Running,
    due: Option<Pin<Box<Sleep>>>,
    chunks: VecDeque<Bytes>,
    pace: Pace,
}

impl http_body::Body for Answered {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.chunks.is_empty() {
            self.running.done = true;
            return Poll::Ready(None);
        }
        let Pace { first, think } = self.pace;
        let due = self.due.get_or_insert_with(|| Box::pin(tokio::time::sleep(first)));
        std::task::ready!(due.as_mut().poll(context));
        due.as_mut().reset(Instant::now() + think);
        Poll::Ready(self.chunks.pop_front().map(|chunk| Ok(Frame::data(chunk))))
    }
}

/// The gauges and counters that routers read, by vLLM's names.
fn metrics(seen: &Seen) -> String {
    let (running, answered) = (seen.running.load(Ordering::Relaxed), seen.answered.load(Ordering::Relaxed));
    let label = format!("{{model_name=\"{MODEL}\"}}");
    let values = [
        ("gauge", "vllm:num_requests_running", running),
        ("gauge", "vllm:num_requests_waiting", 0),
        ("gauge", "vllm:kv_cache_usage_perc", 0),
        ("counter", "vllm:prompt_tokens_total", answered * 8),
        ("counter", "vllm:generation_tokens_total", answered * 32),
    ];
    let lines = values.map(|(kind, name, value)| format!("# TYPE {name} {kind}\n{name}{label} {value}\n"));
    lines.concat()
        + "# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"40000\"} 1\n"
}

fn json(value: &serde_json::Value) -> Answer {
    text(StatusCode::OK, "application/json", value.to_string())
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Answer {
    response(status, kind, Box::pin(Full::new(Bytes::from(body))))
}

fn response(
    status: StatusCode,
    kind: &'static str,
    body: Pin<Box<dyn http_body::Body<Data = Bytes, Error = Infallible> + Send>>,
) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
