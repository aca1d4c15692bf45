//! Blocks on a disk, encrypted, one file each, so that they outlive the process.
//!
//! A file appears whole under its name or not at all, however the process ends; what a power failure
//! tears fails its checksum and is deleted. When a write fails, because the disk is full or broken, the
//! tier takes nothing for a while, says so, and reads on.

mod folder;
mod index;
mod seal;
mod traffic;

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use folder::Folder;
use index::{Index, Removed};
use seal::{ReadError, Sealer};
use traffic::Traffic;

use super::{KvDisk, TierEvent};
use crate::block::BlockHash;
use crate::step::Load;

/// Bytes on their way to the disk, and as many from it.
const IN_FLIGHT: usize = 128 * 1024 * 1024;
/// How long nothing is written after a write failed.
const PAUSE: Duration = Duration::from_secs(30);

/// Why there is no disk tier.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The key file is unusable.
    #[error("the key file {} of the KV cache's disk tier {problem}; make one with `head -c 32 /dev/urandom`", path.display())]
    Key {
        /// Where it should be.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The folder is unusable.
    #[error("the folder {} of the KV cache's disk tier {problem}", path.display())]
    Folder {
        /// Where it should be.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Not one block fits.
    #[error("the KV cache's disk tier may take {bytes} bytes and one block takes {block}; give it more")]
    TooSmall {
        /// Bytes that it may take.
        bytes: u64,
        /// Bytes of a block's file.
        block: u64,
    },
    /// The system gave no thread.
    #[error("cannot start the disk tier's threads: {0}")]
    Thread(io::Error),
}

/// A disk tier: the engine's thread asks and gives here, and never waits.
#[derive(Debug)]
pub struct Disk {
    shared: Arc<Shared>,
    writes: Option<Sender<Write>>,
    reads: Option<Sender<Load>>,
    /// Their other ends, until the threads are started.
    idle: Option<(Receiver<Write>, Receiver<Load>)>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Write {
    hash: BlockHash,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Shared {
    folder: Folder,
    sealer: Sealer,
    block_bytes: usize,
    index: Mutex<Index>,
    writing: Traffic,
    reading: Traffic,
    paused_until: Mutex<Option<Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disk {
    /// Opens the tier of a model whose blocks have this size, and finds what an earlier run has left.
    pub fn open(options: &KvDisk, fingerprint: [u8; 32], block_bytes: usize) -> Result<Self, DiskError> {
        let key = |problem: String| DiskError::Key { path: options.key_file.clone(), problem };
        let secret = std::fs::read(&options.key_file).map_err(|e| key(format!("cannot be read: {e}")))?;
        let short = || key(format!("holds {} bytes and must hold at least 32", secret.len()));
        let sealer = Sealer::new(&secret, fingerprint).ok_or_else(short)?;
        let file_bytes = block_bytes as u64 + seal::OVERHEAD;
        if options.bytes < file_bytes {
            return Err(DiskError::TooSmall { bytes: options.bytes, block: file_bytes });
        }
        let path = &options.folder;
        let folder = Folder::open(path, &fingerprint)
            .map_err(|problem| DiskError::Folder { path: path.clone(), problem })?;
        let mut index = Index::new(options.bytes);
        let found = folder
            .scan(file_bytes)
            .map_err(|e| DiskError::Folder { path: path.clone(), problem: format!("cannot be read: {e}") })?;
        for name in found {
            // The size may be another than it was: the oldest go first.
            for removed in index.make_room(file_bytes).unwrap_or_default() {
                folder.delete(&removed.name);
            }
            index.insert(name, file_bytes, None);
        }
        tracing::info!(folder = %path.display(), blocks = index.len(), "disk tier of the KV cache opened");
        let ((writes, written), (reads, read)) = (mpsc::channel(), mpsc::channel());
        let shared = Shared {
            folder,
            sealer,
            block_bytes,
            index: Mutex::new(index),
            writing: Traffic::new(IN_FLIGHT.max(block_bytes)),
            reading: Traffic::new(IN_FLIGHT.max(block_bytes)),
            paused_until: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            writes: Some(writes),
            reads: Some(reads),
            idle: Some((written, read)),
            threads: Vec::new(),
        })
    }

    /// Starts the threads. What they have to say goes to `tell`.
    pub fn start(&mut self, tell: impl Fn(TierEvent) + Clone + Send + 'static) -> Result<(), DiskError> {
        let Some((writes, reads)) = self.idle.take() else { return Ok(()) };
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        let (shared, told) = (self.shared.clone(), tell.clone());
        let writer = thread("kv-write").spawn(move || {
            shared.folder.clean();
            for write in writes {
                let size = write.bytes.len();
                shared.write(write, &told);
                shared.writing.release(size);
            }
        });
        self.threads.push(writer.map_err(DiskError::Thread)?);
        let shared = self.shared.clone();
        let reader = thread("kv-read").spawn(move || {
            for load in reads {
                if !shared.reading.acquire(shared.block_bytes) {
                    return;
                }
                let bytes = shared.read(&load.hash, &tell);
                tell(TierEvent::Loaded { load, bytes });
            }
        });
        self.threads.push(reader.map_err(DiskError::Thread)?);
        Ok(())
    }

    /// Whether a block is on the disk.
    pub fn has(&self, hash: &BlockHash) -> bool {
        let name = self.shared.sealer.name(hash);
        lock(&self.shared.index).has(&name, *hash)
    }

    /// Sends what `fill` writes to the disk, unless it is there, too much is on its way, or the disk has
    /// just failed.
    pub fn write(&self, hash: BlockHash, fill: impl FnOnce(&mut Vec<u8>)) {
        let size = self.shared.block_bytes;
        if self.has(&hash) || self.shared.is_paused() || !self.shared.writing.try_acquire(size) {
            return;
        }
        let mut bytes = Vec::with_capacity(size);
        fill(&mut bytes);
        debug_assert_eq!(bytes.len(), size);
        let sent = self.writes.as_ref().is_some_and(|writes| writes.send(Write { hash, bytes }).is_ok());
        if !sent {
            self.shared.writing.release(size);
        }
    }

    /// Asks for a block; [`TierEvent::Loaded`] follows, and after it [`Disk::taken`] must. `false` when
    /// nothing follows.
    pub fn load(&self, load: Load) -> bool {
        self.reads.as_ref().is_some_and(|reads| reads.send(load).is_ok())
    }

    /// Notes that the bytes of a load are no longer needed.
    pub fn taken(&self) {
        self.shared.reading.release(self.shared.block_bytes);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.shared.reading.close();
        drop((self.writes.take(), self.reads.take()));
        // What is on its way is written: it is little, and would be lost. And the folder is another's to
        // lock only when both are done.
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn is_paused(&self) -> bool {
        lock(&self.paused_until).is_some_and(|until| Instant::now() < until)
    }

    fn write(&self, mut write: Write, tell: &impl Fn(TierEvent)) {
        let name = self.sealer.name(&write.hash);
        let file_bytes = write.bytes.len() as u64 + seal::OVERHEAD;
        let mut index = lock(&self.index);
        if self.is_paused() || index.has(&name, write.hash) {
            return;
        }
        let Some(going) = index.make_room(file_bytes) else { return };
        drop(index);
        for removed in &going {
            self.remove(removed, tell);
        }
        let written = self.folder.write(&name, |file| self.sealer.write(&write.hash, &mut write.bytes, file));
        match written {
            Ok(()) => {
                lock(&self.index).insert(name, file_bytes, Some(write.hash));
                tell(TierEvent::Stored(write.hash));
            }
            Err(error) => {
                *lock(&self.paused_until) = Some(Instant::now() + PAUSE);
                let (folder, seconds) = (self.folder.path().display(), PAUSE.as_secs());
                let full = error.kind() == io::ErrorKind::StorageFull;
                tracing::warn!(%folder, %error, full, seconds, "the disk tier of the KV cache pauses");
            }
        }
    }

    fn remove(&self, removed: &Removed, tell: &impl Fn(TierEvent)) {
        self.folder.delete(&removed.name);
        if let Some(hash) = removed.hash {
            tell(TierEvent::Removed(hash));
        }
    }

    fn read(&self, hash: &BlockHash, tell: &impl Fn(TierEvent)) -> Option<Vec<u8>> {
        let name = self.sealer.name(hash);
        if !lock(&self.index).hold(&name) {
            return None;
        }
        let bytes = self.folder.read(&name, |file| self.sealer.read(hash, self.block_bytes, file));
        lock(&self.index).release(&name);
        match bytes {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                if !matches!(&error, ReadError::Io(e) if e.kind() == io::ErrorKind::NotFound) {
                    tracing::warn!(file = name.hex(), %error, "a block of the disk tier is lost");
                }
                let removed = lock(&self.index).remove(&name);
                if let Some(removed) = removed {
                    self.remove(&Removed { hash: Some(*hash), ..removed }, tell);
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
