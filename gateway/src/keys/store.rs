//! Run-time keys, in the ledger's database.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};

use super::format::{self, KeyHash};
use crate::clock::Clock;
use crate::ledger::{LedgerError, database};

/// What a key may do beside calling models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Also manages its tenant's keys and reads its tenant's usage.
    Admin,
    /// Calls models.
    Member,
}

impl Role {
    /// Its name in the API and the database.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Member => "member",
        }
    }

    /// The role of this name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "admin" => Some(Self::Admin),
            "member" => Some(Self::Member),
            _ => None,
        }
    }
}

/// A key without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// The public id.
    pub id: String,
    /// The tenant it belongs to.
    pub tenant: String,
    /// What its owner calls it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Seconds since 1970 when it was made.
    pub created: i64,
    /// Seconds since 1970 when it stops working; never when absent.
    pub expires: Option<i64>,
    /// Seconds since 1970 when it was revoked.
    pub revoked: Option<i64>,
}

/// A key as the ring needs it.
#[derive(Clone, Debug)]
pub struct StoredKey {
    /// Whose it is.
    pub info: KeyInfo,
    /// The hash of the current secret.
    pub hash: KeyHash,
    /// The hash of the secret before the last rotation, and the second until which it works.
    pub previous: Option<(KeyHash, i64)>,
}

/// The run-time keys. Every change raises a version that running gateways watch.
#[derive(Debug)]
pub struct KeyStore {
    connection: Mutex<Connection>,
    clock: Clock,
}

impl KeyStore {
    /// Opens the keys of the ledger at `path`, making it when it is not there. Another process may
    /// have it open.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        Self::open_at(path, Clock::System)
    }

    /// The same, on another clock.
    pub fn open_at(path: &Path, clock: Clock) -> Result<Self, LedgerError> {
        Ok(Self { connection: Mutex::new(database::open(path)?), clock })
    }

    fn now(&self) -> i64 {
        self.clock.now_ms() / 1000
    }

    fn change<T>(
        &self,
        f: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = f(&transaction)?;
        transaction.execute("UPDATE versions SET version = version + 1 WHERE name = 'keys'", [])?;
        transaction.commit()?;
        Ok(value)
    }

    fn read<T>(&self, f: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, LedgerError> {
        Ok(f(&self.connection.lock().unwrap_or_else(PoisonError::into_inner))?)
    }

    /// Makes a key of `tenant` that works until `expires` (seconds since 1970). Returns the whole key,
    /// which is not stored and cannot be had again, and what is known of it.
    pub fn create(
        &self,
        tenant: &str,
        name: &str,
        role: Role,
        expires: Option<i64>,
    ) -> Result<(String, KeyInfo), LedgerError> {
        let minted = format::mint().map_err(LedgerError::Random)?;
        let info = KeyInfo {
            id: minted.id,
            tenant: tenant.to_owned(),
            name: name.to_owned(),
            role,
            created: self.now(),
            expires,
            revoked: None,
        };
        self.change(|t| {
            t.execute(
                "INSERT INTO api_keys (id, tenant, name, role, hash, created, expires) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    info.id,
                    info.tenant,
                    info.name,
                    role.name(),
                    minted.hash.to_text(),
                    info.created,
                    expires
                ],
            )?;
            Ok(())
        })?;
        Ok((minted.text, info))
    }

    /// The keys of one tenant, or of all, the oldest first; revoked ones included.
    pub fn list(&self, tenant: Option<&str>) -> Result<Vec<KeyInfo>, LedgerError> {
        Ok(self
            .stored()?
            .into_iter()
            .map(|k| k.info)
            .filter(|k| tenant.is_none_or(|t| t == k.tenant))
            .collect())
    }

    /// Ends a key at once, its rotated secrets too. `false` when no working key has this id.
    pub fn revoke(&self, id: &str) -> Result<bool, LedgerError> {
        let now = self.now();
        self.change(|t| {
            Ok(t.execute(
                "UPDATE api_keys SET revoked = ?2 WHERE id = ?1 AND revoked IS NULL",
                params![id, now],
            )? > 0)
        })
    }

    /// Gives a key a new secret; the one before works for `overlap_s` seconds more. The id stays, so
    /// the key's limits and usage go on. `None` when no working key has this id.
    pub fn rotate(&self, id: &str, overlap_s: i64) -> Result<Option<String>, LedgerError> {
        let minted = format::mint_for(id).map_err(LedgerError::Random)?;
        let until = self.now().saturating_add(overlap_s.max(0));
        let changed = self.change(|t| {
            Ok(t.execute(
                "UPDATE api_keys SET previous_hash = hash, previous_until = ?3, hash = ?2 \
                 WHERE id = ?1 AND revoked IS NULL",
                params![id, minted.hash.to_text(), until],
            )?)
        })?;
        Ok((changed > 0).then_some(minted.text))
    }

    /// Whether a tenant has a key that works.
    pub fn has_keys(&self, tenant: &str) -> Result<bool, LedgerError> {
        let now = self.now();
        self.read(|c| {
            c.query_row(
                "SELECT EXISTS(SELECT 1 FROM api_keys WHERE tenant = ?1 AND revoked IS NULL \
                 AND (expires IS NULL OR expires > ?2))",
                params![tenant, now],
                |row| row.get(0),
            )
        })
    }

    /// One key.
    pub fn get(&self, id: &str) -> Result<Option<KeyInfo>, LedgerError> {
        Ok(self
            .read(|c| {
                c.query_row(&format!("{SELECT} WHERE id = ?1"), [id], |row| Ok(stored(row)))
                    .optional()?
                    .transpose()
            })?
            .map(|k| k.info))
    }

    /// A number that is another one after every change, by whatever process.
    pub fn version(&self) -> Result<i64, LedgerError> {
        self.read(|c| c.query_row("SELECT version FROM versions WHERE name = 'keys'", [], |r| r.get(0)))
    }

    /// All keys with their hashes, the oldest first.
    pub fn stored(&self) -> Result<Vec<StoredKey>, LedgerError> {
        self.read(|c| c.prepare(&format!("{SELECT} ORDER BY created, id"))?.query_map([], stored)?.collect())
    }
}

