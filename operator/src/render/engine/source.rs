//! Where the weights come from: volumes, and the containers that fetch them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, PersistentVolumeClaimVolumeSource, ResourceRequirements, Volume, VolumeMount,
};
use strata_kinds::ModelDeploymentSpec;
use strata_wire::model_uri::{ModelSource, ModelUri};

use super::{empty_dir, mount};
use crate::cluster::ClusterSite;
use crate::render::files::{Adapter, Files};
use crate::render::pod::{environment, quantities, restricted};

/// Where the volume of models is mounted.
const MODELS: &str = "/models";
/// Where adapters are fetched to beside a model that is not fetched.
const ADAPTERS: &str = "/adapters";
/// Where claims with adapters are mounted, each below its name.
const CLAIMS: &str = "/claims";

/// What a pod needs for its model and the adapters beside it.
#[derive(Default)]
pub(super) struct Source {
    /// Where the engine finds the model.
    pub path: String,
    /// Where it finds the adapters.
    pub adapters: Vec<Adapter>,
    pub init: Vec<Container>,
    pub volumes: Vec<Volume>,
    pub mounts: Vec<VolumeMount>,
    /// Where each claim is mounted.
    claims: BTreeMap<String, String>,
}

pub(super) fn of(spec: &ModelDeploymentSpec, site: &ClusterSite) -> Source {
    let mut source = Source::default();
    let model = Files::of_model(spec);
    source.path = source.model(&model, spec, site);
    for (name, files) in Files::of_adapters(spec) {
        let path = source.adapter(&files, site);
        source.adapters.push(Adapter { name: name.to_owned(), path });
    }
    source
}

impl Source {
    fn model(&mut self, files: &Files<'_>, spec: &ModelDeploymentSpec, site: &ClusterSite) -> String {
        let Some(uri) = files.parsed() else { return files.uri.to_owned() };
        match &uri {
            ModelUri::Pvc { claim, .. } => self.claim("models", claim, MODELS, true),
            _ if uri.source() == ModelSource::Fetched => {
                self.init.push(fetch(files, "models", MODELS, site));
                match spec.model.cache.as_ref().and_then(|c| c.claim_name.as_deref()) {
                    Some(claim) => self.claim("models", claim, MODELS, false),
                    None => self.empty("models", MODELS),
                }
            }
            _ => {}
        }
        uri.path().under(MODELS)
    }

    fn adapter(&mut self, files: &Files<'_>, site: &ClusterSite) -> String {
        let Some(uri) = files.parsed() else { return files.uri.to_owned() };
        match &uri {
            ModelUri::Pvc { claim, .. } => {
                let volume = format!("claim-{}", self.claims.len());
                if !self.claims.contains_key(claim) {
                    self.claim(&volume, claim, &format!("{CLAIMS}/{claim}"), true);
                }
                uri.path().under(self.claims.get(claim).map_or(CLAIMS, String::as_str))
            }
            _ if uri.source() == ModelSource::Fetched => {
                // Beside a model that is fetched: a claim that keeps it keeps them too.
                let beside = self.init.iter().any(|c| c.name == crate::render::files::FETCH);
                let (volume, path) = if beside { ("models", MODELS) } else { ("adapters", ADAPTERS) };
                if self.volumes.iter().all(|v| v.name != volume) {
                    self.empty(volume, path);
                }
                self.init.push(fetch(files, volume, path, site));
                uri.path().under(path)
            }
            _ => uri.path().under(MODELS),
        }
    }

    fn claim(&mut self, volume: &str, claim: &str, path: &str, read_only: bool) {
        self.claims.insert(claim.to_owned(), path.to_owned());
        self.mounts.push(mount(volume, path, true));
        self.volumes.push(Volume {
            name: volume.to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.to_owned(),
                read_only: read_only.then_some(true),
            }),
            ..Volume::default()
        });
    }

    fn empty(&mut self, volume: &str, path: &str) {
        self.mounts.push(mount(volume, path, true));
        self.volumes.push(empty_dir(volume, None));
    }
}

/// Brings files before the engine starts. It alone sees the credentials.
fn fetch(files: &Files<'_>, volume: &str, to: &str, site: &ClusterSite) -> Container {
    Container {
        name: files.container.clone(),
        image: Some(site.image.clone()),
        image_pull_policy: site.image_pull_policy.clone(),
        command: Some(vec!["strata".to_owned(), "fetch".to_owned()]),
        args: Some(files.arguments(to)),
        env: Some(environment(site)),
        env_from: files.credentials(),
        resources: Some(ResourceRequirements {
            requests: Some(quantities(&[("cpu", "100m"), ("memory", "64Mi")])),
            limits: Some(quantities(&[("memory", "512Mi")])),
            ..ResourceRequirements::default()
        }),
        security_context: Some(restricted()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![mount(volume, to, false)]),
        ..Container::default()
    }
}

/// Ports that fetching the model and its adapters needs to reach; none when nothing is fetched.
pub(crate) fn egress_ports(spec: &ModelDeploymentSpec) -> Vec<u16> {
    let adapters = Files::of_adapters(spec).map(|(_, files)| files);
    let mut ports = Vec::new();
    for port in std::iter::once(Files::of_model(spec)).chain(adapters).flat_map(|files| ports_of(&files)) {
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    ports
}

fn ports_of(files: &Files<'_>) -> Vec<u16> {
    let port_of = |authority: &str| authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    match files.parsed() {
        Some(ModelUri::Hf { .. }) => vec![443],
        // The server may be one of your own, which only the Secret names: MinIO's port, and HTTP.
        Some(ModelUri::S3 { .. }) => vec![80, 443, 9000],
        Some(ModelUri::Oci { registry, .. }) => {
            let own = port_of(&registry);
            own.into_iter().chain([443]).collect()
        }
        Some(ModelUri::Https { url, .. }) => {
            let authority = url.trim_start_matches("https://").split('/').next().unwrap_or_default();
            vec![port_of(authority).unwrap_or(443)]
        }
        Some(ModelUri::Pvc { .. } | ModelUri::File { .. }) | None => Vec::new(),
    }
}
