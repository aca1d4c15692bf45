//! What was read of one kind. A malformed object stops only itself: the last good version of the same
//! object stays in force, and what is wrong is kept to be told. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use kube::api::ObjectMeta;
use kube::core::DeserializeGuard;

use super::object::Object;
use crate::directory::Told;

/// An object by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    pub(super) fn of(meta: &ObjectMeta) -> Self {
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

/// One object.
struct Held<K> {
    uid: Option<String>,
    /// The generation that was seen last, good or not.
    generation: Option<i64>,
    /// The last good version.
    good: Option<K>,
    /// What is wrong with the version that was seen last.
    problems: Vec<String>,
}

/// The objects of one kind.
pub(crate) struct Cache<O: Object>(BTreeMap<Key, Held<O::Kept>>);

impl<O: Object> Default for Cache<O> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<O: Object> fmt::Debug for Cache<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl<O: Object> Cache<O> {
    /// Takes an object that was added or changed. `true` when that changes what is in force, or what is
    /// to be told of it.
    pub(super) fn apply(&mut self, object: DeserializeGuard<O>) -> bool {
        let meta = kube::Resource::meta(&object);
        let key = Key::of(meta);
        if O::GONE_WHEN_DELETING && meta.deletion_timestamp.is_some() {
            return self.0.remove(&key).is_some();
        }
        let (uid, generation) = (meta.uid.clone(), meta.generation);
        let before = self.0.get(&key).filter(|held| held.uid == uid);
        if O::SAME_BY_GENERATION
            && generation.is_some()
            && before.is_some_and(|held| held.generation == generation)
        {
            return false;
        }
        let judged = match object.0 {
            Ok(object) => object.keep(),
            Err(invalid) => Err(vec![format!("is not as its kind has it: {}", invalid.error)]),
        };
        // The last good version of another object of the same name is nothing to go by.
        let previous = self.0.remove(&key).filter(|held| held.uid == uid);
        let is_old_news =
            previous.as_ref().is_some_and(|h| !O::SAME_BY_GENERATION || h.generation == generation);
        let (old, told) = previous.map_or((None, Vec::new()), |held| (held.good, held.problems));
        let (good, problems, changed) = match judged {
            Ok(kept) => {
                let changed = old.as_ref() != Some(&kept) || !told.is_empty();
                (Some(kept), Vec::new(), changed)
            }
            Err(problems) => {
                let had = old.is_some();
                let good = old.filter(|_| O::LAST_GOOD_STAYS);
                let changed = told != problems || had != good.is_some();
                (good, problems, changed)
            }
        };
        self.0.insert(key, Held { uid, generation, good, problems });
        changed || !is_old_news
    }

    /// Takes an object away. `true` when it was there.
    pub(super) fn delete(&mut self, key: &Key) -> bool {
        self.0.remove(key).is_some()
    }

    /// Takes away what a full list of this namespace (of all when `None`) does not hold any more, and
    /// returns that.
    pub(super) fn retain(&mut self, namespace: Option<&str>, listed: &BTreeSet<Key>) -> Vec<Key> {
        let gone = |key: &&Key| namespace.is_none_or(|n| n == key.namespace) && !listed.contains(key);
        let gone: Vec<Key> = self.0.keys().filter(gone).cloned().collect();
        for key in &gone {
            self.0.remove(key);
        }
        gone
    }

    /// What is to be told of each object, by name.
    pub(super) fn known(&self) -> impl Iterator<Item = Told> {
        self.0.iter().map(|(key, held)| Told {
            name: key.name.clone(),
            generation: held.generation,
            in_force: held.good.is_some(),
            problems: held.problems.clone(),
        })
    }

