//! `strata usage`: the ledger, summed by day, tenant and model.

use anyhow::Context;
use serde_json::json;
use strata_gateway::ledger::{Ledger, UsageSum};

use crate::args;
use crate::output::{self, Format};

pub(super) fn run(args: &args::Usage) -> anyhow::Result<()> {
    let path = crate::state::existing_ledger(&args.state.folder()?)?;
    let ledger = Ledger::open(&path).with_context(|| format!("cannot open the ledger {}", path.display()))?;
    let sums = ledger.usage_by(args.tenant.as_deref(), 0, i64::MAX)?;
    output::print(&match args.output {
        Format::Table => table(&sums),
        Format::Json => format!("{:#}\n", sums.iter().map(json).collect::<serde_json::Value>()),
    })
}

fn json(sum: &UsageSum) -> serde_json::Value {
    json!({
        "day": sum.day,
        "tenant": sum.tenant,
        "model": sum.model,
        "requests": sum.requests,
        "prompt_tokens": sum.prompt_tokens,
        "cached_tokens": sum.cached_tokens,
        "completion_tokens": sum.completion_tokens,
        "estimated": sum.estimated,
    })
}

fn table(sums: &[UsageSum]) -> String {
    let rows: Vec<_> = sums
        .iter()
        .map(|s| {
            [
                s.day.clone(),
                s.tenant.clone(),
                s.model.clone(),
                s.requests.to_string(),
                s.prompt_tokens.to_string(),
                s.cached_tokens.to_string(),
                s.completion_tokens.to_string(),
                s.estimated.to_string(),
            ]
        })
        .collect();
    output::table(["DAY", "TENANT", "MODEL", "REQUESTS", "PROMPT", "CACHED", "OUTPUT", "ESTIMATED"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_a_day_tenant_and_model() {
        let sum = UsageSum {
            day: "2026-11-23".into(),
            tenant: "acme".into(),
            model: "m".into(),
            requests: 3,
            prompt_tokens: 120,
            cached_tokens: 64,
            completion_tokens: 30,
            estimated: 0,
        };
        insta::assert_snapshot!(table(&[sum]), @r"
        DAY         TENANT  MODEL  REQUESTS  PROMPT  CACHED  OUTPUT  ESTIMATED
        2026-11-23  acme    m      3         120     64      30      0
        ");
    }
}
