//! Where a host's engine finds its model, and the container that fetches it there.

use k8s_openapi::api::core::v1::{Container, EnvFromSource, SecretEnvSource};
use strata_kinds::ModelDeploymentSpec;
use strata_wire::model_uri::{ModelSource, ModelUri};

use super::HostSite;

/// The folder of fetched models within the home folder, which `STRATA_MODELS` moves.
const MODELS: &str = ".cache/strata/models";

/// What `--model` names: a fetched model's path, or the URI with the home folder in `~`'s place.
pub(super) fn model(spec: &ModelDeploymentSpec, host: &HostSite) -> String {
    let uri = &spec.model.uri;
    if let Some(fetched) = fetched(spec) {
        return fetched.path().under(&folder(host));
    }
    let Some(path) = uri.strip_prefix("file://~/") else { return uri.clone() };
    let under = |folder: &str, path: &str| format!("file://{}/{path}", folder.trim_end_matches('/'));
    match (path.strip_prefix(MODELS).and_then(|p| p.strip_prefix('/')), &host.models, &host.home) {
        (Some(model), Some(models), _) => under(models, model),
        (_, _, Some(home)) => under(home, path),
        _ => uri.clone(),
    }
}

/// What runs before the engine: it brings the model, once for all replicas. It alone gets the
/// credentials.
pub(super) fn fetch(spec: &ModelDeploymentSpec, host: &HostSite) -> Option<Container> {
    fetched(spec)?;
    let model = &spec.model;
    let mut args = vec!["--uri".to_owned(), model.uri.clone()];
    if let Some(revision) = &model.revision {
        args.extend(["--revision".to_owned(), revision.clone()]);
    }
    args.extend(["--to".to_owned(), folder(host)]);
    Some(Container {
        name: "fetch".to_owned(),
        command: Some(vec!["strata".to_owned(), "fetch".to_owned()]),
        args: Some(args),
        env_from: model.credentials_secret_ref.as_ref().map(|secret| {
            vec![EnvFromSource {
                secret_ref: Some(SecretEnvSource { name: secret.name.clone(), optional: None }),
                ..EnvFromSource::default()
            }]
        }),
        ..Container::default()
    })
}

fn fetched(spec: &ModelDeploymentSpec) -> Option<ModelUri> {
    let uri = ModelUri::parse(&spec.model.uri, spec.model.revision.as_deref()).ok()?;
    (uri.source() == ModelSource::Fetched).then_some(uri)
}

/// Where fetched models are kept.
fn folder(host: &HostSite) -> String {
    match (&host.models, &host.home) {
        (Some(models), _) => models.trim_end_matches('/').to_owned(),
        (None, Some(home)) => format!("{}/{MODELS}", home.trim_end_matches('/')),
        (None, None) => format!("{}/models", host.state),
    }
}
