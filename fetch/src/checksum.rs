//! Checksums: what a source promises of a file, and what its bytes have.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use md5::Md5;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

const READ: usize = 1 << 20;

/// A checksum that a source gives of a file, in lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    Sha256(String),
    /// Of the bytes as Git stores them: with a header that has their number.
    GitSha1(String),
    Md5(String),
}

impl Checksum {
    pub(crate) fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::GitSha1(_) => "Git SHA-1",
            Self::Md5(_) => "MD5",
        }
    }

    pub(crate) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitSha1(hex) | Self::Md5(hex) => hex,
        }
    }
}

/// The checksums of a whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) sha256: String,
    /// That of the algorithm that was asked for.
    pub(crate) asked: Option<String>,
}

/// Computes them as bytes come, in order.
struct Summing {
    sha256: Sha256,
    sha1: Option<Sha1>,
    md5: Option<Md5>,
}

impl Summing {
    fn new(asked: Option<&Checksum>, size: u64) -> Self {
        let mut sha1 = matches!(asked, Some(Checksum::GitSha1(_))).then(Sha1::new);
        if let Some(sha1) = &mut sha1 {
            sha1.update(format!("blob {size}\0"));
        }
        Self { sha256: Sha256::new(), sha1, md5: matches!(asked, Some(Checksum::Md5(_))).then(Md5::new) }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(sha1) = &mut self.sha1 {
            sha1.update(bytes);
        }
        if let Some(md5) = &mut self.md5 {
            md5.update(bytes);
        }
    }

    fn finish(self, asked: Option<&Checksum>) -> Sums {
        let sha256 = hex(&self.sha256.finalize());
        let asked = asked.map(|asked| match asked {
            Checksum::Sha256(_) => sha256.clone(),
            Checksum::GitSha1(_) => self.sha1.map(|h| hex(&h.finalize())).unwrap_or_default(),
            Checksum::Md5(_) => self.md5.map(|h| hex(&h.finalize())).unwrap_or_default(),
        });
        Sums { sha256, asked }
    }
}

/// How much of a file is there from its beginning on.
#[derive(Default)]
struct Frontier {
    bytes: Mutex<Reached>,
    moved: Condvar,
}

#[derive(Default, Clone, Copy)]
struct Reached {
    bytes: u64,
    is_abandoned: bool,
}

/// Computes the checksums of a file on a thread while the file is being written, from its beginning as
/// far as it is there. Dropping it ends the thread.
pub(crate) struct Follower {
    frontier: Arc<Frontier>,
    thread: Option<JoinHandle<io::Result<Option<Sums>>>>,
}

impl Follower {
    pub(crate) fn start(file: Arc<File>, size: u64, asked: Option<Checksum>) -> io::Result<Self> {
        let frontier = Arc::new(Frontier::default());
        let watched = frontier.clone();
        let thread = std::thread::Builder::new()
            .name("checksum".to_owned())
            .spawn(move || follow(&file, size, asked.as_ref(), &watched))?;
        Ok(Self { frontier, thread: Some(thread) })
    }

    /// The first `bytes` of the file are there.
    pub(crate) fn reached(&self, bytes: u64) {
        self.frontier.set(|reached| reached.bytes = reached.bytes.max(bytes));
    }

    /// The checksums; the whole file must have been reached. Blocks while the rest is computed.
    pub(crate) fn finish(mut self) -> io::Result<Sums> {
        let thread = self.thread.take().expect("finished once");
        let sums = thread.join().map_err(|_| io::Error::other("the checksum thread panicked"))??;
        sums.ok_or_else(|| io::Error::other("the checksum was abandoned"))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.frontier.set(|reached| reached.is_abandoned = true);
        }
    }
}

impl Frontier {
    fn set(&self, change: impl FnOnce(&mut Reached)) {
        change(&mut self.bytes.lock().expect("no holder panics"));
        self.moved.notify_one();
    }
}

fn follow(file: &File, size: u64, asked: Option<&Checksum>, frontier: &Frontier) -> io::Result<Option<Sums>> {
    let mut summing = Summing::new(asked, size);
    let mut buffer = vec![0; READ];
    let mut at = 0;
    while at < size {
        let reached = {
            let guard = frontier.bytes.lock().expect("no holder panics");
            let waits = |r: &mut Reached| r.bytes <= at && !r.is_abandoned;
            *frontier.moved.wait_while(guard, waits).expect("no holder panics")
        };
        if reached.is_abandoned {
            return Ok(None);
        }
        let want = (reached.bytes.min(size) - at).min(READ as u64) as usize;
        file.read_exact_at(&mut buffer[..want], at)?;
        summing.update(&buffer[..want]);
        at += want as u64;
    }
    Ok(Some(summing.finish(asked)))
}

/// The checksums of a file that is whole. Blocks.
pub(crate) fn of_file(file: Arc<File>, asked: Option<Checksum>) -> io::Result<Sums> {
    let size = file.metadata()?.len();
    let follower = Follower::start(file, size, asked)?;
    follower.reached(size);
    follower.finish()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(file)
    }

    #[test]
    fn known_sums() {
        let of = |asked| of_file(file(b"hello\n"), Some(asked)).unwrap();
        let any = String::new();
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(of(Checksum::Sha256(any.clone())).asked.as_deref(), Some(sha256));
        // As `git hash-object` says.
        let git = of(Checksum::GitSha1(any.clone()));
        assert_eq!(git.asked.as_deref(), Some("ce013625030ba8dba906f756967f9e9ca394464a"));
        assert_eq!(git.sha256, sha256);
        assert_eq!(of(Checksum::Md5(any)).asked.as_deref(), Some("b1946ac92492d2347c6235b4d2611184"));
        let empty = of_file(file(b""), None).unwrap().sha256;
        assert!(empty.starts_with("e3b0c442"), "{empty}");
    }

    #[test]
    fn it_follows_a_file_that_grows_in_any_steps() {
        let bytes: Vec<u8> = (0..3 * READ + 17).map(|i| (i * 7 % 251) as u8).collect();
        let whole = file(&bytes);
        let wanted = of_file(whole.clone(), None).unwrap();
        let follower = Follower::start(whole, bytes.len() as u64, None).unwrap();
        for reached in [1, 1, 17, READ, READ - 5, 2 * READ + 1, bytes.len()] {
            follower.reached(reached as u64);
        }
        assert_eq!(follower.finish().unwrap(), wanted);
    }

    #[test]
    fn an_abandoned_one_ends() {
        let follower = Follower::start(file(b"ab"), 2, None).unwrap();
        follower.reached(1);
        let frontier = Arc::downgrade(&follower.frontier);
        drop(follower);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while frontier.upgrade().is_some() {
            assert!(std::time::Instant::now() < deadline, "the thread goes on");
            std::thread::yield_now();
        }
    }
}
