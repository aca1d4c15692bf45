//! The approximate prefix index of one replica: the blocks of the prompts that were routed there,
//! least recently used first out.
//!
//! A chain is always recorded from its last block to its first, so a block is never older than the
//! blocks that follow it. Eviction therefore takes tails before heads, what is left is closed under
//! "the block before", and the longest match can be found by bisection.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use strata_wire::prefix::BlockHash;

/// Blocks remembered for a replica that does not say how large its cache is.
pub const DEFAULT_CAPACITY: usize = 31_250;
/// Blocks remembered for any replica, whatever it says: the bound on this scheduler's memory, about
/// 40 bytes a block.
pub const MAX_CAPACITY: usize = 1 << 20;

const NONE: u32 = u32::MAX;

/// Block hashes are cut from blake3, so they need no second hash.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Identity(u64);

#[cfg(test)]
thread_local! {
    /// How often a block was looked up by this thread.
    pub(crate) static LOOKS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        #[cfg(test)]
        LOOKS.set(LOOKS.get() + 1);
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[derive(Clone, Copy)]
struct Slot {
    hash: BlockHash,
    newer: u32,
    older: u32,
}

/// Which blocks a replica probably holds.
pub struct PrefixIndex {
    capacity: usize,
    places: HashMap<BlockHash, u32, BuildHasherDefault<Identity>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
    /// Whether blocks may be missing before those that follow them.
    gaps: bool,
}

impl std::fmt::Debug for PrefixIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrefixIndex")
            .field("capacity", &self.capacity)
            .field("blocks", &self.places.len())
            .finish_non_exhaustive()
    }
}

impl Default for PrefixIndex {
    fn default() -> Self {
        Self::new(DEFAULT_CAPACITY)
    }
}

impl PrefixIndex {
    /// An empty index of at most `capacity` blocks, itself at most [`MAX_CAPACITY`].
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.clamp(1, MAX_CAPACITY),
            places: HashMap::default(),
            slots: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
            gaps: false,
        }
    }

    /// Blocks held.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Blocks held at most.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets everything, and gives its memory back.
    pub fn clear(&mut self) {
        *self = Self::new(self.capacity);
    }

    /// Changes the bound, forgetting the oldest blocks beyond it.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity.clamp(1, MAX_CAPACITY);
        while self.places.len() > self.capacity {
            self.evict();
        }
    }

    /// How many blocks of this chain are held, from its first.
    pub fn matched(&self, chain: &[BlockHash]) -> usize {
        if self.gaps {
            return self.matched_behind(chain, 0);
        }
        chain.partition_point(|hash| self.places.contains_key(hash))
    }

    /// The same, when of so many it is known otherwise.
    pub fn matched_behind(&self, chain: &[BlockHash], elsewhere: usize) -> usize {
        let rest = chain.get(elsewhere..).unwrap_or_default();
        elsewhere + rest.iter().take_while(|hash| self.places.contains_key(hash)).count()
    }

    /// Forgets these blocks, and not those that follow them.
    pub fn forget(&mut self, blocks: &[BlockHash]) {
        for hash in blocks {
            if let Some(place) = self.places.remove(hash) {
                self.gaps = true;
                self.unlink(place);
                self.free.push(place);
            }
        }
    }

    /// Remembers a chain as the most recent. Of a chain longer than the index its beginning is kept.
    pub fn record(&mut self, chain: &[BlockHash]) {
        for hash in chain.iter().take(self.capacity).rev() {
            if let Some(&place) = self.places.get(hash) {
                self.unlink(place);
                self.link_newest(place);
                continue;
            }
            if self.places.len() == self.capacity {
                self.evict();
            }
            let slot = Slot { hash: *hash, newer: NONE, older: NONE };
            let place = if let Some(place) = self.free.pop() {
                self.slots[place as usize] = slot;
                place
            } else {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            };
            self.places.insert(*hash, place);
            self.link_newest(place);
        }
    }

    fn evict(&mut self) {
        let place = self.oldest;
        if place != NONE {
            self.unlink(place);
            self.places.remove(&self.slots[place as usize].hash);
            self.free.push(place);
        }
    }

    fn link_newest(&mut self, place: u32) {
        self.slots[place as usize].newer = NONE;
        self.slots[place as usize].older = self.newest;
        match self.newest {
            NONE => self.oldest = place,
            before => self.slots[before as usize].newer = place,
        }
        self.newest = place;
    }

    fn unlink(&mut self, place: u32) {
        let Slot { newer, older, .. } = self.slots[place as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A chain whose first `shared` blocks all chains share. As with real hashes, a block tells all that
    /// stand before it.
    fn chain(family: u64, shared: u64, len: u64) -> Vec<BlockHash> {
        let own = 1_000_000 * (family + 1) + 1000 * shared;
        (0..len).map(|i| BlockHash(if i < shared { i } else { own + i })).collect()
    }

    #[test]
    fn remembers_what_was_routed_and_forgets_the_oldest() {
        let mut index = PrefixIndex::new(10);
        index.record(&chain(1, 2, 6));
        assert_eq!(index.matched(&chain(1, 2, 8)), 6);
        assert_eq!(index.matched(&chain(2, 2, 8)), 2);
        index.record(&chain(2, 2, 8));
        assert_eq!(index.matched(&chain(2, 2, 8)), 8);
        // Ten blocks hold the newer chain, the shared head, and the older chain's next two.
        assert_eq!((index.len(), index.matched(&chain(1, 2, 6))), (10, 4));
        index.set_capacity(3);
        assert_eq!((index.len(), index.matched(&chain(2, 2, 8))), (3, 3));
        index.clear();
        assert_eq!((index.len(), index.matched(&chain(2, 2, 8))), (0, 0));
    }

    #[test]
    fn what_is_forgotten_is_a_gap() {
        let mut index = PrefixIndex::new(20);
        let all = chain(1, 0, 9);
        index.record(&all);
        index.forget(&all[2..4]);
        index.forget(&chain(2, 0, 9));
        assert_eq!((index.len(), index.matched(&all), index.matched_behind(&all, 4)), (7, 2, 9));
        assert_eq!((index.matched_behind(&all, 3), index.matched_behind(&all, 12)), (3, 12));
        for family in 2..6 {
            index.record(&chain(family, 0, 20));
            assert_eq!((index.len(), index.matched(&chain(family, 0, 30))), (20, 20));
        }
        assert!(index.slots.len() <= 20, "places are used again");
    }

    proptest! {
        /// Whatever is recorded: never more than the capacity, the newest chain is found as far as it
        /// fits, and bisection agrees with looking at every block.
        #[test]
        fn bounded_and_closed(
            capacity in 1usize..40,
            recorded in prop::collection::vec((0u64..5, 0u64..8, 0u64..30), 1..40),
            shrink in prop::option::of(1usize..40),
        ) {
            let mut index = PrefixIndex::new(capacity);
            for (family, shared, len) in &recorded {
                let chain = chain(*family, *shared, *len);
                index.record(&chain);
                prop_assert!(index.len() <= capacity);
                prop_assert!(index.slots.len() <= capacity);
                prop_assert_eq!(index.matched(&chain), chain.len().min(capacity));
            }
            if let Some(shrink) = shrink {
                index.set_capacity(shrink);
                prop_assert!(index.len() <= shrink);
            }
            for (family, shared, len) in &recorded {
                let chain = chain(*family, *shared, *len);
                let linear = chain.iter().take_while(|h| index.places.contains_key(h)).count();
                prop_assert_eq!(index.matched(&chain), linear);
                prop_assert!(chain[linear..].iter().all(|h| !index.places.contains_key(h)));
            }
        }
    }
}
