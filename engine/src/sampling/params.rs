//! What a request asks of sampling, validated: every value here is in its range.

use std::sync::Arc;

use super::mask::TokenMask;

/// How to choose tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0, and what is too small to divide by, takes the likeliest token.
    pub temperature: f32,
    /// Keeps the likeliest tokens up to this share of the probability, in (0, 1].
    pub top_p: f32,
    /// Keeps this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps tokens at least this likely, relative to the likeliest, in [0, 1].
    pub min_p: f32,
    /// Seed of the random series.
    pub seed: u64,
    /// What repetition costs.
    pub penalties: Penalties,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// The only tokens that may be chosen, where there are such.
    pub allowed: Option<Arc<TokenMask>>,
    /// Runs of tokens of which no one may be completed; none is empty.
    pub bad_words: Arc<[Vec<u32>]>,
    /// Whether, and with how many alternatives, to report log probabilities.
    pub logprobs: Option<usize>,
    /// The same for the tokens of the prompt.
    pub prompt_logprobs: Option<usize>,
}

/// What repetition costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// Subtracted for each time that a token was generated.
    pub frequency: f32,
    /// Subtracted once from every token that was generated.
    pub presence: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; above 0.
    pub repetition: f32,
}

impl Penalties {
    /// No penalties.
    pub const NONE: Self = Self { frequency: 0.0, presence: 0.0, repetition: 1.0 };

    /// Whether [`Penalties::repetition`] changes nothing.
    pub(super) fn repeats_are_free(&self) -> bool {
        (self.repetition - 1.0).abs() < f32::EPSILON
    }
}

impl Default for SamplingParams {
    /// Plain sampling at temperature 1.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: 0,
            penalties: Penalties::NONE,
            logit_bias: Vec::new(),
            allowed: None,
            bad_words: Arc::default(),
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

impl SamplingParams {
    /// The likeliest token each time.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }
}
