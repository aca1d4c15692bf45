//! How texts are cut into steps of a decoder: a pure function of their lengths.

use std::ops::Range;
use std::sync::Arc;

use crate::backend::BLOCK_TOKENS;

/// Some tokens of one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Which of the texts.
    pub(super) text: usize,
    /// Which of its tokens; those before them ran in earlier steps.
    pub(super) tokens: Range<usize>,
    /// The blocks of all its tokens.
    pub(super) blocks: Arc<Vec<u32>>,
}

/// The steps that read texts of these lengths, first to last, each of at most `tokens` tokens. Texts
/// that are read at once share `blocks` blocks; the longest must fit in them.
pub(super) fn steps(lengths: &[usize], tokens: usize, blocks: usize) -> Vec<Vec<Part>> {
    let mut steps = Vec::new();
    let (mut step, mut room, mut used) = (Vec::new(), tokens, 0);
    for (text, len) in lengths.iter().enumerate() {
        let needed = len.div_ceil(BLOCK_TOKENS);
        if used + needed > blocks {
            // What was read so far is done, and leaves its blocks.
            steps.extend((!step.is_empty()).then(|| std::mem::take(&mut step)));
            (room, used) = (tokens, 0);
        }
        let own = Arc::new((used as u32..(used + needed) as u32).collect());
        used += needed;
        let mut from = 0;
        while from < *len {
            let to = *len.min(&(from + room));
            step.push(Part { text, tokens: from..to, blocks: Arc::clone(&own) });
            room -= to - from;
            from = to;
            if room == 0 {
                steps.push(std::mem::take(&mut step));
                room = tokens;
            }
        }
    }
    steps.extend((!step.is_empty()).then_some(step));
    steps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every token is read once, in order, within the limits, and no block is taken from a text that
        /// still needs it.
        #[test]
        fn all_tokens_are_read_within_the_limits(
            lengths in prop::collection::vec(1usize..200, 0..20),
            tokens in 1usize..300,
            more in 0usize..20,
        ) {
            let blocks = 200usize.div_ceil(BLOCK_TOKENS) + more;
            let mut read = vec![0; lengths.len()];
            let mut owner: Vec<Option<usize>> = vec![None; blocks];
            for step in steps(&lengths, tokens, blocks) {
                prop_assert!(!step.is_empty());
                prop_assert!(step.iter().map(|part| part.tokens.len()).sum::<usize>() <= tokens);
                for part in &step {
                    prop_assert!(part.tokens.start == read[part.text] && !part.tokens.is_empty());
                    read[part.text] = part.tokens.end;
                    prop_assert_eq!(part.blocks.len(), lengths[part.text].div_ceil(BLOCK_TOKENS));
                    for block in part.blocks.iter() {
                        let before = owner[*block as usize].replace(part.text);
                        let done = |text: usize| read[text] == lengths[text];
                        let in_step = |text: usize| step.iter().any(|part| part.text == text);
                        let left = |text| text == part.text || (done(text) && !in_step(text));
                        prop_assert!(before.is_none_or(left));
                    }
                }
            }
            prop_assert_eq!(read, lengths);
        }
    }
}
