//! The seam between deciding what to run and running it.
//!
//! A [`Backend`] owns the weights and the KV cache's memory and executes one step at a time: a single
//! forward pass over all tokens that the step scheduled, prefill chunks and decodes mixed. It decides
//! nothing: which sequences run, and which physical blocks hold their keys and values, is in the
//! [`StepBatch`].

pub mod cpu;
pub mod vectors;

use std::sync::Arc;

use crate::lora::{AdapterId, LoraWeights};

/// Tokens in one KV block, the same in every backend.
pub const BLOCK_TOKENS: usize = strata_wire::defaults::BLOCK_TOKENS;

/// What a backend is and what a block of its cache costs.
#[derive(Clone, Debug)]
pub struct BackendInfo {
    /// `cpu` or `cuda`.
    pub name: &'static str,
    /// The device, in words for a person: processor, instruction set, threads.
    pub device: String,
    /// Blocks that were allocated, once, at start.
    pub total_blocks: usize,
    /// Bytes of one block over all layers, keys and values.
    pub block_bytes: usize,
    /// Size of a row of logits.
    pub vocab: usize,
    /// Longest context that the model takes.
    pub max_model_len: usize,
}

/// One sequence's part of a step.
#[derive(Clone, Debug)]
pub struct SequenceSpan {
    /// Where its tokens start in [`StepBatch::tokens`].
    pub start: usize,
    /// How many tokens of it this step runs: one for a decode, more for a prefill chunk.
    pub len: usize,
    /// Tokens whose keys and values are in the cache already; the first token of this step is at
    /// this position.
    pub context: usize,
    /// The physical blocks that hold positions `0..context + len`, in order.
    pub blocks: Arc<Vec<u32>>,
    /// Which of its tokens have their logits returned.
    pub logits: LogitRows,
    /// The adapter that its tokens run with: one that [`Backend::load_adapter`] was given.
    pub adapter: Option<AdapterId>,
}

/// Which of a span's tokens have their logits returned. Every row costs a product with the output
/// head, the widest of all, so only what is read should be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// None: a chunk of a prompt that goes on.
    None,
    /// The last so many tokens of the span, in order; at most all of them.
    Last(usize),
}

impl LogitRows {
    /// How many rows that is.
    pub fn count(self) -> usize {
        match self {
            Self::None => 0,
            Self::Last(count) => count,
        }
    }
}

/// Everything that one forward pass runs.
#[derive(Clone, Debug, Default)]
pub struct StepBatch {
    /// The tokens of all sequences, one after the other.
    pub tokens: Vec<u32>,
    /// Which of them belong to which sequence.
    pub spans: Vec<SequenceSpan>,
}

impl StepBatch {
    /// How many rows of logits all spans ask for together.
    pub fn logit_rows(&self) -> usize {
        self.spans.iter().map(|span| span.logits.count()).sum()
    }
}

/// Rows of logits in the order of the tokens that were asked for, each [`BackendInfo::vocab`] long; from a
/// model that reads, its rows or its classes' scores.
#[derive(Clone, Debug, Default)]
pub struct Logits {
    /// The rows, one after the other.
    pub data: Vec<f32>,
    /// Length of a row.
    pub vocab: usize,
}

impl Logits {
    /// The `i`-th row.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.vocab..(i + 1) * self.vocab]
    }
}

/// Why a step failed. The engine fails the requests of the step and goes on.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A token id that the model does not have.
    #[error("token id {token} is outside the model's vocabulary of {vocab}")]
    TokenOutOfRange {
        /// The id.
        token: u32,
        /// The size of the vocabulary.
        vocab: usize,
    },
    /// A step that does not fit the cache or itself: an error of whoever planned it.
    #[error("span {span} of the step {problem}")]
    InvalidStep {
        /// Which of the step's spans.
        span: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// Bytes that are no block of this backend.
    #[error("a block of the KV cache takes {expected} bytes and {found} were given")]
    BlockSize {
        /// Bytes of a block.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// The device failed.
    #[error("the {backend} device failed: {message}")]
    Device {
        /// Which backend.
        backend: &'static str,
        /// What it said.
        message: String,
    },
}

/// Executes steps.
pub trait Backend: Send {
    /// What this backend is.
    fn info(&self) -> &BackendInfo;

    /// Runs one forward pass: writes the keys and values of the step's tokens into their blocks, and the
    /// logits that were asked for in place of those that `logits` holds, whose memory is used again.
    fn forward_into(&mut self, step: &StepBatch, logits: &mut Logits) -> Result<(), BackendError>;

    /// The same into new memory.
    fn forward(&mut self, step: &StepBatch) -> Result<Logits, BackendError> {
        let mut logits = Logits::default();
        self.forward_into(step, &mut logits)?;
        Ok(logits)
    }

    /// Names the model's shape and the form in which [`Backend::export_block`] writes a block: bytes may
    /// be imported where this text is the same, and the weights are.
    fn layout(&self) -> String;

    /// Appends a block's keys and values over all layers, [`BackendInfo::block_bytes`] in all. What they
    /// mean is this backend's own.
    fn export_block(&self, block: u32, bytes: &mut Vec<u8>);

    /// Fills a block with what [`Backend::export_block`] has written, to the bit.
    fn import_block(&mut self, block: u32, bytes: &[u8]) -> Result<(), BackendError>;

    /// Gives the memory of the KV cache back to the system, with what is in it. Nothing is run until
    /// [`Backend::restore_cache`].
    fn release_cache(&mut self) {}

    /// Takes the memory of the KV cache again, empty.
    fn restore_cache(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    /// Takes an adapter, for spans that name it. What it adds to a token does not depend on what else
    /// the step holds, with this adapter, others or none.
    fn load_adapter(&mut self, _: AdapterId, _: &LoraWeights) -> Result<(), BackendError> {
        let backend = self.info().name;
        Err(BackendError::Device { backend, message: "it computes no adapters".into() })
    }

    /// Lets go of an adapter, which no later span names.
    fn unload_adapter(&mut self, _: AdapterId) {}

    /// Matrix products of the model's own weights that [`Backend::forward`] has executed so far: it grows
    /// by the same amount for every step, however many sequences the step holds.
    fn matrix_products(&self) -> u64;
}
