//! The schedulers that serve the same models beside this one, by which the bounds of what waits are divided.
//! Pure.

use std::collections::BTreeMap;
use std::time::Duration;

/// The others, as they were seen last. Times are since this scheduler's start.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    /// Since when each counts.
    others: BTreeMap<String, Duration>,
    /// Whether they have been seen at all.
    seen: bool,
}

impl Peers {
    /// These others are there now. One that is new counts when what was let in before it came has gone, which
    /// is after `settles`: what waits is not refused because another scheduler has started. Those that are
    /// there when they are first looked at count at once. Returns whether anything changed.
    pub fn see(&mut self, there: impl IntoIterator<Item = String>, now: Duration, settles: Duration) -> bool {
        let counts = if self.seen { now + settles } else { now };
        self.seen = true;
        let before = std::mem::take(&mut self.others);
        self.others = there
            .into_iter()
            .map(|name| {
                let since = before.get(&name).copied().unwrap_or(counts);
                (name, since)
            })
            .collect();
        self.others != before
    }

    /// How many schedulers count now, this one among them.
    pub fn live(&self, now: Duration) -> usize {
        1 + self.others.values().filter(|since| **since <= now).count()
    }
}

/// What one of so many schedulers may hold of what all may hold together, and not less than `least` of it.
pub fn share(all: usize, live: usize, least: usize) -> usize {
    (all / live.max(1)).max(least.min(all))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn see(peers: &mut Peers, names: &[&str], now: u64) -> bool {
        peers.see(names.iter().map(|name| (*name).to_owned()), at(now), at(30))
    }

    #[test]
    fn one_that_comes_counts_later_and_one_that_goes_at_once() {
        let mut peers = Peers::default();
        assert_eq!(peers.live(at(0)), 1);
        assert!(see(&mut peers, &["a"], 1));
        assert_eq!(peers.live(at(1)), 2, "it was there before");
        assert!(see(&mut peers, &["a", "b"], 10) && !see(&mut peers, &["a", "b"], 20));
        assert_eq!((peers.live(at(39)), peers.live(at(40))), (2, 3));
        assert!(see(&mut peers, &["b"], 41));
        assert_eq!(peers.live(at(41)), 2);
        assert!(see(&mut peers, &["a", "b"], 42));
        assert_eq!((peers.live(at(42)), peers.live(at(72))), (2, 3), "it begins anew");
    }

    #[test]
    fn alone_it_holds_all() {
        assert_eq!((share(256, 1, 1), share(256, 0, 1), share(0, 3, 1)), (256, 256, 0));
        assert_eq!((share(256, 3, 1), share(256, 1000, 1), share(256, 10, 32)), (85, 1, 32));
    }

    proptest! {
        #[test]
        fn together_they_hold_what_one_held(all in 0usize..1_000_000, live in 1usize..1000, least in 0usize..1000) {
            let each = share(all, live, least);
            prop_assert!(each <= all, "never more than without others");
            prop_assert!(each >= least.min(all), "a request of this size finds a place");
            prop_assert!(each * live <= all || each == least.min(all));
            prop_assert!(all - (each * live).min(all) < live, "what is lost in dividing is less than one each");
            prop_assert!(share(all, live + 1, least) <= each && share(all + 1, live, least) >= each);
        }

        /// Whatever comes and goes: nobody counts who is not there, and what is there counts in the end.
        #[test]
        fn who_counts_is_there(steps in prop::collection::vec((0u64..60, prop::collection::btree_set(0u8..6, 0..6)), 1..20)) {
            let (mut peers, mut now) = (Peers::default(), 0);
            for (passed, there) in &steps {
                now += passed;
                see(&mut peers, &there.iter().map(|n| ["a", "b", "c", "d", "e", "f"][usize::from(*n)]).collect::<Vec<_>>(), now);
                prop_assert!((1..=there.len() + 1).contains(&peers.live(at(now))));
                prop_assert_eq!(peers.live(at(now + 30)), there.len() + 1);
            }
        }
    }
}
