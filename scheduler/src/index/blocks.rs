//! From a block to who holds it: a map in shards, so that those who ask and those who tell seldom meet.
//!
//! A map of millions of blocks lies in no cache: each block is a wait for memory. A processor waits for
//! several at once as long as no lock stands between them, for a lock is where it waits for all that came
//! before. So a look-up locks all shards first, and what is told is sorted by shard.
//!
//! A look-up asks for every block of a prompt: an engine says nothing of blocks that tell no more tokens
//! than the one before (tools, of which a template makes another text; images), so holders cannot be
//! searched for by halves. Neighbours mostly have the same holders, and are then passed over.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use strata_wire::engine_events::{self, Medium, Removed, Stored};
use strata_wire::prefix::BlockHash;

use super::lanes::{Lane, Lanes};
use crate::pick::index::Identity;
use crate::scheduler::mix;

/// A look-up locks them all.
const SHARDS: usize = 32;
/// Entries of one lane. What a replica tells beyond them is not kept.
const MAX_ENTRIES: usize = 1 << 22;
/// How many there are.
const MEDIA: usize = engine_events::MEDIA.len();

/// One replica that holds a block in one medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holder {
    /// Its lane's number and the medium.
    key: u32,
    tokens: u32,
}

fn key(lane: u32, medium: Medium) -> u32 {
    lane << 2 | medium as u32
}

/// The replicas that hold a block.
#[derive(Debug)]
enum Holders {
    One(Holder),
    // By itself it would make the entries of all other blocks larger.
    Several(Box<Several>),
}

#[derive(Debug)]
struct Several {
    /// Of all keys together: who holds another block, too, is known without a look at each.
    sign: u64,
    /// Sorted by their keys.
    all: Vec<Holder>,
}

impl Several {
    fn new(all: Vec<Holder>) -> Self {
        Self { sign: all.iter().fold(0, |sign, holder| sign ^ sign_of(holder.key)), all }
    }
}

/// So that sets of other keys have other signs, but by a chance of one in 2^64.
fn sign_of(key: u32) -> u64 {
    mix(u64::from(key) + 1)
}

impl Holders {
    fn all(&self) -> &[Holder] {
        match self {
            Self::One(holder) => std::slice::from_ref(holder),
            Self::Several(several) => &several.all,
        }
    }

    /// Tells sets of keys apart.
    fn sign(&self) -> u64 {
        match self {
            Self::One(holder) => sign_of(holder.key),
            Self::Several(several) => several.sign,
        }
    }

    /// Returns whether it is new.
    fn add(&mut self, new: Holder) -> bool {
        match self {
            Self::One(holder) if holder.key == new.key => {
                *holder = new;
                false
            }
            Self::One(holder) => {
                let mut both = vec![*holder, new];
                both.sort_unstable_by_key(|holder| holder.key);
                *self = Self::Several(Box::new(Several::new(both)));
                true
            }
            Self::Several(several) => match several.all.binary_search_by_key(&new.key, |holder| holder.key) {
                Ok(at) => {
                    several.all[at] = new;
                    false
                }
                Err(at) => {
                    several.all.insert(at, new);
                    several.sign ^= sign_of(new.key);
                    true
                }
            },
        }
    }

    /// Keeps those that `keep` says. Returns whether any are left.
    fn retain(&mut self, mut keep: impl FnMut(u32) -> bool) -> bool {
        match self {
            Self::One(holder) => keep(holder.key),
            Self::Several(several) => {
                let Several { sign, all } = &mut **several;
                all.retain(|holder| {
                    let stays = keep(holder.key);
                    if !stays {
                        *sign ^= sign_of(holder.key);
                    }
                    stays
                });
                if let [only] = several.all[..] {
                    *self = Self::One(only);
                    return true;
                }
                !several.all.is_empty()
            }
        }
    }
}

type Shard = HashMap<BlockHash, Holders, BuildHasherDefault<Identity>>;

/// Who holds which blocks.
#[derive(Debug)]
pub struct BlockIndex {
    shards: Box<[RwLock<Shard>]>,
    lanes: Lanes,
    entries: AtomicUsize,
}

impl Default for BlockIndex {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            lanes: Lanes::default(),
            entries: AtomicUsize::new(0),
        }
    }
}

