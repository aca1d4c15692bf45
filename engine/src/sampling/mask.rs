//! A set of tokens, one bit each.

/// Tokens that may be chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
}

impl TokenMask {
    /// The set whose token `32 · i + b` is bit `b` of word `i`.
    pub fn from_words(words: Vec<u32>) -> Self {
        Self { words }
    }

    /// The set of these tokens.
    pub fn of(tokens: &[u32]) -> Self {
        let words = tokens.iter().max().map_or(0, |last| *last as usize / 32 + 1);
        let mut mask = Self { words: vec![0; words] };
        for &token in tokens {
            mask.words[token as usize / 32] |= 1 << (token % 32);
        }
        mask
    }

    /// Whether a token is in the set.
    pub fn has(&self, token: u32) -> bool {
        self.words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// Whether no token is.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Makes everything outside of the set, but for the tokens `beside` it, impossible.
    pub(super) fn apply(&self, row: &mut [f32], beside: &[u32]) {
        let kept: Vec<(u32, f32)> =
            beside.iter().filter_map(|token| Some((*token, *row.get(*token as usize)?))).collect();
        for (i, chunk) in row.chunks_mut(32).enumerate() {
            match self.words.get(i).copied().unwrap_or(0) {
                0 => chunk.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                word => {
                    for (bit, logit) in chunk.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
        for (token, logit) in kept {
            row[token as usize] = logit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_left_is_the_set(
            tokens in proptest::collection::vec(0u32..200, 0..40),
            beside in proptest::collection::vec(0u32..200, 0..3),
            vocab in 1usize..150,
        ) {
            let mask = TokenMask::of(&tokens);
            let mut row = vec![1.0; vocab];
            mask.apply(&mut row, &beside);
            for (token, logit) in (0u32..).zip(&row) {
                prop_assert_eq!(mask.has(token), tokens.contains(&token));
                prop_assert_eq!(logit.is_finite(), mask.has(token) || beside.contains(&token));
            }
            prop_assert_eq!(mask.is_empty(), tokens.is_empty());
        }
    }
}
