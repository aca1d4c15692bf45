//! What is written, and what is repaired.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use strata_hop::tls::credentials::{Credentials, Files};
use strata_hop::tls::{Component, Identity};

use super::*;

mod rotation;

const DAY: i64 = 86_400;
const NOW: i64 = 1_800_000_000;

/// Secrets in memory, each with a version.
#[derive(Default)]
struct Memory {
    secrets: Mutex<BTreeMap<SecretName, Secret>>,
    writes: Mutex<u64>,
    refuses: Mutex<Option<SecretName>>,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(&'static str);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SecretStore for Memory {
    type Error = Refused;

    async fn get(&self, name: &SecretName) -> Result<Option<Secret>, Refused> {
        Ok(lock(&self.secrets).get(name).cloned())
    }

    async fn apply(&self, secret: &Secret) -> Result<(), Refused> {
        let name = SecretName { namespace: secret.namespace().unwrap(), name: secret.name_any() };
        if lock(&self.refuses).as_ref() == Some(&name) {
            return Err(Refused("the namespace is being terminated"));
        }
        let mut secrets = lock(&self.secrets);
        let there = secrets.get(&name).and_then(ResourceExt::resource_version);
        if secret.metadata.resource_version.is_some() && secret.metadata.resource_version != there {
            return Err(Refused("the object has been modified"));
        }
        let mut writes = lock(&self.writes);
        *writes += 1;
        let mut secret = secret.clone();
        secret.metadata.resource_version = Some(writes.to_string());
        secrets.insert(name, secret);
        Ok(())
    }
}

impl Memory {
    fn files(&self, identity: &Identity) -> Option<Files> {
        let secret = lock(&self.secrets).get(&SecretName::of(identity)).cloned()?;
        let data = secret.data.unwrap_or_default();
        let file = |name: &str| data.get(name).map(|b| b.0.clone()).unwrap_or_default();
        Some(Files { certificate: file("tls.crt"), key: file("tls.key"), authorities: file("ca.crt") })
    }

    fn version(&self, identity: &Identity) -> Option<String> {
        lock(&self.secrets).get(&SecretName::of(identity)).and_then(ResourceExt::resource_version)
    }

    fn existing(&self) -> BTreeMap<SecretName, Held> {
        let held = |secret: &Secret| Held {
            data: secret.data.clone().unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect(),
            owners: secret.metadata.owner_references.clone().unwrap_or_default(),
        };
        lock(&self.secrets).iter().map(|(name, secret)| (name.clone(), held(secret))).collect()
    }

    fn edit(&self, name: &SecretName, edit: impl FnOnce(&mut BTreeMap<String, ByteString>)) {
        if let Some(secret) = lock(&self.secrets).get_mut(name) {
            edit(secret.data.get_or_insert_default());
            let mut writes = lock(&self.writes);
            *writes += 1;
            secret.metadata.resource_version = Some(writes.to_string());
        }
    }

    fn delete(&self, name: &SecretName) {
        lock(&self.secrets).remove(name);
    }

    fn authorities(&self) -> Vec<Record> {
        let existing = self.existing();
        existing.get(&SecretName::authorities("strata")).map(|h| record::read(&h.data)).unwrap_or_default()
    }
}

fn reconcile(
    authority: &Authority,
    store: &Memory,
    wanted: &[Wanted],
    now: i64,
) -> Result<Outcome, TrustError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(authority.reconcile(store, wanted, now))
}

fn everybody(namespaces: &[&str]) -> Vec<Wanted> {
    let models = namespaces.iter().map(|n| ((*n).to_owned(), Vec::new())).collect();
    wanted(Mode::Enterprise, "strata", &models)
}

/// Whether the holder of `theirs` is believed by the holder of `ours`.
fn believes(ours: &Files, theirs: &Files, now: i64) -> Result<(), String> {
    let both = Files { authorities: ours.authorities.clone(), ..theirs.clone() };
    Credentials::parse(&both, now).map(drop).map_err(|error| error.to_string())
}

fn all_believe(files: &[(Identity, Files)], now: i64) {
    let mut asked: Vec<&[u8]> = Vec::new();
    for (whose, ours) in files {
        // Those who trust the same authorities believe the same.
        if asked.contains(&ours.authorities.as_slice()) {
            continue;
        }
        asked.push(&ours.authorities);
        for (who, theirs) in files {
            if let Err(why) = believes(ours, theirs, now) {
                panic!("{whose} does not believe {who} at {now}: {why}");
            }
        }
    }
}

fn held_by(store: &Memory, wanted: &[Wanted]) -> Vec<(Identity, Files)> {
    wanted.iter().filter_map(|w| Some((w.identity.clone(), store.files(&w.identity)?))).collect()
}

