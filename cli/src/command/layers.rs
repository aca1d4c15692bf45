//! Each component by itself.

use std::future::Future;
use std::time::Duration;

use anyhow::Context;
use strata_engine::backend::cpu::{CacheType, Precision};
use strata_engine::tier::KvDisk;
use strata_engine::transfer::KvTransfer;
use strata_engine::{EngineOptions, KvCache, ReasoningParser, Task, ToolCallParser};
use strata_gateway::{Cluster, GatewayOptions, Source};
use strata_hop::{Component, HopToken, Mtls, process};
use strata_kinds::crd;
use strata_operator::cluster::{ClusterSite, Trust};
use strata_operator::kube_backend::{self, ClusterOptions};
use strata_platform::PlatformOptions;
use strata_scheduler::{Kubernetes, SchedulerOptions};
use strata_trace::TraceConfig;
use strata_wire::defaults;
use tokio_util::sync::CancellationToken;

use crate::{args, output};

/// Runs a component until SIGINT or SIGTERM.
fn serve<F, E>(component: impl FnOnce(CancellationToken) -> F) -> anyhow::Result<()>
where
    F: Future<Output = Result<(), E>>,
    E: std::error::Error + Send + Sync + 'static,
{
    // Nothing of `strata up` outlives it, even when it is killed.
    strata_operator::host::die_with_parent();
    process::init_logs();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let shutdown = process::shutdown_on_signal()?;
        Ok(component(shutdown).await?)
    })
}

/// This process's certificates, where it has any. Logs are set up first, for it says which.
fn mtls(component: Component) -> anyhow::Result<Option<Mtls>> {
    process::init_logs();
    Ok(Mtls::from_env(component)?)
}

/// Prints the definitions as one YAML stream.
pub(super) fn crds() -> anyhow::Result<()> {
    let documents: Vec<String> = crd::all().iter().map(crd::yaml).collect();
    output::print(&documents.join("---\n"))
}

/// What the command line says of an engine, whether it serves or is measured.
pub(super) fn engine_options(args: args::Engine) -> EngineOptions {
    let listen = args.listen.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let port = args.kv_transfer_port.or(listen).unwrap_or_default();
    EngineOptions {
        task: match args.task {
            args::Task::Auto => Task::Auto,
            args::Task::Generate => Task::Generate,
            args::Task::Embed => Task::Embed,
        },
        served_model_name: args.served_model_name,
        listen: args.listen,
        threads: args.threads.unwrap_or(0),
        max_model_len: args.max_model_len,
        kv_cache: match (args.kv_cache_blocks, args.kv_cache_memory) {
            (Some(blocks), _) => KvCache::Blocks(blocks),
            (None, Some(bytes)) => KvCache::Bytes(bytes),
            (None, None) => KvCache::Auto,
        },
        kv_cache_dtype: match args.kv_cache_dtype {
            args::CacheType::F32 => CacheType::F32,
            args::CacheType::Auto | args::CacheType::F16 => CacheType::F16,
            args::CacheType::Bf16 => CacheType::Bf16,
            args::CacheType::Int8 => CacheType::Int8,
        },
        precision: match args.precision {
            args::Precision::Int8 => Precision::Int8,
            args::Precision::Exact => Precision::Exact,
        },
        max_sequences: args.max_sequences,
        step_tokens: args.step_tokens,
        enable_prefix_cache: !args.no_prefix_cache,
        kv_offloading_bytes: args.kv_offloading_size.unwrap_or(0),
        kv_disk: args.kv_disk_cache.map(|folder| KvDisk {
            folder,
            bytes: args.kv_disk_size.unwrap_or(0),
            key_file: args.kv_disk_key_file.unwrap_or_default(),
        }),
        kv_events_config: args.kv_events_config,
        kv_cache_metrics_sample: args.kv_cache_metrics.then(|| args.kv_cache_metrics_sample.get()),
        kv_transfer: args.kv_transfer_host.map(|host| KvTransfer {
            host,
            port,
            bytes: args.kv_transfer_size,
        }),
        tool_call_parser: match args.tool_call_parser {
            args::ToolCalls::Auto => ToolCallParser::Auto,
            args::ToolCalls::Hermes => ToolCallParser::Hermes,
            args::ToolCalls::Llama3Json => ToolCallParser::Llama3Json,
            args::ToolCalls::Mistral => ToolCallParser::Mistral,
        },
        reasoning_parser: match args.reasoning_parser {
            args::Reasoning::Auto => ReasoningParser::Auto,
            args::Reasoning::None => ReasoningParser::None,
            args::Reasoning::Qwen3 => ReasoningParser::Qwen3,
            args::Reasoning::DeepseekR1 => ReasoningParser::DeepseekR1,
        },
        speculative: args.speculative_config,
        lora: args.adapters.options(),
        drain_grace: Duration::from_secs(args.drain_grace),
        step_timeout: Duration::from_secs(args.step_timeout),
        ..EngineOptions::new(args.model)
    }
}

/// Where spans go, by the flag and by OpenTelemetry's variables.
fn traces(flag: Option<&str>, service: &str) -> anyhow::Result<Option<TraceConfig>> {
    let flag = flag.map(|url| ("--otlp-traces-endpoint", url));
    Ok(TraceConfig::read(flag, service, |name| std::env::var(name).ok())?)
}

