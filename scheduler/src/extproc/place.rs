//! A request of a proxy's, placed by the same choice as those that the scheduler passes on itself.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::response::IntoResponse;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;
use strata_hop::{Fault, fault};
use strata_wire::toplevel::TopLevel;
use strata_wire::{ErrorKind, headers};
use tokio::time::Instant;

use super::PREFILLER;
use super::answer::{Chosen, Reply};
use super::exchange::{Asked, Body};
use super::head::Head;
use crate::call::{self, Call, Terms};
use crate::choose::{Tried, choose};
use crate::prefill;
use crate::proxy::{Running, note};
use crate::replica::{Lease, Replica};
use crate::report;
use crate::scheduler::Scheduler;
use crate::subset::{Subset, authority};
use crate::traces::Trace;
use crate::views::next_best;

/// Where a client or a filter before this one names the model, so that the body need not be seen.
const MODEL_NAME: &str = "x-gateway-model-name";

/// A request that the proxy sends to a replica.
pub(crate) struct Placed {
    pub(crate) chosen: Chosen,
    pub(crate) lease: Lease,
    /// That of the replica which computes its prompt, until the response begins.
    pub(crate) prompt: Option<Lease>,
    /// Its entry in the books, as long as it is under way.
    pub(crate) running: Running,
    pub(crate) model: String,
    /// When it must have ended.
    pub(crate) deadline: Instant,
}

/// Finds a replica for a request, or what to answer in its place.
pub(crate) async fn place(
    scheduler: &Scheduler,
    asked: Asked,
    arrived: Instant,
) -> Result<Box<Placed>, Reply> {
    if !asked.head.is_for_engine() {
        return Err(tell(scheduler, &asked.head).await);
    }
    let Head { path, headers, .. } = &asked.head;
    let mut trace = Trace::begin(scheduler.tracer(), path, headers, arrived.into_std());
    let refuse = |trace: &mut Trace, fault: &Fault| {
        trace.replied(StatusCode::from_u16(fault.kind.status()).unwrap_or_default());
        Reply::from(fault)
    };
    let call = match read(scheduler, asked, arrived) {
        Ok(call) => call,
        Err(fault) => return Err(refuse(&mut trace, &fault)),
    };
    trace.read(&call.request);
    let mut running = Running::begin(scheduler, Arc::clone(&call.request.pool), trace);
    let model = call.request.model.clone();
    match find(scheduler, call, &mut running).await {
        Ok(Found { chosen, lease, prompt, deadline }) => {
            Ok(Box::new(Placed { chosen, lease, prompt, running, model, deadline }))
        }
        Err(fault) => {
            scheduler.metrics.failed(&model, fault.kind.status());
            Err(refuse(&mut running.trace, &fault))
        }
    }
}

/// A request, and what becomes of its headers.
struct Read {
    request: Call,
    remove: Vec<String>,
    /// Its body as it came, where that was seen.
    sent: Option<Bytes>,
}

fn read(scheduler: &Scheduler, asked: Asked, arrived: Instant) -> Result<Read, Fault> {
    let Asked { mut head, body } = asked;
    let remove = head.left_behind();
    // What the layers tell each other is believed of a request that shows the run's token. Everybody
    // else's comes from a client, through a proxy that knows nothing of them.
    let proven = scheduler.options.hop_token.as_ref().is_some_and(|token| token.matches(&head.headers));
    if !proven {
        let ours = |name: &&http::HeaderName| name.as_str().starts_with("x-strata-");
        let ours: Vec<http::HeaderName> = head.headers.keys().filter(ours).cloned().collect();
        for name in ours {
            head.headers.remove(name);
        }
    }
    let terms = Terms::read(scheduler, &head.headers, arrived)?;
    let sent = match &body {
        Body::Whole(body) | Body::Perhaps(body) => Some(body.clone()),
        Body::Unseen => None,
    };
    let mut request = match body {
        Body::Perhaps(body) if TopLevel::scan(&body).is_err() => return Err(cut(&body)),
        Body::Whole(body) | Body::Perhaps(body) => {
            call::understand(scheduler, &head.path, &head.headers, terms, &body)?
        }
        Body::Unseen => {
            if terms.has_scope() {
                return Err(Fault::invalid(
                    "the cache scope of this request cannot be kept, because the gateway's ext_proc filter does not send its body; set request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED",
                ));
            }
            let model = model_name(scheduler, &head)?;
            call::unseen(scheduler, &head.path, &head.headers, &terms, &model)?
        }
    };
    request.wanted.subset = head.subset.map(|endpoints| Arc::new(Subset::new(endpoints)));
    Ok(Read { request, remove, sent })
}

/// The model of a request whose body is not seen.
fn model_name(scheduler: &Scheduler, head: &Head) -> Result<String, Fault> {
    if let Some(name) = head.headers.get(MODEL_NAME) {
        let text = name.to_str();
        return text
            .map(str::to_owned)
            .map_err(|_| Fault::invalid(format!("the header {MODEL_NAME} must be plain text")));
    }
    let pools = scheduler.registry.pools();
    match pools.keys().next() {
        Some(only) if pools.len() == 1 => Ok(only.clone()),
        _ => Err(Fault::invalid(format!(
            "which model is asked for cannot be told, because the gateway's ext_proc filter does not send the body before it wants an answer; set request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED, or name the model in the header {MODEL_NAME}"
        ))),
    }
}

