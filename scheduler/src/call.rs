//! A request as it goes to a replica, whichever that is: read, checked and patched.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use strata_hop::{Body, Fault, forward, spool};
use strata_wire::hops::Hop;
use strata_wire::patch::{self, Patch};
use strata_wire::prefix;
use strata_wire::toplevel::TopLevel;
use strata_wire::{ErrorKind, defaults, headers};
use tokio::time::Instant;

use crate::choose::Wanted;
use crate::class::Class;
use crate::prefill;
use crate::refusal::{past_deadline, unknown_model};
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

/// Reads a request and says what to send and where it may go.
pub(crate) async fn read(scheduler: &Scheduler, request: Request, arrived: Instant) -> Result<Call, Fault> {
    let (parts, body) = request.into_parts();
    let received = &parts.headers;
    let given = text(received, headers::DEADLINE_MS)?
        .map(|ms| ms.parse::<u64>().map_err(|_| bad_header(headers::DEADLINE_MS, "a number of milliseconds")))
        .transpose()?
        .map(Duration::from_millis);
    let deadline = arrived + given.unwrap_or(defaults::STREAM_TIMEOUT).min(defaults::STREAM_TIMEOUT);
    let class = Class::of(received)?;
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
        divisible: prefill::is_divisible(&path, &body, &top),
        id: minted_id(scheduler, received),
        headers: forward::request_headers(received, Hop::SchedulerToEngine),
        has_deadline: given.is_some(),
        wanted: Wanted { prefix, bytes, body_bytes: patched.len(), deadline, class },
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
