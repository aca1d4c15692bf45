//! A request on its way to a replica: placed, sent, and sent elsewhere if the replica fails it before its
//! first byte. A long prompt may first go to a replica that computes it alone ([`crate::prefill`]).

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, response};
use strata_hop::{Body, Fault, SendError, forward};
use strata_wire::rope::Rope;
use strata_wire::{ErrorKind, headers};
use tokio::time::Instant;

use crate::answers::Lesson;
use crate::call::{Call, read};
use crate::choose::{Tried, choose};
use crate::class::is_ours;
use crate::go_on::go_on;
use crate::prediction::{Prediction, Tail};
use crate::prefill::Prefill;
use crate::refusal::{past_deadline, unknown_model};
use crate::registry::Pool;
use crate::replica::{Lease, Verdict};
use crate::scheduler::{Scheduler, unix_millis};
use crate::stream::{self, Chunks, Guard, Passage};
use crate::traces::Trace;
use crate::vllm::{Note, Sent};

/// Why a request goes elsewhere after a 503.
const REFUSED: &str = "refused";
/// Largest refusal of a replica that is kept while the request is tried elsewhere.
const MAX_REFUSAL: usize = 64 * 1024;

/// A request's entry in the books.
pub(crate) struct Running {
    scheduler: Scheduler,
    pool: Arc<Pool>,
    since: Instant,
    pub(crate) trace: Trace,
}

impl Running {
    pub(crate) fn begin(scheduler: &Scheduler, pool: Arc<Pool>, trace: Trace) -> Self {
        scheduler.metrics.received(&pool.name);
        scheduler.budget().deposit();
        pool.asked.begin();
        Self { scheduler: scheduler.clone(), pool, since: Instant::now(), trace }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.pool.asked.end(self.scheduler.now());
        self.scheduler.metrics.ended(&self.pool.name, self.since.elapsed());
    }
}

/// Handles one request to one of [`crate::call::ROUTES`].
pub async fn handle(State(scheduler): State<Scheduler>, request: Request) -> Response {
    let arrived = Instant::now();
    let (tracer, path, headers) = (scheduler.tracer(), request.uri().path(), request.headers());
    let mut trace = Trace::begin(tracer, path, headers, arrived.into_std());
    let call = match read(&scheduler, request, arrived).await {
        Ok(call) => call,
        Err(fault) => {
            let response = fault.into_response();
            trace.replied(response.status());
            return response;
        }
    };
    trace.read(&call);
    let mut running = Running::begin(&scheduler, call.pool.clone(), trace);
    let model = call.model.clone();
    let served = serve(&scheduler, &call, &mut running).await;
    let response = match served {
        Ok(Served::Begun(begun, lease)) => {
            running.trace.answered(begun.head.status, &lease);
            respond(call, begun, *lease, running)
        }
        Ok(Served::Refused(response)) => {
            running.trace.replied(response.status());
            *response
        }
        Err(fault) => {
            let response = fault.into_response();
            running.trace.replied(response.status());
            response
        }
    };
    if response.status().as_u16() >= 400 {
        scheduler.metrics.failed(&model, response.status().as_u16());
    }
    response
}

/// What the replicas made of a request.
enum Served {
    /// The answer of this lease's has begun.
    Begun(Begun, Box<Lease>),
    /// None took it, and this is what the last one said.
    Refused(Box<Response>),
}

/// A response of which the first bytes are here.
pub(crate) struct Begun {
    pub(crate) head: response::Parts,
    pub(crate) first: Option<Bytes>,
    pub(crate) rest: Chunks,
}

/// Why a replica gave no first byte.
pub(crate) enum Failure {
    /// It may be sent elsewhere: nothing of an answer has been seen.
    Elsewhere { reason: &'static str, detail: String, answer: Box<Response> },
    /// It is final.
    Final(Fault),
    /// It took so long that it says something of the replica. It is final.
    Late(Fault),
}

/// Whether an answer of this status is a failure of the replica: its own error, and neither its refusal (503)
/// nor what the client has asked.
pub(crate) fn is_failure(status: StatusCode) -> bool {
    let refuses = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::NOT_IMPLEMENTED].contains(&status);
    status.is_server_error() && !refuses
}

/// A request failed at its replica, which gets no more for a while when that is so again and again.
pub(crate) fn failed(scheduler: &Scheduler, lease: &Lease, why: &str) {
    if lease.says(Verdict::Failed(scheduler.chance()), scheduler.now()) {
        scheduler.metrics.breaker_opened();
        tracing::warn!(replica = lease.replica.name(), why, "replica is passed over: its answers fail");
    }
}

