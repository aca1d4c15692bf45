//! What the API server has of one kind, as far as the operator needs it, found by model and namespace.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock};

use kube::core::ObjectMeta;

use super::key::Key;
use crate::render::MODEL_LABEL;

/// The one field manager of everything that is applied.
pub const FIELD_MANAGER: &str = "strata-operator";

/// What is kept of an object.
pub(super) trait Held: Send + Sync + 'static {
    fn meta(&self) -> &ObjectMeta;
}

/// What says whether an object is as it was applied: its version, and which fields are still ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    /// `metadata.resourceVersion` as the number that it is; 0 when it is none.
    pub(super) version: u64,
    /// Hash of the set of fields that belong to our field manager.
    pub(super) ours: u64,
}

impl Marks {
    /// Reads them before `managedFields` are dropped.
    pub(super) fn of(meta: &ObjectMeta) -> Self {
        let mut hasher = DefaultHasher::new();
        for entry in meta.managed_fields.iter().flatten() {
            let applied = entry.operation.as_deref() == Some("Apply") && entry.subresource.is_none();
            if applied && entry.manager.as_deref() == Some(FIELD_MANAGER) {
                let fields = entry.fields_v1.as_ref().map(|f| f.0.to_string());
                fields.unwrap_or_default().hash(&mut hasher);
            }
        }
        Self { version: version(meta), ours: hasher.finish() }
    }
}

fn version(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// What became of an object.
#[derive(Debug)]
pub(super) enum Change<K> {
    /// It is there, and was not or was another.
    Set { before: Option<Arc<K>>, now: Arc<K> },
    /// It is gone.
    Gone(Arc<K>),
}

impl<K> Change<K> {
    /// The object as it is, or as it was last.
    pub(super) fn object(&self) -> &Arc<K> {
        match self {
            Self::Set { now, .. } | Self::Gone(now) => now,
        }
    }
}

#[derive(Debug)]
struct Entry<K> {
    object: Arc<K>,
    marks: Marks,
    /// Known from our own write, and not yet from the watch.
    from_write: bool,
}

/// The model that an object belongs to, and its namespace; no model for what a namespace shares.
type Group = (String, Option<String>);

#[derive(Debug)]
struct Inner<K> {
    objects: HashMap<Key, Entry<K>>,
    groups: HashMap<Group, BTreeSet<String>>,
}

/// The objects of a kind.
#[derive(Debug)]
pub(super) struct Cache<K> {
    inner: RwLock<Inner<K>>,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self { inner: RwLock::new(Inner { objects: HashMap::new(), groups: HashMap::new() }) }
    }
}

fn group(meta: &ObjectMeta) -> Group {
    let model = meta.labels.as_ref().and_then(|labels| labels.get(MODEL_LABEL));
    (meta.namespace.clone().unwrap_or_default(), model.cloned())
}

impl<K: Held> Cache<K> {
    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Inner<K>> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner<K>> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an object from a watch. `None` when it is known already or older than what is known.
    pub(super) fn set(&self, object: K, marks: Marks) -> Option<Change<K>> {
        self.put(object, marks, false)
    }

    /// Takes the answer to a write of our own, so that nobody decides by what was there before it.
    pub(super) fn absorb(&self, object: K, marks: Marks) {
        self.put(object, marks, true);
    }

    fn put(&self, object: K, marks: Marks, from_write: bool) -> Option<Change<K>> {
        let key = Key::of(object.meta());
        let mut inner = self.write();
        if let Some(known) = inner.objects.get_mut(&key) {
            let other_object = known.object.meta().uid != object.meta().uid;
            let older = marks.version != 0 && marks.version < known.marks.version;
            if older && !other_object {
                return None;
            }
            if marks.version != 0 && marks.version == known.marks.version {
                known.from_write &= from_write;
                return None;
            }
        }
        let object = Arc::new(object);
        let now_in = group(object.meta());
        let entry = Entry { object: object.clone(), marks, from_write };
        let before = inner.objects.insert(key.clone(), entry).map(|e| e.object);
        if let Some(before) = &before {
            let was_in = group(before.meta());
            if was_in != now_in {
                inner.leave(&was_in, &key.name);
            }
        }
        inner.groups.entry(now_in).or_default().insert(key.name);
        Some(Change::Set { before, now: object })
    }

