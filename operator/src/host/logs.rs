//! What processes write, kept within bounds.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Largest log file; one older of that size is kept beside it as `.1`.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// How much of the end is searched for the last words.
const TAIL_BYTES: u64 = 8 * 1024;

/// The log of one process.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    begin: u64,
}

impl Log {
    /// Opens the log for a new process, twice: for its two outputs.
    pub(super) fn open(path: PathBuf) -> io::Result<(Self, File, File)> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        trim(&path)?;
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let begin = file.metadata()?.len();
        let other = file.try_clone()?;
        Ok((Self { path, begin }, file, other))
    }

    /// Moves what was written aside when it is too much. The process goes on writing at the end of the
    /// emptied file.
    pub(super) fn trim(&mut self) {
        match trim(&self.path) {
            Ok(true) => self.begin = 0,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, log = %self.path.display(), "cannot trim the log"),
        }
    }

    /// The last line that says why the process ended: an error or a panic, else the last line, unless that
    /// is an ordinary message.
    pub(super) fn last_words(&self) -> Option<String> {
        let mut file = File::open(&self.path).ok()?;
        let length = file.metadata().ok()?.len();
        let from = self.begin.max(length.saturating_sub(TAIL_BYTES));
        file.seek(SeekFrom::Start(from)).ok()?;
        let mut tail = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut tail).ok()?;
        last_words(&String::from_utf8_lossy(&tail))
    }
}

fn last_words(text: &str) -> Option<String> {
    let lines = || text.lines().map(str::trim).filter(|l| !l.is_empty());
    let says_why = |l: &str| l.to_lowercase().starts_with("error") || l.contains("panicked at");
    let ordinary = |l: &str| [" INFO ", " DEBUG ", " TRACE "].iter().any(|level| l.contains(level));
    let said = lines().rfind(|l| says_why(l)).or_else(|| lines().next_back().filter(|l| !ordinary(l)))?;
    Some(said.chars().filter(|c| !c.is_control()).take(500).collect())
}

fn trim(path: &Path) -> io::Result<bool> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() > MAX_BYTES => {
            std::fs::copy(path, path.with_extension("log.1"))?;
            OpenOptions::new().write(true).open(path)?.set_len(0)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn last_words_are_the_error() {
        assert_eq!(
            last_words("starting\nerror: no such file\n  caused by x\n").unwrap(),
            "error: no such file"
        );
        assert_eq!(last_words("a\nb\n\n").unwrap(), "b");
        assert_eq!(last_words("\n"), None);
        assert_eq!(last_words("2026-01-01T00:00:00Z  INFO strata: listens\n"), None);
        let panic = "thread 'x' panicked at a.rs:1:\nwhat\nnote: run with `RUST_BACKTRACE=1`\n";
        assert_eq!(last_words(panic).unwrap(), "thread 'x' panicked at a.rs:1:");
    }

    #[test]
    fn only_this_process_is_quoted() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("logs/a.log");
        let (_, mut first, _) = Log::open(path.clone()).unwrap();
        writeln!(first, "error: of the first").unwrap();
        let (log, mut second, _) = Log::open(path).unwrap();
        assert_eq!(log.last_words(), None);
        writeln!(second, "said by the second").unwrap();
        assert_eq!(log.last_words().unwrap(), "said by the second");
    }

    #[test]
    fn a_long_log_is_moved_aside_while_it_is_written() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.log");
        let (mut log, mut file, _) = Log::open(path.clone()).unwrap();
        file.set_len(MAX_BYTES + 1).unwrap();
        log.trim();
        writeln!(file, "after").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "after\n");
        assert_eq!(std::fs::metadata(temp.path().join("a.log.1")).unwrap().len(), MAX_BYTES + 1);
    }
}
