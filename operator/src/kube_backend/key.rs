//! Names of things.

use std::fmt;

use kube::core::ObjectMeta;

/// A namespaced object of a known kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Key {
    pub(super) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub(super) fn of(meta: &ObjectMeta) -> Self {
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is reconciled as one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Item {
    /// A ModelDeployment and what it owns.
    Model(Key),
    /// What the models of a namespace share: the scheduler, its account, the network policies.
    Namespace(String),
    /// A Tenant's status.
    Tenant(Key),
    /// A QuotaPolicy's status.
    Policy(Key),
    /// The certificates of all layers.
    Trust,
}

impl Item {
    /// The kind, as metrics and logs name it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Model(_) => "ModelDeployment",
            Self::Namespace(_) => "Namespace",
            Self::Tenant(_) => "Tenant",
            Self::Policy(_) => "QuotaPolicy",
            Self::Trust => "Trust",
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(name) => f.write_str(name),
            Self::Trust => f.write_str("certificates"),
            Self::Model(key) | Self::Tenant(key) | Self::Policy(key) => key.fmt(f),
        }
    }
}
