//! Blocks in the host's memory, the least recently used first out.

use std::collections::HashMap;

use crate::block::{BlockHash, Recency};

/// At most so many blocks' bytes. Memory is taken as it is first needed, and used again.
#[derive(Debug)]
pub struct RamTier {
    slots: Vec<Slot>,
    /// Slots that there may be.
    limit: usize,
    places: HashMap<BlockHash, u32>,
    /// All slots, the one to be used next first.
    order: Recency,
}

#[derive(Debug, Default)]
struct Slot {
    hash: Option<BlockHash>,
    bytes: Vec<u8>,
}

impl RamTier {
    /// A tier of so many blocks.
    pub fn new(blocks: usize) -> Self {
        let limit = blocks.min(u32::MAX as usize - 1);
        Self { slots: Vec::new(), limit, places: HashMap::new(), order: Recency::full(0) }
    }

    /// Whether it has a block.
    pub fn has(&self, hash: &BlockHash) -> bool {
        self.places.contains_key(hash)
    }

    /// Keeps what `fill` writes as a block that it does not have. `spill` gets the block that has to go
    /// for it, if any.
    pub fn put(
        &mut self,
        hash: BlockHash,
        fill: impl FnOnce(&mut Vec<u8>),
        spill: impl FnOnce(BlockHash, &[u8]),
    ) {
        debug_assert!(!self.has(&hash));
        if self.slots.len() < self.limit {
            self.slots.push(Slot::default());
            self.order.grow();
        }
        let Some(place) = self.order.pop_first() else { return };
        let slot = &mut self.slots[place as usize];
        if let Some(old) = slot.hash.replace(hash) {
            self.places.remove(&old);
            spill(old, &slot.bytes);
        }
        slot.bytes.clear();
        fill(&mut slot.bytes);
        self.places.insert(hash, place);
        self.order.push_last(place);
    }

    /// A block's bytes, which are thereby the most recently used.
    pub fn get(&mut self, hash: &BlockHash) -> Option<&[u8]> {
        let place = *self.places.get(hash)?;
        self.order.remove(place);
        self.order.push_last(place);
        Some(&self.slots[place as usize].bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::HashChain;

    #[test]
    fn the_least_recently_used_goes_first_and_is_handed_on() {
        let mut chain = HashChain::new(None);
        chain.extend(&[7; 64]);
        let names = chain.hashes();
        let mut tier = RamTier::new(2);
        let put = |tier: &mut RamTier, i: usize| {
            let mut spilled = None;
            let fill = |bytes: &mut Vec<u8>| bytes.extend([i as u8; 3]);
            tier.put(names[i], fill, |hash, bytes| spilled = Some((hash, bytes.to_vec())));
            spilled
        };
        assert_eq!((put(&mut tier, 0), put(&mut tier, 1)), (None, None));
        assert_eq!(tier.get(&names[0]), Some(&[0; 3][..]));
        assert_eq!(put(&mut tier, 2), Some((names[1], vec![1; 3])));
        assert!(tier.has(&names[0]) && !tier.has(&names[1]) && tier.get(&names[1]).is_none());
        assert_eq!(tier.get(&names[2]), Some(&[2; 3][..]));
        assert_eq!(put(&mut tier, 3), Some((names[0], vec![0; 3])));
        let mut endless = RamTier::new(usize::MAX);
        assert_eq!(put(&mut endless, 0), None, "nothing is taken for blocks that may never come");
        assert_eq!(endless.get(&names[0]), Some(&[0; 3][..]));
        tier = RamTier::new(0);
        assert_eq!(put(&mut tier, 0), None);
        assert!(!tier.has(&names[0]));
    }
}
