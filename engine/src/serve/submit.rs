//! From a checked request to a running generation.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use strata_hop::Fault;
use strata_trace::{ActiveSpan, Value};
use strata_wire::{ErrorKind, headers};

use super::members::Members;
use super::options::Options;
use crate::events::{self, Claim};
use crate::lora::Adapter;
use crate::runtime::{
    Blame, Engine, Event, Failure, Generation, GenerationRequest, MAX_TEXT_BYTES, OutputRules, SubmitError,
};
use crate::sampling::SamplingParams;

/// The id of this call: the one minted above, or a new one.
pub(super) fn request_id(headers: &HeaderMap) -> Result<String, Fault> {
    let Some(given) = headers.get(headers::MINTED_ID) else {
        return Ok(uuid::Uuid::now_v7().to_string());
    };
    let valid = |id: &&str| {
        !id.is_empty() && id.len() <= 128 && id.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
    };
    given.to_str().ok().filter(valid).map(str::to_owned).ok_or_else(|| {
        Fault::invalid(format!(
            "the header {} must be 1 to 128 visible ASCII characters without `/`",
            headers::MINTED_ID
        ))
    })
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// Checks that the request asks for what is served here; returns the adapter that it asks for.
pub(super) fn check_model(
    members: &Members,
    engine: &Engine,
    required: bool,
) -> Result<Option<Arc<Adapter>>, Fault> {
    match members.text("model")? {
        Some(asked) => served(engine, asked),
        None if required => {
            let name = &engine.card().name;
            Err(Fault::invalid_param("model", format!("`model` is missing: here it is `{name}`")))
        }
        None => Ok(None),
    }
}

/// What is served under a name: the model, or one of its adapters.
pub(super) fn served(engine: &Engine, name: &str) -> Result<Option<Arc<Adapter>>, Fault> {
    if name == engine.card().name {
        return Ok(None);
    }
    match engine.adapters().and_then(|adapters| adapters.get(name)) {
        Some(adapter) => Ok(Some(adapter)),
        None => Err(no_such_model(name, &engine.card().name)),
    }
}

/// What an answer says that it is of.
pub(super) fn answers_as(engine: &Engine, adapter: Option<&Adapter>) -> String {
    adapter.map_or_else(|| engine.card().name.clone(), |adapter| adapter.key.name.to_string())
}

/// 404 for a model that is not served here.
pub(super) fn no_such_model(asked: &str, served: &str) -> Fault {
    let shown: String = asked.chars().take(100).collect();
    let message = format!("the model `{shown}` does not exist here; this engine serves `{served}`");
    Fault::new(ErrorKind::ModelNotFound, message).param("model")
}

/// What of a prompt is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// So many tokens, from its first.
    First(usize),
    /// So many tokens, up to its last.
    Last(usize),
}

impl Cut {
    /// What it leaves of these tokens.
    pub(super) fn apply(self, mut tokens: Vec<u32>) -> Vec<u32> {
        match self {
            Self::First(most) => tokens.truncate(most),
            Self::Last(most) => drop(tokens.drain(..tokens.len().saturating_sub(most))),
        }
        tokens
    }
}

/// The tokens of a text, those that `truncate` leaves, unless it certainly does not fit.
pub(super) async fn encode(
    engine: &Arc<Engine>,
    text: String,
    add_special: bool,
    truncate: Option<Cut>,
    param: &str,
) -> Result<Vec<u32>, Fault> {
    if let Some(cut) = truncate {
        return Ok(cut.apply(tokens(engine, text, add_special, param).await?));
    }
    let fewest = engine.tokenizer().fewest_tokens(text.len());
    if fewest >= engine.max_model_len() {
        return Err(too_long(engine, &format!("more than {fewest}"), param));
    }
    tokens(engine, text, add_special, param).await
}