impl BlockIndex {
    /// A lane in which nothing is held.
    pub fn open(&self) -> Lane {
        self.lanes.open()
    }

    /// Pairs of a block and who holds it in one medium, those of closed lanes that have not been swept away
    /// among them. Each takes about 40 bytes.
    pub fn entries(&self) -> usize {
        self.entries.load(Ordering::Acquire)
    }

    /// The replica of this lane holds these.
    pub fn store(&self, lane: &Lane, stored: &[Stored]) {
        let mut room = MAX_ENTRIES.saturating_sub(lane.entries());
        let mut new = 0;
        each_by_shard(
            stored,
            |stored| stored.hash,
            |shard, all| {
                let mut shard = self.write(shard);
                for Stored { hash, tokens, medium } in all {
                    if room == 0 {
                        return;
                    }
                    let holder = Holder { key: key(lane.number(), *medium), tokens: *tokens };
                    let is_new = match shard.entry(*hash) {
                        Entry::Vacant(vacant) => {
                            vacant.insert(Holders::One(holder));
                            true
                        }
                        Entry::Occupied(mut held) => held.get_mut().add(holder),
                    };
                    new += usize::from(is_new);
                    room -= usize::from(is_new);
                }
            },
        );
        lane.add(new);
        self.entries.fetch_add(new, Ordering::AcqRel);
    }

    /// It no longer holds these.
    pub fn remove(&self, lane: &Lane, removed: &[Removed]) {
        let mut went = 0;
        each_by_shard(
            removed,
            |removed| removed.hash,
            |shard, all| {
                let mut shard = self.write(shard);
                for Removed { hash, medium } in all {
                    let gone = key(lane.number(), *medium);
                    let Entry::Occupied(mut held) = shard.entry(*hash) else { continue };
                    let before = held.get().all().len();
                    if !held.get_mut().retain(|key| key != gone) {
                        held.remove();
                    } else if held.get().all().len() == before {
                        continue;
                    }
                    went += 1;
                }
            },
        );
        lane.take(went);
        self.entries.fetch_sub(went, Ordering::AcqRel);
    }

    /// Whether it is time to [sweep](Self::sweep).
    pub fn is_littered(&self) -> bool {
        self.lanes.is_littered(self.entries())
    }

    /// Takes away what closed lanes held, when that has become much. Slow: millions of blocks take a
    /// second, during which others wait for one shard of many at a time.
    pub fn sweep(&self) {
        let Some(mut sweep) = self.lanes.begin_sweep(self.entries()) else { return };
        for shard in &self.shards {
            let mut went = 0;
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|_, holders| {
                let before = holders.all().len();
                let any = holders.retain(|key| !sweep.takes(key >> 2));
                went += before - if any { holders.all().len() } else { 0 };
                any
            });
            if shard.capacity() > 4 * shard.len() {
                shard.shrink_to_fit();
            }
            drop(shard);
            sweep.went(went);
            self.entries.fetch_sub(went, Ordering::AcqRel);
        }
    }

    /// Finds who holds how much of a prompt with these blocks.
    pub fn find(&self, chain: &[BlockHash]) -> Found {
        let mut found = Found::default();
        if chain.is_empty() {
            return found;
        }
        let shards: [RwLockReadGuard<'_, Shard>; SHARDS] =
            std::array::from_fn(|at| self.shards[at].read().unwrap_or_else(PoisonError::into_inner));
        let held: Vec<Option<&Holders>> = chain.iter().map(|hash| shards[shard(*hash)].get(hash)).collect();
        let mut last = None;
        for (at, holders) in held.into_iter().enumerate().rev() {
            let Some(holders) = holders else { continue };
            // The same hold a block behind this one, which tells more.
            if last.replace(holders.sign()) != Some(holders.sign()) {
                holders.all().iter().for_each(|holder| found.note(*holder, at + 1));
            }
        }
        found
    }

    fn write(&self, shard: usize) -> RwLockWriteGuard<'_, Shard> {
        self.shards[shard].write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a block is.
fn shard(hash: BlockHash) -> usize {
    // The map finds a group by the low bits, and in it a block by the high ones.
    (hash.0 >> 40) as usize % SHARDS
}

/// Calls `each` with those of each shard, in the order that they have here.
fn each_by_shard<T: Copy>(all: &[T], hash: impl Fn(&T) -> BlockHash, mut each: impl FnMut(usize, &[T])) {
    let [first, ..] = all else { return };
    let mut ends = [0usize; SHARDS];
    for one in all {
        ends[shard(hash(one))] += 1;
    }
    let mut sum = 0;
    for end in &mut ends {
        sum += std::mem::replace(end, sum);
    }
    let mut sorted = vec![*first; all.len()];
    for one in all {
        let place = &mut ends[shard(hash(one))];
        sorted[*place] = *one;
        *place += 1;
    }
    let mut begin = 0;
    for (shard, end) in ends.into_iter().enumerate() {
        if begin < end {
            each(shard, &sorted[begin..end]);
        }
        begin = end;
    }
}

/// Tokens of one prompt by lane and medium, from its first.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// By lane: tokens, and whole blocks.
    by_lane: Vec<([u32; MEDIA], usize)>,
}

