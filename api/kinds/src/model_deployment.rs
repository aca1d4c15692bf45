//! `ModelDeployment`: a model, where its weights are, and how it is served.

mod engine;
mod pod_template;
mod serving;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use engine::{Device, Engine, KvCache, Parallelism, Prefill, Runtime};
pub use pod_template::{EnvSource, EnvVar, PodTemplate, PullSecret, Resources, SecretKey};
pub use serving::{Access, Autoscaling, Canary, Rollout, Routing, RoutingObjectives, RoutingPolicy, Weights};

use crate::cel;
use crate::tenant::SecretRef;

/// A model that is served by one or more replicas of an engine.
// One attribute of `kube` has columns that look alike to this lint.
#[allow(clippy::duplicated_attributes)]
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "strata.dev",
    version = "v1alpha1",
    kind = "ModelDeployment",
    plural = "modeldeployments",
    namespaced,
    category = "strata",
    doc = "A model that is served by one or more replicas of an engine.",
    status = "ModelDeploymentStatus",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
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
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = cel::rules(&[
    (
        "!(has(self.replicas) && has(self.autoscaling))",
        "set `replicas` or `autoscaling`, not both: an autoscaler owns the number of replicas",
    ),
    (
        "!has(self.engine) || !has(self.engine.runtime) || self.engine.runtime != 'Native' || !has(self.engine.image)",
        "`engine.image` is for the runtimes Vllm and Custom; Native runs Strata's own image",
    ),
    (
        "!has(self.parallelism) || !has(self.engine) || !has(self.engine.runtime) || self.engine.runtime != 'Custom'",
        "Strata cannot know the flags of a Custom engine: put `parallelism` into `engine.args`, and GPUs into `podTemplate.resources`",
    ),
    (
        "!has(self.parallelism) || !has(self.engine) || !has(self.engine.device) || self.engine.device != 'Cpu'",
        "`parallelism` is over GPUs: remove it, or `engine.device: Cpu`",
    ),
    (
        "!has(self.adapters) || self.adapters.all(adapter, adapter.name != self.model.name)",
        "an adapter must have another name than the model: requests ask for one or the other by it",
    ),
])))]
pub struct ModelDeploymentSpec {
    /// The model.
    pub model: Model,
    /// What the model is for. Generate when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// Low-rank adapters served beside the model, each under its own name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub adapters: Vec<Adapter>,
    /// What runs the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// How one replica is spread over devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<Parallelism>,
    /// A second workload that computes prompts, so that the replicas only generate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill: Option<Prefill>,
    /// How many replicas. One when neither this nor `autoscaling` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub replicas: Option<i32>,
    /// Lets an autoscaler choose the number of replicas, by load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// How requests are spread over the replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<Routing>,
    /// How a change reaches the replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// Who may use the model. Every tenant that lists it when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// What to add to the replicas' pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,
    /// Switches that may change or vanish in any version, by name.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub experimental: std::collections::BTreeMap<String, String>,
}

/// The model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = cel::rules(&[
    (
        "!has(self.revision) || self.uri.startsWith('hf://') || self.uri.startsWith('oci://')",
        "revision is for hf:// and oci:// alone: remove it",
    ),
    (
        "!(has(self.cache) || has(self.credentialsSecretRef)) || self.uri.matches('^(hf|oci|s3|https)://')",
        "cache and credentialsSecretRef are for models that are fetched, by hf://, oci://, s3:// or https://: remove them",
    ),
])))]
pub struct Model {
    /// The name that requests ask for. Another name is another ModelDeployment.
    #[schemars(length(min = 1, max = 128), extend("x-kubernetes-validations" = cel::rules(&[
        cel::MODEL_NAME,
        ("self == oldSelf", "cannot be changed: make a new ModelDeployment for the new name"),
    ])))]
    pub name: String,
    /// Where the weights are: `file://PATH` or an absolute path (a GGUF file or a folder with
    /// safetensors; on a host `file://~/` is the home folder), `hf://OWNER/NAME[/FILE][@REVISION]`,
    /// `oci://REGISTRY/NAME:TAG` or `@sha256:DIGEST`, `s3://BUCKET/PATH`, `pvc://CLAIM/PATH`,
    /// `https://HOST/PATH[#sha256=DIGEST]`.
    #[schemars(length(min = 1, max = 2048), extend("x-kubernetes-validations" = cel::uri()))]
    pub uri: String,
    /// Which revision of it: a branch, tag, commit or digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), extend("x-kubernetes-validations" = cel::revision()))]
    pub revision: Option<String>,
    /// A Secret with the credentials to fetch it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,
    /// Where fetched weights are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<ModelCache>,
}