/// The tokens of a text, however many. Tokenising is work: not for a thread that serves others. It
/// takes hundreds of times the text's size in memory, so only so much text is worked on at a time.
pub(super) async fn tokens(
    engine: &Arc<Engine>,
    text: String,
    add_special: bool,
    param: &str,
) -> Result<Vec<u32>, Fault> {
    let failed = "the tokenizer failed on this text; this is a defect";
    if text.len() > MAX_TEXT_BYTES {
        let message = format!(
            "the text is {} bytes and at most {MAX_TEXT_BYTES} are tokenised; shorten it",
            text.len()
        );
        return Err(Fault::new(ErrorKind::TooLarge, message).param(param));
    }
    let room = engine.text_room().clone().acquire_many_owned(text.len() as u32).await;
    let room = room.map_err(|_| Fault::new(ErrorKind::Internal, failed))?;
    let tokenizer = engine.tokenizer().clone();
    let work = move || {
        let tokens = tokenizer.encode(&text, add_special);
        // Only now, not when the client leaves: the work cannot be stopped.
        drop(room);
        tokens
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Fault::new(ErrorKind::Internal, failed))?
        .map_err(|e| Fault::invalid_param(param, e.to_string()))
}

/// Fits the output into the context that the prompt leaves. `asked` is the limit that the request
/// names; without one, `default` tokens are generated at most, or the rest of the context. A limit
/// beyond the room is cut to it, as vLLM does: a layer above that writes a limit into the request
/// cannot know how many tokens the prompt has, and the answer's finish reason says that it was cut.
pub(super) fn output_limit(
    engine: &Engine,
    prompt: usize,
    asked: Option<usize>,
    default: Option<usize>,
    param: &str,
) -> Result<usize, Fault> {
    match engine.max_model_len().saturating_sub(prompt) {
        0 => Err(too_long(engine, &prompt.to_string(), param)),
        room => Ok(asked.or(default).map_or(room, |tokens| tokens.min(room))),
    }
}

fn too_long(engine: &Engine, prompt: &str, param: &str) -> Fault {
    let most = engine.max_model_len();
    let message = format!(
        "this model's context is {most} tokens and the prompt has {prompt}, which leaves no room for an answer; \
         shorten it"
    );
    Fault::new(ErrorKind::ContextLengthExceeded, message).param(param)
}

/// Gets what another engine has computed of the prompt, when the request says that one has. A request
/// of which something is to be kept or fetched is refused where nothing ever is.
pub(super) async fn fetch(engine: &Engine, options: &Options) -> Result<(), Fault> {
    let params = &options.transfer;
    if engine.transfer().is_none() && (params.do_remote_decode || params.do_remote_prefill) {
        let message =
            "`kv_transfer_params` needs an engine with --kv-transfer-host; remove it, or start it so";
        return Err(Fault::invalid_param("kv_transfer_params", message));
    }
    if params.do_remote_prefill {
        engine.fetch(params).await;
    }
    Ok(())
}

/// What the caller is to tell the engine that answers: where this one keeps what it made of the prompt.
pub(super) fn kept(engine: &Engine, request: &str) -> Option<serde_json::Value> {
    let words = engine.transfer()?.words(engine.events().engine(), request)?;
    serde_json::to_value(words).ok()
}

/// What a router knows a request's prompt by: `text` was made of its body and read as `tokens`.
pub(super) fn claims(
    engine: &Engine,
    members: &Members,
    options: &Options,
    text: &str,
    tokens: &[u32],
) -> Vec<Claim> {
    // They are work on every prompt, of use to nobody but those who follow the events.
    if !engine.events().is_followed() {
        return Vec::new();
    }
    // A prompt that may have been cut does not begin as its text does.
    if options.tokens.truncate.is_some() {
        return Vec::new();
    }
    let scope = options.cache_salt.as_deref().unwrap_or_default();
    events::claims(scope, members.body(), text, tokens, engine.tokenizer())
}

