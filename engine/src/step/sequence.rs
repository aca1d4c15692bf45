//! One sequence as the planner sees it: tokens, how far they are computed, and its blocks.

use std::sync::Arc;

use crate::block::{BLOCK_TOKENS, BlockHash, BlockPool, HashChain};

/// A sequence's identity inside one planner, never used twice; later sequences have larger ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// The order in which sequences are served: lower priority values first, then arrival.
pub(super) type Order = (i64, SequenceId);

#[derive(Debug)]
pub(super) struct Sequence {
    /// Prompt and generated tokens.
    pub(super) tokens: Vec<u32>,
    /// Tokens whose keys and values are in the cache.
    pub(super) computed: usize,
    /// Physical blocks of the first tokens.
    pub(super) blocks: Vec<u32>,
    /// Blocks among them that have their name.
    named: usize,
    /// Whether it was admitted before, and then preempted.
    pub(super) admitted: bool,
    chain: HashChain,
    /// The same as `blocks`, as the backend takes it; rebuilt only after they changed.
    table: Option<Arc<[u32]>>,
}

impl Sequence {
    pub(super) fn new(tokens: Vec<u32>, cache_salt: Option<&str>, prefix_cache: bool) -> Self {
        let mut chain = HashChain::new(cache_salt);
        if prefix_cache {
            chain.extend(&tokens);
        }
        Self { tokens, computed: 0, blocks: Vec::new(), named: 0, admitted: false, chain, table: None }
    }

    /// Tokens that must be run before the next one can be sampled: never zero.
    pub(super) fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Names of the full blocks that may come from the cache. The last token is always computed,
    /// because its logits are needed.
    pub(super) fn reusable(&self) -> &[BlockHash] {
        let hashes = self.chain.hashes();
        &hashes[..hashes.len().min((self.tokens.len() - 1) / BLOCK_TOKENS)]
    }

    /// Names of the blocks that this sequence is going to complete with tokens it already has.
    pub(super) fn unnamed(&self) -> &[BlockHash] {
        self.chain.hashes().get(self.named..).unwrap_or_default()
    }

    /// Takes hold of what the cache has of its beginning. Returns the tokens that it saves.
    pub(super) fn reuse(&mut self, pool: &mut BlockPool) -> usize {
        debug_assert!(self.blocks.is_empty() && self.computed == 0);
        let blocks: Vec<u32> = self.reusable().iter().map_while(|hash| pool.hold_cached(hash)).collect();
        self.blocks = blocks;
        self.named = self.blocks.len();
        self.computed = self.blocks.len() * BLOCK_TOKENS;
        self.table = None;
        self.computed
    }

    /// Takes the blocks that it needs for its first `tokens` tokens, or none at all.
    pub(super) fn grow(&mut self, pool: &mut BlockPool, tokens: usize) -> bool {
        let missing = crate::block::blocks_for(tokens).saturating_sub(self.blocks.len());
        if missing > pool.free() {
            return false;
        }
        if missing > 0 {
            self.blocks.extend((0..missing).map_while(|_| pool.allocate()));
            self.table = None;
        }
        true
    }

    /// Notes that `tokens` more are computed and names the blocks that became full.
    pub(super) fn advance(&mut self, pool: &mut BlockPool, tokens: usize, prefix_cache: bool) {
        self.computed += tokens;
        if !prefix_cache {
            return;
        }
        let full = self.computed / BLOCK_TOKENS;
        if full > self.named {
            self.chain.extend(&self.tokens);
            for i in self.named..full {
                pool.name(self.blocks[i], self.chain.hashes()[i]);
            }
            self.named = full;
        }
    }

    /// Gives all blocks back; everything must be computed again, or found in the cache.
    pub(super) fn reset(&mut self, pool: &mut BlockPool) {
        pool.release_all(&self.blocks);
        self.blocks.clear();
        self.computed = 0;
        self.named = 0;
        self.table = None;
    }

    pub(super) fn table(&mut self) -> Arc<[u32]> {
        self.table.get_or_insert_with(|| Arc::from(self.blocks.as_slice())).clone()
    }
}
