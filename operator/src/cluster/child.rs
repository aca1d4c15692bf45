//! A Kubernetes object that the operator wants, of any kind.

use kube::Resource;
use kube::core::{ApiResource, GroupVersionKind};
use serde::Serialize;
use serde_json::Value;

/// An object to apply, with what is needed to address its kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    /// Its kind.
    pub resource: ApiResource,
    /// The object, with `apiVersion`, `kind`, name and namespace.
    pub object: Value,
}

/// Which object it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildKey {
    /// Group of the kind; empty for the core group.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Child {
    /// A child of one of Kubernetes' own kinds.
    pub fn of<K>(object: &K) -> Self
    where
        K: Resource<DynamicType = ()> + Serialize,
    {
        let mut value = serde_json::to_value(object).unwrap_or_default();
        value["apiVersion"] = K::api_version(&()).into_owned().into();
        value["kind"] = K::kind(&()).into_owned().into();
        Self { resource: ApiResource::erase::<K>(&()), object: value }
    }

    /// A child of a kind that is known by its definition alone.
    pub fn custom(resource: ApiResource, mut object: Value) -> Self {
        object["apiVersion"] = resource.api_version.clone().into();
        object["kind"] = resource.kind.clone().into();
        Self { resource, object }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.text("name")
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        self.text("namespace")
    }

    /// Uids of its owners.
    pub fn owners(&self) -> impl Iterator<Item = &str> {
        let owners = self.object["metadata"]["ownerReferences"].as_array();
        owners.into_iter().flatten().filter_map(|owner| owner["uid"].as_str())
    }

    /// Which object it is.
    pub fn key(&self) -> ChildKey {
        ChildKey {
            group: self.resource.group.clone(),
            kind: self.resource.kind.clone(),
            namespace: self.namespace().to_owned(),
            name: self.name().to_owned(),
        }
    }

    fn text(&self, field: &str) -> &str {
        self.object["metadata"][field].as_str().unwrap_or_default()
    }
}

/// A kind that is known by its definition alone.
pub(super) fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}
