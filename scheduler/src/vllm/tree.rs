//! A tree of token blocks: which are held in which medium, and whether all before them are. Pure.

use std::collections::HashMap;

use strata_wire::engine_events::{MEDIA, Medium};
use strata_wire::prefix::BlockHash;

/// No node: the parent of those that begin a prompt.
pub const NONE: u32 = u32::MAX;
/// Token blocks that are known at most, held or not: each takes about 200 bytes. What is beyond them is not
/// known.
pub const MAX_NODES: usize = 1 << 20;
/// Byte blocks that may end in one token block: texts that differ in their last few tokens. The oldest
/// makes room.
const MAX_NAMES: usize = 64;

/// A token block's identity: a hash of all that it depends on.
pub type Key = [u8; 16];

/// The key above a prompt's first block. A cache salt that is not told is none.
pub fn root_key(adapter: Option<&str>, salt: Option<&str>) -> Key {
    let mut hasher = blake3::Hasher::new();
    for part in [adapter, salt] {
        hasher.update(&part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
        hasher.update(part.unwrap_or_default().as_bytes());
    }
    short(&hasher)
}

/// The key of a block behind another, which `strange` keys tell from those with the same tokens.
pub fn child_key(parent: &Key, strange: &[String], tokens: &[u32]) -> Key {
    let mut hasher = blake3::Hasher::new();
    hasher.update(parent);
    hasher.update(&(strange.len() as u64).to_le_bytes());
    for key in strange {
        hasher.update(&(key.len() as u64).to_le_bytes());
        hasher.update(key.as_bytes());
    }
    for token in tokens {
        hasher.update(&token.to_le_bytes());
    }
    short(&hasher)
}

fn short(hasher: &blake3::Hasher) -> Key {
    let mut key = Key::default();
    key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    key
}

/// Where a byte block can be had from changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The byte block.
    pub hash: BlockHash,
    /// Token blocks up to its end.
    pub depth: u32,
    /// Where they were.
    pub before: Option<Medium>,
    /// Where they are.
    pub now: Option<Medium>,
}

#[derive(Debug)]
struct Node {
    key: Key,
    parent: u32,
    /// Its children are a list.
    first_child: u32,
    next: u32,
    previous: u32,
    depth: u32,
    counts: [u32; MEDIA.len()],
    /// The slowest of the media that it and all before it must be fetched from; none when one is missing.
    reach: Option<Medium>,
    names: Vec<BlockHash>,
}

impl Node {
    fn own(&self) -> Option<Medium> {
        MEDIA.into_iter().zip(self.counts).find(|(_, count)| *count > 0).map(|(medium, _)| medium)
    }

    fn is_idle(&self) -> bool {
        self.first_child == NONE && self.names.is_empty() && self.own().is_none()
    }
}

/// The tree.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    kept: u32,
}

impl Default for Tree {
    fn default() -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), by_key: HashMap::new(), kept: NONE }
    }
}

impl Tree {
    /// Token blocks that are known.
    #[cfg(test)]
    pub fn known(&self) -> usize {
        self.by_key.len()
    }

    /// A node's key.
    pub fn key(&self, node: u32) -> Key {
        self.nodes[node as usize].key
    }

    /// The node of this key, which is made behind its parent where there is none. `None` when there are too
    /// many.
    pub fn get_or_add(&mut self, key: Key, parent: u32) -> Option<u32> {
        if let Some(node) = self.by_key.get(&key) {
            return Some(*node);
        }
        if self.by_key.len() >= MAX_NODES {
            return None;
        }
        let (depth, next) = match self.nodes.get(parent as usize) {
            Some(parent) => (parent.depth + 1, parent.first_child),
            None => (1, NONE),
        };
        let node = Node {
            key,
            parent,
            first_child: NONE,
            next,
            previous: NONE,
            depth,
            counts: [0; MEDIA.len()],
            reach: None,
            names: Vec::new(),
        };
        let at = if let Some(at) = self.free.pop() {
            self.nodes[at as usize] = node;
            at
        } else {
            self.nodes.push(node);
            (self.nodes.len() - 1) as u32
        };
        if parent != NONE {
            self.nodes[parent as usize].first_child = at;
            if next != NONE {
                self.nodes[next as usize].previous = at;
            }
        }
        self.by_key.insert(key, at);
        Some(at)
    }

