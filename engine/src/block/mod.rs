//! The paged KV cache's book-keeping: a fixed pool of physical blocks, how many sequences hold each,
//! and which full blocks can be found again by their hash.
//!
//! A block that nobody holds is free. A free block keeps its contents and its hash until it is taken
//! for something else, so "free" and "cached" are not opposites: the least recently released is taken
//! first, blocks without a hash before all others. Pure: no memory is touched here.

mod change;
mod hash;
mod recency;

use std::collections::HashMap;

pub use crate::backend::BLOCK_TOKENS;
pub use change::{Change, Full, Touch};
pub use hash::{BlockHash, HashChain};
pub(crate) use recency::Recency;

/// Blocks that `tokens` tokens fill, the last perhaps in part.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

#[derive(Clone, Debug, Default)]
struct Block {
    holders: u32,
    hash: Option<BlockHash>,
}

/// The physical blocks of one backend. Their number never changes.
#[derive(Clone, Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    free: Recency,
    cached: HashMap<BlockHash, u32>,
    prefix_cache: bool,
    changes: Vec<Change>,
    /// What became of the blocks, where somebody wants to know.
    touches: Option<Vec<Touch>>,
}

impl BlockPool {
    /// A pool of `total` free blocks. Without `prefix_cache` no block is ever found again.
    pub fn new(total: usize, prefix_cache: bool) -> Self {
        Self {
            blocks: vec![Block::default(); total],
            free: Recency::full(total),
            cached: HashMap::with_capacity(if prefix_cache { total } else { 0 }),
            prefix_cache,
            changes: Vec::new(),
            touches: None,
        }
    }

    /// All blocks.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody holds; all of them can be taken, whatever they still cache.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Full blocks that can be found by their hash.
    pub fn cached(&self) -> usize {
        self.cached.len()
    }

    /// Sequences that hold a block.
    pub fn holders(&self, block: u32) -> u32 {
        self.blocks[block as usize].holders
    }

    /// How many of these blocks, from the first on, are cached; and how many of those are free now,
    /// so that holding them makes fewer free.
    pub fn peek(&self, hashes: &[BlockHash]) -> Hit {
        let mut hit = Hit::default();
        for hash in hashes {
            let Some(&block) = self.cached.get(hash) else { break };
            hit.blocks += 1;
            hit.from_free += usize::from(self.holders(block) == 0);
        }
        hit
    }

    /// Takes hold of the cached block of this name.
    pub fn hold_cached(&mut self, hash: &BlockHash) -> Option<u32> {
        let block = *self.cached.get(hash)?;
        let entry = &mut self.blocks[block as usize];
        if entry.holders == 0 {
            self.free.remove(block);
        }
        entry.holders += 1;
        self.touch(Touch::Reused(block));
        Some(block)
    }

    /// Takes a free block for new contents, forgetting what it cached. `None` when all are held.
    pub fn allocate(&mut self) -> Option<u32> {
        let block = self.free.pop_first()?;
        let entry = &mut self.blocks[block as usize];
        entry.holders = 1;
        if let Some(hash) = entry.hash.take() {
            self.cached.remove(&hash);
            self.changes.push(Change::Removed { block, hash });
            self.touch(Touch::Evicted(block));
        }
        self.touch(Touch::Taken(block));
        Some(block)
    }

    /// Names a held block whose contents are now complete. When another block has the name already, that
    /// one stays the one to be found.
    pub fn name(&mut self, block: u32, hash: BlockHash, full: Full<'_>) {
        debug_assert!(self.holders(block) > 0);
        if self.prefix_cache && !self.cached.contains_key(&hash) {
            let previous = self.blocks[block as usize].hash.replace(hash);
            debug_assert!(previous.is_none());
            self.cached.insert(hash, block);
            self.changes.push(Change::stored(block, hash, full));
        }
    }

    /// What became findable and what no longer is, since this was last asked, in this order. Whoever
    /// runs the pool has to ask: the list grows until then.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Notes from now on what becomes of each block. Whoever asks for it has to take the notes: the list
    /// grows until then.
    pub fn watch(&mut self) {
        self.touches.get_or_insert_default();
    }

    /// What became of the blocks since this was last asked, in this order.
    pub fn take_touches(&mut self) -> Vec<Touch> {
        self.touches.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn touch(&mut self, touch: Touch) {
        if let Some(touches) = &mut self.touches {
            touches.push(touch);
        }
    }

    /// Forgets every name: nothing is found again. Who holds a block keeps it.
    pub fn forget(&mut self) {
        for (hash, block) in self.cached.drain() {
            self.blocks[block as usize].hash = None;
            self.changes.push(Change::Removed { block, hash });
        }
        self.changes.push(Change::Cleared);
    }

    /// Lets go of a block. With its last holder gone it is free.
    pub fn release(&mut self, block: u32) {
        let entry = &mut self.blocks[block as usize];
        entry.holders =
            entry.holders.checked_sub(1).expect("a block is released once for each time it was taken");
        if entry.holders == 0 {
            if entry.hash.is_some() {
                self.free.push_last(block);
            } else {
                self.free.push_first(block);
            }
        }
    }

    /// Lets go of a sequence's blocks, the last first, so that the end of a prefix is lost before its
    /// beginning, without which it could not be found.
    pub fn release_all(&mut self, blocks: &[u32]) {
        for &block in blocks.iter().rev() {
            self.release(block);
        }
    }
}

/// What [`BlockPool::peek`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hit {
    /// Cached blocks.
    pub blocks: usize,
    /// Those among them that nobody holds.
    pub from_free: usize,
}

#[cfg(test)]
mod tests;
