//! Status and events.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::api::PatchParams;
use kube::core::{ApiResource, ObjectMeta};
use kube::runtime::events::{Event, EventType};
use serde::Serialize;
use serde_json::json;

use super::{Failure, Reconciled, Shell};
use crate::cluster::{ChildKey, EventNote, events, malformed_status};
use crate::kube_backend::cache::FIELD_MANAGER;
use crate::kube_backend::caches::Children;
use crate::kube_backend::kept::{Kind, Malformed};
use crate::kube_backend::key::Key;

/// An event's note may be so long.
const LONGEST_NOTE: usize = 1000;

impl Shell {
    /// Writes a status, if it is another than the one that is there, and publishes what changed.
    pub(super) async fn say<K, S>(
        &self,
        object: &K,
        before: Option<&S>,
        status: &S,
        conditions: impl Fn(&S) -> &Vec<Condition>,
    ) -> Result<(), Failure>
    where
        K: Kind,
        S: Serialize + PartialEq,
    {
        if before == Some(status) {
            return Ok(());
        }
        self.write_status::<K>(object.meta(), &json!(status)).await?;
        let notes = events(before.map_or(&[], |s| conditions(s)), conditions(status));
        self.publish::<K>(object.meta(), &notes).await;
        Ok(())
    }

    /// Says of an object that it cannot be read. Nothing else is done about it.
    pub(super) async fn say_malformed<K: Kind>(&self, invalid: &Malformed) -> Reconciled {
        let Malformed { meta, error, conditions: before } = invalid;
        let key = Key::of(meta);
        let kind = K::kind(&());
        tracing::warn!(%kind, object = %key, error, "cannot be read, and is left alone");
        let mut conditions = malformed_status(meta, error, before, Timestamp::now());
        if kind == "QuotaPolicy"
            && let Some(main) = conditions.iter_mut().find(|c| c.type_ == "Ready")
        {
            "Enforced".clone_into(&mut main.type_);
        }
        if conditions == *before {
            return Ok(None);
        }
        let status = json!({ "observedGeneration": meta.generation.unwrap_or(0), "conditions": conditions });
        self.publish::<K>(meta, &events(before, &conditions)).await;
        match self.write_status::<K>(meta, &status).await {
            // The API server may not take even that of an object which its schema refuses.
            Ok(()) | Err(Failure::Refused { .. }) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    async fn write_status<K: Kind>(
        &self,
        meta: &ObjectMeta,
        status: &serde_json::Value,
    ) -> Result<(), Failure> {
        let resource = ApiResource::erase::<K>(&());
        let name = meta.name.clone().unwrap_or_default();
        let patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": { "name": name },
            "status": status,
        });
        let key = ChildKey {
            group: resource.group.clone(),
            kind: resource.kind.clone(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name,
        };
        // What is said is ours alone.
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match self.applier.patch(&resource, &key, Some("status"), &patch, &params).await {
            Ok(answer) => {
                self.absorb::<K>(&answer);
                Ok(())
            }
            // It is gone, and so is everything that could be said of it.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(Failure::new(format!("the status of {} {}", key.kind, key.name), &error)),
        }
    }

    /// Keeps what the API server has now, so that its echo is no news.
    fn absorb<K: Kind>(&self, answer: &str) {
        let caches: &dyn Children = match K::kind(&()).as_ref() {
            "ModelDeployment" => &self.caches.models,
            "Tenant" => &self.caches.tenants,
            _ => &self.caches.policies,
        };
        if let Err(error) = caches.absorb(answer) {
            tracing::debug!(%error, "cannot read the answer to a status write");
        }
    }

    /// Publishes events, as far as that works: they are for people, and nothing depends on them.
    async fn publish<K: Kind>(&self, meta: &ObjectMeta, notes: &[EventNote]) {
        let reference = ObjectReference {
            api_version: Some(K::api_version(&()).into_owned()),
            kind: Some(K::kind(&()).into_owned()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            ..ObjectReference::default()
        };
        for note in notes {
            let event = Event {
                type_: if note.warning { EventType::Warning } else { EventType::Normal },
                reason: note.reason.clone(),
                note: Some(note.note.chars().take(LONGEST_NOTE).collect()),
                action: note.action.clone(),
                secondary: None,
            };
            if let Err(error) = self.recorder.publish(&event, &reference).await {
                tracing::debug!(%error, "could not publish an event");
            }
        }
    }
}
