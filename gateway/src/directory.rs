//! What the manifests come down to for the gateway: tenants, the models' access, keys in Secrets, and
//! the rules of all policies. One instance is one consistent state; an edit makes a new one.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::tz::TimeZone;
use strata_kinds::manifest::Folder;
use strata_kinds::tenant::CacheSharing;
use strata_kinds::{ModelDeploymentSpec, TenantSpec};

use crate::keys::{KeyHash, Known, Role};
use crate::quota::{self, Rule};

/// One tenant.
#[derive(Clone, Debug)]
pub struct TenantEntry {
    /// Its name.
    pub name: Arc<str>,
    /// Its tier.
    pub tier: Arc<str>,
    /// Where its days begin.
    pub zone: TimeZone,
    /// The priority of its requests.
    pub priority: i32,
    /// Whether it shares cached prefixes with others that do.
    pub shares_cache: bool,
    spec: Arc<TenantSpec>,
}

/// The state by which requests are judged.
#[derive(Debug, Default)]
pub struct Directory {
    tenants: HashMap<Arc<str>, Arc<TenantEntry>>,
    models: HashMap<String, Arc<ModelDeploymentSpec>>,
    /// The keys in Secrets.
    pub keys: Vec<Known>,
    /// The rules of all policies.
    pub rules: Arc<[Rule]>,
}

impl Directory {
    /// Makes a directory of a folder's good objects. What cannot be used is left out and told.
    pub fn new(folder: &Folder) -> (Self, Vec<String>) {
        let mut problems = Vec::new();
        let mut directory = Self::default();
        for model in &folder.models {
            let spec = Arc::new(model.spec.clone());
            let adapters = spec.adapters.iter().map(|a| a.name.clone());
            for name in std::iter::once(spec.model.name.clone()).chain(adapters) {
                directory.models.entry(name).or_insert_with(|| spec.clone());
            }
        }
        for tenant in &folder.tenants {
            let name = tenant.metadata.name.clone().unwrap_or_default();
            let wanted = tenant.spec.time_zone.as_deref();
            let Ok(zone) = wanted.map_or(Ok(TimeZone::UTC), TimeZone::get) else {
                problems.push(format!(
                    "Tenant {name}: `spec.timeZone` {:?} is no time zone that this machine knows; \
                     write an IANA name such as Europe/Berlin",
                    wanted.unwrap_or_default()
                ));
                continue;
            };
            let name: Arc<str> = name.into();
            directory.secret_keys(folder, &name, &tenant.spec, &mut problems);
            let entry = TenantEntry {
                name: name.clone(),
                tier: tenant.spec.tier().into(),
                zone,
                priority: tenant.spec.priority.unwrap_or(0),
                shares_cache: tenant.spec.cache_sharing == Some(CacheSharing::Shared),
                spec: Arc::new(tenant.spec.clone()),
            };
            directory.tenants.insert(name, Arc::new(entry));
        }
        let mut rules = Vec::new();
        for policy in &folder.policies {
            let created = policy.metadata.creation_timestamp.as_ref().map(|t| t.0.as_millisecond());
            match quota::compile(policy.metadata.name.as_deref().unwrap_or_default(), created, &policy.spec) {
                Ok(compiled) => rules.extend(compiled),
                Err(problem) => problems.push(problem),
            }
        }
        directory.rules = rules.into();
        (directory, problems)
    }

