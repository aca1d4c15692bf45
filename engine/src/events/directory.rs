//! Which byte blocks are stored where: the token blocks of every tier, and what requests have said of
//! them. Pure.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use strata_wire::engine_events::{BlockChanges, MEDIA, Medium, Removed, Stored};
use strata_wire::prefix;

use super::Claim;
use crate::block::{BLOCK_TOKENS, BlockHash};
use crate::lora::AdapterId;

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
    /// The adapter that the names are of.
    adapter: Option<AdapterId>,
}

impl Block {
    fn is_idle(&self) -> bool {
        self.requests == 0 && self.media == [false; MEDIA.len()]
    }
}

impl Directory {
    /// Notes what a request says of its prompt, whose full token blocks have these names, and which runs
    /// with this adapter. Returns those of them that it speaks of, for [`Directory::forget`].
    pub fn claim(
        &mut self,
        claims: &[Claim],
        names: &[BlockHash],
        adapter: Option<AdapterId>,
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
            block.adapter = adapter;
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

    /// Notes that an adapter is no longer what its name stands for: a byte block, which knows the name
    /// alone, no longer tells of what was computed with it.
    pub fn retire(&mut self, adapter: AdapterId, changes: &mut BlockChanges) {
        for block in self.blocks.values_mut().filter(|block| block.adapter == Some(adapter)) {
            let names = std::mem::take(&mut block.names);
            for (medium, _) in MEDIA.into_iter().zip(block.media).filter(|(_, there)| *there) {
                for (hash, _) in &names {
                    drop_one(&mut self.said, (*hash, medium), changes);
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
            drop_one(&mut self.said, (*hash, medium), changes);
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

/// One token block less holds a byte block.
fn drop_one(said: &mut Said, key: (prefix::BlockHash, Medium), changes: &mut BlockChanges) {
    let Entry::Occupied(mut entry) = said.entry(key) else { return };
    entry.get_mut().1 -= 1;
    if entry.get().1 == 0 {
        entry.remove();
        unsay(key.0, key.1, changes);
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
    fn what_an_adapter_that_is_gone_had_computed_is_no_longer_told() {
        let (mut directory, own, other) = (Directory::default(), names(1, 2), names(2, 2));
        let mut changes = BlockChanges::default();
        let (gone, stays) = (Some(AdapterId(1)), Some(AdapterId(2)));
        directory.claim(&[claim(1, 16), claim(2, 32)], &own, gone, &mut changes);
        directory.claim(&[claim(2, 32)], &other, stays, &mut changes);
        own.iter().chain(&other).for_each(|name| directory.stored(*name, Medium::Device, &mut changes));
        let told = |directory: &Directory| {
            let mut hashes: Vec<u64> = directory.snapshot().iter().map(|s| s.hash.0).collect();
            hashes.sort_unstable();
            hashes
        };
        assert_eq!(told(&directory), [1, 2]);
        let mut changes = BlockChanges::default();
        directory.retire(AdapterId(1), &mut changes);
        assert_eq!(told(&directory), [2], "the other still holds it");
        assert_eq!(changes.removed, [Removed { hash: prefix::BlockHash(1), medium: Medium::Device }]);
        directory.removed(&own[0], Medium::Device, &mut changes);
        directory.claim(&[claim(9, 32)], &own, stays, &mut changes);
        assert_eq!(told(&directory), [2, 9], "the same weights, served again");
    }

    #[test]
    fn a_byte_block_is_stored_with_the_last_token_block_inside_it() {
        let (mut directory, names) = (Directory::default(), names(1, 3));
        let mut changes = BlockChanges::default();
        let claimed =
            directory.claim(&[claim(1, 15), claim(2, 40), claim(3, 99)], &names, None, &mut changes);
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
        let other = directory.claim(&[claim(7, 33)], &names, None, &mut changes);
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
                        open.push(directory.claim(&claims, &names(family, 4), None, &mut changes));
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
