//! The planner itself: the waiting and the running sequences, and the rules between them.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::sequence::{Order, Sequence, SequenceId};
use crate::backend::{LogitRows, SequenceSpan, StepBatch};
use crate::block::{BLOCK_TOKENS, BlockHash, BlockPool, blocks_for};

/// How much one step may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Tokens over all sequences; at least as many as `sequences`, so that every decode fits.
    pub tokens: usize,
    /// Sequences that run at the same time.
    pub sequences: usize,
}

/// A sequence that is to be run.
#[derive(Clone, Debug)]
pub struct NewSequence {
    /// The prompt; not empty.
    pub tokens: Vec<u32>,
    /// Lower runs first.
    pub priority: i64,
    /// Prefixes are shared only among sequences of one salt.
    pub cache_salt: Option<String>,
}

/// Why a sequence can never run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no token to compute logits of.
    #[error("a prompt needs at least one token")]
    Empty,
    /// More tokens than all blocks hold.
    #[error("{tokens} tokens need {needed} KV-cache blocks and there are {total}")]
    TooLong {
        /// Tokens of the sequence.
        tokens: usize,
        /// Blocks that they fill.
        needed: usize,
        /// Blocks there are.
        total: usize,
    },
}

/// One step, and what became of the sequences while it was planned.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// What the backend runs; no spans when there is nothing to do.
    pub batch: StepBatch,
    /// The sequences of the spans, in the same order.
    pub parts: Vec<Part>,
    /// Sequences that run for the first time, or again after a preemption.
    pub admitted: Vec<Admission>,
    /// Sequences that lost their blocks and wait again.
    pub preempted: Vec<SequenceId>,
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which.
    pub id: SequenceId,
    /// Tokens of it that are run.
    pub tokens: usize,
    /// Whether a token is to be sampled from its logits.
    pub samples: bool,
}

/// A sequence that left the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Which.
    pub id: SequenceId,
    /// Tokens of it that the prefix cache had.
    pub cached_tokens: usize,
    /// Whether it is here for the first time.
    pub first: bool,
}

/// Counts for metrics and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlannerState {
    /// Sequences that hold blocks.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// Tokens of the sequences that wait.
    pub waiting_tokens: usize,
    /// Blocks that nobody holds.
    pub free_blocks: usize,
    /// All blocks.
    pub total_blocks: usize,
}

/// Decides what each step runs.
#[derive(Debug)]
pub struct Planner {
    limits: StepLimits,
    pool: BlockPool,
    prefix_cache: bool,
    waiting: BTreeMap<Order, Sequence>,
    running: BTreeMap<Order, Sequence>,
    orders: HashMap<SequenceId, Order>,
    next_id: u64,
}

/// A step while it is planned: which sequences, and how many tokens of each.
struct Draft {
    parts: Vec<(Order, usize)>,
    budget: usize,
    preempted: Vec<SequenceId>,
}

impl Planner {
    /// A planner over `total_blocks` blocks.
    pub fn new(limits: StepLimits, total_blocks: usize, prefix_cache: bool) -> Self {
        Self {
            limits,
            pool: BlockPool::new(total_blocks, prefix_cache),
            prefix_cache,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            orders: HashMap::new(),
            next_id: 0,
        }
    }