/// The span of a request that has come with these headers, when it is to be recorded.
pub(super) fn span(engine: &Engine, headers: &HeaderMap) -> Option<ActiveSpan> {
    let mut given = headers.get_all(headers::TRACEPARENT).iter();
    // Of several parents none is the one.
    let parent = given.next().filter(|_| given.next().is_none());
    engine.tracer()?.answer("llm_request", parent.and_then(|parent| parent.to_str().ok()))
}

/// The span with what the request asks for.
fn described(
    mut span: ActiveSpan,
    model: String,
    id: &str,
    n: usize,
    sampling: &SamplingParams,
    rules: &OutputRules,
) -> ActiveSpan {
    span.set("gen_ai.request.model", Value::Text(model.clone()));
    span.set("gen_ai.response.model", Value::Text(model));
    span.set("gen_ai.request.id", Value::Text(id.to_owned()));
    span.set("gen_ai.request.n", Value::Int(n as i64));
    span.set("gen_ai.request.max_tokens", Value::Int(rules.max_tokens as i64));
    span.set("gen_ai.request.temperature", Value::Float(sampling.temperature.into()));
    span.set("gen_ai.request.top_p", Value::Float(sampling.top_p.into()));
    span
}

/// Hands a request to the engine.
pub(super) fn submit(
    engine: &Engine,
    id: String,
    prompts: Vec<Vec<u32>>,
    claims: Vec<Claim>,
    options: Options,
    adapter: Option<Arc<Adapter>>,
) -> Result<Generation, Fault> {
    let Options { n, sampling, rules, structure, cache_salt, priority, transfer, span, stream: _, tokens: _ } =
        options;
    if rules.min_tokens > rules.max_tokens {
        let message =
            format!("`min_tokens` is {} and at most {} may be generated", rules.min_tokens, rules.max_tokens);
        return Err(Fault::invalid_param("min_tokens", message));
    }
    // Of several prompts none is kept, and nothing is said.
    let keeps = transfer.do_remote_decode && prompts.len() == 1;
    let span =
        span.map(|span| described(span, answers_as(engine, adapter.as_deref()), &id, n, &sampling, &rules));
    let request = GenerationRequest {
        id,
        prompts,
        n,
        sampling,
        rules,
        structure,
        claims,
        keeps,
        cache_salt,
        priority,
        adapter,
        span,
    };
    engine.submit(request).map_err(refused)
}

/// The response to a request that the engine does not take.
pub(super) fn refused(error: SubmitError) -> Fault {
    let fault = |kind| Fault::new(kind, error.to_string());
    match error {
        SubmitError::TooMany { .. } => fault(ErrorKind::InvalidRequest).param("n"),
        SubmitError::TokenOutOfRange { .. } => fault(ErrorKind::InvalidRequest).param("prompt"),
        SubmitError::Stopped => fault(ErrorKind::Internal),
        SubmitError::Draining | SubmitError::Asleep | SubmitError::Full { .. } => {
            fault(ErrorKind::Overloaded).retry_after(Duration::from_secs(1))
        }
    }
}

/// The response to a failure before anything was sent.
pub(super) fn failed(failure: &Failure) -> Fault {
    Fault::new(blamed(failure.blame), failure.to_string())
}

/// The kind of error by whose fault it is.
pub(super) fn blamed(blame: Blame) -> ErrorKind {
    match blame {
        Blame::Engine => ErrorKind::Internal,
        Blame::Request => ErrorKind::InvalidRequest,
    }
}

/// Waits for the first piece of an answer, so that a failure before it has a status of its own.
/// Returns the events so far.
pub(super) async fn begin(generation: &mut Generation) -> Result<Vec<Event>, Fault> {
    let mut events = Vec::new();
    while let Some(event) = generation.next().await {
        match event {
            Event::Failed(failure) => return Err(failed(&failure)),
            Event::Admitted { .. } | Event::Scored { .. } => events.push(event),
            Event::Piece(_) => {
                events.push(event);
                break;
            }
        }
    }
    Ok(events)
}
