//! A decoder that reads: texts run through its layers, and their rows become vectors.

use super::steps::{Part, steps};
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::vectors::{TextInput, VectorBackend, VectorInfo};
use crate::backend::{BLOCK_TOKENS, Backend, BackendError, LogitRows, SequenceSpan, StepBatch};
use crate::model::load::Head;
use crate::model::spec::ModelSpec;
use crate::model::vectors::{Pooling, VectorOutput, normalise};
use crate::tensor::Weights;

/// A decoder whose backend returns rows, or scores of classes, instead of logits.
pub struct Reader {
    backend: Box<dyn Backend>,
    info: VectorInfo,
    step_tokens: usize,
}

impl Reader {
    /// A decoder on the processor as a reader of texts up to `cpu.max_model_len`, at most `step_tokens`
    /// tokens at once.
    ///
    /// # Panics
    /// When `weights` are not those of `spec`, or `cpu.kv_blocks` do not hold the longest text.
    pub fn open(
        spec: ModelSpec,
        weights: Weights,
        head: Head,
        output: VectorOutput,
        cpu: CpuOptions,
        step_tokens: usize,
    ) -> Result<Self, BackendError> {
        let info = VectorInfo {
            architecture: spec.architecture.clone(),
            vocab: spec.vocab,
            max_tokens: cpu.max_model_len.min(spec.max_context),
            width: output.width(spec.hidden),
            output,
        };
        let scores = match head {
            Head::Classes { scores, .. } => Some(scores),
            Head::Tokens | Head::Nothing => None,
        };
        let backend = CpuBackend::reading(spec, weights, scores, cpu)?;
        Ok(Self::new(Box::new(backend), info, step_tokens))
    }

    /// A reader of at most `step_tokens` tokens at once, which are at least one.
    ///
    /// # Panics
    /// When the backend's blocks do not hold the longest text that `info` names.
    pub fn new(backend: Box<dyn Backend>, info: VectorInfo, step_tokens: usize) -> Self {
        let blocks = backend.info().total_blocks;
        assert!(info.max_tokens.div_ceil(BLOCK_TOKENS) <= blocks, "room for the longest text");
        Self { backend, info, step_tokens: step_tokens.max(1) }
    }

    /// Whose rows are pooled, and how; classes are scored by the last.
    fn pooling(&self) -> Pooling {
        match &self.info.output {
            VectorOutput::Embedding(embedding) => embedding.pooling,
            VectorOutput::Classes { .. } => Pooling::Last,
        }
    }

    /// Which rows of a part are wanted.
    fn rows(&self, part: &Part, len: usize) -> LogitRows {
        match self.pooling() {
            Pooling::Mean => LogitRows::Last(part.tokens.len()),
            Pooling::First if part.tokens.start == 0 => LogitRows::Last(part.tokens.len()),
            Pooling::Last if part.tokens.end == len => LogitRows::Last(1),
            Pooling::First | Pooling::Last => LogitRows::None,
        }
    }

    fn step(
        &mut self,
        parts: &[Part],
        texts: &[TextInput],
        vectors: &mut [Vec<f32>],
    ) -> Result<(), BackendError> {
        let mut batch = StepBatch::default();
        for part in parts {
            let tokens = &texts[part.text].tokens;
            batch.spans.push(SequenceSpan {
                adapter: None,
                start: batch.tokens.len(),
                len: part.tokens.len(),
                context: part.tokens.start,
                blocks: part.blocks.clone(),
                logits: self.rows(part, tokens.len()),
            });
            batch.tokens.extend(&tokens[part.tokens.clone()]);
        }
        let rows = self.backend.forward(&batch)?;
        let mut at = 0;
        for (part, span) in parts.iter().zip(&batch.spans) {
            let vector = &mut vectors[part.text];
            for row in (at..at + span.logits.count()).map(|row| rows.row(row)) {
                if vector.is_empty() {
                    vector.extend(row);
                } else if self.pooling() == Pooling::Mean {
                    vector.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                }
            }
            at += span.logits.count();
        }
        Ok(())
    }
}

impl VectorBackend for Reader {
    fn info(&self) -> &VectorInfo {
        &self.info
    }

    fn run(&mut self, texts: &[TextInput]) -> Result<Vec<Vec<f32>>, BackendError> {
        let lengths: Vec<usize> = texts.iter().map(|text| text.tokens.len()).collect();
        let most = self.info.max_tokens;
        if let Some(span) = lengths.iter().position(|len| !(1..=most).contains(len)) {
            let problem = format!("has {} tokens, expected 1 to {most}", lengths[span]);
            return Err(BackendError::InvalidStep { span, problem });
        }
        let mut vectors = vec![Vec::with_capacity(self.info.width); texts.len()];
        for step in steps(&lengths, self.step_tokens, self.backend.info().total_blocks) {
            self.step(&step, texts, &mut vectors)?;
        }
        if let VectorOutput::Embedding(embedding) = &self.info.output {
            for (vector, len) in vectors.iter_mut().zip(lengths) {
                if embedding.pooling == Pooling::Mean {
                    for x in vector.iter_mut() {
                        *x /= len as f32;
                    }
                }
                if embedding.normalise {
                    normalise(vector);
                }
            }
        }
        Ok(vectors)
    }
}
