//! The ledger: what every inference call used (`usage`), what was decided about it (`audit`), which
//! calls are in flight (`open_requests`), and the run-time keys, in one SQLite database.
//!
//! `usage` and `audit` are append-only; no column holds text of a request or a response.

pub mod database;
pub mod report;
pub mod rows;
pub mod writer;

use std::path::PathBuf;

pub use report::{Ledger, UsageSum};
pub use rows::{AuditRow, Decision, OpenRow, UsageRow};
pub use writer::{Entry, Writer};

/// Why the ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The database said no.
    #[error("the ledger's database failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// Its file cannot be made or opened.
    #[error("cannot open the ledger {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another gateway writes to it.
    #[error("another gateway already uses the ledger {}; stop it, or choose another state folder", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It was written by a newer version.
    #[error(
        "the ledger {} has schema {found}, and this version knows {known} at most; use the newer version",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The schema found.
        found: i64,
        /// The schema known.
        known: i64,
    },
    /// A batch of entries could not be written.
    #[error("the ledger could not be written: {0}")]
    Write(String),
    /// The writer has stopped.
    #[error("the ledger is closed")]
    Closed,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
}
