//! What the manifests come down to for the gateway: tenants, the models' access, keys in Secrets, and
//! the rules of all policies. One instance is one consistent state; an edit makes a new one.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, OnceLock};

use jiff::tz::TimeZone;
use strata_kinds::tenant::CacheSharing;
use strata_kinds::{ModelDeploymentSpec, NAMESPACE, TenantSpec};

use crate::keys::{KeyHash, Known, Role};
use crate::manifests::Manifests;
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

/// One model.
#[derive(Clone, Debug)]
pub struct ModelEntry {
    /// The namespace that serves it.
    pub namespace: Arc<str>,
    /// Seconds since 1970 when its ModelDeployment was made; 0 in a folder.
    pub created: i64,
    spec: Arc<ModelDeploymentSpec>,
}

/// Something wrong with one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The object's kind.
    pub kind: &'static str,
    /// Its name.
    pub object: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.kind, self.object, self.message)
    }
}

/// One object as its source knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Told {
    /// Its name.
    pub name: String,
    /// The generation that was seen last.
    pub generation: Option<i64>,
    /// Whether a version of it is in force.
    pub in_force: bool,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// The objects that are told of, each list by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Tenants.
    pub tenants: Vec<Told>,
    /// Policies.
    pub policies: Vec<Told>,
}

/// The time zone that a tenant's budgets go by, or what is wrong with it.
pub(crate) fn zone_of(spec: &TenantSpec) -> Result<TimeZone, String> {
    let wanted = spec.time_zone.as_deref();
    wanted.map_or(Ok(TimeZone::UTC), TimeZone::get).map_err(|_| {
        format!(
            "`spec.timeZone` {:?} is no time zone that this machine knows; \
             write an IANA name such as Europe/Berlin",
            wanted.unwrap_or_default()
        )
    })
}

/// The state by which requests are judged.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    tenants: HashMap<Arc<str>, Arc<TenantEntry>>,
    models: HashMap<String, ModelEntry>,
    /// The keys in Secrets.
    pub keys: Vec<Known>,
    /// The rules of all policies.
    pub rules: Arc<[Rule]>,
    policies: Vec<quota::Policy>,
    /// What is to be told of the objects that it was made of.
    pub objects: Objects,
    resolution: Arc<OnceLock<quota::Resolution>>,
}

impl Directory {
    /// Makes a directory of good objects. What cannot be used is left out and told.
    pub fn new(manifests: &Manifests<'_>) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut directory = Self::default();
        for model in &manifests.models {
            let entry = ModelEntry {
                namespace: model.metadata.namespace.as_deref().unwrap_or(NAMESPACE).into(),
                created: model.metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second()),
                spec: Arc::new(model.spec.clone()),
            };
            let adapters = model.spec.adapters.iter().map(|a| &a.name);
            for name in std::iter::once(&model.spec.model.name).chain(adapters) {
                directory.models.entry(name.clone()).or_insert_with(|| entry.clone());
            }
        }
        let mut ids = HashSet::new();
        for tenant in &manifests.tenants {
            let name: Arc<str> = tenant.metadata.name.as_deref().unwrap_or_default().into();
            let zone = match zone_of(&tenant.spec) {
                Ok(zone) => zone,
                Err(message) => {
                    problems.push(Problem { kind: "Tenant", object: name.to_string(), message });
                    continue;
                }
            };
            directory.secret_keys(manifests, &name, &tenant.spec, &mut ids, &mut problems);
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
        for policy in &manifests.policies {
            let created = policy.metadata.creation_timestamp.as_ref().map(|t| t.0.as_millisecond());
            let name = policy.metadata.name.as_deref().unwrap_or_default();
            match quota::compile(name, created, &policy.spec) {
                Ok(compiled) => {
                    rules.extend(compiled);
                    directory.policies.push(quota::Policy {
                        name: name.into(),
                        created,
                        selector: Arc::new(policy.spec.selector.clone()),
                    });
                }
                Err(message) => {
                    problems.push(Problem { kind: "QuotaPolicy", object: name.to_owned(), message });
                }
            }
        }
        directory.rules = rules.into();
        directory.objects = directory.all_good();
        (directory, problems)
    }

