//! Notices edits of a folder.

use std::path::{Path, PathBuf};

use strata_kinds::manifest::fingerprint;

/// Looks at a folder now and then.
#[derive(Debug)]
pub(super) struct FolderWatch {
    folder: PathBuf,
    taken: u64,
    seen: u64,
}

impl FolderWatch {
    /// Begins with what is there now.
    pub(super) fn new(folder: &Path) -> Self {
        let now = fingerprint(folder);
        Self { folder: folder.to_owned(), taken: now, seen: now }
    }

    /// Whether there is something new that has stood still since the last look, so that a file is not
    /// read while it is being written.
    pub(super) fn has_settled_change(&mut self) -> bool {
        let now = fingerprint(&self.folder);
        let settled = now == self.seen && now != self.taken;
        self.seen = now;
        if settled {
            self.taken = now;
        }
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_when_it_stands_still() {
        let temp = tempfile::tempdir().unwrap();
        let mut watch = FolderWatch::new(temp.path());
        assert!(!watch.has_settled_change());
        std::fs::write(temp.path().join("a.yaml"), "1").unwrap();
        assert!(!watch.has_settled_change(), "not yet");
        assert!(watch.has_settled_change());
        assert!(!watch.has_settled_change(), "only once");
        std::fs::write(temp.path().join("notes.txt"), "1").unwrap();
        std::fs::write(temp.path().join("a.yaml"), "2").unwrap();
        std::fs::write(temp.path().join("a.yaml"), "1").unwrap();
        assert!(!watch.has_settled_change() && !watch.has_settled_change(), "nothing that matters");
        std::fs::remove_file(temp.path().join("a.yaml")).unwrap();
        assert!(!watch.has_settled_change() && watch.has_settled_change());
    }
}