const SELECT: &str = "SELECT id, tenant, name, role, created, expires, revoked, hash, previous_hash, \
     previous_until FROM api_keys";

fn stored(row: &Row<'_>) -> rusqlite::Result<StoredKey> {
    let hash = |column: usize, text: &str| {
        KeyHash::parse(text).ok_or_else(|| {
            rusqlite::Error::InvalidColumnType(column, "hash".to_owned(), rusqlite::types::Type::Text)
        })
    };
    let previous: Option<String> = row.get(8)?;
    let until: Option<i64> = row.get(9)?;
    Ok(StoredKey {
        info: KeyInfo {
            id: row.get(0)?,
            tenant: row.get(1)?,
            name: row.get(2)?,
            role: Role::parse(&row.get::<_, String>(3)?).unwrap_or(Role::Member),
            created: row.get(4)?,
            expires: row.get(5)?,
            revoked: row.get(6)?,
        },
        hash: hash(7, &row.get::<_, String>(7)?)?,
        previous: match (previous, until) {
            (Some(text), Some(until)) => Some((hash(8, &text)?, until)),
            _ => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_listed_rotated_and_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        let (store, other) = (KeyStore::open(&path).unwrap(), KeyStore::open(&path).unwrap());
        let before = other.version().unwrap();
        let (key, info) = store.create("acme", "ci", Role::Admin, None).unwrap();
        assert_ne!(other.version().unwrap(), before, "another process sees the change");
        assert_eq!(other.list(Some("acme")).unwrap(), std::slice::from_ref(&info));
        assert!(other.list(Some("zeta")).unwrap().is_empty());
        assert!(store.has_keys("acme").unwrap() && !store.has_keys("zeta").unwrap());
        let rotated = store.rotate(&info.id, 60).unwrap().unwrap();
        assert_ne!(rotated, key);
        assert_eq!(format::split(&rotated).unwrap().0, info.id);
        assert!(store.stored().unwrap()[0].previous.is_some());
        assert!(store.revoke(&info.id).unwrap() && !store.revoke(&info.id).unwrap());
        assert!(store.rotate(&info.id, 60).unwrap().is_none());
        assert!(!store.has_keys("acme").unwrap());
        assert!(store.get(&info.id).unwrap().unwrap().revoked.is_some());
    }

    #[test]
    fn the_secret_is_nowhere_in_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        let (key, _) = KeyStore::open(&path).unwrap().create("acme", "ci", Role::Member, None).unwrap();
        let secret = format::split(&key).unwrap().1.to_owned();
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()));
        }
    }
}
