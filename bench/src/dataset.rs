//! Which prompts are sent. The same options and seed give the same prompts.

mod file;
mod vocabulary;

use serde::Serialize;

use crate::Random;

pub use file::{FileError, custom, sharegpt};
pub use vocabulary::Vocabulary;

/// A prompt, as the completions API takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Prompt {
    /// Text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// One request to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The prompt.
    pub prompt: Prompt,
    /// Tokens to generate at most.
    pub output_len: usize,
}

/// Prompts of random tokens behind one common prefix: vLLM's `random`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Uniform {
    /// Prompts.
    pub count: usize,
    /// Tokens at the beginning of every prompt.
    pub prefix_len: usize,
    /// Tokens of each prompt behind the prefix.
    pub input_len: usize,
    /// Tokens to generate.
    pub output_len: usize,
    /// Lengths are uniform within ± this share of what is asked for, in [0, 1).
    pub range_ratio: f64,
}

/// Prompts that share some prefixes evenly: vLLM's `prefix_repetition`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefixes {
    /// Prompts.
    pub count: usize,
    /// Different prefixes, at least 1.
    pub prefixes: usize,
    /// Tokens of a prefix.
    pub prefix_len: usize,
    /// Tokens of each prompt behind its prefix.
    pub suffix_len: usize,
    /// Tokens to generate.
    pub output_len: usize,
}

/// Draws [`Uniform`] prompts.
pub fn uniform(shape: Uniform, vocabulary: &Vocabulary, seed: u64) -> Vec<Request> {
    let mut random = Random::new(seed);
    let prefix = vocabulary.draw(shape.prefix_len, &mut random);
    let length = |mean: usize, random: &mut Random| {
        let spread = (mean as f64 * shape.range_ratio) as usize;
        mean - spread + random.below(2 * spread + 1)
    };
    (0..shape.count)
        .map(|_| {
            let input = length(shape.input_len, &mut random);
            let output_len = length(shape.output_len, &mut random).max(1);
            let own = vocabulary.draw(input, &mut random);
            Request { prompt: vocabulary.prompt(&[&prefix, &own]), output_len }
        })
        .collect()
}

/// Draws [`Prefixes`] prompts, in random order.
pub fn prefixes(shape: Prefixes, vocabulary: &Vocabulary, seed: u64) -> Vec<Request> {
    let mut random = Random::new(seed);
    let known: Vec<_> = (0..shape.prefixes).map(|_| vocabulary.draw(shape.prefix_len, &mut random)).collect();
    let mut requests: Vec<Request> = (0..shape.count)
        .map(|i| {
            let own = vocabulary.draw(shape.suffix_len, &mut random);
            let prompt = vocabulary.prompt(&[&known[i % shape.prefixes], &own]);
            Request { prompt, output_len: shape.output_len }
        })
        .collect();
    random.shuffle(&mut requests);
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(prompt: &Prompt) -> Vec<&str> {
        match prompt {
            Prompt::Text(text) => text.split(' ').collect(),
            Prompt::Tokens(_) => panic!("text was asked for"),
        }
    }

    #[test]
    fn prompts_share_their_prefix_and_nothing_else() {
        let shape = Uniform { count: 3, prefix_len: 20, input_len: 30, output_len: 5, range_ratio: 0.0 };
        let drawn = uniform(shape, &Vocabulary::Words, 9);
        let prompts: Vec<_> = drawn.iter().map(|r| words(&r.prompt)).collect();
        assert!(prompts.iter().all(|p| p.len() == 50 && p[..20] == prompts[0][..20]));
        assert_ne!(prompts[0][20..], prompts[1][20..]);
        assert_eq!(drawn, uniform(shape, &Vocabulary::Words, 9));
        assert_ne!(drawn, uniform(shape, &Vocabulary::Words, 10));
    }

    #[test]
    fn lengths_stay_in_their_range() {
        let shape = Uniform { count: 500, prefix_len: 0, input_len: 10, output_len: 20, range_ratio: 0.5 };
        let drawn = uniform(shape, &Vocabulary::Words, 1);
        let lengths: Vec<usize> = drawn.iter().map(|r| words(&r.prompt).len()).collect();
        assert_eq!((lengths.iter().min(), lengths.iter().max()), (Some(&5), Some(&15)));
        assert!(drawn.iter().all(|r| (10..=30).contains(&r.output_len)));
    }

    #[test]
    fn every_prefix_gets_its_share() {
        let shape = Prefixes { count: 12, prefixes: 3, prefix_len: 8, suffix_len: 4, output_len: 1 };
        let drawn = prefixes(shape, &Vocabulary::Words, 2);
        let mut seen = std::collections::BTreeMap::<Vec<&str>, usize>::new();
        for request in &drawn {
            *seen.entry(words(&request.prompt)[..8].to_vec()).or_default() += 1;
        }
        assert_eq!(seen.into_values().collect::<Vec<_>>(), [4, 4, 4]);
    }
}
