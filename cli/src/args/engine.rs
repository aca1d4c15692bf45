//! `strata engine`: options by vLLM's names, where vLLM has them.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use strata_engine::events::KvEventsConfig;
use strata_engine::lora::{LoraModule, LoraOptions, RuntimeLora};
use strata_engine::telemetry::SampleShare;
use strata_wire::defaults;

#[derive(ClapArgs, Debug)]
#[command(after_help = "\
Examples:
  strata engine --model file:///models/smollm2.gguf --listen 127.0.0.1:8001
  strata engine --model /models/llama-3-8b --served-model-name llama --max-model-len 4096
  strata engine --model /models/e5-mistral-7b --task embed

The model is a GGUF file, or a folder with config.json, tokenizer.json and safetensors.")]
pub(crate) struct Engine {
    /// The model: file:// and an absolute path, or a path
    #[arg(long, value_name = "URI")]
    pub(crate) model: String,
    /// What the model is opened for
    #[arg(long, value_enum, default_value_t)]
    pub(crate) task: Task,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", env = "STRATA_LISTEN", default_value = "127.0.0.1:8000")]
    pub(crate) listen: String,
    /// Name by which requests ask for the model [default: the file's own name for it]
    #[arg(long, value_name = "NAME")]
    pub(crate) served_model_name: Option<String>,
    /// Tokens of prompt and output together [default: the model's own limit]
    #[arg(long, value_name = "N")]
    pub(crate) max_model_len: Option<usize>,
    /// Memory of the KV cache in bytes
    #[arg(long, value_name = "BYTES", conflicts_with = "kv_cache_blocks")]
    pub(crate) kv_cache_memory: Option<u64>,
    /// Blocks of 16 tokens in the KV cache
    #[arg(long, value_name = "N")]
    pub(crate) kv_cache_blocks: Option<usize>,
    /// How keys and values are stored; auto is f16
    #[arg(long, value_enum, default_value_t)]
    pub(crate) kv_cache_dtype: CacheType,
    /// Compute threads [default: the machine's cores]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Products of quantised weights in signed bytes, or exact in 32-bit floats, many times slower
    #[arg(long, value_enum, default_value_t)]
    pub(crate) precision: Precision,
    /// Sequences in one step
    #[arg(long, value_name = "N", default_value_t = defaults::MAX_SEQUENCES)]
    pub(crate) max_sequences: usize,
    /// Tokens in one step
    #[arg(long, value_name = "N", default_value_t = defaults::STEP_TOKENS)]
    pub(crate) step_tokens: usize,
    /// Compute every prompt anew
    #[arg(long)]
    pub(crate) no_prefix_cache: bool,
    /// GiB of host memory for blocks that the KV cache has no room for [default: none]
    #[arg(long, value_name = "GIB", value_parser = gib, conflicts_with = "no_prefix_cache")]
    pub(crate) kv_offloading_size: Option<u64>,
    /// Folder of this engine alone for the KV cache's blocks, encrypted, to outlive the process
    #[arg(long, value_name = "FOLDER", requires_all = ["kv_disk_size", "kv_disk_key_file"], conflicts_with = "no_prefix_cache")]
    pub(crate) kv_disk_cache: Option<PathBuf>,
    /// GiB that they may take there
    #[arg(long, value_name = "GIB", value_parser = gib, requires = "kv_disk_cache")]
    pub(crate) kv_disk_size: Option<u64>,
    /// File of at least 32 random bytes that they are encrypted with
    #[arg(long, value_name = "FILE", requires = "kv_disk_cache")]
    pub(crate) kv_disk_key_file: Option<PathBuf>,
    /// Name by which other engines reach this one, to fetch computed prompts [default: none do]
    #[arg(long, value_name = "HOST", conflicts_with = "no_prefix_cache")]
    pub(crate) kv_transfer_host: Option<String>,
    /// Port there [default: that of --listen]
    #[arg(long, value_name = "PORT", requires = "kv_transfer_host")]
    pub(crate) kv_transfer_port: Option<u16>,
    /// GiB of prompts that are kept for other engines, and at most as much from others
    #[arg(long, value_name = "GIB", value_parser = gib, default_value = "1")]
    pub(crate) kv_transfer_size: u64,
    /// vLLM's settings of block events, which carry the token ids of all prompts
    #[arg(long, value_name = "JSON", value_parser = kv_events)]
    pub(crate) kv_events_config: Option<KvEventsConfig>,
    /// Measure how long blocks of the KV cache are of use
    #[arg(long)]
    pub(crate) kv_cache_metrics: bool,
    /// Share of the blocks that are measured
    #[arg(long, value_name = "SHARE", default_value_t, requires = "kv_cache_metrics")]
    pub(crate) kv_cache_metrics_sample: SampleShare,
    /// How the model writes tool calls
    #[arg(long, value_name = "FORM", value_enum, default_value_t)]
    pub(crate) tool_call_parser: ToolCalls,
    /// How the model marks its reasoning
    #[arg(long, value_name = "FORM", value_enum, default_value_t)]
    pub(crate) reasoning_parser: Reasoning,
    /// A collector for OpenTelemetry spans of requests, by OTLP over HTTP: http://HOST:4318. The
    /// variables OTEL_EXPORTER_OTLP_…, OTEL_SERVICE_NAME and OTEL_TRACES_SAMPLER count too
    #[arg(long, value_name = "URL")]
    pub(crate) otlp_traces_endpoint: Option<String>,
    /// Guess tokens ahead; answers stay the same. {"method":"ngram","num_speculative_tokens":4} looks
    /// them up in the prompt, {"method":"draft_model","model":"URI"} asks a smaller model
    #[arg(long, value_name = "JSON")]
    pub(crate) speculative_config: Option<strata_engine::SpeculativeConfig>,
    #[command(flatten)]
    pub(crate) adapters: Adapters,
    /// Seconds for open requests to finish after SIGTERM
    #[arg(long, value_name = "SECONDS", env = "STRATA_DRAIN_GRACE", default_value_t = defaults::DRAIN_GRACE.as_secs())]
    pub(crate) drain_grace: u64,
    /// Seconds that a step may take before /health fails; one for each of its tokens, if that is more
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) step_timeout: u64,
}

