//! A replica's circuit breaker: it keeps requests from one whose health and metrics are fine and whose
//! answers are not. Pure: time and chance come in as arguments.
//!
//! Closed, it counts what came of the requests. After some failures in a row, or when half of a number
//! failed, it opens: the replica gets nothing for a time that doubles with each opening. Then it is half
//! open: one request at a time tries the replica, and closes or opens it by what comes of it. When no other
//! replica can take a request, open breakers are passed over ([`super::admission`]): a wrong answer of one is
//! no worse than none.

use std::time::Duration;

/// Failures in a row that open it.
const ROW: u32 = 5;
/// Of so many requests, those of the last moments, [`SHARE`] must fail to open it.
const ENOUGH: f64 = 10.0;
const SHARE: f64 = 0.5;
/// Time over which requests count.
const WINDOW: Duration = Duration::from_secs(10);
/// How long it is open, the first time and at most.
const FIRST_OPEN: Duration = Duration::from_secs(1);
const LONGEST_OPEN: Duration = Duration::from_secs(60);
/// By such a part a time is longer at most, by chance, so that several schedulers do not try as one.
const JITTER: f64 = 0.25;
/// Closed for so long, it opens for a short time again.
const FORGIVEN: Duration = Duration::from_secs(60);

/// What of the requests a breaker lets through now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// All.
    #[default]
    Closed,
    /// One, to see what comes of it.
    Probe,
    /// None.
    Open,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum State {
    #[default]
    Closed,
    Open {
        until: Duration,
    },
    /// A request is on its way that tells.
    Probing,
}

/// What came of the requests to one replica.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Breaker {
    state: State,
    /// Failures since the last success.
    row: u32,
    /// Requests and failures, older ones fading.
    counted: (f64, f64),
    at: Duration,
    /// How often it opened without being closed for long.
    opened: u32,
    closed_at: Duration,
}

impl Breaker {
    /// What it lets through.
    pub fn gate(&self, now: Duration) -> Gate {
        match self.state {
            State::Closed => Gate::Closed,
            State::Open { until } if now >= until => Gate::Probe,
            State::Open { .. } | State::Probing => Gate::Open,
        }
    }

    /// A request is sent. Returns whether it is the one that tells.
    pub fn sent(&mut self, now: Duration) -> bool {
        let probes = self.gate(now) == Gate::Probe;
        if probes {
            self.state = State::Probing;
        }
        probes
    }

    /// A request was answered; `probe` as [`Breaker::sent`] said.
    pub fn worked(&mut self, probe: bool, now: Duration) {
        if probe && self.state == State::Probing {
            (self.state, self.row, self.counted, self.closed_at) = (State::Closed, 0, (1.0, 0.0), now);
            self.at = self.at.max(now);
        } else if self.state == State::Closed {
            self.count(0.0, now);
            self.row = 0;
        }
    }

    /// A request failed. Returns whether the breaker opened by it. `chance` is from 0 to 1.
    pub fn failed(&mut self, probe: bool, now: Duration, chance: f64) -> bool {
        match self.state {
            State::Closed => {
                self.count(1.0, now);
                self.row = self.row.saturating_add(1);
                (self.row >= ROW || self.most_fail()) && self.open(now, chance)
            }
            State::Probing if probe => self.open(now, chance),
            // It says nothing new.
            State::Open { .. } | State::Probing => false,
        }
    }

    /// One that was counted as answered broke off. Returns whether the breaker opened by it.
    pub fn broke(&mut self, now: Duration, chance: f64) -> bool {
        if self.state != State::Closed {
            return false;
        }
        self.fade(now);
        self.counted.1 = (self.counted.1 + 1.0).min(self.counted.0);
        self.most_fail() && self.open(now, chance)
    }

    fn most_fail(&self) -> bool {
        let (all, failed) = self.counted;
        all >= ENOUGH && failed >= SHARE * all
    }

    fn open(&mut self, now: Duration, chance: f64) -> bool {
        if self.state == State::Closed && now.saturating_sub(self.closed_at) >= FORGIVEN {
            self.opened = 0;
        }
        let times = 2f64.powi(self.opened.min(16) as i32);
        let long = (FIRST_OPEN.as_secs_f64() * times).min(LONGEST_OPEN.as_secs_f64());
        let long = Duration::from_secs_f64(long * (1.0 + JITTER * chance.clamp(0.0, 1.0)));
        self.opened = self.opened.saturating_add(1);
        self.state = State::Open { until: now + long };
        true
    }

    /// A request ended and told nothing: another may try.
    pub fn left(&mut self, probe: bool, now: Duration) {
        if probe && self.state == State::Probing {
            self.state = State::Open { until: now };
        }
    }

    fn count(&mut self, failed: f64, now: Duration) {
        self.fade(now);
        self.counted = (self.counted.0 + 1.0, self.counted.1 + failed);
    }

