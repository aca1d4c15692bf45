//! One sequence as the planner sees it: tokens, how far they are computed, and its blocks.

use std::sync::Arc;

use super::loads::Awaited;
use super::plan::NewSequence;
use crate::block::{BLOCK_TOKENS, BlockHash, BlockPool, Full, HashChain};
use crate::lora::AdapterKey;

/// A sequence's identity inside one planner, never used twice; later sequences have larger ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

#[derive(Debug)]
pub(super) struct Sequence {
    /// Prompt and generated tokens.
    pub(super) tokens: Vec<u32>,
    /// Tokens whose keys and values are in the cache.
    pub(super) computed: usize,
    /// Tokens of which it had them when it last began.
    begun_with: usize,
    /// Physical blocks of the first tokens. A step shares them with the backend; between steps they
    /// are held here alone and grow in place.
    pub(super) blocks: Arc<Vec<u32>>,
    /// Guesses of the tokens to come, for the next step.
    pub(super) drafts: Vec<u32>,
    /// Blocks among them that have their name.
    named: usize,
    /// Tokens of the prompt whose logits are wanted, all of it or none.
    pub(super) scored: usize,
    /// Whether it was admitted before, and then preempted.
    pub(super) admitted: bool,
    /// Blocks that are on their way from below the pool.
    pub(super) awaited: Awaited,
    /// The adapter that it runs with.
    pub(super) adapter: Option<Arc<AdapterKey>>,
    salt: Option<Arc<str>>,
    chain: HashChain,
}

impl Sequence {
    pub(super) fn new(new: NewSequence, prefix_cache: bool) -> Self {
        let NewSequence { tokens, cache_salt, scored, adapter, priority: _ } = new;
        let mut chain = HashChain::with(cache_salt.as_deref(), adapter.as_deref());
        if prefix_cache {
            chain.extend(&tokens);
        }
        Self {
            computed: 0,
            begun_with: 0,
            blocks: Arc::default(),
            drafts: Vec::new(),
            named: 0,
            scored: if scored { tokens.len() } else { 0 },
            admitted: false,
            awaited: Awaited::default(),
            adapter,
            salt: cache_salt.map(Arc::from),
            chain,
            tokens,
        }
    }

    /// Tokens that must be run before the next one can be sampled: never zero.
    pub(super) fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Tokens that it was to run when it last began, before the next one could be sampled.
    pub(super) fn to_read(&self) -> usize {
        self.tokens.len() - self.begun_with
    }

    /// It begins with what it has.
    pub(super) fn begin(&mut self) {
        self.begun_with = self.computed;
    }

    /// Whether the next token to run is one of the prompt whose logits say how likely the one after it
    /// was.
    pub(super) fn is_scored(&self) -> bool {
        self.computed + 1 < self.scored
    }

    /// Names of the full blocks that may come from the cache. The last token is always computed,
    /// because its logits are needed.
    pub(super) fn reusable(&self) -> &[BlockHash] {
        if self.scored > 0 {
            return &[];
        }
        let hashes = self.chain.hashes();
        &hashes[..hashes.len().min((self.tokens.len() - 1) / BLOCK_TOKENS)]
    }

    /// Whether it has, or is going to have, a full block of this name at this place.
    pub(super) fn completes(&self, at: usize, name: &BlockHash) -> bool {
        self.chain.hashes().get(at) == Some(name)
    }

    /// Takes hold of what the cache has of its beginning. Returns the tokens that it saves.
    pub(super) fn reuse(&mut self, pool: &mut BlockPool) -> usize {
        debug_assert!(self.blocks.is_empty() && self.computed == 0);
        let blocks: Vec<u32> = self.reusable().iter().map_while(|hash| pool.hold_cached(hash)).collect();
        self.named = blocks.len();
        self.computed = blocks.len() * BLOCK_TOKENS;
        self.blocks = Arc::new(blocks);
        self.begin();
        self.computed
    }

    /// Takes a block for each of the next `count` names: which, and where they are to be.
    pub(super) fn reserve(&mut self, pool: &mut BlockPool, count: usize) -> Vec<(BlockHash, u32)> {
        let names = self.chain.hashes()[self.named..].iter().take(count);
        let taken: Vec<_> = names.map_while(|name| Some((*name, pool.allocate()?))).collect();
        Arc::make_mut(&mut self.blocks).extend(taken.iter().map(|(_, block)| *block));
        taken
    }

    /// Takes the blocks that it needs for its first `tokens` tokens, or none at all.
    pub(super) fn grow(&mut self, pool: &mut BlockPool, tokens: usize) -> bool {
        let missing = crate::block::blocks_for(tokens).saturating_sub(self.blocks.len());
        if missing > pool.free() {
            return false;
        }
        if missing > 0 {
            Arc::make_mut(&mut self.blocks).extend((0..missing).map_while(|_| pool.allocate()));
        }
        true
    }

    /// Gives back the blocks that only guesses had needed.
    pub(super) fn trim(&mut self, pool: &mut BlockPool) {
        let needed = crate::block::blocks_for(self.tokens.len());
        if self.blocks.len() > needed {
            pool.release_all(&self.blocks[needed..]);
            Arc::make_mut(&mut self.blocks).truncate(needed);
        }
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
            let hashes = self.chain.hashes();
            for i in self.named..full {
                let parent = i.checked_sub(1).map(|before| hashes[before]);
                let tokens = &self.tokens[i * BLOCK_TOKENS..(i + 1) * BLOCK_TOKENS];
                let (adapter, salt) = (self.adapter.as_ref(), self.salt.as_ref());
                let full = Full { parent, tokens, adapter, salt };
                pool.name(self.blocks[i], hashes[i], full);
            }
            self.named = full;
        }
    }

    /// Gives all blocks back; everything must be computed again, or found in the cache.
    pub(super) fn reset(&mut self, pool: &mut BlockPool) {
        pool.release_all(&self.blocks);
        self.blocks = Arc::default();
        self.drafts.clear();
        self.computed = 0;
        self.named = 0;
        self.awaited.clear();
    }
}
