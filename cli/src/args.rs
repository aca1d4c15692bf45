//! The command line. Each command teaches by examples in its `--help`.

pub(crate) mod bench;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use strata_engine::events::KvEventsConfig;
use strata_engine::lora::{LoraModule, LoraOptions, RuntimeLora};
use strata_engine::telemetry::SampleShare;
use strata_operator::cluster::ClusterSite;
use strata_wire::defaults;

use crate::output::Format;
use crate::state::StateArgs;

/// Serves AI models to many tenants: platform, gateway, scheduler and engine in one binary.
#[derive(Parser, Debug)]
#[command(name = "strata", version, propagate_version = true)]
#[command(after_help = "Start here:\n  strata up -f examples/quickstart\n  strata status")]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run the manifests of a folder on this machine, without a cluster
    Up(Up),
    /// Show layers, replicas, conditions and prefix hit rates of what `up` runs
    Status(Status),
    /// Show how requests were routed, and by which numbers
    Explain(Explain),
    /// Make, list and revoke API keys
    Keys(Keys),
    /// Show who used what
    Usage(Usage),
    /// Print the custom resource definitions, for kubectl apply -f -
    Crds,
    /// Run one model replica: an OpenAI-compatible server
    Engine(Box<Engine>),
    /// Run the data plane: route each request to the best replica
    Scheduler(Scheduler),
    /// Run the control plane: keys, quotas, usage and audit
    Gateway(Gateway),
    /// Run the platform: responses, conversations and tools
    Platform(Platform),
    /// Run the operator against a Kubernetes cluster
    Operator(Operator),
    /// Fetch a model to a folder: from the Hugging Face Hub, S3, an OCI registry or by HTTPS
    Fetch(Fetch),
    /// Measure a server or the engine: throughput, latency, and what the machine can do
    Bench(bench::Bench),
}

/// Which layers run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// app → platform → engine
    Development,
    /// app → platform → scheduler → engines
    Production,
    /// app → platform → gateway → scheduler → engines
    Enterprise,
}

impl From<Mode> for strata_operator::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Development => Self::Development,
            Mode::Production => Self::Production,
            Mode::Enterprise => Self::Enterprise,
        }
    }
}

#[derive(ClapArgs, Debug)]
#[command(after_help = "\
Examples:
  strata up -f examples/quickstart
  strata up -f manifests/ --listen 127.0.0.1:9000 --state /var/lib/strata

When every ModelDeployment is ready it prints `ready URL` to stdout; progress and problems go to
stderr. Edit the folder's files and the running stack follows. Ctrl-C stops everything it started.
Each tenant without a key gets one, written to STATE/keys/TENANT and shown nowhere.")]
pub(crate) struct Up {
    /// Folder of ModelDeployment, Tenant, QuotaPolicy and Secret manifests
    #[arg(short = 'f', long = "folder", value_name = "FOLDER")]
    pub(crate) folder: PathBuf,
    /// Where the top layer listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = defaults::UP_LISTEN)]
    pub(crate) listen: String,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Which layers run [default: enterprise when the folder has a Tenant, else production]
    #[arg(long, value_enum)]
    pub(crate) mode: Option<Mode>,
    /// Listen beyond this machine although nothing checks who calls (modes without a gateway)
    #[arg(long)]
    pub(crate) insecure_no_auth: bool,
}

#[derive(ClapArgs, Debug)]
#[command(after_help = "Exit codes: 0 running, 3 nothing runs on this state, 1 another failure.")]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Form of the output
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub(crate) output: Format,
}

#[derive(ClapArgs, Debug)]
#[command(after_help = "\
Examples:
  strata explain                        # the latest choice of what `strata up` runs
  strata explain 0199f3c2-... -o json   # every attempt of one request, by its x-request-id
  strata explain --last 20 --model llama
  kubectl exec deploy/strata-scheduler -- strata explain --scheduler https://127.0.0.1:8000

