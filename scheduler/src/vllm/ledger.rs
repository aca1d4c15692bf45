//! Which token blocks a vLLM holds, and which byte blocks of prompts end in them. Pure.
//!
//! Token blocks are a tree: each is known by the block before it, its tokens, and what else tells it from
//! others (adapter, cache salt, images). vLLM's own names serve to find a parent, and what is removed, and
//! for nothing else. A prompt that was tokenised says which of its byte blocks end in which token block; a
//! byte block is told as stored as long as that token block and all before it are held.

use std::collections::HashMap;

use strata_wire::engine_events::{MEDIA, Medium, Removed, Stored};
use strata_wire::prefix::BlockHash;

use super::batch::{self, Event, Name};
use super::prompt::Tokenised;
use super::tree::{NONE, Tree, child_key, root_key};

/// Byte blocks that are known at most: 64 MiB of prompts.
pub const MAX_CLAIMS: usize = 1 << 18;

/// What changes in what a replica is known to hold, in the order in which it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A byte block, and how many tokens it saves.
    Stored(Stored),
    /// A byte block is no longer there.
    Removed(Removed),
}

/// A byte block.
#[derive(Clone, Copy, Debug)]
struct Claim {
    /// The token block that it ends in; [`NONE`] when it tells no more than the one before it.
    node: u32,
    /// When it was last asked for.
    tick: u64,
}

/// A name that vLLM has given.
#[derive(Clone, Copy, Debug)]
struct Held {
    node: u32,
    counts: [u32; MEDIA.len()],
}

/// What one vLLM holds.
#[derive(Debug, Default)]
pub struct Ledger {
    tree: Tree,
    names: HashMap<Name, Held>,
    claims: HashMap<BlockHash, Claim>,
    tick: u64,
    form: Option<Form>,
    /// Nothing has been stored since it began anew: the form may be another.
    anew: bool,
}

/// How the blocks are cut. It stays the same in one run of a vLLM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    block_size: usize,
    /// The cache that is followed, where a model has several.
    group: u64,
    /// Whether cache salts are told.
    salted: bool,
}

impl Ledger {
    /// Whether tokenised prompts can be taken: it is known how blocks are cut.
    pub fn can_learn(&self) -> bool {
        self.form.is_some()
    }

    /// Whether this prompt has been learnt. Then it is kept for longer.
    pub fn knows(&mut self, chain: &[BlockHash]) -> bool {
        self.tick += 1;
        let tick = self.tick;
        let known = chain.last().is_some_and(|last| self.claims.contains_key(last));
        if known {
            for hash in chain {
                if let Some(claim) = self.claims.get_mut(hash) {
                    claim.tick = tick;
                }
            }
        }
        known
    }

    /// Learns which token blocks a prompt's byte blocks end in. Does nothing before it
    /// [can](Self::can_learn).
    pub fn learn(&mut self, prompt: &Tokenised, tell: &mut impl FnMut(Told)) {
        let Some(form) = self.form else { return };
        self.tick += 1;
        let salt = form.salted.then_some(prompt.scope.as_str());
        let mut key = root_key(prompt.adapter.as_deref(), salt);
        let most = prompt.claims.iter().map(|claim| claim.tokens as usize / form.block_size).max();
        let (mut path, mut parent) = (Vec::new(), NONE);
        for tokens in prompt.tokens.chunks_exact(form.block_size).take(most.unwrap_or(0)) {
            key = child_key(&key, &[], tokens);
            let Some(node) = self.tree.get_or_add(key, parent) else { break };
            path.push(node);
            parent = node;
        }
        self.tree.keep(parent);
        let mut last = 0;
        for claim in &prompt.claims {
            let blocks = (claim.tokens as usize / form.block_size).min(path.len());
            let node = if blocks > last { path[blocks - 1] } else { NONE };
            last = last.max(blocks);
            self.claim(claim.hash, node, tell);
        }
        self.tree.keep(NONE);
        self.tree.prune(parent);
        self.forget_oldest(tell);
    }

