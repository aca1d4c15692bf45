//! What an operator may say about one engine.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use strata_hop::{HopToken, Mtls};
use strata_trace::TraceConfig;
use strata_wire::defaults;

use crate::backend::cpu::{CacheType, Precision};
use crate::events::KvEventsConfig;
use crate::lora::LoraOptions;
use crate::runtime::SpeculativeConfig;
use crate::tier::KvDisk;
use crate::transfer::KvTransfer;

/// Everything that one engine process is told. The hop token is never written out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineOptions {
    /// The model: `file://` and an absolute path, or a path; to a GGUF file, or a folder with
    /// `config.json`, `tokenizer.json` and safetensors.
    pub model: String,
    /// What it is opened for.
    #[serde(default)]
    pub task: Task,
    /// The name by which requests ask for it. Without one, the file's own name for the model.
    #[serde(default)]
    pub served_model_name: Option<String>,
    /// Where to listen, such as `127.0.0.1:8000`; port 0 takes a free one.
    #[serde(default = "listen")]
    pub listen: String,
    /// Compute threads; 0 takes as many as the process may use.
    #[serde(default)]
    pub threads: usize,
    /// Tokens of prompt and output together. Without one, the model's own limit, cut to what the KV
    /// cache holds.
    #[serde(default)]
    pub max_model_len: Option<usize>,
    /// Size of the KV cache.
    #[serde(default)]
    pub kv_cache: KvCache,
    /// How keys and values are stored.
    #[serde(default)]
    pub kv_cache_dtype: CacheType,
    /// How products of quantised weights are computed.
    #[serde(default)]
    pub precision: Precision,
    /// Sequences in one step.
    #[serde(default = "max_sequences")]
    pub max_sequences: usize,
    /// Tokens in one step; at least `max_sequences`.
    #[serde(default = "step_tokens")]
    pub step_tokens: usize,
    /// Whether prompts reuse what earlier prompts of the same beginning have computed.
    #[serde(default = "yes")]
    pub enable_prefix_cache: bool,
    /// Bytes of host memory for blocks that were evicted from the KV cache; 0 for none.
    #[serde(default)]
    pub kv_offloading_bytes: u64,
    /// A disk for blocks, which thereby outlive the process.
    #[serde(default)]
    pub kv_disk: Option<KvDisk>,
    /// Whether, and where, block events are published in vLLM's form, token ids included.
    #[serde(default)]
    pub kv_events_config: Option<KvEventsConfig>,
    /// The share of the KV cache's blocks, above 0 and at most 1, of which it is measured how long they
    /// are of use; without it none are.
    #[serde(default)]
    pub kv_cache_metrics_sample: Option<f64>,
    /// Whether blocks go to and come from other engines.
    #[serde(default)]
    pub kv_transfer: Option<KvTransfer>,
    /// How tokens are guessed; without it none are.
    #[serde(default)]
    pub speculative: Option<SpeculativeConfig>,
    /// Adapters that requests may run with; without it there are none.
    #[serde(default)]
    pub lora: Option<LoraOptions>,
    /// Sequences that may wait for a place in a step; more are refused with 503.
    #[serde(default = "max_waiting")]
    pub max_waiting: usize,
    /// How the model writes tool calls.
    #[serde(default)]
    pub tool_call_parser: ToolCallParser,
    /// How the model marks its reasoning.
    #[serde(default)]
    pub reasoning_parser: ReasoningParser,
    /// How long open requests may go on after the engine was told to stop.
    #[serde(skip, default = "drain_grace")]
    pub drain_grace: Duration,
    /// How long a step may take before `/health` fails; a second for each of its tokens, if that is
    /// more.
    #[serde(skip, default = "step_timeout")]
    pub step_timeout: Duration,
    /// Where spans of requests go; without it there are none.
    #[serde(skip)]
    pub traces: Option<TraceConfig>,
    /// The token that callers must show. Without one everybody is served.
    #[serde(skip)]
    pub hop_token: Option<HopToken>,
    /// The certificates of this process: with them it speaks TLS alone, and callers must show theirs.
    #[serde(skip)]
    pub mtls: Option<Mtls>,
}

/// Size of the KV cache, which is allocated once, at start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvCache {
    /// The least of 1 GiB, a quarter of the memory that is free, and what the most sequences of the
    /// longest context can fill.
    #[default]
    Auto,
    /// This many blocks of 16 tokens.
    Blocks(usize),
    /// As many blocks as fit in this many bytes.
    Bytes(u64),
    /// As many blocks as fit in this share of the memory that is free, above 0 and at most 1.
    Fraction(f64),
}

/// What a model is opened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// What its checkpoint was made for.
    #[default]
    Auto,
    /// To write text.
    Generate,
    /// To read text: one vector for each, or the scores of its classes.
    Embed,
}

/// How the model writes tool calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolCallParser {
    /// As its chat template does.
    #[default]
    Auto,
    /// `<tool_call>` around JSON: Hermes and Qwen.
    Hermes,
    /// JSON by itself or after `<|python_tag|>`: Llama 3.
    Llama3Json,
    /// JSON after `[TOOL_CALLS]`.
    Mistral,
}

/// How the model marks its reasoning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasoningParser {
    /// Between `<think>` and `</think>` when its chat template knows the tags.
    #[default]
    Auto,
    /// Not at all: everything is the answer.
    None,
    /// Between the tags, when the answer or the prompt's end has the first.
    Qwen3,
    /// From the answer's beginning to `</think>`, always.
    DeepseekR1,
}

fn listen() -> String {
    "127.0.0.1:8000".to_owned()
}

fn max_sequences() -> usize {
    defaults::MAX_SEQUENCES
}

fn step_tokens() -> usize {
    defaults::STEP_TOKENS
}

fn drain_grace() -> Duration {
    defaults::DRAIN_GRACE
}

fn step_timeout() -> Duration {
    Duration::from_secs(60)
}

fn max_waiting() -> usize {
    1024
}

fn yes() -> bool {
    true
}

impl EngineOptions {
    /// The defaults, for this model.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            task: Task::default(),
            served_model_name: None,
            listen: listen(),
            threads: 0,
            max_model_len: None,
            kv_cache: KvCache::default(),
            kv_cache_dtype: CacheType::default(),
            precision: Precision::default(),
            max_sequences: max_sequences(),
            step_tokens: step_tokens(),
            enable_prefix_cache: yes(),
            kv_offloading_bytes: 0,
            kv_disk: None,
            kv_events_config: None,
            kv_cache_metrics_sample: None,
            kv_transfer: None,
            speculative: None,
            lora: None,
            max_waiting: max_waiting(),
            tool_call_parser: ToolCallParser::default(),
            reasoning_parser: ReasoningParser::default(),
            drain_grace: drain_grace(),
            step_timeout: step_timeout(),
            traces: None,
            hop_token: None,
            mtls: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_members_take_the_defaults_and_the_token_is_never_shown() {
        let read: EngineOptions = serde_json::from_str(r#"{"model": "m.gguf"}"#).unwrap();
        assert_eq!(read, EngineOptions::new("m.gguf"));
        let secret = EngineOptions { hop_token: HopToken::new("s3cret"), ..read };
        assert!(!format!("{secret:?}").contains("s3cret"));
        assert!(!serde_json::to_string(&secret).unwrap().contains("s3cret"));
        let kv: KvCache = serde_json::from_str(r#"{"bytes": 1048576}"#).unwrap();
        assert_eq!(kv, KvCache::Bytes(1_048_576));
    }
}
