//! One file: its parts at once over several connections, checked, and again where that helps.

mod part;
mod stream;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use futures::{StreamExt, TryStreamExt};
use http::Uri;
use tokio::sync::{Semaphore, watch};

use crate::checksum::{self, Checksum, Follower, Sums};
use crate::client::{Ask, Http, host_of};
use crate::error::{FetchError, at};
use crate::partial::{Header, Partial, Places};
use crate::progress::Progress;
use crate::source::RemoteFile;

/// What all files of a fetch share.
pub(crate) struct Context {
    pub(crate) http: Http,
    pub(crate) progress: Arc<Progress>,
    /// One permit a connection.
    pub(crate) slots: Semaphore,
    pub(crate) connections: usize,
    /// Bytes of a part.
    pub(crate) part: u64,
    /// Which run of the machine this is; `None` when that cannot be known.
    pub(crate) boot: Option<String>,
    /// The destination, for messages.
    pub(crate) root: PathBuf,
}

/// A file that is whole and checked.
#[derive(Debug)]
pub(crate) struct Complete {
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

/// Why a file is not complete.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The source has other bytes than it had when it was asked what there is.
    Changed,
    Failed(FetchError),
}

impl From<FetchError> for Halt {
    fn from(error: FetchError) -> Self {
        Self::Failed(error)
    }
}

/// A file while it is fetched.
struct Transfer<'a> {
    context: &'a Context,
    remote: &'a RemoteFile,
    places: Places,
    /// Where the server sent us last, so that not every part asks it again.
    target: Mutex<Option<Uri>>,
}

/// Why the parts cannot be had one by one.
enum PartsHalt {
    /// The server sends only whole files.
    NoRanges,
    Halt(Halt),
}

impl From<Halt> for PartsHalt {
    fn from(halt: Halt) -> Self {
        Self::Halt(halt)
    }
}

/// The state of a file as it is to be.
pub(crate) fn header(context: &Context, remote: &RemoteFile, size: u64) -> Header {
    Header {
        identity: remote.identity.clone(),
        size,
        part: context.part,
        boot: context.boot.clone(),
        sha256: None,
    }
}

/// The checksum and size of a file that an earlier run has finished.
pub(crate) fn finished(remote: &RemoteFile, places: &Places) -> Option<Complete> {
    let size = remote.size?;
    let header = Header::read(places)?;
    let sha256 = header.finished(remote.identity.as_deref(), size, places)?.to_owned();
    Some(Complete { size, sha256 })
}

/// Fetches a file to its place. On return it is on the disk.
pub(crate) async fn fetch(context: &Context, remote: &RemoteFile, places: Places) -> Result<Complete, Halt> {
    if let Some(complete) = finished(remote, &places) {
        return Ok(complete);
    }
    let transfer = Transfer { context, remote, places, target: Mutex::new(None) };
    // What the disk has kept may be damaged, so a file that is not right gets a second, fresh chance.
    let mut has_failed = false;
    let mut ranges = remote.size.is_some();
    loop {
        let (size, sums, partial) = if let Some(size) = remote.size.filter(|_| ranges) {
            match transfer.ranged(size).await {
                Ok((partial, sums)) => (size, sums, Some(partial)),
                Err(PartsHalt::Halt(halt)) => return Err(halt),
                Err(PartsHalt::NoRanges) => {
                    let host = host_of(&remote.ask.url);
                    tracing::info!(file = %remote.path, %host, "the server sends no ranges: one connection, and no resuming");
                    ranges = false;
                    continue;
                }
            }
        } else {
            let (size, sums) = transfer.streamed().await?;
            (size, sums, None)
        };
        let Some((wanted, found)) = mismatch(remote.checksum.as_ref(), &sums) else {
            let header = header(context, remote, size);
            let (path, sha256) = (transfer.places.clone(), sums.sha256.clone());
            blocking(move || match partial {
                Some(partial) => partial.finish(&sha256),
                None => crate::partial::finish(&path, &Header { sha256: Some(sha256), ..header }),
            })
            .await
            .map_err(at("write to disk", &transfer.places.file))?;
            return Ok(Complete { size, sha256: sums.sha256 });
        };
        context.progress.take_back(size);
        if let Some(partial) = &partial {
            partial.reset().map_err(at("write", &transfer.places.map))?;
        }
        if has_failed {
            return Err(Halt::Failed(FetchError::Mismatch {
                file: remote.path.clone(),
                host: host_of(&remote.ask.url),
                algorithm: wanted.algorithm(),
                wanted: wanted.hex().to_owned(),
                found,
            }));
        }
        has_failed = true;
        let message = format!("{} of {} is not right: fetching it again", wanted.algorithm(), remote.path);
        context.progress.note(&message);
        tracing::warn!(file = %remote.path, wanted = wanted.hex(), %found, "the checksum is not right: fetching the file again");
    }
}

