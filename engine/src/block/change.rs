//! What happens to the findable blocks, as the tiers below the pool and the event streams are told.

use std::sync::Arc;

use super::{BLOCK_TOKENS, BlockHash};
use crate::lora::AdapterKey;

/// One change to which blocks the pool can find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A full block can be found from now on.
    Stored {
        /// Where it is.
        block: u32,
        /// Its name.
        hash: BlockHash,
        /// The name of the block before it; none for a sequence's first.
        parent: Option<BlockHash>,
        /// The tokens whose keys and values it holds.
        tokens: [u32; BLOCK_TOKENS],
        /// The adapter that they were computed with.
        adapter: Option<Arc<AdapterKey>>,
        /// The cache salt that keeps the sequence apart from others; of a sequence's first block alone.
        salt: Option<Arc<str>>,
    },
    /// A block was taken for something else. Its contents are in place until the next step runs.
    Removed {
        /// Where it was.
        block: u32,
        /// Its name.
        hash: BlockHash,
    },
    /// All were forgotten at once; each that could be found was told as removed just before.
    Cleared,
}

impl Change {
    pub(super) fn stored(block: u32, hash: BlockHash, full: Full<'_>) -> Self {
        let Full { parent, tokens, adapter, salt } = full;
        debug_assert_eq!(tokens.len(), BLOCK_TOKENS);
        let mut own = [0; BLOCK_TOKENS];
        own.iter_mut().zip(tokens).for_each(|(to, from)| *to = *from);
        let salt = salt.filter(|_| parent.is_none()).cloned();
        Self::Stored { block, hash, parent, tokens: own, adapter: adapter.cloned(), salt }
    }
}

/// What a full block holds.
#[derive(Clone, Copy, Debug)]
pub struct Full<'a> {
    /// The name of the block before it; none for a sequence's first.
    pub parent: Option<BlockHash>,
    /// The tokens whose keys and values it holds, 16 of them.
    pub tokens: &'a [u32],
    /// The adapter that they were computed with.
    pub adapter: Option<&'a Arc<AdapterKey>>,
    /// The cache salt of their sequence.
    pub salt: Option<&'a Arc<str>>,
}

/// What becomes of a block, for those who count how long blocks are of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// It was taken for new contents.
    Taken(u32),
    /// Its contents were found again.
    Reused(u32),
    /// Its contents, which could have been found again, were given up.
    Evicted(u32),
}
