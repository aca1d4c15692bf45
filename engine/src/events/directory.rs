//! Which byte blocks are stored where: the token blocks of every tier, and what requests have said of
//! them. Pure.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use strata_wire::engine_events::{BlockChanges, MEDIA, Medium, Removed, Stored};
use strata_wire::prefix;

use super::Claim;
use crate::block::{BLOCK_TOKENS, BlockHash};

/// Byte blocks that one token block is known by. The same tokens seldom come of several texts.
const MAX_NAMES: usize = 8;

/// Token blocks by medium, with the byte blocks that end in them.
#[derive(Debug, Default)]
pub struct Directory {
    blocks: HashMap<BlockHash, Block>,
    /// For a byte block and a medium: the most tokens that were said, and the token blocks that hold it.
    said: HashMap<(prefix::BlockHash, Medium), (u32, u32)>,
}

#[derive(Debug, Default)]
struct Block {
    media: [bool; MEDIA.len()],
    names: Vec<(prefix::BlockHash, u32)>,
    /// Requests that are about to compute it, or to use it.
    requests: u32,
}

impl Block {
    fn is_idle(&self) -> bool {
        self.requests == 0 && self.media == [false; MEDIA.len()]
    }
}

impl Directory {
    /// Notes what a request says of its prompt, whose full token blocks have these names. Returns those
    /// of them that it speaks of, for [`Directory::forget`].
    pub fn claim(
        &mut self,
        claims: &[Claim],
        names: &[BlockHash],
        changes: &mut BlockChanges,
    ) -> Vec<BlockHash> {
        let mut claimed: Vec<BlockHash> = Vec::new();
        for claim in claims {
            let blocks = (claim.tokens as usize / BLOCK_TOKENS).min(names.len());
            let Some(name) = blocks.checked_sub(1).map(|last| names[last]) else { continue };
            let tokens = (blocks * BLOCK_TOKENS) as u32;
            let block = self.blocks.entry(name).or_default();
            if claimed.last() != Some(&name) {
                claimed.push(name);
                block.requests += 1;
            }
            let known = block.names.iter().any(|(hash, _)| *hash == claim.hash);
            if known || block.names.len() == MAX_NAMES {
                continue;
            }
            block.names.push((claim.hash, tokens));
            for (medium, _) in MEDIA.into_iter().zip(block.media).filter(|(_, there)| *there) {
                say(&mut self.said, (claim.hash, medium), tokens, changes);
            }
        }
        claimed
    }

    /// Notes that a request is over.
    pub fn forget(&mut self, claimed: &[BlockHash]) {
        for name in claimed {
            if let Entry::Occupied(mut block) = self.blocks.entry(*name) {
                block.get_mut().requests = block.get().requests.saturating_sub(1);
                if block.get().is_idle() {
                    block.remove();
                }
            }
        }
    }

    /// Notes that a token block is in a medium now.
    pub fn stored(&mut self, name: BlockHash, medium: Medium, changes: &mut BlockChanges) {
        let block = self.blocks.entry(name).or_default();
        if std::mem::replace(&mut block.media[medium as usize], true) {
            return;
        }
        for &(hash, tokens) in &block.names {
            say(&mut self.said, (hash, medium), tokens, changes);
        }
    }

    /// Notes that a token block is no longer in a medium.
    pub fn removed(&mut self, name: &BlockHash, medium: Medium, changes: &mut BlockChanges) {
        let Entry::Occupied(mut entry) = self.blocks.entry(*name) else { return };
        if !std::mem::replace(&mut entry.get_mut().media[medium as usize], false) {
            return;
        }
        for (hash, _) in &entry.get().names {
            let Entry::Occupied(mut said) = self.said.entry((*hash, medium)) else { continue };
            said.get_mut().1 -= 1;
            if said.get().1 == 0 {
                said.remove();
                unsay(*hash, medium, changes);
            }
        }
        if entry.get().is_idle() {
            entry.remove();
        }
    }

    /// Everything that is stored.
    pub fn snapshot(&self) -> Vec<Stored> {
        let stored = |(&(hash, medium), &(tokens, _)): (&(_, _), &(_, _))| Stored { hash, tokens, medium };
        self.said.iter().map(stored).collect()
    }

    /// Token blocks that it knows.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.blocks.len()
    }
}

type Said = HashMap<(prefix::BlockHash, Medium), (u32, u32)>;

fn say(said: &mut Said, key: (prefix::BlockHash, Medium), tokens: u32, changes: &mut BlockChanges) {
    let entry = said.entry(key).or_default();
    entry.1 += 1;
    if tokens > entry.0 {
        entry.0 = tokens;
        let (hash, medium) = key;
        // What left and came back at once has not left.
        changes.removed.retain(|r| (r.hash, r.medium) != key);
        changes.stored.push(Stored { hash, tokens, medium });
    }
}

