//! A file of which some parts are there, and what is known of them after a crash.
//!
//! Beside the file stands a header (of which bytes it is) and a map with one number a part: how many of
//! its bytes are written. The map is right after the process died. After the machine died only those
//! parts count whose bytes were forced to the disk before the map said so.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use nix::libc::O_NOFOLLOW;
use serde::{Deserialize, Serialize};

/// Set in a part's number when its bytes are on the disk.
const SYNCED: u64 = 1 << 63;

/// What the state of a file belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// Two files with the same identity have the same bytes; without one nothing outlives the process.
    pub(crate) identity: Option<String>,
    pub(crate) size: u64,
    pub(crate) part: u64,
    /// Which run of the machine wrote it.
    pub(crate) boot: Option<String>,
    /// Set when the file is whole, checked and on the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<String>,
}

/// Where a file and its state lie.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) file: PathBuf,
    pub(crate) header: PathBuf,
    pub(crate) map: PathBuf,
}

/// An open file with its state.
pub(crate) struct Partial {
    file: Arc<File>,
    map: File,
    places: Places,
    header: Header,
    written: Vec<AtomicU64>,
    /// All parts before this one are whole.
    whole: AtomicUsize,
}

impl Header {
    pub(crate) fn read(places: &Places) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(&places.header).ok()?).ok()
    }

    fn write(&self, places: &Places) -> io::Result<()> {
        let next = places.header.with_extension("new");
        // Not forced to the disk: one that the machine's death has cut is not believed.
        create(&next, true)?.write_all_at(serde_json::to_string(self)?.as_bytes(), 0)?;
        std::fs::rename(&next, &places.header)
    }

    /// The checksum of a file that an earlier run has finished.
    pub(crate) fn finished(&self, identity: Option<&str>, size: u64, places: &Places) -> Option<&str> {
        let is_it = identity.is_some() && self.identity.as_deref() == identity && self.size == size;
        let is_there = std::fs::metadata(&places.file).is_ok_and(|m| m.is_file() && m.len() == size);
        self.sha256.as_deref().filter(|_| is_it && is_there)
    }
}

/// A file for reading and writing, which is made when missing. Never through a symlink.
pub(crate) fn create(path: &Path, truncate: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(truncate)
        .custom_flags(O_NOFOLLOW)
        .open(path)
}

impl Partial {
    /// Opens what an earlier run left of the same file, or begins it.
    pub(crate) fn open(places: Places, wanted: Header) -> io::Result<Self> {
        for path in [&places.file, &places.header] {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
        }
        let parts = wanted.size.div_ceil(wanted.part).max(1) as usize;
        let old = Header::read(&places).filter(|old| {
            old.identity.is_some()
                && (&old.identity, old.size, old.part) == (&wanted.identity, wanted.size, wanted.part)
                && std::fs::metadata(&places.file).is_ok_and(|m| m.len() == wanted.size)
                && std::fs::metadata(&places.map).is_ok_and(|m| m.len() == 8 * parts as u64)
        });
        let Some(old) = old else { return Self::begin(places, wanted, parts) };
        let (file, map) = (create(&places.file, false)?, create(&places.map, false)?);
        let is_same_boot = wanted.boot.is_some() && old.boot == wanted.boot;
        let mut written = Vec::with_capacity(parts);
        for index in 0..parts {
            let mut number = [0; 8];
            map.read_exact_at(&mut number, 8 * index as u64)?;
            let number = u64::from_le_bytes(number);
            let length = length(&wanted, index);
            let bytes = (number & !SYNCED).min(length);
            let kept = match number & SYNCED {
                0 if is_same_boot => bytes,
                0 => 0,
                synced => bytes | synced,
            };
            map.write_all_at(&kept.to_le_bytes(), 8 * index as u64)?;
            written.push(AtomicU64::new(kept));
        }
        wanted.write(&places)?;
        Ok(Self { file: Arc::new(file), map, places, header: wanted, written, whole: AtomicUsize::new(0) })
    }