    /// Takes an event. Returns how many blocks of it could not be placed, for the one before them is not
    /// known or there is no room.
    pub fn take(&mut self, event: &Event, tell: &mut impl FnMut(Told)) -> usize {
        match event {
            Event::Stored(stored) => self.stored(stored, tell),
            Event::Removed(removed) => self.removed(removed, tell),
            Event::Cleared => {
                self.empty(tell);
                0
            }
        }
    }

    /// Nothing is held. What prompts have told stays, unless blocks turn out to be cut otherwise.
    pub fn begin_anew(&mut self, tell: &mut impl FnMut(Told)) {
        self.empty(tell);
        self.anew = true;
    }

    fn empty(&mut self, tell: &mut impl FnMut(Told)) {
        self.names.clear();
        let tokens = self.block_size();
        self.tree.empty(&mut |change| say(change, tokens, tell));
    }

    fn block_size(&self) -> u32 {
        self.form.map_or(0, |form| form.block_size as u32)
    }

    fn stored(&mut self, event: &batch::Stored, tell: &mut impl FnMut(Told)) -> usize {
        if event.tokens.is_empty() {
            // Copies of blocks that were told with their tokens.
            return event.names.iter().filter(|name| !self.copied(name, event.medium, tell)).count();
        }
        if !self.follows(event, tell) {
            return 0;
        }
        let whole = event.names.len() * event.block_size == event.tokens.len();
        let (mut key, mut parent, begins) = match &event.parent {
            _ if !whole => return event.names.len(),
            None => (root_key(event.adapter.as_deref(), salt(event)), NONE, true),
            Some(name) => match self.names.get(name) {
                Some(held) => (self.tree.key(held.node), held.node, false),
                None => return event.names.len(),
            },
        };
        for (i, (name, tokens)) in
            event.names.iter().zip(event.tokens.chunks_exact(event.block_size)).enumerate()
        {
            key = child_key(&key, strange(event, i, begins), tokens);
            let Some(node) = self.tree.get_or_add(key, parent) else { return event.names.len() - i };
            if !self.hold(name.clone(), node, event.medium, tell) {
                self.tree.prune(node);
                return event.names.len() - i;
            }
            parent = node;
        }
        0
    }

    /// Whether the event is of the cache that is followed: the first that keeps whole prompts.
    fn follows(&mut self, event: &batch::Stored, tell: &mut impl FnMut(Told)) -> bool {
        let form = Form { block_size: event.block_size, group: event.group, salted: event.extra.is_some() };
        match self.form {
            Some(known) if known == form => {
                self.anew = false;
                true
            }
            Some(_) if !self.anew => false,
            _ if !event.whole => false,
            _ => {
                if self.form.is_some() {
                    self.forget_all(tell);
                }
                (self.form, self.anew) = (Some(form), false);
                true
            }
        }
    }

    /// Returns whether it could be noted: one name for two contents says nothing of either.
    fn hold(&mut self, name: Name, node: u32, medium: Medium, tell: &mut impl FnMut(Told)) -> bool {
        let held = self.names.entry(name).or_insert(Held { node, counts: [0; MEDIA.len()] });
        if held.node != node {
            return false;
        }
        held.counts[medium as usize] += 1;
        let tokens = self.block_size();
        self.tree.hold(node, medium, &mut |change| say(change, tokens, tell));
        true
    }

    fn copied(&mut self, name: &Name, medium: Medium, tell: &mut impl FnMut(Told)) -> bool {
        let Some(node) = self.names.get(name).map(|held| held.node) else { return false };
        self.hold(name.clone(), node, medium, tell)
    }

