//! The command line of each component.

use strata_kinds::model_deployment::RoutingPolicy;
use strata_kinds::quantity;

use super::{ENDPOINTS_FILE, ENDPOINTS_FOLDER, HostSite, Site};
use crate::workload::{EngineWorkload, Workload};

/// The arguments after `strata COMPONENT`. Where to listen is in the environment.
pub(super) fn args(workload: &Workload, site: &Site) -> Vec<String> {
    let host = match site {
        Site::Host(host) => Some(host),
        Site::Cluster { .. } => None,
    };
    match workload {
        Workload::Engine(engine) => engine_args(engine, host),
        Workload::Scheduler(scheduler) => {
            let endpoints =
                host.map_or_else(|| format!("{ENDPOINTS_FOLDER}/{ENDPOINTS_FILE}"), |h| h.endpoints.clone());
            let mut args = vec!["--endpoints".to_owned(), endpoints];
            if scheduler.policy == RoutingPolicy::RoundRobin {
                args.extend(["--policy".to_owned(), "round-robin".to_owned()]);
            }
            args
        }
        Workload::Gateway => host.map(gateway_args).unwrap_or_default(),
        Workload::Platform => host.map(platform_args).unwrap_or_default(),
    }
}

fn gateway_args(host: &HostSite) -> Vec<String> {
    ["--upstream", &host.gateway_upstream, "-f", &host.folder, "--state", &host.state]
        .map(str::to_owned)
        .into()
}

fn platform_args(host: &HostSite) -> Vec<String> {
    let kind = if host.platform_upstream_is_gateway { "gateway" } else { "ungoverned" };
    let mut args: Vec<String> =
        ["--upstream", &host.platform_upstream, "--upstream-kind", kind, "--state", &host.state]
            .map(str::to_owned)
            .into();
    if host.insecure_no_auth {
        args.push("--insecure-no-auth".to_owned());
    }
    args
}

fn engine_args(workload: &EngineWorkload, host: Option<&HostSite>) -> Vec<String> {
    let spec = &workload.spec;
    let mut args = vec!["--model".to_owned(), model_uri(&spec.model.uri, host)];
    args.extend(["--served-model-name".to_owned(), spec.model.name.clone()]);
    let mut add = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
    let engine = spec.engine.clone().unwrap_or_default();
    if let Some(length) = engine.max_model_len {
        add("--max-model-len", length.to_string());
    }
    let kv_cache = engine.kv_cache.unwrap_or_default();
    if let Some(bytes) = kv_cache.memory.as_deref().and_then(quantity::bytes) {
        add("--kv-cache-memory", bytes.to_string());
    }
    if let Some(blocks) = kv_cache.blocks {
        add("--kv-cache-blocks", blocks.to_string());
    }
    // In a container the engine sees its limit by itself.
    let limited = host.and_then(|_| cpu_limit(workload));
    if let Some(threads) = engine.threads.map(u64::from).or(limited) {
        add("--threads", threads.to_string());
    }
    if kv_cache.prefix_caching == Some(false) {
        args.push("--no-prefix-cache".to_owned());
    }
    args.extend(engine.args);
    args
}

/// The container's CPU limit in whole cores, rounded up.
fn cpu_limit(workload: &EngineWorkload) -> Option<u64> {
    let resources = workload.spec.pod_template.as_ref()?.resources.as_ref()?;
    let milli = quantity::milli_cores(&resources.limits.get("cpu")?.0)?;
    Some(milli.div_ceil(1000).max(1))
}

/// The folder of fetched models, which `STRATA_MODELS` moves.
const MODELS: &str = ".cache/strata/models/";

/// On a host `~` is the user's home folder.
fn model_uri(uri: &str, host: Option<&HostSite>) -> String {
    let (Some(host), Some(path)) = (host, uri.strip_prefix("file://~/")) else { return uri.to_owned() };
    let under = |folder: &str, path: &str| format!("file://{}/{path}", folder.trim_end_matches('/'));
    match (path.strip_prefix(MODELS), &host.models, &host.home) {
        (Some(model), Some(models), _) => under(models, model),
        (_, _, Some(home)) => under(home, path),
        _ => uri.to_owned(),
    }
}
