//! Which replicas are left in for a choice, beside those that are ready: by their circuit breakers, and by
//! how new they are. Pure.

use std::time::Duration;

use super::Candidate;
use super::breaker::Gate;

/// Requests that a new replica has at once from the start.
const FIRST_REQUESTS: f64 = 2.0;

/// What beside its load decides about a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Standing {
    /// What its breaker lets through.
    pub gate: Gate,
    /// For how long it has been ready, of a process that was not there before.
    pub ready_for: Duration,
}

/// How many requests a replica that is new may have at once, of the `slots` that it has: a share that grows
/// over the `window`, for its caches are cold. `None` when it is no longer new.
pub fn warming(ready_for: Duration, window: Duration, slots: f64) -> Option<f64> {
    (ready_for < window)
        .then(|| (slots * ready_for.as_secs_f64() / window.as_secs_f64()).max(FIRST_REQUESTS).floor())
}

/// Leaves out whom a breaker leaves out, and bounds those that are new. When breakers would leave nobody,
/// they leave nobody out: to try is better than to refuse. When all are new, none is bounded, for somebody
/// must take the requests.
pub fn admit(candidates: &mut [Candidate<'_>], standings: &[Standing], window: Duration) {
    let passes = |standing: &Standing| standing.gate != Gate::Open;
    let known = || candidates.iter().zip(standings).filter(|(c, _)| c.eligible);
    let any_passes = known().any(|(_, standing)| passes(standing));
    let any_warm = known().any(|(_, s)| passes(s) == any_passes && s.ready_for >= window);
    for (candidate, standing) in candidates.iter_mut().zip(standings) {
        candidate.eligible &= !any_passes || passes(standing);
        if any_warm {
            candidate.load.limit = warming(standing.ready_for, window, candidate.load.slots());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use strata_wire::replicas::Track;

    use super::*;
    use crate::pick::{Cached, Forecast, Load};

    const WINDOW: Duration = Duration::from_secs(10);

    fn ready(in_flight: u64) -> Candidate<'static> {
        Candidate {
            name: "m",
            track: Track::Stable,
            eligible: true,
            load: Load { in_flight, max_sequences: Some(32.0), ..Load::default() },
            cached: Cached::default(),
            bytes_per_token: 4.0,
            forecast: Forecast::default(),
            seed: 0,
            adapter: None,
        }
    }

    fn standing(gate: Gate, seconds: u64) -> Standing {
        Standing { gate, ready_for: Duration::from_secs(seconds) }
    }

    fn open(candidates: &[Candidate<'_>], standings: &[Standing]) -> Vec<bool> {
        let mut candidates = candidates.to_vec();
        admit(&mut candidates, standings, WINDOW);
        candidates.iter().map(Candidate::is_open).collect()
    }

    #[test]
    fn open_breakers_are_left_out_unless_all_are() {
        let old = |gate| standing(gate, 100);
        let both = [ready(0), ready(0)];
        assert_eq!(open(&both, &[old(Gate::Closed), old(Gate::Open)]), [true, false]);
        assert_eq!(open(&both, &[old(Gate::Probe), old(Gate::Open)]), [true, false]);
        assert_eq!(open(&both, &[old(Gate::Open), old(Gate::Open)]), [true, true]);
        let mut tried = both;
        tried[0].eligible = false;
        assert_eq!(open(&tried, &[old(Gate::Closed), old(Gate::Open)]), [false, true]);
    }

    #[test]
    fn a_new_one_gets_a_growing_share() {
        let after = |seconds, in_flight| {
            open(
                &[ready(0), ready(in_flight)],
                &[standing(Gate::Closed, 100), standing(Gate::Closed, seconds)],
            )[1]
        };
        assert!(after(0, 1) && !after(0, 2));
        assert!(after(5, 19) && !after(5, 20));
        assert!(after(10, 39) && !after(10, 40));
    }

    #[test]
    fn when_all_are_new_none_is_bounded() {
        let new = standing(Gate::Closed, 0);
        assert_eq!(open(&[ready(10), ready(10)], &[new, new]), [true, true]);
        assert_eq!(open(&[ready(10)], &[new]), [true]);
        let broken = standing(Gate::Open, 100);
        assert_eq!(open(&[ready(10), ready(10)], &[new, broken]), [true, false]);
    }

    proptest! {
        /// Of replicas that are ready and not full, one is always left, and a bound only grows.
        #[test]
        fn somebody_is_left(all in prop::collection::vec((0u8..3, 0u64..20), 1..6), slots in 1.0..300.0f64) {
            let gates = [Gate::Closed, Gate::Probe, Gate::Open];
            let standings: Vec<_> = all.iter().map(|(g, s)| standing(gates[*g as usize], *s)).collect();
            prop_assert!(open(&vec![ready(0); all.len()], &standings).contains(&true));
            let limits: Vec<_> =
                (0..12).map(|s| warming(Duration::from_secs(s), WINDOW, slots).unwrap_or(f64::MAX)).collect();
            prop_assert!(limits.is_sorted() && limits[0] >= 1.0);
        }
    }
}