A scheduler keeps its latest 256 choices. Of a prompt it knows a size and hashes, never the text. Exit
codes: 0 shown, 3 no scheduler runs on this state, 1 another failure.")]
pub(crate) struct Explain {
    /// Id of the request; all requests when absent
    #[arg(value_name = "REQUEST")]
    pub(crate) request: Option<String>,
    /// Only requests for this model
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Choices to show, the latest first
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) last: usize,
    /// Base URL of the scheduler [default: the one of the state folder]
    #[arg(long, value_name = "URL")]
    pub(crate) scheduler: Option<String>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Form of the output
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub(crate) output: Format,
}

#[derive(ClapArgs, Debug)]
#[command(after_help = "\
Examples:
  strata keys create --tenant acme --name ci --expires 90d
  strata keys list --tenant acme
  strata keys revoke ID

A key is shown once, when it is made. Revoking takes effect in a running gateway within a second.")]
pub(crate) struct Keys {
    #[command(subcommand)]
    pub(crate) action: KeysAction,
}

#[derive(Subcommand, Debug)]
pub(crate) enum KeysAction {
    /// Make a key and print it, once
    Create {
        /// Tenant that the key belongs to
        #[arg(long)]
        tenant: String,
        /// Name by which to know it again
        #[arg(long, default_value = "default")]
        name: String,
        /// How long it works, such as 12h or 90d [default: for ever]
        #[arg(long, value_name = "DURATION")]
        expires: Option<String>,
        /// May also make, list and revoke keys and read usage of its tenant
        #[arg(long)]
        admin: bool,
        #[command(flatten)]
        state: StateArgs,
        /// Form of the output
        #[arg(short = 'o', long, value_enum, default_value_t)]
        output: Format,
    },
    /// List keys, without their secrets
    List {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<String>,
        #[command(flatten)]
        state: StateArgs,
        /// Form of the output
        #[arg(short = 'o', long, value_enum, default_value_t)]
        output: Format,
    },
    /// Make a key stop working
    Revoke {
        /// The key's id, as `keys list` shows it
        id: String,
        #[command(flatten)]
        state: StateArgs,
    },
}

#[derive(ClapArgs, Debug)]
#[command(after_help = "Example:\n  strata usage --tenant acme -o json")]
pub(crate) struct Usage {
    /// Only this tenant's
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Form of the output
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub(crate) output: Format,
}

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

/// How replicas are picked.
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    /// By what each replica has in its prefix cache, and by its load
    #[default]
    Prefix,
    /// One after the other
    RoundRobin,
    /// By prefix cache and load, and by chance: the better, the likelier
    WeightedRandom,
    /// The better of two that chance takes, by prefix cache and load
    PowerOfTwo,
    /// By load alone
    LeastLoaded,
    /// By chance alone
    Random,
    /// By how far what it is expected to take stays below the objectives
    SloAware,
}

#[derive(ClapArgs, Debug)]
#[command(after_help = "\
Examples:
  strata scheduler --replicas http://127.0.0.1:8001,http://127.0.0.1:8002 --listen 127.0.0.1:8000
  strata scheduler --kubernetes --namespace team-a
  strata scheduler --replicas http://127.0.0.1:8001 --extproc-listen 127.0.0.1:9002
  strata scheduler --kubernetes --inference-pool llama --extproc-listen 0.0.0.0:9002

Replicas may be Strata engines or vLLM servers. On Kubernetes they are the ready engine pods of one
namespace, and its ModelDeployments say how to route to them.

