//! The stream's messages, numbered and kept for a while, for any number of readers.
//!
//! The engine's thread writes and never waits for a reader: a reader that falls behind what is kept
//! starts again with a snapshot. So memory is bounded, however slow a reader is.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use strata_wire::engine_events::{BlockChanges, EngineEvent, Load, Snapshot};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Claim, Directory};
use crate::block::BlockHash;
use crate::lora::AdapterId;

/// Hashes in the messages that are kept: about 32 bytes each.
const MAX_KEPT: usize = 65_536;
/// Hashes in one message.
const MAX_PART: usize = 4096;
/// A reader that left may be back within this time, and wants to know what happened meanwhile.
const MAY_RETURN: Duration = Duration::from_secs(60);

/// What an engine says of its cache and its load.
#[derive(Debug)]
pub struct EventLog {
    engine: String,
    state: Mutex<State>,
    /// The last message's number; closed when the engine takes no more requests.
    head: watch::Sender<Head>,
    load: watch::Sender<Load>,
    /// When the last of the readers left that have left.
    left: Mutex<Option<Instant>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Head {
    sequence: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct State {
    directory: Directory,
    kept: VecDeque<Arc<BlockChanges>>,
    /// Hashes in `kept`.
    hashes: usize,
    sequence: u64,
}

impl EventLog {
    /// A log in which nothing has happened. `engine` names this run of the engine.
    pub fn new(engine: String) -> Self {
        Self {
            engine,
            state: Mutex::default(),
            head: watch::Sender::new(Head::default()),
            load: watch::Sender::default(),
            left: Mutex::default(),
        }
    }

    /// The name of this run of the engine.
    pub fn engine(&self) -> &str {
        &self.engine
    }

    /// Whether anybody follows the log, or has until just now and may be back. When nobody does, claims
    /// need not be made: who begins to follow later learns of a block with the next request that claims
    /// it, and of none that is not there.
    pub fn is_followed(&self) -> bool {
        self.is_followed_at(Instant::now())
    }

    fn is_followed_at(&self, now: Instant) -> bool {
        let left = || *self.left.lock().unwrap_or_else(PoisonError::into_inner);
        self.head.receiver_count() > 0 || left().is_some_and(|left| now - left < MAY_RETURN)
    }

    /// Changes the directory; what that comes to is one message, if it is anything.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Directory, &mut BlockChanges) -> T) -> T {
        let mut state = self.lock();
        let mut changes = BlockChanges::default();
        let out = change(&mut state.directory, &mut changes);
        if changes == BlockChanges::default() {
            return out;
        }
        state.sequence += 1;
        changes.sequence = state.sequence;
        state.hashes += hashes(&changes);
        state.kept.push_back(Arc::new(changes));
        while state.hashes > MAX_KEPT {
            let Some(oldest) = state.kept.pop_front() else { break };
            state.hashes -= hashes(&oldest);
        }
        let sequence = state.sequence;
        drop(state);
        self.head.send_modify(|head| head.sequence = sequence);
        out
    }

    /// Notes what a request says of its prompt; see [`Directory::claim`].
    pub(crate) fn claim(
        &self,
        claims: &[Claim],
        names: &[BlockHash],
        adapter: Option<AdapterId>,
    ) -> Vec<BlockHash> {
        if claims.is_empty() {
            return Vec::new();
        }
        self.change(|directory, changes| directory.claim(claims, names, adapter, changes))
    }

    /// Changes the load.
    pub(crate) fn load(&self, change: impl FnOnce(&mut Load)) {
        self.load.send_if_modified(|load| {
            let before = *load;
            change(load);
            *load != before
        });
    }

    /// Ends all readers: the engine takes no more requests.
    pub(crate) fn close(&self) {
        self.head.send_modify(|head| head.closed = true);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hashes(changes: &BlockChanges) -> usize {
    changes.stored.len() + changes.removed.len()
}

/// Follows a log from some place on.
#[derive(Debug)]
pub struct Reader {
    log: Arc<EventLog>,
    head: watch::Receiver<Head>,
    load: watch::Receiver<Load>,
    /// The last message that was read.
    position: Option<u64>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        *self.log.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

impl Reader {
    /// Begins after message `after` of the run `engine`, where that is this one and the messages since
    /// are kept; else with a snapshot.
    pub fn new(log: Arc<EventLog>, from: Option<(&str, u64)>) -> Self {
        let (head, mut load) = (log.head.subscribe(), log.load.subscribe());
        // The load as it is now is news to a new reader.
        load.mark_changed();
        let position = from.filter(|(engine, _)| *engine == log.engine).map(|(_, after)| after);
        Self { log, head, load, position }
    }

    /// The block messages since the last call; empty when nothing has changed.
    pub fn read(&mut self) -> Vec<EngineEvent> {
        self.head.mark_unchanged();
        let state = self.log.lock();
        let next = self.position.map(|position| position + 1);
        let oldest = state.sequence + 1 - state.kept.len() as u64;
        if let Some(next) = next.filter(|next| (oldest..=state.sequence + 1).contains(next)) {
            self.position = Some(state.sequence);
            let new = state.kept.iter().skip((next - oldest) as usize);
            return new.map(|changes| EngineEvent::Blocks(changes.as_ref().clone())).collect();
        }
        let (sequence, stored) = (state.sequence, state.directory.snapshot());
        drop(state);
        self.position = Some(sequence);
        let parts = stored.len().div_ceil(MAX_PART).max(1);
        let part = |i: usize| {
            let stored = stored.iter().skip(i * MAX_PART).take(MAX_PART).copied().collect();
            let engine = self.log.engine.clone();
            EngineEvent::Snapshot(Snapshot { engine, sequence, first: i == 0, last: i + 1 == parts, stored })
        };
        (0..parts).map(part).collect()
    }

    /// The load, when it has changed since the last call.
    pub fn changed_load(&mut self) -> Option<Load> {
        let changed = self.load.has_changed().unwrap_or(false);
        changed.then(|| *self.load.borrow_and_update())
    }

    /// The load.
    pub fn load(&mut self) -> Load {
        *self.load.borrow_and_update()
    }

    /// Whether nothing more is to come.
    pub fn is_closed(&self) -> bool {
        self.head.borrow().closed
    }

    /// Waits until there is a message to read, or the end, or, from `load_from` on, another load.
    pub async fn news(&mut self, load_from: Instant) {
        let load = async {
            tokio::time::sleep_until(load_from).await;
            // Errors are those of a sender that is gone; it lives as long as the log, which this holds.
            if !self.load.has_changed().unwrap_or(true) {
                let _ = self.load.changed().await;
                self.load.mark_changed();
            }
        };
        tokio::select! {
            _ = self.head.changed() => {}
            () = load => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use strata_wire::engine_events::Medium;
    use strata_wire::prefix;

    use super::*;
    use crate::block::HashChain;

    fn name(n: u32) -> BlockHash {
        let mut chain = HashChain::new(None);
        chain.extend(&[n; 16]);
        chain.hashes()[0]
    }

    fn store(log: &EventLog, n: u32) {
        log.change(|directory, changes| {
            let claim = Claim { hash: prefix::BlockHash(u64::from(n)), tokens: 16 };
            directory.claim(&[claim], &[name(n)], None, changes);
            directory.stored(name(n), Medium::Device, changes);
        });
    }

    fn sequences(events: &[EngineEvent]) -> Vec<(bool, u64)> {
        let of = |event: &EngineEvent| match event {
            EngineEvent::Snapshot(snapshot) => (true, snapshot.sequence),
            EngineEvent::Blocks(changes) => (false, changes.sequence),
            EngineEvent::Load(_) => panic!("no load here"),
        };
        events.iter().map(of).collect()
    }

    #[test]
    fn a_reader_gets_a_snapshot_and_then_each_change_once() {
        let log = Arc::new(EventLog::new("e".into()));
        store(&log, 1);
        let mut reader = Reader::new(log.clone(), None);
        assert_eq!(sequences(&reader.read()), [(true, 1)]);
        assert!(reader.read().is_empty());
        store(&log, 2);
        log.change(|_, _| {});
        store(&log, 3);
        assert_eq!(sequences(&reader.read()), [(false, 2), (false, 3)]);
        let resumed = |from| sequences(&Reader::new(log.clone(), Some(from)).read());
        assert_eq!(resumed(("e", 1)), [(false, 2), (false, 3)]);
        assert_eq!(resumed(("e", 3)), []);
        assert_eq!(resumed(("e", 4)), [(true, 3)], "what has not been");
        assert_eq!(resumed(("other", 1)), [(true, 3)], "another run");
    }

    #[test]
    fn who_falls_behind_starts_again_and_the_log_stays_small() {
        let log = Arc::new(EventLog::new("e".into()));
        let mut reader = Reader::new(log.clone(), None);
        reader.read();
        for n in 0..MAX_KEPT as u32 + 10 {
            store(&log, n);
        }
        let events = reader.read();
        assert!(log.lock().kept.len() <= MAX_KEPT);
        assert_eq!(events.len(), (MAX_KEPT + 10).div_ceil(MAX_PART));
        let parts: Vec<(bool, bool)> = events
            .iter()
            .map(|event| match event {
                EngineEvent::Snapshot(s) => (s.first, s.last),
                _ => panic!("a snapshot"),
            })
            .collect();
        assert_eq!(
            (parts[0], parts[1], parts[parts.len() - 1]),
            ((true, false), (false, false), (false, true))
        );
        assert!(reader.read().is_empty());
    }

    #[test]
    fn a_log_is_followed_while_somebody_reads_and_a_while_after() {
        let log = Arc::new(EventLog::new("e".into()));
        assert!(!log.is_followed());
        let (first, second) = (Reader::new(log.clone(), None), Reader::new(log.clone(), None));
        assert!(log.is_followed());
        drop(first);
        let later = Instant::now() + MAY_RETURN * 2;
        assert!(log.is_followed_at(later), "by the other");
        drop(second);
        assert!(log.is_followed(), "it may be back");
        assert!(!log.is_followed_at(later));
    }
}
