//! The folder that models are fetched to.
//!
//! `DIR/<key>/` is a complete model and appears at once, by a rename. What is on its way lies in
//! `DIR/.fetch/<key>/`, with a lock that its process holds as long as it lives.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strata_wire::download::DownloadProgress;

use crate::error::{FetchError, at};
use crate::partial::{Header, Places, create};

/// Lies in a complete model's folder and says what it is.
const MARKER: &str = ".strata-model.json";

/// What a complete model consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Where it came from, without the query of a URL.
    pub(crate) uri: String,
    /// The commit or digest that the revision stood for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revision: Option<String>,
    pub(crate) files: Vec<Entry>,
}

/// One file of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) sha256: String,
    /// By what the source knows it, where that says which bytes it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) identity: Option<String>,
}

/// What stands at the final path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    Complete(Manifest),
    /// Files were removed or cut after it was complete; the marker says which there should be.
    Damaged(Option<Manifest>),
}

/// One model's place in the folder.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    root: PathBuf,
    model: PathBuf,
    work: PathBuf,
}

/// Held while a process fetches; the system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "holds the lock until it is dropped")] File);

impl Destination {
    pub(crate) fn new(root: &Path, key: &str) -> Self {
        Self { root: root.to_owned(), model: root.join(key), work: root.join(".fetch").join(key) }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of the complete model.
    pub(crate) fn model(&self) -> &Path {
        &self.model
    }

    fn files(&self) -> PathBuf {
        self.work.join("files")
    }

    /// Where a file of the model lies until all are there.
    pub(crate) fn file(&self, path: &str) -> Places {
        self.places(self.files().join(path), path)
    }

    /// Where an archive lies until it is unpacked.
    pub(crate) fn archive(&self, name: &str) -> Places {
        let path = format!("archives/{name}");
        self.places(self.work.join(&path), &path)
    }

    /// The folder that archives are unpacked to.
    pub(crate) fn unpacked(&self) -> PathBuf {
        self.files()
    }

    fn places(&self, file: PathBuf, path: &str) -> Places {
        use sha2::{Digest, Sha256};
        let name = crate::checksum::hex(&Sha256::digest(path.as_bytes())[..16]);
        let state = self.work.join("state");
        Places { file, header: state.join(format!("{name}.json")), map: state.join(format!("{name}.map")) }
    }

    /// Looks at the final path. Reads no model file.
    pub(crate) fn found(&self) -> Result<Found, FetchError> {
        let marker = self.model.join(MARKER);
        let text = match std::fs::read(&marker) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let is_there = self.model.symlink_metadata().is_ok();
                return Ok(if is_there { Found::Damaged(None) } else { Found::Nothing });
            }
            Err(error) => return Err(at("read", &marker)(error)),
        };
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&text) else { return Ok(Found::Damaged(None)) };
        let is_whole = manifest.files.iter().all(|file| {
            std::fs::symlink_metadata(self.model.join(&file.path))
                .is_ok_and(|m| m.is_file() && m.len() == file.size)
        });
        Ok(if is_whole { Found::Complete(manifest) } else { Found::Damaged(Some(manifest)) })
    }

    /// The lock, when no other process holds it.
    pub(crate) fn try_lock(&self) -> Result<Option<Lock>, FetchError> {
        std::fs::create_dir_all(&self.work).map_err(at("make the folder", &self.work))?;
        let path = self.work.join("lock");
        let file = create(&path, false).map_err(at("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(FetchError::Io {
                doing: "lock (the volume's file system must support locks)",
                path,
                source,
            }),
        }
    }

    /// How far the process is that holds the lock.
    pub(crate) fn progress(&self) -> Option<DownloadProgress> {
        serde_json::from_slice(&std::fs::read(self.work.join("progress.json")).ok()?).ok()
    }

    /// Tells those who wait. Needs the lock. That it cannot be told stops nothing.
    pub(crate) fn publish(&self, progress: &DownloadProgress) {
        let (path, next) = (self.work.join("progress.json"), self.work.join("progress.new"));
        let told = serde_json::to_vec(progress)
            .map_err(io::Error::from)
            .and_then(|text| std::fs::write(&next, text))
            .and_then(|()| std::fs::rename(&next, &path));
        if let Err(error) = told {
            tracing::debug!(%error, "cannot write the progress for those who wait");
        }
    }

    /// Bytes that fit into the folder.
    pub(crate) fn free(&self) -> Result<u64, FetchError> {
        let stat = nix::sys::statvfs::statvfs(&self.root)
            .map_err(|e| at("ask for the free space of", &self.root)(e.into()))?;
        // Their width differs between systems.
        #[allow(clippy::useless_conversion)]
        Ok(u64::from(stat.blocks_available()).saturating_mul(stat.fragment_size().into()))
    }

    /// Takes a model that is not right back to work: files of `good` are kept as fetched, others are
    /// fetched again. Needs the lock.
    pub(crate) fn reopen(&self, good: &[Entry]) -> Result<(), FetchError> {
        let files = self.files();
        if files.symlink_metadata().is_ok() {
            std::fs::remove_dir_all(&files).map_err(at("remove", &files))?;
        }
        std::fs::rename(&self.model, &files).map_err(at("move away", &self.model))?;
        let marker = files.join(MARKER);
        if let Err(error) = std::fs::remove_file(&marker)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(at("remove", &marker)(error));
        }
        for entry in good {
            let places = self.file(&entry.path);
            let header = Header {
                identity: entry.identity.clone(),
                size: entry.size,
                part: 1,
                boot: None,
                sha256: Some(entry.sha256.clone()),
            };
            crate::partial::finish(&places, &header).map_err(at("write", &places.header))?;
        }
        Ok(())
    }

    /// Moves the content of the only folder that the files lie in, if they all do, to the top, again and
    /// again. Needs the lock.
    pub(crate) fn lift(&self, entries: &mut [Entry]) -> Result<(), FetchError> {
        while let Some(folder) = common_folder(entries) {
            let (files, lifted) = (self.files(), self.work.join("lifted"));
            if lifted.symlink_metadata().is_ok() {
                std::fs::remove_dir_all(&lifted).map_err(at("remove", &lifted))?;
            }
            let inner = files.join(&folder);
            std::fs::rename(&inner, &lifted).map_err(at("move", &inner))?;
            std::fs::remove_dir_all(&files).map_err(at("remove", &files))?;
            std::fs::rename(&lifted, &files).map_err(at("move", &lifted))?;
            for entry in entries.iter_mut() {
                entry.path.drain(..=folder.len());
            }
        }
        Ok(())
    }

    /// Makes the fetched files the model, at once. Needs the lock.
    pub(crate) fn complete(&self, manifest: &Manifest) -> Result<(), FetchError> {
        let files = self.files();
        self.remove_others(manifest)?;
        let marker = files.join(MARKER);
        let text = serde_json::to_vec_pretty(manifest).expect("a manifest is JSON");
        let written = create(&marker, true).and_then(|file| {
            std::os::unix::fs::FileExt::write_all_at(&file, &text, 0)?;
            file.sync_all()
        });
        written.map_err(at("write", &marker))?;
        sync_folders(&files).map_err(at("write to disk", &files))?;
        std::fs::rename(&files, &self.model).map_err(at("make", &self.model))?;
        File::open(&self.root).and_then(|root| root.sync_all()).map_err(at("write to disk", &self.root))?;
        for name in ["state", "archives"] {
            let path = self.work.join(name);
            if let Err(error) = std::fs::remove_dir_all(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %path.display(), "cannot remove what is no longer needed");
            }
        }
        Ok(())
    }

    /// Removes files of an earlier attempt that the model no longer has.
    fn remove_others(&self, manifest: &Manifest) -> Result<(), FetchError> {
        let files = self.files();
        let mut folders = vec![files.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).map_err(at("read", &folder))? {
                let path = entry.map_err(at("read", &folder))?.path();
                let name = path.strip_prefix(&files).unwrap_or(&path);
                if path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
                    folders.push(path);
                } else if !manifest.files.iter().any(|f| Path::new(&f.path) == name) {
                    std::fs::remove_file(&path).map_err(at("remove", &path))?;
                }
            }
        }
        Ok(())
    }
}

