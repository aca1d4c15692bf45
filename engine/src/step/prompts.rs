//! Which prompts a step reads, and how much of each.

use super::order::Order;
use super::plan::{Admission, Plan};
use super::planner::{Draft, Piece, Planner};
use super::sequence::Sequence;
use crate::block::{BLOCK_TOKENS, BlockHash, blocks_for};

/// Waiting sequences that one step looks at.
pub(super) const WINDOW: usize = 16;

/// Tokens of a scored prompt in one step: each has a row of logits, as long as the vocabulary.
const SCORED_TOKENS: usize = 64;

/// A prompt that could have a part of the step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prompt {
    order: Order,
    /// Whose turn its turn is: its own, or that of one that waits for the prefix that it computes.
    turn: Order,
    remaining: usize,
    /// What remained when it began.
    to_read: usize,
    waits: bool,
}

impl Planner {
    /// Divides what the step takes of prompts: at least half for the first in order, so that it gets
    /// on; the rest for those with the least left to read, so that a short prompt does not wait behind
    /// a long one.
    pub(super) fn plan_prompts(&mut self, draft: &mut Draft, plan: &mut Plan) {
        let decodes = draft.parts.len();
        let rows = self.limits.tokens - draft.budget;
        let mut prompts = std::mem::take(&mut draft.prompts);
        prompts.clear();
        let begun = self.running.iter().filter(|(_, s)| s.remaining() > 1);
        prompts.extend(begun.map(|(order, s)| Prompt {
            order: *order,
            turn: *order,
            remaining: s.remaining(),
            to_read: s.to_read(),
            waits: false,
        }));
        let crowd = prompts.len() + self.waiting.len().min(self.places());
        // What was just preempted would only take the blocks back.
        if plan.preempted.is_empty() && draft.budget > 0 && !self.held {
            self.admissible(&mut prompts);
        }
        let brief = prompts.iter().filter(|p| self.cost.is_brief(p.to_read)).map(|p| p.remaining).sum();
        let mut budget = match decodes {
            0 => draft.budget,
            _ => self.cost.prompt_tokens(rows, decodes, crowd, brief).min(draft.budget),
        };
        if let Some(first) = prompts.iter().min_by_key(|p| p.turn).copied() {
            let certain = first.remaining.min(budget.div_ceil(2));
            budget -= certain;
            prompts.sort_unstable_by_key(|p| (p.remaining, p.order));
            for prompt in &prompts {
                let certain = if prompt.order == first.order { certain } else { 0 };
                let share = (prompt.remaining - certain).min(budget);
                budget -= share;
                self.take(*prompt, certain + share, draft, plan);
            }
        }
        draft.prompts = prompts;
    }

    /// Adds the waiting sequences that may be admitted now, in order, as far as there are places and
    /// blocks. Who lacks blocks holds up all behind it, or it might lack them for ever.
    fn admissible(&self, prompts: &mut Vec<Prompt>) {
        let mut places = self.places();
        // Blocks that begun prompts will still take, and one more for each sequence to grow into:
        // otherwise it would soon be preempted, or preempt.
        let mut growing = self.holding().count();
        let mut reserved = self.reserved();
        let mut adapters = self.admitting();
        for (order, sequence) in self.waiting.iter().take(WINDOW) {
            if places == 0 {
                break;
            }
            if !adapters.admits(sequence.adapter.as_deref()) {
                continue;
            }
            let hit = self.pool.peek(sequence.reusable());
            // Another sequence is computing this very prefix: its blocks are worth the wait, and
            // whoever comes next may go first.
            let next = sequence.reusable().get(hit.blocks);
            if next.is_some_and(|next| self.loading.values().any(|s| s.completes(hit.blocks, next))) {
                continue;
            }
            if let Some(next) = next
                && let Some(owner) = prompts.iter_mut().find(|p| self.completes(p, hit.blocks, next))
            {
                owner.turn = owner.turn.min(*order);
                continue;
            }
            let takes = blocks_for(sequence.tokens.len()) - hit.blocks + hit.from_free;
            if growing > 0 && takes + reserved + growing > self.pool.free() {
                break;
            }
            let remaining = sequence.tokens.len() - hit.blocks * BLOCK_TOKENS;
            let (order, turn, to_read) = (*order, *order, remaining);
            prompts.push(Prompt { order, turn, remaining, to_read, waits: true });
            reserved += takes;
            growing += 1;
            places -= 1;
        }
    }

    /// Places for more sequences.
    pub(super) fn places(&self) -> usize {
        self.limits.sequences.saturating_sub(self.running.len() + self.loading.len())
    }

    /// The sequences that hold blocks.
    pub(super) fn holding(&self) -> impl Iterator<Item = &Sequence> {
        self.running.values().chain(self.loading.values())
    }

    /// Blocks that begun prompts will still take.
    pub(super) fn reserved(&self) -> usize {
        self.holding().map(|s| blocks_for(s.tokens.len()).saturating_sub(s.blocks.len())).sum()
    }

    /// Whether this prompt has, or is going to have, a full block of this name at this place.
    fn completes(&self, prompt: &Prompt, at: usize, name: &BlockHash) -> bool {
        let sequences = if prompt.waits { &self.waiting } else { &self.running };
        sequences.get(&prompt.order).is_some_and(|s| s.completes(at, name))
    }

    /// Gives a prompt this many tokens of the step, and a place among the running if it has none.
    fn take(&mut self, prompt: Prompt, tokens: usize, draft: &mut Draft, plan: &mut Plan) {
        let order = prompt.order;
        if tokens == 0 {
            return;
        }
        if prompt.waits {
            let Some(mut sequence) = self.dequeue(order) else { return };
            let cached_tokens = sequence.reuse(&mut self.pool);
            let (id, first) = (order.id, !sequence.admitted);
            plan.admitted.push(Admission { id, cached_tokens, loaded_tokens: 0, first });
            sequence.admitted = true;
            self.running.insert(order, sequence);
        }
        // Absent: preempted for one before it.
        let Some(sequence) = self.running.get(&order) else { return };
        let most = if sequence.is_scored() { SCORED_TOKENS } else { usize::MAX };
        let tokens = tokens.min(sequence.remaining()).min(most);
        let upto = sequence.computed + tokens;
        if self.make_room(order, upto, draft, plan) {
            draft.parts.push(Piece { order, tokens, drafted: 0 });
            draft.budget -= tokens;
        }
    }
}
