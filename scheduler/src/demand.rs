//! What is asked of a model, whether or not anything runs of it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use strata_wire::replicas::Demand;

/// The requests under way for one model, and when it was last asked. Times are since the scheduler's
/// start.
#[derive(Debug)]
pub struct Asked {
    under_way: AtomicUsize,
    /// Milliseconds.
    last: AtomicU64,
}

impl Asked {
    /// Nothing yet, of a model that is known since `now`: it counts as asked then, so that a scheduler
    /// that has just started puts no model to sleep.
    pub fn new(now: Duration) -> Self {
        Self { under_way: AtomicUsize::new(0), last: AtomicU64::new(millis(now)) }
    }

    /// A request came in.
    pub fn begin(&self) {
        self.under_way.fetch_add(1, Ordering::AcqRel);
    }

    /// It ended, with an answer or without.
    pub fn end(&self, now: Duration) {
        self.last.fetch_max(millis(now), Ordering::AcqRel);
        self.under_way.fetch_sub(1, Ordering::AcqRel);
    }

    /// How things stand, with `held` requests waiting.
    pub fn demand(&self, held: usize, now: Duration) -> Demand {
        let under_way = self.under_way.load(Ordering::Acquire);
        let since = millis(now).saturating_sub(self.last.load(Ordering::Acquire));
        Demand {
            held: held as u64,
            in_flight: under_way.saturating_sub(held) as u64,
            idle_s: if under_way == 0 { since as f64 / 1000.0 } else { 0.0 },
        }
    }
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_runs_while_nothing_is_under_way() {
        let at = Duration::from_secs;
        let asked = Asked::new(at(10));
        assert_eq!(asked.demand(0, at(14)), Demand { held: 0, in_flight: 0, idle_s: 4.0 });
        asked.begin();
        asked.begin();
        assert_eq!(asked.demand(1, at(20)), Demand { held: 1, in_flight: 1, idle_s: 0.0 });
        asked.end(at(30));
        assert_eq!(asked.demand(0, at(31)), Demand { held: 0, in_flight: 1, idle_s: 0.0 });
        asked.end(at(29));
        let idle = asked.demand(0, at(35)).idle_s;
        assert!((idle - 5.0).abs() < 1e-9, "the later end counts: {idle}");
    }
}