fn cut(body: &Bytes) -> Fault {
    let message = format!(
        "the gateway passed on {} bytes of the request's body, and that is not all of it; raise its buffer limit (per_connection_buffer_limit_bytes), or set request_body_mode to FULL_DUPLEX_STREAMED",
        body.len()
    );
    Fault::new(ErrorKind::TooLarge, message)
}

/// Where a request goes.
struct Found {
    chosen: Chosen,
    lease: Lease,
    /// That of the replica which computes its prompt.
    prompt: Option<Lease>,
    deadline: Instant,
}

async fn find(scheduler: &Scheduler, read: Read, running: &mut Running) -> Result<Found, Fault> {
    let Read { request, remove, sent } = read;
    let pool = &request.pool;
    if let Some(subset) = &request.wanted.subset
        && !pool.replicas.load().iter().any(|replica| replica.is_ready() && subset.has(replica))
    {
        return Err(none_in_subset(&pool.name));
    }
    let began = Instant::now();
    let chosen = choose(scheduler, pool, &request.wanted, &Tried::default()).await;
    let mut lease = chosen.inspect_err(|_| running.trace.not_placed(began.into_std()))?;
    running.trace.placed(&lease, began.into_std());
    note(scheduler, (&request.id, &request.model), &mut lease, began);
    let mut endpoint = address(&lease.replica).await?.to_string();
    let asks = scheduler.options.extproc_prefill;
    let mut prompt = asks.then(|| prefill::named(scheduler, &request, pool, &mut lease)).flatten();
    let others = scheduler.options.extproc_endpoints.saturating_sub(1);
    for replica in next_best(scheduler, pool, &request.wanted, &lease, others) {
        // One whose address is not known is none to fall back to.
        if let Ok(address) = address(&replica).await {
            endpoint = format!("{endpoint},{address}");
        }
    }
    let left = request.wanted.deadline.saturating_duration_since(Instant::now());
    let mut set = request.headers(scheduler, left);
    if let Some(by) = &prompt {
        let at = address(&by.replica).await.ok().and_then(|at| HeaderValue::from_str(&at.to_string()).ok());
        if let Some(at) = at {
            set.insert(PREFILLER, at);
        } else {
            lease.burden();
            prompt = None;
        }
    }
    running.trace.attempt(&lease);
    running.trace.tell(&mut set);
    tracing::debug!(request = ?request.id, decision = %lease.decision, %endpoint, "a proxy is told where to send a request");
    let body = sent.map(|sent| {
        let body = request.wanted.class.told(&request.path, &request.body, &request.top, &lease.replica);
        let body = body.joined(0..body.len());
        // The same bytes: a proxy is not sent back what it has.
        if *body == *sent { sent } else { Bytes::from(body.into_owned()) }
    });
    let chosen = Chosen { endpoint, set, remove, body };
    Ok(Found { chosen, lease, prompt, deadline: request.wanted.deadline })
}

/// 503: those that are ready are not among those that the proxy allows.
fn none_in_subset(model: &str) -> Fault {
    Fault::new(
        ErrorKind::Overloaded,
        format!(
            "no ready replica of `{model}` is among the endpoints that the gateway allows; try again shortly"
        ),
    )
    .retry_after(std::time::Duration::from_secs(1))
}

/// Where a replica is, as a proxy can dial it.
async fn address(replica: &Replica) -> Result<SocketAddr, Fault> {
    let authority = authority(replica.url());
    if let Ok(address) = authority.parse() {
        return Ok(address);
    }
    let found = tokio::net::lookup_host(&authority).await.ok().and_then(|mut all| all.next());
    found.ok_or_else(|| {
        tracing::warn!(replica = replica.name(), %authority, "the address of a replica cannot be looked up");
        Fault::new(
            ErrorKind::BadGateway,
            format!("the address of the replica {} is not known", replica.name()),
        )
    })
}

/// The answer to a request that no replica is asked: the scheduler's own, as if it had been asked itself.
async fn tell(scheduler: &Scheduler, head: &Head) -> Reply {
    let of_model = head.path.strip_prefix("/v1/models/").map(str::to_owned);
    let response = match (&head.method, of_model) {
        (&Method::GET, Some(name)) => {
            let model = report::model(scheduler.state(), axum::extract::Path(name)).await;
            model.into_response()
        }
        (&Method::GET, None) if head.path == "/v1/models" => {
            report::models(scheduler.state()).await.into_response()
        }
        (method, _) => {
            let known = call::ROUTES.iter().any(|(path, _)| *path == head.path);
            let mut request = axum::extract::Request::new(axum::body::Body::empty());
            *request.method_mut() = method.clone();
            if let Ok(uri) = head.path.parse() {
                *request.uri_mut() = uri;
            }
            let fault =
                if known { fault::no_such_method(request).await } else { fault::no_such_path(request).await };
            return Reply::from(&fault);
        }
    };
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut headers = parts.headers;
    headers.remove(http::header::CONTENT_LENGTH);
    debug_assert!(headers.keys().all(|name| !headers::is_internal(name.as_str())));
    Reply::from((parts.status.as_u16(), headers, body))
}
