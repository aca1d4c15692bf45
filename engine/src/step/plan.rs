//! What goes into a planner and what comes out.

use std::sync::Arc;

use super::loads::Load;
use super::sequence::SequenceId;
use crate::backend::StepBatch;
use crate::lora::AdapterKey;

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
    /// Whether the logits of all prompt tokens are wanted, so that no prefix can be reused.
    pub scored: bool,
    /// The adapter that it runs with.
    pub adapter: Option<Arc<AdapterKey>>,
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

/// One step, and what became of the sequences while it was planned. Kept from step to step, so that
/// its buffers are allocated once.
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
    /// Blocks to fetch from below the pool. The sequences that wait for them run in no step until
    /// [`super::Planner::loaded`] has been told of each.
    pub loads: Vec<Load>,
}

impl Plan {
    /// Empties it.
    pub fn clear(&mut self) {
        self.batch.tokens.clear();
        self.batch.spans.clear();
        self.parts.clear();
        self.admitted.clear();
        self.preempted.clear();
        self.loads.clear();
    }

    /// Tokens of decodes and drafts, and tokens of prompts.
    pub fn rows(&self) -> (usize, usize) {
        let decoded = self.parts.iter().filter(|p| p.decodes).map(|p| p.tokens).sum();
        (decoded, self.batch.tokens.len() - decoded)
    }
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which.
    pub id: SequenceId,
    /// Tokens of it that are run, drafted ones included.
    pub tokens: usize,
    /// How many of them, the last, are only guessed: see [`super::Planner::propose`].
    pub drafted: usize,
    /// Whether it had one token left to run, rather than a prompt.
    pub decodes: bool,
    /// Whether a token is to be sampled from its logits.
    pub samples: bool,
}

/// A sequence that left the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Which.
    pub id: SequenceId,
    /// Tokens of it that the prefix cache had, in whatever tier.
    pub cached_tokens: usize,
    /// Those among them that came from below the pool.
    pub loaded_tokens: usize,
    /// Whether it is here for the first time.
    pub first: bool,
}

/// Counts for metrics and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlannerState {
    /// Sequences that hold blocks.
    pub running: usize,
    /// Sequences that wait, those for blocks from below the pool included.
    pub waiting: usize,
    /// Tokens of the sequences that wait.
    pub waiting_tokens: usize,
    /// Tokens of prompts that have begun and are not read yet.
    pub unread_tokens: usize,
    /// Blocks that nobody holds.
    pub free_blocks: usize,
    /// All blocks.
    pub total_blocks: usize,
}
