//! `QuotaPolicy`: how much, how fast, and at what price.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cel;

/// Limits, budgets and prices for the tenants and models that it selects. Every matching policy
/// applies.
// One attribute of `kube` has columns that look alike to this lint.
#[allow(clippy::duplicated_attributes)]
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "strata.dev",
    version = "v1alpha1",
    kind = "QuotaPolicy",
    plural = "quotapolicies",
    namespaced,
    category = "strata",
    doc = "Limits, budgets and prices for the tenants and models that it selects.",
    status = "QuotaPolicyStatus",
    printcolumn(
        name = "Enforced",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Enforced')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Enforced')].reason"
    ),
    printcolumn(name = "Tenants", type_ = "integer", json_path = ".status.tenants"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase")]
pub struct QuotaPolicySpec {
    /// Whom and what the policy applies to. Everything when empty.
    #[serde(default, skip_serializing_if = "Selector::is_empty")]
    pub selector: Selector,
    /// Limits on a sliding window.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub limits: Vec<Limit>,
    /// A budget for a calendar period, of each selected tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Requests in flight at once, of each selected tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// Prices, for budgets in currency and for chargeback.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["model"]))]
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
    #[schemars(length(max = 256), inner(length(min = 1, max = 128)), extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = cel::globs()))]
    pub tiers: Vec<String>,
    /// Tenants by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 128)), extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = cel::globs()))]
    pub tenants: Vec<String>,
    /// Models by the name that requests ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 128)), extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = cel::globs()))]
    pub models: Vec<String>,
}

/// At most `limit` of a resource in any window of this length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = cel::rules(&[
    (
        "has(self.fallbackModel) == (has(self.onExceed) && self.onExceed == 'Fallback')",
        "`fallbackModel` and `onExceed: Fallback` go together: set both or neither",
    ),
])))]
pub struct Limit {
    /// What is counted.
    pub resource: Resource,
    /// How much of it.
    #[schemars(range(min = 0, max = 1_000_000_000_000_000_u64))]
    pub limit: u64,
    /// Length of the sliding window: a number with `s`, `m`, `h` or `d`, such as `1m`.
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = cel::window()))]
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
    #[schemars(length(min = 1, max = 128), extend("x-kubernetes-validations" = cel::rules(&[cel::MODEL_NAME])))]
    pub fallback_model: Option<String>,
    /// Amount above `limit` that a short burst may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000_000_000_000_u64))]
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
#[schemars(extend("x-kubernetes-validations" = cel::rule(
    "has(self.tokens) != has(self.amount)",
    "set exactly one of `tokens` and `amount`",
)))]
pub struct Budget {
    /// Prompt and output tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000_000_000_000_u64))]
    pub tokens: Option<u64>,
    /// Money in the currency of the prices, as a decimal such as `"100.50"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 24), extend("x-kubernetes-validations" = cel::decimal()))]
    pub amount: Option<String>,
    /// The period.
    pub period: Period,
}

/// A calendar period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
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
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: u32,
}

/// The price of models, for a million tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Price {
    /// The models, as a name with `*` for any run of characters.
    #[schemars(length(min = 1, max = 128), extend("x-kubernetes-validations" = cel::glob()))]
    pub model: String,
    /// ISO 4217 code, such as `EUR`.
    #[schemars(length(min = 3, max = 3), extend("x-kubernetes-validations" = cel::rule(
        "self.matches('^[A-Z]{3}$')",
        "must be a currency's three letters, such as EUR",
    )))]
    pub currency: String,
    /// For a million prompt tokens, as a decimal.
    #[schemars(length(max = 24), extend("x-kubernetes-validations" = cel::decimal()))]
    pub input: String,
    /// For a million prompt tokens that came from the cache; `input` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 24), extend("x-kubernetes-validations" = cel::decimal()))]
    pub cached_input: Option<String>,
    /// For a million output tokens.
    #[schemars(length(max = 24), extend("x-kubernetes-validations" = cel::decimal()))]
    pub output: String,
}

/// What callers may expect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Objectives {
    /// Time to the first token, such as `500ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = cel::duration()))]
    pub ttft: Option<String>,
    /// Time per output token, such as `50ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = cel::duration()))]
    pub tpot: Option<String>,
    /// Share of requests served, such as `99.9%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = cel::rule(
        "self.matches('^(100|[0-9]{1,2}([.][0-9]{1,6})?)%$')",
        "must be a share in percent, such as 99.9%",
    )))]
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
    /// How many tenants it applies to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants: Option<i64>,
}

impl Selector {
    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.tiers.is_empty() && self.tenants.is_empty() && self.models.is_empty()
    }

    /// Whether it selects requests of a tenant of this name and tier for this model.
    pub fn selects(&self, tenant: &str, tier: &str, model: &str) -> bool {
        self.selects_tenant(tenant, tier) && any(&self.models, model)
    }

    /// Whether it selects any requests of a tenant of this name and tier.
    pub fn selects_tenant(&self, tenant: &str, tier: &str) -> bool {
        any(&self.tiers, tier) && any(&self.tenants, tenant)
    }
}

fn any(patterns: &[String], name: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|p| crate::glob::matches(p, name))
}

impl Limit {
    /// The window's length in seconds. `None` when it is malformed, which the schema refuses.
    pub fn window_seconds(&self) -> Option<u64> {
        let unit = self.window.chars().last()?;
        let number: u64 = self.window.strip_suffix(unit)?.parse().ok()?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        number.checked_mul(seconds).filter(|s| *s > 0)
    }
}
