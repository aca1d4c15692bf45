//! The per-run token by which a layer on one host knows that its caller is the layer above it. On a
//! cluster mTLS takes its place.

use std::fmt;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue};
use strata_wire::{ErrorKind, headers};

use crate::Fault;

/// The environment variable that carries the token to a component.
pub const ENV: &str = "STRATA_HOP_TOKEN";

/// A shared secret of one run. Never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct HopToken(Arc<str>);

impl fmt::Debug for HopToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HopToken(redacted)")
    }
}

impl HopToken {
    /// A token of this text. `None` when it is empty or cannot stand in a header.
    pub fn new(text: &str) -> Option<Self> {
        (!text.is_empty() && HeaderValue::from_str(text).is_ok()).then(|| Self(Arc::from(text)))
    }

    /// The token of this process's environment, if it has one.
    pub fn from_env() -> Option<Self> {
        std::env::var(ENV).ok().and_then(|t| Self::new(&t))
    }

    /// The token's text, for a child's environment.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Adds the token to a request for the layer below.
    pub fn attach(&self, headers: &mut HeaderMap) {
        if let Ok(mut value) = HeaderValue::from_str(&self.0) {
            value.set_sensitive(true);
            headers.insert(headers::HOP_TOKEN, value);
        }
    }

    /// Whether a request carries this token. Takes the same time wherever the two differ.
    pub fn matches(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(headers::HOP_TOKEN).map_or(&b""[..], HeaderValue::as_bytes);
        let wanted = self.0.as_bytes();
        given.len() == wanted.len()
            && given.iter().zip(wanted).fold(0u8, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

/// Middleware: refuses callers without the token, but for health, version, readiness and metrics, which
/// probes and Prometheus read without one (on a cluster a NetworkPolicy says who reaches them). Use it as
/// `axum::middleware::from_fn_with_state(token, token::require)`; without a token everyone passes.
pub async fn require(State(token): State<Option<HopToken>>, request: Request, next: Next) -> Response {
    let open = matches!(request.uri().path(), "/health" | "/version" | "/ready" | "/ping" | "/metrics");
    match token {
        Some(token) if !open && !token.matches(request.headers()) => Fault::new(
            ErrorKind::InvalidApiKey,
            "this layer answers only the layer above it; send requests to the entrance that `strata status` shows",
        )
        .into_response(),
        _ => next.run(request).await,
    }
}