A vLLM tells what its KV cache holds when it was started with --kv-events-config and is named so:
with --vllm-events-port, in a file of endpoints with \"kv_events\", in a pod with a port kv-events.
docs/layers/scheduler.md shows each.")]
pub(crate) struct Scheduler {
    /// Base URLs of the replicas
    #[arg(long, value_name = "URL,URL", value_delimiter = ',', required_unless_present_any = ["endpoints", "kubernetes"])]
    pub(crate) replicas: Vec<String>,
    /// Port where those of the replicas that are vLLMs publish their KV events (their --kv-events-config)
    #[arg(long, value_name = "PORT", requires = "replicas")]
    pub(crate) vllm_events_port: Option<u16>,
    /// Port where they replay them (its replay_endpoint); without it, what is missed means to begin anew
    #[arg(long, value_name = "PORT", requires = "vllm_events_port")]
    pub(crate) vllm_replay_port: Option<u16>,
    /// File that lists models and replicas, read again when it changes
    #[arg(long, value_name = "FILE", conflicts_with = "replicas")]
    pub(crate) endpoints: Option<PathBuf>,
    /// Follow the models and pods of a namespace, of the current kubeconfig context or the pod's own
    #[arg(long, conflicts_with_all = ["replicas", "endpoints"])]
    pub(crate) kubernetes: bool,
    /// The InferencePool whose pods are the replicas, with --kubernetes, in place of ModelDeployments
    #[arg(long, value_name = "NAME", env = "STRATA_INFERENCE_POOL", requires = "kubernetes")]
    pub(crate) inference_pool: Option<String>,
    /// The namespace, with --kubernetes [default: that of the kubeconfig context, or the pod's own]
    #[arg(long, value_name = "NAME", env = "STRATA_NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", env = "STRATA_LISTEN", default_value = "127.0.0.1:8000")]
    pub(crate) listen: String,
    /// Where Envoy, Istio or kgateway ask over gRPC which replica a request should go to
    #[arg(long, value_name = "ADDR", env = "STRATA_EXTPROC_LISTEN")]
    pub(crate) extproc_listen: Option<String>,
    /// Replicas that it is told for each request, those after the first to fall back to (1 to 3); more than
    /// one only where Envoy's cluster has the load balancing policy override_host
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3), requires = "extproc_listen")]
    pub(crate) extproc_endpoints: u8,
    /// Tell it which replica is to compute a long prompt, in x-prefiller-host-port, for llm-d's routing
    /// sidecar beside each replica that answers
    #[arg(long, requires = "extproc_listen")]
    pub(crate) extproc_prefill: bool,
    /// Base URLs of other schedulers of the same replicas, which share the bounds of the queue; with
    /// --kubernetes they are found without
    #[arg(long, value_name = "URL,URL", value_delimiter = ',', conflicts_with = "kubernetes")]
    pub(crate) peers: Vec<String>,
    /// Go on at another replica with an answer that breaks off after its first words, where that is exact
    #[arg(long)]
    pub(crate) continuation: bool,
    /// How replicas are picked where the model does not say
    #[arg(long, value_enum, default_value_t)]
    pub(crate) policy: Policy,
    /// A collector for OpenTelemetry spans of requests, by OTLP over HTTP: http://HOST:4318. The
    /// variables OTEL_EXPORTER_OTLP_…, OTEL_SERVICE_NAME and OTEL_TRACES_SAMPLER count too
    #[arg(long, value_name = "URL")]
    pub(crate) otlp_traces_endpoint: Option<String>,
    /// Seconds for open requests to finish after SIGTERM
    #[arg(long, value_name = "N", env = "STRATA_DRAIN_SECONDS", default_value_t = defaults::DRAIN_GRACE.as_secs())]
    pub(crate) drain_seconds: u64,
}

#[derive(ClapArgs, Debug)]
#[command(after_help = "\
Examples:
  strata gateway --upstream http://127.0.0.1:8000 -f manifests/ --listen 127.0.0.1:8080
  strata gateway --kubernetes --model-namespaces team-a,team-b

