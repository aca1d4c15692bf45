//! One call of the model: a chat completion that the next layer streams.

use std::io;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use strata_hop::{Body, Fault, forward};
use strata_wire::chat::ChatRequest;
use strata_wire::sse::{self, Splitter};
use strata_wire::{ErrorBody, ErrorKind, defaults};

use super::chunk::Chunk;
use crate::app::App;
use crate::refusal::Refusal;

/// Largest single event of a stream, in bytes.
const MAX_EVENT_BYTES: usize = 4 * 1024 * 1024;
/// Largest error body that is read, in bytes.
const MAX_ERROR_BYTES: usize = 64 * 1024;

/// Why a response failed after it had begun.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
    /// The next layer's own answer, for a caller that has seen nothing of a response yet.
    refused: Option<Box<(StatusCode, HeaderMap, Bytes)>>,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), refused: None }
    }

    /// OpenAI's code for the `error` of a response.
    pub(crate) fn code(&self) -> &'static str {
        match self.kind {
            ErrorKind::RateLimitExceeded | ErrorKind::InsufficientQuota => "rate_limit_exceeded",
            ErrorKind::InvalidRequest | ErrorKind::ContextLengthExceeded => "invalid_prompt",
            _ => "server_error",
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        match failure.refused {
            Some(answer) => (*answer).into_response().into(),
            None => Fault::new(failure.kind, failure.message).into(),
        }
    }
}

/// What the next layer answered.
pub(crate) enum Answer {
    /// It streams.
    Stream(Pieces, HeaderMap),
    /// It refused; the response can be passed on as it is.
    Refused(Response),
}

/// Asks the model. `headers` are those of [`crate::relay::headers_for_upstream`].
pub(crate) async fn ask(
    app: &App,
    headers: &HeaderMap,
    explain: bool,
    chat: &ChatRequest,
) -> Result<Answer, Fault> {
    let layer = app.options.upstream_kind.layer();
    let internal = |why: String| Fault::new(ErrorKind::Internal, format!("no request could be made: {why}"));
    let body = serde_json::to_vec(chat).map_err(|e| internal(e.to_string()))?;
    let mut request = Request::post(format!("{}/v1/chat/completions", app.base))
        .body(Body::from(body))
        .map_err(|e| internal(e.to_string()))?;
    *request.headers_mut() = headers.clone();
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
    let response = app
        .client
        .send(request, defaults::FIRST_BYTE_ABOVE_TIMEOUT)
        .await
        .map_err(|error| error.fault(layer))?;
    let (head, body) = response.into_parts();
    let passed = forward::response_headers(&head.headers, explain);
    if head.status != StatusCode::OK {
        let body = forward::body(body, defaults::IDLE_TIMEOUT);
        return Ok(Answer::Refused((head.status, passed, body).into_response()));
    }
    let streams = head
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().to_ascii_lowercase().starts_with(b"text/event-stream"));
    if !streams {
        return Err(Fault::new(
            ErrorKind::BadGateway,
            format!("{layer} was asked for a stream and sent none"),
        ));
    }
    let chunks = forward::chunks(body, defaults::IDLE_TIMEOUT).boxed();
    Ok(Answer::Stream(Pieces { chunks, splitter: Splitter::default(), layer, ended: false }, passed))
}

/// The same in mid-response, where a refusal is a failure of the response.
pub(crate) async fn ask_again(
    app: &App,
    headers: &HeaderMap,
    explain: bool,
    chat: &ChatRequest,
) -> Result<Pieces, Failure> {
    let response = match ask(app, headers, explain, chat).await {
        Ok(Answer::Stream(pieces, _)) => return Ok(pieces),
        Ok(Answer::Refused(response)) => response,
        Err(fault) => return Err(Failure::new(fault.kind, fault.body.error.message)),
    };
    let (head, body) = response.into_parts();
    let body = axum::body::to_bytes(body, MAX_ERROR_BYTES).await.unwrap_or_default();
    let said = serde_json::from_slice::<ErrorBody>(&body).map(|b| b.error.message);
    let kind = match head.status.as_u16() {
        429 => ErrorKind::RateLimitExceeded,
        400 => ErrorKind::InvalidRequest,
        401 => ErrorKind::InvalidApiKey,
        403 => ErrorKind::PermissionDenied,
        503 => ErrorKind::Overloaded,
        504 => ErrorKind::Timeout,
        _ => ErrorKind::BadGateway,
    };
    let message =
        said.unwrap_or_else(|_| format!("{} answered {}", app.options.upstream_kind.layer(), head.status));
    Err(Failure { kind, message, refused: Some(Box::new((head.status, head.headers, body))) })
}

/// The chunks of one answer.
pub(crate) struct Pieces {
    chunks: BoxStream<'static, io::Result<Bytes>>,
    splitter: Splitter,
    layer: &'static str,
    ended: bool,
}

impl Pieces {
    /// The next chunk; `None` after the last one.
    pub(crate) async fn next(&mut self) -> Option<Result<Chunk, Failure>> {
        while !self.ended {
            if let Some(event) = self.splitter.next_event() {
                if event.data == sse::DONE {
                    self.ended = true;
                    return None;
                }
                return Some(self.read(&event.data));
            }
            match self.chunks.next().await {
                None => self.ended = true,
                Some(Err(error)) => return Some(Err(self.fail(error.kind(), &error.to_string()))),
                Some(Ok(bytes)) => self.splitter.push(&bytes),
            }
            if self.splitter.pending() > MAX_EVENT_BYTES {
                return Some(Err(self.fail(io::ErrorKind::InvalidData, "an event is larger than 4 MiB")));
            }
        }
        None
    }

    fn fail(&mut self, kind: io::ErrorKind, why: &str) -> Failure {
        self.ended = true;
        let kind = if kind == io::ErrorKind::TimedOut { ErrorKind::Timeout } else { ErrorKind::BadGateway };
        Failure::new(kind, format!("{} broke off in mid-answer: {why}", self.layer))
    }

    fn read(&mut self, data: &str) -> Result<Chunk, Failure> {
        let chunk: Chunk = serde_json::from_str(data)
            .map_err(|e| self.fail(io::ErrorKind::InvalidData, &format!("a chunk cannot be read ({e})")))?;
        if let Some(error) = chunk.error {
            self.ended = true;
            let message = error["message"].as_str().or(error.as_str()).unwrap_or("no reason given");
            return Err(Failure::new(
                ErrorKind::BadGateway,
                format!("{} failed in mid-answer: {message}", self.layer),
            ));
        }
        Ok(chunk)
    }
}