    fn begin(places: Places, header: Header, parts: usize) -> io::Result<Self> {
        // Without its header no state is believed, so it goes first and comes last.
        if let Err(error) = std::fs::remove_file(&places.header)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let (file, map) = (create(&places.file, true)?, create(&places.map, true)?);
        file.set_len(header.size)?;
        map.set_len(8 * parts as u64)?;
        header.write(&places)?;
        let written = (0..parts).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { file: Arc::new(file), map, places, header, written, whole: AtomicUsize::new(0) })
    }

    pub(crate) fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    pub(crate) fn size(&self) -> u64 {
        self.header.size
    }

    pub(crate) fn parts(&self) -> usize {
        self.written.len()
    }

    /// Offset of a part in the file, and its length.
    pub(crate) fn range(&self, part: usize) -> (u64, u64) {
        (self.header.part * part as u64, length(&self.header, part))
    }

    /// Bytes of a part that are there, from its beginning.
    pub(crate) fn done(&self, part: usize) -> u64 {
        self.written[part].load(Ordering::Acquire) & !SYNCED
    }

    /// Bytes that are there of the whole file.
    pub(crate) fn present(&self) -> u64 {
        (0..self.parts()).map(|part| self.done(part)).sum()
    }

    /// Bytes that are there without a gap from the file's beginning.
    pub(crate) fn contiguous(&self) -> u64 {
        let mut part = self.whole.load(Ordering::Acquire);
        while part < self.parts() && self.done(part) == self.range(part).1 {
            part += 1;
        }
        self.whole.fetch_max(part, Ordering::AcqRel);
        if part == self.parts() { self.size() } else { self.range(part).0 + self.done(part) }
    }

    /// Appends to a part, of which there is one writer. Blocks.
    pub(crate) fn append(&self, part: usize, chunks: &[Bytes]) -> io::Result<()> {
        let before = self.done(part);
        let mut at = self.range(part).0 + before;
        let mut bytes = 0;
        for chunk in chunks {
            self.file.write_all_at(chunk, at)?;
            at += chunk.len() as u64;
            bytes += chunk.len() as u64;
        }
        self.set(part, before + bytes)
    }

    fn set(&self, part: usize, number: u64) -> io::Result<()> {
        self.map.write_all_at(&number.to_le_bytes(), 8 * part as u64)?;
        self.written[part].store(number, Ordering::Release);
        Ok(())
    }

    /// Forces whole parts to the disk, and notes which. Blocks.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let fresh: Vec<usize> = (0..self.parts())
            .filter(|&part| self.written[part].load(Ordering::Acquire) == self.range(part).1)
            .collect();
        if fresh.is_empty() {
            return Ok(());
        }
        self.file.sync_data()?;
        fresh.into_iter().try_for_each(|part| self.set(part, self.range(part).1 | SYNCED))
    }

    /// Throws all bytes away.
    pub(crate) fn reset(&self) -> io::Result<()> {
        self.whole.store(0, Ordering::Release);
        (0..self.parts()).try_for_each(|part| self.set(part, 0))
    }

    /// Forces the whole file to the disk, and notes its checksum. Blocks.
    pub(crate) fn finish(&self, sha256: &str) -> io::Result<()> {
        self.file.sync_all()?;
        finish(&self.places, &Header { sha256: Some(sha256.to_owned()), ..self.header.clone() })
    }
}

/// Notes that a file is whole, checked and on the disk.
pub(crate) fn finish(places: &Places, header: &Header) -> io::Result<()> {
    if let Some(folder) = places.header.parent() {
        std::fs::create_dir_all(folder)?;
    }
    header.write(places)?;
    match std::fs::remove_file(&places.map) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn length(header: &Header, part: usize) -> u64 {
    header.part.min(header.size - (header.part * part as u64).min(header.size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(identity: &str, boot: &str) -> Header {
        Header {
            identity: Some(identity.to_owned()),
            size: 10,
            part: 4,
            boot: Some(boot.to_owned()),
            sha256: None,
        }
    }

    fn places(folder: &Path) -> Places {
        Places { file: folder.join("a/f"), header: folder.join("s/f.json"), map: folder.join("s/f.map") }
    }

    fn left_behind(folder: &Path) -> Partial {
        let partial = Partial::open(places(folder), header("x", "boot 1")).unwrap();
        assert_eq!((partial.parts(), partial.range(2), partial.present()), (3, (8, 2), 0));
        partial.append(0, &[Bytes::from_static(b"01"), Bytes::from_static(b"23")]).unwrap();
        partial.append(2, &[Bytes::from_static(b"8")]).unwrap();
        partial.sync().unwrap();
        partial.append(1, &[Bytes::from_static(b"4567")]).unwrap();
        assert_eq!((partial.present(), partial.contiguous()), (9, 9));
        partial
    }

    #[test]
    fn what_was_written_is_there_after_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        drop(left_behind(folder.path()));
        let again = Partial::open(places(folder.path()), header("x", "boot 1")).unwrap();
        assert_eq!([again.done(0), again.done(1), again.done(2)], [4, 4, 1]);
        again.append(2, &[Bytes::from_static(b"9")]).unwrap();
        assert_eq!(again.contiguous(), 10);
        assert_eq!(std::fs::read(folder.path().join("a/f")).unwrap(), b"0123456789");
        again.finish("sum").unwrap();
        let places = places(folder.path());
        let left = Header::read(&places).unwrap();
        assert_eq!(left.finished(Some("x"), 10, &places), Some("sum"));
        assert_eq!(left.finished(Some("y"), 10, &places), None);
        assert_eq!(left.finished(None, 10, &places), None);
    }

    #[test]
    fn after_the_machine_died_only_what_was_forced_to_disk_counts() {
        let folder = tempfile::tempdir().unwrap();
        drop(left_behind(folder.path()));
        let again = Partial::open(places(folder.path()), header("x", "boot 2")).unwrap();
        assert_eq!([again.done(0), again.done(1), again.done(2)], [4, 0, 0]);
        drop(again);
        let again = Partial::open(places(folder.path()), header("x", "boot 2")).unwrap();
        assert_eq!(again.present(), 4);
    }

    #[test]
    fn other_bytes_begin_anew() {
        let folder = tempfile::tempdir().unwrap();
        drop(left_behind(folder.path()));
        assert_eq!(Partial::open(places(folder.path()), header("y", "boot 1")).unwrap().present(), 0);
        drop(left_behind(folder.path()));
        let nameless = Header { identity: None, ..header("", "boot 1") };
        assert_eq!(Partial::open(places(folder.path()), nameless).unwrap().present(), 0);
        drop(left_behind(folder.path()));
        std::fs::write(folder.path().join("s/f.map"), [0xff; 24]).unwrap();
        let spoilt = Partial::open(places(folder.path()), header("x", "boot 1")).unwrap();
        assert!(spoilt.present() <= 10);
        spoilt.reset().unwrap();
        assert_eq!((spoilt.present(), spoilt.contiguous()), (0, 0));
    }

    #[test]
    fn never_through_a_symlink() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("a")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("a/f")).unwrap();
        assert!(Partial::open(places(folder.path()), header("x", "b")).is_err());
    }
}