    fn secret_keys(
        &mut self,
        manifests: &Manifests<'_>,
        tenant: &Arc<str>,
        spec: &TenantSpec,
        ids: &mut HashSet<String>,
        problems: &mut Vec<Problem>,
    ) {
        for (i, key) in spec.api_keys.iter().enumerate() {
            let secret = &key.secret_ref.name;
            let mut refuse = |message: String| {
                let message = format!("spec.apiKeys[{i}]: {message}");
                problems.push(Problem { kind: "Tenant", object: tenant.to_string(), message });
            };
            let held = manifests.keys.get(secret);
            let (Some(id), Some(hash)) =
                (held.and_then(|k| k.id.as_deref()), held.and_then(|k| k.hash.as_deref()))
            else {
                let label = manifests.key_label;
                refuse(format!(
                    "the Secret {secret} with {label}the entries `id` and `hash` is missing; \
                     make it, or remove the key here"
                ));
                continue;
            };
            let id = id.trim();
            let Some(hash) = KeyHash::parse(hash.trim()) else {
                refuse(format!(
                    "`hash` in the Secret {secret} is not v1$ and 64 hexadecimal digits; \
                     it is the SHA-256 of the key's id and secret one after the other"
                ));
                continue;
            };
            let expires = match key.expires_at.as_deref().map(str::parse::<jiff::Timestamp>) {
                None => None,
                Some(Ok(at)) => Some(at.as_second()),
                Some(Err(_)) => {
                    refuse("`expiresAt` is no time; write one such as 2027-01-31T00:00:00Z".to_owned());
                    continue;
                }
            };
            if !ids.insert(id.to_owned()) {
                refuse(format!(
                    "another key has the id {id:?} of the Secret {secret} already; make a key with an id of its own"
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

    /// Whether the counters that one of them needs are right for the other too: the same limits, and
    /// the same tenants with the same tiers and days.
    pub fn counts_like(&self, other: &Self) -> bool {
        let same = |mine: &TenantEntry| {
            other.tenants.get(&mine.name).is_some_and(|its| its.tier == mine.tier && its.zone == mine.zone)
        };
        self.rules == other.rules
            && self.tenants.len() == other.tenants.len()
            && self.tenants.values().all(|tenant| same(tenant))
    }

    /// What is to be told where nothing is wrong and nothing has a generation.
    fn all_good(&self) -> Objects {
        let good = |name: &Arc<str>| Told { name: name.to_string(), in_force: true, ..Told::default() };
        let mut objects = Objects {
            tenants: self.tenants.keys().map(good).collect(),
            policies: self.policies.iter().map(|policy| good(&policy.name)).collect(),
        };
        objects.tenants.sort_unstable();
        objects.policies.sort_unstable();
        objects
    }

    /// The same without the tenants that `before` does not have, and with what is told of that one.
    #[must_use]
    pub fn without_newcomers(&self, before: &Self) -> Self {
        let mut less = self.clone();
        less.tenants.retain(|name, _| before.tenants.contains_key(name));
        less.resolution = Arc::default();
        less.objects = before.objects.clone();
        less
    }

    /// A tenant by its name.
    pub fn tenant(&self, name: &str) -> Option<&Arc<TenantEntry>> {
        self.tenants.get(name)
    }

    /// Whether a manifest declares the model.
    pub fn declares(&self, model: &str) -> bool {
        self.models.contains_key(model)
    }

    /// What is declared of a model.
    pub fn model(&self, model: &str) -> Option<&ModelEntry> {
        self.models.get(model)
    }

    /// The models that are declared, in no order.
    pub fn models(&self) -> impl Iterator<Item = (&str, &ModelEntry)> {
        self.models.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Whether the tenant may use a model of this name, if there is one: it lists the model, and the
    /// model's tiers hold the tenant's.
    pub fn permits(&self, tenant: &TenantEntry, model: &str) -> bool {
        tenant.spec.lists_model(model)
            && self.models.get(model).is_none_or(|entry| entry.spec.allows_tier(&tenant.tier))
    }

    /// Which policies apply to whom; worked out when it is first asked for, which takes time.
    pub fn resolution(&self) -> &quota::Resolution {
        self.resolution.get_or_init(|| {
            let tenants = self.tenants.values().map(|tenant| quota::Selected {
                name: tenant.name.clone(),
                tier: tenant.tier.clone(),
                zone: tenant.zone.clone(),
            });
            let models = std::iter::once("").chain(self.models.keys().map(String::as_str));
            let permits = |tenant: &str, model: &str| {
                self.tenants.get(tenant).is_some_and(|tenant| self.permits(tenant, model))
            };
            quota::resolve(&self.policies, &self.rules, tenants, models, permits)
        })
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
        Directory::new(&Manifests::of_folder(&folder)).1.iter().map(ToString::to_string).collect()
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
        Tenant a: spec.apiKeys[0]: the Secret s with the entries `id` and `hash` is missing; make it, or remove the key here
        Tenant a: spec.apiKeys[0]: `hash` in the Secret s is not v1$ and 64 hexadecimal digits; it is the SHA-256 of the key's id and secret one after the other
        Tenant b: spec.apiKeys[0]: another key has the id "k" of the Secret s already; make a key with an id of its own
        "#);
    }
}