pub(super) fn engine(args: args::Engine) -> anyhow::Result<()> {
    let traces = traces(args.otlp_traces_endpoint.as_deref(), "strata-engine")?;
    let options = EngineOptions {
        mtls: mtls(Component::Engine)?,
        hop_token: HopToken::from_env(),
        traces,
        ..engine_options(args)
    };
    serve(|shutdown| strata_engine::run(options, shutdown))
}

pub(super) fn scheduler(args: args::Scheduler) -> anyhow::Result<()> {
    let kubernetes = args.kubernetes.then(|| Kubernetes {
        namespace: args.namespace,
        inference_pool: args.inference_pool,
        // Kubernetes names a pod's host as the pod.
        pod: std::env::var("HOSTNAME").ok(),
        ..Kubernetes::default()
    });
    let options = SchedulerOptions {
        listen: args.listen,
        extproc_listen: args.extproc_listen,
        extproc_endpoints: usize::from(args.extproc_endpoints),
        extproc_prefill: args.extproc_prefill,
        replicas: args.replicas,
        vllm_events_port: args.vllm_events_port,
        vllm_replay_port: args.vllm_replay_port,
        endpoints: args.endpoints,
        peers: args.peers,
        continuation: args.continuation,
        traces: traces(args.otlp_traces_endpoint.as_deref(), "strata-scheduler")?,
        leave_after: if kubernetes.is_some() { defaults::LEAVE_AFTER } else { Duration::ZERO },
        drain_grace: Duration::from_secs(args.drain_seconds),
        kubernetes,
        policy: match args.policy {
            args::Policy::Prefix => strata_scheduler::Policy::Prefix,
            args::Policy::RoundRobin => strata_scheduler::Policy::RoundRobin,
            args::Policy::WeightedRandom => strata_scheduler::Policy::WeightedRandom,
            args::Policy::PowerOfTwo => strata_scheduler::Policy::PowerOfTwo,
            args::Policy::LeastLoaded => strata_scheduler::Policy::LeastLoaded,
            args::Policy::Random => strata_scheduler::Policy::Random,
            args::Policy::SloAware => strata_scheduler::Policy::SloAware,
        },
        mtls: mtls(Component::Scheduler)?,
        hop_token: HopToken::from_env(),
        ..SchedulerOptions::default()
    };
    serve(|shutdown| strata_scheduler::run(options, shutdown))
}

pub(super) fn platform(args: args::Platform) -> anyhow::Result<()> {
    let kind = match args.upstream_kind {
        args::UpstreamKind::Gateway => strata_platform::UpstreamKind::Gateway,
        args::UpstreamKind::Ungoverned => strata_platform::UpstreamKind::Ungoverned,
    };
    let options = PlatformOptions {
        listen: args.listen,
        mtls: mtls(Component::Platform)?,
        hop_token: HopToken::from_env(),
        insecure_no_auth: args.insecure_no_auth,
        drain_grace: Duration::from_secs(args.drain_grace),
        ..PlatformOptions::new(args.upstream, kind, args.state.folder()?)
    };
    serve(|shutdown| strata_platform::run(options, shutdown))
}

pub(super) fn gateway(args: args::Gateway) -> anyhow::Result<()> {
    let state = args.state.folder()?;
    std::fs::create_dir_all(&state).with_context(|| format!("cannot make the folder {}", state.display()))?;
    let source = match (args.upstream, args.folder) {
        (Some(upstream), Some(folder)) => Source::Folder { upstream, folder },
        _ => Source::Kubernetes(Cluster {
            kubeconfig: None,
            namespace: args.namespace,
            model_namespaces: args.model_namespaces,
            answer_within: Cluster::ANSWER_WITHIN,
        }),
    };
    let options = GatewayOptions {
        source,
        listen: args.listen,
        internal_listen: args.internal_listen,
        state: crate::state::ledger(&state),
        mtls: mtls(Component::Gateway)?,
        hop_token: HopToken::from_env(),
        grace: Duration::from_secs(args.drain_grace),
        adopt_local: args.adopt_local,
    };
    serve(|shutdown| strata_gateway::run(options, shutdown))
}

pub(super) fn operator(args: args::Operator) -> anyhow::Result<()> {
    let options = ClusterOptions {
        site: ClusterSite {
            model_namespaces: args.model_namespaces,
            metrics_namespaces: args.metrics_namespaces,
            gateway: args.gateway,
            picker: args.picker.then(|| args.picker_from.unwrap_or_default()),
            image_pull_policy: args.image_pull_policy,
            image_pull_secrets: args.image_pull_secrets,
            log_format: std::env::var("STRATA_LOG_FORMAT").ok(),
            network_policies: !args.no_network_policies,
            api_server_ports: args.api_server_ports,
            api_server_cidrs: args.api_server_cidrs,
            platform_namespace: args.platform_namespace,
            trust: if args.internal_tls { Trust::Mtls } else { Trust::Token },
            ..ClusterSite::new(args.image, args.mode.into(), args.namespace)
        },
        listen: args.listen,
        identity: args.identity.unwrap_or_else(kube_backend::default_identity),
        leader_election: !args.no_leader_election,
    };
    serve(|shutdown| kube_backend::run(options, shutdown))
}
