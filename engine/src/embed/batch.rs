//! Which texts run together: a pure function of what waits.

use std::collections::VecDeque;

/// What one forward pass may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// Tokens, unless a single text has more.
    pub(super) tokens: usize,
    /// Texts.
    pub(super) texts: usize,
}

/// How many of the texts that wait, first come first served, run now. At least one, so that a text
/// longer than the budget runs by itself.
pub(super) fn take(waiting: &VecDeque<usize>, budget: Budget) -> usize {
    let mut tokens = 0;
    let fits = waiting.iter().take(budget.texts.max(1)).take_while(|len| {
        tokens += **len;
        tokens <= budget.tokens
    });
    fits.count().max(usize::from(!waiting.is_empty()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Everything that waits runs in the end, in order, and no pass is larger than it may be.
        #[test]
        fn all_run_within_the_budget(
            lengths in prop::collection::vec(1usize..600, 0..60),
            tokens in 1usize..1000,
            texts in 1usize..20,
        ) {
            let mut waiting: VecDeque<usize> = lengths.into();
            while !waiting.is_empty() {
                let count = take(&waiting, Budget { tokens, texts });
                prop_assert!((1..=texts).contains(&count));
                let sum: usize = waiting.drain(..count).sum();
                prop_assert!(sum <= tokens || count == 1);
            }
        }
    }
}
