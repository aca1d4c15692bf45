//! From `QuotaPolicy` objects to rules.

use std::sync::Arc;

use strata_kinds::QuotaPolicySpec;
use strata_kinds::quota_policy::{LimitScope, OnExceed, Per};

use super::rule::{Measure, Rule};

/// Windows over which a burst is earned back.
const BURST_WINDOWS: u64 = 10;

/// The rules of one policy.
///
/// A limit with a burst becomes two: any one window may hold the limit and the burst, and any ten
/// windows on end no more than ten times the limit, so that the mean rate never exceeds the limit.
pub fn compile(name: &str, created: Option<i64>, spec: &QuotaPolicySpec) -> Result<Vec<Rule>, String> {
    let policy: Arc<str> = name.into();
    let selector = Arc::new(spec.selector.clone());
    let rule = |field: &str, measure, ceiling, enforced| Rule {
        policy: policy.clone(),
        created,
        selector: selector.clone(),
        measure,
        ceiling,
        enforced,
        waits: false,
        field: field.into(),
    };
    let mut rules = Vec::new();
    for (i, limit) in spec.limits.iter().enumerate() {
        let seconds = limit.window_seconds().filter(|s| *s > 0).ok_or_else(|| {
            format!(
                "spec.limits[{i}].window is {:?}; write a number above zero with s, m, h or d, \
                 such as 1m",
                limit.window
            )
        })?;
        let length_ms = seconds.saturating_mul(1000);
        let measure = |length_ms| Measure::Window {
            resource: limit.resource,
            length_ms,
            per: limit.per.unwrap_or(Per::Tenant),
            scope: limit.scope.unwrap_or(LimitScope::AllModels),
        };
        let enforced = limit.enforce.unwrap_or(true);
        let burst = limit.burst.unwrap_or(0);
        let waits = limit.on_exceed == Some(OnExceed::Wait);
        let field = format!("spec.limits[{i}]");
        let rule = |measure, ceiling, enforced| Rule { waits, ..rule(&field, measure, ceiling, enforced) };
        rules.push(rule(measure(length_ms), limit.limit.saturating_add(burst), enforced));
        if burst > 0 {
            let long = measure(length_ms.saturating_mul(BURST_WINDOWS));
            rules.push(rule(long, limit.limit.saturating_mul(BURST_WINDOWS), enforced));
        }
    }
    if let Some(budget) = &spec.budget
        && let Some(tokens) = budget.tokens
    {
        rules.push(rule("spec.budget", Measure::Budget(budget.period), tokens, true));
    }
    if let Some(concurrency) = &spec.concurrency {
        let requests = u64::from(concurrency.requests);
        rules.push(rule("spec.concurrency", Measure::InFlight, requests, true));
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> QuotaPolicySpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_policy_becomes_rules() {
        let rules = compile(
            "p",
            None,
            &spec(json!({
                "limits": [
                    {"resource": "Requests", "limit": 10, "window": "1m"},
                    {"resource": "Tokens", "limit": 100, "window": "2s", "per": "Key", "burst": 50, "enforce": false},
                ],
                "budget": {"tokens": 1_000_000, "period": "Month"},
                "concurrency": {"requests": 4},
            })),
        )
        .unwrap();
        let shown: Vec<_> = rules
            .iter()
            .map(|r| match r.measure {
                Measure::Window { length_ms, per, .. } => {
                    format!("{} {} / {length_ms} ms {per:?} {}", r.ceiling, r.measure.noun(), r.enforced)
                }
                measure => format!("{} {measure:?}", r.ceiling),
            })
            .collect();
        insta::assert_snapshot!(shown.join("\n"), @r"
        10 requests / 60000 ms Tenant true
        150 tokens / 2000 ms Key false
        1000 tokens / 20000 ms Key false
        1000000 Budget(Month)
        4 InFlight
        ");
    }

    #[test]
    fn a_window_without_length_is_refused_by_name() {
        for window in ["x", "0s", ""] {
            let spec = spec(json!({"limits": [{"resource": "Tokens", "limit": 1, "window": window}]}));
            assert!(compile("p", None, &spec).unwrap_err().contains("spec.limits[0].window"));
        }
    }
}
