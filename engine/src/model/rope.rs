//! Rotary embedding: positions turned into rotations of a head's numbers, and the ways to stretch it
//! to contexts longer than a model was first trained for.

use std::f64::consts::PI;

/// How positions are rotated into queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// How the two halves of a pair lie in a head.
    pub layout: RopeLayout,
    /// How many numbers of a head are rotated, the first ones; the others stay as they are.
    pub dims: usize,
    /// Divides each frequency; every scaling is expressed so. Empty means all ones.
    pub factors: Vec<f32>,
    /// Multiplies what is rotated: the attention factor of YaRN and LongRoPE, 1 for others.
    pub magnitude: f32,
    /// Other factors for an engine whose longest context is beyond a limit (LongRoPE).
    pub long: Option<LongRope>,
}

/// LongRoPE's second set of factors. Which set applies depends on the longest context that an engine
/// serves and never on how long a request has become: else its earlier keys would no longer fit.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// The longest context that [`Rope::factors`] are for.
    pub beyond: usize,
    /// As [`Rope::factors`].
    pub factors: Vec<f32>,
}

impl Rope {
    /// Rotation of whole heads without scaling.
    pub fn plain(theta: f32, layout: RopeLayout, dims: usize) -> Self {
        Self { theta, layout, dims, factors: Vec::new(), magnitude: 1.0, long: None }
    }

    /// The factors for an engine whose contexts are at most `longest` tokens.
    pub fn factors_for(&self, longest: usize) -> &[f32] {
        match &self.long {
            Some(long) if longest > long.beyond => &long.factors,
            _ => &self.factors,
        }
    }

    pub(super) fn check(&self, head_dim: usize) -> Result<(), String> {
        if self.dims == 0 || self.dims > head_dim || !self.dims.is_multiple_of(2) {
            return Err(format!("{} of a head's {head_dim} numbers cannot be rotated in pairs", self.dims));
        }
        for factors in [&self.factors].into_iter().chain(self.long.as_ref().map(|long| &long.factors)) {
            if !factors.is_empty() && factors.len() != self.dims / 2 {
                return Err(format!(
                    "{} rotary factors were given, expected {}",
                    factors.len(),
                    self.dims / 2
                ));
            }
            if !factors.iter().all(|f| positive(*f)) {
                return Err("a rotary factor is not a positive number".to_owned());
            }
        }
        if !positive(self.theta) || !positive(self.magnitude) {
            let (theta, magnitude) = (self.theta, self.magnitude);
            return Err(format!("rotary base {theta} and attention factor {magnitude} must be positive"));
        }
        Ok(())
    }
}

pub(super) fn positive(x: f32) -> bool {
    x.is_finite() && x > 0.0
}

/// Order of the rotated pairs in a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// (0, 1), (2, 3), …: GGUF's `llama` tensors are permuted to this order.
    Interleaved,
    /// (0, d/2), (1, d/2 + 1), …: Hugging Face's order.
    Halves,
}

/// The divisor of a frequency after Llama 3.1's rule: waves longer than the old context are stretched in
/// full, short ones not at all, those between in part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Llama3Scaling {
    pub(crate) factor: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) context: f64,
}

impl Llama3Scaling {
    pub(crate) fn factors(self, theta: f64, dims: usize) -> Vec<f32> {
        let Self { factor, low, high, context } = self;
        let one = |i: usize| {
            let wavelength = 2.0 * PI * theta.powf(2.0 * i as f64 / dims as f64);
            if wavelength < context / high {
                return 1.0;
            }
            if wavelength > context / low {
                return factor as f32;
            }
            let smooth = (context / wavelength - low) / (high - low);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        };
        (0..dims / 2).map(one).collect()
    }
}

/// YaRN (Peng et al. 2023, arXiv 2309.00071): pairs that turn often within the old context stay, those
/// that turn seldom are stretched, with a ramp between.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Yarn {
    pub(crate) factor: f64,
    /// The context that the model was first trained for.
    pub(crate) context: f64,
    /// Turns from which on a pair stays as it is.
    pub(crate) fast: f64,
    /// Turns up to which a pair is stretched in full.
    pub(crate) slow: f64,
    /// Whether the ramp begins and ends at whole pairs.
    pub(crate) whole: bool,
}

impl Yarn {
    pub(crate) const FAST: f64 = 32.0;
    pub(crate) const SLOW: f64 = 1.0;

    pub(crate) fn factors(self, theta: f64, dims: usize) -> Vec<f32> {
        // The pair, not rounded, that turns this often within the old context.
        let pair = |turns: f64| dims as f64 * (self.context / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (pair(self.fast), pair(self.slow));
        if self.whole {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(dims as f64 - 1.0));
        let width = if (high - low).abs() > f64::EPSILON { high - low } else { 0.001 };
        let one = |i: usize| {
            let stretched = ((i as f64 - low) / width).clamp(0.0, 1.0);
            (1.0 / (stretched / self.factor + (1.0 - stretched))) as f32
        };
        (0..dims / 2).map(one).collect()
    }

    /// The attention factor that the paper recommends.
    pub(crate) fn magnitude(factor: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }
    }
}

/// LongRoPE's attention factor (Ding et al. 2024, arXiv 2402.13753) for a context stretched `factor`
/// times.
pub(crate) fn long_rope_magnitude(factor: f64, context: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / context.ln()).sqrt() }
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // Factors of 1 and of the whole are exact.
mod tests {
    use super::*;

    #[test]
    fn llama3_stretches_long_waves_only() {
        let llama_3_2 = Llama3Scaling { factor: 32.0, low: 1.0, high: 4.0, context: 8192.0 };
        let factors = llama_3_2.factors(500_000.0, 64);
        // The wave of pair i is 2π × 500000^(i/32) long: below 8192 / 4 for i < 14.1, above 8192 for i > 17.5.
        assert!(factors[..15].iter().all(|f| *f == 1.0), "{factors:?}");
        assert!(factors[18..].iter().all(|f| *f == 32.0), "{factors:?}");
        assert!(factors.is_sorted());
    }

    #[test]
    fn yarn_stretches_pairs_that_turn_seldom() {
        // Qwen2.5's: base 1e6, 32768 tokens, 4 times; pair i turns 32768 / (2π × 1e6^(i/64)) times.
        let qwen = Yarn { factor: 4.0, context: 32768.0, fast: 32.0, slow: 1.0, whole: true };
        let factors = qwen.factors(1e6, 128);
        assert!(factors[..24].iter().all(|f| *f == 1.0), "{factors:?}");
        assert!(factors[40..].iter().all(|f| *f == 4.0), "{factors:?}");
        assert!(factors.is_sorted() && factors[32] > 1.0 && factors[32] < 4.0);
    }

    #[test]
    fn the_longest_context_that_is_served_chooses_the_factors() {
        let long = Some(LongRope { beyond: 100, factors: vec![3.0, 4.0] });
        let rope = Rope { factors: vec![1.0, 2.0], long, ..Rope::plain(1e4, RopeLayout::Halves, 4) };
        assert_eq!(rope.factors_for(100), [1.0, 2.0]);
        assert_eq!(rope.factors_for(101), [3.0, 4.0]);
    }
}
