//! From logits to a token: penalties, truncation, the draw, and the texts that end a generation.
//!
//! Everything here depends on the sequence alone, never on what else was in the step: the draw of
//! the i-th token uses the i-th number of the sequence's own random series.

mod draw;
mod mask;
mod params;
mod random;
mod sampler;
mod stop;
mod weight;

pub use mask::TokenMask;
pub use params::{Penalties, SamplingParams};
pub use sampler::{Allowed, Sampled, Sampler, SamplingError, ScoredToken, TokenLogprobs, score};
pub use stop::{StopMatcher, Stopped};

#[cfg(test)]
mod reference_tests;
