//! What a folder's manifests are, in one number.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use super::read::{MAX_FILE_BYTES, names};

/// A number that changes with any name or content of the folder's manifests, to see edits by. It holds
/// within one process only. Reads no more than [`load`](super::load) reads: neither files that are too
/// large nor what is no file, such as a pipe, which would hold its reader.
pub fn fingerprint(folder: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    folder.is_dir().hash(&mut hasher);
    for name in names(folder).unwrap_or_default() {
        let path = folder.join(&name);
        name.hash(&mut hasher);
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() && meta.len() <= MAX_FILE_BYTES => {
                std::fs::read(&path).ok().hash(&mut hasher);
            }
            Ok(meta) => (meta.is_file(), meta.len()).hash(&mut hasher),
            Err(error) => error.raw_os_error().hash(&mut hasher),
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_changes_with_what_load_would_see() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name);
        let mut seen = vec![fingerprint(&path("none")), fingerprint(temp.path())];
        std::fs::write(path("a.yaml"), "1").unwrap();
        seen.push(fingerprint(temp.path()));
        std::fs::write(path("a.yaml"), "2").unwrap();
        seen.push(fingerprint(temp.path()));
        std::fs::rename(path("a.yaml"), path("b.JSON")).unwrap();
        seen.push(fingerprint(temp.path()));
        std::os::unix::fs::symlink("nowhere", path("c.yml")).unwrap();
        seen.push(fingerprint(temp.path()));
        std::fs::write(path("nowhere"), "3").unwrap();
        seen.push(fingerprint(temp.path()));
        let all = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), all);

        let before = fingerprint(temp.path());
        for other in ["notes.txt", ".hidden.yaml"] {
            std::fs::write(path(other), "4").unwrap();
        }
        assert_eq!(fingerprint(temp.path()), before);
    }

    #[test]
    fn a_pipe_does_not_hold_it() {
        let temp = tempfile::tempdir().unwrap();
        let pipe = temp.path().join("pipe.yaml");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn({
            let folder = temp.path().to_owned();
            move || done.send((fingerprint(&folder), super::super::load(&folder).problems.len()))
        });
        let (_, problems) = is_done.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
        assert_eq!(problems, 0);
    }
}
