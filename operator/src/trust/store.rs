//! Secrets as the authority reads and writes them.

use std::future::Future;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};

use super::SecretName;
use crate::kube_backend::FIELD_MANAGER;

/// Where Secrets are.
pub trait SecretStore: Sync {
    /// Why one could not be read or written.
    type Error: std::error::Error + Send + Sync + 'static;

    /// One Secret, or none.
    fn get(&self, name: &SecretName) -> impl Future<Output = Result<Option<Secret>, Self::Error>> + Send;

    /// Writes a Secret whole. Where it has a resource version, only if it is still of that version.
    fn apply(&self, secret: &Secret) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// The API server's.
#[derive(Clone)]
pub struct KubeSecrets(Client);

impl KubeSecrets {
    /// Through this client.
    pub fn new(client: Client) -> Self {
        Self(client)
    }

    fn api(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.0.clone(), namespace)
    }
}

impl SecretStore for KubeSecrets {
    type Error = kube::Error;

    async fn get(&self, name: &SecretName) -> Result<Option<Secret>, kube::Error> {
        self.api(&name.namespace).get_opt(&name.name).await
    }

    async fn apply(&self, secret: &Secret) -> Result<(), kube::Error> {
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let api = self.api(&secret.namespace().unwrap_or_default());
        api.patch(&secret.name_any(), &params, &Patch::Apply(secret)).await.map(drop)
    }
}
