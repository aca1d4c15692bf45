//! Refusals, exactly as OpenAI words them in status, type, code and headers.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use strata_hop::Fault;
use strata_wire::ErrorKind;
use strata_wire::headers::rate_limit as h;

use crate::quota::standing::duration;
use crate::quota::{Measure, Meter, Refusal, Standing, Why};

/// Tells OpenAI's SDKs not to try again.
const SHOULD_RETRY: &str = "x-should-retry";

/// 401, the same for every bad key.
pub(crate) fn bad_key() -> Fault {
    Fault::new(
        ErrorKind::InvalidApiKey,
        "Incorrect API key provided. Ask your platform team for a key, or make one with `strata keys create`.",
    )
}

/// 401 without a key.
pub(crate) fn no_key() -> Fault {
    Fault::new(
        ErrorKind::InvalidApiKey,
        "You didn't provide an API key. Send it in the header `Authorization: Bearer YOUR_KEY`.",
    )
}

/// 401 with a key whose time has run out.
pub(crate) fn expired_key() -> Fault {
    Fault::new(ErrorKind::InvalidApiKey, "This API key has expired. Ask for a new one.")
}

/// 404 for a model that does not exist and for one that the caller may not see, alike.
pub(crate) fn no_model(model: &str) -> Fault {
    let shown: String = model.chars().take(128).collect();
    Fault::new(
        ErrorKind::ModelNotFound,
        format!("The model `{shown}` does not exist or you do not have access to it."),
    )
    .param("model")
}

/// 503 for a model that nobody serves now.
pub(crate) fn no_scheduler(model: &str) -> Fault {
    Fault::new(
        ErrorKind::Overloaded,
        format!("The model `{model}` has no scheduler that is ready to take requests; try again shortly."),
    )
    .retry_after(Duration::from_secs(2))
}

/// 503 before the gateway knows who may call.
pub(crate) fn starting() -> Fault {
    Fault::new(
        ErrorKind::Overloaded,
        "The gateway has just started and does not know its tenants yet; try again shortly.",
    )
    .retry_after(Duration::from_secs(1))
}

/// 403 for what only an admin may do.
pub(crate) fn not_admin() -> Fault {
    Fault::new(ErrorKind::PermissionDenied, "This endpoint needs a key with the role admin.")
}

/// 429 in the form that fits the reason.
pub(crate) fn over_limit(refusal: &Refusal) -> Fault {
    let (what, policy) = (refusal.measure.noun(), &refusal.policy);
    let numbers =
        format!("Limit {}, remaining {}, requested {}", refusal.ceiling, refusal.remaining, refusal.wanted);
    let period = match refusal.measure {
        Measure::Window { length_ms, .. } => {
            format!("in any {}", duration(i64::try_from(length_ms).unwrap_or(i64::MAX)))
        }
        Measure::Budget(period) => format!("a {}", format!("{period:?}").to_lowercase()),
        Measure::InFlight => "at once".to_owned(),
    };
    let budget = matches!(refusal.measure, Measure::Budget(_));
    let mut fault = match refusal.why {
        Why::Budget(wait) => Fault::new(
            ErrorKind::InsufficientQuota,
            format!(
                "You exceeded your current quota of {what} {period} (policy {policy}). {numbers}. \
                 The next period begins in {}.",
                duration(wait)
            ),
        )
        .retry_after(millis(wait)),
        Why::TooLarge => Fault::new(
            if budget { ErrorKind::InsufficientQuota } else { ErrorKind::RateLimitExceeded },
            format!(
                "Request too large for the limit of {what} {period} (policy {policy}). {numbers}. \
                 Shorten the prompt or lower max_tokens; this request never fits."
            ),
        ),
        Why::Window(wait) => Fault::new(
            ErrorKind::RateLimitExceeded,
            format!(
                "Rate limit reached for {what} {period} (policy {policy}). {numbers}. \
                 Please try again in {}.",
                duration(wait)
            ),
        )
        .retry_after(millis(wait)),
        Why::InFlight => Fault::new(
            ErrorKind::RateLimitExceeded,
            format!(
                "Rate limit reached for {what} (policy {policy}). {numbers}. \
                 Please try again when one of them has ended."
            ),
        )
        .retry_after(Duration::from_secs(1)),
        Why::Held => Fault::new(
            ErrorKind::RateLimitExceeded,
            format!(
                "Your requests in flight hold what is left of your quota of {what} {period} (policy {policy}). \
                 {numbers}. Please try again when one of them has ended."
            ),
        )
        .retry_after(Duration::from_secs(1)),
    };
    if matches!(refusal.why, Why::Budget(_) | Why::TooLarge) {
        fault.headers.push((HeaderName::from_static(SHOULD_RETRY), HeaderValue::from_static("false")));
    }
    fault.headers.extend(rate_limit_headers(&refusal.standing));
    fault
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

/// The audit's code for a refusal.
pub(crate) fn reason(refusal: &Refusal) -> &'static str {
    match (refusal.why, refusal.measure) {
        (Why::Budget(_), _) | (Why::TooLarge, Measure::Budget(_)) => "insufficient_quota",
        _ => "rate_limit_exceeded",
    }
}

