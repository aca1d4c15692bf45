//! Opens the database and makes its tables.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};

use super::LedgerError;

const SCHEMA: i64 = 1;

const TABLES: &str = "
CREATE TABLE usage (
    id INTEGER PRIMARY KEY,
    request_id TEXT NOT NULL UNIQUE,
    at INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    key_id TEXT NOT NULL,
    user_hash TEXT,
    model TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    estimated INTEGER NOT NULL,
    status INTEGER NOT NULL,
    ttft_ms INTEGER,
    duration_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX usage_at ON usage (at);
CREATE INDEX usage_tenant_at ON usage (tenant, at);
CREATE TABLE audit (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    request_id TEXT NOT NULL,
    tenant TEXT,
    key_id TEXT,
    decision TEXT NOT NULL,
    reason TEXT NOT NULL,
    policy TEXT
) STRICT;
CREATE INDEX audit_at ON audit (at);
CREATE TABLE open_requests (
    request_id TEXT PRIMARY KEY,
    at INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    key_id TEXT NOT NULL,
    user_hash TEXT,
    model TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    input INTEGER NOT NULL,
    output INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    hash TEXT NOT NULL,
    previous_hash TEXT,
    previous_until INTEGER,
    created INTEGER NOT NULL,
    expires INTEGER,
    revoked INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX api_keys_tenant ON api_keys (tenant);
CREATE TABLE versions (name TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO versions VALUES ('keys', 1);
CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TRIGGER usage_keeps_rows BEFORE DELETE ON usage BEGIN SELECT RAISE(ABORT, 'usage is append-only'); END;
CREATE TRIGGER usage_keeps_values BEFORE UPDATE ON usage BEGIN SELECT RAISE(ABORT, 'usage is append-only'); END;
CREATE TRIGGER audit_keeps_rows BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER audit_keeps_values BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
";

/// Opens the ledger at `path`, readable by its owner only, and makes its tables when it is new.
pub fn open(path: &Path) -> Result<Connection, LedgerError> {
    let failed = |source| LedgerError::Open { path: path.to_owned(), source };
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path).map_err(failed)?;
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A commit reaches the system at once and survives the process. The writer makes it survive a
    // power loss by syncing the log itself, for a group of commits at a time.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match found {
        0 => {
            transaction.execute_batch(TABLES)?;
            transaction.pragma_update(None, "user_version", SCHEMA)?;
        }
        SCHEMA => {}
        found => return Err(LedgerError::Newer { path: path.to_owned(), found, known: SCHEMA }),
    }
    transaction.commit()?;
    Ok(connection)
}

/// The secret that opaque ids are made with: 32 random bytes, made once for each ledger, so that ids
/// stay the same over restarts.
pub fn identity_secret(connection: &mut Connection) -> Result<[u8; 32], LedgerError> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let kept: Option<[u8; 32]> = transaction
        .query_row("SELECT value FROM secrets WHERE name = 'identity'", [], |row| row.get(0))
        .optional()?;
    let secret = if let Some(secret) = kept {
        secret
    } else {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(LedgerError::Random)?;
        transaction.execute("INSERT INTO secrets VALUES ('identity', ?1)", [secret])?;
        secret
    };
    transaction.commit()?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_new_ledger_is_private_and_keeps_its_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/ledger.db");
        let secret = identity_secret(&mut open(&path).unwrap()).unwrap();
        assert_eq!(identity_secret(&mut open(&path).unwrap()).unwrap(), secret);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn usage_and_audit_are_append_only() {
        let folder = tempfile::tempdir().unwrap();
        let connection = open(&folder.path().join("l.db")).unwrap();
        connection
            .execute_batch(
                "INSERT INTO usage VALUES (1,'r',0,'t','k',NULL,'m','e',1,1,0,1,0,200,NULL,1);\
                 INSERT INTO audit VALUES (1,0,'r','t','k','allow','ok',NULL);",
            )
            .unwrap();
        for sql in [
            "DELETE FROM usage",
            "UPDATE usage SET requests = 0",
            "DELETE FROM audit",
            "UPDATE audit SET at = 1",
        ] {
            let error = connection.execute_batch(sql).unwrap_err().to_string();
            assert!(error.contains("append-only"), "{sql}: {error}");
        }
    }

    #[test]
    fn a_newer_ledger_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("l.db");
        open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(open(&path), Err(LedgerError::Newer { found: 99, .. })));
    }
}
