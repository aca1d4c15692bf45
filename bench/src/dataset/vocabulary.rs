//! What random prompts are made of.

use std::sync::Arc;

use strata_engine::tokenizer::Tokenizer;

use super::Prompt;
use crate::Random;

/// What random prompts are made of.
#[derive(Clone)]
pub enum Vocabulary {
    /// Text of frequent English words. Each is one token in the usual byte-pair vocabularies, so that
    /// lengths come close without a tokenizer; the server's usage says what they were.
    Words,
    /// Token ids of a model, without its special ones.
    Tokens(Arc<Tokenizer>),
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Words => "Words",
            Self::Tokens(_) => "Tokens",
        })
    }
}

impl Vocabulary {
    /// Draws this many words or tokens, as indices that [`Vocabulary::prompt`] understands.
    pub(super) fn draw(&self, count: usize, random: &mut Random) -> Vec<u32> {
        match self {
            Self::Words => (0..count).map(|_| random.below(WORDS.len()) as u32).collect(),
            Self::Tokens(tokenizer) => {
                let ordinary: Vec<u32> =
                    (0..tokenizer.vocab_size() as u32).filter(|id| !tokenizer.is_special(*id)).collect();
                (0..count).map(|_| ordinary[random.below(ordinary.len())]).collect()
            }
        }
    }

    /// One prompt of these parts.
    pub(super) fn prompt(&self, parts: &[&[u32]]) -> Prompt {
        let ids = parts.concat();
        match self {
            Self::Words => {
                let words: Vec<&str> = ids.iter().map(|&id| WORDS[id as usize]).collect();
                Prompt::Text(words.join(" "))
            }
            Self::Tokens(_) => Prompt::Tokens(ids),
        }
    }
}

#[rustfmt::skip]
const WORDS: [&str; 128] = [
    "the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not",
    "he", "his", "but", "at", "are", "this", "have", "from", "or", "had", "an", "they", "which", "one", "you",
    "were", "all", "her", "she", "there", "would", "their", "we", "him", "been", "has", "when", "who", "will",
    "no", "more", "if", "out", "so", "up", "said", "what", "its", "about", "than", "into", "them", "can",
    "only", "other", "time", "new", "some", "could", "these", "two", "may", "first", "then", "do", "any",
    "like", "my", "now", "over", "such", "our", "man", "me", "even", "most", "made", "after", "also", "well",
    "did", "many", "before", "must", "years", "back", "through", "much", "where", "your", "way", "down",
    "should", "because", "long", "each", "just", "state", "those", "people", "too", "how", "little", "good",
    "world", "make", "very", "year", "still", "see", "work", "life", "get", "here", "between", "both", "being",
    "under", "never", "day", "same", "another",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_is_there_twice() {
        let mut words = WORDS.to_vec();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), WORDS.len());
    }
}
