//! Weights of tokens from their logits.

/// Weights below the exponential of this are zero: they cannot be drawn.
const LEAST: f32 = -87.0;
/// The nearest integer is left in the low bits of what this is added to.
const ROUNDS: f32 = 12_582_912.0;
/// ln 2 in two parts, the first of which times an integer below 2^9 is exact.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

/// Writes `exp((logit − top) × scale)` of each logit, of which none is larger than `top`; 0 for one that
/// is no number.
pub(super) fn weigh(logits: &[f32], top: f32, scale: f32, weights: &mut Vec<f32>) {
    weights.clear();
    weights.extend(logits.iter().map(|logit| exp((logit - top) * scale)));
}

/// e to a power of at most zero, within two units in the last place; Cephes' polynomial. Without a
/// branch, so that the compiler makes vectors of it.
#[inline]
fn exp(x: f32) -> f32 {
    let bounded = if x > LEAST { x } else { LEAST };
    let near = bounded * std::f32::consts::LOG2_E + ROUNDS;
    let whole = near - ROUNDS;
    let rest = bounded - whole * LN_2[0] - whole * LN_2[1];
    let mut sum = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        sum = sum * rest + coefficient;
    }
    let power = f32::from_bits((near.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    if x >= LEAST { (sum * (rest * rest) + rest + 1.0) * power } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_exponential() {
        for i in 0..=1_000_000 {
            let x = -87.0 * (i as f32 / 1_000_000.0);
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got - want).abs() <= want * 2.5e-7, "exp({x}) is {want}, not {got}");
        }
        assert_eq!(exp(0.0).to_bits(), 1.0_f32.to_bits());
        assert!([-88.0, f32::NEG_INFINITY, f32::NAN].iter().all(|x| exp(*x).to_bits() == 0));
    }
}
