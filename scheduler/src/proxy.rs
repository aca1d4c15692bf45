//! A request on its way to a replica: read, checked, patched, placed, sent, and sent elsewhere if the
//! replica fails it before its first byte.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, response};
use strata_hop::{Body, Fault, SendError, forward, spool};
use strata_wire::hops::Hop;
use strata_wire::patch::{self, Patch};
use strata_wire::prefix;
use strata_wire::toplevel::TopLevel;
use strata_wire::{ErrorKind, defaults, headers};
use tokio::time::Instant;

use crate::choose::{Tried, Wanted, choose, past_deadline, unknown_model};
use crate::registry::Pool;
use crate::replica::Lease;
use crate::scheduler::Scheduler;
use crate::stream::{self, Chunks, Passage};

/// Largest refusal of a replica that is kept while the request is tried elsewhere.
const MAX_REFUSAL: usize = 64 * 1024;

/// The engine's routes that are within reach, each with whether its prompt enters the prefix cache.
/// All others (sleep, pause, cache reset, abort, adapters) are not.
pub const ROUTES: &[(&str, bool)] = &[
    ("/v1/chat/completions", true),
    ("/v1/completions", true),
    ("/v1/embeddings", true),
    ("/tokenize", false),
    ("/detokenize", false),
];

/// A request as it goes to a replica, whichever that is.
struct Call {
    path: String,
    model: String,
    pool: Arc<Pool>,
    id: HeaderValue,
    headers: HeaderMap,
    has_deadline: bool,
    body: Bytes,
    wanted: Wanted,
}

/// A request's entry in the books.
struct Running {
    scheduler: Scheduler,
    pool: Arc<Pool>,
    since: Instant,
}

impl Running {
    fn begin(scheduler: &Scheduler, pool: Arc<Pool>) -> Self {
        scheduler.metrics.received(&pool.name);
        scheduler.budget().deposit();
        pool.asked.begin();
        Self { scheduler: scheduler.clone(), pool, since: Instant::now() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.pool.asked.end(self.scheduler.now());
        self.scheduler.metrics.ended(&self.pool.name, self.since.elapsed());
    }
}

/// Handles one request to one of [`ROUTES`].
pub async fn handle(State(scheduler): State<Scheduler>, request: Request) -> Response {
    let arrived = Instant::now();
    let call = match read(&scheduler, request, arrived).await {
        Ok(call) => call,
        Err(fault) => return fault.into_response(),
    };
    let running = Running::begin(&scheduler, call.pool.clone());
    let model = call.model.clone();
    let response = serve(&scheduler, call, running).await.unwrap_or_else(IntoResponse::into_response);
    if response.status().as_u16() >= 400 {
        scheduler.metrics.failed(&model, response.status().as_u16());
    }
    response
}

/// Reads a request and says what to send and where it may go.
async fn read(scheduler: &Scheduler, request: Request, arrived: Instant) -> Result<Call, Fault> {
    let (parts, body) = request.into_parts();
    let received = &parts.headers;
    let given = text(received, headers::DEADLINE_MS)?
        .map(|ms| ms.parse::<u64>().map_err(|_| bad_header(headers::DEADLINE_MS, "a number of milliseconds")))
        .transpose()?
        .map(Duration::from_millis);
    let deadline = arrived + given.unwrap_or(defaults::STREAM_TIMEOUT).min(defaults::STREAM_TIMEOUT);
    let scope = text(received, headers::CACHE_SCOPE)?.unwrap_or_default();

    let body = tokio::time::timeout_at(deadline, spool::read(body, defaults::MAX_BODY_BYTES))
        .await
        .map_err(|_| past_deadline())??;
    let refused = |body| Fault::from_body(ErrorKind::InvalidRequest, body);
    let top = TopLevel::scan(&body).map_err(|error| refused(error.to_body()))?;
    let model = top.text(&body, "model").map_err(refused)?.ok_or_else(|| {
        Fault::invalid_param(
            "model",
            "the body names no `model`; GET /v1/models lists those that can be asked",
        )
    })?;
    let Some(pool) = scheduler.registry.pool(&model) else {
        return Err(if scheduler.is_learning() {
            Fault::new(
                ErrorKind::Overloaded,
                "the scheduler has just started and does not know yet all models that are served; try again shortly",
            )
            .retry_after(Duration::from_secs(1))
        } else {
            unknown_model(&model)
        });
    };

    let path = parts.uri.path().to_owned();
    let cached = ROUTES.iter().any(|(route, cached)| *route == path && *cached);
    let prefix = if cached { prefix::of_body(scope, &body) } else { None }.unwrap_or_default();
    let mut patches = vec![Patch::Remove("kv_transfer_params"), Patch::Remove("priority")];
    patches.push(if cached && !scope.is_empty() {
        Patch::Set("cache_salt", serde_json::Value::from(scope).to_string())
    } else {
        Patch::Remove("cache_salt")
    });
    debug_assert!(patches.iter().all(|p| p.is_allowed(&Hop::SchedulerToEngine.patches())));
    let patched = patch::apply(&body, &top, &patches).map_err(|error| refused(error.to_body()))?;
    let bytes = if prefix.bytes > 0 { prefix.bytes } else { body.len() };

    Ok(Call {
        id: minted_id(scheduler, received),
        headers: forward::request_headers(received, Hop::SchedulerToEngine),
        has_deadline: given.is_some(),
        wanted: Wanted { prefix, bytes, body_bytes: patched.len(), deadline },
        body: patched,
        path,
        model,
        pool,
    })
}

/// A header's text; an error when it is none, for a header of the layer above is never ignored.
fn text<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, Fault> {
    headers.get(name).map(|value| value.to_str().map_err(|_| bad_header(name, "plain text"))).transpose()
}

fn bad_header(name: &str, wanted: &str) -> Fault {
    Fault::invalid(format!("the header {name} must be {wanted}"))
}

/// The gateway's id for this call, where the caller has proven to be the layer above; else a new one.
fn minted_id(scheduler: &Scheduler, received: &HeaderMap) -> HeaderValue {
    let options = &scheduler.options;
    let proven = options.hop_token.is_some() || options.mtls.is_some();
    let given = proven.then(|| received.get(headers::MINTED_ID)).flatten();
    given.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&uuid::Uuid::now_v7().to_string())
            .unwrap_or_else(|_| HeaderValue::from_static("unknown"))
    })
}

