//! Blocks that are kept for another engine.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::block::BlockHash;

/// Blocks by the request whose prompt they are of, up to a limit.
#[derive(Debug)]
pub struct Kept {
    state: Mutex<State>,
    limit: u64,
    time: Duration,
}

#[derive(Debug, Default)]
struct State {
    requests: HashMap<String, Entry>,
    bytes: u64,
}

#[derive(Debug)]
struct Entry {
    blocks: Vec<(BlockHash, Bytes)>,
    bytes: u64,
    since: Instant,
}

impl Kept {
    /// Nothing is kept yet, never more than `limit` bytes, and nothing longer than `time`.
    pub fn new(limit: u64, time: Duration) -> Self {
        Self { state: Mutex::default(), limit, time }
    }

    /// The state, without what was kept too long.
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { requests, bytes } = &mut *state;
        requests.retain(|_, entry| {
            let stays = entry.since.elapsed() < self.time;
            *bytes -= if stays { 0 } else { entry.bytes };
            stays
        });
        state
    }

    /// Whether so many bytes more could be kept.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.lock().bytes + bytes <= self.limit
    }

    /// Keeps a request's blocks, its prompt's first block first. Without room nothing is kept.
    pub fn keep(&self, request: String, blocks: Vec<(BlockHash, Bytes)>) {
        let mut state = self.lock();
        let bytes = blocks.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        if blocks.is_empty() || state.bytes + bytes > self.limit {
            return;
        }
        state.bytes += bytes;
        let entry = Entry { blocks, bytes, since: Instant::now() };
        if let Some(before) = state.requests.insert(request, entry) {
            state.bytes -= before.bytes;
        }
    }

    /// How many blocks of a request are kept.
    pub fn blocks(&self, request: &str) -> Option<usize> {
        self.lock().requests.get(request).map(|entry| entry.blocks.len())
    }

    /// Hands out a request's blocks: from now on they are not kept.
    pub fn take(&self, request: &str) -> Option<Vec<(BlockHash, Bytes)>> {
        let mut state = self.lock();
        let entry = state.requests.remove(request)?;
        state.bytes -= entry.bytes;
        Some(entry.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_up_to_its_limit_and_hands_out_once() {
        let kept = Kept::new(100, Duration::from_secs(600));
        let blocks = |n: u8, bytes| vec![(BlockHash::from_bytes([n; 32]), Bytes::from(vec![n; bytes]))];
        kept.keep("a".into(), blocks(1, 60));
        kept.keep("b".into(), blocks(2, 60));
        assert_eq!((kept.blocks("a"), kept.blocks("b")), (Some(1), None));
        assert!(kept.has_room(40) && !kept.has_room(41));
        assert_eq!(kept.take("a"), Some(blocks(1, 60)));
        assert_eq!(kept.take("a"), None);
        kept.keep("b".into(), blocks(2, 60));
        kept.keep("b".into(), blocks(3, 30));
        assert_eq!(kept.take("b"), Some(blocks(3, 30)));
        assert!(kept.has_room(100));
        let brief = Kept::new(100, Duration::ZERO);
        brief.keep("a".into(), blocks(1, 60));
        assert!(brief.has_room(100) && brief.take("a").is_none());
    }
}
