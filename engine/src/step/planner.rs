//! The planner itself: the waiting and the running sequences, and the rules between them.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::adapters::AdapterPlaces;
use super::cost::StepCost;
use super::order::Order;
use super::plan::{NewSequence, Part, Plan, PlannerState, Refused, StepLimits};
use super::prompts::Prompt;
use super::sequence::{Sequence, SequenceId};
use crate::backend::{LogitRows, SequenceSpan};
use crate::block::{BLOCK_TOKENS, BlockHash, BlockPool, Change, Touch, blocks_for};

/// Decides what each step runs.
///
/// Sequences have an order ([`Order`]: priority with age), and the first in order always gets on: when
/// it runs it is never preempted and has a part of every step, at least half of what the step takes of
/// prompts; when it waits, nobody behind it is admitted before it, unless it waits for a prefix that a
/// running sequence is computing, or needs no adapter while the first waits for one of its places
/// ([`Planner::limit_adapters`]). Since only a bounded number of later arrivals can go before a
/// sequence, each becomes the first after a bounded number of steps, whatever else arrives.
///
/// Planning takes time by the sequences that run and are admitted, not by those that wait.
#[derive(Debug)]
pub struct Planner {
    pub(super) limits: StepLimits,
    pub(super) pool: BlockPool,
    pub(super) prefix_cache: bool,
    pub(super) waiting: BTreeMap<Order, Sequence>,
    pub(super) waiting_tokens: usize,
    pub(super) running: BTreeMap<Order, Sequence>,
    /// Sequences that hold blocks and wait for what is to be in them.
    pub(super) loading: BTreeMap<Order, Sequence>,
    /// Those whose blocks came since the last plan, how many tokens each was spared, and how many of
    /// these by what came.
    pub(super) arrived: Vec<(Order, usize, usize)>,
    /// Names of blocks that can be fetched from below the pool.
    pub(super) below: HashSet<BlockHash>,
    pub(super) next_load: u64,
    pub(super) orders: HashMap<SequenceId, Order>,
    next_id: u64,
    steps: u64,
    pub(super) cost: StepCost,
    /// Whether nothing is admitted.
    pub(super) held: bool,
    pub(super) adapters: AdapterPlaces,
    draft: Draft,
}

/// A step while it is planned; kept for its buffers.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) parts: Vec<Piece>,
    pub(super) budget: usize,
    pub(super) prompts: Vec<Prompt>,
    decodes: Vec<Order>,
}

/// How many tokens of a sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) order: Order,
    pub(super) tokens: usize,
    pub(super) drafted: usize,
}

impl Planner {
    /// A planner over `total_blocks` blocks.
    pub fn new(limits: StepLimits, total_blocks: usize, prefix_cache: bool) -> Self {
        Self {
            limits,
            pool: BlockPool::new(total_blocks, prefix_cache),
            prefix_cache,
            waiting: BTreeMap::new(),
            waiting_tokens: 0,
            running: BTreeMap::new(),
            loading: BTreeMap::new(),
            arrived: Vec::new(),
            below: HashSet::new(),
            next_load: 0,
            orders: HashMap::new(),
            next_id: 0,
            steps: 0,
            cost: StepCost::default(),
            held: false,
            adapters: AdapterPlaces::default(),
            draft: Draft::default(),
        }
    }

    /// From now on a step holds at most so many different adapters.
    pub fn limit_adapters(&mut self, most: usize) {
        self.adapters.limit(most);
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
        let order = Order::new(new.priority, self.steps, id);
        self.orders.insert(id, order);
        self.enqueue(order, Sequence::new(new, self.prefix_cache));
        Ok(id)
    }

    /// Forgets a sequence: it is finished, aborted or failed. `false` when it is not known.
    pub fn remove(&mut self, id: SequenceId) -> bool {
        let Some(order) = self.orders.remove(&id) else { return false };
        self.dequeue(order);
        for held in [&mut self.running, &mut self.loading] {
            if let Some(mut sequence) = held.remove(&order) {
                sequence.reset(&mut self.pool);
            }
        }
        true
    }

    /// Guesses the next tokens of a sequence that decodes. The next step computes as many of them as
    /// it has room for and returns the logits after each; none is believed until it is pushed.
    pub fn propose(&mut self, id: SequenceId, drafts: &[u32]) {
        if let Some(sequence) = self.running_mut(id)
            && sequence.remaining() == 1
        {
            sequence.drafts.clear();
            sequence.drafts.extend_from_slice(drafts);
        }
    }

