//! Names of full blocks. A block's hash covers every token before it, so that equal hashes mean equal
//! prefixes and a block can be shared by its name alone: the full 256 bits of blake3 stand in for a
//! comparison of the tokens.

use super::BLOCK_TOKENS;
use crate::lora::AdapterKey;

/// The name of one full block and of everything before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockHash([u8; 32]);

impl BlockHash {
    /// What the first block of a sequence hangs on. Sequences of different scopes share nothing.
    pub fn root(cache_salt: Option<&str>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("strata engine kv block v1");
        match cache_salt {
            // A length or a flag keeps "no salt" apart from an empty one.
            Some(salt) => hasher.update(&[1]).update(salt.as_bytes()),
            None => hasher.update(&[0]),
        };
        Self(*hasher.finalize().as_bytes())
    }

    /// The same for sequences that run with an adapter. They share only with those of an adapter of the
    /// same name and the same weights: one that is loaded again with others begins anew.
    pub fn root_with(cache_salt: Option<&str>, adapter: Option<&AdapterKey>) -> Self {
        let root = Self::root(cache_salt);
        let Some(adapter) = adapter else { return root };
        let mut hasher = blake3::Hasher::new_derive_key("strata engine kv block of an adapter v1");
        hasher.update(&root.0).update(&adapter.digest).update(adapter.name.as_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// The name as bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The name that these bytes are.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The name of the block that follows this one and holds these tokens.
    #[must_use]
    pub fn child(&self, tokens: &[u32]) -> Self {
        debug_assert_eq!(tokens.len(), BLOCK_TOKENS);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }
}

/// The hashes of a growing token list, one for each full block.
#[derive(Clone, Debug)]
pub struct HashChain {
    root: BlockHash,
    hashes: Vec<BlockHash>,
}

impl HashChain {
    /// A chain of no blocks in this scope.
    pub fn new(cache_salt: Option<&str>) -> Self {
        Self::with(cache_salt, None)
    }

    /// The same for sequences that run with an adapter.
    pub fn with(cache_salt: Option<&str>, adapter: Option<&AdapterKey>) -> Self {
        Self { root: BlockHash::root_with(cache_salt, adapter), hashes: Vec::new() }
    }

    /// Hashes the full blocks of `tokens` that have no hash yet. `tokens` must only ever grow.
    pub fn extend(&mut self, tokens: &[u32]) {
        while let Some(block) =
            tokens.get(self.hashes.len() * BLOCK_TOKENS..(self.hashes.len() + 1) * BLOCK_TOKENS)
        {
            let parent = self.hashes.last().unwrap_or(&self.root);
            self.hashes.push(parent.child(block));
        }
    }

    /// The hashes so far.
    pub fn hashes(&self) -> &[BlockHash] {
        &self.hashes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::AdapterId;

    #[test]
    fn equal_prefixes_share_names_and_scopes_do_not() {
        let tokens: Vec<u32> = (0..50).collect();
        let mut other = tokens.clone();
        other[20] = 99;
        let chain = |salt, tokens: &[u32]| {
            let mut c = HashChain::new(salt);
            c.extend(tokens);
            c.hashes().to_vec()
        };
        let (a, b) = (chain(None, &tokens), chain(None, &other));
        assert_eq!(a.len(), 3);
        assert_eq!(a[0], b[0]);
        assert_ne!(a[1], b[1]);
        assert_ne!(a[2], b[2], "a block's name covers what is before it");
        assert_ne!(a[0], chain(Some("t1"), &tokens)[0]);
        assert_ne!(chain(Some("t2"), &tokens)[0], chain(Some("t1"), &tokens)[0]);
        assert_ne!(a[0], chain(Some(""), &tokens)[0]);
    }

    #[test]
    fn an_adapter_shares_with_its_like_alone() {
        let root = |salt, name: &str, digest: u8, id| {
            let (id, name) = (AdapterId(id), name.into());
            let key = AdapterKey { id, name, number: 1, digest: [digest; 32] };
            BlockHash::root_with(salt, Some(&key))
        };
        let first = root(None, "a", 1, 1);
        assert_eq!(first, root(None, "a", 1, 2), "loaded again, and the same");
        for other in [root(None, "b", 1, 1), root(None, "a", 2, 1), root(Some(""), "a", 1, 1)] {
            assert_ne!(first, other);
        }
        assert_ne!(first, BlockHash::root(None));
        assert_eq!(BlockHash::root_with(Some("s"), None), BlockHash::root(Some("s")));
    }

    #[test]
    fn growing_equals_whole() {
        let tokens: Vec<u32> = (0..64).collect();
        let mut grown = HashChain::new(Some("s"));
        for end in 0..=64 {
            grown.extend(&tokens[..end]);
            assert_eq!(grown.hashes().len(), end / BLOCK_TOKENS);
        }
        let mut whole = HashChain::new(Some("s"));
        whole.extend(&tokens);
        assert_eq!(grown.hashes(), whole.hashes());
    }
}
