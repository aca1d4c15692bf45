//! The folder of a disk tier: `strata-kv-<model>/<2 digits>/<64 digits>`, locked by one engine at a time.

use std::fs::{File, TryLockError};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::seal::FileName;

const OURS: &str = "strata-kv-";
const LOCK: &str = "strata-kv.lock";
const UNFINISHED: &str = "tmp";

#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    /// Blocks of the model that is served.
    own: PathBuf,
    /// Held as long as the process lives.
    _lock: File,
}

impl Folder {
    /// Makes the folder if need be and locks it; an error says what is wrong with it.
    pub(super) fn open(root: &Path, fingerprint: &[u8; 32]) -> Result<Self, String> {
        let model = FileName(*fingerprint).hex();
        let own = root.join(format!("{OURS}{}", &model[..32]));
        std::fs::create_dir_all(&own).map_err(|e| format!("cannot be made: {e}"))?;
        let lock = File::options().create(true).truncate(false).write(true).open(root.join(LOCK));
        let lock = lock.map_err(|e| format!("cannot be written to: {e}"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => "is used by another engine; give each its own".to_owned(),
            TryLockError::Error(e) => format!("cannot be locked: {e}"),
        })?;
        Ok(Self { root: root.to_owned(), own, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.root
    }

    fn file(&self, name: &FileName) -> PathBuf {
        let hex = name.hex();
        self.own.join(&hex[..2]).join(hex)
    }

    /// The blocks that are there, the least recently used first. What is unfinished, or has another size
    /// than a block, is deleted.
    pub(super) fn scan(&self, file_bytes: u64) -> io::Result<Vec<FileName>> {
        let mut found: Vec<(SystemTime, FileName)> = Vec::new();
        for shelf in std::fs::read_dir(&self.own)? {
            let shelf = shelf?.path();
            if !shelf.is_dir() {
                continue;
            }
            for entry in std::fs::read_dir(&shelf)? {
                let entry = entry?;
                let name = entry.file_name().to_str().and_then(FileName::parse);
                let meta = entry.metadata()?;
                match name {
                    Some(name) if meta.is_file() && meta.len() == file_bytes => {
                        found.push((meta.modified()?, name));
                    }
                    _ if meta.is_file() => drop(std::fs::remove_file(entry.path())),
                    _ => {}
                }
            }
        }
        found.sort_by_key(|(used, _)| *used);
        Ok(found.into_iter().map(|(_, name)| name).collect())
    }

    /// Deletes the blocks of other models and of other versions. Nothing that is not a disk tier's own.
    pub(super) fn clean(&self) {
        let Ok(models) = std::fs::read_dir(&self.root) else { return };
        for model in models.flatten().map(|entry| entry.path()) {
            let name = model.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with(OURS) && model != self.own && model.is_dir() {
                match std::fs::remove_dir_all(&model) {
                    Ok(()) => {
                        tracing::info!(folder = %model.display(), "another model's blocks were deleted");
                    }
                    Err(error) => {
                        tracing::warn!(folder = %model.display(), %error, "another model's blocks remain");
                    }
                }
            }
        }
    }

    /// Makes a file with what `fill` writes, whole or not at all.
    pub(super) fn write(
        &self,
        name: &FileName,
        fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> io::Result<()> {
        let path = self.file(name);
        let unfinished = path.with_extension(UNFINISHED);
        if let Some(shelf) = path.parent() {
            std::fs::create_dir_all(shelf)?;
        }
        let write = || {
            let mut file = BufWriter::new(File::create(&unfinished)?);
            fill(&mut file)?;
            file.flush()?;
            std::fs::rename(&unfinished, &path)
        };
        write().inspect_err(|_| drop(std::fs::remove_file(&unfinished)))
    }

    /// Reads a file, which is thereby the most recently used for the next run, too.
    pub(super) fn read<T, E: From<io::Error>>(
        &self,
        name: &FileName,
        take: impl FnOnce(&mut File) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut file = File::open(self.file(name))?;
        let out = take(&mut file)?;
        // A disk that is read-only by now keeps its order.
        let _ = file.set_modified(SystemTime::now());
        Ok(out)
    }

    pub(super) fn delete(&self, name: &FileName) {
        if let Err(error) = std::fs::remove_file(self.file(name))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(file = name.hex(), %error, "a block of the disk tier cannot be deleted");
        }
    }
}
