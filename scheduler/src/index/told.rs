//! What one replica has told of its blocks, message after message.
//!
//! A message counts only behind the one before it. Where one is missing, what is known is kept, for most
//! of it is true, until a snapshot takes its place; it is taken down part by part and takes the place when
//! it is whole.

use strata_wire::engine_events::{BlockChanges, EngineEvent, Load, Snapshot};

use super::{BlockIndex, Lane};

/// A message that cannot follow what came before it: another snapshot is needed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfOrder {
    /// Changes whose number is not the next.
    #[error("message {got} came where {wanted} was to come")]
    Gap {
        /// The next number.
        wanted: u64,
        /// The number that came.
        got: u64,
    },
    /// Changes to what was never told, or a part of a snapshot that has not begun.
    #[error("the stream does not begin with a snapshot")]
    NoSnapshot,
}

/// What a replica has told.
#[derive(Debug, Default)]
pub struct Told {
    engine: String,
    sequence: u64,
    /// What counts.
    lane: Option<Lane>,
    /// A snapshot that is not whole.
    coming: Option<Lane>,
}

impl Told {
    /// Takes a message. Returns the load, when it is one of these.
    pub fn take(&mut self, event: EngineEvent, index: &BlockIndex) -> Result<Option<Load>, OutOfOrder> {
        match event {
            EngineEvent::Load(load) => return Ok(Some(load)),
            EngineEvent::Snapshot(snapshot) => self.snapshot(snapshot, index)?,
            EngineEvent::Blocks(changes) => self.changes(&changes, index)?,
        }
        Ok(None)
    }

    fn snapshot(&mut self, snapshot: Snapshot, index: &BlockIndex) -> Result<(), OutOfOrder> {
        if snapshot.first {
            self.coming = Some(index.open());
        }
        let coming = self.coming.as_ref().ok_or(OutOfOrder::NoSnapshot)?;
        index.store(coming, &snapshot.stored);
        if snapshot.last {
            self.lane = self.coming.take();
            self.engine = snapshot.engine;
            self.sequence = snapshot.sequence;
        }
        Ok(())
    }

    fn changes(&mut self, changes: &BlockChanges, index: &BlockIndex) -> Result<(), OutOfOrder> {
        let Some(lane) = &mut self.lane else { return Err(OutOfOrder::NoSnapshot) };
        let wanted = self.sequence + 1;
        if changes.sequence != wanted || self.coming.is_some() {
            return Err(OutOfOrder::Gap { wanted, got: changes.sequence });
        }
        if changes.cleared {
            *lane = index.open();
        }
        index.remove(lane, &changes.removed);
        index.store(lane, &changes.stored);
        self.sequence = wanted;
        Ok(())
    }

    /// Where to go on: the run of the engine, and the last message. `None` to begin with a snapshot.
    pub fn position(&self) -> Option<(&str, u64)> {
        let known = self.lane.is_some() && !self.engine.is_empty();
        known.then_some((self.engine.as_str(), self.sequence))
    }

    /// From now on it begins with a snapshot; until that is whole, what is known counts.
    pub fn distrust(&mut self) {
        self.coming = None;
        self.engine.clear();
    }

    /// What it holds, once it has told all of it.
    pub fn lane(&self) -> Option<&Lane> {
        self.lane.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use strata_wire::engine_events::{Medium, Removed, Stored};
    use strata_wire::prefix::BlockHash;

    use super::*;

    fn stored(hashes: &[u64]) -> Vec<Stored> {
        let one = |h: &u64| Stored { hash: BlockHash(*h), tokens: *h as u32 * 16, medium: Medium::Device };
        hashes.iter().map(one).collect()
    }

    fn snapshot(sequence: u64, first: bool, last: bool, hashes: &[u64]) -> EngineEvent {
        EngineEvent::Snapshot(Snapshot { engine: "e".into(), sequence, first, last, stored: stored(hashes) })
    }

    fn blocks(sequence: u64, cleared: bool, new: &[u64], gone: &[u64]) -> EngineEvent {
        let removed = gone.iter().map(|h| Removed { hash: BlockHash(*h), medium: Medium::Device }).collect();
        EngineEvent::Blocks(BlockChanges { sequence, cleared, stored: stored(new), removed })
    }

    fn tokens(told: &Told, index: &BlockIndex) -> Option<u32> {
        let found = index.find(&[1, 2, 3, 4].map(BlockHash));
        told.lane().map(|lane| found.tokens(lane)[0])
    }

    #[test]
    fn messages_count_in_order() {
        let (index, mut told) = (BlockIndex::default(), Told::default());
        assert_eq!(told.take(blocks(1, false, &[1], &[]), &index), Err(OutOfOrder::NoSnapshot));
        assert_eq!(told.take(snapshot(4, false, true, &[1]), &index), Err(OutOfOrder::NoSnapshot));
        let load = Load { running: 3, ..Load::default() };
        assert_eq!(told.take(EngineEvent::Load(load), &index), Ok(Some(load)));
        told.take(snapshot(4, true, false, &[1]), &index).unwrap();
        assert_eq!((tokens(&told, &index), told.position()), (None, None), "it is not whole");
        told.take(snapshot(4, false, true, &[2]), &index).unwrap();
        assert_eq!((tokens(&told, &index), told.position()), (Some(32), Some(("e", 4))));
        told.take(blocks(5, false, &[3], &[]), &index).unwrap();
        told.take(blocks(6, false, &[4], &[3]), &index).unwrap();
        told.take(blocks(7, false, &[], &[4]), &index).unwrap();
        assert_eq!(tokens(&told, &index), Some(32));
        assert_eq!(told.take(blocks(9, false, &[], &[]), &index), Err(OutOfOrder::Gap { wanted: 8, got: 9 }));
        assert_eq!(told.position(), Some(("e", 7)));
        told.distrust();
        assert_eq!((tokens(&told, &index), told.position()), (Some(32), None), "most of it is true");
        told.take(snapshot(9, true, true, &[1]), &index).unwrap();
        assert_eq!((tokens(&told, &index), told.position()), (Some(16), Some(("e", 9))));
        told.take(blocks(10, true, &[], &[]), &index).unwrap();
        assert_eq!(tokens(&told, &index), Some(0));
    }
}
