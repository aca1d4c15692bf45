//! Checks a step before anything is touched, so that the kernels may rely on it.

use super::lora::Loras;
use crate::backend::{BLOCK_TOKENS, BackendError, BackendInfo, StepBatch};

/// An error unless every token is in the vocabulary, the spans follow one another over all tokens, and
/// every position has a block that exists, and every adapter is there.
pub(super) fn check(step: &StepBatch, info: &BackendInfo, loras: &Loras) -> Result<(), BackendError> {
    if let Some(&token) = step.tokens.iter().find(|token| **token as usize >= info.vocab) {
        return Err(BackendError::TokenOutOfRange { token, vocab: info.vocab });
    }
    let mut next = 0;
    for (i, span) in step.spans.iter().enumerate() {
        let bad = |problem: String| BackendError::InvalidStep { span: i, problem };
        if span.start != next || span.len == 0 || span.len > step.tokens.len() - next {
            let (start, len, tokens) = (span.start, span.len, step.tokens.len());
            return Err(bad(format!("takes {len} tokens from {start}, expected from {next} of {tokens}")));
        }
        next += span.len;
        if span.logits.count() > span.len {
            let (rows, len) = (span.logits.count(), span.len);
            return Err(bad(format!("asks for the logits of {rows} of its {len} tokens")));
        }
        let end = span.context.checked_add(span.len).filter(|end| *end <= info.max_model_len);
        let end = end.ok_or_else(|| {
            bad(format!("ends beyond the longest context of {} tokens", info.max_model_len))
        })?;
        let needed = end.div_ceil(BLOCK_TOKENS);
        if span.blocks.len() < needed {
            return Err(bad(format!("has {} blocks, but {end} tokens need {needed}", span.blocks.len())));
        }
        if span.adapter.is_some_and(|adapter| !loras.has(adapter)) {
            return Err(bad("names an adapter that is not loaded".to_owned()));
        }
        if let Some(block) = span.blocks.iter().find(|block| **block as usize >= info.total_blocks) {
            return Err(bad(format!("names block {block} of {}", info.total_blocks)));
        }
    }
    if next != step.tokens.len() {
        let problem = format!("leaves {} tokens to nobody", step.tokens.len() - next);
        return Err(BackendError::InvalidStep { span: step.spans.len(), problem });
    }
    Ok(())
}
