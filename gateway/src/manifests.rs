//! What is wanted, from wherever it comes: a folder, or a Kubernetes API server.

use std::collections::BTreeMap;
use std::fmt;

use strata_kinds::manifest::Folder;
use strata_kinds::{ModelDeployment, QuotaPolicy, Tenant};

/// The entry of a key's Secret that holds its public id.
pub const ID: &str = "id";
/// The entry of a key's Secret that holds its hash.
pub const HASH: &str = "hash";

/// What a Secret says of an API key. Never shown by `Debug`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KeySecret {
    /// The entry `id`, when it is there and is text.
    pub id: Option<String>,
    /// The entry `hash`, when it is there and is text.
    pub hash: Option<String>,
}

impl fmt::Debug for KeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySecret(redacted)")
    }
}

/// All objects that the gateway goes by, each found good by itself. Of two that claim the same (a
/// model's name, a key's id) the first counts.
#[derive(Debug, Default)]
pub struct Manifests<'a> {
    /// Models.
    pub models: Vec<&'a ModelDeployment>,
    /// Tenants.
    pub tenants: Vec<&'a Tenant>,
    /// Policies.
    pub policies: Vec<&'a QuotaPolicy>,
    /// Keys, by their Secret's name.
    pub keys: BTreeMap<String, KeySecret>,
    /// What a Secret must have beside its two entries to be seen, in words; nothing when empty.
    pub key_label: &'static str,
}

impl<'a> Manifests<'a> {
    /// A folder's objects, in its order.
    pub fn of_folder(folder: &'a Folder) -> Self {
        let keys = folder.secrets.iter().filter_map(|secret| {
            let name = secret.metadata.name.clone()?;
            let entry = |key: &str| folder.secret_entry(&name, key);
            let key = KeySecret { id: entry(ID), hash: entry(HASH) };
            Some((name, key))
        });
        Self {
            models: folder.models.iter().collect(),
            tenants: folder.tenants.iter().collect(),
            policies: folder.policies.iter().collect(),
            keys: keys.collect(),
            key_label: "",
        }
    }
}
