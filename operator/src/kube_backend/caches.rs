//! All that is watched, one cache a kind, shared by all who read.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::core::ApiResource;
use strata_kinds::{ModelDeployment, QuotaPolicy, Tenant};

use super::apply::is_labelled;
use super::cache::{Cache, Marks};
use super::kept::{Meta, Parsed};
use super::key::Key;
use super::watch::Keep;
use crate::cluster::Capabilities;
use crate::trust::{AUTHORITY_SECRET, BESIDE_MODELS, CENTRAL_SECRETS};

/// The caches.
#[derive(Debug)]
pub(super) struct Caches {
    pub(super) models: Cache<Parsed<ModelDeployment>>,
    pub(super) tenants: Cache<Parsed<Tenant>>,
    pub(super) policies: Cache<Parsed<QuotaPolicy>>,
    pub(super) deployments: Cache<Deployment>,
    pub(super) pods: Cache<Pod>,
    pub(super) revisions: Cache<ControllerRevision>,
    pub(super) autoscalers: Cache<HorizontalPodAutoscaler>,
    pub(super) secrets: Cache<Secret>,
    /// The layers' certificates. Each name is watched by itself, for Secrets are read by name alone.
    pub(super) certificates: Vec<Certificates>,
    /// Kinds of which nothing but the metadata is read.
    pub(super) others: Vec<Other>,
    /// Optional kinds that the cluster has, by name of their definition.
    present: Mutex<Present>,
}

/// The Secrets of one name.
#[derive(Debug)]
pub(super) struct Certificates {
    pub(super) name: &'static str,
    /// Whether they are beside the models; else there is one, in Strata's own namespace.
    pub(super) beside_models: bool,
    pub(super) cache: Cache<Secret>,
}

/// A kind of which nothing but the metadata is read.
#[derive(Debug)]
pub(super) struct Other {
    pub(super) resource: ApiResource,
    /// Whether a cluster may lack it.
    pub(super) optional: bool,
    pub(super) cache: Cache<Meta>,
}

#[derive(Clone, Debug, Default)]
struct Present {
    kinds: BTreeSet<String>,
    external_metrics: bool,
}

/// The name of a kind's definition.
pub(super) fn definition(resource: &ApiResource) -> String {
    format!("{}.{}", resource.plural, resource.group)
}

impl Caches {
    pub(super) fn new() -> Self {
        let builtin = [
            ApiResource::erase::<Service>(&()),
            ApiResource::erase::<ServiceAccount>(&()),
            ApiResource::erase::<Role>(&()),
            ApiResource::erase::<RoleBinding>(&()),
            ApiResource::erase::<NetworkPolicy>(&()),
            ApiResource::erase::<PodDisruptionBudget>(&()),
        ];
        let certificates =
            |beside_models| move |name| Certificates { name, beside_models, cache: Cache::default() };
        let other = |optional| move |resource| Other { resource, optional, cache: Cache::default() };
        Self {
            models: Cache::default(),
            tenants: Cache::default(),
            policies: Cache::default(),
            deployments: Cache::default(),
            pods: Cache::default(),
            revisions: Cache::default(),
            autoscalers: Cache::default(),
            secrets: Cache::default(),
            certificates: CENTRAL_SECRETS
                .into_iter()
                .chain([AUTHORITY_SECRET])
                .map(certificates(false))
                .chain(BESIDE_MODELS.into_iter().map(certificates(true)))
                .collect(),
            others: builtin
                .into_iter()
                .map(other(false))
                .chain(Capabilities::kinds().into_iter().map(other(true)))
                .collect(),
            present: Mutex::default(),
        }
    }

    fn present(&self) -> std::sync::MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cluster has an optional kind now, or has it no more.
    pub(super) fn set_present(&self, definition: &str, is: bool) {
        let mut present = self.present();
        if is {
            present.kinds.insert(definition.to_owned());
        } else {
            present.kinds.remove(definition);
        }
    }

    /// The cluster has an external metrics API now, or has none any more.
    pub(super) fn set_external_metrics(&self, has: bool) {
        self.present().external_metrics = has;
    }

    /// What the cluster has.
    pub(super) fn capabilities(&self) -> Capabilities {
        let present = self.present().clone();
        Capabilities::found(|kind| present.kinds.contains(&definition(kind)), present.external_metrics)
    }

