//! The per-run token by which a layer on one host knows that its caller is the layer above it. On a
//! cluster mutual TLS takes its place ([`crate::tls`]); [`crate::caller`] asks for either.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use strata_wire::headers;

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