/// Which adapters requests may run with.
#[derive(ClapArgs, Clone, Debug)]
pub(crate) struct Adapters {
    /// Serve LoRA adapters, each asked for by its name as `model`
    #[arg(long)]
    pub(crate) enable_lora: bool,
    /// Adapters served from the start: NAME=FOLDER, or JSON with name, path and base_model_name
    #[arg(long, value_name = "ADAPTER", num_args = 1.., requires = "enable_lora")]
    pub(crate) lora_modules: Vec<LoraModule>,
    /// Different adapters in one step; requests for more wait
    #[arg(long, value_name = "N", default_value_t = LoraOptions::default().max_loras)]
    pub(crate) max_loras: usize,
    /// Largest rank of an adapter, up to 512
    #[arg(long, value_name = "N", default_value_t = LoraOptions::default().max_lora_rank)]
    pub(crate) max_lora_rank: usize,
    /// Adapters served at the same time; loading more is refused [default: 32, or as many as are named]
    #[arg(long, value_name = "N", requires = "enable_lora")]
    pub(crate) max_cpu_loras: Option<usize>,
    /// Answer /v1/load_lora_adapter and /v1/unload_lora_adapter, to the layer above alone
    #[arg(long, requires_all = ["enable_lora", "lora_folder"])]
    pub(crate) allow_runtime_lora_updating: bool,
    /// Folder below which adapters must lie that are loaded so; a relative lora_path begins there
    #[arg(long, value_name = "FOLDER", requires = "allow_runtime_lora_updating")]
    pub(crate) lora_folder: Option<PathBuf>,
}

impl Adapters {
    /// What they say together; none when adapters are not enabled.
    pub(crate) fn options(self) -> Option<LoraOptions> {
        self.enable_lora.then_some(LoraOptions {
            modules: self.lora_modules,
            max_loras: self.max_loras,
            max_lora_rank: self.max_lora_rank,
            max_cpu_loras: self.max_cpu_loras,
            runtime: self.lora_folder.map(|folder| RuntimeLora { folder }),
        })
    }
}

/// vLLM's settings of block events.
fn kv_events(text: &str) -> Result<KvEventsConfig, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}

/// Bytes from GiB, which may be a fraction.
fn gib(text: &str) -> Result<u64, String> {
    let gib: f64 = text.parse().map_err(|_| "expected a number of GiB, such as 4 or 0.5".to_owned())?;
    let bytes = gib * (1u64 << 30) as f64;
    if (1.0..1e18).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err("expected a number of GiB above 0".to_owned())
    }
}

/// What a model is opened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Task {
    /// What its checkpoint was made for
    #[default]
    Auto,
    /// To write text
    Generate,
    /// To read text: a vector for each, or scores of its classes
    Embed,
}

/// How a model writes tool calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ToolCalls {
    /// As its chat template does
    #[default]
    Auto,
    /// `<tool_call>` around JSON: Hermes and Qwen
    Hermes,
    /// JSON by itself or after `<|python_tag|>`
    #[value(name = "llama3_json")]
    Llama3Json,
    /// JSON after `[TOOL_CALLS]`
    Mistral,
}

/// How a model marks its reasoning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Reasoning {
    /// Between `<think>` and `</think>` when its chat template knows the tags
    #[default]
    Auto,
    /// Not at all: everything is the answer
    None,
    /// Between the tags, when the answer or the end of the prompt has the first
    Qwen3,
    /// From the beginning of the answer to `</think>`, always
    #[value(name = "deepseek_r1")]
    DeepseekR1,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheType {
    #[default]
    Auto,
    F32,
    F16,
    Bf16,
    Int8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    #[default]
    Int8,
    Exact,
}
