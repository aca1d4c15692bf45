//! `Tenant`: who may call, with which keys, and which models.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cel;

/// A team, customer or application that calls models, isolated from every other tenant.
// One attribute of `kube` has columns that look alike to this lint.
#[allow(clippy::duplicated_attributes)]
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "strata.dev",
    version = "v1alpha1",
    kind = "Tenant",
    namespaced,
    category = "strata",
    doc = "A team, customer or application that calls models, isolated from every other tenant.",
    status = "TenantStatus",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(name = "Tier", type_ = "string", json_path = ".spec.tier"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase")]
pub struct TenantSpec {
    /// The tier that policies and models select by, such as `gold`. Without one the tenant belongs to
    /// the tier `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), extend("x-kubernetes-validations" = cel::rule(
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "must be lower-case letters, digits and '-'",
    )))]
    pub tier: Option<String>,
    /// IANA time zone in which budgets begin their day and month, such as `Europe/Berlin`. UTC when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), extend("x-kubernetes-validations" = cel::rule(
        "self.matches('^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$')",
        "must be an IANA time zone, such as Europe/Berlin or UTC",
    )))]
    pub time_zone: Option<String>,
    /// Whether cached prefixes may be shared with tenants that share too. Private when absent: how
    /// long an answer takes tells what others have asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_sharing: Option<CacheSharing>,
    /// Keys kept in Secrets. Keys made at run time need no entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub api_keys: Vec<ApiKey>,
    /// Models that the tenant may use, as names with `*` for any run of characters. None when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 128)), extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = cel::globs()))]
    pub models: Vec<String>,
    /// Priority of the tenant's requests; higher is served first. 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1000, max = 1000))]
    pub priority: Option<i32>,
}

/// Who shares cached prefixes with whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CacheSharing {
    /// With nobody.
    #[default]
    Private,
    /// With every tenant that says `Shared`.
    Shared,
}

/// A key whose hash is in a Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiKey {
    /// Its name, unique in the tenant.
    #[schemars(length(min = 1, max = 63), extend("x-kubernetes-validations" = cel::rule(
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "must be lower-case letters, digits and '-'",
    )))]
    pub name: String,
    /// The Secret that holds its id and hash, in the tenant's namespace.
    pub secret_ref: SecretRef,
    /// When it stops working (RFC 3339). Never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub expires_at: Option<String>,
}

/// A Secret in the same namespace. For an API key it has the entries `id` (the key's public id) and
/// `hash` (`v1$` and the hexadecimal SHA-256 of id and secret one after the other), never the key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = cel::object_name()))]
    pub name: String,
}

/// What Strata has made of a tenant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TenantStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, and what stands in its way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Policies that apply to the tenant, the most exact first; at most 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "atomic"))]
    pub policies: Vec<String>,
    /// Where the tenant stands with its budgets, written at most once a minute; at most 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["policy"]))]
    pub usage: Vec<TenantUsage>,
    /// When `usage` was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage_observed_at: Option<Time>,
}

/// Where a tenant stands with one budget, in its current period.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TenantUsage {
    /// The policy whose budget it is.
    pub policy: String,
    /// Day, Week or Month.
    pub period: String,
    /// When the period began (RFC 3339).
    pub period_start: String,
    /// When the next one begins.
    pub period_end: String,
    /// Tokens of the budget.
    pub limit_tokens: i64,
    /// Tokens used by calls that have ended.
    pub used_tokens: i64,
    /// Tokens held for calls in flight.
    pub reserved_tokens: i64,
}

/// The tier of a tenant that names none.
pub const DEFAULT_TIER: &str = "default";

impl TenantSpec {
    /// The tenant's tier.
    pub fn tier(&self) -> &str {
        self.tier.as_deref().unwrap_or(DEFAULT_TIER)
    }

    /// Whether the tenant lists this model.
    pub fn lists_model(&self, model: &str) -> bool {
        self.models.iter().any(|pattern| crate::glob::matches(pattern, model))
    }
}
