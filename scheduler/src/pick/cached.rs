//! How much of a prompt a replica need not compute.

use strata_wire::defaults::BLOCK_BYTES;

/// What a token is worth by where it lies, beside one in the cache that the replica computes with: it is
/// loaded from there before it is of use. Assumed, for no engine tells how long that takes.
const WORTH: [f64; 3] = [1.0, 0.9, 0.5];

/// What a replica has of one prompt, from its first token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cached {
    /// Tokens.
    pub tokens: f64,
    /// The same, less for those that must be loaded.
    pub worth: f64,
    /// Whether the replica has told so itself. Else it is guessed by what was sent there.
    pub told: bool,
}

impl Cached {
    /// A guess: the prompt's first blocks were sent there.
    pub fn guessed(blocks: usize, bytes_per_token: f64) -> Self {
        let tokens = (blocks * BLOCK_BYTES) as f64 / bytes_per_token.max(0.1);
        Self { tokens, worth: tokens, told: false }
    }

    /// What it tells by medium, the fastest first: in each the prompt's first tokens, so many.
    pub fn told(by_medium: [u32; 3]) -> Self {
        let (mut tokens, mut worth) = (0.0, 0.0);
        for (upto, each) in by_medium.into_iter().zip(WORTH) {
            let more = (f64::from(upto) - tokens).max(0.0);
            tokens += more;
            worth += more * each;
        }
        Self { tokens, worth, told: true }
    }

    /// The same, when so many of the prompt's first blocks are being computed there already, and `told` is
    /// how many it has told of. What lies beyond these is guessed.
    #[must_use]
    pub fn with_coming(self, blocks: usize, told: usize, bytes_per_token: f64) -> Self {
        let more = Self::guessed(blocks.saturating_sub(told), bytes_per_token).tokens;
        Self { tokens: self.tokens + more, worth: self.worth + more, told: self.told }
    }

    /// As blocks of a prompt that has `of` of them.
    pub fn blocks(&self, bytes_per_token: f64, of: usize) -> usize {
        ((self.tokens * bytes_per_token / BLOCK_BYTES as f64).round() as usize).min(of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_be_loaded_is_worth_less() {
        let all = Cached::told([64, 0, 0]);
        assert_eq!((all.tokens, all.worth, all.told), (64.0, 64.0, true));
        let deep = Cached::told([64, 32, 164]);
        assert!((deep.tokens - 164.0).abs() < 1e-9 && (deep.worth - 114.0).abs() < 1e-9);
        let ram = Cached::told([0, 100, 0]);
        assert!((ram.worth - 90.0).abs() < 1e-9);
        assert_eq!(Cached::told([0; 3]), Cached { told: true, ..Cached::default() });
    }

    #[test]
    fn what_is_being_computed_there_counts_as_there() {
        let told = Cached::told([64, 0, 0]);
        assert_eq!(told.with_coming(1, 1, 4.0), told);
        let coming = told.with_coming(3, 1, 4.0);
        assert_eq!((coming.tokens, coming.worth, coming.told), (192.0, 192.0, true));
        assert_eq!((coming.blocks(4.0, 9), coming.blocks(4.0, 2), coming.blocks(8.0, 9)), (3, 2, 6));
    }
}