    /// One more copy of a block is in a medium.
    pub fn hold(&mut self, node: u32, medium: Medium, tell: &mut impl FnMut(Change)) {
        self.nodes[node as usize].counts[medium as usize] += 1;
        self.settle(node, tell);
    }

    /// One copy less is.
    pub fn drop_one(&mut self, node: u32, medium: Medium, tell: &mut impl FnMut(Change)) {
        let count = &mut self.nodes[node as usize].counts[medium as usize];
        *count = count.saturating_sub(1);
        self.settle(node, tell);
        self.prune(node);
    }

    /// Nothing is held any more.
    pub fn empty(&mut self, tell: &mut impl FnMut(Change)) {
        for at in 0..self.nodes.len() {
            let node = &mut self.nodes[at];
            node.counts = [0; MEDIA.len()];
            let before = node.reach.take();
            let node = &self.nodes[at];
            changed(node, before, tell);
        }
        let all: Vec<u32> = self.by_key.values().copied().collect();
        for node in all {
            self.prune(node);
        }
    }

    /// A byte block ends in this token block. Returns one that had to make room for it.
    pub fn name(&mut self, node: u32, hash: BlockHash, tell: &mut impl FnMut(Change)) -> Option<BlockHash> {
        let node = self.nodes.get_mut(node as usize)?;
        let pushed = (node.names.len() == MAX_NAMES).then(|| node.names.remove(0));
        node.names.push(hash);
        let (depth, reach) = (node.depth, node.reach);
        if reach.is_some() {
            if let Some(hash) = pushed {
                tell(Change { hash, depth, before: reach, now: None });
            }
            tell(Change { hash, depth, before: None, now: reach });
        }
        pushed
    }

    /// It no longer does.
    pub fn unname(&mut self, at: u32, hash: BlockHash, tell: &mut impl FnMut(Change)) {
        let Some(node) = self.nodes.get_mut(at as usize) else { return };
        let before = node.names.len();
        node.names.retain(|name| *name != hash);
        if node.names.len() < before && node.reach.is_some() {
            tell(Change { hash, depth: node.depth, before: node.reach, now: None });
        }
        self.prune(at);
    }

    /// This node, and so those before it, are not forgotten while others are. [`NONE`] ends that.
    pub fn keep(&mut self, node: u32) {
        self.kept = node;
    }

    /// Forgets this node and those before it, as far as they are of no use.
    pub fn prune(&mut self, node: u32) {
        let mut at = node;
        while at != NONE && at != self.kept && self.nodes[at as usize].is_idle() {
            let Node { key, parent, next, previous, .. } = self.nodes[at as usize];
            if self.by_key.get(&key) != Some(&at) {
                // Forgotten before.
                return;
            }
            self.by_key.remove(&key);
            self.free.push(at);
            if next != NONE {
                self.nodes[next as usize].previous = previous;
            }
            if previous != NONE {
                self.nodes[previous as usize].next = next;
            } else if parent != NONE {
                self.nodes[parent as usize].first_child = next;
            }
            at = parent;
        }
    }

    /// Finds out anew how this node and those behind it can be reached.
    fn settle(&mut self, node: u32, tell: &mut impl FnMut(Change)) {
        let mut todo = vec![node];
        while let Some(at) = todo.pop() {
            let node = &self.nodes[at as usize];
            let above = match node.parent {
                NONE => Some(Medium::Device),
                parent => self.nodes[parent as usize].reach,
            };
            let now = node.own().zip(above).map(|(own, above)| own.max(above));
            if now == node.reach {
                continue;
            }
            let before = std::mem::replace(&mut self.nodes[at as usize].reach, now);
            let node = &self.nodes[at as usize];
            changed(node, before, tell);
            let mut child = node.first_child;
            while child != NONE {
                todo.push(child);
                child = self.nodes[child as usize].next;
            }
        }
    }
}

fn changed(node: &Node, before: Option<Medium>, tell: &mut impl FnMut(Change)) {
    if node.reach != before {
        for hash in &node.names {
            tell(Change { hash: *hash, depth: node.depth, before, now: node.reach });
        }
    }
}
