//! Whether requests name their tools before their messages.
//!
//! A prompt's hash has the tools first, whatever the order of the body. Messages that come before it is
//! known whether tools follow can be hashed at once, which is thrown away when some do, or at the body's
//! end, which costs a second reading and comes later. Clients keep to the order that they have, so the last
//! requests say which it will be.

use std::sync::atomic::{AtomicU64, Ordering};

/// Of so many of the last 64 requests tools may have followed the messages. A hash that is thrown away costs
/// about three times what reading the messages again does (`strata-wire`'s example `read_cost`), so that
/// one in eight saves work, and time at the end.
const MOST_WASTED: u32 = 8;

/// What the last 64 requests did of which it mattered: a bit for each, set where tools followed.
#[derive(Debug, Default)]
pub(crate) struct Order(AtomicU64);

impl Order {
    /// Whether messages should be hashed as they come.
    pub(crate) fn goes_ahead(&self) -> bool {
        self.0.load(Ordering::Relaxed).count_ones() <= MOST_WASTED
    }

    /// Notes whether tools followed the messages of a request.
    pub(crate) fn note(&self, followed: bool) {
        let next = |bits: u64| Some(bits << 1 | u64::from(followed));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_habit_is_learned_and_forgotten() {
        let order = Order::default();
        let note = |followed, times| (0..times).for_each(|_| order.note(followed));
        assert!(order.goes_ahead());
        note(true, 8);
        assert!(order.goes_ahead());
        note(true, 1);
        assert!(!order.goes_ahead());
        note(false, 55);
        assert!(!order.goes_ahead());
        note(false, 1);
        assert!(order.goes_ahead(), "the first of them is forgotten");
    }
}
