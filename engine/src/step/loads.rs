//! Blocks that come from below the pool: which are asked for, and what became of it.
//!
//! The planner decides that a sequence waits for blocks and where they go; somebody else fetches them
//! and says when they are there. A sequence that waits holds its blocks and runs in no step.

use super::order::Order;
use super::plan::{Admission, Plan};
use super::planner::Planner;
use super::prompts::WINDOW;
use super::sequence::{Sequence, SequenceId};
use crate::block::{BLOCK_TOKENS, BlockHash, blocks_for};

/// The identity of one load inside one planner, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoadId(pub u64);

/// A block that is to be filled from below the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Which load this is.
    pub id: LoadId,
    /// The sequence that waits for it.
    pub sequence: SequenceId,
    /// The name of what is to be fetched.
    pub hash: BlockHash,
    /// Where it is to be put.
    pub block: u32,
}

/// The loads of one sequence, the blocks in their order.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    loads: Vec<(LoadId, State)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    There,
    Failed,
}

impl Awaited {
    /// Whether this load is one of them and has not come to an end.
    fn expects(&self, id: LoadId) -> bool {
        self.loads.contains(&(id, State::Open))
    }

    /// Notes the end of a load. Returns how many blocks are there, from the first on without a gap,
    /// once none is open.
    fn end(&mut self, id: LoadId, there: bool) -> Option<usize> {
        let state = if there { State::There } else { State::Failed };
        self.loads.iter_mut().filter(|(load, _)| *load == id).for_each(|(_, old)| *old = state);
        if self.loads.iter().any(|(_, state)| *state == State::Open) {
            return None;
        }
        Some(self.loads.iter().take_while(|(_, state)| *state == State::There).count())
    }

    pub(super) fn clear(&mut self) {
        self.loads.clear();
    }
}

impl Planner {
    /// Notes that a block of this name can be fetched from below the pool.
    pub fn offer(&mut self, hash: BlockHash) {
        if self.prefix_cache {
            self.below.insert(hash);
        }
    }

    /// Notes that a block of this name can no longer be fetched.
    pub fn withdraw(&mut self, hash: &BlockHash) {
        self.below.remove(hash);
    }

    /// Whether a sequence waits for blocks from below the pool: then a plan without a step is no defect.
    pub fn is_loading(&self) -> bool {
        !self.loading.is_empty()
    }

    /// Whether a sequence's blocks came since the last plan: the next one runs it.
    pub fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// Whether somebody still waits for this load: its sequence may be gone, and its block another's.
    pub fn expects(&self, load: &Load) -> bool {
        let order = self.orders.get(&load.sequence);
        order.and_then(|order| self.loading.get(order)).is_some_and(|s| s.awaited.expects(load.id))
    }

    /// Notes that a load has come to its end: the contents are in its block, or they are not to be had.
    /// A sequence whose loads have all ended runs from the next plan on and computes what is missing.
    pub fn loaded(&mut self, load: &Load, there: bool) {
        if !self.expects(load) {
            return;
        }
        let Some(&order) = self.orders.get(&load.sequence) else { return };
        let Some(sequence) = self.loading.get_mut(&order) else { return };
        let Some(blocks) = sequence.awaited.end(load.id, there) else { return };
        if let Some(mut sequence) = self.loading.remove(&order) {
            sequence.awaited.clear();
            sequence.advance(&mut self.pool, blocks * BLOCK_TOKENS, self.prefix_cache);
            sequence.begin();
            let (cached, loaded) = (sequence.computed, blocks * BLOCK_TOKENS);
            self.arrived.push((order, cached, loaded));
            self.running.insert(order, sequence);
        }
    }

    /// Admits the sequences whose blocks have come from below.
    pub(super) fn welcome(&mut self, plan: &mut Plan) {
        for (order, cached_tokens, loaded_tokens) in self.arrived.drain(..) {
            // Absent: removed in the meantime.
            let Some(sequence) = self.running.get_mut(&order) else { continue };
            let (id, first) = (order.id, !sequence.admitted);
            plan.admitted.push(Admission { id, cached_tokens, loaded_tokens, first });
            sequence.admitted = true;
        }
    }

    /// Lets waiting sequences whose next blocks are below the pool begin to wait for these, in order, as
    /// far as there are places and blocks, for those before them too.
    pub(super) fn begin_loads(&mut self, plan: &mut Plan) {
        // What was just preempted would only take the blocks back.
        if self.below.is_empty() || !plan.preempted.is_empty() {
            return;
        }
        let (mut places, mut growing, mut reserved) =
            (self.places(), self.holding().count(), self.reserved());
        let mut begun: Vec<(Order, usize)> = Vec::new();
        let mut passed: Vec<&Sequence> = Vec::new();
        let mut adapters = self.admitting();
        for (order, sequence) in self.waiting.iter().take(WINDOW) {
            if places == 0 {
                break;
            }
            if !adapters.admits(sequence.adapter.as_deref()) {
                continue;
            }
            let hit = self.pool.peek(sequence.reusable());
            let rest = &sequence.reusable()[hit.blocks..];
            let mut others = self.holding().chain(passed.iter().copied());
            if rest.first().is_some_and(|next| others.any(|s| s.completes(hit.blocks, next))) {
                continue;
            }
            let takes = blocks_for(sequence.tokens.len()) - hit.blocks + hit.from_free;
            if growing > 0 && takes + reserved + growing > self.pool.free() {
                break;
            }
            let below = rest.iter().take_while(|name| self.below.contains(*name)).count();
            if below > 0 {
                begun.push((*order, below));
            }
            reserved += takes;
            growing += 1;
            places -= 1;
            passed.push(sequence);
        }
        for (order, below) in begun {
            let Some(mut sequence) = self.dequeue(order) else { continue };
            sequence.reuse(&mut self.pool);
            for (hash, block) in sequence.reserve(&mut self.pool, below) {
                let id = LoadId(self.next_load);
                self.next_load += 1;
                sequence.awaited.loads.push((id, State::Open));
                plan.loads.push(Load { id, sequence: order.id, hash, block });
            }
            self.loading.insert(order, sequence);
        }
    }
}
