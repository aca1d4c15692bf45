//! Where a host's engine finds its model and adapters, and the containers that fetch them there.

use k8s_openapi::api::core::v1::Container;
use strata_kinds::ModelDeploymentSpec;

use super::HostSite;
use super::files::{Adapter, Files};

/// The folder of fetched models within the home folder, which `STRATA_MODELS` moves.
const MODELS: &str = ".cache/strata/models";

/// What `--model` names: a fetched model's path, or the URI with the home folder in `~`'s place.
pub(super) fn model(spec: &ModelDeploymentSpec, host: &HostSite) -> String {
    let files = Files::of_model(spec);
    if let Some(fetched) = files.fetched() {
        return fetched.path().under(&folder(host));
    }
    match path_in_home(files.uri, host) {
        Some(path) => format!("file://{path}"),
        None => files.uri.to_owned(),
    }
}

/// The adapters. They are named by paths alone.
pub(super) fn adapters(spec: &ModelDeploymentSpec, host: &HostSite) -> Vec<Adapter> {
    let path = |files: &Files<'_>| {
        let there = || files.parsed().map(|uri| uri.path().under(&folder(host)));
        path_in_home(files.uri, host).or_else(there).unwrap_or_else(|| files.uri.to_owned())
    };
    Files::of_adapters(spec)
        .map(|(name, files)| Adapter { name: name.to_owned(), path: path(&files) })
        .collect()
}

/// Where something in the home folder is, or in the folder of models where that is another.
fn path_in_home(uri: &str, host: &HostSite) -> Option<String> {
    let path = uri.strip_prefix("file://~/")?;
    let under = |folder: &str, path: &str| format!("{}/{path}", folder.trim_end_matches('/'));
    match (path.strip_prefix(MODELS).and_then(|p| p.strip_prefix('/')), &host.models, &host.home) {
        (Some(model), Some(models), _) => Some(under(models, model)),
        (_, _, Some(home)) => Some(under(home, path)),
        _ => None,
    }
}

/// What runs before the engine: each brings the model, or an adapter, once for all replicas, and alone gets
/// the credentials for it.
pub(super) fn fetch(spec: &ModelDeploymentSpec, host: &HostSite) -> Vec<Container> {
    let all = std::iter::once(Files::of_model(spec)).chain(Files::of_adapters(spec).map(|(_, files)| files));
    all.filter(|files| files.fetched().is_some())
        .map(|files| Container {
            name: files.container.clone(),
            command: Some(vec!["strata".to_owned(), "fetch".to_owned()]),
            args: Some(files.arguments(&folder(host))),
            env_from: files.credentials(),
            ..Container::default()
        })
        .collect()
}

/// Where fetched models are kept.
fn folder(host: &HostSite) -> String {
    match (&host.models, &host.home) {
        (Some(models), _) => models.trim_end_matches('/').to_owned(),
        (None, Some(home)) => format!("{}/{MODELS}", home.trim_end_matches('/')),
        (None, None) => format!("{}/models", host.state),
    }
}