    /// The last good versions, by name.
    pub(crate) fn good(&self) -> impl Iterator<Item = (&Key, &O::Kept)> {
        self.0.iter().filter_map(|(key, held)| Some((key, held.good.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use strata_kinds::Tenant;

    use super::super::object::SecretObject;
    use super::*;

    fn guard<O: Object>(value: Value) -> DeserializeGuard<O> {
        serde_json::from_value(value).unwrap()
    }

    fn tenant(uid: &str, generation: i64, spec: &Value) -> DeserializeGuard<Tenant> {
        guard(json!({
            "apiVersion": "strata.dev/v1alpha1", "kind": "Tenant",
            "metadata": {"name": "acme", "namespace": "strata", "uid": uid, "generation": generation},
            "spec": spec,
        }))
    }

    fn tier(cache: &Cache<Tenant>) -> Option<String> {
        cache.good().next().map(|(_, tenant)| tenant.spec.tier().to_owned())
    }

    fn problem(cache: &Cache<Tenant>) -> String {
        cache.0.values().next().map(|h| h.problems.join("; ")).unwrap_or_default()
    }

    #[test]
    fn a_malformed_version_leaves_the_last_good_one() {
        let mut cache = Cache::<Tenant>::default();
        assert!(cache.apply(tenant("u1", 1, &json!({"tier": "gold"}))));
        assert!(!cache.apply(tenant("u1", 1, &json!({"tier": "gold"}))), "a change of the status alone");
        for (n, (spec, about)) in [
            (json!({"tier": 7}), "is not as its kind has it"),
            (json!({"tier": "NO"}), "`spec.tier`"),
            (json!({"timeZone": "Europe/Nowhere"}), "IANA"),
            (json!({"priority": 5000}), "at most 1000"),
        ]
        .into_iter()
        .enumerate()
        {
            assert!(cache.apply(tenant("u1", 2 + n as i64, &spec)), "{about}");
            assert_eq!(tier(&cache).as_deref(), Some("gold"), "{about}");
            assert!(problem(&cache).contains(about), "{}", problem(&cache));
        }
        assert!(cache.apply(tenant("u1", 9, &json!({"tier": "free"}))));
        assert_eq!((tier(&cache).as_deref(), problem(&cache).as_str()), (Some("free"), ""));
        // A new object of the same name inherits nothing.
        assert!(cache.apply(tenant("u2", 1, &json!({"tier": 7}))));
        assert_eq!(tier(&cache), None);
    }

    #[test]
    fn a_tenant_that_is_being_deleted_is_gone() {
        let mut cache = Cache::<Tenant>::default();
        cache.apply(tenant("u1", 1, &json!({})));
        let mut dying = tenant("u1", 2, &json!({}));
        dying.0.as_mut().unwrap().metadata.deletion_timestamp =
            Some(serde_json::from_value(json!("2026-11-20T10:00:00Z")).unwrap());
        assert!(cache.apply(dying));
        assert_eq!(tier(&cache), None);
    }

    #[test]
    fn a_list_takes_away_what_it_does_not_hold_in_its_namespace() {
        let mut cache = Cache::<Tenant>::default();
        for (namespace, name) in [("a", "one"), ("a", "two"), ("b", "one")] {
            cache.apply(guard(json!({"metadata": {"name": name, "namespace": namespace}, "spec": {}})));
        }
        let listed = BTreeSet::from([Key { namespace: "a".to_owned(), name: "two".to_owned() }]);
        let gone = cache.retain(Some("a"), &listed);
        assert_eq!(gone, [Key { namespace: "a".to_owned(), name: "one".to_owned() }]);
        assert_eq!(cache.good().count(), 2);
        assert_eq!(cache.retain(None, &listed).len(), 1);
    }

    #[test]
    fn a_secret_that_turns_bad_is_a_key_no_more() {
        let secret = |data: Value| {
            guard::<SecretObject>(json!({
                "metadata": {"name": "s", "namespace": "strata", "uid": "u",
                             "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "hidden-text"}},
                "data": data,
            }))
        };
        let mut cache = Cache::<SecretObject>::default();
        // id: team1, hash: v1$x
        let good = secret(json!({"id": "dGVhbTE=", "hash": "djEkeA==", "key": "aGlkZGVuLXRleHQ="}));
        let shown = format!("{good:?}");
        assert!(
            !shown.contains("hidden") && !shown.contains("team1") && !shown.contains("aGlkZGVu"),
            "{shown}"
        );
        assert!(cache.apply(good));
        let held = cache.good().next().map(|(_, key)| (key.id.clone(), key.hash.clone())).unwrap();
        assert_eq!(held, (Some("team1".to_owned()), Some("v1$x".to_owned())));
        for bad in [
            json!({"id": "dGVhbTE=", "hash": "%%%"}),
            json!({"id": 7, "hash": null}),
            json!("x"),
            Value::Null,
        ] {
            assert!(cache.apply(secret(bad)) || cache.good().all(|(_, key)| key.hash.is_none()));
            assert!(cache.good().all(|(_, key)| key.hash.is_none()));
        }
    }
}
