//! Scores a prompt's tokens while it is computed.

use std::sync::Arc;

use crate::backend::SequenceSpan;
use crate::sampling::{ScoredToken, score};

/// How far a prompt is scored.
#[derive(Clone, Debug)]
pub(super) struct PromptScore {
    prompt: Arc<[u32]>,
    /// Likeliest tokens to report at each place.
    top: usize,
    /// Tokens that have their score, or need none: the first.
    scored: usize,
}

impl PromptScore {
    pub(super) fn new(prompt: &[u32], top: usize) -> Self {
        Self { prompt: prompt.into(), top, scored: 1 }
    }

    /// The scores that this span's rows of logits make known. A prompt that is computed again, after a
    /// preemption, is not scored again.
    pub(super) fn advance<'a>(
        &mut self,
        span: &SequenceSpan,
        row: impl Fn(usize) -> &'a [f32],
    ) -> Vec<ScoredToken> {
        let rows = span.logits.count();
        let first = span.context + span.len - rows;
        let mut tokens = Vec::new();
        for at in 0..rows {
            let next = first + at + 1;
            if next == self.scored
                && let Some(token) = self.prompt.get(next)
            {
                tokens.push(score(row(at), *token, self.top));
                self.scored += 1;
            }
        }
        tokens
    }
}
