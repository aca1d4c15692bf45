//! Who goes first, without anybody waiting for ever.

use super::sequence::SequenceId;

/// Steps that a sequence of priority 1 yields to one of priority 0, and for each doubling after it.
const PATIENCE: f64 = 256.0;

/// The order in which sequences are served: by due step, then priority, then arrival.
///
/// A sequence is due at its arrival's step, moved by its priority: earlier for values below zero,
/// later for those above, by 256 steps times log₂(1 + |priority|). So among sequences that arrive
/// together lower priority values go first, and a sequence is overtaken only by those that arrive
/// within a bounded number of steps after it: never more than 2 · 256 · 64. Nothing is sorted anew as
/// sequences age, because what matters is the difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order {
    due: i64,
    priority: i64,
    /// Which.
    pub(super) id: SequenceId,
}

impl Order {
    /// The place of a sequence that arrives while the planner is at step `step`.
    pub(super) fn new(priority: i64, step: u64, id: SequenceId) -> Self {
        let distance = (PATIENCE * (priority.unsigned_abs() as f64 + 1.0).log2()) as i64;
        Self { due: step as i64 + priority.signum() * distance, priority, id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn together_priority_decides_and_apart_age_does(a in any::<i64>(), b in any::<i64>(), step in 0u64..1 << 40) {
            let order = |priority, step, id| Order::new(priority, step, SequenceId(id));
            prop_assert_eq!(order(a, step, 0) < order(b, step, 1), a <= b);
            prop_assert!(order(a, step, 0) < order(b, step + 2 * 256 * 64 + 1, 1));
        }
    }

    #[test]
    fn a_level_is_worth_some_patience() {
        let order = |priority, step, id| Order::new(priority, step, SequenceId(id));
        assert!(order(0, 255, 1) < order(1, 0, 0));
        assert!(order(1, 0, 0) < order(0, 257, 1));
        assert!(order(-1, 255, 1) < order(0, 0, 0));
    }
}
