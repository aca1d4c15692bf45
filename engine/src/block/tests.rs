use super::*;
use proptest::prelude::*;

fn chain(tokens: &[u32]) -> Vec<BlockHash> {
    let mut chain = HashChain::new(None);
    chain.extend(tokens);
    chain.hashes().to_vec()
}

/// Takes the blocks of a prompt as the planner does: cached ones first, then new ones, all named.
fn take(pool: &mut BlockPool, hashes: &[BlockHash]) -> Option<Vec<u32>> {
    let hit = pool.peek(hashes);
    if hashes.len() - hit.blocks + hit.from_free > pool.free() {
        return None;
    }
    let mut blocks: Vec<u32> = hashes[..hit.blocks].iter().map(|h| pool.hold_cached(h).unwrap()).collect();
    for hash in &hashes[hit.blocks..] {
        let block = pool.allocate().unwrap();
        pool.name(block, *hash, Full { parent: None, tokens: &[0; BLOCK_TOKENS], adapter: None, salt: None });
        blocks.push(block);
    }
    Some(blocks)
}

#[test]
fn a_shared_prefix_is_the_same_physical_blocks() {
    let mut pool = BlockPool::new(64, true);
    let shared: Vec<u32> = (0..384).collect();
    let a: Vec<u32> = shared.iter().copied().chain(1000..1128).collect();
    let b: Vec<u32> = shared.iter().copied().chain(2000..2128).collect();
    let a = take(&mut pool, &chain(&a)).unwrap();
    let b = take(&mut pool, &chain(&b)).unwrap();
    assert_eq!(a[..24], b[..24]);
    assert!(a[24..].iter().all(|block| !b.contains(block)));
    assert_eq!(pool.free(), 64 - 24 - 8 - 8);
    assert!(a[..24].iter().all(|&block| pool.holders(block) == 2));
    pool.release_all(&a);
    pool.release_all(&b);
    assert_eq!(pool.free(), pool.total());
    assert_eq!(pool.cached(), 40, "free blocks can still be found");
}

#[test]
fn the_least_recently_released_goes_first_and_its_end_before_its_beginning() {
    let mut pool = BlockPool::new(4, true);
    let old = chain(&(0..32).collect::<Vec<_>>());
    let new = chain(&(100..132).collect::<Vec<_>>());
    let blocks = take(&mut pool, &old).unwrap();
    pool.release_all(&blocks);
    let blocks = take(&mut pool, &new).unwrap();
    pool.release_all(&blocks);
    assert_eq!(pool.peek(&old), Hit { blocks: 2, from_free: 2 });
    pool.allocate().unwrap();
    assert_eq!(pool.peek(&old).blocks, 1);
    pool.allocate().unwrap();
    assert_eq!(pool.peek(&old).blocks, 0);
    assert_eq!(pool.peek(&new).blocks, 2);
}

#[test]
fn every_change_is_told_once_and_in_order() {
    let mut pool = BlockPool::new(2, true);
    let (old, new) = (chain(&(0..32).collect::<Vec<_>>()), chain(&(100..116).collect::<Vec<_>>()));
    let blocks = take(&mut pool, &old).unwrap();
    pool.release_all(&blocks);
    let told = |pool: &mut BlockPool| -> Vec<(bool, BlockHash)> {
        let tell = |change| match change {
            Change::Stored { hash, .. } => (true, hash),
            Change::Removed { hash, .. } => (false, hash),
            Change::Cleared => (false, BlockHash::root(None)),
        };
        pool.take_changes().into_iter().map(tell).collect()
    };
    assert_eq!(told(&mut pool), [(true, old[0]), (true, old[1])]);
    take(&mut pool, &new).unwrap();
    assert_eq!(told(&mut pool), [(false, old[1]), (true, new[0])]);
    pool.forget();
    let mut forgotten = told(&mut pool);
    assert_eq!(
        forgotten.pop(),
        Some((false, BlockHash::root(None))),
        "that all are gone, after each of them"
    );
    assert_eq!(forgotten.len(), 2);
    assert_eq!(told(&mut pool), []);
}

#[test]
fn without_the_prefix_cache_nothing_is_found() {
    let mut pool = BlockPool::new(8, false);
    let hashes = chain(&(0..64).collect::<Vec<_>>());
    let blocks = take(&mut pool, &hashes).unwrap();
    pool.release_all(&blocks);
    assert_eq!(pool.peek(&hashes), Hit::default());
}

proptest! {
    /// Any history of taking and releasing keeps count: holders are conserved, a held block is not
    /// free, and a block is found only under the name of its contents.
    #[test]
    fn counts_are_conserved(history in proptest::collection::vec((0u32..6, 1usize..7, any::<bool>()), 1..120)) {
        let mut pool = BlockPool::new(16, true);
        let mut held: Vec<(Vec<BlockHash>, Vec<u32>)> = Vec::new();
        for (family, length, release) in history {
            if release && !held.is_empty() {
                let (_, blocks) = held.remove(family as usize % held.len());
                pool.release_all(&blocks);
            } else {
                // Few families of prefixes, so that sharing is common.
                let tokens: Vec<u32> = (0..(length * BLOCK_TOKENS) as u32).map(|i| i + 1000 * (family / 2)).collect();
                let hashes = chain(&tokens);
                let before = pool.clone();
                if let Some(blocks) = take(&mut pool, &hashes) {
                    held.push((hashes, blocks));
                } else {
                    prop_assert_eq!(before.free(), pool.free());
                }
            }
            let mut holders = vec![0u32; pool.total()];
            let mut contents: HashMap<u32, BlockHash> = HashMap::new();
            for (hashes, blocks) in &held {
                for (hash, &block) in hashes.iter().zip(blocks) {
                    holders[block as usize] += 1;
                    prop_assert_eq!(*contents.entry(block).or_insert(*hash), *hash);
                }
            }
            let free = holders.iter().filter(|h| **h == 0).count();
            prop_assert_eq!(pool.free(), free);
            for (block, count) in holders.iter().enumerate() {
                prop_assert_eq!(pool.holders(block as u32), *count);
            }
            for (hash, block) in &pool.cached {
                prop_assert_eq!(pool.blocks[*block as usize].hash, Some(*hash));
            }
        }
        for (_, blocks) in held { pool.release_all(&blocks); }
        prop_assert_eq!(pool.free(), pool.total());
    }
}