/// A response of which the first bytes are here.
struct Begun {
    head: response::Parts,
    first: Option<Bytes>,
    rest: Chunks,
}

/// Why a replica gave no first byte.
enum Failure {
    /// It may be sent elsewhere: nothing of an answer has been seen.
    Elsewhere { reason: &'static str, detail: String, answer: Box<Response> },
    /// It is final.
    Final(Fault),
}

async fn serve(scheduler: &Scheduler, call: Call, running: Running) -> Result<Response, Fault> {
    let mut tried = Tried::default();
    loop {
        // Looked up anew each time: the model may have gone while the request waited.
        let pool = scheduler.registry.pool(&call.model).ok_or_else(|| unknown_model(&call.model))?;
        let mut lease = choose(scheduler, &pool, &call.wanted, &tried).await?;
        match attempt(scheduler, &call, &lease).await {
            Ok(begun) => {
                lease.begun(begun.head.status.is_success());
                return Ok(respond(&call, begun, lease, running));
            }
            Err(Failure::Final(fault)) => return Err(fault),
            Err(Failure::Elsewhere { reason, detail, answer }) => {
                let name = lease.replica.name();
                if lease.replica.failed(&detail, lease.epoch) {
                    tracing::warn!(replica = name, why = %detail, "replica is not ready");
                }
                tried.push(&lease);
                let most = pool.replicas.load().len().max(2);
                if tried.times() >= most || !scheduler.budget().withdraw(scheduler.now()) {
                    return Ok(*answer);
                }
                scheduler.metrics.retried(reason);
                tracing::info!(request = ?call.id, failed = name, reason, "request goes to another replica");
            }
        }
    }
}

/// Sends a request to the replica of this lease, and waits for the first bytes of its answer: a
/// stream's head comes long before its prompt is done, so the head alone does not count.
async fn attempt(scheduler: &Scheduler, call: &Call, lease: &Lease) -> Result<Begun, Failure> {
    let began = Instant::now();
    let left = call.wanted.deadline.saturating_duration_since(began);
    if left.is_zero() {
        return Err(Failure::Final(past_deadline()));
    }
    let limit = scheduler.options.first_byte_timeout.min(left);
    let request = call.request(scheduler, lease, left)?;
    let response = scheduler.upstream.send(request, limit).await.map_err(|error| not_sent(&error))?;
    let (head, body) = response.into_parts();
    // Fused: of an answer without a body the end is seen here, and looked for again later.
    let mut rest: Chunks = Box::pin(forward::chunks(body, scheduler.options.idle_timeout).fuse());
    if head.status == StatusCode::SERVICE_UNAVAILABLE {
        return Err(refused(&head, rest).await);
    }
    if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&head.status) {
        // Between these two there is no key of the client's that could be wrong.
        tracing::error!(
            replica = lease.replica.name(),
            status = head.status.as_u16(),
            "the replica takes this scheduler for somebody else; give both the same hop token, or certificates of one authority"
        );
        let fault =
            Fault::new(ErrorKind::BadGateway, "the replica refuses this scheduler; see the scheduler's log");
        return Err(Failure::Final(fault));
    }
    let late = || SendError::Timeout { to: lease.replica.name().to_owned(), limit };
    let first = match tokio::time::timeout_at(began + limit, rest.next()).await {
        Err(_) => return Err(not_sent(&late())),
        Ok(Some(Err(error))) if error.kind() == std::io::ErrorKind::TimedOut => {
            return Err(not_sent(&late()));
        }
        Ok(Some(Err(error))) => return Err(broken(lease, error.to_string())),
        // A stream that ends before it begins is broken, whatever its framing says.
        Ok(None) if is_events(&head.headers) => return Err(broken(lease, "its stream was empty".to_owned())),
        Ok(None) => None,
        Ok(Some(Ok(first))) => Some(first),
    };
    Ok(Begun { head, first, rest })
}