/// Where fetched weights are kept, so that they are fetched once. Without it each replica fetches them
/// into a volume of its own, which goes with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = cel::rule(
    "has(self.claimName)",
    "needs `claimName`: the PersistentVolumeClaim to keep the weights in",
)))]
pub struct ModelCache {
    /// Node for a claim of node-local storage, whose replicas all run on its node; Volume for one that
    /// every node can mount. Volume when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<CacheScope>,
    /// The PersistentVolumeClaim to keep them in, made by you. Replicas fetch once and share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = cel::object_name()))]
    pub claim_name: Option<String>,
}

/// Who shares fetched weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CacheScope {
    /// The replicas on a node.
    Node,
    /// All replicas.
    #[default]
    Volume,
}

/// What a model is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Task {
    /// Chat and text completion.
    #[default]
    Generate,
    /// Embeddings.
    Embed,
    /// Ranking of documents.
    Rerank,
    /// Moderation.
    Classify,
}

/// A low-rank adapter (LoRA), as PEFT saves it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Adapter {
    /// The name that requests ask for.
    #[schemars(length(min = 1, max = 128), extend("x-kubernetes-validations" = cel::rules(&[cel::MODEL_NAME])))]
    pub name: String,
    /// The folder with its `adapter_config.json` and weights, as `model.uri`. What is fetched is kept beside
    /// the model, where that is fetched, too.
    #[schemars(length(min = 1, max = 2048), extend("x-kubernetes-validations" = cel::uri()))]
    pub uri: String,
    /// A Secret with the credentials to fetch it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,
}

/// What runs of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelDeploymentStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, and what stands in its way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Replicas that exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Replicas of the current revision that serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// Labels of the replicas' pods, for the `/scale` subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Where the model is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Hash of the pods' template: replicas with another one are of an older revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The replicas that try a new revision, while there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryStatus>,
    /// The download of the model, while a replica waits for it: of the replica that is furthest behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<DownloadStatus>,
}

/// The replicas that try a new revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CanaryStatus {
    /// Hash of their template.
    pub revision: String,
    /// Those that exist.
    pub replicas: i32,
    /// Those that serve.
    pub ready_replicas: i32,
}

/// How far a download is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DownloadStatus {
    /// The pod that waits for it.
    pub pod: String,
    /// Bytes that are there.
    pub bytes_done: i64,
    /// Bytes in all, once they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<i64>,
    /// Seconds that are left at the present rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_seconds: Option<i64>,
    /// What it does or waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When this was seen. It is written again after each 5 percent, and at most every 10 seconds.
    pub observed_at: Time,
}

impl ModelDeploymentSpec {
    /// The number of replicas wanted, where no autoscaler chooses it.
    pub fn wanted_replicas(&self) -> i32 {
        self.replicas.unwrap_or(1)
    }

    /// The names that requests ask for: the model's own, and those of its adapters.
    pub fn served_names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.model.name).chain(self.adapters.iter().map(|a| &a.name)).map(String::as_str)
    }

    /// Whether requests could mean either of the two.
    pub fn shares_a_name(&self, other: &Self) -> bool {
        self.served_names().any(|name| other.served_names().any(|theirs| theirs == name))
    }

    /// What runs the model.
    pub fn runtime(&self) -> Runtime {
        self.engine.as_ref().and_then(|e| e.runtime).unwrap_or_default()
    }

    /// Whether tenants of `tier` may use the model, as far as the model says.
    pub fn allows_tier(&self, tier: &str) -> bool {
        match &self.access {
            Some(access) if !access.tiers.is_empty() => {
                access.tiers.iter().any(|glob| crate::glob::matches(glob, tier))
            }
            _ => true,
        }
    }
}
