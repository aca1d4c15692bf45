//! One `strata up` a state folder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::HostError;

fn file(state: &Path) -> PathBuf {
    state.join("lock")
}

/// The lock, held while this lives.
#[derive(Debug)]
pub(super) struct StateLock {
    _file: File,
}

impl StateLock {
    /// Takes the lock of a state folder.
    pub(super) fn take(state: &Path) -> Result<Self, HostError> {
        let path = file(state);
        let failed = |source| HostError::System { what: format!("cannot lock {}", path.display()), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                let pid = pid.trim();
                return Err(HostError::AlreadyRunning {
                    state: state.display().to_string(),
                    pid: if pid.is_empty() { "unknown".to_owned() } else { pid.to_owned() },
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
        write!(file, "{}", std::process::id()).and_then(|()| file.flush()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// Whether a process holds the lock.
pub(super) fn is_held(state: &Path) -> bool {
    match File::open(file(state)) {
        Ok(file) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_told_who_has_it() {
        let temp = tempfile::tempdir().unwrap();
        assert!(!is_held(temp.path()));
        let first = StateLock::take(temp.path()).unwrap();
        assert!(is_held(temp.path()));
        let message = StateLock::take(temp.path()).unwrap_err().to_string();
        assert!(
            message.contains(&format!("pid {}", std::process::id())) && message.contains("already runs"),
            "{message}"
        );
        drop(first);
        assert!(!is_held(temp.path()));
        StateLock::take(temp.path()).unwrap();
    }
}
