//! What a gateway says of tenants and policies on `GET /internal/v1/status`, for the operator to write
//! into their statuses. The hop credential is required: names and usage are no caller's business.

use serde::{Deserialize, Serialize};

/// The path of the report.
pub const STATUS_PATH: &str = "/internal/v1/status";

/// The report: what is in force at this gateway. 503 until it has read everything once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayStatus {
    /// Every Tenant that the gateway knows, by name.
    pub tenants: Vec<TenantReport>,
    /// Every QuotaPolicy that the gateway knows, by name.
    pub policies: Vec<PolicyReport>,
}

/// One Tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantReport {
    /// Its name.
    pub name: String,
    /// `metadata.generation` of the version that was seen last; absent for a folder's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// Whether a version of it is in force: that one, or with `problems` perhaps an older one.
    pub in_force: bool,
    /// What is wrong and what to do, each in one sentence. Empty when all of it takes effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// The policies that apply to it, the most exact first, then the older.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// Where it stands with each budget that counts for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub usage: Vec<BudgetUsage>,
}

/// A tenant's usage in the current period of one budget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BudgetUsage {
    /// The policy whose budget it is.
    pub policy: String,
    /// `Day`, `Week` or `Month`.
    pub period: String,
    /// When the period began, in RFC 3339.
    pub period_start: String,
    /// When the next begins.
    pub period_end: String,
    /// Tokens of the budget.
    pub limit_tokens: u64,
    /// Tokens used by calls that have ended.
    pub used_tokens: u64,
    /// Tokens held for calls in flight, of which they as a rule use less.
    pub reserved_tokens: u64,
}

/// One QuotaPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyReport {
    /// Its name.
    pub name: String,
    /// `metadata.generation` of the version that was seen last; absent for a folder's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// Whether a version of it is in force: that one, or with `problems` perhaps an older one.
    pub in_force: bool,
    /// What is wrong and what to do, each in one sentence. Empty when all of it takes effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// How many tenants it applies to.
    pub tenants: u64,
    /// Its limits whose place another policy's takes, for some tenants at least.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overridden: Vec<Override>,
}

/// A limit that another policy's takes the place of.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Override {
    /// The limit: `spec.limits[0]`, `spec.budget` or `spec.concurrency`.
    pub limit: String,
    /// The policy that counts instead.
    pub by: String,
    /// `true`: both name the tenant and the model equally exactly, and the other is older (or, equally
    /// old, comes first by name). `false`: the other is more exact, as it may be meant.
    pub tie: bool,
    /// How many tenants this concerns.
    pub tenants: u64,
    /// Names of some of them, at most five.
    pub examples: Vec<String>,
}
