//! What is said about tenants and policies: the operator's verdict and the gateway's view.

use k8s_openapi::jiff::Timestamp;
use strata_kinds::quota_policy::QuotaPolicyStatus;
use strata_kinds::tenant::TenantStatus;
use strata_kinds::{QuotaPolicy, Tenant};

use super::ClusterSite;
use super::judge::{judge_policy, judge_tenant};
use crate::condition::{Condition, Reason, Truth, stamp};
use crate::plan::Verdict;

/// What the gateway says about one object.
#[derive(Clone, Debug, PartialEq)]
pub enum GatewayView {
    /// It was not asked yet.
    NotAsked,
    /// It cannot be asked, for this reason.
    Unreachable(String),
    /// It does not know the object.
    Unknown,
    /// What it says.
    Knows(Governed),
}

/// What the gateway knows about a Tenant or a QuotaPolicy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Governed {
    /// The generation that it has in force.
    pub generation: i64,
    /// What stands in the way, each in one sentence.
    pub problems: Vec<String>,
    /// Of a tenant: the policies that apply to it.
    pub policies: Vec<String>,
}

/// The status of a tenant.
pub fn tenant_status(
    object: &Tenant,
    site: &ClusterSite,
    view: &GatewayView,
    now: Timestamp,
) -> TenantStatus {
    let before = object.status.as_ref();
    let generation = object.metadata.generation.unwrap_or(0);
    let condition = main("Tenant", &judge_tenant(object, site), generation, view, "known to the gateway");
    TenantStatus {
        observed_generation: Some(generation),
        conditions: stamp(before.map_or(&[], |s| &s.conditions), &[condition], generation, now),
        policies: match view {
            GatewayView::Knows(said) => said.policies.clone(),
            GatewayView::Unknown => Vec::new(),
            _ => before.map(|s| s.policies.clone()).unwrap_or_default(),
        },
    }
}

/// The status of a policy.
pub fn policy_status(
    object: &QuotaPolicy,
    site: &ClusterSite,
    view: &GatewayView,
    now: Timestamp,
) -> QuotaPolicyStatus {
    let before = object.status.as_ref();
    let generation = object.metadata.generation.unwrap_or(0);
    let condition =
        main("QuotaPolicy", &judge_policy(object, site), generation, view, "in force at the gateway");
    QuotaPolicyStatus {
        observed_generation: Some(generation),
        conditions: stamp(before.map_or(&[], |s| &s.conditions), &[condition], generation, now),
    }
}

fn main(kind: &str, verdict: &Verdict, generation: i64, view: &GatewayView, good: &str) -> Condition {
    if let Verdict::Refused { reason, message } = verdict {
        return Condition::main(kind, Truth::False, *reason, message.clone());
    }
    match view {
        GatewayView::Knows(said) if said.generation >= generation && said.problems.is_empty() => {
            Condition::main(kind, Truth::True, Reason::Accepted, good)
        }
        GatewayView::Knows(said) if said.generation >= generation => {
            Condition::main(kind, Truth::False, Reason::Invalid, said.problems.join("; "))
        }
        GatewayView::Unreachable(why) => Condition::main(kind, Truth::Unknown, Reason::Starting, why.clone()),
        GatewayView::NotAsked | GatewayView::Unknown | GatewayView::Knows(_) => {
            Condition::main(kind, Truth::Unknown, Reason::Starting, "the gateway has not taken it up yet")
        }
    }
}
