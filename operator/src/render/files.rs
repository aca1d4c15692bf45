//! What an engine opens, its model and the adapters beside it, and what fetches that.

use k8s_openapi::api::core::v1::{EnvFromSource, SecretEnvSource};
use strata_kinds::ModelDeploymentSpec;
use strata_kinds::tenant::SecretRef;
use strata_wire::model_uri::{ModelSource, ModelUri};

/// The container that fetches the model; those that fetch adapters have a number after it.
pub(crate) const FETCH: &str = "fetch";

/// An adapter where an engine finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Adapter {
    /// The name that requests ask for.
    pub name: String,
    /// Its folder.
    pub path: String,
}

/// Files that belong together: those of a model, or of an adapter.
#[derive(Clone, Debug)]
pub(super) struct Files<'a> {
    /// Name of the container that fetches them, if anything does.
    pub container: String,
    /// Where they are, as it was written.
    pub uri: &'a str,
    revision: Option<&'a str>,
    credentials: Option<&'a SecretRef>,
}

impl<'a> Files<'a> {
    /// The model's.
    pub(super) fn of_model(spec: &'a ModelDeploymentSpec) -> Self {
        Self {
            container: FETCH.to_owned(),
            uri: &spec.model.uri,
            revision: spec.model.revision.as_deref(),
            credentials: spec.model.credentials_secret_ref.as_ref(),
        }
    }

    /// Those of each adapter, with its name.
    pub(super) fn of_adapters(spec: &'a ModelDeploymentSpec) -> impl Iterator<Item = (&'a str, Self)> {
        spec.adapters.iter().enumerate().map(|(index, adapter)| {
            let files = Self {
                container: format!("{FETCH}-adapter-{index}"),
                uri: &adapter.uri,
                revision: None,
                credentials: adapter.credentials_secret_ref.as_ref(),
            };
            (adapter.name.as_str(), files)
        })
    }

    /// What the URI says. One that says nothing is refused before; whatever it is, it can be a path.
    pub(super) fn parsed(&self) -> Option<ModelUri> {
        ModelUri::parse(self.uri, self.revision).ok()
    }

    /// The same, of files that are fetched.
    pub(super) fn fetched(&self) -> Option<ModelUri> {
        self.parsed().filter(|uri| uri.source() == ModelSource::Fetched)
    }

    /// Arguments of `strata fetch` that brings them below this folder.
    pub(super) fn arguments(&self, to: &str) -> Vec<String> {
        let mut args = vec!["--uri".to_owned(), self.uri.to_owned()];
        if let Some(revision) = self.revision {
            args.extend(["--revision".to_owned(), revision.to_owned()]);
        }
        args.extend(["--to".to_owned(), to.to_owned()]);
        args
    }

    /// The variables that let it fetch them.
    pub(super) fn credentials(&self) -> Option<Vec<EnvFromSource>> {
        self.credentials.map(|secret| {
            vec![EnvFromSource {
                secret_ref: Some(SecretEnvSource { name: secret.name.clone(), optional: None }),
                ..EnvFromSource::default()
            }]
        })
    }
}
