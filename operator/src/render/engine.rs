//! The pod of a model's replica on a cluster: its engine, and what brings the weights.

mod custom;
mod events;
mod native;
mod role;
mod source;
mod vllm;

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, EnvVar, Probe, Volume, VolumeMount};
use strata_kinds::ModelDeploymentSpec;
use strata_kinds::model_deployment::{PodTemplate, Runtime};
use strata_kinds::quantity;

use super::hop::Scheme;
use super::pod::{self, Parts};
use crate::cluster::ClusterSite;
use crate::workload::EngineWorkload;

pub(crate) use source::egress_ports;

/// Loading that is allowed before the size counts.
const STARTUP_BASE: Duration = Duration::from_secs(600);
/// Bytes a second that loading is allowed to be slow as.
const LOADING_RATE: u64 = 100_000_000;
/// Bytes of weights that a GPU may hold, for the time that loading takes.
const BYTES_PER_GPU: u64 = 80_000_000_000;
/// Seconds between two looks at an engine that loads.
const STARTUP_PERIOD: i32 = 5;

pub(super) fn parts(engine: &EngineWorkload, added: &PodTemplate, site: &ClusterSite) -> Parts {
    let spec = &engine.spec;
    let source = source::of(spec, site);
    let mut parts = match spec.runtime() {
        Runtime::Native => native::parts(engine, &source, added, site),
        Runtime::Vllm => vllm::parts(engine, &source, added, site),
        Runtime::Custom => custom::parts(engine, &source.path, added, site),
    };
    parts.init.extend(source.init);
    parts.volumes.extend(source.volumes);
    if !source.mounts.is_empty() {
        parts.main.volume_mounts.get_or_insert_default().extend(source.mounts);
    }
    parts
}

/// Looks until it serves once: nothing else may kill an engine that loads.
fn startup(spec: &ModelDeploymentSpec, scheme: Scheme) -> Probe {
    let period = u64::from(STARTUP_PERIOD.unsigned_abs());
    let looks = startup_budget(spec).as_secs().div_ceil(period).clamp(1, 1_000_000);
    scheme.probe("/health", STARTUP_PERIOD, 4, i32::try_from(looks).unwrap_or(i32::MAX))
}

/// How long loading may take.
pub(super) fn startup_budget(spec: &ModelDeploymentSpec) -> Duration {
    let asked = spec.engine.as_ref().and_then(|e| e.startup_timeout.as_deref());
    if let Some(asked) = asked.and_then(quantity::duration) {
        return asked;
    }
    let resources = spec.pod_template.as_ref().and_then(|t| t.resources.as_ref());
    let memory = resources.and_then(|r| {
        let asked = r.limits.get("memory").or_else(|| r.requests.get("memory"))?;
        quantity::bytes(&asked.0)
    });
    let gpus: u64 = gpus(spec);
    let bytes = memory.unwrap_or(0).saturating_add(gpus.saturating_mul(BYTES_PER_GPU));
    STARTUP_BASE + Duration::from_secs(bytes / LOADING_RATE)
}

/// GPUs of one replica: those that the user asked for, else those that vLLM spreads over.
fn gpus(spec: &ModelDeploymentSpec) -> u64 {
    let asked: Vec<u64> = spec
        .pod_template
        .iter()
        .flat_map(|t| t.resources.iter().flat_map(|r| r.limits.iter()))
        .filter(|(name, _)| is_accelerator(name))
        .map(|(_, quantity)| quantity.0.parse().unwrap_or(1))
        .collect();
    match (asked.is_empty(), spec.runtime()) {
        (false, _) => asked.iter().fold(0u64, |sum, n| sum.saturating_add(*n)),
        (true, Runtime::Vllm) => vllm::gpus(spec),
        (true, _) => 0,
    }
}

/// Whether a resource is a device: Kubernetes' own have no `/` in their names.
pub(crate) fn is_device(resource: &str) -> bool {
    resource.contains('/') && !resource.starts_with("kubernetes.io/")
}

/// Whether a device computes. Those that only carry data between nodes stand beside it.
fn is_accelerator(resource: &str) -> bool {
    const NETWORK: [&str; 7] = ["rdma", "efa", "hca", "sriov", "roce", "infiniband", "ib_"];
    let name = resource.to_ascii_lowercase();
    is_device(&name) && !NETWORK.iter().any(|kind| name.contains(kind))
}

/// Why a replica's processes could not all have a device of their own, if the user asked for too few.
/// `at` is where it stands: `spec`.
pub(crate) fn too_few_devices(spec: &ModelDeploymentSpec, at: &str) -> Option<String> {
    let needed = spec.parallelism.as_ref().map_or(1, strata_kinds::model_deployment::Parallelism::devices);
    let asked = spec.pod_template.as_ref().and_then(|t| t.resources.as_ref())?;
    let (resource, given) = asked.limits.iter().find(|(name, _)| is_accelerator(name))?;
    let given: u64 = given.0.parse().ok()?;
    (spec.runtime() == Runtime::Vllm && given < needed).then(|| {
        format!(
            "`{at}.podTemplate.resources.limits`: {given} {resource} for a replica, and `{at}.parallelism` spreads it over {needed}: ask for {needed}, or leave the limit out"
        )
    })
}

/// A container that is not Strata's.
fn foreign(engine: &EngineWorkload, path: &str, added: &PodTemplate) -> Container {
    let spec = &engine.spec;
    let settings = spec.engine.clone().unwrap_or_default();
    let is_not_own = |variable: &EnvVar| added.env.iter().all(|own| own.name != variable.name);
    Container {
        name: "engine".to_owned(),
        image: settings.image,
        env: Some(
            [
                pod::variable("HOME", "/tmp"),
                pod::variable("STRATA_MODEL_PATH", path),
                pod::variable("STRATA_MODEL_NAME", spec.model.name.clone()),
                pod::drain_grace(added),
            ]
            .into_iter()
            .chain(engine.role.into_iter().flat_map(role::variables).filter(is_not_own))
            .chain(pod::added_env(added))
            .collect(),
        ),
        ports: Some(vec![pod::port()]),
        resources: pod::resources(added),
        startup_probe: Some(startup(spec, Scheme::Http)),
        readiness_probe: Some(Scheme::Http.probe("/health", 2, 4, 3)),
        liveness_probe: Some(Scheme::Http.probe("/health", 10, 10, 6)),
        lifecycle: Some(pod::drain()),
        security_context: Some(pod::restricted()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![mount("tmp", "/tmp", false)]),
        ..Container::default()
    }
}

/// Puts variables before the user's own, which win.
fn set_env(container: &mut Container, variables: impl IntoIterator<Item = EnvVar>) {
    let own = container.env.take().unwrap_or_default();
    let given: Vec<EnvVar> =
        variables.into_iter().filter(|v| !own.iter().any(|o| o.name == v.name)).collect();
    container.env = Some(given.into_iter().chain(own).collect());
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

fn empty_dir(name: &str, medium: Option<&str>) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: medium.map(ToOwned::to_owned),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    }
}
