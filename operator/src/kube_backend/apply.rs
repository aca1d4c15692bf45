//! Brings children to the API server, and takes away what is not wanted any more.
//!
//! An object is sent when it was rendered otherwise than last time, or when the fields that belong to
//! our field manager are others than those that the API server answered last time: whoever changes
//! one of our fields takes it over, and so it goes missing there. Values are never compared.
//!
//! Before something is sent that is not known as ours it is looked whether somebody else has an object of
//! that name: it is left alone, and told of.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::{ApiResource, DynamicObject, ObjectMeta, Request, Status};
use kube::{Api, Client, Resource};
use serde_json::Value;

use super::cache::FIELD_MANAGER;
use super::caches::{Caches, OwnedChild};
use super::key::Key;
use super::metrics::Metrics;
use crate::cluster::{Capabilities, Child, ChildKey, MANAGED_LABEL, swept_kinds};

/// What is said of somebody else's object.
pub(super) const NOT_OURS: &str =
    "there is one of that name already, which is not Strata's: rename or delete it";

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
        let at = Key::new(child.namespace(), child.name());
        let marks = store.and_then(|s| s.marks(&at));
        let as_sent = known.is_some_and(|sent| {
            sent.object == object && (store.is_none() || marks.is_some_and(|m| m.ours == sent.ours))
        });
        if as_sent {
            self.metrics.skipped();
            return Ok(());
        }
        let is_ours = store.is_none_or(|s| s.is_labelled(&at));
        if !is_ours {
            self.check_that_it_is_nobodys(child).await?;
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let answer = self.patch(&child.resource, &key, None, &child.object, &params).await?;
        let ours = match store {
            Some(store) => store.absorb(&answer).map_err(kube::Error::SerdeError)?.ours,
            None => 0,
        };
        self.sent().insert(key, Sent { object, ours });
        Ok(())
    }

    /// An error that no second try mends, where there is such an object and neither a label nor an owner
    /// says that it is ours.
    async fn check_that_it_is_nobodys(&self, child: &Child) -> Result<(), kube::Error> {
        // Their names hold a hash: nobody else has them.
        if child.resource.kind == "ControllerRevision" {
            return Ok(());
        }
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), child.namespace(), &child.resource);
        let Some(found) = api.get_metadata_opt(child.name()).await? else { return Ok(()) };
        let owners = found.metadata.owner_references.iter().flatten().map(|owner| owner.uid.as_str());
        if is_labelled(&found.metadata) || child.owners().any(|ours| owners.clone().any(|o| o == ours)) {
            return Ok(());
        }
        Err(kube::Error::Api(Status::failure(NOT_OURS, "NotOurs").with_code(422).boxed()))
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

/// Whether an object says that this operator manages it.
pub(super) fn is_labelled(meta: &ObjectMeta) -> bool {
    meta.labels.as_ref().and_then(|l| l.get(MANAGED_LABEL.0)).is_some_and(|by| by == MANAGED_LABEL.1)
}

fn hash(object: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    object.to_string().hash(&mut hasher);
    hasher.finish()
}