    fn secret_keys(
        &mut self,
        folder: &Folder,
        tenant: &Arc<str>,
        spec: &TenantSpec,
        problems: &mut Vec<String>,
    ) {
        for (i, key) in spec.api_keys.iter().enumerate() {
            let secret = &key.secret_ref.name;
            let at = format!("Tenant {tenant}: spec.apiKeys[{i}]");
            let entry = |name: &str| folder.secret_entry(secret, name).map(|t| t.trim().to_owned());
            let (Some(id), Some(hash)) = (entry("id"), entry("hash")) else {
                problems
                    .push(format!("{at}: the Secret {secret} with the entries `id` and `hash` is missing"));
                continue;
            };
            let Some(hash) = KeyHash::parse(&hash) else {
                problems.push(format!(
                    "{at}: `hash` in the Secret {secret} is not v1$ and 64 hexadecimal digits; \
                     it is the SHA-256 of the key's id and secret one after the other"
                ));
                continue;
            };
            let expires = match key.expires_at.as_deref().map(str::parse::<jiff::Timestamp>) {
                None => None,
                Some(Ok(at)) => Some(at.as_second()),
                Some(Err(_)) => {
                    problems.push(format!(
                        "{at}: `expiresAt` is no time; write one such as 2027-01-31T00:00:00Z"
                    ));
                    continue;
                }
            };
            if self.keys.iter().any(|known| *known.id == *id) {
                problems.push(format!(
                    "{at}: another key has the id {id:?} of the Secret {secret} already; make a key with an id of its own"
                ));
                continue;
            }
            self.keys.push(Known {
                id: id.into(),
                tenant: tenant.clone(),
                role: Role::Member,
                hash,
                previous: None,
                expires,
                revoked: false,
            });
        }
    }

    /// A tenant by its name.
    pub fn tenant(&self, name: &str) -> Option<&Arc<TenantEntry>> {
        self.tenants.get(name)
    }

    /// Whether a manifest declares the model.
    pub fn declares(&self, model: &str) -> bool {
        self.models.contains_key(model)
    }

    /// Whether the tenant may use a model of this name, if there is one: it lists the model, and the
    /// model's tiers hold the tenant's.
    pub fn permits(&self, tenant: &TenantEntry, model: &str) -> bool {
        tenant.spec.lists_model(model)
            && self.models.get(model).is_none_or(|spec| spec.allows_tier(&tenant.tier))
    }

    /// Every time zone in use.
    pub fn zones(&self) -> Vec<TimeZone> {
        let mut zones: Vec<TimeZone> = Vec::new();
        for tenant in self.tenants.values() {
            if !zones.contains(&tenant.zone) {
                zones.push(tenant.zone.clone());
            }
        }
        zones
    }

    /// How many tenants, models and rules it has.
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.tenants.len(), self.models.len(), self.rules.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strata_kinds::manifest;

    fn problems(manifests: &str) -> Vec<String> {
        let folder = manifest::from_texts(vec![("a.yaml".to_owned(), manifests.to_owned())]);
        assert_eq!(folder.problems, [], "the schema accepts them");
        Directory::new(&folder).1
    }

    #[test]
    fn what_the_schema_cannot_see_is_told() {
        let tenant = |name: &str, more: &str| {
            format!(
                "apiVersion: strata.dev/v1alpha1\nkind: Tenant\nmetadata: {{name: {name}}}\nspec: {{models: [\"*\"]{more}}}\n---\n"
            )
        };
        let secret = |hash: &str| {
            format!(
                "apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\nstringData: {{id: k, hash: \"{hash}\"}}\n"
            )
        };
        let keyed = ", apiKeys: [{name: a, secretRef: {name: s}}]";
        let good = secret(&KeyHash::of("k", "x").to_text());
        let shown = [
            problems(&tenant("a", ", timeZone: Europe/Nowhere")),
            problems(&tenant("a", keyed)),
            problems(&(tenant("a", keyed) + &secret("sk-strata-k_x"))),
            problems(&(tenant("a", keyed) + &tenant("b", keyed) + &good)),
            problems(&(tenant("a", keyed) + &good)),
        ];
        insta::assert_snapshot!(shown.concat().join("\n"), @r#"
        Tenant a: `spec.timeZone` "Europe/Nowhere" is no time zone that this machine knows; write an IANA name such as Europe/Berlin
        Tenant a: spec.apiKeys[0]: the Secret s with the entries `id` and `hash` is missing
        Tenant a: spec.apiKeys[0]: `hash` in the Secret s is not v1$ and 64 hexadecimal digits; it is the SHA-256 of the key's id and secret one after the other
        Tenant b: spec.apiKeys[0]: another key has the id "k" of the Secret s already; make a key with an id of its own
        "#);
    }
}