/// The folder at the top that all files lie in.
fn common_folder(entries: &[Entry]) -> Option<String> {
    let (folder, _) = entries.first()?.path.split_once('/')?;
    let is_in = |entry: &Entry| entry.path.split_once('/').is_some_and(|(first, _)| first == folder);
    entries.iter().all(is_in).then(|| folder.to_owned())
}

fn sync_folders(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, bytes: &[u8]) -> Entry {
        let identity = Some("etag".to_owned());
        Entry { path: path.to_owned(), size: bytes.len() as u64, sha256: "s".to_owned(), identity }
    }

    fn put(destination: &Destination, path: &str, bytes: &[u8]) {
        let file = destination.file(path).file;
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }

    #[test]
    fn a_model_appears_at_once_and_damage_is_seen() {
        let root = tempfile::tempdir().unwrap();
        let destination = Destination::new(root.path(), "key");
        let _lock = destination.try_lock().unwrap().unwrap();
        assert_eq!(destination.found().unwrap(), Found::Nothing);
        put(&destination, "a/b", b"12");
        put(&destination, "c", b"3");
        put(&destination, "left-over/d", b"4");
        let manifest = Manifest {
            uri: "hf://o/n".to_owned(),
            revision: None,
            files: vec![entry("a/b", b"12"), entry("c", b"3")],
        };
        destination.complete(&manifest).unwrap();
        assert_eq!(destination.found().unwrap(), Found::Complete(manifest.clone()));
        assert!(!root.path().join("key/left-over/d").exists());

        std::fs::write(root.path().join("key/c"), b"").unwrap();
        assert_eq!(destination.found().unwrap(), Found::Damaged(Some(manifest.clone())));
        destination.reopen(&manifest.files[..1]).unwrap();
        assert_eq!(destination.found().unwrap(), Found::Nothing);
        let places = destination.file("a/b");
        assert_eq!(Header::read(&places).unwrap().finished(Some("etag"), 2, &places), Some("s"));
    }

    #[test]
    fn a_lone_folder_is_lifted() {
        let root = tempfile::tempdir().unwrap();
        let destination = Destination::new(root.path(), "key");
        let _lock = destination.try_lock().unwrap().unwrap();
        put(&destination, "a/b/x", b"12");
        put(&destination, "a/b/b/y", b"3");
        let mut files = vec![entry("a/b/x", b"12"), entry("a/b/b/y", b"3")];
        destination.lift(&mut files).unwrap();
        assert_eq!([files[0].path.as_str(), files[1].path.as_str()], ["x", "b/y"]);
        destination.complete(&Manifest { uri: "oci://r/n:t".to_owned(), revision: None, files }).unwrap();
        assert_eq!(std::fs::read(root.path().join("key/b/y")).unwrap(), b"3");
    }

    #[test]
    fn one_holder_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let destination = Destination::new(root.path(), "key");
        let lock = destination.try_lock().unwrap();
        assert!(lock.is_some());
        assert!(destination.try_lock().unwrap().is_none());
        assert!(Destination::new(root.path(), "other").try_lock().unwrap().is_some());
        drop(lock);
        assert!(destination.try_lock().unwrap().is_some());
    }
}
