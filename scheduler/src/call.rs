//! A request as it goes to a replica, whichever that is: read, checked and patched.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use strata_hop::{Body, Fault, forward, spool};
use strata_wire::hops::Hop;
use strata_wire::patch::{self, Patch};
use strata_wire::prefix::{self, Prefix};
use strata_wire::toplevel::TopLevel;
use strata_wire::{ErrorKind, defaults, headers};
use tokio::time::Instant;

use crate::choose::{Wanted, past_deadline, unknown_model};
use crate::prefill;
use crate::registry::Pool;
use crate::replica::Replica;
use crate::scheduler::Scheduler;

/// The engine's routes that are within reach, each with whether its prompt enters the prefix cache.
/// All others (sleep, pause, cache reset, abort, adapters) are not.
pub const ROUTES: &[(&str, bool)] = &[
    ("/v1/chat/completions", true),
    ("/v1/completions", true),
    ("/v1/embeddings", true),
    ("/tokenize", false),
    ("/detokenize", false),
];

/// A request that was read.
pub(crate) struct Call {
    pub(crate) path: String,
    pub(crate) model: String,
    pub(crate) pool: Arc<Pool>,
    /// The id that the layers know it by.
    pub(crate) id: HeaderValue,
    headers: HeaderMap,
    has_deadline: bool,
    /// As the replica that answers gets it, when it computes the prompt too.
    pub(crate) body: Bytes,
    pub(crate) wanted: Wanted,
    /// Whether one replica may compute its prompt and another answer.
    pub(crate) divisible: bool,
}

/// What a request's headers say of how it is handled.
pub(crate) struct Terms {
    given: Option<Duration>,
    deadline: Instant,
    scope: String,
}

impl Terms {
    /// Reads them, of a request that arrived then.
    pub(crate) fn read(received: &HeaderMap, arrived: Instant) -> Result<Self, Fault> {
        let given = text(received, headers::DEADLINE_MS)?
            .map(|ms| {
                ms.parse::<u64>().map_err(|_| bad_header(headers::DEADLINE_MS, "a number of milliseconds"))
            })
            .transpose()?
            .map(Duration::from_millis);
        let deadline = arrived + given.unwrap_or(defaults::STREAM_TIMEOUT).min(defaults::STREAM_TIMEOUT);
        let scope = text(received, headers::CACHE_SCOPE)?.unwrap_or_default().to_owned();
        Ok(Self { given, deadline, scope })
    }

    /// Whether its prompt may only be shared within a scope.
    pub(crate) fn has_scope(&self) -> bool {
        !self.scope.is_empty()
    }
}

/// Reads a request and says what to send and where it may go.
pub(crate) async fn read(scheduler: &Scheduler, request: Request, arrived: Instant) -> Result<Call, Fault> {
    let (parts, body) = request.into_parts();
    let terms = Terms::read(&parts.headers, arrived)?;
    let body = tokio::time::timeout_at(terms.deadline, spool::read(body, defaults::MAX_BODY_BYTES))
        .await
        .map_err(|_| past_deadline())??;
    understand(scheduler, parts.uri.path(), &parts.headers, &terms, &body)
}

/// The same of a request whose body is here.
pub(crate) fn understand(
    scheduler: &Scheduler,
    path: &str,
    received: &HeaderMap,
    terms: &Terms,
    body: &Bytes,
) -> Result<Call, Fault> {
    let scope = terms.scope.as_str();
    let refused = |body| Fault::from_body(ErrorKind::InvalidRequest, body);
    let top = TopLevel::scan(body).map_err(|error| refused(error.to_body()))?;
    let model = top.text(body, "model").map_err(refused)?.ok_or_else(|| {
        Fault::invalid_param(
            "model",
            "the body names no `model`; GET /v1/models lists those that can be asked",
        )
    })?;
    let pool = pool(scheduler, &model)?;

    let cached = ROUTES.iter().any(|(route, cached)| *route == path && *cached);
    let prefix = if cached { prefix::of_body(scope, body) } else { None }.unwrap_or_default();
    let mut patches = vec![Patch::Remove("kv_transfer_params"), Patch::Remove("priority")];
    patches.push(if cached && !scope.is_empty() {
        Patch::Set("cache_salt", serde_json::Value::from(scope).to_string())
    } else {
        Patch::Remove("cache_salt")
    });
    debug_assert!(patches.iter().all(|p| p.is_allowed(&Hop::SchedulerToEngine.patches())));
    let patched = patch::apply(body, &top, &patches).map_err(|error| refused(error.to_body()))?;
    let bytes = if prefix.bytes > 0 { prefix.bytes } else { body.len() };

    Ok(Call {
        divisible: prefill::is_divisible(path, body, &top),
        id: minted_id(scheduler, received),
        headers: forward::request_headers(received, Hop::SchedulerToEngine),
        has_deadline: terms.given.is_some(),
        wanted: Wanted { prefix, bytes, body_bytes: patched.len(), deadline: terms.deadline, subset: None },
        body: patched,
        path: path.to_owned(),
        model,
        pool,
    })
}

/// A request of which only the headers and the model are known. Its replica is chosen by load alone.
pub(crate) fn unseen(
    scheduler: &Scheduler,
    path: &str,
    received: &HeaderMap,
    terms: &Terms,
    model: &str,
) -> Result<Call, Fault> {
    let length = received.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let bytes = length.unwrap_or(0usize).min(defaults::MAX_BODY_BYTES);
    Ok(Call {
        path: path.to_owned(),
        model: model.to_owned(),
        pool: pool(scheduler, model)?,
        id: minted_id(scheduler, received),
        headers: forward::request_headers(received, Hop::SchedulerToEngine),
        has_deadline: terms.given.is_some(),
        body: Bytes::new(),
        wanted: Wanted {
            prefix: Prefix::default(),
            bytes,
            body_bytes: 0,
            deadline: terms.deadline,
            subset: None,
        },
        divisible: false,
    })
}

/// The model of this name.
fn pool(scheduler: &Scheduler, model: &str) -> Result<Arc<Pool>, Fault> {
    scheduler.registry.pool(model).ok_or_else(|| {
        if scheduler.is_learning() {
            Fault::new(
                ErrorKind::Overloaded,
                "the scheduler does not know yet all models that are served; try again shortly",
            )
            .retry_after(Duration::from_secs(1))
        } else {
            unknown_model(model)
        }
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

impl Call {
    /// The request to one replica, with `body` for its body and `left` until it must have ended.
    pub(crate) fn request(
        &self,
        scheduler: &Scheduler,
        replica: &Replica,
        body: Bytes,
        left: Duration,
    ) -> Result<http::Request<Body>, Fault> {
        let mut request = http::Request::builder()
            .method(Method::POST)
            .uri(format!("{}{}", replica.url(), self.path))
            .body(Body::from(body))
            .map_err(|error| {
                tracing::error!(%error, replica = replica.name(), "could not make a request");
                Fault::new(ErrorKind::Internal, "the request could not be passed on")
            })?;
        *request.headers_mut() = self.headers(scheduler, left);
        Ok(request)
    }

    /// The headers that a replica gets.
    pub(crate) fn headers(&self, scheduler: &Scheduler, left: Duration) -> HeaderMap {
        let mut headers = self.headers.clone();
        headers.insert(headers::MINTED_ID, self.id.clone());
        headers.remove(headers::DEADLINE_MS);
        if self.has_deadline {
            headers.insert(headers::DEADLINE_MS, HeaderValue::from(left.as_millis() as u64));
        }
        if let Some(token) = &scheduler.options.hop_token {
            token.attach(&mut headers);
        }
        headers
    }
}
