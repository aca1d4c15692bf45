//! Guesses by n-gram lookup: what followed the last tokens where they stood before.

use super::{Ask, Drafter};
use crate::step::SequenceId;

/// Tokens that are searched, from the end: a bound on the work of a step.
const SEARCHED: usize = 16_384;

/// Prompt lookup decoding (Saxena 2023): free to ask, and right where an answer repeats its prompt or
/// itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ngram {
    pub(super) longest: usize,
    pub(super) shortest: usize,
}

impl Ngram {
    /// What followed the latest earlier place of the longest ending of `tokens` that stood before.
    fn find(self, tokens: &[u32], count: usize) -> &[u32] {
        let tokens = &tokens[tokens.len().saturating_sub(SEARCHED)..];
        let last = tokens.len();
        let (mut best, mut at) = (self.shortest.saturating_sub(1), last);
        // `end` is where an earlier place of the ending ends.
        for end in (1..last).rev() {
            let most = self.longest.min(end);
            let same = (0..most).take_while(|i| tokens[end - 1 - i] == tokens[last - 1 - i]).count();
            if same > best {
                (best, at) = (same, end);
                if best == self.longest {
                    break;
                }
            }
        }
        &tokens[at..last.min(at + count)]
    }
}

impl Drafter for Ngram {
    fn is_free(&self) -> bool {
        true
    }

    fn draft(&mut self, asks: &[Ask<'_>], drafts: &mut [Vec<u32>]) {
        for (ask, drafts) in asks.iter().zip(drafts) {
            drafts.extend_from_slice(self.find(ask.tokens, ask.count));
        }
    }

    fn forget(&mut self, _: SequenceId) {}

    fn seconds(&self, _: usize, _: usize) -> f64 {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_ending_and_then_the_latest_place_decide() {
        let ngram = Ngram { longest: 3, shortest: 2 };
        let find = |tokens: &[u32]| ngram.find(tokens, 2).to_vec();
        assert_eq!(find(&[1, 2, 3, 4, 5, 1, 2]), [3, 4]);
        assert_eq!(find(&[1, 2, 7, 8, 1, 2, 9, 1, 2]), [9, 1], "the latest of equals");
        assert_eq!(find(&[5, 1, 2, 7, 8, 1, 2, 9, 5, 1, 2]), [7, 8], "the longer one");
        assert_eq!(find(&[1, 9, 9, 9, 9]), [9], "no more than there is");
        assert!(find(&[1, 2, 3, 4, 2]).is_empty(), "one token is too short");
        assert!(find(&[1]).is_empty() && find(&[1, 1]).is_empty());
    }
}
