//! What a request says of where it would like to go, beside its prompt: its session, its adapter, and how
//! long its answer may be.

use std::sync::Arc;

use http::HeaderMap;
use strata_wire::extract::Extracted;
use strata_wire::headers::SESSION_ID;
use strata_wire::prefix::Prefix;

use crate::pick::affinity::number;
use crate::pick::{Answer, Homes, Lean};
use crate::registry::Pool;

/// Members that bound an answer, in tokens.
const LIMITS: &[&str] = &["max_tokens", "max_completion_tokens", "max_output_tokens"];
/// Members by which a request asks for several answers.
const SEVERAL: &[&str] = &["n", "best_of"];

/// What a request says.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    session: Option<u64>,
    /// The adapter that it is for.
    pub(crate) adapter: Option<Arc<str>>,
    /// Tokens that its answer may have.
    pub(crate) limit: Option<u64>,
    /// Whether it asks for several answers, whose lengths are told together.
    pub(crate) several: bool,
}

impl Wishes {
    /// Reads them from a request's headers, and from its body where that is seen. Sessions of different scopes
    /// have nothing to do with each other, whatever clients call them.
    pub(crate) fn read(pool: &Pool, received: &HeaderMap, scope: &str, body: Option<&Extracted>) -> Self {
        let rules = pool.rules.load();
        let header = rules.affinity.session_header.as_deref().unwrap_or(SESSION_ID);
        let session = received.get(header).map(http::HeaderValue::as_bytes).filter(|id| !id.is_empty());
        let numbers = |keys: &'static [&str]| {
            keys.iter().filter_map(|key| std::str::from_utf8(&body?.scalar(key)?).ok()?.parse::<u64>().ok())
        };
        Self {
            session: session.map(|id| number(&[scope.as_bytes(), id])),
            adapter: pool.is_adapter().then(|| Arc::from(&*pool.name)),
            limit: numbers(LIMITS).max(),
            several: numbers(SEVERAL).any(|count| count > 1),
        }
    }

    /// What leans a request with this prompt.
    pub(crate) fn lean(&self, pool: &Pool, prefix: &Prefix) -> Lean {
        let hashes = pool.rules.load().affinity.hash_prefixes.unwrap_or(true);
        Lean {
            session: self.session,
            homes: if hashes { Homes::of(prefix) } else { Homes::default() },
            answer: pool.answers.expected().map(|usual| Answer::expected(usual, self.limit)),
        }
    }
}
