//! What is kept of each kind: no more than somebody reads, so that ten thousand pods stay small.

use std::borrow::Cow;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus};
use k8s_openapi::api::core::v1::{Pod, PodSpec, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, FieldsV1, ManagedFieldsEntry};
use kube::core::{DynamicObject, ObjectMeta, PartialObjectMeta};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use strata_kinds::{ModelDeployment, QuotaPolicy, Tenant};

use super::cache::Held;
use super::watch::Keep;
use crate::render::ADAPTERS_ANNOTATION;

/// Metadata alone, of a kind whose content nobody reads.
#[derive(Debug)]
pub(super) struct Meta(ObjectMeta);

impl Held for Meta {
    fn meta(&self) -> &ObjectMeta {
        &self.0
    }
}

impl Keep for Meta {
    type Watched = PartialObjectMeta<DynamicObject>;

    fn keep(mut object: Self::Watched) -> Self {
        strip(&mut object);
        object.annotations_mut().clear();
        Self(object.metadata)
    }
}

/// An object of one of the three kinds, or why it could not be read.
#[derive(Debug)]
pub(super) enum Parsed<K> {
    Good(Arc<K>),
    Bad(Box<Malformed>),
}

/// What is left of an object that is none of its kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Malformed {
    pub(super) meta: ObjectMeta,
    /// What does not fit.
    pub(super) error: String,
    /// What was said about it.
    pub(super) conditions: Vec<Condition>,
}

/// An object of a watch that stops nobody else's when it cannot be read.
#[derive(Clone, Debug)]
pub(super) struct Guarded<K>(Result<K, Malformed>);

impl<'de, K: DeserializeOwned> Deserialize<'de> for Guarded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Rest {
            metadata: ObjectMeta,
            #[serde(default)]
            status: serde_json::Value,
        }
        let whole = serde_json::Value::deserialize(deserializer)?;
        let error = match K::deserialize(&whole) {
            Ok(object) => return Ok(Self(Ok(object))),
            Err(error) => error.to_string(),
        };
        let Rest { metadata: meta, mut status } =
            Rest::deserialize(whole).map_err(serde::de::Error::custom)?;
        let conditions = serde_json::from_value(status["conditions"].take()).unwrap_or_default();
        Ok(Self(Err(Malformed { meta, error, conditions })))
    }
}

impl<K: Resource> Resource for Guarded<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &Self::DynamicType) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &Self::DynamicType) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|bad| &bad.meta, K::meta)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|bad| &mut bad.meta, K::meta_mut)
    }
}

impl<K> Parsed<K> {
    pub(super) fn good(&self) -> Option<&Arc<K>> {
        match self {
            Self::Good(object) => Some(object),
            Self::Bad(_) => None,
        }
    }
}

/// The three kinds.
pub(super) trait Kind: Resource<DynamicType = ()> {
    /// The part of an object that its owner writes.
    fn same_wish(&self, other: &Self) -> bool;
}

impl Kind for ModelDeployment {
    fn same_wish(&self, other: &Self) -> bool {
        self.spec == other.spec && same_meta(self.meta(), other.meta())
    }
}

impl Kind for Tenant {
    fn same_wish(&self, other: &Self) -> bool {
        self.spec == other.spec && same_meta(self.meta(), other.meta())
    }
}

impl Kind for QuotaPolicy {
    fn same_wish(&self, other: &Self) -> bool {
        self.spec == other.spec && same_meta(self.meta(), other.meta())
    }
}

fn same_meta(a: &ObjectMeta, b: &ObjectMeta) -> bool {
    a.uid == b.uid && a.annotations == b.annotations && a.deletion_timestamp == b.deletion_timestamp
}

impl<K: Kind + Send + Sync + 'static> Held for Parsed<K> {
    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Good(object) => object.meta(),
            Self::Bad(malformed) => &malformed.meta,
        }
    }
}

impl<K> Keep for Parsed<K>
where
    K: Kind + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    type Watched = Guarded<K>;

    fn keep(mut object: Self::Watched) -> Self {
        strip(&mut object);
        match object.0 {
            Ok(object) => Self::Good(Arc::new(object)),
            Err(malformed) => Self::Bad(Box::new(malformed)),
        }
    }
}