#[test]
fn everybody_is_named_once_and_then_nothing_is_written() {
    let (store, authority) = (Memory::default(), Authority::new("strata"));
    let wanted = everybody(&["team-a", "team-b"]);
    assert!(authority.own().is_none());
    let first = reconcile(&authority, &store, &wanted, now_seconds()).unwrap();
    let now = now_seconds();
    // The authorities twice: once made, once known to be trusted by all.
    assert_eq!(first.written, 2 + 3 + 4);
    let names: Vec<String> = lock(&store.secrets).keys().map(ToString::to_string).collect();
    insta::assert_snapshot!(names.join("\n"), @r"
    strata/strata-ca
    strata/strata-hop-gateway
    strata/strata-hop-operator
    strata/strata-hop-platform
    team-a/strata-hop-engine
    team-a/strata-hop-scheduler
    team-b/strata-hop-engine
    team-b/strata-hop-scheduler
    ");
    let held = held_by(&store, &wanted);
    all_believe(&held, now);
    for (identity, files) in &held {
        let certificate = Credentials::parse(files, now).unwrap().certificate;
        assert_eq!(certificate.identity, *identity);
        assert!((certificate.not_after - now - 90 * DAY).abs() < 60);
    }
    assert!((first.due - now - 60 * DAY).abs() < 60, "renewed after two thirds");
    assert_eq!(reconcile(&authority, &store, &wanted, now).unwrap().written, 0);
    let own = authority.own().unwrap().identity();
    assert_eq!(own.to_string(), "spiffe://strata/ns/strata/operator");
    let keys: Vec<&[u8]> = held.iter().map(|(_, files)| files.key.as_slice()).collect();
    assert!((1..keys.len()).all(|i| !keys[..i].contains(&keys[i])), "each has a key of its own");
}

fn now_seconds() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64
}