    fn removed(&mut self, event: &batch::Removed, tell: &mut impl FnMut(Told)) -> usize {
        if self.form.is_some_and(|form| form.group != event.group) {
            return 0;
        }
        let (mut unknown, tokens) = (0, self.block_size());
        for name in &event.names {
            let medium = event.medium as usize;
            let Some(held) = self.names.get_mut(name).filter(|held| held.counts[medium] > 0) else {
                unknown += 1;
                continue;
            };
            held.counts[medium] -= 1;
            let node = held.node;
            if held.counts == [0; MEDIA.len()] {
                self.names.remove(name);
            }
            self.tree.drop_one(node, event.medium, &mut |change| say(change, tokens, tell));
        }
        unknown
    }

    fn claim(&mut self, hash: BlockHash, node: u32, tell: &mut impl FnMut(Told)) {
        let tick = self.tick;
        match self.claims.get_mut(&hash) {
            Some(known) if known.node == node => {
                known.tick = tick;
                return;
            }
            Some(_) => self.unclaim(hash, tell),
            None => {}
        }
        let tokens = self.block_size();
        // One that made room for it is known to tell nothing more.
        if let Some(pushed) = self.tree.name(node, hash, &mut |change| say(change, tokens, tell))
            && let Some(claim) = self.claims.get_mut(&pushed)
        {
            claim.node = NONE;
        }
        self.claims.insert(hash, Claim { node, tick });
    }

    fn unclaim(&mut self, hash: BlockHash, tell: &mut impl FnMut(Told)) {
        let Some(claim) = self.claims.remove(&hash) else { return };
        let tokens = self.block_size();
        self.tree.unname(claim.node, hash, &mut |change| say(change, tokens, tell));
    }

    /// Forgets a quarter when there are too many: what has not been asked for the longest.
    fn forget_oldest(&mut self, tell: &mut impl FnMut(Told)) {
        if self.claims.len() <= MAX_CLAIMS {
            return;
        }
        let mut ticks: Vec<u64> = self.claims.values().map(|claim| claim.tick).collect();
        let (_, oldest, _) = ticks.select_nth_unstable(MAX_CLAIMS / 4);
        let oldest = *oldest;
        let gone: Vec<BlockHash> =
            self.claims.iter().filter(|(_, claim)| claim.tick <= oldest).map(|(hash, _)| *hash).collect();
        for hash in gone {
            self.unclaim(hash, tell);
        }
    }

    fn forget_all(&mut self, tell: &mut impl FnMut(Told)) {
        let all: Vec<BlockHash> = self.claims.keys().copied().collect();
        for hash in all {
            self.unclaim(hash, tell);
        }
    }

    /// Token blocks and byte blocks that are known.
    #[cfg(test)]
    fn sizes(&self) -> (usize, usize) {
        (self.tree.known(), self.claims.len())
    }
}

fn say(change: super::tree::Change, block_size: u32, tell: &mut impl FnMut(Told)) {
    let super::tree::Change { hash, depth, before, now } = change;
    if let Some(medium) = before {
        tell(Told::Removed(Removed { hash, medium }));
    }
    if let Some(medium) = now {
        tell(Told::Stored(Stored { hash, tokens: depth * block_size, medium }));
    }
}

/// The keys of a block that are not the adapter's.
fn own_keys(event: &batch::Stored, block: usize) -> &[String] {
    let keys = event.extra.as_ref().map_or(&[][..], |extra| &extra[block]);
    match (&event.adapter, keys) {
        (Some(adapter), [first, rest @ ..]) if first == adapter => rest,
        _ => keys,
    }
}

/// The cache salt of a prompt's first block; `None` where none are told.
fn salt(event: &batch::Stored) -> Option<&str> {
    event.extra.as_ref()?;
    Some(match own_keys(event, 0) {
        [salt] => salt,
        _ => "",
    })
}

/// What tells a block from one with the same tokens, beside adapter and salt. No tokenised prompt has it.
fn strange(event: &batch::Stored, block: usize, begins: bool) -> &[String] {
    match own_keys(event, block) {
        [_] if begins && block == 0 => &[],
        keys => keys,
    }
}

#[cfg(test)]
mod tests;