macro_rules! kept_whole {
    ($($kind:ty: $strip:expr;)+) => {$(
        impl Held for $kind {
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
        }

        impl Keep for $kind {
            type Watched = Self;

            fn keep(mut object: Self) -> Self {
                let reduce: fn(&mut Self) = $strip;
                reduce(&mut object);
                object
            }
        }
    )+};
}

kept_whole! {
    Deployment: |deployment| {
        let managed = deployment.metadata.managed_fields.take();
        strip(deployment);
        deployment.metadata.managed_fields = managed.map(only_replicas);
        if let Some(spec) = &mut deployment.spec {
            spec.template.spec = None;
        }
    };
    Pod: |pod| {
        strip(pod);
        if let Some(annotations) = &mut pod.metadata.annotations {
            annotations.retain(|name, _| name == ADAPTERS_ANNOTATION);
        }
        let node_name = pod.spec.take().and_then(|spec| spec.node_name);
        pod.spec = Some(PodSpec { node_name, ..PodSpec::default() });
    };
    ControllerRevision: strip;
    HorizontalPodAutoscaler: |autoscaler| {
        strip(autoscaler);
        autoscaler.spec = None;
        let conditions = autoscaler.status.take().and_then(|status| status.conditions);
        autoscaler.status = Some(HorizontalPodAutoscalerStatus { conditions, ..HorizontalPodAutoscalerStatus::default() });
    };
    Secret: strip;
}

/// Who owns `spec.replicas`, which is all that is asked of managed fields: everything else in them is
/// larger than the object.
fn only_replicas(managed: Vec<ManagedFieldsEntry>) -> Vec<ManagedFieldsEntry> {
    let has = |entry: &ManagedFieldsEntry| {
        entry.fields_v1.as_ref().is_some_and(|f| f.0.pointer("/f:spec/f:replicas").is_some())
    };
    managed
        .into_iter()
        .filter(has)
        .map(|entry| ManagedFieldsEntry {
            fields_v1: Some(FieldsV1(serde_json::json!({ "f:spec": { "f:replicas": {} } }))),
            ..entry
        })
        .collect()
}

fn strip<K: Resource>(object: &mut K) {
    let meta = object.meta_mut();
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_that_cannot_be_read_keeps_its_name_and_what_was_said() {
        let bad = json!({
            "apiVersion": "strata.dev/v1alpha1", "kind": "ModelDeployment",
            "metadata": { "name": "m", "namespace": "n", "resourceVersion": "3" },
            "spec": { "model": "not an object" },
            "status": { "conditions": [{
                "type": "Ready", "status": "False", "reason": "Invalid", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }] },
        });
        let kept: Parsed<ModelDeployment> = Keep::keep(serde_json::from_value(bad).unwrap());
        assert_eq!(kept.meta().name.as_deref(), Some("m"));
        let Parsed::Bad(malformed) = &kept else { panic!("it was read: {kept:?}") };
        assert!(malformed.error.contains("not an object"), "{}", malformed.error);
        assert_eq!(malformed.conditions.len(), 1);
    }

    #[test]
    fn of_a_pod_and_of_a_deployment_little_is_kept() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "p", "annotations": { "a": "b", "strata.dev/adapters": "sql" }, "managedFields": [{ "manager": "m" }] },
            "spec": { "nodeName": "node", "containers": [{ "name": "c" }] },
            "status": { "podIP": "10.0.0.1" },
        }))
        .unwrap();
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": { "name": "d", "managedFields": [
                { "manager": "hpa", "fieldsV1": { "f:spec": { "f:replicas": {}, "f:paused": {} } } },
                { "manager": "other", "fieldsV1": { "f:spec": { "f:paused": {} } } },
            ] },
            "spec": { "selector": {}, "template": { "metadata": { "labels": { "l": "1" } }, "spec": { "containers": [] } } },
        }))
        .unwrap();
        let kept = json!([<Pod as Keep>::keep(pod), <Deployment as Keep>::keep(deployment)]);
        insta::assert_snapshot!(serde_json::to_string_pretty(&kept).unwrap());
    }
}
