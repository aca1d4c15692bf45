//! vLLM, by its own image and flags.

use strata_kinds::ModelDeploymentSpec;
use strata_kinds::model_deployment::{Device, PodTemplate};
use strata_kinds::quantity;

use super::source::Source;
use super::{empty_dir, events, foreign, is_accelerator, mount, role, set_env};
use crate::cluster::ClusterSite;
use crate::render::pod::{Parts, quantities, stream_seconds, variable};
use crate::render::{PORT, lora};
use crate::workload::EngineWorkload;

/// How long it finishes streams after it was told to stop, in seconds.
const DRAIN: &str = "--shutdown-timeout";
/// The resource that a GPU is.
const GPU: &str = "nvidia.com/gpu";

pub(super) fn parts(
    engine: &EngineWorkload,
    source: &Source,
    added: &PodTemplate,
    site: &ClusterSite,
) -> Parts {
    let spec = &engine.spec;
    let mut main = foreign(engine, &source.path, added);
    // The image's entry point has changed over its versions; this has not.
    main.command = Some(vec!["vllm".to_owned(), "serve".to_owned()]);
    let events = events::of(spec, site);
    main.ports.get_or_insert_default().extend(events.ports);
    main.args = Some(args(engine, source, events.args, added));
    let threads = spec.engine.as_ref().and_then(|e| e.threads);
    set_env(
        &mut main,
        [
            // The model is there: nothing is asked of a hub, and nothing is reported to anybody.
            variable("HF_HUB_OFFLINE", "1"),
            variable("TRANSFORMERS_OFFLINE", "1"),
            variable("VLLM_NO_USAGE_STATS", "1"),
            variable("DO_NOT_TRACK", "1"),
            // The root is read-only, and the user has no entry in /etc/passwd.
            variable("USER", "strata"),
            variable("XDG_CACHE_HOME", "/tmp/cache"),
            variable("XDG_CONFIG_HOME", "/tmp/config"),
            variable("VLLM_CACHE_ROOT", "/tmp/cache/vllm"),
            variable("TRITON_CACHE_DIR", "/tmp/cache/triton"),
            variable("TORCHINDUCTOR_CACHE_DIR", "/tmp/cache/inductor"),
        ]
        .into_iter()
        .chain(threads.map(|n| variable("OMP_NUM_THREADS", n.to_string()))),
    );
    let gpus = gpus(spec);
    if gpus > 0 {
        let limits = main.resources.get_or_insert_default().limits.get_or_insert_default();
        limits.extend(quantities(&[(GPU, &gpus.to_string())]));
    }
    // Processes of one replica share tensors by /dev/shm, which is 64 MB by default.
    main.volume_mounts.get_or_insert_default().push(mount("shm", "/dev/shm", false));
    Parts { main, init: Vec::new(), volumes: vec![empty_dir("tmp", None), empty_dir("shm", Some("Memory"))] }
}

/// GPUs that Strata asks for: none on a CPU, and none where the user asked for some.
pub(super) fn gpus(spec: &ModelDeploymentSpec) -> u64 {
    let on_cpu = spec.engine.as_ref().and_then(|e| e.device) == Some(Device::Cpu);
    let limits = spec.pod_template.iter().flat_map(|t| t.resources.iter().flat_map(|r| r.limits.keys()));
    if on_cpu || limits.into_iter().any(|name| is_accelerator(name)) {
        return 0;
    }
    spec.parallelism.as_ref().map_or(1, strata_kinds::model_deployment::Parallelism::devices)
}

fn args(workload: &EngineWorkload, source: &Source, events: Vec<String>, added: &PodTemplate) -> Vec<String> {
    let spec = &workload.spec;
    let mut args = vec![source.path.clone()];
    let mut add = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
    add("--served-model-name", spec.model.name.clone());
    add("--host", "0.0.0.0".to_owned());
    add("--port", PORT.to_string());
    let parallelism = spec.parallelism.clone().unwrap_or_default();
    for (flag, size) in [
        ("--tensor-parallel-size", parallelism.tensor),
        ("--pipeline-parallel-size", parallelism.pipeline),
        ("--data-parallel-size", parallelism.data),
    ] {
        if let Some(size) = size.filter(|n| *n > 1) {
            add(flag, size.to_string());
        }
    }
    let engine = spec.engine.clone().unwrap_or_default();
    // By itself it cuts every stream when it is told to stop (vLLM 0.18 or newer knows the flag).
    if !engine.args.iter().any(|arg| arg.starts_with(DRAIN)) {
        add(DRAIN, stream_seconds(added).to_string());
    }
    if let Some(length) = engine.max_model_len {
        add("--max-model-len", length.to_string());
    }
    let kv_cache = engine.kv_cache.unwrap_or_default();
    if let Some(bytes) = kv_cache.memory.as_deref().and_then(quantity::bytes) {
        add("--kv-cache-memory-bytes", bytes.to_string());
    }
    if let Some(blocks) = kv_cache.blocks {
        add("--num-gpu-blocks-override", blocks.to_string());
    }
    if parallelism.expert.is_some_and(|n| n > 1) {
        args.push("--enable-expert-parallel".to_owned());
    }
    match kv_cache.prefix_caching {
        Some(true) => args.push("--enable-prefix-caching".to_owned()),
        Some(false) => args.push("--no-enable-prefix-caching".to_owned()),
        None => {}
    }
    if workload.role.is_some() {
        args.extend(role::args(&engine.args));
    }
    args.extend(events);
    args.extend(lora::args(&source.adapters, &engine.args));
    args.extend(engine.args);
    args
}
