//! What is said about tenants and policies: the operator's verdict, and what the gateways say.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use strata_kinds::quota_policy::QuotaPolicyStatus;
use strata_kinds::tenant::{TenantStatus, TenantUsage};
use strata_kinds::{QuotaPolicy, Tenant};
use strata_wire::governance::{BudgetUsage, GatewayStatus, Override};

use super::judge::{judge_policy, judge_tenant};
use super::{ClusterSite, pods};
use crate::condition::{Condition, Reason, Truth, stamp};
use crate::plan::Verdict;

/// Usage is written again after this long.
const USAGE_EVERY: Duration = Duration::from_secs(60);
/// Policies in a tenant's status, and budgets.
const POLICIES: usize = 100;
const BUDGETS: usize = 20;
/// Problems and overrides that a message names.
const NAMED: usize = 5;

/// What one gateway pod says.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayView {
    /// The pod's name.
    pub pod: String,
    /// What it says, or why it could not be asked.
    pub report: Result<std::sync::Arc<GatewayStatus>, String>,
}

/// An object as one gateway has it.
struct Seen<'a> {
    generation: Option<i64>,
    in_force: bool,
    problems: &'a [String],
}

/// The status of a tenant. `gateways`: one for each ready gateway pod.
pub fn tenant_status(
    object: &Tenant,
    site: &ClusterSite,
    gateways: &[GatewayView],
    now: Timestamp,
) -> TenantStatus {
    let before = object.status.clone().unwrap_or_default();
    let (name, generation) = (object.name_any(), object.metadata.generation.unwrap_or(0));
    let known = || reports(gateways).filter_map(|report| report.tenants.iter().find(|t| t.name == name));
    let said = ask(gateways, generation, |report| {
        let tenant = report.tenants.iter().find(|t| t.name == name)?;
        Some(Seen { generation: tenant.generation, in_force: tenant.in_force, problems: &tenant.problems })
    });
    let verdict = judge_tenant(object, site);
    let conditions = conditions("Tenant", &verdict, said, "known to the gateway");
    let (usage, usage_observed_at) = match known().next() {
        Some(report) => usage(&before, &report.usage, now),
        // Nobody can be asked: what is known stays until somebody can.
        None if verdict == Verdict::Accepted => (before.usage, before.usage_observed_at),
        None => (Vec::new(), None),
    };
    TenantStatus {
        observed_generation: Some(generation),
        conditions: stamp(&before.conditions, &conditions, generation, now),
        policies: match known().next() {
            Some(report) => report.policies.iter().take(POLICIES).cloned().collect(),
            None if verdict == Verdict::Accepted => before.policies,
            None => Vec::new(),
        },
        usage,
        usage_observed_at,
    }
}

/// The status of a policy. `gateways`: one for each ready gateway pod.
pub fn policy_status(
    object: &QuotaPolicy,
    site: &ClusterSite,
    gateways: &[GatewayView],
    now: Timestamp,
) -> QuotaPolicyStatus {
    let before = object.status.clone().unwrap_or_default();
    let (name, generation) = (object.name_any(), object.metadata.generation.unwrap_or(0));
    let known = || reports(gateways).filter_map(|report| report.policies.iter().find(|p| p.name == name));
    let said = ask(gateways, generation, |report| {
        let policy = report.policies.iter().find(|p| p.name == name)?;
        Some(Seen { generation: policy.generation, in_force: policy.in_force, problems: &policy.problems })
    });
    let verdict = judge_policy(object, site);
    let mut said = conditions("QuotaPolicy", &verdict, said, "in force at the gateway");
    if verdict == Verdict::Accepted {
        said.extend(known().next().and_then(|report| overridden(&report.overridden)));
    }
    let tenants = known().next().map(|p| i64::try_from(p.tenants).unwrap_or(i64::MAX));
    QuotaPolicyStatus {
        observed_generation: Some(generation),
        conditions: stamp(&before.conditions, &said, generation, now),
        tenants: tenants.or(before.tenants.filter(|_| verdict == Verdict::Accepted)),
    }
}

fn reports(gateways: &[GatewayView]) -> impl Iterator<Item = &GatewayStatus> {
    gateways.iter().filter_map(|view| view.report.as_deref().ok())
}

/// What is said when the operator has nothing against the object.
type Answer = (Truth, Reason, Option<String>);

