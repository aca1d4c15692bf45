//! How many requests may be sent a second time. Retries help against one broken replica and make an
//! overload worse, so they are a share of the requests, beside a burst that one dying replica needs.

use std::time::Duration;

use strata_wire::defaults::RETRY_BUDGET;

/// Retries that are there from the start, and saved up at most: more than the requests that one
/// replica runs and queues, so that its death alone loses none.
pub const BURST: f64 = 128.0;
/// Retries that come back each second, however few requests there are.
const PER_SECOND: f64 = 1.0;

/// A bucket of retries.
#[derive(Clone, Debug)]
pub struct RetryBudget {
    tokens: f64,
    burst: f64,
    at: Duration,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::new(BURST)
    }
}

impl RetryBudget {
    /// A full bucket of `burst` retries.
    pub fn new(burst: f64) -> Self {
        Self { tokens: burst, burst, at: Duration::ZERO }
    }

    /// A request came in.
    pub fn deposit(&mut self) {
        self.tokens = (self.tokens + RETRY_BUDGET).min(self.burst);
    }

    /// Whether a request may be sent again at `now`; takes one retry if so.
    pub fn withdraw(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.tokens = (self.tokens + passed * PER_SECOND).min(self.burst);
        let granted = self.tokens >= 1.0;
        if granted {
            self.tokens -= 1.0;
        }
        granted
    }

    /// Retries left.
    pub fn left(&self) -> f64 {
        self.tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_then_a_tenth() {
        let mut budget = RetryBudget::new(3.0);
        let now = Duration::ZERO;
        assert_eq!((0..5).filter(|_| budget.withdraw(now)).count(), 3);
        for _ in 0..20 {
            budget.deposit();
        }
        assert_eq!((0..5).filter(|_| budget.withdraw(now)).count(), 2);
        assert!(budget.withdraw(Duration::from_secs(1)), "time brings retries back");
    }

    proptest! {
        /// Never more retries than the burst, a tenth of the requests, and one a second.
        #[test]
        fn bounded(steps in prop::collection::vec((any::<bool>(), 0u64..50), 1..400), burst in 1u32..40) {
            let mut budget = RetryBudget::new(f64::from(burst));
            let (mut requests, mut retries, mut now) = (0u32, 0u32, Duration::ZERO);
            for (retry, wait) in steps {
                now += Duration::from_millis(wait);
                if retry {
                    retries += u32::from(budget.withdraw(now));
                } else {
                    budget.deposit();
                    requests += 1;
                }
                let allowed = f64::from(burst) + f64::from(requests) * RETRY_BUDGET + now.as_secs_f64();
                prop_assert!(f64::from(retries) <= allowed + 1e-6);
            }
        }
    }
}
