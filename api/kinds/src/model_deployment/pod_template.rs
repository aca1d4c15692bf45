//! What a user may add to the pods of a model: a small typed part of Kubernetes' pod template, whose
//! whole schema would be larger than all of Strata's together.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cel;

/// What to add to pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplate {
    /// Further labels. Strata's own cannot be changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64, "x-kubernetes-validations" = cel::rule(
        "self.all(key, !key.startsWith('app.kubernetes.io/') && !key.startsWith('strata.dev/'))",
        "labels of app.kubernetes.io/ and strata.dev/ are Strata's own",
    )))]
    pub labels: BTreeMap<String, String>,
    /// Further annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: BTreeMap<String, String>,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub tolerations: Vec<Toleration>,
    /// Resources of the engine's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Environment of the engine's container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<EnvVar>,
    /// The account that the pods run as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = cel::object_name()))]
    pub service_account_name: Option<String>,
    /// The runtime class of the pods, such as `nvidia`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = cel::object_name()))]
    pub runtime_class_name: Option<String>,
    /// The priority class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = cel::object_name()))]
    pub priority_class_name: Option<String>,
    /// Secrets with the credentials to pull the engine's image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub image_pull_secrets: Vec<PullSecret>,
    /// Seconds from the moment that a pod leaves the Service until it is killed. When absent: 15, and 30
    /// minutes for the longest stream. A pod whose streams have ended goes at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 86400))]
    pub termination_grace_period_seconds: Option<i64>,
}

/// A Secret of the type `kubernetes.io/dockerconfigjson` in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PullSecret {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = cel::object_name()))]
    pub name: String,
}

/// Resources of a container, by name: `cpu`, `memory`, `nvidia.com/gpu`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = cel::rule(
    "!has(self.requests) || self.requests.all(name, !name.contains('/') || (has(self.limits) && name in self.limits))",
    "a device such as nvidia.com/gpu must be in `limits`: requests alone set none aside",
)))]
pub struct Resources {
    /// What is set aside for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub requests: BTreeMap<String, Quantity>,
    /// What it may use at most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub limits: BTreeMap<String, Quantity>,
}

/// A variable of the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = cel::rule(
    "has(self.value) != has(self.valueFrom)",
    "set `value` or `valueFrom`",
)))]
pub struct EnvVar {
    /// Its name. Those that begin with `STRATA_` are Strata's own.
    #[schemars(length(min = 1, max = 128), extend("x-kubernetes-validations" = cel::rules(&[
        ("self.matches('^[A-Za-z_][A-Za-z0-9_]*$')", "must be letters, digits and '_', and begin with no digit"),
        ("!self.startsWith('STRATA_')", "names that begin with STRATA_ are Strata's own"),
    ])))]
    pub name: String,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32768))]
    pub value: Option<String>,
    /// Where its value is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<EnvSource>,
}

/// Where a variable's value is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnvSource {
    /// An entry of a Secret.
    pub secret_key_ref: SecretKey,
}

/// An entry of a Secret in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKey {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = cel::object_name()))]
    pub name: String,
    /// The entry.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}
