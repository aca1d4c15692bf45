//! What chat and completion answers share: usage, log probabilities, SSE bodies.

use std::convert::Infallible;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::Stream;
use http::{HeaderValue, header};
use serde::Serialize;
use serde_json::{Map, Value, json};
use strata_wire::chat::{TokenLogprob, TopLogprob};
use strata_wire::{ErrorBody, ErrorKind, Usage, sse};

use super::submit;
use crate::runtime::{Failure, PieceToken, StopCause};
use crate::sampling::ScoredToken;
use crate::tokenizer::Tokenizer;

/// Counts a request's tokens as they come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meter {
    pub(super) prompt: usize,
    pub(super) cached: usize,
    pub(super) completion: usize,
}

impl Meter {
    pub(super) fn usage(&self) -> Usage {
        Usage::new(self.prompt as u64, self.cached as u64, self.completion as u64)
    }
}

/// JSON has no infinity; OpenAI writes this instead.
const LEAST_LOGPROB: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LEAST_LOGPROB }
}

/// What log probabilities call a token.
pub(super) fn token_name(id: u32, tokenizer: &Tokenizer, by_id: bool) -> String {
    if by_id { format!("token_id:{id}") } else { tokenizer.text(id) }
}

/// A token's log probabilities in the chat API's form, if they were asked for.
pub(super) fn token_logprob(token: &PieceToken, tokenizer: &Tokenizer, by_id: bool) -> Option<TokenLogprob> {
    let logprobs = token.logprobs.as_ref()?;
    let top = |&(id, logprob): &(u32, f32)| TopLogprob {
        token: token_name(id, tokenizer, by_id),
        logprob: finite(logprob),
        bytes: Some(tokenizer.bytes(id).to_vec()),
    };
    Some(TokenLogprob {
        token: token_name(token.id, tokenizer, by_id),
        logprob: finite(logprobs.chosen),
        bytes: Some(tokenizer.bytes(token.id).to_vec()),
        top_logprobs: logprobs.top.iter().map(top).collect(),
    })
}

/// The stop that ended an answer, in vLLM's form: the text, or the token's id.
pub(super) fn stop_reason(stop: Option<StopCause>) -> Option<Value> {
    stop.map(|stop| match stop {
        StopCause::Text(text) => Value::from(text),
        StopCause::Token(id) => Value::from(id),
    })
}

/// A prompt's log probabilities in vLLM's form: nothing for the first token, then a map by token id.
pub(super) fn prompt_logprobs(scored: &[ScoredToken], tokenizer: &Tokenizer) -> Value {
    let entry = |id: u32, logprob: f32, rank: usize| {
        let entry = json!({"logprob": finite(logprob), "rank": rank, "decoded_token": tokenizer.text(id)});
        (id.to_string(), entry)
    };
    let place = |scored: &ScoredToken| {
        let mut map = Map::new();
        map.extend([entry(scored.token, scored.logprobs.chosen, scored.rank)]);
        for (i, (id, logprob)) in scored.logprobs.top.iter().enumerate() {
            if *id != scored.token {
                map.extend([entry(*id, *logprob, i + 1)]);
            }
        }
        Value::Object(map)
    };
    std::iter::once(Value::Null).chain(scored.iter().map(place)).collect()
}

/// One SSE event of this value.
pub(super) fn event(value: &impl Serialize) -> Bytes {
    match serde_json::to_string(value) {
        Ok(json) => sse::data(&json),
        Err(error) => {
            tracing::error!(%error, "a chunk could not be written");
            failure_event(ErrorKind::Internal, "a chunk could not be written; this is a defect")
        }
    }
}

/// The event that tells a client that its stream has failed. No `[DONE]` follows it: a stream that
/// ends without one is not whole.
pub(super) fn failed(failure: &Failure) -> Bytes {
    failure_event(submit::blamed(failure.blame), &failure.message)
}

fn failure_event(kind: ErrorKind, message: &str) -> Bytes {
    let body = ErrorBody::new(kind, message).to_bytes();
    sse::data(&String::from_utf8_lossy(&body))
}

/// A response that streams these events.
pub(super) fn stream(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    use futures::StreamExt;
    let mut response = Body::from_stream(events.map(Ok::<_, Infallible>)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
