//! Guesses by a smaller model with the same vocabulary, on a backend and a KV cache of its own.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::{Ask, Drafter};
use crate::backend::{Backend, BackendError, LogitRows, Logits, SequenceSpan, StepBatch};
use crate::block::{BlockPool, blocks_for};
use crate::step::{SequenceId, StepCost};

/// Tokens that the model reads at most before it guesses: a bound on what prompts, which it must read
/// too, delay a step.
const READ: usize = 256;

/// A draft model (Leviathan et al. 2023) for all sequences of an engine.
pub(super) struct DraftModel {
    backend: Box<dyn Backend>,
    pool: BlockPool,
    sequences: HashMap<SequenceId, Held>,
    batch: StepBatch,
    /// What one of its forward passes costs by rows.
    cost: StepCost,
    /// After a failure it is not asked again.
    broken: bool,
}

/// What its cache has of a sequence.
#[derive(Default)]
struct Held {
    /// The tokens whose keys and values are there; the last of them may have been wrong guesses.
    tokens: Vec<u32>,
    blocks: Arc<Vec<u32>>,
}

impl DraftModel {
    pub(super) fn new(backend: Box<dyn Backend>) -> Self {
        let pool = BlockPool::new(backend.info().total_blocks, false);
        Self {
            backend,
            pool,
            sequences: HashMap::new(),
            batch: StepBatch::default(),
            cost: StepCost::default(),
            broken: false,
        }
    }

    /// Adds the tokens `from..upto` of a sequence to the batch; `false` when there are no blocks for it.
    fn feed(&mut self, id: SequenceId, tokens: &[u32], from: usize, rows: LogitRows) -> bool {
        let held = self.sequences.entry(id).or_default();
        let missing = blocks_for(from + tokens.len()).saturating_sub(held.blocks.len());
        if missing > self.pool.free() {
            return false;
        }
        Arc::make_mut(&mut held.blocks).extend((0..missing).map_while(|_| self.pool.allocate()));
        held.tokens.truncate(from);
        held.tokens.extend_from_slice(tokens);
        self.batch.spans.push(SequenceSpan {
            start: self.batch.tokens.len(),
            len: tokens.len(),
            context: from,
            blocks: held.blocks.clone(),
            logits: rows,
            // The draft model has none: with it, guesses are of the base, and fewer come true.
            adapter: None,
        });
        self.batch.tokens.extend_from_slice(tokens);
        true
    }

    /// Runs the batch and empties it.
    fn run(&mut self) -> Option<Logits> {
        let rows = self.batch.logit_rows();
        let begun = Instant::now();
        let (backend, batch) = (&mut self.backend, &self.batch);
        let outcome = catch_unwind(AssertUnwindSafe(|| backend.forward(batch)));
        // What was accepted since the last guess is a few tokens; a prompt is more.
        let prompt = self.batch.spans.iter().filter(|s| s.len > 16).map(|s| s.len).sum();
        let decoded = self.batch.tokens.len() - prompt;
        self.cost.note(decoded, prompt, begun.elapsed().as_secs_f64());
        self.batch.tokens.clear();
        self.batch.spans.clear();
        match outcome {
            Ok(Ok(logits)) if logits.data.len() == rows * logits.vocab => return Some(logits),
            Ok(Ok(_)) => {
                tracing::error!("the draft model returned a wrong number of logits; it is left alone");
            }
            Ok(Err(error)) => tracing::error!(%error, "the draft model failed; it is left alone"),
            Err(_) => tracing::error!("the draft model panicked; it is left alone"),
        }
        self.broken = true;
        None
    }

    /// Reads what it lacks of each sequence. Returns those that are up to date, in the logits' order.
    fn catch_up(&mut self, asks: &[Ask<'_>]) -> Vec<usize> {
        let mut ready = Vec::new();
        let mut budget = READ;
        let longest = self.backend.info().max_model_len;
        for (at, ask) in asks.iter().enumerate() {
            if ask.count == 0 || ask.tokens.len() + ask.count > longest || budget == 0 {
                continue;
            }
            let held = self.sequences.entry(ask.id).or_default();
            let same = held.tokens.iter().zip(ask.tokens).take_while(|(a, b)| a == b).count();
            // The last token is always run, since its logits are wanted.
            let from = same.min(ask.tokens.len() - 1);
            let upto = ask.tokens.len().min(from + budget);
            let whole = upto == ask.tokens.len();
            let rows = if whole { LogitRows::Last(1) } else { LogitRows::None };
            if self.feed(ask.id, &ask.tokens[from..upto], from, rows) {
                budget -= upto - from;
                if whole {
                    ready.push(at);
                }
            }
        }
        ready
    }
}

impl Drafter for DraftModel {
    fn is_free(&self) -> bool {
        false
    }

    fn draft(&mut self, asks: &[Ask<'_>], drafts: &mut [Vec<u32>]) {
        if self.broken {
            return;
        }
        let mut ready = self.catch_up(asks);
        while !self.batch.spans.is_empty() {
            let Some(logits) = self.run() else { return };
            let mut going = Vec::new();
            for (row, at) in ready.into_iter().enumerate() {
                let (ask, drafts) = (&asks[at], &mut drafts[at]);
                let Some(token) = ask.guess(logits.row(row), drafts.len()) else { continue };
                drafts.push(token);
                let from = ask.tokens.len() + drafts.len() - 1;
                if drafts.len() < ask.count && self.feed(ask.id, &[token], from, LogitRows::Last(1)) {
                    going.push(at);
                }
            }
            ready = going;
        }
    }

    fn forget(&mut self, id: SequenceId) {
        if let Some(held) = self.sequences.remove(&id) {
            self.pool.release_all(&held.blocks);
        }
    }

    fn seconds(&self, sequences: usize, count: usize) -> f64 {
        self.cost.decode_seconds(sequences).unwrap_or(0.0) * count as f64
    }

    fn sleep(&mut self) {
        self.backend.release_cache();
    }

    fn wake(&mut self) -> Result<(), BackendError> {
        self.backend.restore_cache()
    }
}