    /// Appends what was sampled after a step: the guesses that came true, whose keys and values are in
    /// the cache already, and one token after them.
    pub fn push(&mut self, id: SequenceId, tokens: &[u32]) {
        let Some(order) = self.orders.get(&id) else { return };
        let Some(sequence) = self.running.get_mut(order) else { return };
        sequence.tokens.extend_from_slice(tokens);
        sequence.advance(&mut self.pool, tokens.len().saturating_sub(1), self.prefix_cache);
    }

    /// Notes that the backend has run this plan.
    pub fn advance(&mut self, plan: &Plan) {
        for part in &plan.parts {
            let Some(order) = self.orders.get(&part.id) else { continue };
            let Some(sequence) = self.running.get_mut(order) else { continue };
            sequence.drafts.clear();
            sequence.advance(&mut self.pool, part.tokens - part.drafted, self.prefix_cache);
        }
    }

    /// Notes how long this plan took to run, for the size of those to come.
    pub fn observe(&mut self, plan: &Plan, seconds: f64) {
        let (rows, prompt) = plan.rows();
        self.cost.note(rows, prompt, seconds);
    }

    /// What steps have cost so far.
    pub fn cost(&self) -> &StepCost {
        &self.cost
    }

    /// Admits nothing from now on, or again.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// Forgets all cached prefixes. Sequences that run keep their blocks.
    pub fn forget_cache(&mut self) {
        self.pool.forget();
    }

