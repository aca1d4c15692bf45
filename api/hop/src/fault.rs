//! A failed request: what the client gets to see, in OpenAI's shape.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use strata_wire::{ErrorBody, ErrorKind};

/// An error response. It says who is at fault by its kind, and whether to retry by its headers.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// The body.
    pub body: ErrorBody,
    /// When to try again, for `retry-after`; rounded up to whole seconds.
    pub retry_after: Option<Duration>,
    /// More headers, such as the rate limits.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Fault {
    /// A failure of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, body: ErrorBody::new(kind, message), retry_after: None, headers: Vec::new() }
    }

    /// 400 with this message.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidRequest, message)
    }

    /// 400 naming the parameter at fault.
    pub fn invalid_param(param: &str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidRequest, message).param(param)
    }

    /// The same, naming the parameter at fault.
    #[must_use]
    pub fn param(mut self, param: &str) -> Self {
        self.body = self.body.with_param(param);
        self
    }

    /// The same, with a time after which to try again.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// What `retry-after` says: whole seconds, rounded up.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        let whole = |after: Duration| after.as_secs() + u64::from(after.subsec_nanos() > 0);
        self.retry_after.map(|after| whole(after).max(1))
    }

    /// Wraps an error body made elsewhere.
    pub fn from_body(kind: ErrorKind, body: ErrorBody) -> Self {
        Self { kind, body, retry_after: None, headers: Vec::new() }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after_seconds();
        let mut response = (status, Json(self.body)).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        for (name, value) in self.headers {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<JsonRejection> for Fault {
    fn from(rejection: JsonRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

/// The answer to a path that does not exist.
pub async fn no_such_path(request: axum::extract::Request) -> Fault {
    Fault::new(ErrorKind::NotFound, format!("no such path: {} {}", request.method(), request.uri().path()))
}

/// The answer to a method that a path does not have.
pub async fn no_such_method(request: axum::extract::Request) -> Fault {
    Fault::new(
        ErrorKind::MethodNotAllowed,
        format!("{} does not take {}", request.uri().path(), request.method()),
    )
}

/// Makes a router answer unknown paths and methods in OpenAI's shape.
pub fn with_openai_fallbacks<S: Clone + Send + Sync + 'static>(router: axum::Router<S>) -> axum::Router<S> {
    router.fallback(no_such_path).method_not_allowed_fallback(no_such_method)
}
