//! Threads that own a connection and take jobs from a channel.

use std::io;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::StoreError;

/// Jobs that may wait for one thread.
const QUEUE: usize = 1024;
/// Writes committed together at most.
const BATCH: usize = 256;

type ReadJob = Box<dyn FnOnce(&Connection) + Send>;

/// A thread that reads.
#[derive(Clone)]
pub(super) struct Reader(mpsc::Sender<ReadJob>);

impl Reader {
    pub(super) fn start(connection: Connection) -> io::Result<Self> {
        let (send, mut receive) = mpsc::channel::<ReadJob>(QUEUE);
        std::thread::Builder::new().name("store-read".to_owned()).spawn(move || {
            while let Some(job) = receive.blocking_recv() {
                job(&connection);
            }
        })?;
        Ok(Self(send))
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (send, receive) = oneshot::channel();
        let job: ReadJob = Box::new(move |connection| {
            let _ = send.send(job(connection));
        });
        self.0.send(job).await.map_err(|_| StoreError::Closed)?;
        receive.await.map_err(|_| StoreError::Closed)?
    }
}

/// A job of the writer: run in the batch's transaction, and told afterwards how that ended.
trait WriteJob: Send {
    /// Returns whether the batch can go on.
    fn run(&mut self, connection: &Connection) -> Result<(), StoreError>;
    fn finish(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Job<F, T> {
    work: Option<F>,
    result: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T: Send, F: FnOnce(&Connection) -> Result<T, StoreError> + Send> WriteJob for Job<F, T> {
    fn run(&mut self, connection: &Connection) -> Result<(), StoreError> {
        let Some(work) = self.work.take() else {
            return Ok(());
        };
        connection.execute_batch("SAVEPOINT job")?;
        let result = work(connection);
        // A full disk may undo the whole transaction by itself, and the other jobs with it.
        if connection.is_autocommit() {
            return Err(result.err().unwrap_or(StoreError::Full));
        }
        let after = if result.is_ok() { "RELEASE job" } else { "ROLLBACK TO job; RELEASE job" };
        connection.execute_batch(after)?;
        self.result = Some(result);
        Ok(())
    }

    fn finish(self: Box<Self>, committed: Result<(), StoreError>) {
        let Self { result, reply, .. } = *self;
        let _ = reply.send(committed.and_then(|()| result.unwrap_or(Err(StoreError::Closed))));
    }
}

/// The thread that writes.
#[derive(Clone)]
pub(super) struct Writer(mpsc::Sender<Box<dyn WriteJob>>);

impl Writer {
    pub(super) fn start(connection: Connection) -> io::Result<Self> {
        let (send, mut receive) = mpsc::channel::<Box<dyn WriteJob>>(QUEUE);
        std::thread::Builder::new().name("store-write".to_owned()).spawn(move || {
            while let Some(first) = receive.blocking_recv() {
                let mut batch = vec![first];
                while batch.len() < BATCH
                    && let Ok(next) = receive.try_recv()
                {
                    batch.push(next);
                }
                let committed = commit(&connection, &mut batch);
                if let Err(error) = &committed {
                    tracing::error!(%error, writes = batch.len(), "could not write");
                }
                for job in batch {
                    job.finish(committed.clone());
                }
            }
        })?;
        Ok(Self(send))
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, receive) = oneshot::channel();
        let job = Box::new(Job { work: Some(work), result: None, reply });
        self.0.send(job).await.map_err(|_| StoreError::Closed)?;
        receive.await.map_err(|_| StoreError::Closed)?
    }
}

fn commit(connection: &Connection, batch: &mut [Box<dyn WriteJob>]) -> Result<(), StoreError> {
    let outcome = (|| {
        connection.execute_batch("BEGIN IMMEDIATE")?;
        for job in batch.iter_mut() {
            job.run(connection)?;
        }
        Ok(connection.execute_batch("COMMIT")?)
    })();
    if !connection.is_autocommit()
        && let Err(error) = connection.execute_batch("ROLLBACK")
    {
        tracing::error!(%error, "could not roll back");
    }
    outcome
}