    /// Queues a sequence.
    pub fn add(&mut self, new: NewSequence) -> Result<SequenceId, Refused> {
        let needed = blocks_for(new.tokens.len());
        if new.tokens.is_empty() {
            return Err(Refused::Empty);
        }
        if needed > self.pool.total() {
            return Err(Refused::TooLong { tokens: new.tokens.len(), needed, total: self.pool.total() });
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let order = (new.priority, id);
        let sequence = Sequence::new(new.tokens, new.cache_salt.as_deref(), self.prefix_cache);
        self.orders.insert(id, order);
        self.waiting.insert(order, sequence);
        Ok(id)
    }

    /// Forgets a sequence: it is finished, aborted or failed. `false` when it is not known.
    pub fn remove(&mut self, id: SequenceId) -> bool {
        let Some(order) = self.orders.remove(&id) else { return false };
        self.waiting.remove(&order);
        if let Some(mut sequence) = self.running.remove(&order) {
            sequence.reset(&mut self.pool);
        }
        true
    }

    /// Appends a sampled token to a running sequence.
    pub fn push(&mut self, id: SequenceId, token: u32) {
        if let Some(sequence) = self.orders.get(&id).and_then(|order| self.running.get_mut(order)) {
            sequence.tokens.push(token);
        }
    }

    /// Notes that the backend has run this plan.
    pub fn advance(&mut self, plan: &Plan) {
        for part in &plan.parts {
            if let Some(sequence) = self.orders.get(&part.id).and_then(|order| self.running.get_mut(order)) {
                sequence.advance(&mut self.pool, part.tokens, self.prefix_cache);
            }
        }
    }

    /// Whether there is any sequence.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// The counts now.
    pub fn state(&self) -> PlannerState {
        PlannerState {
            running: self.running.len(),
            waiting: self.waiting.len(),
            waiting_tokens: self.waiting.values().map(|s| s.tokens.len()).sum(),
            free_blocks: self.pool.free(),
            total_blocks: self.pool.total(),
        }
    }

    /// The physical blocks of a running sequence.
    pub fn blocks(&self, id: SequenceId) -> Option<&[u32]> {
        self.orders.get(&id).and_then(|order| self.running.get(order)).map(|s| s.blocks.as_slice())
    }

    /// Plans the next step. It must be followed by [`Planner::advance`], or by [`Planner::remove`] of
    /// its sequences when the backend failed.
    pub fn plan(&mut self) -> Plan {
        let mut draft = Draft { parts: Vec::new(), budget: self.limits.tokens, preempted: Vec::new() };
        self.continue_running(&mut draft);
        // What was just preempted would only take the blocks back.
        let admitted = if draft.preempted.is_empty() { self.admit(&mut draft) } else { Vec::new() };
        self.render(draft, admitted)
    }

    /// Decodes first, one token each; then the rest of prompts that were begun.
    fn continue_running(&mut self, draft: &mut Draft) {
        let mut orders: Vec<(bool, Order)> =
            self.running.iter().map(|(order, s)| (s.remaining() > 1, *order)).collect();
        orders.sort_unstable();
        for (_, order) in orders {
            // Absent: preempted for one before it.
            let Some(sequence) = self.running.get(&order) else { continue };
            let tokens = sequence.remaining().min(draft.budget);
            if tokens == 0 {
                break;
            }
            let upto = sequence.computed + tokens;
            if self.make_room(order, upto, draft) {
                draft.parts.push((order, tokens));
                draft.budget -= tokens;
            }
        }
    }

    /// Gets a running sequence its blocks, from the youngest if need be; `false` when that is itself.
    fn make_room(&mut self, order: Order, upto: usize, draft: &mut Draft) -> bool {
        loop {
            let Some(sequence) = self.running.get_mut(&order) else { return false };
            if sequence.grow(&mut self.pool, upto) {
                return true;
            }
            let Some((victim, mut sequence)) = self.running.pop_last() else { return false };
            sequence.reset(&mut self.pool);
            self.waiting.insert(victim, sequence);
            draft.preempted.push(victim.1);
            if let Some(at) = draft.parts.iter().position(|(o, _)| *o == victim) {
                draft.budget += draft.parts.remove(at).1;
            }
        }
    }

    fn admit(&mut self, draft: &mut Draft) -> Vec<Admission> {
        let mut admitted = Vec::new();
        if self.waiting.is_empty() {
            return admitted;
        }
        // Blocks that begun prompts will still take, and the names that they will give to them.
        let mut reserved: usize =
            self.running.values().map(|s| blocks_for(s.tokens.len()).saturating_sub(s.blocks.len())).sum();
        let mut coming: HashSet<BlockHash> =
            self.running.values().flat_map(|s| s.unnamed().iter().copied()).collect();
        let orders: Vec<Order> = self.waiting.keys().copied().collect();
        for order in orders {
            if draft.budget == 0 || self.running.len() >= self.limits.sequences {
                break;
            }
            let Some(sequence) = self.waiting.get(&order) else { continue };
            let hit = self.pool.peek(sequence.reusable());
            // Another sequence is computing this very prefix: its blocks are worth the wait, and
            // whoever comes next may go first.
            if sequence.reusable().get(hit.blocks).is_some_and(|next| coming.contains(next)) {
                continue;
            }
            let needed = blocks_for(sequence.tokens.len());
            if needed - hit.blocks + hit.from_free + reserved > self.pool.free() {
                break;
            }
            let Some(mut sequence) = self.waiting.remove(&order) else { continue };
            let cached_tokens = sequence.reuse(&mut self.pool);
            let tokens = sequence.remaining().min(draft.budget);
            let grown = sequence.grow(&mut self.pool, sequence.computed + tokens);
            debug_assert!(grown, "the blocks were counted above");
            reserved += needed - sequence.blocks.len();
            coming.extend(sequence.unnamed().iter().copied());
            draft.parts.push((order, tokens));
            draft.budget -= tokens;
            admitted.push(Admission { id: order.1, cached_tokens, first: !sequence.admitted });
            sequence.admitted = true;
            self.running.insert(order, sequence);
        }
        admitted
    }

    fn render(&mut self, draft: Draft, admitted: Vec<Admission>) -> Plan {
        let mut plan = Plan { admitted, preempted: draft.preempted, ..Plan::default() };
        for (order, tokens) in draft.parts {
            let Some(sequence) = self.running.get_mut(&order) else { continue };
            let samples = tokens == sequence.remaining();
            plan.batch.spans.push(SequenceSpan {
                start: plan.batch.tokens.len(),
                len: tokens,
                context: sequence.computed,
                blocks: sequence.table(),
                logits: if samples { LogitRows::Last(1) } else { LogitRows::None },
            });
            plan.batch.tokens.extend(&sequence.tokens[sequence.computed..sequence.computed + tokens]);
            plan.parts.push(Part { id: order.1, tokens, samples });
        }
        debug_assert!(plan.batch.spans.iter().all(|s| s.blocks.len() * BLOCK_TOKENS >= s.context + s.len));
        plan
    }
}

#[cfg(test)]
#[path = "planner_tests.rs"]
mod tests;