async fn serve(scheduler: &Scheduler, call: &Call, running: &mut Running) -> Result<Served, Fault> {
    let mut tried = Tried::default();
    let mut prefill = Prefill::new(call);
    loop {
        // Looked up anew each time: the model may have gone while the request waited.
        let pool = scheduler.registry.pool(&call.model).ok_or_else(|| unknown_model(&call.model))?;
        let began = Instant::now();
        let chosen = choose(scheduler, &pool, &call.wanted, &tried).await;
        let mut lease = chosen.inspect_err(|_| running.trace.not_placed(began.into_std()))?;
        running.trace.placed(&lease, began.into_std());
        note(scheduler, (&call.id, &call.model), &mut lease, began);
        let handed = prefill.before(scheduler, &pool, &mut lease, &mut running.trace).await;
        let (body, top) = handed.as_ref().map_or((&call.body, &call.top), |(body, top)| (body, top));
        let body = call.wanted.class.told(&call.path, body, top, &lease.replica);
        running.trace.attempt(&lease);
        match attempt(scheduler, call, &body, &lease, &running.trace).await {
            Ok(begun) if prefill.is_cause(begun.head.status) && may_retry(scheduler) => {
                scheduler.metrics.retried("transfer");
                running.trace.attempt_failed("transfer");
                tracing::info!(request = ?call.id, replica = lease.replica.name(), "a prompt that was computed elsewhere is computed anew");
                prefill.give_up("transfer");
            }
            Ok(begun) => {
                let status = begun.head.status;
                lease.begun(status.is_success().then(|| scheduler.now()));
                if is_failure(status) {
                    failed(scheduler, &lease, "it answered with an error");
                } else if status.is_success() {
                    if is_events(&begun.head.headers) {
                        lease.first_token(scheduler.now());
                    }
                    lease.says(Verdict::Worked, scheduler.now());
                    told(scheduler, call, &lease);
                }
                return Ok(Served::Begun(begun, Box::new(lease)));
            }
            Err(Failure::Final(fault)) => return Err(fault),
            Err(Failure::Late(fault)) => {
                failed(scheduler, &lease, "it did not answer in time");
                return Err(fault);
            }
            Err(Failure::Elsewhere { reason, detail, answer }) => {
                if reason != REFUSED {
                    failed(scheduler, &lease, &detail);
                }
                let name = lease.replica.name();
                if lease.replica.failed(&detail, lease.epoch) {
                    tracing::warn!(replica = name, why = %detail, "replica is not ready");
                }
                running.trace.attempt_failed(reason);
                tried.push(&lease);
                let most = pool.replicas.load().len().max(2);
                if tried.times() >= most || !may_retry(scheduler) {
                    return Ok(Served::Refused(answer));
                }
                prefill.give_up("retry");
                scheduler.metrics.retried(reason);
                tracing::info!(request = ?call.id, failed = name, reason, "request goes to another replica");
            }
        }
    }
}

/// Keeps what a choice was made from, for those who ask.
pub(crate) fn note(scheduler: &Scheduler, call: (&HeaderValue, &str), lease: &mut Lease, began: Instant) {
    if let Some(table) = lease.table.take() {
        let (id, model) = call;
        let request = id.to_str().unwrap_or_default();
        let (now, held) = (unix_millis(), began.elapsed());
        scheduler.journal.note(now, (request, model), held, &lease.decision, table);
    }
}

/// Tells the one who follows the replica's KV events which prompt it has.
fn told(scheduler: &Scheduler, call: &Call, lease: &Lease) {
    if lease.replica.notes().is_none() || call.wanted.prefix.blocks.is_empty() {
        return;
    }
    let (path, model) = (call.path.clone(), call.model.clone());
    let sent = Sent { path, model, body: call.body.clone(), chain: call.wanted.prefix.blocks.clone() };
    for _ in 0..lease.replica.note(Note::Sent(sent)) {
        scheduler.metrics.tokenised("dropped");
    }
}

/// Whether the budget has a retry left; it is taken.
pub(crate) fn may_retry(scheduler: &Scheduler) -> bool {
    scheduler.budget().withdraw(scheduler.now())
}

/// Sends a request to the replica of this lease, and waits for the first bytes of its answer, as long as
/// the replica does not freeze meanwhile.
pub(crate) async fn attempt(
    scheduler: &Scheduler,
    call: &Call,
    body: &Rope,
    lease: &Lease,
    trace: &Trace,
) -> Result<Begun, Failure> {
    tokio::select! {
        biased;
        begun = begin(scheduler, call, body, lease, trace) => begun,
        () = lease.replica.freezes() => {
            let message = "it says nothing any more, of its load either".to_owned();
            let fault = SendError::Broken { to: lease.replica.name().to_owned(), message };
            let (detail, answer) = (fault.to_string(), Box::new(fault.fault("the replica").into_response()));
            Err(Failure::Elsewhere { reason: "frozen", detail, answer })
        }
    }
}

