//! How fast a queue gets shorter, for whoever asks when to come back.

use std::time::Duration;

/// Time over which the rate is averaged.
const WINDOW: Duration = Duration::from_secs(10);
/// With fewer than this placed, older ones fading, nothing moves.
const MOVES: f64 = 0.5;
/// Bounds of what is answered.
const LEAST: f64 = 1.0;
const MOST: f64 = 60.0;

/// Requests that have left a queue for a replica lately. Times are since the scheduler's start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drain {
    /// Placed, older ones fading.
    placed: f64,
    at: Duration,
    /// Since when somebody waits.
    since: Duration,
}

impl Drain {
    /// The first comes into an empty queue.
    pub(super) fn began(&mut self, now: Duration) {
        if self.faded(now) < MOVES {
            *self = Self { placed: 0.0, at: now, since: now };
        }
    }

    /// One was placed.
    pub(super) fn placed(&mut self, now: Duration) {
        self.placed = self.faded(now) + 1.0;
        self.at = now;
    }

    fn faded(&self, now: Duration) -> f64 {
        self.placed * (-now.saturating_sub(self.at).as_secs_f64() / WINDOW.as_secs_f64()).exp()
    }

    /// Whole seconds until a request with so many before it would have its turn, 1 to 60. While nothing
    /// moves, as long as that has been so.
    pub(super) fn wait(&self, before: usize, now: Duration) -> Duration {
        let (window, placed) = (WINDOW.as_secs_f64(), self.faded(now));
        let seen = now.saturating_sub(self.since).as_secs_f64();
        let seconds = if placed < MOVES {
            now.saturating_sub(self.at).as_secs_f64()
        } else {
            // What fading leaves of one a second, after so long.
            let unit = window * (1.0 - (-seen.max(1.0) / window).exp());
            (before as f64 + 1.0) * unit / placed
        };
        Duration::from_secs(seconds.ceil().clamp(LEAST, MOST) as u64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_steady_rate_is_told() {
        let mut drain = Drain::default();
        drain.began(at(100.0));
        for n in 0..200 {
            drain.placed(at(100.0 + f64::from(n) * 0.25));
        }
        let wait = drain.wait(39, at(150.0)).as_secs();
        assert!((9..=11).contains(&wait), "40 at 4 a second: {wait}");
        assert_eq!(drain.wait(0, at(150.0)).as_secs(), 1);
        assert_eq!(drain.wait(10_000, at(150.0)).as_secs(), 60);
    }

    #[test]
    fn what_stands_still_is_told_by_how_long() {
        let mut drain = Drain::default();
        drain.began(at(100.0));
        assert_eq!(drain.wait(5, at(100.1)).as_secs(), 1);
        assert_eq!(drain.wait(5, at(107.5)).as_secs(), 8);
        assert_eq!(drain.wait(5, at(999.0)).as_secs(), 60);
    }

    proptest! {
        /// Whatever happens, the answer has its bounds, and more before it never means sooner.
        #[test]
        fn bounded(steps in prop::collection::vec((0u64..5000, any::<bool>()), 0..60), before in 0usize..5000) {
            let (mut drain, mut now) = (Drain::default(), Duration::ZERO);
            for (wait, placed) in steps {
                now += Duration::from_millis(wait);
                if placed { drain.placed(now) } else { drain.began(now) }
                let wait = drain.wait(before, now);
                prop_assert!((1..=60).contains(&wait.as_secs()) && wait <= drain.wait(before + 100, now));
            }
        }
    }
}
