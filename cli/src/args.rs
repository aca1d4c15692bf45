//! The command line. Each command teaches by examples in its `--help`.

pub(crate) mod bench;
mod engine;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use strata_operator::cluster::{ClusterSite, Picker};
use strata_wire::defaults;

pub(crate) use self::engine::{CacheType, Engine, Precision, Reasoning, Task, ToolCalls};
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

/// How replicas are picked.
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
#[expect(clippy::struct_excessive_bools, reason = "one for each switch of the command line")]
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
    /// Let schedulers be asked by the proxies of a Gateway where requests should go, by Envoy's ext_proc at
    /// port 9002, and make the InferencePools that say so
    #[arg(long)]
    pub(crate) picker: bool,
    /// Who those proxies are: a list of NetworkPolicy peers [default: nobody is let in]
    #[arg(long, value_name = "JSON", requires = "picker")]
    pub(crate) picker_from: Option<Picker>,
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