    /// Drops an object.
    pub(super) fn remove(&self, meta: &ObjectMeta) -> Option<Change<K>> {
        let key = Key::of(meta);
        let mut inner = self.write();
        // The end of an older object of that name says nothing about the one that took its place.
        if inner.objects.get(&key)?.object.meta().uid != meta.uid {
            return None;
        }
        inner.take(&key).map(Change::Gone)
    }

    /// A list begins: what it lacks is gone, unless we wrote it after this.
    pub(super) fn list_begins(&self, namespace: Option<&str>) {
        for (key, entry) in &mut self.write().objects {
            if namespace.is_none_or(|n| n == key.namespace) {
                entry.from_write = false;
            }
        }
    }

    /// A list ended, of a namespace or of all.
    pub(super) fn list_ended(&self, namespace: Option<&str>, listed: &HashSet<Key>) -> Vec<Change<K>> {
        let mut inner = self.write();
        let in_scope = |key: &Key| namespace.is_none_or(|n| n == key.namespace);
        let gone: Vec<Key> = inner
            .objects
            .iter()
            .filter(|(key, entry)| in_scope(key) && !entry.from_write && !listed.contains(*key))
            .map(|(key, _)| key.clone())
            .collect();
        gone.iter().filter_map(|key| inner.take(key)).map(Change::Gone).collect()
    }

    /// Forgets everything: the kind itself is gone.
    pub(super) fn clear(&self) {
        let mut inner = self.write();
        inner.objects.clear();
        inner.groups.clear();
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read().objects.get(key).map(|e| e.object.clone())
    }

    pub(super) fn marks(&self, key: &Key) -> Option<Marks> {
        self.read().objects.get(key).map(|e| e.marks)
    }

    /// What belongs to a model, or, without one, what the namespace's models share. By name.
    pub(super) fn group(&self, namespace: &str, model: Option<&str>) -> Vec<Arc<K>> {
        let inner = self.read();
        let group = (namespace.to_owned(), model.map(ToOwned::to_owned));
        let names = inner.groups.get(&group).into_iter().flatten();
        names
            .filter_map(|name| inner.objects.get(&Key::new(namespace, name)))
            .map(|e| e.object.clone())
            .collect()
    }

    pub(super) fn all(&self) -> Vec<Arc<K>> {
        self.read().objects.values().map(|e| e.object.clone()).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.read().objects.len()
    }
}

impl<K: Held> Inner<K> {
    fn take(&mut self, key: &Key) -> Option<Arc<K>> {
        let entry = self.objects.remove(key)?;
        self.leave(&group(entry.object.meta()), &key.name);
        Some(entry.object)
    }