fn unsay(hash: prefix::BlockHash, medium: Medium, changes: &mut BlockChanges) {
    changes.stored.retain(|s| (s.hash, s.medium) != (hash, medium));
    changes.removed.push(Removed { hash, medium });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::block::HashChain;

    fn names(family: u32, blocks: usize) -> Vec<BlockHash> {
        let mut chain = HashChain::new(None);
        chain.extend(&vec![family; blocks * BLOCK_TOKENS]);
        chain.hashes().to_vec()
    }

    fn claim(hash: u64, tokens: u32) -> Claim {
        Claim { hash: prefix::BlockHash(hash), tokens }
    }

    #[test]
    fn a_byte_block_is_stored_with_the_last_token_block_inside_it() {
        let (mut directory, names) = (Directory::default(), names(1, 3));
        let mut changes = BlockChanges::default();
        let claimed = directory.claim(&[claim(1, 15), claim(2, 40), claim(3, 99)], &names, &mut changes);
        assert_eq!(claimed, [names[1], names[2]], "15 tokens fill no block");
        directory.stored(names[0], Medium::Device, &mut changes);
        assert_eq!(changes, BlockChanges::default());
        directory.stored(names[1], Medium::Device, &mut changes);
        let stored = |hash, tokens, medium| Stored { hash: prefix::BlockHash(hash), tokens, medium };
        assert_eq!(changes.stored, [stored(2, 32, Medium::Device)]);
        directory.stored(names[2], Medium::Disk, &mut changes);
        assert_eq!(changes.stored[1], stored(3, 48, Medium::Disk));
        // A second text with the same tokens is told at once, and both go when the block goes.
        let mut changes = BlockChanges::default();
        let other = directory.claim(&[claim(7, 33)], &names, &mut changes);
        assert_eq!(changes.stored, [stored(7, 32, Medium::Device)]);
        directory.removed(&names[1], Medium::Device, &mut changes);
        let removed = |hash| Removed { hash: prefix::BlockHash(hash), medium: Medium::Device };
        assert_eq!((changes.stored.len(), changes.removed), (0, vec![removed(2), removed(7)]));
        assert_eq!(directory.snapshot(), [stored(3, 48, Medium::Disk)]);
        directory.forget(&claimed);
        directory.forget(&other);
        directory.removed(&names[0], Medium::Device, &mut BlockChanges::default());
        assert_eq!(directory.len(), 1);
    }

    #[derive(Clone, Debug)]
    enum Call {
        Claim(u32, u64, u32),
        Forget(usize),
        Stored(u32, usize, usize),
        Removed(u32, usize, usize),
    }

    fn call() -> impl Strategy<Value = Call> {
        prop_oneof![
            (0u32..3, 0u64..6, 0u32..70).prop_map(|(f, h, t)| Call::Claim(f, h, t)),
            (0usize..9).prop_map(Call::Forget),
            (0u32..3, 0usize..4, 0usize..3).prop_map(|(f, b, m)| Call::Stored(f, b, m)),
            (0u32..3, 0usize..4, 0usize..3).prop_map(|(f, b, m)| Call::Removed(f, b, m)),
        ]
    }

    proptest! {
        /// Who follows the changes has what the snapshot says, and nothing is kept of what is gone.
        #[test]
        fn changes_add_up_to_the_snapshot(calls in proptest::collection::vec(call(), 1..80)) {
            let mut directory = Directory::default();
            let mut followed: HashMap<(prefix::BlockHash, Medium), u32> = HashMap::new();
            let mut open: Vec<Vec<BlockHash>> = Vec::new();
            let mut stored: Vec<(BlockHash, Medium)> = Vec::new();
            for call in calls {
                let mut changes = BlockChanges::default();
                match call {
                    Call::Claim(family, hash, tokens) => {
                        let claims = [claim(hash, tokens)];
                        open.push(directory.claim(&claims, &names(family, 4), &mut changes));
                    }
                    Call::Forget(at) if !open.is_empty() => {
                        let claimed = open.remove(at % open.len());
                        directory.forget(&claimed);
                    }
                    Call::Forget(_) => {}
                    Call::Stored(family, block, medium) => {
                        let key = (names(family, 4)[block], MEDIA[medium]);
                        directory.stored(key.0, key.1, &mut changes);
                        if !stored.contains(&key) {
                            stored.push(key);
                        }
                    }
                    Call::Removed(family, block, medium) => {
                        let key = (names(family, 4)[block], MEDIA[medium]);
                        directory.removed(&key.0, key.1, &mut changes);
                        stored.retain(|other| *other != key);
                    }
                }
                for s in &changes.stored { followed.insert((s.hash, s.medium), s.tokens); }
                for r in &changes.removed { followed.remove(&(r.hash, r.medium)); }
                let now: HashMap<_, _> =
                    directory.snapshot().into_iter().map(|s| ((s.hash, s.medium), s.tokens)).collect();
                prop_assert_eq!(&now, &followed);
            }
            for claimed in open { directory.forget(&claimed); }
            for (name, medium) in stored { directory.removed(&name, medium, &mut BlockChanges::default()); }
            prop_assert_eq!((directory.len(), directory.snapshot().len()), (0, 0));
        }
    }
}
