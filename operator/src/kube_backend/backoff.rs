//! How long to leave an object alone that could not be reconciled. Pure.

use std::time::Duration;

/// After the first failure.
const FIRST: Duration = Duration::from_secs(1);
/// After many.
const LAST: Duration = Duration::from_secs(300);

/// The wait after this many failures in a row. It doubles; `chance` in 0..=1 spreads it over its last
/// quarter, so that objects that failed together are not tried together.
pub(super) fn delay(failures: u32, chance: f64) -> Duration {
    let full = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LAST);
    full.mul_f64(0.75 + 0.25 * chance.clamp(0.0, 1.0))
}

/// A number in 0..=1 that nobody foresees.
pub(super) fn chance() -> f64 {
    let mut byte = [0u8];
    if getrandom::fill(&mut byte).is_ok() { f64::from(byte[0]) / 255.0 } else { 0.5 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn doubles_from_a_second_to_five_minutes() {
        let at = |n| delay(n, 1.0).as_secs();
        assert_eq!([at(1), at(2), at(3), at(9), at(10), at(1000)], [1, 2, 4, 256, 300, 300]);
        assert_eq!(delay(3, 0.0), Duration::from_secs(3));
    }

    proptest! {
        #[test]
        fn stays_in_its_bounds(failures: u32, chance in 0.0..=1.0f64) {
            let wait = delay(failures, chance);
            prop_assert!(wait >= FIRST.mul_f64(0.75) && wait <= LAST);
        }
    }
}
