//! A request as it goes to a replica, whichever that is: read, checked and patched.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use http::{HeaderMap, HeaderValue, Method, header};
use strata_hop::{Body, Fault, forward, rope, spool};
use strata_wire::extract::{Extracted, Extractor};
use strata_wire::hops::Hop;
use strata_wire::patch::{self, Patch};
use strata_wire::prefix::{Form, Prefix};
use strata_wire::rope::Rope;
use strata_wire::toplevel::{MAX_MODEL_BYTES, ScanError, TopLevel};
use strata_wire::{ErrorKind, defaults, headers};
use tokio::time::Instant;

use crate::choose::Wanted;
use crate::class::Class;
use crate::prefill;
use crate::refusal::{past_deadline, unknown_model};
use crate::registry::Pool;
use crate::replica::Replica;
use crate::scheduler::Scheduler;
use crate::wishes::Wishes;

/// The engine's routes that are within reach, each with where its prompt stands, if it enters the prefix
/// cache. All others (sleep, pause, cache reset, abort, adapters) are not.
///
/// What is read to be embedded, ranked or classified enters no prefix cache of an encoder, and its body
/// goes where there is room. `/v1/responses` is served by vLLM; Strata's own engine answers it with 404,
/// because responses are the platform's.
pub const ROUTES: &[(&str, Prompt)] = &[
    ("/v1/chat/completions", Prompt::Cached(Form::Chat)),
    ("/v1/completions", Prompt::Cached(Form::Chat)),
    ("/v1/responses", Prompt::Cached(Form::Response)),
    ("/v1/embeddings", Prompt::Salted),
    ("/pooling", Prompt::None),
    ("/classify", Prompt::None),
    ("/score", Prompt::None),
    ("/v1/score", Prompt::None),
    ("/rerank", Prompt::None),
    ("/v1/rerank", Prompt::None),
    ("/v2/rerank", Prompt::None),
    ("/tokenize", Prompt::None),
    ("/detokenize", Prompt::None),
];

/// What becomes of the prompts of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// They enter the prefix cache of their scope, and this says where they stand in the body.
    Cached(Form),
    /// They may enter a cache, and are not told by what they share.
    Salted,
    /// They enter none.
    None,
}

impl Prompt {
    /// Of a path.
    fn of(path: &str) -> Self {
        ROUTES.iter().find(|(route, _)| *route == path).map_or(Self::None, |(_, prompt)| *prompt)
    }

    fn form(self) -> Option<Form> {
        match self {
            Self::Cached(form) => Some(form),
            Self::Salted | Self::None => None,
        }
    }
}

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
    pub(crate) body: Rope,
    /// Where the members of that body lie.
    pub(crate) top: TopLevel,
    pub(crate) wanted: Wanted,
    /// Whether one replica may compute its prompt and another answer.
    pub(crate) divisible: bool,
}

/// What a request's headers say of how it is handled.
pub(crate) struct Terms {
    given: Option<Duration>,
    pub(crate) deadline: Instant,
    scope: String,
    class: Class,
}

impl Terms {
    /// Reads them, of a request that arrived then.
    pub(crate) fn read(scheduler: &Scheduler, received: &HeaderMap, arrived: Instant) -> Result<Self, Fault> {
        let given = text(received, headers::DEADLINE_MS)?
            .map(|ms| {
                ms.parse::<u64>().map_err(|_| bad_header(headers::DEADLINE_MS, "a number of milliseconds"))
            })
            .transpose()?
            .map(Duration::from_millis);
        let deadline = arrived + given.unwrap_or(defaults::STREAM_TIMEOUT).min(defaults::STREAM_TIMEOUT);
        let scope = text(received, headers::CACHE_SCOPE)?.unwrap_or_default().to_owned();
        Ok(Self { given, deadline, scope, class: Class::of(received, &scheduler.priorities.load())? })
    }

    /// Whether its prompt may only be shared within a scope.
    pub(crate) fn has_scope(&self) -> bool {
        !self.scope.is_empty()
    }
}

/// Reads a request and says what to send and where it may go.
pub(crate) async fn read(scheduler: &Scheduler, request: Request, arrived: Instant) -> Result<Call, Fault> {
    let (parts, body) = request.into_parts();
    let terms = Terms::read(scheduler, &parts.headers, arrived)?;
    let (deadline, mut refused) = (terms.deadline, None);
    let mut reading = Reading::new(scheduler, parts.uri.path(), &parts.headers, terms);
    // A body at fault is taken to its end, unread: a client that is still sending sees no answer.
    let take = |chunk: &[u8]| {
        if refused.is_none() {
            refused = reading.push(chunk).err();
        }
    };
    tokio::time::timeout_at(deadline, spool::each(body, defaults::MAX_BODY_BYTES, take))
        .await
        .map_err(|_| past_deadline())??;
    refused.map_or_else(|| reading.finish(), Err)
}

/// The same of a request whose body is here.
pub(crate) fn understand(
    scheduler: &Scheduler,
    path: &str,
    received: &HeaderMap,
    terms: Terms,
    body: &[u8],
) -> Result<Call, Fault> {
    let mut reading = Reading::new(scheduler, path, received, terms);
    reading.push(body)?;
    reading.finish()
}