With a folder, any OpenAI-compatible server can be the upstream. With --kubernetes, a model's requests go
to the schedulers of its own namespace. The API server is found by KUBECONFIG, or by the pod's account.")]
pub(crate) struct Gateway {
    /// Base URL of the next layer, without /v1
    #[arg(long, value_name = "URL", required_unless_present = "kubernetes")]
    pub(crate) upstream: Option<String>,
    /// Folder of Tenant, QuotaPolicy, ModelDeployment and Secret manifests
    #[arg(short = 'f', long = "folder", value_name = "FOLDER", required_unless_present = "kubernetes")]
    pub(crate) folder: Option<PathBuf>,
    /// Take manifests and schedulers from a Kubernetes API server
    #[arg(long, conflicts_with_all = ["upstream", "folder"])]
    pub(crate) kubernetes: bool,
    /// Namespace in which Tenants, QuotaPolicies and the Secrets of keys are read
    #[arg(long, value_name = "NAME", env = "STRATA_NAMESPACE", default_value = "strata")]
    pub(crate) namespace: String,
    /// Namespaces whose models are served [default: all]
    #[arg(
        long,
        value_name = "NAME,NAME",
        value_delimiter = ',',
        requires = "kubernetes",
        conflicts_with = "folder"
    )]
    pub(crate) model_namespaces: Vec<String>,
    /// Tenant that gets what the platform stored while there was no gateway
    #[arg(long, value_name = "TENANT")]
    pub(crate) adopt_local: Option<String>,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", env = "STRATA_LISTEN", default_value = "127.0.0.1:8080")]
    pub(crate) listen: String,
    /// Where the platform and the operator are answered by mutual TLS; needs STRATA_HOP_DIR
    #[arg(long, value_name = "ADDR", env = "STRATA_INTERNAL_LISTEN")]
    pub(crate) internal_listen: Option<String>,
    /// Seconds for open requests to finish after SIGTERM
    #[arg(long, value_name = "SECONDS", env = "STRATA_DRAIN_GRACE", default_value_t = defaults::DRAIN_GRACE.as_secs())]
    pub(crate) drain_grace: u64,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

/// What stands below the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum UpstreamKind {
    /// A Strata gateway: callers' keys are passed on to it
    Gateway,
    /// A scheduler, an engine, or any OpenAI-compatible server: no keys, one owner
    Ungoverned,
}

#[derive(ClapArgs, Debug)]
#[command(after_help = "\
Example:
  strata platform --upstream http://127.0.0.1:8000 --listen 127.0.0.1:8080")]
pub(crate) struct Platform {
    /// Base URL of the next layer, without /v1
    #[arg(long, value_name = "URL")]
    pub(crate) upstream: String,
    /// What stands there
    #[arg(long, value_enum, default_value = "ungoverned")]
    pub(crate) upstream_kind: UpstreamKind,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", env = "STRATA_LISTEN", default_value = "127.0.0.1:8080")]
    pub(crate) listen: String,
    /// Seconds for open requests to finish after SIGTERM
    #[arg(long, value_name = "SECONDS", env = "STRATA_DRAIN_GRACE", default_value_t = defaults::DRAIN_GRACE.as_secs())]
    pub(crate) drain_grace: u64,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Listen beyond this machine although nothing checks who calls
    #[arg(long)]
    pub(crate) insecure_no_auth: bool,
}

#[derive(ClapArgs, Debug)]
#[command(after_help = "\
Examples:
  strata operator --image strata:0.1.0
  strata operator --image strata:0.1.0 --mode production --model-namespaces team-a,team-b

Uses the cluster of the current kubeconfig context, or the pod's own. Serves /health, /ready and
/metrics. Of several that run, one leads and the others stand by.")]
pub(crate) struct Operator {
    /// Strata's own namespace, where Tenants, QuotaPolicies and the Lease are
    #[arg(long, value_name = "NAME", env = "STRATA_NAMESPACE", default_value = "strata")]
    pub(crate) namespace: String,
    /// Image of the pods that it renders
    #[arg(long, value_name = "IMAGE", env = "STRATA_IMAGE")]
    pub(crate) image: String,
    /// Which layers are installed beside it
    #[arg(long, value_enum, env = "STRATA_MODE", default_value = "enterprise")]
    pub(crate) mode: Mode,
    /// Namespaces whose ModelDeployments are served [default: all]
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',', env = "STRATA_MODEL_NAMESPACES")]
    pub(crate) model_namespaces: Vec<String>,
    /// Namespaces from which metrics of engines may be read, such as that of Prometheus
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    pub(crate) metrics_namespaces: Vec<String>,
    /// Gateway of the Gateway API that models are routed from
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub(crate) gateway: Option<String>,
    /// When the kubelet pulls the image: Always, IfNotPresent or Never [default: Kubernetes' own]
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub(crate) image_pull_policy: Option<String>,
    /// Secrets of the models' namespaces with the credentials to pull the image
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    pub(crate) image_pull_secrets: Vec<String>,
    /// Namespace of the one platform's models, in the modes without a gateway [default: any]
    #[arg(long, value_name = "NAME")]
    pub(crate) platform_namespace: Option<String>,
    /// Ports of the API server, which schedulers are let out to
    #[arg(long, value_name = "PORT,PORT", value_delimiter = ',', default_values_t = ClusterSite::API_SERVER_PORTS)]
    pub(crate) api_server_ports: Vec<u16>,
    /// Where the API server is, for the same [default: anywhere]
    #[arg(long, value_name = "CIDR,CIDR", value_delimiter = ',')]
    pub(crate) api_server_cidrs: Vec<String>,
    /// Make no NetworkPolicies
    #[arg(long)]
    pub(crate) no_network_policies: bool,
    /// Let the layers know each other by certificates instead of a token
    #[arg(long)]
    pub(crate) internal_tls: bool,
    /// Where to serve probes and metrics; port 0 takes a free one
    #[arg(long, value_name = "ADDR", env = "STRATA_LISTEN", default_value = "127.0.0.1:8000")]
    pub(crate) listen: String,
    /// Name of this process among the operators, unlike any other's [default: the host's name]
    #[arg(long, value_name = "NAME", env = "STRATA_POD_NAME")]
    pub(crate) identity: Option<String>,
    /// Write without asking whether another operator does; there must be only this one
    #[arg(long)]
    pub(crate) no_leader_election: bool,
}

