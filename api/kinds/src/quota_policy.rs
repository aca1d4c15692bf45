//! `QuotaPolicy`: how much, how fast, and at what price.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Limits, budgets and prices for the tenants and models that it selects. Every matching policy
/// applies.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "strata.dev",
    version = "v1alpha1",
    kind = "QuotaPolicy",
    plural = "quotapolicies",
    namespaced,
    category = "strata",
    status = "QuotaPolicyStatus",
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase")]
pub struct QuotaPolicySpec {
    /// Whom and what the policy applies to. Everything when empty.
    #[serde(default)]
    pub selector: Selector,
    /// Limits on a sliding window.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Limit>,
    /// A budget for a calendar period, of each selected tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Requests in flight at once, of each selected tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// Prices, for budgets in currency and for chargeback.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pricing: Vec<Price>,
    /// Service objectives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objectives: Option<Objectives>,
    /// What happens while the counters' store is away. Deny when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_store_failure: Option<OnStoreFailure>,
}

/// Whom and what a policy applies to: all lists must match, an empty list matches all. Entries are
/// names with `*` for any run of characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Selector {
    /// Tiers of tenants.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<String>,
    /// Tenants by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<String>,
    /// Models by the name that requests ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
}

/// At most `limit` of a resource in any window of this length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limit {
    /// What is counted.
    pub resource: Resource,
    /// How much of it.
    pub limit: u64,
    /// Length of the sliding window: a number with `s`, `m`, `h` or `d`, such as `1m`.
    pub window: String,
    /// Who has a counter of their own. Tenant when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per: Option<Per>,
    /// Whether all models share the counter. AllModels when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<LimitScope>,
    /// What happens to a request that does not fit. Reject when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_exceed: Option<OnExceed>,
    /// The cheaper model that serves the request instead, for `onExceed: Fallback`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_model: Option<String>,
    /// Amount above `limit` that a short burst may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// `false` counts and reports but refuses nothing. True when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforce: Option<bool>,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Resource {
    /// Requests.
    Requests,
    /// Prompt and output tokens.
    Tokens,
    /// Prompt tokens.
    InputTokens,
    /// Output tokens.
    OutputTokens,
}

/// Whose counter it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Per {
    /// Each key.
    Key,
    /// Each user of a tenant.
    User,
    /// Each tenant.
    Tenant,
    /// All tenants of a tier together.
    Tier,
    /// All selected tenants together.
    All,
}

/// Which models share a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum LimitScope {
    /// All selected models share one.
    AllModels,
    /// Each model has its own.
    EachModel,
}

/// What happens to a request over a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnExceed {
    /// 429 with `retry-after`.
    Reject,
    /// Held until the window has room, for a short time.
    Wait,
    /// Served by `fallbackModel`.
    Fallback,
}

/// A budget for a calendar period in the tenant's time zone: either tokens or an amount of money.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Budget {
    /// Prompt and output tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Money in the currency of the prices, as a decimal such as `"100.50"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount: Option<String>,
    /// The period.
    pub period: Period,
}

/// A calendar period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Period {
    /// From midnight.
    Day,
    /// From Monday.
    Week,
    /// From the first of the month.
    Month,
}

/// Requests in flight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Concurrency {
    /// At most this many at once.
    pub requests: u32,
}

/// The price of models, for a million tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Price {
    /// The models, as a name with `*` for any run of characters.
    pub model: String,
    /// ISO 4217 code, such as `EUR`.
    pub currency: String,
    /// For a million prompt tokens, as a decimal.
    pub input: String,
    /// For a million prompt tokens that came from the cache; `input` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<String>,
    /// For a million output tokens.
    pub output: String,
}

/// What callers may expect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Objectives {
    /// Time to the first token, such as `500ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft: Option<String>,
    /// Time per output token, such as `50ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpot: Option<String>,
    /// Share of requests served, such as `99.9%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub availability: Option<String>,
}

/// What happens while the counters' store is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnStoreFailure {
    /// Requests are refused.
    Deny,
    /// Each gateway replica grants its share of the limits.
    LocalShare,
    /// Requests pass, counted afterwards.
    Allow,
}

/// What Strata has made of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuotaPolicyStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Enforced`, `Overridden`, and what stands in the way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}