/// A request whose body is being read, from wherever it comes.
struct Reading<'s> {
    scheduler: &'s Scheduler,
    path: &'s str,
    received: &'s HeaderMap,
    prompt: Prompt,
    terms: Terms,
    extractor: Option<Extractor>,
}

impl<'s> Reading<'s> {
    /// For a request with this head.
    fn new(scheduler: &'s Scheduler, path: &'s str, received: &'s HeaderMap, terms: Terms) -> Self {
        let length = received.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let prompt = Prompt::of(path);
        let extractor = Extractor::new(length, prompt.form().map(|form| (form, &*terms.scope)));
        let extractor = extractor.ahead(scheduler.order.goes_ahead());
        Self { scheduler, path, received, prompt, terms, extractor: Some(extractor) }
    }

    /// Takes what came next of the body. After a fault nothing of it is kept.
    fn push(&mut self, chunk: &[u8]) -> Result<(), Fault> {
        let pushed = self.extractor.as_mut().map_or(Ok(()), |extractor| extractor.push(chunk));
        pushed.map_err(|error| {
            self.extractor = None;
            bad_body(&error)
        })
    }

    /// The body has ended.
    fn finish(self) -> Result<Call, Fault> {
        let Self { scheduler, path, received, prompt, terms, extractor } = self;
        let Terms { given, deadline, scope, class } = terms;
        let extracted = extractor.ok_or_else(|| Fault::invalid("the body could not be read"))?;
        let read = extracted.finish().map_err(|error| bad_body(&error))?;
        if let Some(followed) = read.came_late {
            scheduler.order.note(followed);
        }
        let model = model(&read)?;
        let pool = pool(scheduler, &model)?;
        let wishes = Wishes::read(&pool, received, &scope, Some(&read));
        let divisible = prefill::is_divisible(path, &read);
        let bytes = read.prefix.as_ref().map_or(0, |prefix| prefix.bytes);
        let bytes = if bytes > 0 { bytes } else { read.body.len() };
        let salt = (prompt != Prompt::None && !scope.is_empty()).then_some(scope);
        let (body, top) = patched(&read, salt)?;
        let prefix = read.prefix.unwrap_or_default();
        Ok(Call {
            divisible,
            id: minted_id(scheduler, received),
            headers: forward::request_headers(received, Hop::SchedulerToEngine),
            has_deadline: given.is_some(),
            wanted: Wanted { prefix, bytes, body_bytes: body.len(), deadline, class, subset: None, wishes },
            body,
            top,
            path: path.to_owned(),
            model,
            pool,
        })
    }
}

/// The model that a body names.
fn model(read: &Extracted) -> Result<String, Fault> {
    // Six bytes of JSON for one of text, at most.
    if read.top.get("model").is_some_and(|member| member.value_at.len() > 6 * MAX_MODEL_BYTES + 2) {
        let message = format!(
            "`model` is longer than the {MAX_MODEL_BYTES} bytes that a name may have; GET /v1/models lists those that can be asked"
        );
        return Err(Fault::invalid_param("model", message));
    }
    read.text("model").map_err(|body| Fault::from_body(ErrorKind::InvalidRequest, body))?.ok_or_else(|| {
        Fault::invalid_param(
            "model",
            "the body names no `model`; GET /v1/models lists those that can be asked",
        )
    })
}

/// The body as an engine gets it.
fn patched(read: &Extracted, salt: Option<String>) -> Result<(Rope, TopLevel), Fault> {
    let salt = match salt {
        Some(salt) => Patch::Set("cache_salt", serde_json::Value::from(salt).to_string()),
        None => Patch::Remove("cache_salt"),
    };
    let patches = [Patch::Remove("kv_transfer_params"), Patch::Remove("priority"), salt];
    debug_assert!(patches.iter().all(|p| p.is_allowed(&Hop::SchedulerToEngine.patches())));
    patch::splice(&read.body, &read.top, &patches).map_err(|error| bad_body(&error))
}

fn bad_body(error: &ScanError) -> Fault {
    Fault::from_body(ErrorKind::InvalidRequest, error.to_body())
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
    let pool = pool(scheduler, model)?;
    let wishes = Wishes::read(&pool, received, &terms.scope, None);
    Ok(Call {
        path: path.to_owned(),
        model: model.to_owned(),
        pool,
        id: minted_id(scheduler, received),
        headers: forward::request_headers(received, Hop::SchedulerToEngine),
        has_deadline: terms.given.is_some(),
        body: std::iter::empty().collect(),
        top: TopLevel { members: Vec::new(), open: 0, close: 0 },
        wanted: Wanted {
            prefix: Prefix::default(),
            bytes,
            body_bytes: 0,
            deadline: terms.deadline,
            class: terms.class,
            subset: None,
            wishes,
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
        body: &Rope,
        left: Duration,
    ) -> Result<http::Request<Body>, Fault> {
        let mut request = http::Request::builder()
            .method(Method::POST)
            .uri(format!("{}{}", replica.url(), self.path))
            .body(rope::body(body))
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
