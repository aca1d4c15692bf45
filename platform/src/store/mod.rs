//! The platform's memory: one SQLite database in WAL mode.
//!
//! One thread writes and two read, each with its own connection, so nothing ever waits for a lock of
//! this process. Writes that wait together are committed together, with one flush to disk; the caller
//! hears of its write only after that. A failed disk fails the requests that needed it and nothing
//! else.

mod adopt;
pub(crate) mod conversations;
mod lane;
pub(crate) mod responses;
mod schema;

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rusqlite::Connection;

use crate::options::PlatformError;
use lane::{Reader, Writer};

/// The database's file in the state folder.
const FILE: &str = "platform.sqlite";
/// Threads that read.
const READERS: usize = 2;

/// Why something could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// No space is left.
    #[error("the disk that holds the platform's state is full")]
    Full,
    /// Anything else.
    #[error("the platform's database failed: {0}")]
    Failed(String),
    /// What is stored is not what was written.
    #[error("the platform's database holds something unreadable: {0}")]
    Unreadable(String),
    /// The process is ending.
    #[error("the platform's database is closed")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<serde_json::Error> for StoreError {
    fn from(error: serde_json::Error) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// The database. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Store {
    writer: Writer,
    readers: Arc<[Reader]>,
    turn: Arc<AtomicUsize>,
}

impl Store {
    /// Opens the database in this folder, making both where needed.
    pub(crate) fn open(folder: &Path) -> Result<Self, PlatformError> {
        let failed = |path: &Path, why: String| PlatformError::State { path: path.to_owned(), why };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|e| failed(folder, e.to_string()))?;
        let path = folder.join(FILE);
        // Made here, so that the conversations in it are never readable by others; SQLite gives its
        // journal the same mode.
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| failed(&path, e.to_string()))?;
        let mut writing = connect(&path).map_err(|e| failed(&path, e.to_string()))?;
        schema::migrate(&mut writing).map_err(|why| failed(&path, why))?;
        let readers = (0..READERS)
            .map(|_| {
                let reading = connect(&path).map_err(|e| failed(&path, e.to_string()))?;
                reading.pragma_update(None, "query_only", true).map_err(|e| failed(&path, e.to_string()))?;
                Reader::start(reading).map_err(|e| failed(&path, e.to_string()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let writer = Writer::start(writing).map_err(|e| failed(&path, e.to_string()))?;
        Ok(Self { writer, readers: readers.into(), turn: Arc::default() })
    }

    /// Runs `job` on a connection that only reads.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.readers[turn % self.readers.len()].run(job).await
    }

    /// Runs `job` in a transaction and returns when it is on disk. An error undoes all that it did.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.writer.run(job).await
    }

    /// Whether the database answers.
    pub(crate) async fn check(&self) -> Result<(), StoreError> {
        self.read(|c| Ok(c.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?)).await
    }
}

fn connect(path: &Path) -> Result<Connection, rusqlite::Error> {
    let connection = Connection::open(path)?;
    // Another process, such as a backup, may hold the database for a moment.
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_database_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        drop(Store::open(folder.path()).unwrap());
        let other = Connection::open(folder.path().join(FILE)).unwrap();
        other.pragma_update(None, "user_version", 99).unwrap();
        let error = Store::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("newer version of Strata (schema 99, this one knows 1)"), "{error}");
    }

    #[test]
    fn what_is_no_database_is_said_so() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "not a database, and longer than a header ".repeat(50))
            .unwrap();
        let error = Store::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("file is not a database"), "{error}");
        let error = Store::open(&folder.path().join(FILE)).err().unwrap().to_string();
        assert!(error.contains("exists") || error.contains("directory"), "{error}");
    }

    #[test]
    fn others_on_the_machine_cannot_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let _store = Store::open(&state).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&state), 0o700);
        assert_eq!(mode(&state.join(FILE)), 0o600);
    }

    #[tokio::test]
    async fn a_full_disk_fails_the_request_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let pages = store
            .write(|c| {
                let pages: u32 = c.query_row("PRAGMA page_count", [], |r| r.get(0))?;
                let _: u32 =
                    c.query_row(&format!("PRAGMA max_page_count={}", pages + 4), [], |r| r.get(0))?;
                Ok(pages)
            })
            .await
            .unwrap();
        assert!(pages > 0);
        let write = |id: &'static str, size: usize| {
            store.write(move |c| {
                c.execute(
                    "INSERT INTO conversations (id, owner, created_at, metadata) VALUES (?1, 'o', 0, ?2)",
                    (id, "x".repeat(size)),
                )?;
                Ok(())
            })
        };
        assert_eq!(write("a", 1_000_000).await, Err(StoreError::Full));
        assert_eq!(write("b", 10).await, Ok(()));
        let kept = store
            .read(|c| {
                Ok(c.query_row("SELECT group_concat(id) FROM conversations", [], |r| r.get::<_, String>(0))?)
            })
            .await;
        assert_eq!(kept, Ok("b".to_owned()));
    }

    #[tokio::test]
    async fn many_writers_and_readers_never_meet_a_lock() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let tasks = (0..200).map(|n| {
            let store = store.clone();
            async move {
                store
                    .write(move |c| {
                        c.execute(
                            "INSERT INTO conversations (id, owner, created_at, metadata) VALUES (?1, 'o', 0, '')",
                            [n.to_string()],
                        )?;
                        if n % 10 == 0 { Err(StoreError::Closed) } else { Ok(()) }
                    })
                    .await
                    .is_ok()
                    && store.check().await.is_ok()
            }
        });
        let done = futures::future::join_all(tasks).await.into_iter().filter(|ok| *ok).count();
        let kept = store
            .read(|c| Ok(c.query_row("SELECT count(*) FROM conversations", [], |r| r.get::<_, i64>(0))?))
            .await;
        assert_eq!(
            (done, kept),
            (180, Ok(180)),
            "what failed by itself left nothing, and took nothing with it"
        );
    }
}
