//! Where the weights come from: volumes, and the container that fetches them.

use k8s_openapi::api::core::v1::{
    Container, EnvFromSource, PersistentVolumeClaimVolumeSource, ResourceRequirements, SecretEnvSource,
    Volume, VolumeMount,
};
use strata_kinds::ModelDeploymentSpec;
use strata_wire::model_uri::{ModelSource, ModelUri};

use super::{empty_dir, mount};
use crate::cluster::ClusterSite;
use crate::render::pod::{environment, quantities, restricted};

/// Where the volume of models is mounted.
const MODELS: &str = "/models";

/// What a pod needs for its model.
pub(super) struct Source {
    /// Where the engine finds it.
    pub path: String,
    pub init: Option<Container>,
    pub volumes: Option<Volume>,
    pub mount: Option<VolumeMount>,
}

pub(super) fn of(spec: &ModelDeploymentSpec, site: &ClusterSite) -> Source {
    let model = &spec.model;
    // One that is no URI is refused before; whatever it is, it can be a path.
    let Ok(uri) = ModelUri::parse(&model.uri, model.revision.as_deref()) else {
        return Source { path: model.uri.clone(), init: None, volumes: None, mount: None };
    };
    let path = uri.path().under(MODELS);
    match uri.source() {
        ModelSource::Local => Source { path, init: None, volumes: None, mount: None },
        ModelSource::Claim => {
            let ModelUri::Pvc { claim: name, .. } = &uri else {
                return Source { path, init: None, volumes: None, mount: None };
            };
            Source {
                path,
                init: None,
                volumes: Some(claim(name, true)),
                mount: Some(mount("models", MODELS, true)),
            }
        }
        ModelSource::Fetched => {
            let kept = model.cache.as_ref().and_then(|c| c.claim_name.as_deref());
            Source {
                path,
                init: Some(fetch(spec, site)),
                volumes: Some(kept.map_or_else(|| empty_dir("models", None), |name| claim(name, false))),
                mount: Some(mount("models", MODELS, true)),
            }
        }
    }
}

fn claim(name: &str, read_only: bool) -> Volume {
    Volume {
        name: "models".to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: name.to_owned(),
            read_only: read_only.then_some(true),
        }),
        ..Volume::default()
    }
}

/// Brings the model before the engine starts. It alone sees the credentials.
fn fetch(spec: &ModelDeploymentSpec, site: &ClusterSite) -> Container {
    let model = &spec.model;
    let mut args = vec!["--uri".to_owned(), model.uri.clone()];
    if let Some(revision) = &model.revision {
        args.extend(["--revision".to_owned(), revision.clone()]);
    }
    args.extend(["--to".to_owned(), MODELS.to_owned()]);
    Container {
        name: "fetch".to_owned(),
        image: Some(site.image.clone()),
        image_pull_policy: site.image_pull_policy.clone(),
        command: Some(vec!["strata".to_owned(), "fetch".to_owned()]),
        args: Some(args),
        env: Some(environment(site)),
        env_from: model.credentials_secret_ref.as_ref().map(|secret| {
            vec![EnvFromSource {
                secret_ref: Some(SecretEnvSource { name: secret.name.clone(), optional: None }),
                ..EnvFromSource::default()
            }]
        }),
        resources: Some(ResourceRequirements {
            requests: Some(quantities(&[("cpu", "100m"), ("memory", "64Mi")])),
            limits: Some(quantities(&[("memory", "512Mi")])),
            ..ResourceRequirements::default()
        }),
        security_context: Some(restricted()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![mount("models", MODELS, false)]),
        ..Container::default()
    }
}

/// Ports that fetching a model needs to reach; none when it is not fetched.
pub(crate) fn egress_ports(spec: &ModelDeploymentSpec) -> Vec<u16> {
    let Ok(uri) = ModelUri::parse(&spec.model.uri, spec.model.revision.as_deref()) else { return Vec::new() };
    let port_of = |authority: &str| authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    match &uri {
        ModelUri::Hf { .. } => vec![443],
        // The server may be one of your own, which only the Secret names: MinIO's port, and HTTP.
        ModelUri::S3 { .. } => vec![80, 443, 9000],
        ModelUri::Oci { registry, .. } => {
            let own = port_of(registry);
            own.into_iter().chain([443]).collect()
        }
        ModelUri::Https { url, .. } => {
            let authority = url.trim_start_matches("https://").split('/').next().unwrap_or_default();
            vec![port_of(authority).unwrap_or(443)]
        }
        ModelUri::Pvc { .. } | ModelUri::File { .. } => Vec::new(),
    }
}
