//! The one thread that writes. Entries that wait together are committed together, and an entry is
//! acknowledged when its commit has reached the operating system: it survives the process. The log is
//! synced to the disk at most [`strata_wire::defaults::USAGE_FLUSH`] later.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, Row};
use strata_wire::defaults::USAGE_FLUSH;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::rows::{AuditRow, OpenRow, UsageRow, count};
use super::{LedgerError, database};

/// Entries that may wait; more make their callers wait.
const QUEUE: usize = 4096;
/// Entries in one commit at most.
const BATCH: usize = 512;

/// One thing to write.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A call was admitted and is about to be forwarded.
    Begin(Box<OpenRow>, AuditRow),
    /// A call has ended.
    Finish(Box<UsageRow>),
    /// A call was decided without being forwarded.
    Audit(AuditRow),
    /// Nothing, but everything before it is on the disk when it is acknowledged.
    Sync,
}

type Acknowledge = oneshot::Sender<Result<(), String>>;

/// Sends entries to the writing thread. Cloning shares the thread, which ends with the last clone.
#[derive(Clone, Debug)]
pub struct Writer {
    queue: mpsc::Sender<(Entry, Option<Acknowledge>)>,
}

/// The writing thread, to be joined after the last [`Writer`] is gone.
#[derive(Debug)]
pub struct Thread(std::thread::JoinHandle<()>);

impl Thread {
    /// Waits until everything is written and synced.
    pub fn join(self) {
        if self.0.join().is_err() {
            tracing::error!("the ledger's writer died");
        }
    }
}

impl Writer {
    /// Opens the ledger for writing, closes the calls that a dead gateway left open at what was
    /// reserved for them, and starts the thread. Returns how many calls were closed.
    pub fn start(path: &Path) -> Result<(Self, Thread, usize), LedgerError> {
        let mut connection = database::open(path)?;
        let lock = lock(path)?;
        let closed = close_abandoned(&mut connection)?;
        let (queue, waiting) = mpsc::channel(QUEUE);
        let failed = |source| LedgerError::Open { path: path.to_owned(), source };
        let log = File::open(log_path(path)).map_err(failed)?;
        let timer = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
        let thread = std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || {
                write_all(&mut connection, waiting, &log, &timer);
                drop(lock);
            })
            .map_err(failed)?;
        Ok((Self { queue }, Thread(thread), closed))
    }

    /// Writes an entry; when this returns, it survives the death of the process.
    pub async fn write(&self, entry: Entry) -> Result<(), LedgerError> {
        let (acknowledge, done) = oneshot::channel();
        self.queue.send((entry, Some(acknowledge))).await.map_err(|_| LedgerError::Closed)?;
        done.await.map_err(|_| LedgerError::Closed)?.map_err(LedgerError::Write)
    }

    /// Writes an entry soon. `false` when the queue is full and the entry was dropped.
    pub fn offer(&self, entry: Entry) -> bool {
        self.queue.try_send((entry, None)).is_ok()
    }

    /// Whether entries are still taken.
    pub fn is_open(&self) -> bool {
        !self.queue.is_closed()
    }
}

fn log_path(path: &Path) -> PathBuf {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    PathBuf::from(log)
}

/// Two gateways on one ledger would each take the other's open calls for abandoned.
fn lock(path: &Path) -> Result<File, LedgerError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let failed = |source| LedgerError::Open { path: path.to_owned(), source };
    let file = File::options().create(true).append(true).open(PathBuf::from(name)).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(LedgerError::InUse { path: path.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn close_abandoned(connection: &mut Connection) -> Result<usize, LedgerError> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let abandoned: Vec<OpenRow> = transaction
        .prepare(
            "SELECT request_id, at, tenant, key_id, user_hash, model, endpoint, input, output \
             FROM open_requests",
        )?
        .query_map([], open_row)?
        .collect::<Result<_, _>>()?;
    for row in &abandoned {
        row.as_estimated().insert(&transaction)?;
    }
    transaction.commit()?;
    Ok(abandoned.len())
}

fn open_row(row: &Row<'_>) -> rusqlite::Result<OpenRow> {
    Ok(OpenRow {
        request_id: row.get(0)?,
        at: row.get(1)?,
        tenant: row.get(2)?,
        key_id: row.get(3)?,
        user_hash: row.get(4)?,
        model: row.get(5)?,
        endpoint: row.get(6)?,
        input: count(row, 7)?,
        output: count(row, 8)?,
    })
}

fn write_all(
    connection: &mut Connection,
    mut waiting: mpsc::Receiver<(Entry, Option<Acknowledge>)>,
    log: &File,
    timer: &Runtime,
) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut sync_at: Option<Instant> = None;
    loop {
        let next = match sync_at {
            None => Ok(waiting.blocking_recv()),
            Some(at) => timer.block_on(async { tokio::time::timeout_at(at, waiting.recv()).await }),
        };
        match next {
            Ok(Some(entry)) => batch.push(entry),
            Ok(None) => break,
            Err(_) => {
                sync(log);
                sync_at = None;
                continue;
            }
        }
        while batch.len() < BATCH
            && let Ok(entry) = waiting.try_recv()
        {
            batch.push(entry);
        }
        let result = commit(connection, &batch);
        if let Err(error) = &result {
            tracing::error!(%error, entries = batch.len(), "could not write the ledger");
        }
        if batch.iter().any(|(entry, _)| matches!(entry, Entry::Sync)) {
            sync(log);
        }
        for (_, acknowledge) in batch.drain(..) {
            if let Some(acknowledge) = acknowledge {
                // The caller may have gone; its entry is written all the same.
                let _ = acknowledge.send(result.as_ref().copied().map_err(ToString::to_string));
            }
        }
        // Half of what is promised: the sync itself takes time too. Under load the queue never runs
        // dry, so the time is looked at after every commit.
        let at = *sync_at.get_or_insert_with(|| soon(USAGE_FLUSH / 2));
        if soon(Duration::ZERO) >= at {
            sync(log);
            sync_at = None;
        }
    }
    if sync_at.is_some() {
        sync(log);
    }
}