/// A stream's head comes long before its prompt is done, so the head alone does not count.
async fn begin(
    scheduler: &Scheduler,
    call: &Call,
    body: &Rope,
    lease: &Lease,
    trace: &Trace,
) -> Result<Begun, Failure> {
    let began = Instant::now();
    let left = call.wanted.deadline.saturating_duration_since(began);
    if left.is_zero() {
        return Err(Failure::Final(past_deadline()));
    }
    let limit = scheduler.options.first_byte_timeout.min(left);
    let mut request = call.request(scheduler, &lease.replica, body, left).map_err(Failure::Final)?;
    trace.tell(request.headers_mut());
    // A time-out of its own says something of the replica, and the end of the request's time does not.
    let not_sent = |error: &SendError| match not_sent(error) {
        Failure::Final(fault) if limit < left => Failure::Late(fault),
        failure => failure,
    };
    let response = scheduler.upstream.ask(request, limit).await.map_err(|error| not_sent(&error))?;
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
        reason: REFUSED,
        detail: "it answered a request with 503".to_owned(),
        answer: Box::new(answer),
    }
}

pub(crate) fn is_events(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream")
}

fn said_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What a request holds until the last of its answer has passed.
struct Answering {
    lease: Lease,
    running: Running,
    /// What was thought of its replica's cache, where that was asked.
    prediction: Option<Prediction>,
    /// The request, and where it has failed, where it may be gone on with.
    again: Option<(Call, Tried)>,
    /// Whether that came to nothing.
    was_tried: bool,
}

impl Answering {
    fn new(call: Call, status: StatusCode, lease: Lease, running: Running) -> Self {
        let decision = &lease.decision;
        // What was computed elsewhere was not to be cached here.
        let is_asked = status.is_success() && decision.blocks > 0 && decision.prompt.is_none();
        let prediction = Prediction { tokens: decision.cached.tokens, bytes: call.wanted.prefix.bytes };
        let may_go_on = running.scheduler.options.continuation
            && status.is_success()
            && decision.prompt.is_none()
            && is_ours(&lease.replica);
        let again = may_go_on.then(|| (call, Tried::default()));
        Self { prediction: is_asked.then_some(prediction), lease, running, again, was_tried: false }
    }
}

impl Guard for Answering {
    fn keeps(&self) -> bool {
        self.again.is_some()
    }

    async fn go_on(&mut self, events: &[Bytes]) -> Option<Chunks> {
        let scheduler = self.running.scheduler.clone();
        let (call, tried) = self.again.as_mut()?;
        failed(&scheduler, &self.lease, "its answer broke off");
        tried.push(&self.lease);
        self.running.trace.attempt_failed("broken");
        let (lease, chunks) = match go_on(&scheduler, call, tried, events, &mut self.running.trace).await {
            Ok(found) => found,
            Err(why) => {
                scheduler.metrics.continued(&self.running.pool.name, why);
                (self.again, self.was_tried) = (None, true);
                return None;
            }
        };
        scheduler.metrics.continued(&self.running.pool.name, "continued");
        // What the second had cached says nothing of what was thought of the first.
        self.prediction = None;
        self.lease = lease;
        Some(chunks)
    }

    fn over(&mut self, tail: &Tail) {
        let usage = tail.usage();
        if let Some(prediction) = self.prediction {
            self.running.scheduler.metrics.predicted(&self.running.pool.name, prediction, usage.as_ref());
        }
        self.running.trace.over(usage.as_ref());
    }

    fn broke(&mut self, by_replica: bool) {
        let scheduler = &self.running.scheduler;
        // Where it was to be gone on with, its replica has been told of already.
        let was_tried = self.was_tried;
        scheduler.metrics.broke(&self.running.pool.name);
        if by_replica && !was_tried {
            failed(scheduler, &self.lease, "its answer broke off");
        }
        self.running.trace.broke();
    }
}

fn respond(call: Call, begun: Begun, lease: Lease, running: Running) -> Response {
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
    let events = is_events(&head.headers);
    let taught = head.status.is_success();
    let mut lesson =
        taught.then(|| Lesson::of(&running.pool, &call.path, &call.wanted.wishes, events)).flatten();
    if let (Some(lesson), Some(first)) = (&mut lesson, &first) {
        lesson.see(first);
    }
    let deadline = call.wanted.deadline;
    let mut guard = Answering::new(call, head.status, lease, running);
    let body = match first {
        // It ends here, and passes as one piece of a length that is known.
        Some(whole) if said_length(&head.headers) == Some(whole.len()) => {
            if let Some(lesson) = lesson {
                lesson.learn();
            }
            let mut tail = Tail::default();
            tail.push(&whole);
            guard.over(&tail);
            Body::from(whole)
        }
        first => {
            let rest = match lesson {
                Some(lesson) => lesson.attend(rest),
                None => rest,
            };
            stream::body(Passage { first, rest, events, deadline, guard })
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = headers;
    response
}