impl Found {
    fn note(&mut self, holder: Holder, blocks: usize) {
        let (lane, medium) = ((holder.key >> 2) as usize, (holder.key & 3) as usize);
        if lane >= self.by_lane.len() {
            self.by_lane.resize(lane + 1, ([0; MEDIA], 0));
        }
        let (tokens, known) = &mut self.by_lane[lane];
        tokens[medium] = holder.tokens.max(tokens[medium]);
        *known = blocks.max(*known);
    }

    /// Tokens of the prompt that the replica of this lane has in each medium, in the order of
    /// [`MEDIA`](strata_wire::engine_events::MEDIA).
    pub fn tokens(&self, lane: &Lane) -> [u32; MEDIA] {
        self.tokens_of(lane.number())
    }

    /// The same by the lane's number.
    pub fn tokens_of(&self, lane: u32) -> [u32; MEDIA] {
        self.by_lane.get(lane as usize).map_or([0; MEDIA], |known| known.0)
    }

    /// How many of the prompt's blocks it has, in any medium.
    pub fn blocks(&self, lane: &Lane) -> usize {
        self.by_lane.get(lane.number() as usize).map_or(0, |known| known.1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn chain(family: u64, len: u64) -> Vec<BlockHash> {
        // Like those of blake3: all bits differ.
        (0..len).map(|i| BlockHash((family * 1000 + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect()
    }

    fn stored(chain: &[BlockHash], medium: Medium) -> Vec<Stored> {
        let one =
            |(i, hash): (usize, &BlockHash)| Stored { hash: *hash, tokens: 16 * (i as u32 + 1), medium };
        chain.iter().enumerate().map(one).collect()
    }

    fn look(index: &BlockIndex, chain: &[BlockHash], lane: &Lane) -> [u32; 3] {
        index.find(chain).tokens(lane)
    }

    #[test]
    fn each_replica_is_found_with_what_it_holds() {
        let index = BlockIndex::default();
        let (a, b, c) = (index.open(), index.open(), index.open());
        let prompt = chain(1, 40);
        index.store(&a, &stored(&prompt[..10], Medium::Device));
        index.store(&a, &stored(&prompt[..30], Medium::Disk));
        index.store(&b, &stored(&prompt[..11], Medium::Device));
        assert_eq!(look(&index, &prompt, &a), [160, 0, 480]);
        assert_eq!(look(&index, &prompt, &b), [176, 0, 0]);
        let found = index.find(&prompt);
        assert_eq!((found.blocks(&a), found.blocks(&b), found.blocks(&c)), (30, 11, 0));
        assert_eq!(look(&index, &prompt, &c), [0, 0, 0]);
        assert_eq!(look(&index, &chain(2, 40), &a), [0, 0, 0]);
        assert_eq!(look(&index, &[], &a), [0, 0, 0]);
        let tail: Vec<_> =
            prompt[5..10].iter().map(|hash| Removed { hash: *hash, medium: Medium::Device }).collect();
        index.remove(&a, &tail);
        index.remove(&a, &tail);
        assert_eq!(look(&index, &prompt, &a), [80, 0, 480]);
        assert_eq!((index.entries(), a.entries()), (46, 35));
    }

    #[test]
    fn a_gap_in_a_chain_hides_nothing() {
        let index = BlockIndex::default();
        let (a, b) = (index.open(), index.open());
        let prompt = chain(1, 200);
        let told: Vec<_> = stored(&prompt, Medium::Device).into_iter().enumerate().collect();
        // The first 80 are tools, from 110 on there is an image.
        let gap = |i: usize| i < 80 || (110..190).contains(&i);
        let upto = |end: usize| -> Vec<Stored> {
            told.iter().filter(|(i, _)| *i < end && !gap(*i)).map(|(_, s)| *s).collect()
        };
        index.store(&a, &upto(195));
        index.store(&b, &upto(120));
        assert_eq!(look(&index, &prompt, &a)[0], 195 * 16);
        assert_eq!(look(&index, &prompt, &b)[0], 110 * 16);
    }

    #[test]
    fn what_is_half_told_hides_nobody() {
        let index = BlockIndex::default();
        let (a, b, coming) = (index.open(), index.open(), index.open());
        let prompt = chain(1, 101);
        index.store(&a, &stored(&prompt[..100], Medium::Device));
        index.store(&b, &stored(&prompt[..50], Medium::Device));
        // Parts of a snapshot come in no order.
        index.store(&coming, &stored(&prompt, Medium::Device)[100..]);
        assert_eq!((look(&index, &prompt, &a)[0], look(&index, &prompt, &b)[0]), (1600, 800));
        // The end is in RAM alone, the beginning in the cache.
        index.store(&b, &stored(&prompt[..100], Medium::Ram));
        assert_eq!(look(&index, &prompt, &b), [800, 1600, 0]);
    }

    #[test]
    fn what_a_closed_lane_held_goes_and_its_number_comes_back() {
        let index = BlockIndex::default();
        let stays = index.open();
        index.store(&stays, &stored(&chain(0, 10), Medium::Device));
        for n in 0..2000u64 {
            let lane = index.open();
            index.store(&lane, &stored(&chain(n % 7, 60), Medium::Device));
            drop(lane);
            index.sweep();
        }
        assert!(index.entries() <= 10 + (MOST_CLOSED_FOR_TEST + 1) * 60, "{}", index.entries());
        assert!(index.open().number() <= MOST_CLOSED_FOR_TEST as u32 + 1);
        assert_eq!(look(&index, &chain(0, 10), &stays)[0], 160);
        assert_eq!(index.entries() - index.lanes.dead(), 10);
    }

    const MOST_CLOSED_FOR_TEST: usize = 1025;

    proptest! {
        /// Whatever is stored and removed, from the ends of chains: each replica is found with what it holds
        /// in each medium.
        #[test]
        fn all_that_is_held_is_found(
            held in prop::collection::vec((0usize..5, 0u64..3, 0u64..50, 0usize..3), 0..25),
            asked in (0u64..3, 0u64..60),
        ) {
            let index = BlockIndex::default();
            let lanes: Vec<Lane> = (0..5).map(|_| index.open()).collect();
            let mut truth: BTreeMap<(usize, u64, usize), u64> = BTreeMap::new();
            let media = strata_wire::engine_events::MEDIA;
            for (lane, family, len, medium) in held {
                let before = truth.insert((lane, family, medium), len).unwrap_or(0);
                let all = chain(family, 60);
                if len >= before {
                    index.store(&lanes[lane], &stored(&all[..len as usize], media[medium]));
                } else {
                    let gone = &all[len as usize..before as usize];
                    let gone: Vec<_> = gone.iter().map(|h| Removed { hash: *h, medium: media[medium] }).collect();
                    index.remove(&lanes[lane], &gone);
                }
            }
            prop_assert_eq!(index.entries() as u64, truth.values().sum::<u64>());
            let found = index.find(&chain(asked.0, asked.1));
            for (i, lane) in lanes.iter().enumerate() {
                let want = [0, 1, 2].map(|m| {
                    truth.get(&(i, asked.0, m)).map_or(0, |len| 16 * (*len).min(asked.1) as u32)
                });
                prop_assert_eq!(found.tokens(lane), want);
            }
        }
    }
}
