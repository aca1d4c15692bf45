//! Who a presented key belongs to. A ring is one consistent set of keys; a change makes a new ring.

use std::collections::HashMap;
use std::sync::Arc;

use subtle::{Choice, ConstantTimeEq};

use super::format::{self, KeyHash};
use super::store::{Role, StoredKey};

/// One key that may authenticate.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its public id.
    pub id: Arc<str>,
    /// Its tenant.
    pub tenant: Arc<str>,
    /// What it may do.
    pub role: Role,
    /// The hash of its secret.
    pub hash: KeyHash,
    /// A secret that still works until this second.
    pub previous: Option<(KeyHash, i64)>,
    /// Second from which it is refused.
    pub expires: Option<i64>,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// Whose key it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The key's public id.
    pub key: Arc<str>,
    /// The tenant's name.
    pub tenant: Arc<str>,
    /// What the key may do.
    pub role: Role,
}

/// Why a key was refused. Only a caller who has the secret learns that the key has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No such key, a wrong secret, or one that was revoked.
    Unknown,
    /// The key was good until its time ran out.
    Expired,
}

/// The keys that work, by id.
#[derive(Debug)]
pub struct KeyRing {
    keys: HashMap<Arc<str>, Known>,
    /// Stands in for an unknown id, so that it costs what a known one costs.
    decoy: KeyHash,
}

impl KeyRing {
    /// A ring of the store's keys and of those in Secrets. Where an id stands in both, the store's
    /// counts: it can be revoked.
    pub fn new(stored: Vec<StoredKey>, in_secrets: &[Known]) -> Self {
        let mut keys: HashMap<Arc<str>, Known> =
            in_secrets.iter().map(|k| (k.id.clone(), k.clone())).collect();
        for key in stored {
            let id: Arc<str> = key.info.id.into();
            let known = Known {
                id: id.clone(),
                tenant: key.info.tenant.into(),
                role: key.info.role,
                hash: key.hash,
                previous: key.previous,
                expires: key.info.expires,
                revoked: key.info.revoked.is_some(),
            };
            keys.insert(id, known);
        }
        Self { keys, decoy: KeyHash::of("", "") }
    }

    /// Whose key this is, at `now` in seconds since 1970.
    pub fn authenticate(&self, presented: &str, now: i64) -> Result<Caller, Denied> {
        let (id, secret) = format::split(presented).unwrap_or(("", ""));
        let hash = KeyHash::of(id, secret);
        let known = self.keys.get(id);
        let current = known.map_or(&self.decoy, |k| &k.hash).ct_eq(&hash);
        let (before, until) = known.and_then(|k| k.previous).unwrap_or((self.decoy, 0));
        let rotated = before.ct_eq(&hash) & Choice::from(u8::from(now < until));
        let usable = known.is_some_and(|k| !k.revoked).ct_eq_true();
        match known {
            Some(known) if bool::from((current | rotated) & usable) => {
                if known.expires.is_some_and(|at| now >= at) {
                    return Err(Denied::Expired);
                }
                Ok(Caller { key: known.id.clone(), tenant: known.tenant.clone(), role: known.role })
            }
            _ => Err(Denied::Unknown),
        }
    }
}

trait CtTrue {
    fn ct_eq_true(self) -> Choice;
}

impl CtTrue for bool {
    fn ct_eq_true(self) -> Choice {
        u8::from(self).ct_eq(&1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyStore;

    #[test]
    fn only_the_right_secret_of_a_live_key_passes() {
        let folder = tempfile::tempdir().unwrap();
        let store = KeyStore::open(&folder.path().join("l.db")).unwrap();
        let (good, info) = store.create("acme", "a", Role::Admin, None).unwrap();
        let (ended, _) = store.create("acme", "b", Role::Member, Some(1000)).unwrap();
        let (revoked, gone) = store.create("acme", "c", Role::Member, None).unwrap();
        store.revoke(&gone.id).unwrap();
        let ring = KeyRing::new(store.stored().unwrap(), &[]);
        let caller = ring.authenticate(&good, 500).unwrap();
        assert_eq!((&*caller.key, &*caller.tenant, caller.role), (info.id.as_str(), "acme", Role::Admin));
        assert!(ring.authenticate(&ended, 999).is_ok());
        assert_eq!(ring.authenticate(&ended, 1000), Err(Denied::Expired));
        assert_eq!(ring.authenticate(&revoked, 500), Err(Denied::Unknown));
        let forged = format!("{}x", &good[..good.len() - 1]);
        for bad in ["", "nonsense", forged.as_str(), "sk-strata-a_b"] {
            assert_eq!(ring.authenticate(bad, 500), Err(Denied::Unknown), "{bad}");
        }
    }

    #[test]
    fn a_rotated_secret_works_through_the_overlap_only() {
        let folder = tempfile::tempdir().unwrap();
        let clock = crate::clock::Clock::manual(1_000_000);
        let store = KeyStore::open_at(&folder.path().join("l.db"), clock).unwrap();
        let (old, info) = store.create("acme", "a", Role::Member, None).unwrap();
        let new = store.rotate(&info.id, 60).unwrap().unwrap();
        let ring = KeyRing::new(store.stored().unwrap(), &[]);
        assert_eq!(ring.authenticate(&old, 1059).unwrap(), ring.authenticate(&new, 1059).unwrap());
        assert_eq!(ring.authenticate(&old, 1060), Err(Denied::Unknown));
        assert!(ring.authenticate(&new, 9_000_000).is_ok());
    }

    #[test]
    fn a_key_in_a_secret_is_known_by_the_hash_that_its_user_computed() {
        let known = Known {
            id: "team1".into(),
            tenant: "acme".into(),
            role: Role::Member,
            hash: KeyHash::parse(&KeyHash::of("team1", "s3cret").to_text()).unwrap(),
            previous: None,
            expires: Some(50),
            revoked: false,
        };
        let ring = KeyRing::new(Vec::new(), &[known]);
        assert!(ring.authenticate("sk-strata-team1_s3cret", 49).is_ok());
        assert_eq!(ring.authenticate("sk-strata-team1_s3cret", 50), Err(Denied::Expired));
        assert_eq!(ring.authenticate("sk-strata-team1_secret", 49), Err(Denied::Unknown));
    }
}