    fn leave(&mut self, from: &Group, name: &str) {
        if let Some(names) = self.groups.get_mut(from) {
            names.remove(name);
            if names.is_empty() {
                self.groups.remove(from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    impl Held for ObjectMeta {
        fn meta(&self) -> &ObjectMeta {
            self
        }
    }

    fn object(name: &str, uid: &str, version: &str, model: Option<&str>) -> (ObjectMeta, Marks) {
        let meta: ObjectMeta = serde_json::from_value(json!({
            "name": name, "namespace": "n", "uid": uid, "resourceVersion": version,
            "labels": model.map(|m| json!({ MODEL_LABEL: m })).unwrap_or_default(),
        }))
        .unwrap();
        let marks = Marks::of(&meta);
        (meta, marks)
    }

    fn set(cache: &Cache<ObjectMeta>, (meta, marks): (ObjectMeta, Marks)) -> bool {
        cache.set(meta, marks).is_some()
    }

    fn names(cache: &Cache<ObjectMeta>, model: Option<&str>) -> Vec<String> {
        cache.group("n", model).iter().filter_map(|m| m.name.clone()).collect()
    }

    #[test]
    fn objects_are_found_by_model() {
        let cache = Cache::default();
        assert!(set(&cache, object("b", "1", "1", Some("m"))));
        assert!(set(&cache, object("a", "2", "2", Some("m"))));
        assert!(set(&cache, object("s", "3", "3", None)));
        assert_eq!(
            (names(&cache, Some("m")), names(&cache, None)),
            (vec!["a".into(), "b".into()], vec!["s".into()])
        );
        assert!(set(&cache, object("b", "1", "4", Some("other"))), "it moved");
        assert_eq!(names(&cache, Some("m")), ["a"]);
        assert!(cache.remove(&object("b", "1", "5", None).0).is_some());
        assert_eq!((names(&cache, Some("other")), cache.len()), (vec![], 2));
        assert_eq!(cache.read().groups.len(), 2, "no empty groups stay");
    }

    #[test]
    fn an_echo_and_what_is_older_change_nothing() {
        let cache = Cache::default();
        let (meta, marks) = object("a", "1", "7", None);
        cache.absorb(meta, marks);
        assert!(!set(&cache, object("a", "1", "7", None)), "the echo of our own write");
        assert!(!set(&cache, object("a", "1", "6", None)), "from before our write");
        assert!(set(&cache, object("a", "1", "8", None)));
        assert!(set(&cache, object("a", "2", "5", None)), "another object of that name");
        assert!(cache.remove(&object("a", "1", "9", None).0).is_none(), "the end of the first");
        assert_eq!(cache.len(), 1);
    }

    #[test]
    fn a_list_drops_what_it_lacks_but_not_what_was_written_meanwhile() {
        let cache = Cache::default();
        set(&cache, object("stays", "1", "1", None));
        set(&cache, object("gone", "2", "2", None));
        let (meta, marks) = object("written before", "3", "3", None);
        cache.absorb(meta, marks);
        cache.list_begins(None);
        let (meta, marks) = object("written", "4", "4", None);
        cache.absorb(meta, marks);
        let listed = HashSet::from([Key::new("n", "stays")]);
        assert!(cache.list_ended(Some("other"), &listed).is_empty(), "of another namespace");
        let mut gone: Vec<_> =
            cache.list_ended(Some("n"), &listed).iter().map(|c| c.object().name.clone().unwrap()).collect();
        gone.sort();
        assert_eq!(gone, ["gone", "written before"]);
        assert_eq!(names(&cache, None), ["stays", "written"]);
    }

    #[test]
    fn a_field_that_somebody_took_shows() {
        let managed = |fields: serde_json::Value, by: &str| {
            let meta: ObjectMeta = serde_json::from_value(json!({
                "resourceVersion": "1",
                "managedFields": [
                    { "manager": by, "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": fields },
                    { "manager": by, "operation": "Apply", "subresource": "status", "fieldsV1": { "f:status": {} } },
                    { "manager": "kubectl", "operation": "Update", "fieldsV1": { "f:spec": {} } },
                ],
            }))
            .unwrap();
            Marks::of(&meta).ours
        };
        let both = managed(json!({ "f:spec": { "f:replicas": {}, "f:paused": {} } }), FIELD_MANAGER);
        assert_eq!(both, managed(json!({ "f:spec": { "f:replicas": {}, "f:paused": {} } }), FIELD_MANAGER));
        assert_ne!(both, managed(json!({ "f:spec": { "f:paused": {} } }), FIELD_MANAGER));
        let others = managed(json!({ "f:spec": { "f:paused": {} } }), "kubectl");
        assert_eq!(others, managed(json!({}), "kubectl"), "the fields of others do not matter");
    }
}