    /// Whether there is any sequence.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.loading.is_empty()
    }

    /// The counts now.
    pub fn state(&self) -> PlannerState {
        PlannerState {
            running: self.running.len(),
            waiting: self.waiting.len() + self.loading.len(),
            waiting_tokens: self.waiting_tokens
                + self.loading.values().map(|s| s.tokens.len()).sum::<usize>(),
            unread_tokens: self.running.values().map(|s| s.remaining() - 1).sum(),
            free_blocks: self.pool.free(),
            total_blocks: self.pool.total(),
        }
    }

    /// Notes from now on what becomes of each block, for [`Planner::take_touches`].
    pub fn watch_blocks(&mut self) {
        self.pool.watch();
    }

    /// What became of the blocks since this was last asked, where they are watched.
    pub fn take_touches(&mut self) -> Vec<Touch> {
        self.pool.take_touches()
    }

    /// What became findable in the pool, and what no longer is, since this was last asked.
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.pool.take_changes()
    }

    /// The names of a sequence's full blocks that may be taken from a cache.
    pub fn names(&self, id: SequenceId) -> &[BlockHash] {
        let of = |order| self.waiting.get(order).or_else(|| self.running.get(order));
        self.orders.get(&id).and_then(of).map_or(&[], Sequence::reusable)
    }

    /// Whether a block of this name is in the pool.
    pub fn has(&self, hash: &BlockHash) -> bool {
        self.pool.peek(std::slice::from_ref(hash)).blocks > 0
    }

    /// The physical blocks of a running sequence.
    pub fn blocks(&self, id: SequenceId) -> Option<&[u32]> {
        self.orders.get(&id).and_then(|order| self.running.get(order)).map(|s| s.blocks.as_slice())
    }

    /// The sequences that decode, and all tokens of each.
    pub fn decoding(&self) -> impl Iterator<Item = (SequenceId, &[u32])> {
        self.running.iter().filter(|(_, s)| s.remaining() == 1).map(|(o, s)| (o.id, s.tokens.as_slice()))
    }

    /// Plans the next step. It must be followed by [`Planner::advance`], or by [`Planner::remove`] of
    /// its sequences when the backend failed.
    pub fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        self.plan_into(&mut plan);
        plan
    }

    /// The same into a plan whose buffers are used again.
    pub fn plan_into(&mut self, plan: &mut Plan) {
        plan.clear();
        self.steps += 1;
        let mut draft = std::mem::take(&mut self.draft);
        draft.parts.clear();
        draft.budget = self.limits.tokens;
        self.welcome(plan);
        self.plan_decodes(&mut draft, plan);
        self.begin_loads(plan);
        self.plan_prompts(&mut draft, plan);
        self.render(&draft, plan);
        self.draft = draft;
    }

    /// One token of each sequence that decodes, then what was guessed to follow.
    fn plan_decodes(&mut self, draft: &mut Draft, plan: &mut Plan) {
        let mut decodes = std::mem::take(&mut draft.decodes);
        decodes.clear();
        decodes.extend(self.running.iter().filter(|(_, s)| s.remaining() == 1).map(|(order, _)| *order));
        for order in &decodes {
            // Absent: preempted for one before it.
            let Some(sequence) = self.running.get_mut(order) else { continue };
            sequence.trim(&mut self.pool);
            let upto = sequence.computed + 1;
            if self.make_room(*order, upto, draft, plan) {
                draft.parts.push(Piece { order: *order, tokens: 1, drafted: 0 });
                draft.budget -= 1;
            }
        }
        let prompts = !self.waiting.is_empty() || self.running.len() > decodes.len();
        draft.decodes = decodes;
        let mut room = if prompts { draft.budget / 2 } else { draft.budget };
        for piece in &mut draft.parts {
            let Some(sequence) = self.running.get_mut(&piece.order) else { continue };
            let drafted = sequence.drafts.len().min(room);
            // Guesses are not worth anybody's blocks.
            if drafted > 0 && sequence.grow(&mut self.pool, sequence.computed + 1 + drafted) {
                piece.tokens += drafted;
                piece.drafted = drafted;
                room -= drafted;
                draft.budget -= drafted;
            }
        }
    }

    /// Gets a running sequence its blocks, from the last in order if need be; `false` when that is
    /// itself.
    pub(super) fn make_room(
        &mut self,
        order: Order,
        upto: usize,
        draft: &mut Draft,
        plan: &mut Plan,
    ) -> bool {
        loop {
            let Some(sequence) = self.running.get_mut(&order) else { return false };
            if sequence.grow(&mut self.pool, upto) {
                return true;
            }
            let last = |held: &BTreeMap<Order, Sequence>| held.last_key_value().map(|(order, _)| *order);
            let loads_last = last(&self.loading) > last(&self.running);
            let held = if loads_last { &mut self.loading } else { &mut self.running };
            let Some((victim, mut sequence)) = held.pop_last() else { return false };
            sequence.reset(&mut self.pool);
            self.enqueue(victim, sequence);
            plan.preempted.push(victim.id);
            if let Some(at) = draft.parts.iter().position(|piece| piece.order == victim) {
                draft.budget += draft.parts.remove(at).tokens;
            }
        }
    }

    fn enqueue(&mut self, order: Order, sequence: Sequence) {
        self.waiting_tokens += sequence.tokens.len();
        self.adapters.wait(sequence.adapter.as_ref());
        self.waiting.insert(order, sequence);
    }

    pub(super) fn dequeue(&mut self, order: Order) -> Option<Sequence> {
        let sequence = self.waiting.remove(&order)?;
        self.waiting_tokens -= sequence.tokens.len();
        self.adapters.wait_no_longer(sequence.adapter.as_ref());
        Some(sequence)
    }

    fn running_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.orders.get(&id).and_then(|order| self.running.get_mut(order))
    }

    fn render(&self, draft: &Draft, plan: &mut Plan) {
        for piece in &draft.parts {
            let Some(sequence) = self.running.get(&piece.order) else { continue };
            let certain = piece.tokens - piece.drafted;
            let samples = certain == sequence.remaining();
            let rows = if sequence.is_scored() {
                LogitRows::Last(piece.tokens)
            } else if samples {
                LogitRows::Last(1 + piece.drafted)
            } else {
                LogitRows::None
            };
            plan.batch.spans.push(SequenceSpan {
                start: plan.batch.tokens.len(),
                len: piece.tokens,
                context: sequence.computed,
                blocks: sequence.blocks.clone(),
                logits: rows,
                adapter: sequence.adapter.as_ref().map(|adapter| adapter.id),
            });
            plan.batch.tokens.extend(&sequence.tokens[sequence.computed..sequence.computed + certain]);
            plan.batch.tokens.extend(&sequence.drafts[..piece.drafted]);
            plan.parts.push(Part {
                id: piece.order.id,
                tokens: piece.tokens,
                drafted: piece.drafted,
                decodes: sequence.remaining() == 1,
                samples,
            });
        }
        debug_assert!(plan.batch.spans.iter().all(|s| s.blocks.len() * BLOCK_TOKENS >= s.context + s.len));
    }
}

#[cfg(test)]
#[path = "planner_tests.rs"]
mod tests;