#[test]
fn modes_name_only_the_layers_that_they_have() {
    let models = BTreeMap::from([("m".to_owned(), Vec::new()), ("Not A Label".to_owned(), Vec::new())]);
    let names = |mode| {
        let all = wanted(mode, "strata", &models);
        all.iter().map(|w| w.identity.component().name()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(Mode::Development), "operator platform engine");
    assert_eq!(names(Mode::Production), "operator platform engine scheduler");
    assert_eq!(names(Mode::Enterprise), "operator platform gateway engine scheduler");
}

type Edit<'a> = Box<dyn Fn(&mut BTreeMap<String, ByteString>) + 'a>;

#[test]
fn a_secret_that_is_deleted_or_garbled_is_made_anew() {
    let (store, authority) = (Memory::default(), Authority::new("strata"));
    let wanted = everybody(&["m"]);
    let now = now_seconds();
    reconcile(&authority, &store, &wanted, now).unwrap();
    let engine = Identity::new("m", Component::Engine).unwrap();
    let name = SecretName::of(&engine);
    let other = store.files(&Identity::new("m", Component::Scheduler).unwrap()).unwrap();
    let byte = |text: &[u8]| ByteString(text.to_vec());
    let edits: [(&str, Edit<'_>, bool); 8] = [
        ("no certificate", Box::new(|d| drop(d.remove("tls.crt"))), true),
        ("no key", Box::new(|d| drop(d.remove("tls.key"))), true),
        ("text", Box::new(|d| drop(d.insert("tls.crt".into(), byte(b"certainly")))), true),
        ("another's key", Box::new(|d| drop(d.insert("tls.key".into(), byte(&other.key)))), true),
        (
            "another's certificate",
            Box::new(|d| {
                d.insert("tls.crt".into(), byte(&other.certificate));
                d.insert("tls.key".into(), byte(&other.key));
            }),
            true,
        ),
        ("empty", Box::new(BTreeMap::clear), true),
        ("no authorities", Box::new(|d| drop(d.remove("ca.crt"))), false),
        ("another authority", Box::new(|d| drop(d.insert("ca.crt".into(), byte(b"x")))), false),
    ];
    for (what, edit, anew) in edits {
        let before = store.files(&engine).unwrap();
        store.edit(&name, |data| edit(data));
        assert_eq!(reconcile(&authority, &store, &wanted, now).unwrap().written, 1, "{what}");
        let after = store.files(&engine).unwrap();
        assert_eq!(after.certificate != before.certificate, anew, "{what}");
        all_believe(&held_by(&store, &wanted), now);
    }
    store.delete(&name);
    assert_eq!(reconcile(&authority, &store, &wanted, now).unwrap().written, 1);
    all_believe(&held_by(&store, &wanted), now);
}

#[test]
fn when_the_authorities_are_lost_those_whom_they_named_stay_trusted() {
    for what in ["deleted", "garbled", "without a key"] {
        let (store, authority) = (Memory::default(), Authority::new("strata"));
        let wanted = everybody(&["m"]);
        let mut now = now_seconds();
        reconcile(&authority, &store, &wanted, now).unwrap();
        let before = held_by(&store, &wanted);
        let name = SecretName::authorities("strata");
        match what {
            "deleted" => store.delete(&name),
            "garbled" => store.edit(&name, |data| {
                for text in data.values_mut() {
                    text.0.reverse();
                }
            }),
            _ => store.edit(&name, |data| data.retain(|name, _| name.strip_suffix(".key").is_none())),
        }
        let outcome = reconcile(&authority, &store, &wanted, now).unwrap();
        assert_eq!(outcome.written, 2 + wanted.len(), "{what}: everybody is told of the new one");
        let after = held_by(&store, &wanted);
        for ((_, before), (_, after)) in before.iter().zip(&after) {
            assert_eq!(before.certificate, after.certificate, "{what}: and keeps its certificate");
        }
        // Holders that have not noticed yet, and those that have.
        all_believe(&[before, after].concat(), now);
        // In time everybody is named by the new one, and the old one is forgotten.
        for _ in 0..200 {
            now += DAY;
            reconcile_at(&authority, &store, &wanted, now);
            all_believe(&held_by(&store, &wanted), now);
        }
        assert_eq!(store.authorities().len(), 1, "{what}");
    }
}

/// The operator's own certificate is judged by the true time, which these tests leave behind.
fn reconcile_at(authority: &Authority, store: &Memory, wanted: &[Wanted], now: i64) {
    match reconcile(authority, store, wanted, now) {
        Ok(_) | Err(TrustError::Own(_)) => {}
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn authorities_are_believed_of_no_namespace_but_stratas_own() {
    let (store, authority) = (Memory::default(), Authority::new("strata"));
    let wanted = everybody(&["m"]);
    let now = now_seconds();
    reconcile(&authority, &store, &wanted, now).unwrap();
    let forged = issue::authority(&Schedule::default(), now).unwrap();
    let engine = SecretName::of(&Identity::new("m", Component::Engine).unwrap());
    store.edit(&engine, |data| {
        data.insert("ca.crt".into(), ByteString(forged.certificate.clone().into_bytes()));
    });
    store.delete(&SecretName::authorities("strata"));
    reconcile(&authority, &store, &wanted, now).unwrap();
    for (identity, files) in held_by(&store, &wanted) {
        let trusted = String::from_utf8(files.authorities).unwrap();
        assert!(!trusted.contains(forged.certificate.trim()), "{identity}");
    }
}

#[test]
fn one_namespace_that_takes_no_secret_keeps_nobody_else_from_theirs() {
    let (store, authority) = (Memory::default(), Authority::new("strata"));
    let wanted = everybody(&["a", "b", "c"]);
    let stuck = SecretName::of(&Identity::new("b", Component::Engine).unwrap());
    *lock(&store.refuses) = Some(stuck.clone());
    let error = reconcile(&authority, &store, &wanted, now_seconds()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot write the Secret b/strata-hop-engine: the namespace is being terminated"
    );
    assert_eq!(lock(&store.secrets).len(), 1 + wanted.len() - 1);
    assert!(authority.own().is_some());
    *lock(&store.refuses) = None;
    let outcome = reconcile(&authority, &store, &wanted, now_seconds()).unwrap();
    assert_eq!(outcome.written, 2, "the one that was missing, and that all trust the authority");
}

#[test]
fn owners_are_kept_up_with() {
    let (store, authority) = (Memory::default(), Authority::new("strata"));
    let owner = |uid: &str| OwnerReference { uid: uid.to_owned(), ..OwnerReference::default() };
    let with = |owners: Vec<OwnerReference>| {
        wanted(Mode::Enterprise, "strata", &BTreeMap::from([("m".to_owned(), owners)]))
    };
    let now = now_seconds();
    reconcile(&authority, &store, &with(vec![owner("1")]), now).unwrap();
    let engine = Identity::new("m", Component::Engine).unwrap();
    let before = store.files(&engine).unwrap();
    let outcome = reconcile(&authority, &store, &with(vec![owner("1"), owner("2")]), now).unwrap();
    assert_eq!(outcome.written, 2);
    assert_eq!(store.files(&engine).unwrap(), before);
    assert_eq!(store.existing()[&SecretName::of(&engine)].owners.len(), 2);
}