fn soon(after: Duration) -> Instant {
    Instant::now() + after
}

fn sync(log: &File) {
    if let Err(error) = log.sync_data() {
        tracing::error!(%error, "could not sync the ledger's log to the disk");
    }
}

fn commit(connection: &mut Connection, batch: &[(Entry, Option<Acknowledge>)]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for (entry, _) in batch {
        match entry {
            Entry::Begin(open, audit) => {
                open.insert(&transaction)?;
                audit.insert(&transaction)?;
            }
            Entry::Finish(usage) => usage.insert(&transaction)?,
            Entry::Audit(audit) => audit.insert(&transaction)?,
            Entry::Sync => {}
        }
    }
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::super::rows::Decision;
    use super::super::{Ledger, rows};
    use super::*;

    fn open_call(id: &str) -> rows::OpenRow {
        rows::OpenRow {
            request_id: id.to_owned(),
            at: 5,
            tenant: "acme".into(),
            key_id: "k".into(),
            user_hash: None,
            model: "m".into(),
            endpoint: "completions".into(),
            input: 10,
            output: 20,
        }
    }

    fn audit(id: &str) -> AuditRow {
        AuditRow {
            at: 5,
            request_id: id.to_owned(),
            tenant: Some("acme".into()),
            key_id: Some("k".into()),
            decision: Decision::Allow,
            reason: "ok",
            policy: None,
        }
    }

    #[tokio::test]
    async fn litellm_34887_what_is_acknowledged_can_be_read_and_a_second_row_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("l.db");
        let (writer, thread, closed) = Writer::start(&path).unwrap();
        assert_eq!(closed, 0);
        let ledger = Ledger::open(&path).unwrap();
        writer.write(Entry::Begin(Box::new(open_call("r")), audit("r"))).await.unwrap();
        assert!(ledger.rows_after(0, 0).unwrap().is_empty());
        let mut used = open_call("r").as_estimated();
        used.completion_tokens = 3;
        for _ in 0..2 {
            writer.write(Entry::Finish(Box::new(used.clone()))).await.unwrap();
        }
        let rows = ledger.rows_after(0, 0).unwrap();
        assert_eq!(rows.iter().map(|r| r.1.completion_tokens).collect::<Vec<_>>(), [3]);
        drop(writer);
        thread.join();
        let (_writer, _thread, closed) = Writer::start(&path).unwrap();
        assert_eq!(closed, 0, "a finished call is not closed again");
    }

    #[tokio::test]
    async fn calls_that_nobody_finished_are_closed_at_what_was_reserved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("l.db");
        let (writer, thread, _) = Writer::start(&path).unwrap();
        writer.write(Entry::Begin(Box::new(open_call("r")), audit("r"))).await.unwrap();
        drop(writer);
        thread.join();
        let (_writer, _thread, closed) = Writer::start(&path).unwrap();
        assert_eq!(closed, 1);
        let rows = Ledger::open(&path).unwrap().rows_after(0, 0).unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].1, open_call("r").as_estimated());
    }

    #[tokio::test]
    async fn a_second_writer_is_told_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("l.db");
        let _first = Writer::start(&path).unwrap();
        assert!(matches!(Writer::start(&path), Err(LedgerError::InUse { .. })));
    }
}
