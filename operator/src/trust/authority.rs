//! Carries plans out.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;
use strata_hop::tls::credentials::{AUTHORITIES, CERTIFICATE, KEY};
use strata_hop::tls::{Component, Files, Identity};
use strata_hop::{Mtls, MtlsError};

use super::issue::{self, IssueError};
use super::plan::{SecretAction, World, due, plan};
use super::record;
use super::store::SecretStore;
use super::{Held, Schedule, SecretName, Wanted};
use crate::render::labels;

/// Most plans in a row. Two suffice where nobody else writes: one makes an authority, the next what
/// depends on it.
const ROUNDS: usize = 6;

/// Strata's own authority.
#[derive(Debug)]
pub struct Authority {
    namespace: String,
    schedule: Schedule,
    own: OnceLock<Mtls>,
}

/// How a round of reconciling went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Secrets that were written.
    pub written: usize,
    /// When there is something to do again though nothing else changes, in seconds since 1970.
    pub due: i64,
}

/// Why Secrets are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// One could not be read.
    #[error("cannot read the Secret {name}: {source}")]
    Read {
        /// Which.
        name: SecretName,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// One could not be written.
    #[error("cannot write the Secret {name}: {source}")]
    Write {
        /// Which.
        name: SecretName,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A certificate could not be made.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The operator's own certificate is of no use to it.
    #[error(transparent)]
    Own(#[from] MtlsError),
    /// Somebody else writes the same Secrets.
    #[error(
        "the Secrets of the layers' certificates change as fast as they are written; does another operator write them?"
    )]
    Restless,
}

impl Authority {
    /// The authority whose Secrets are in Strata's namespace.
    pub fn new(namespace: &str) -> Self {
        Self::with(namespace, Schedule::default())
    }

    /// The same by other times.
    pub fn with(namespace: &str, schedule: Schedule) -> Self {
        Self { namespace: namespace.to_owned(), schedule, own: OnceLock::new() }
    }

    /// The operator's own certificate, kept up to date by every round; none before the first. A pod
    /// cannot mount what it has yet to make.
    pub fn own(&self) -> Option<&Mtls> {
        self.own.get()
    }

    /// Sees to it that everybody in `wanted` has a certificate that holds. `now` is in seconds since
    /// 1970. A Secret that cannot be written does not keep the others from it: the first error is
    /// returned after all have been tried. Only the leader among several operators may call this.
    pub async fn reconcile<S: SecretStore>(
        &self,
        store: &S,
        wanted: &[Wanted],
        now: i64,
    ) -> Result<Outcome, TrustError> {
        let mut existing = BTreeMap::new();
        let authorities = SecretName::authorities(&self.namespace);
        let names = wanted.iter().map(|w| SecretName::of(&w.identity));
        let mut version = None;
        for name in names.chain([authorities.clone()]) {
            if let Some(secret) = read(store, &name).await? {
                if name == authorities {
                    version.clone_from(&secret.metadata.resource_version);
                }
                existing.insert(name, held(secret));
            }
        }
        let (mut written, mut failure) = (0, None);
        for _ in 0..ROUNDS {
            let world =
                World { namespace: &self.namespace, existing: &existing, wanted, schedule: &self.schedule };
            let actions = plan(&world, now);
            if actions.is_empty() || failure.is_some() {
                let due = due(&world, now);
                self.follow_own(&existing)?;
                return failure.map_or(Ok(Outcome { written, due }), Err);
            }
            for action in actions {
                let is_authorities = matches!(action, SecretAction::Authorities { .. });
                let (name, held) = self.carry_out(action, now)?;
                let expected = if is_authorities { version.take() } else { None };
                let sent = store.apply(&secret(&name, &held, expected)).await;
                if let Err(source) = sent {
                    let error = TrustError::Write { name, source: source.into() };
                    if is_authorities {
                        // Everything else depends on it.
                        return Err(error);
                    }
                    tracing::warn!(%error, "a component gets no certificate");
                    failure.get_or_insert(error);
                    continue;
                }
                written += 1;
                existing.insert(name, held);
                if is_authorities && let Some(secret) = read(store, &authorities).await? {
                    version.clone_from(&secret.metadata.resource_version);
                    existing.insert(authorities.clone(), self::held(secret));
                }
            }
        }
        failure.map_or(Err(TrustError::Restless), Err)
    }

    fn carry_out(&self, action: SecretAction, now: i64) -> Result<(SecretName, Held), IssueError> {
        let of = |identity: &Identity, files: Files, owners: Vec<OwnerReference>| {
            let data = BTreeMap::from([
                (CERTIFICATE.to_owned(), files.certificate),
                (KEY.to_owned(), files.key),
                (AUTHORITIES.to_owned(), files.authorities),
            ]);
            (SecretName::of(identity), Held { data, owners })
        };
        Ok(match action {
            SecretAction::Authorities { mut keep, make } => {
                if make {
                    let made = issue::authority(&self.schedule, now)?;
                    tracing::info!(id = made.id, others = keep.len(), "made an authority");
                    keep.push(made);
                }
                let held = Held { data: record::write(&keep), owners: Vec::new() };
                (SecretName::authorities(&self.namespace), held)
            }
            SecretAction::Issue { identity, owners, signer, bundle, why } => {
                tracing::info!(%identity, signer = signer.id, ?why, "made a certificate");
                let files = issue::leaf(&identity, &signer, &bundle, &self.schedule, now)?;
                of(&identity, files, owners)
            }
            SecretAction::Update { identity, owners, files } => {
                tracing::info!(%identity, "certificate stands beside other authorities or owners");
                of(&identity, files, owners)
            }
        })
    }

    /// Takes the operator's own certificate from what was read and written.
    fn follow_own(&self, existing: &BTreeMap<SecretName, Held>) -> Result<(), TrustError> {
        let Some(identity) = Identity::new(&self.namespace, Component::Operator) else { return Ok(()) };
        let Some(held) = existing.get(&SecretName::of(&identity)) else { return Ok(()) };
        let file = |name: &str| held.data.get(name).cloned().unwrap_or_default();
        let files = Files { certificate: file(CERTIFICATE), key: file(KEY), authorities: file(AUTHORITIES) };
        if let Some(own) = self.own.get() {
            own.replace(files)?;
        } else {
            let _ = self.own.set(Mtls::of(files, Component::Operator)?);
        }
        Ok(())
    }
}

async fn read<S: SecretStore>(store: &S, name: &SecretName) -> Result<Option<Secret>, TrustError> {
    store.get(name).await.map_err(|source| TrustError::Read { name: name.clone(), source: source.into() })
}

fn held(secret: Secret) -> Held {
    Held::new(
        secret.data.unwrap_or_default().into_iter().map(|(name, bytes)| (name, bytes.0)).collect(),
        secret.metadata.owner_references.unwrap_or_default(),
    )
}

fn secret(name: &SecretName, held: &Held, version: Option<String>) -> Secret {
    // The others are the chart's, which has labels of its own for them.
    let beside_models = name.beside_models().map(|component| labels(component, None));
    Secret {
        metadata: ObjectMeta {
            name: Some(name.name.clone()),
            namespace: Some(name.namespace.clone()),
            labels: beside_models,
            owner_references: (!held.owners.is_empty()).then(|| held.owners.clone()),
            resource_version: version,
            ..ObjectMeta::default()
        },
        data: Some(held.data.iter().map(|(k, v)| (k.clone(), ByteString(v.clone()))).collect()),
        ..Secret::default()
    }
}