#[derive(ClapArgs, Debug)]
#[command(after_help = "\
Examples:
  strata fetch --uri hf://HuggingFaceTB/SmolLM2-135M-Instruct --to /models
  strata fetch --uri hf://OWNER/NAME/model-Q4_K_M.gguf@main --to /models
  strata fetch --uri oci://registry.example/models/llama:3-8b --to /models
  strata fetch --uri s3://bucket/llama-3-8b --to /models
  strata fetch --uri https://example.org/m.gguf#sha256=DIGEST --to /models

Prints the path for `strata engine --model`. An interrupted fetch goes on where it was; a model that is
there is not fetched again; of several at once one fetches and the others wait for it.

Credentials and endpoints come from the environment: HF_TOKEN, HF_ENDPOINT; AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL; REGISTRY_USERNAME and
REGISTRY_PASSWORD, DOCKER_CONFIG or .dockerconfigjson; HTTPS_TOKEN. HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE
and SSL_CERT_DIR are honoured; CA_CERTIFICATES has more authorities to trust, as PEM.")]
pub(crate) struct Fetch {
    /// The model: hf://OWNER/NAME[/FILE][@REVISION], https://, s3://BUCKET/PATH or oci://REGISTRY/NAME:TAG
    #[arg(long)]
    pub(crate) uri: String,
    /// Branch, tag, commit or digest, where the URI names none
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,
    /// The folder of models; this one gets a folder within it
    #[arg(long, value_name = "DIR")]
    pub(crate) to: PathBuf,
    /// Where to serve GET /progress and GET /health while it lasts
    #[arg(long, value_name = "ADDR", env = "STRATA_LISTEN")]
    pub(crate) listen: Option<String>,
    /// How long no byte may come before a connection is given up and tried again
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = wait)]
    pub(crate) stall_timeout: Duration,
    /// Connections at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) connections: u8,
    /// Compute the checksums of a model that is there already, and fetch again what is not right
    #[arg(long)]
    pub(crate) verify: bool,
    /// Take servers without encryption; those on this machine are taken anyway
    #[arg(long, env = "STRATA_ALLOW_HTTP")]
    pub(crate) allow_http: bool,
}

/// A time to wait, such as `500ms`, `60s` or `5m`.
fn wait(text: &str) -> Result<Duration, String> {
    let wrong = || "use a whole number with ms, s or m, such as 60s".to_owned();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
    let number: u32 = number.parse().map_err(|_| wrong())?;
    let unit = match unit {
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        _ => return Err(wrong()),
    };
    if number == 0 { Err("must be more than nothing".to_owned()) } else { Ok(unit * number) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn waits() {
        assert_eq!(wait("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(wait("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(wait("5m"), Ok(Duration::from_secs(300)));
        for wrong in ["", "5", "s", "0s", "-1s", "1.5s", "1h", "99999999999s"] {
            assert!(wait(wrong).is_err(), "{wrong}");
        }
    }
}