    fn fade(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64() / WINDOW.as_secs_f64();
        let kept = (-passed).exp();
        self.counted = (self.counted.0 * kept, self.counted.1 * kept);
        self.at = self.at.max(now);
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
    fn failures_in_a_row_open_it_and_a_probe_closes_it() {
        let mut breaker = Breaker::default();
        assert!((1..ROW).all(|_| !breaker.failed(false, at(0.0), 0.0)));
        breaker.worked(false, at(0.0));
        assert!((1..ROW).all(|_| !breaker.failed(false, at(100.0), 0.0)), "a success between them");
        assert!(breaker.failed(false, at(100.0), 0.0));
        assert_eq!((breaker.gate(at(100.9)), breaker.gate(at(101.0))), (Gate::Open, Gate::Probe));
        assert!(breaker.sent(at(101.0)) && !breaker.sent(at(101.0)), "one at a time");
        assert_eq!(breaker.gate(at(150.0)), Gate::Open);
        breaker.left(true, at(150.0));
        assert!(breaker.sent(at(150.0)));
        breaker.worked(false, at(150.0));
        assert_eq!(breaker.gate(at(150.0)), Gate::Open, "one that was sent before tells nothing");
        breaker.worked(true, at(150.0));
        assert_eq!(breaker.gate(at(150.0)), Gate::Closed);
        assert!((1..ROW).all(|_| !breaker.failed(false, at(150.0), 0.0)), "it counts anew");
    }

    #[test]
    fn half_of_many_open_it() {
        let mut breaker = Breaker::default();
        let opens = (0..100).find(|n| {
            breaker.worked(false, at(0.0));
            breaker.failed(false, at(f64::from(*n) * 0.01), 0.0)
        });
        assert!(opens.is_some_and(|n| (4..9).contains(&n)), "{opens:?}");
        let mut slow = Breaker::default();
        let spread = (0..100).any(|n| {
            slow.worked(false, at(f64::from(n) * 30.0));
            slow.failed(false, at(f64::from(n) * 30.0), 0.0)
        });
        assert!(!spread, "few requests tell little");
    }

    #[test]
    fn answers_that_break_off_count_once() {
        let mut breaker = Breaker::default();
        let opens = (0..40).find(|n| {
            breaker.worked(false, at(0.0));
            n % 2 == 0 && breaker.broke(at(0.0), 0.0)
        });
        assert_eq!(opens, Some(10), "half of ten and more");
        let mut mostly = Breaker::default();
        assert!(!(0..200).any(|n| {
            mostly.worked(false, at(0.0));
            n % 3 == 0 && mostly.broke(at(0.0), 0.0)
        }));
    }

    #[test]
    fn it_opens_for_longer_each_time_and_is_forgiven() {
        let mut breaker = Breaker::default();
        let mut now = at(100.0);
        let mut times = Vec::new();
        for n in 0..9 {
            let tries = if n == 0 { ROW } else { 1 };
            let opened = (0..tries).filter(|_| breaker.failed(n > 0, now, 0.0)).count();
            assert_eq!(opened, 1);
            let State::Open { until } = breaker.state else { panic!("{breaker:?}") };
            times.push(until.saturating_sub(now).as_secs());
            now = until;
            assert!(breaker.sent(now));
        }
        assert_eq!(times, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        breaker.worked(true, now);
        now += FORGIVEN;
        assert_eq!((0..ROW).filter(|_| breaker.failed(false, now, 1.0)).count(), 1);
        assert_eq!(breaker.state, State::Open { until: now + at(1.25) });
    }

    proptest! {
        /// Whatever happens: at most one request tells at a time, none passes while it is open, and it is
        /// never open for longer than its bound.
        #[test]
        fn one_probe_at_a_time(steps in prop::collection::vec((0u8..5, 0u64..3000, 0.0..1.0f64), 1..300)) {
            let (mut breaker, mut now, mut probe) = (Breaker::default(), Duration::ZERO, None);
            for (what, wait, chance) in steps {
                now += Duration::from_millis(wait);
                let gate = breaker.gate(now);
                match what {
                    4 => { breaker.broke(now, chance); }
                    0 => {
                        let tells = breaker.sent(now);
                        prop_assert_eq!(tells, gate == Gate::Probe);
                        prop_assert!(!tells || probe.is_none());
                        if tells { probe = Some(()) }
                    }
                    1 => breaker.worked(probe.take().is_some(), now),
                    2 => { breaker.failed(probe.take().is_some(), now, chance); }
                    _ => breaker.left(probe.take().is_some(), now),
                }
                if probe.is_none() {
                    prop_assert!(breaker.gate(now + LONGEST_OPEN.mul_f64(1.0 + JITTER)) != Gate::Open);
                }
            }
        }
    }
}