/// OpenAI's rate-limit headers for the tightest windows.
pub(crate) fn rate_limit_headers(standing: &Standing) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = Vec::with_capacity(6);
    let mut add =
        |meter: Option<Meter>, limit: &'static str, remaining: &'static str, reset: &'static str| {
            let Some(meter) = meter else { return };
            headers.push((HeaderName::from_static(limit), HeaderValue::from(meter.limit)));
            headers.push((HeaderName::from_static(remaining), HeaderValue::from(meter.remaining)));
            if let Ok(value) = HeaderValue::try_from(duration(meter.reset_ms)) {
                headers.push((HeaderName::from_static(reset), value));
            }
        };
    add(standing.requests, h::LIMIT_REQUESTS, h::REMAINING_REQUESTS, h::RESET_REQUESTS);
    add(standing.tokens, h::LIMIT_TOKENS, h::REMAINING_TOKENS, h::RESET_TOKENS);
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use strata_kinds::quota_policy::{LimitScope, Per, Period, Resource};

    fn shown(measure: Measure, why: Why) -> String {
        let standing =
            Standing { requests: Some(Meter { limit: 3, remaining: 0, reset_ms: 1500 }), tokens: None };
        let refusal = Refusal {
            policy: "free".into(),
            measure,
            ceiling: 100,
            remaining: 7,
            wanted: 9,
            why,
            may_wait: false,
            standing,
        };
        let fault = over_limit(&refusal);
        let headers: Vec<String> =
            fault.headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        format!(
            "{} {} {:?} | {} | {}",
            fault.kind.status(),
            fault.body.error.code.unwrap(),
            fault.retry_after,
            fault.body.error.message,
            headers.join(", ")
        )
    }

    #[test]
    fn refusals_read_as_openais() {
        let window = Measure::Window {
            resource: Resource::Tokens,
            length_ms: 60_000,
            per: Per::Tenant,
            scope: LimitScope::AllModels,
        };
        let all = [
            shown(window, Why::Window(1250)),
            shown(window, Why::TooLarge),
            shown(Measure::Budget(Period::Month), Why::Budget(3_600_000)),
            shown(Measure::Budget(Period::Month), Why::TooLarge),
            shown(Measure::InFlight, Why::InFlight),
            shown(Measure::Budget(Period::Month), Why::Held),
        ];
        insta::assert_snapshot!(all.join("\n"), @r"
        429 rate_limit_exceeded Some(1.25s) | Rate limit reached for tokens in any 1m0s (policy free). Limit 100, remaining 7, requested 9. Please try again in 1.25s. | x-ratelimit-limit-requests: 3, x-ratelimit-remaining-requests: 0, x-ratelimit-reset-requests: 1.5s
        429 rate_limit_exceeded None | Request too large for the limit of tokens in any 1m0s (policy free). Limit 100, remaining 7, requested 9. Shorten the prompt or lower max_tokens; this request never fits. | x-should-retry: false, x-ratelimit-limit-requests: 3, x-ratelimit-remaining-requests: 0, x-ratelimit-reset-requests: 1.5s
        429 insufficient_quota Some(3600s) | You exceeded your current quota of tokens a month (policy free). Limit 100, remaining 7, requested 9. The next period begins in 1h0m0s. | x-should-retry: false, x-ratelimit-limit-requests: 3, x-ratelimit-remaining-requests: 0, x-ratelimit-reset-requests: 1.5s
        429 insufficient_quota None | Request too large for the limit of tokens a month (policy free). Limit 100, remaining 7, requested 9. Shorten the prompt or lower max_tokens; this request never fits. | x-should-retry: false, x-ratelimit-limit-requests: 3, x-ratelimit-remaining-requests: 0, x-ratelimit-reset-requests: 1.5s
        429 rate_limit_exceeded Some(1s) | Rate limit reached for requests in flight (policy free). Limit 100, remaining 7, requested 9. Please try again when one of them has ended. | x-ratelimit-limit-requests: 3, x-ratelimit-remaining-requests: 0, x-ratelimit-reset-requests: 1.5s
        429 rate_limit_exceeded Some(1s) | Your requests in flight hold what is left of your quota of tokens a month (policy free). Limit 100, remaining 7, requested 9. Please try again when one of them has ended. | x-ratelimit-limit-requests: 3, x-ratelimit-remaining-requests: 0, x-ratelimit-reset-requests: 1.5s
        ");
    }
}
