//! Header names. All lower-case, as HTTP/2 has them.

/// The caller's key.
pub const AUTHORIZATION: &str = "authorization";
/// The id of one inference call: minted by the gateway, an attribute when a client sends it.
pub const REQUEST_ID: &str = "x-request-id";
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// What tracing systems tell each other beside it.
pub const TRACESTATE: &str = "tracestate";
/// Seconds, or a date, after which a refused request may be sent again.
pub const RETRY_AFTER: &str = "retry-after";

/// Opaque fairness key: never a tenant's name.
pub const FAIRNESS_ID: &str = "x-gateway-inference-fairness-id";
/// Name of the priority class (an InferenceObjective).
pub const OBJECTIVE: &str = "x-gateway-inference-objective";
/// Opaque scope inside which cached prefixes may be shared.
pub const CACHE_SCOPE: &str = "x-strata-cache-scope";
/// The request id minted by the gateway (by the scheduler, in a mode without one).
pub const MINTED_ID: &str = "x-strata-request-id";
/// Milliseconds left of the request's total deadline when this header was written.
pub const DEADLINE_MS: &str = "x-strata-deadline-ms";
/// Proof that the caller is the layer above: the run's token on a host, mTLS on a cluster.
pub const HOP_TOKEN: &str = "x-strata-hop-token";
/// Why the scheduler picked the replica it picked; only for admins and on loopback.
pub const DECISION: &str = "x-strata-decision";
/// Which replica answered; only beside [`DECISION`].
pub const REPLICA: &str = "x-strata-replica";

/// Which session a request is of, in the client's own words: its requests go to one replica.
pub const SESSION_ID: &str = "x-session-id";

/// OpenAI's rate-limit headers.
pub mod rate_limit {
    /// Requests allowed in the tightest window.
    pub const LIMIT_REQUESTS: &str = "x-ratelimit-limit-requests";
    /// Requests left in it.
    pub const REMAINING_REQUESTS: &str = "x-ratelimit-remaining-requests";
    /// Duration until it is whole again, such as `1m2s`.
    pub const RESET_REQUESTS: &str = "x-ratelimit-reset-requests";
    /// Tokens allowed in the tightest window.
    pub const LIMIT_TOKENS: &str = "x-ratelimit-limit-tokens";
    /// Tokens left in it.
    pub const REMAINING_TOKENS: &str = "x-ratelimit-remaining-tokens";
    /// Duration until it is whole again.
    pub const RESET_TOKENS: &str = "x-ratelimit-reset-tokens";
}

/// Whether a header is internal to Strata: dropped when it arrives from outside, and on the way back.
pub fn is_internal(name: &str) -> bool {
    name.starts_with("x-gateway-") || name.starts_with("x-strata-") || name == "baggage"
}
