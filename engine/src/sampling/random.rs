//! A counter-based random series: the number at a place depends on the seed and the place alone.

/// SplitMix64's finalizer (Steele, Lea, Flood 2014): every input bit changes half the output bits.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The number at `place` of the series of `seed`, uniform in [0, 1).
pub(super) fn uniform(seed: u64, place: u64) -> f64 {
    // The seed is mixed first, so that neighbouring seeds are not shifted copies of one series.
    let bits = mix(mix(seed.wrapping_add(GOLDEN)).wrapping_add(place.wrapping_add(1).wrapping_mul(GOLDEN)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The seed of the `choice`-th answer to one request.
pub(super) fn fork(seed: u64, choice: u64) -> u64 {
    if choice == 0 { seed } else { mix(seed ^ mix(choice.wrapping_mul(GOLDEN))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_uniform_and_independent_of_their_neighbours() {
        for seed in [0, 1, 2, u64::MAX] {
            let n = 20_000;
            let series: Vec<f64> = (0..n).map(|i| uniform(seed, i)).collect();
            assert!(series.iter().all(|x| (0.0..1.0).contains(x)));
            let mean = series.iter().sum::<f64>() / n as f64;
            assert!((mean - 0.5).abs() < 0.01, "{mean}");
            let lag: f64 = series.windows(2).map(|w| (w[0] - 0.5) * (w[1] - 0.5)).sum::<f64>() / n as f64;
            assert!(lag.abs() < 0.003, "{lag}");
        }
        let across: f64 = (0..20_000).map(|s| uniform(s, 0)).sum::<f64>() / 20_000.0;
        assert!((across - 0.5).abs() < 0.01, "{across}");
    }
}
