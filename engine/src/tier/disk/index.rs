//! Which blocks are on the disk, and which of them goes first. Pure.

use std::collections::{BTreeMap, HashMap};

use super::seal::FileName;
use crate::block::BlockHash;

/// The files of a disk tier, by last use.
#[derive(Debug)]
pub(super) struct Index {
    entries: HashMap<FileName, Entry>,
    /// The least recently used first.
    order: BTreeMap<u64, FileName>,
    clock: u64,
    bytes: u64,
    limit: u64,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    used: u64,
    /// Readers that it must not be removed under.
    readers: u32,
    /// The block's name, where this run of the engine knows it.
    hash: Option<BlockHash>,
}

/// A file that was taken out of the index and is to be deleted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Removed {
    pub(super) name: FileName,
    pub(super) hash: Option<BlockHash>,
}

impl Index {
    /// An empty index of at most `limit` bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self { entries: HashMap::new(), order: BTreeMap::new(), clock: 0, bytes: 0, limit }
    }

    /// Adds a file as the most recently used.
    pub(super) fn insert(&mut self, name: FileName, bytes: u64, hash: Option<BlockHash>) {
        self.remove(&name);
        self.clock += 1;
        self.order.insert(self.clock, name);
        self.entries.insert(name, Entry { bytes, used: self.clock, readers: 0, hash });
        self.bytes += bytes;
    }

    /// Whether it has a file; from now on it knows whose.
    pub(super) fn has(&mut self, name: &FileName, hash: BlockHash) -> bool {
        self.entries.get_mut(name).map(|entry| entry.hash = Some(hash)).is_some()
    }

    /// Holds a file for a reader, as the most recently used.
    pub(super) fn hold(&mut self, name: &FileName) -> bool {
        let Some(entry) = self.entries.get_mut(name) else { return false };
        self.clock += 1;
        self.order.remove(&entry.used);
        self.order.insert(self.clock, *name);
        entry.used = self.clock;
        entry.readers += 1;
        true
    }

    /// Lets go of a file that was held.
    pub(super) fn release(&mut self, name: &FileName) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.readers = entry.readers.saturating_sub(1);
        }
    }

    /// Takes a file out.
    pub(super) fn remove(&mut self, name: &FileName) -> Option<Removed> {
        let entry = self.entries.remove(name)?;
        self.order.remove(&entry.used);
        self.bytes -= entry.bytes;
        Some(Removed { name: *name, hash: entry.hash })
    }

    /// Takes out the least recently used files that nobody reads until `bytes` more fit. `None`, and no
    /// file is taken out, when that cannot be.
    pub(super) fn make_room(&mut self, bytes: u64) -> Option<Vec<Removed>> {
        let mut freed = 0;
        let mut going = Vec::new();
        for name in self.order.values() {
            if self.bytes - freed + bytes <= self.limit {
                break;
            }
            let Some(entry) = self.entries.get(name).filter(|entry| entry.readers == 0) else { continue };
            freed += entry.bytes;
            going.push(*name);
        }
        let fits = self.bytes - freed + bytes <= self.limit;
        fits.then(|| going.iter().filter_map(|name| self.remove(name)).collect())
    }

    /// Files in it.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(n: u8) -> FileName {
        FileName([n; 32])
    }

    #[test]
    fn the_least_recently_used_goes_unless_it_is_read() {
        let mut index = Index::new(30);
        (0..3).for_each(|n| index.insert(name(n), 10, None));
        assert!(index.hold(&name(0)));
        let names = |removed: Option<Vec<Removed>>| -> Option<Vec<u8>> {
            removed.map(|list| list.iter().map(|r| r.name.0[0]).collect())
        };
        assert_eq!(names(index.make_room(10)), Some(vec![1]));
        assert_eq!(names(index.make_room(10)), Some(vec![]));
        index.insert(name(4), 10, None);
        assert_eq!(names(index.make_room(30)), None, "one is being read");
        assert_eq!(index.len(), 3);
        index.release(&name(0));
        assert_eq!(names(index.make_room(30)), Some(vec![2, 0, 4]));
        assert_eq!(names(index.make_room(31)), None);
    }

    proptest! {
        #[test]
        fn it_never_exceeds_its_limit(calls in prop::collection::vec((0u8..8, 1u64..12, 0u8..4), 1..60)) {
            let mut index = Index::new(40);
            for (n, bytes, call) in calls {
                match call {
                    0 => drop(index.hold(&name(n))),
                    1 => index.release(&name(n)),
                    2 => drop(index.remove(&name(n))),
                    _ => if index.make_room(bytes).is_some() { index.insert(name(n), bytes, None); },
                }
                let sum: u64 = index.entries.values().map(|e| e.bytes).sum();
                prop_assert_eq!(sum, index.bytes);
                prop_assert!(sum <= 40 && index.order.len() == index.entries.len());
            }
        }
    }
}
