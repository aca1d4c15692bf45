//! The command line of each component.

use strata_kinds::model_deployment::Task;
use strata_kinds::quantity;

use super::files::Adapter;
use super::{HostSite, Site, lora};
use crate::workload::{EngineWorkload, Workload};

/// The arguments after `strata COMPONENT`. Where to listen is in the environment.
pub(super) fn args(workload: &Workload, site: Site<'_>) -> Vec<String> {
    let Site::Host(host) = site else { return Vec::new() };
    match workload {
        Workload::Engine(engine) => {
            // In a container the engine sees its limit by itself.
            let threads = cpu_limit(engine);
            let (model, adapters) =
                (super::host::model(&engine.spec, host), super::host::adapters(&engine.spec, host));
            engine_args(engine, &model, &adapters, threads)
        }
        Workload::Scheduler(_) => vec!["--endpoints".to_owned(), host.endpoints.clone()],
        Workload::Gateway => gateway_args(host),
        Workload::Platform => platform_args(host),
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

/// The arguments of an engine whose model and adapters are at these paths.
pub(super) fn engine(workload: &EngineWorkload, path: &str, adapters: &[Adapter]) -> Vec<String> {
    engine_args(workload, path, adapters, None)
}

fn engine_args(
    workload: &EngineWorkload,
    model: &str,
    adapters: &[Adapter],
    limited: Option<u64>,
) -> Vec<String> {
    let spec = &workload.spec;
    let mut args = vec!["--model".to_owned(), model.to_owned()];
    args.extend(["--served-model-name".to_owned(), spec.model.name.clone()]);
    let mut add = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
    let engine = spec.engine.clone().unwrap_or_default();
    // What the checkpoint was made for, unless the manifest says more.
    if spec.task == Some(Task::Embed) {
        add("--task", "embed".to_owned());
    }
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
    if let Some(threads) = engine.threads.map(u64::from).or(limited) {
        add("--threads", threads.to_string());
    }
    if kv_cache.prefix_caching == Some(false) {
        args.push("--no-prefix-cache".to_owned());
    }
    args.extend(lora::args(adapters, &engine.args));
    args.extend(engine.args);
    args
}

/// The container's CPU limit in whole cores, rounded up.
fn cpu_limit(workload: &EngineWorkload) -> Option<u64> {
    let resources = workload.spec.pod_template.as_ref()?.resources.as_ref()?;
    let milli = quantity::milli_cores(&resources.limits.get("cpu")?.0)?;
    Some(milli.div_ceil(1000).max(1))
}
