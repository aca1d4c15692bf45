//! Secrets as the authority reads and writes them.

use std::future::Future;

use k8s_openapi::api::core::v1::Secret;

use super::SecretName;

/// Where Secrets are.
pub trait SecretStore: Sync {
    /// Why one could not be read or written.
    type Error: std::error::Error + Send + Sync + 'static;

    /// One Secret, or none.
    fn get(&self, name: &SecretName) -> impl Future<Output = Result<Option<Secret>, Self::Error>> + Send;

    /// Writes a Secret whole. Where it has a resource version, only if it is still of that version.
    fn apply(&self, secret: &Secret) -> impl Future<Output = Result<(), Self::Error>> + Send;
}
