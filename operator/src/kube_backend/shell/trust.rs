//! Sees to it that every layer has a certificate, where layers know each other by those.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};

use super::{Failure, Reconciled, Shell};
use crate::cluster::shared_owners;
use crate::kube_backend::FIELD_MANAGER;
use crate::kube_backend::apply::{NOT_OURS, is_labelled};
use crate::kube_backend::cache::Marks;
use crate::kube_backend::key::Key;
use crate::kube_backend::watch::Keep;
use crate::trust::{AUTHORITY_SECRET, SecretName, SecretStore, TrustError, wanted};
use crate::workload::EngineWorkload;

/// Certificates end by the clock on the wall, which a timer of this length does not lose sight of.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

impl Shell {
    pub(super) async fn trust(&self) -> Reconciled {
        let Some(authority) = &self.authority else { return Ok(None) };
        let models = self.owners_by_namespace();
        self.certified.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&models);
        let wanted = wanted(self.site.mode, &self.site.namespace, &models);
        let now = seconds_since_1970();
        let outcome = authority.reconcile(&Secrets(self), &wanted, now).await.map_err(failure)?;
        let wait = Duration::from_secs(outcome.due.saturating_sub(now).max(1).unsigned_abs());
        Ok(Some(wait.min(LONGEST_WAIT)))
    }

    /// Whether the certificates of a namespace belong to other models than when they were looked at.
    pub(super) fn is_news_to_trust(&self, namespace: &str, models: &[EngineWorkload]) -> bool {
        let certified = self.certified.lock().unwrap_or_else(PoisonError::into_inner);
        let known = certified.get(namespace).map(Vec::as_slice).unwrap_or_default();
        self.authority.is_some() && known != shared_owners(models)
    }

    fn owners_by_namespace(&self) -> BTreeMap<String, Vec<OwnerReference>> {
        let models = self.caches.good_models();
        let namespaces: BTreeSet<&str> =
            models.iter().filter_map(|m| m.metadata.namespace.as_deref()).collect();
        let owners = namespaces.into_iter().map(|n| (n.to_owned(), shared_owners(&self.engines(n))));
        owners.filter(|(_, owners)| !owners.is_empty()).collect()
    }
}

fn failure(error: TrustError) -> Failure {
    let (what, source) = match error {
        TrustError::Read { name, source } => (format!("reading the Secret {name}"), source),
        TrustError::Write { name, source } => (format!("the Secret {name}"), source),
        other => {
            let (what, message) = ("the layers' certificates".to_owned(), other.to_string());
            return Failure::Refused { what, message, again: None };
        }
    };
    match source.downcast::<kube::Error>() {
        Ok(error) => Failure::new(what, &error),
        Err(error) => Failure::Refused { what, message: error.to_string(), again: None },
    }
}

fn seconds_since_1970() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Secrets as the watches have them, but for the authorities: what they are decides on all others, so
/// that they are read from the API server itself.
struct Secrets<'a>(&'a Shell);

impl SecretStore for Secrets<'_> {
    type Error = kube::Error;

    async fn get(&self, name: &SecretName) -> Result<Option<Secret>, kube::Error> {
        let Some(cache) = self.0.caches.certificates(&name.name).filter(|_| name.name != AUTHORITY_SECRET)
        else {
            return self.api(&name.namespace).get_opt(&name.name).await;
        };
        Ok(cache.get(&Key::new(&name.namespace, &name.name)).map(|secret| (*secret).clone()))
    }

    async fn apply(&self, secret: &Secret) -> Result<(), kube::Error> {
        let (namespace, name) = (secret.namespace().unwrap_or_default(), secret.name_any());
        // Those of Strata's own namespace are the chart's, empty or filled by us.
        let there = self.0.caches.certificates(&name).and_then(|c| c.get(&Key::new(namespace, &name)));
        if is_labelled(&secret.metadata) && there.is_some_and(|there| !is_labelled(&there.metadata)) {
            return Err(kube::Error::Service(NOT_OURS.into()));
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let api = self.api(&secret.namespace().unwrap_or_default());
        let written = api.patch(&secret.name_any(), &params, &Patch::Apply(secret)).await?;
        if let Some(cache) = self.0.caches.certificates(&secret.name_any()) {
            let marks = Marks::of(&written.metadata);
            cache.absorb(Secret::keep(written), marks);
        }
        Ok(())
    }
}

impl Secrets<'_> {
    fn api(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.0.applier.client.clone(), namespace)
    }
}