impl Call {
    fn request(
        &self,
        scheduler: &Scheduler,
        lease: &Lease,
        left: Duration,
    ) -> Result<http::Request<Body>, Failure> {
        let unsendable = |error: http::Error| {
            tracing::error!(%error, replica = lease.replica.name(), "could not make a request");
            Failure::Final(Fault::new(ErrorKind::Internal, "the request could not be passed on"))
        };
        let mut request = http::Request::builder()
            .method(Method::POST)
            .uri(format!("{}{}", lease.replica.url(), self.path))
            .body(Body::from(self.body.clone()))
            .map_err(unsendable)?;
        let headers = request.headers_mut();
        *headers = self.headers.clone();
        headers.insert(headers::MINTED_ID, self.id.clone());
        headers.remove(headers::DEADLINE_MS);
        if self.has_deadline {
            headers.insert(headers::DEADLINE_MS, HeaderValue::from(left.as_millis() as u64));
        }
        if let Some(token) = &scheduler.options.hop_token {
            token.attach(headers);
        }
        Ok(request)
    }
}

fn not_sent(error: &SendError) -> Failure {
    let fault = error.fault("the replica");
    let reason = match error {
        SendError::Timeout { .. } => return Failure::Final(fault),
        SendError::Connect { .. } => "connect",
        SendError::Untrusted { .. } => "untrusted",
        SendError::Broken { .. } => "broken",
    };
    Failure::Elsewhere { reason, detail: error.to_string(), answer: Box::new(fault.into_response()) }
}

fn broken(lease: &Lease, message: String) -> Failure {
    not_sent(&SendError::Broken { to: lease.replica.name().to_owned(), message })
}

/// 503: it drains, or its engine is dead. Its own words are kept for the client, in case no other
/// replica takes the request.
async fn refused(head: &response::Parts, rest: Chunks) -> Failure {
    let (mut rest, mut whole) = (rest, bytes::BytesMut::new());
    while let Some(Ok(chunk)) = rest.next().await {
        if whole.len() + chunk.len() > MAX_REFUSAL {
            break;
        }
        whole.extend_from_slice(&chunk);
    }
    let mut answer = Response::new(Body::from(whole.freeze()));
    *answer.status_mut() = head.status;
    *answer.headers_mut() = forward::response_headers(&head.headers, false);
    answer.headers_mut().entry(header::RETRY_AFTER).or_insert(HeaderValue::from_static("1"));
    Failure::Elsewhere {
        reason: "refused",
        detail: "it answered a request with 503".to_owned(),
        answer: Box::new(answer),
    }
}

fn is_events(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream")
}

fn respond(call: &Call, begun: Begun, lease: Lease, running: Running) -> Response {
    let Begun { head, first, rest } = begun;
    let mut headers = forward::response_headers(&head.headers, false);
    headers.entry(headers::REQUEST_ID).or_insert_with(|| call.id.clone());
    let explained =
        [(headers::DECISION, lease.decision.to_string()), (headers::REPLICA, lease.decision.replica.clone())];
    for (name, value) in explained {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    tracing::debug!(request = ?call.id, decision = %lease.decision, status = head.status.as_u16(), "response begins");
    let body = stream::body(Passage {
        first,
        rest,
        events: is_events(&head.headers),
        deadline: call.wanted.deadline,
        guard: (lease, running),
        broke: |(_, running)| running.scheduler.metrics.broke(&running.pool.name),
    });
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = headers;
    response
}
