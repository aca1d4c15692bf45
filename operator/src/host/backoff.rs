//! How long to wait before a process is started again. Pure.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const BASE: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

/// A process that served this long before it ended is taken to have been sound.
pub(super) const SOUND_AFTER: Duration = Duration::from_secs(10);

/// The wait after `failures` ends in a row (1 for the first). `jitter` in 0..1 spreads processes that
/// ended together.
pub(super) fn delay(failures: u32, jitter: f64) -> Duration {
    if failures <= 1 {
        return FIRST.mul_f64(jitter.clamp(0.0, 1.0));
    }
    let doublings = (failures - 2).min(16);
    let full = BASE.saturating_mul(1 << doublings).min(LONGEST);
    full.mul_f64(0.75 + 0.25 * jitter.clamp(0.0, 1.0))
}

/// A number in 0..1. Where the system has no randomness, always the same one.
pub(super) fn jitter() -> f64 {
    let mut bytes = [0u8; 4];
    match getrandom::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_restart_is_at_once_and_the_wait_doubles() {
        assert!(delay(1, 1.0) <= Duration::from_millis(200));
        let waits: Vec<u64> = (2..13).map(|n| delay(n, 1.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    }

    proptest! {
        #[test]
        fn stays_in_bounds(failures: u32, jitter in 0.0f64..=1.0) {
            let wait = delay(failures, jitter);
            prop_assert!(wait <= LONGEST);
            prop_assert!(failures <= 1 || wait >= Duration::from_millis(750));
        }
    }
}
