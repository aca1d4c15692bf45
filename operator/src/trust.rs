//! Who vouches for whom: the authority behind the mutual TLS between the layers of a cluster.
//!
//! Strata names its own components. One authority (a self-signed certificate and its key) signs a
//! certificate for each component of each namespace, and every holder gets the authorities that it is
//! to trust beside its own. [`plan`] decides, from the Secrets that are there and the time, what to
//! write; it is pure. [`issue`] makes keys, [`Authority`] reads and writes Secrets.
//!
//! | Secret | where | holds |
//! |---|---|---|
//! | `strata-ca` | Strata's namespace | authorities with their keys; for the operator alone |
//! | `strata-hop-gateway`, `-platform`, `-operator` | Strata's namespace | `tls.crt`, `tls.key`, `ca.crt` |
//! | `strata-hop-scheduler`, `-engine` | each namespace with models | the same |
//!
//! An authority is replaced long before it ends, in three steps, so that any two holders trust each other
//! at every moment: the new one is first trusted everywhere, then it signs, and the old one is trusted
//! until nobody is named by it any more.

mod authority;
pub mod issue;
pub mod plan;
pub mod record;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use strata_hop::tls::{Component, Identity};

pub use authority::{Authority, Outcome, TrustError};
pub use plan::{SecretAction, World, due, plan};
pub use record::Record;
pub use store::SecretStore;

use crate::{Mode, workload};

/// The Secrets of the layers in Strata's own namespace, which the chart makes.
pub const CENTRAL_SECRETS: [&str; 3] = ["strata-hop-gateway", "strata-hop-operator", "strata-hop-platform"];

/// The Secrets beside the models.
pub const BESIDE_MODELS: [&str; 2] = ["strata-hop-engine", "strata-hop-scheduler"];

/// The Secret of the authorities.
pub const AUTHORITY_SECRET: &str = "strata-ca";

/// Times of the authority, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// How long an authority is good for. It is replaced after two thirds.
    pub authority: i64,
    /// How long a certificate is good for. It is renewed after two thirds.
    pub leaf: i64,
    /// How long a holder may take to notice that its Secret has changed.
    pub overlap: i64,
    /// How far the clocks of two machines may be apart: a certificate holds from that much earlier.
    pub skew: i64,
}

impl Default for Schedule {
    fn default() -> Self {
        const DAY: i64 = 24 * 3600;
        Self { authority: 3652 * DAY, leaf: 90 * DAY, overlap: DAY, skew: 3600 }
    }
}

/// A Secret's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl SecretName {
    /// The Secret of a component's certificate.
    pub fn of(identity: &Identity) -> Self {
        Self { namespace: identity.namespace().to_owned(), name: secret_name(identity.component()) }
    }

    /// The component that it is for, if that is one of those beside the models.
    fn beside_models(&self) -> Option<workload::Component> {
        [workload::Component::Engine, workload::Component::Scheduler]
            .into_iter()
            .find(|component| self.name == format!("strata-hop-{component}"))
    }

    /// The Secret of the authorities.
    pub fn authorities(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: AUTHORITY_SECRET.to_owned() }
    }
}

impl std::fmt::Display for SecretName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The name of the Secret that a component's pods mount.
pub fn secret_name(component: Component) -> String {
    format!("strata-hop-{component}")
}

/// What a Secret holds, as far as it is compared.
#[derive(Clone, Default, PartialEq)]
pub struct Held {
    /// Its data.
    pub data: BTreeMap<String, Vec<u8>>,
    /// What it goes away with.
    pub owners: Vec<OwnerReference>,
}

impl Held {
    /// The same whatever the order in which the API server lists the owners.
    pub fn new(data: BTreeMap<String, Vec<u8>>, mut owners: Vec<OwnerReference>) -> Self {
        owners.sort_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
        Self { data, owners }
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("keys", &self.data.keys()).finish_non_exhaustive()
    }
}

/// Somebody who is to have a certificate.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Who.
    pub identity: Identity,
    /// What its Secret goes away with: the models of its namespace, by name.
    pub owners: Vec<OwnerReference>,
}

/// Everybody who is to have a certificate: the layers of this mode, in Strata's namespace, and beside the
/// models, by their namespaces. A namespace that is not a DNS label is left out.
pub fn wanted(mode: Mode, namespace: &str, models: &BTreeMap<String, Vec<OwnerReference>>) -> Vec<Wanted> {
    let central = [Component::Operator, Component::Platform]
        .into_iter()
        .chain(mode.has_gateway().then_some(Component::Gateway))
        .filter_map(|component| Identity::new(namespace, component))
        .map(|identity| Wanted { identity, owners: Vec::new() });
    let beside = models.iter().flat_map(|(namespace, owners)| {
        [Component::Engine]
            .into_iter()
            .chain(mode.has_scheduler().then_some(Component::Scheduler))
            .filter_map(|component| Identity::new(namespace, component))
            .map(|identity| Wanted { identity, owners: owners.clone() })
    });
    central.chain(beside).collect()
}
