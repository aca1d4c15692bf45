//! Brings children to the API server, and takes away what is not wanted any more.
//!
//! An object is sent when it was rendered otherwise than last time, or when the fields that belong to
//! our field manager are others than those that the API server answered last time: whoever changes
//! one of our fields takes it over, and so it goes missing there. Values are never compared.
//!
//! What is not known as ours is sent without force: somebody else's object of the same name is refused by
//! the API server, and not taken over.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::{ApiResource, DynamicObject, Request};
use kube::{Client, Resource};
use serde_json::Value;

use super::cache::FIELD_MANAGER;
use super::caches::{Caches, OwnedChild};
use super::key::Key;
use super::metrics::Metrics;
use crate::cluster::{Capabilities, Child, ChildKey, swept_kinds};

/// What was sent of a child last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    /// Hash of the object.
    object: u64,
    /// Hash of the fields that were ours in the answer.
    ours: u64,
}

/// Sends children.
pub(super) struct Applier {
    pub(super) client: Client,
    pub(super) caches: Arc<Caches>,
    pub(super) metrics: Arc<Metrics>,
    sent: Mutex<HashMap<ChildKey, Sent>>,
}

/// Whose children are swept.
#[derive(Clone, Copy, Debug)]
pub(super) enum Family<'a> {
    /// A model's: only those that it controls.
    Model { name: &'a str, uid: &'a str },
    /// What the models of a namespace share.
    Namespace,
}

impl Applier {
    pub(super) fn new(client: Client, caches: Arc<Caches>, metrics: Arc<Metrics>) -> Self {
        Self { client, caches, metrics, sent: Mutex::default() }
    }

    fn sent(&self) -> std::sync::MutexGuard<'_, HashMap<ChildKey, Sent>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another process may have applied meanwhile, as the same field manager.
    pub(super) fn forget_all(&self) {
        self.sent().clear();
    }

    /// Sends a child, unless it is as it should be.
    pub(super) async fn apply(&self, child: &Child) -> Result<(), kube::Error> {
        let key = child.key();
        let object = hash(&child.object);
        let store = self.caches.children(&child.resource);
        let known = self.sent().get(&key).copied();
        let marks = store.and_then(|s| s.marks(&Key::new(child.namespace(), child.name())));
        let as_sent = known.is_some_and(|sent| {
            sent.object == object && (store.is_none() || marks.is_some_and(|m| m.ours == sent.ours))
        });
        if as_sent {
            self.metrics.skipped();
            return Ok(());
        }
        let is_ours = store.is_none() || marks.is_some();
        let params = PatchParams { force: is_ours, ..PatchParams::apply(FIELD_MANAGER) };
        let answer = self.patch(&child.resource, &key, None, &child.object, &params).await;
        let answer = answer.map_err(|error| if is_ours { error } else { not_ours(error) })?;
        let ours = match store {
            Some(store) => store.absorb(&answer).map_err(kube::Error::SerdeError)?.ours,
            None => 0,
        };
        self.sent().insert(key, Sent { object, ours });
        Ok(())
    }

    /// Sets a Deployment's replicas, as a field manager of its own, so that an autoscaler may have them.
    pub(super) async fn scale(&self, namespace: &str, name: &str, replicas: i32) -> Result<(), kube::Error> {
        let resource = ApiResource::erase::<k8s_openapi::api::apps::v1::Deployment>(&());
        let key = ChildKey {
            group: resource.group.clone(),
            kind: resource.kind.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let scale = serde_json::json!({
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": { "name": name, "namespace": namespace },
            "spec": { "replicas": replicas },
        });
        let params = PatchParams::apply("strata-operator-scale").force();
        self.patch(&resource, &key, Some("scale"), &scale, &params).await.map(drop)
    }

    /// A server-side apply. Returns the object as the API server has it now.
    pub(super) async fn patch(
        &self,
        resource: &ApiResource,
        key: &ChildKey,
        subresource: Option<&str>,
        object: &Value,
        params: &PatchParams,
    ) -> Result<String, kube::Error> {
        let request = Request::new(DynamicObject::url_path(resource, Some(&key.namespace)));
        let patch = Patch::Apply(object);
        let request = match subresource {
            None => request.patch(&key.name, params, &patch),
            Some(subresource) => request.patch_subresource(subresource, &key.name, params, &patch),
        };
        self.client.request_text(request.map_err(kube::Error::BuildRequest)?).await
    }

    /// Deletes what a family has and is not `wanted`, for the `capabilities` that it was rendered for.
    /// Returns the first failure, after having tried all.
    pub(super) async fn sweep(
        &self,
        namespace: &str,
        family: Family<'_>,
        wanted: &HashSet<ChildKey>,
        capabilities: Capabilities,
    ) -> Result<(), kube::Error> {
        let mut failure = None;
        for kind in swept_kinds() {
            if capabilities.lacks(&kind) {
                continue;
            }
            let Some(store) = self.caches.children(&kind) else { continue };
            let model = match family {
                Family::Model { name, .. } => Some(name),
                Family::Namespace => None,
            };
            for child in store.owned(namespace, model) {
                let controlled = match family {
                    Family::Model { uid, .. } => child.owners.first().is_some_and(|owner| owner == uid),
                    Family::Namespace => true,
                };
                let key = ChildKey {
                    group: kind.group.clone(),
                    kind: kind.kind.clone(),
                    namespace: namespace.to_owned(),
                    name: child.name.clone(),
                };
                if !controlled || child.leaving || wanted.contains(&key) {
                    continue;
                }
                match self.delete(&kind, namespace, &child).await {
                    Ok(()) => {
                        tracing::info!(
                            kind = kind.kind,
                            namespace,
                            name = child.name,
                            "deleted what is not wanted"
                        );
                        store.forget(namespace, &child);
                        self.sent().remove(&key);
                    }
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    async fn delete(
        &self,
        kind: &ApiResource,
        namespace: &str,
        child: &OwnedChild,
    ) -> Result<(), kube::Error> {
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(Preconditions { uid: Some(child.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        let request =
            Request::new(DynamicObject::url_path(kind, Some(namespace))).delete(&child.name, &params);
        match self.client.request_text(request.map_err(kube::Error::BuildRequest)?).await {
            // Gone already, or another of that name, which the watch will tell of.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            result => result.map(drop),
        }
    }
}

/// What is said of somebody else's object: a conflict that no second try resolves.
fn not_ours(error: kube::Error) -> kube::Error {
    match error {
        kube::Error::Api(mut status) if status.code == 409 => {
            status.code = 422;
            "NotOurs".clone_into(&mut status.reason);
            status.message = format!(
                "there is one of that name already, which is not Strata's: rename or delete it ({})",
                status.message.trim()
            );
            kube::Error::Api(status)
        }
        other => other,
    }
}

fn hash(object: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    object.to_string().hash(&mut hasher);
    hasher.finish()
}