fn mismatch<'a>(wanted: Option<&'a Checksum>, sums: &Sums) -> Option<(&'a Checksum, String)> {
    let wanted = wanted?;
    let found = sums.asked.as_deref().unwrap_or_default();
    (found != wanted.hex()).then(|| (wanted, found.to_owned()))
}

impl Transfer<'_> {
    /// All parts that are missing, and the checksums of the whole.
    async fn ranged(&self, size: u64) -> Result<(Arc<Partial>, Sums), PartsHalt> {
        let (places, header) = (self.places.clone(), header(self.context, self.remote, size));
        let partial = blocking(move || Partial::open(places, header)).await;
        let partial = Arc::new(partial.map_err(at("open", &self.places.file)).map_err(Halt::Failed)?);
        let follower = Follower::start(partial.file(), size, self.remote.checksum.clone())
            .map_err(at("read", &self.places.file))
            .map_err(Halt::Failed)?;
        follower.reached(partial.contiguous());

        let (accepted, gate) = watch::channel(false);
        let missing: Vec<usize> =
            (0..partial.parts()).filter(|&part| partial.done(part) < partial.range(part).1).collect();
        let first = missing.first().copied();
        let parts = futures::stream::iter(missing)
            .map(|part| {
                let (partial, follower, accepted, mut gate) = (&partial, &follower, &accepted, gate.clone());
                async move {
                    if Some(part) != first {
                        // Until the first answer tells whether the server sends ranges.
                        let _ = gate.wait_for(|is_open| *is_open).await;
                    }
                    self.part(part, partial, follower, accepted).await
                }
            })
            .buffer_unordered(self.context.connections)
            .try_collect::<()>();
        let syncing = self.sync_often(&partial);
        tokio::select! {
            done = parts => done?,
            error = syncing => return Err(Halt::Failed(error).into()),
        }
        let sums = blocking(move || follower.finish()).await;
        Ok((partial, sums.map_err(at("read", &self.places.file)).map_err(Halt::Failed)?))
    }

    /// Forces what has come to the disk, so that little is lost when the machine dies. Ends on an error.
    async fn sync_often(&self, partial: &Arc<Partial>) -> FetchError {
        loop {
            tokio::time::sleep(std::time::Duration::from_secs(15)).await;
            let partial = partial.clone();
            if let Err(source) = blocking(move || partial.sync()).await {
                return self.disk("write to disk", source);
            }
        }
    }

    /// What a failed write means.
    fn disk(&self, doing: &'static str, source: std::io::Error) -> FetchError {
        let report = self.context.progress.report();
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => FetchError::NoSpace {
                dir: self.context.root.clone(),
                missing: report.bytes_total.unwrap_or(report.bytes_done).saturating_sub(report.bytes_done),
                free: 0,
            },
            _ => FetchError::Io { doing, path: self.places.file.clone(), source },
        }
    }

    /// The request for this file, from where the server sent us last.
    fn ask(&self) -> Ask {
        let mut ask = self.remote.ask.clone();
        ask.start.clone_from(&self.target.lock().expect("no holder panics"));
        ask
    }

    fn sent_to(&self, target: Option<Uri>) {
        *self.target.lock().expect("no holder panics") = target;
    }
}

/// Runs what blocks off the threads that serve connections.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)))
}

/// The checksums of a file on the disk.
pub(crate) async fn sums(path: PathBuf, asked: Option<Checksum>) -> std::io::Result<Sums> {
    blocking(move || checksum::of_file(Arc::new(std::fs::File::open(path)?), asked)).await
}
