//! The credential by which a layer knows the layer above it: made once in Strata's namespace, and
//! copied to every namespace with models.

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use serde_json::json;
use strata_hop::HopToken;

use super::caches::{Caches, Children};
use super::key::Key;
use super::shell::Shell;
use crate::cluster::{Child, MANAGED_LABEL, shared_owners};
use crate::workload::EngineWorkload;

/// The Secret's name.
pub(super) const NAME: &str = "strata-hop";
/// Its entry with the token.
const TOKEN: &str = "token";

/// Keeps the credential.
#[derive(Debug)]
pub(super) struct HopSecret;

/// The credential of this installation, once there is one.
pub(super) fn token(caches: &Caches, own: &str) -> Option<HopToken> {
    let secret = caches.secrets.get(&Key::new(own, NAME))?;
    let bytes = secret.data.as_ref()?.get(TOKEN)?;
    HopToken::new(std::str::from_utf8(&bytes.0).ok()?.trim())
}

impl HopSecret {
    /// Makes the Secret in Strata's namespace when it is missing, and copies it to another that needs it.
    ///
    /// The copy is owned by the models that need it, and goes with the last of them.
    pub(super) async fn keep(
        &self,
        shell: &Shell,
        namespace: &str,
        needed: bool,
        models: &[EngineWorkload],
    ) -> Result<(), kube::Error> {
        if !needed {
            return Ok(());
        }
        let own = shell.site.namespace.as_str();
        let found = shell.caches.secrets.get(&Key::new(own, NAME));
        let secret = match found.filter(|secret| has_token(secret)) {
            Some(secret) => secret,
            None if namespace == own => {
                fill(shell, own).await?;
                // Whoever waited for it.
                shell.poke_all(super::schedule::Lane::Bulk);
                return Ok(());
            }
            // Its own item makes it, and then looks at this namespace again.
            None => return Ok(()),
        };
        if namespace == own {
            return Ok(());
        }
        let copy = Child {
            resource: ApiResource::erase::<Secret>(&()),
            object: json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": NAME,
                    "namespace": namespace,
                    "labels": labels(),
                    "ownerReferences": shared_owners(models),
                },
                "type": "Opaque",
                "data": secret.data,
            }),
        };
        shell.applier.apply(&copy).await
    }
}

fn labels() -> serde_json::Value {
    json!({
        "app.kubernetes.io/name": "strata",
        "app.kubernetes.io/part-of": "strata",
        MANAGED_LABEL.0: MANAGED_LABEL.1,
    })
}

fn has_token(secret: &Secret) -> bool {
    secret.data.iter().flatten().any(|(name, value)| name == TOKEN && !value.0.is_empty())
}

/// Creates the Secret, or fills the empty one that the chart makes, and never replaces a token: another
/// would cut every layer off from the next.
async fn fill(shell: &Shell, own: &str) -> Result<(), kube::Error> {
    let mut random = [0u8; 32];
    getrandom::fill(&mut random).map_err(|error| kube::Error::Service(error.to_string().into()))?;
    let token = random.iter().fold(String::new(), |mut text, byte| {
        use std::fmt::Write as _;
        let _ = write!(text, "{byte:02x}");
        text
    });
    let api: Api<Secret> = Api::namespaced(shell.applier.client.clone(), own);
    let written = match api.get_opt(NAME).await? {
        // It came while we looked; the watch brings it.
        Some(found) if has_token(&found) => return Ok(()),
        // The version holds off another who fills it now.
        Some(found) => {
            let patch = json!({
                "metadata": { "resourceVersion": found.metadata.resource_version },
                "stringData": { TOKEN: token },
            });
            api.patch(NAME, &PatchParams::default(), &Patch::Merge(patch)).await
        }
        None => {
            let secret = json!({
                "metadata": { "name": NAME, "namespace": own, "labels": labels() },
                "type": "Opaque",
                "stringData": { TOKEN: token },
            });
            let secret: Secret = serde_json::from_value(secret).map_err(kube::Error::SerdeError)?;
            api.create(&PostParams::default(), &secret).await
        }
    };
    match written {
        Ok(made) => {
            tracing::info!(namespace = own, name = NAME, "made the credential between the layers");
            let text = serde_json::to_string(&made).map_err(kube::Error::SerdeError)?;
            Children::absorb(&shell.caches.secrets, &text).map(drop).map_err(kube::Error::SerdeError)
        }
        // Made by somebody else just now: the watch brings it.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}
