//! A sliding window that never lets more through than its limit.
//!
//! Time is cut into slices of a hundredth of the window. A charge counts until no instant of its
//! slice can lie in the trailing window any more, so the total is never below what the window truly
//! holds, and a charge is held at most 1% of the window too long: the error is on the strict side and
//! the memory is bounded by a hundred slices.

use std::collections::VecDeque;

/// Slices in a window.
const SLICES: u64 = 100;

/// One window's charges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    length: i64,
    slice: i64,
    /// Slice number and charge, ascending; none is zero.
    slices: VecDeque<(i64, u64)>,
    total: u64,
}

impl Window {
    /// An empty window of this many milliseconds.
    pub fn new(length_ms: u64) -> Self {
        let slice = length_ms.div_ceil(SLICES).max(1);
        let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX / 4).min(i64::MAX / 4);
        Self { length: whole(length_ms), slice: whole(slice), slices: VecDeque::new(), total: 0 }
    }

    /// The slice that `now` lies in.
    pub fn slot(&self, now: i64) -> i64 {
        now.div_euclid(self.slice)
    }

    fn leaves_at(&self, slot: i64) -> i64 {
        slot.saturating_add(1).saturating_mul(self.slice).saturating_add(self.length)
    }

    /// Forgets the charges that have left the window at `now`.
    pub fn expire(&mut self, now: i64) {
        while let Some((slot, amount)) = self.slices.front().copied() {
            if self.leaves_at(slot) > now {
                break;
            }
            self.slices.pop_front();
            self.total = self.total.saturating_sub(amount);
        }
    }

    /// What the window holds, as of the last [`expire`](Self::expire).
    pub fn used(&self) -> u64 {
        self.total
    }

    /// Adds a charge to a slice that has not left the window; an older one is forgotten at once.
    pub fn add(&mut self, slot: i64, amount: u64, now: i64) {
        if amount == 0 || self.leaves_at(slot) <= now {
            return;
        }
        match self.slices.binary_search_by_key(&slot, |(s, _)| *s) {
            Ok(i) => self.slices[i].1 = self.slices[i].1.saturating_add(amount),
            Err(i) => self.slices.insert(i, (slot, amount)),
        }
        self.total = self.total.saturating_add(amount);
    }

    /// Takes back part of a charge; nothing when its slice has left the window.
    pub fn take_back(&mut self, slot: i64, amount: u64) {
        if let Ok(i) = self.slices.binary_search_by_key(&slot, |(s, _)| *s) {
            let back = amount.min(self.slices[i].1);
            self.slices[i].1 -= back;
            self.total = self.total.saturating_sub(back);
            if self.slices[i].1 == 0 {
                self.slices.remove(i);
            }
        }
    }

    /// Milliseconds until `amount` fits under `limit` if nothing else is charged; zero when it fits
    /// now. `None` when it never does.
    pub fn wait(&self, amount: u64, limit: u64, now: i64) -> Option<i64> {
        if amount > limit {
            return None;
        }
        let mut held = self.total;
        if held.saturating_add(amount) <= limit {
            return Some(0);
        }
        for (slot, charge) in &self.slices {
            held = held.saturating_sub(*charge);
            if held.saturating_add(amount) <= limit {
                return Some(self.leaves_at(*slot).saturating_sub(now).max(0));
            }
        }
        None
    }

    /// Milliseconds until the window is empty if nothing else is charged.
    pub fn reset(&self, now: i64) -> i64 {
        self.slices.back().map_or(0, |(slot, _)| self.leaves_at(*slot).saturating_sub(now).max(0))
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Admitting by `wait == 0` alone, no trailing window ever holds more than the limit, and
        /// after the wait that it tells a refused charge fits.
        #[test]
        fn no_trailing_window_exceeds_the_limit(
            length in 1u64..5_000,
            limit in 1u64..50,
            steps in proptest::collection::vec((0i64..2_000, 1u64..20), 1..200),
        ) {
            let mut window = Window::new(length);
            let mut now = 1_000_000i64;
            let mut admitted: Vec<(i64, u64)> = Vec::new();
            for (pause, amount) in steps {
                now += pause;
                window.expire(now);
                match window.wait(amount, limit, now) {
                    Some(0) => {
                        window.add(window.slot(now), amount, now);
                        admitted.push((now, amount));
                    }
                    Some(wait) => {
                        let mut later = window.clone();
                        later.expire(now + wait);
                        prop_assert_eq!(later.wait(amount, limit, now + wait), Some(0));
                        let mut earlier = window.clone();
                        earlier.expire(now + wait - 1);
                        prop_assert_ne!(earlier.wait(amount, limit, now + wait - 1), Some(0));
                    }
                    None => prop_assert!(amount > limit),
                }
                prop_assert!(window.slices.len() <= 102);
            }
            // Every trailing window that ends at a charge: those are where the sum can rise.
            for (end, _) in &admitted {
                let held: u64 = admitted.iter()
                    .filter(|(at, _)| *at <= *end && *at > end - i64::try_from(length).unwrap())
                    .map(|(_, amount)| amount).sum();
                prop_assert!(held <= limit, "{held} of {limit} in the window that ends at {end}");
            }
        }

        /// What is taken back leaves no trace.
        #[test]
        fn adding_and_taking_back_is_nothing(
            before in proptest::collection::vec((0i64..10_000, 1u64..20), 0..20),
            at in 0i64..10_000, amount in 1u64..100,
        ) {
            let mut window = Window::new(10_000);
            for (at, amount) in before {
                window.add(window.slot(at), amount, 0);
            }
            let kept = window.clone();
            let slot = window.slot(at);
            window.add(slot, amount, 0);
            window.take_back(slot, amount);
            prop_assert_eq!(window, kept);
        }
    }

    #[test]
    fn a_charge_is_held_at_most_a_hundredth_too_long() {
        let mut window = Window::new(60_000);
        window.add(window.slot(0), 1, 0);
        window.expire(60_000);
        assert_eq!(window.used(), 1);
        window.expire(60_600);
        assert_eq!((window.used(), window.is_empty()), (0, true));
    }
}
