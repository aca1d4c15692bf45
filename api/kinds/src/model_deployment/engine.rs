//! What runs the model, and on how many devices.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PodTemplate;
use crate::cel;

/// What runs the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = cel::rules(&[
    (
        "!has(self.runtime) || self.runtime == 'Native' || has(self.image)",
        "the runtimes Vllm and Custom need `image`",
    ),
    (
        "!has(self.command) || (has(self.runtime) && self.runtime == 'Custom')",
        "`command` is for the runtime Custom",
    ),
    (
        "!has(self.runtime) || self.runtime != 'Custom' || !(has(self.maxModelLen) || has(self.kvCache) || has(self.threads) || has(self.device))",
        "Strata cannot know the flags of a Custom engine: put them into `args`, and GPUs into `podTemplate.resources`",
    ),
])))]
pub struct Engine {
    /// Which engine. Native when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// The container image, for Vllm and Custom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// The container's command, for Custom.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub command: Vec<String>,
    /// Further arguments, after those that Strata gives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), extend("x-kubernetes-list-type" = "atomic"))]
    pub args: Vec<String>,
    /// Which kind of device. Auto when absent: a GPU where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// CPU threads of a replica; all cores when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub threads: Option<u32>,
    /// Longest prompt and output together, in tokens. What the model was trained for when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 16_777_216))]
    pub max_model_len: Option<u32>,
    /// The memory of attention.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache: Option<KvCache>,
    /// How long loading the model may take, after it was fetched, until the replica is started anew. When
    /// absent: 10 minutes, and a second for each 100 MB of the container's memory limit (or request) and
    /// of 80 GB for each GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = cel::duration()))]
    pub startup_timeout: Option<String>,
}

/// An engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Runtime {
    /// Strata's own.
    #[default]
    Native,
    /// vLLM.
    Vllm,
    /// Any server with the same HTTP interface.
    Custom,
}

/// A kind of device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Device {
    /// A GPU where there is one.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// The memory of attention: allocated once, in blocks of 16 tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = cel::rule(
    "!(has(self.memory) && has(self.blocks))",
    "set `memory` or `blocks`, not both",
)))]
pub struct KvCache {
    /// Its size in bytes, such as `2Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20), extend("x-kubernetes-validations" = cel::bytes()))]
    pub memory: Option<String>,
    /// Its size in blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000_000))]
    pub blocks: Option<u32>,
    /// Whether prompts that begin alike share blocks. True when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_caching: Option<bool>,
}

/// How one replica is spread over devices. Each is 1 when absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = cel::rule(
    "!has(self.expert) || self.expert == 1 || self.expert == (has(self.tensor) ? self.tensor : 1) * (has(self.data) ? self.data : 1)",
    "`expert` must be 1 or `tensor` times `data`: experts are spread over these devices",
)))]
pub struct Parallelism {
    /// Devices that share each layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub tensor: Option<u32>,
    /// Groups of layers on different devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub pipeline: Option<u32>,
    /// Copies of the model in one replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub data: Option<u32>,
    /// Devices that share the experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub expert: Option<u32>,
}

impl Parallelism {
    /// Devices of one replica.
    pub fn devices(&self) -> u64 {
        let [tensor, pipeline, data] =
            [self.tensor, self.pipeline, self.data].map(|n| u64::from(n.unwrap_or(1)));
        tensor.saturating_mul(pipeline).saturating_mul(data)
    }
}

/// The workload that computes prompts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Prefill {
    /// How many replicas. One when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub replicas: Option<i32>,
    /// How one of them is spread over devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<Parallelism>,
    /// What to add to their pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,
}