    /// The children of a kind. `None` for one that is not watched.
    pub(super) fn children(&self, resource: &ApiResource) -> Option<&dyn Children> {
        match (resource.group.as_str(), resource.kind.as_str()) {
            ("apps", "Deployment") => Some(&self.deployments),
            ("apps", "ControllerRevision") => Some(&self.revisions),
            ("autoscaling", "HorizontalPodAutoscaler") => Some(&self.autoscalers),
            ("", "Secret") => Some(&self.secrets),
            (group, kind) => {
                let same = |o: &&Other| o.resource.group == group && o.resource.kind == kind;
                self.others.iter().find(same).map(|o| &o.cache as &dyn Children)
            }
        }
    }

    /// The watched Secrets of a name, if it is that of certificates.
    pub(super) fn certificates(&self, name: &str) -> Option<&Cache<Secret>> {
        self.certificates.iter().find(|c| c.name == name).map(|c| &c.cache)
    }

    /// All models that can be read.
    pub(super) fn good_models(&self) -> Vec<Arc<ModelDeployment>> {
        self.models.all().iter().filter_map(|m| m.good().cloned()).collect()
    }

    /// The models of a namespace that can be read.
    pub(super) fn models_in(&self, namespace: &str) -> Vec<Arc<ModelDeployment>> {
        let mut models = self.good_models();
        models.retain(|m| m.metadata.namespace.as_deref() == Some(namespace));
        models
    }

    /// Numbers of objects by kind, for metrics.
    pub(super) fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("ModelDeployment", self.models.len()),
            ("Tenant", self.tenants.len()),
            ("QuotaPolicy", self.policies.len()),
            ("Deployment", self.deployments.len()),
            ("Pod", self.pods.len()),
            ("ControllerRevision", self.revisions.len()),
            ("HorizontalPodAutoscaler", self.autoscalers.len()),
            ("Other", self.others.iter().map(|o| o.cache.len()).sum()),
        ]
    }
}

/// A child of a cache, as sweeping needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnedChild {
    pub(super) name: String,
    pub(super) uid: String,
    /// Uids of its owners; that of its controller first.
    pub(super) owners: Vec<String>,
    pub(super) leaving: bool,
}

/// The objects of a kind that is applied.
pub(super) trait Children: Send + Sync {
    /// What says whether an object is as it was applied.
    fn marks(&self, key: &Key) -> Option<Marks>;
    /// Whether an object is known, and says that it is ours.
    fn is_labelled(&self, key: &Key) -> bool;
    /// Takes the API server's answer to a write.
    fn absorb(&self, answer: &str) -> Result<Marks, serde_json::Error>;
    /// Drops an object that was deleted.
    fn forget(&self, namespace: &str, child: &OwnedChild);
    /// What belongs to a model, or, without one, what a namespace's models share.
    fn owned(&self, namespace: &str, model: Option<&str>) -> Vec<OwnedChild>;
}

impl<K: Keep> Children for Cache<K> {
    fn marks(&self, key: &Key) -> Option<Marks> {
        Cache::marks(self, key)
    }

    fn is_labelled(&self, key: &Key) -> bool {
        self.get(key).is_some_and(|object| is_labelled(object.meta()))
    }

    fn absorb(&self, answer: &str) -> Result<Marks, serde_json::Error> {
        let object: K::Watched = serde_json::from_str(answer)?;
        let marks = Marks::of(kube::Resource::meta(&object));
        Cache::absorb(self, K::keep(object), marks);
        Ok(marks)
    }

    fn forget(&self, namespace: &str, child: &OwnedChild) {
        if let Some(object) = self.get(&Key::new(namespace, child.name.clone()))
            && object.meta().uid.as_deref() == Some(&child.uid)
        {
            self.remove(object.meta());
        }
    }

    fn owned(&self, namespace: &str, model: Option<&str>) -> Vec<OwnedChild> {
        let mut owned: Vec<OwnedChild> =
            self.group(namespace, model).iter().map(|o| owned_child(o.meta())).collect();
        owned.sort_by(|a, b| a.name.cmp(&b.name));
        owned
    }
}

fn owned_child(meta: &kube::core::ObjectMeta) -> OwnedChild {
    let mut owners: Vec<_> = meta.owner_references.iter().flatten().collect();
    owners.sort_by_key(|o| o.controller != Some(true));
    OwnedChild {
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        owners: owners.iter().map(|o| o.uid.clone()).collect(),
        leaving: meta.deletion_timestamp.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_that_is_swept_is_watched() {
        let caches = Caches::new();
        for kind in crate::cluster::swept_kinds() {
            assert!(caches.children(&kind).is_some(), "{}", kind.kind);
        }
    }
}