/// Asks every gateway: what holds must hold at all of them.
fn ask<'a>(
    gateways: &'a [GatewayView],
    generation: i64,
    find: impl Fn(&'a GatewayStatus) -> Option<Seen<'a>>,
) -> Answer {
    if gateways.is_empty() {
        let message = "no gateway serves yet: wait, or look at the Deployment strata-gateway";
        return (Truth::Unknown, Reason::GatewayUnreachable, Some(message.to_owned()));
    }
    for view in gateways {
        let report = match &view.report {
            Ok(report) => report,
            Err(error) => {
                let message = format!("the gateway {} cannot be asked: {error}", view.pod);
                return (Truth::Unknown, Reason::GatewayUnreachable, Some(message));
            }
        };
        match find(report) {
            Some(seen) if seen.generation.is_some_and(|g| g >= generation) => {
                if !seen.problems.is_empty() {
                    let older = if seen.in_force { " (an older form of it is in force)" } else { "" };
                    let message =
                        format!("{}{older}", listed(seen.problems.iter().cloned(), seen.problems.len()));
                    return (Truth::False, Reason::Problem, Some(message));
                }
                if !seen.in_force {
                    return (Truth::Unknown, Reason::NotTakenUp, None);
                }
            }
            _ => return (Truth::Unknown, Reason::NotTakenUp, None),
        }
    }
    (Truth::True, Reason::Accepted, None)
}

fn conditions(kind: &str, verdict: &Verdict, said: Answer, good: &str) -> Vec<Condition> {
    let (truth, reason, message) = match verdict {
        Verdict::Refused { reason, message } => (Truth::False, *reason, message.clone()),
        Verdict::Accepted => {
            let (truth, reason, message) = said;
            let usual = if truth == Truth::True { good } else { "the gateway has not taken it up yet" };
            (truth, reason, message.unwrap_or_else(|| usual.to_owned()))
        }
    };
    let why = (truth != Truth::True).then(|| Condition {
        kind: if truth == Truth::False { "Stalled" } else { "Reconciling" }.to_owned(),
        status: Truth::True,
        reason,
        message: message.clone(),
    });
    // A policy's own condition is `Enforced`; `Ready` says the same to tools that know no other.
    let ready = (kind == "QuotaPolicy").then(|| Condition {
        kind: "Ready".to_owned(),
        status: truth,
        reason,
        message: message.clone(),
    });
    [Condition::main(kind, truth, reason, message)].into_iter().chain(ready).chain(why).collect()
}

/// Said only while it is so: that another policy counts in the place of this one.
fn overridden(overrides: &[Override]) -> Option<Condition> {
    // A more exact policy is meant to count; a tie is most likely a mistake.
    let ties: Vec<&Override> = overrides.iter().filter(|o| o.tie).collect();
    let explain = |o: &&Override| {
        let who = match o.examples.as_slice() {
            [] => format!("{} tenants", o.tenants),
            some if o.tenants > some.len() as u64 => {
                format!("{} and {} more", some.join(", "), o.tenants - some.len() as u64)
            }
            some => some.join(", "),
        };
        format!("`{}` has no effect for {who}: QuotaPolicy {} is as exact, and older", o.limit, o.by)
    };
    (!ties.is_empty()).then(|| Condition {
        kind: "Overridden".to_owned(),
        status: Truth::True,
        reason: Reason::Overridden,
        message: format!(
            "{}; name tenants or models more exactly in one of them, or remove the limit from one",
            listed(ties.iter().map(explain), ties.len())
        ),
    })
}

fn listed(messages: impl Iterator<Item = String>, count: usize) -> String {
    let named: Vec<String> = messages.take(NAMED).collect();
    let more = count.saturating_sub(named.len());
    let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("{}{rest}", named.join("; "))
}

/// The usage to write: what is there already, until a minute has passed or a budget came or went.
fn usage(before: &TenantStatus, said: &[BudgetUsage], now: Timestamp) -> (Vec<TenantUsage>, Option<Time>) {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let mut new: Vec<TenantUsage> = said
        .iter()
        .map(|budget| TenantUsage {
            policy: budget.policy.clone(),
            period: budget.period.clone(),
            period_start: budget.period_start.clone(),
            period_end: budget.period_end.clone(),
            limit_tokens: number(budget.limit_tokens),
            used_tokens: number(budget.used_tokens),
            reserved_tokens: number(budget.reserved_tokens),
        })
        .collect();
    new.sort_by(|a, b| a.policy.cmp(&b.policy));
    new.dedup_by(|a, b| a.policy == b.policy);
    new.truncate(BUDGETS);
    let frame = |u: &TenantUsage| (u.policy.clone(), u.period_start.clone(), u.limit_tokens);
    let same_frame = new.iter().map(frame).eq(before.usage.iter().map(frame));
    let young = before.usage_observed_at.as_ref().is_some_and(|t| pods::age(t.0, now) < USAGE_EVERY);
    if new == before.usage || (same_frame && young) {
        return (before.usage.clone(), before.usage_observed_at.clone());
    }
    let observed = (!new.is_empty()).then_some(Time(now));
    (new, observed)
}

#[cfg(test)]
mod tests;
