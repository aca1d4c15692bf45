//! Whether guessing pays, and how far ahead. Pure: what was measured comes in as numbers.

use crate::step::StepCost;

/// What is believed of a sequence before its first guess.
const PRIOR: f64 = 0.7;
/// How much one guess weighs beside all before it.
const NEWEST: f64 = 0.15;
/// How fast a sequence that does not guess is believed better of again, so that it is tried at times.
const FORGIVENESS: f64 = 0.01;
/// Steps after which guesses are made once at any price, since costs may have changed.
const TRY_AGAIN: u64 = 128;
/// What guessing must promise: this share of time won, against errors of measurement.
const MARGIN: f64 = 1.05;

/// How often the guesses of one sequence came true.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acceptance(f64);

impl Default for Acceptance {
    fn default() -> Self {
        Self(PRIOR)
    }
}

impl Acceptance {
    /// Of `drafted` guesses the first `accepted` came true; those after a wrong one say nothing.
    pub(super) fn note(&mut self, drafted: usize, accepted: usize) {
        for _ in 0..accepted {
            self.0 += NEWEST * (1.0 - self.0);
        }
        if accepted < drafted {
            self.0 -= NEWEST * self.0;
        }
    }

    /// A step without a guess.
    pub(super) fn rest(&mut self) {
        self.0 += FORGIVENESS * (PRIOR - self.0);
    }

    /// Tokens that `count` guesses are expected to win.
    fn gain(self, count: usize) -> f64 {
        (1..=count as i32).map(|place| self.0.powi(place)).sum()
    }
}

/// One step's circumstances.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting<'a> {
    /// What steps cost by their rows.
    pub(super) cost: &'a StepCost,
    /// Whether to guess only as far as it pays.
    pub(super) adaptive: bool,
    /// Which step it is.
    pub(super) step: u64,
    /// Sequences that decode.
    pub(super) decodes: usize,
    /// Those of them that would guess.
    pub(super) guessing: usize,
}

impl Setting<'_> {
    /// How many tokens to guess, at most `most`: as many as promise the most tokens a second, by the
    /// measured cost of a step of so many rows, plus `seconds` for making so many guesses. None when
    /// that is not clearly more than without guesses.
    pub(super) fn depth(self, acceptance: Acceptance, most: usize, seconds: impl Fn(usize) -> f64) -> usize {
        let Some(without) = self.cost.decode_seconds(self.decodes) else { return most };
        if !self.adaptive || self.step.is_multiple_of(TRY_AGAIN) {
            return most;
        }
        let (decodes, guessing) = (self.decodes as f64, self.guessing as f64);
        let rate = |count: usize| {
            let rows = self.decodes + self.guessing * count;
            let time = self.cost.decode_seconds(rows).unwrap_or(without).max(without) + seconds(count);
            (decodes + guessing * acceptance.gain(count)) / decodes * without / time
        };
        let best = (1..=most)
            .map(|count| (count, rate(count)))
            .fold((0, MARGIN), |best, next| if next.1 > best.1 { next } else { best });
        best.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acceptance(drafted: usize, accepted: usize) -> Acceptance {
        let mut acceptance = Acceptance::default();
        for _ in 0..40 {
            acceptance.note(drafted, accepted);
        }
        acceptance
    }

    #[test]
    fn rows_that_are_nearly_free_are_worth_a_guess_and_dear_ones_only_good_guesses() {
        let mut cost = StepCost::default();
        let depth = |cost: &StepCost, acceptance, decodes| {
            let setting = Setting { cost, adaptive: true, step: 1, decodes, guessing: decodes };
            setting.depth(acceptance, 4, |_| 0.0)
        };
        assert_eq!(depth(&cost, acceptance(4, 0), 1), 4, "nothing is known");
        // Bound by memory: five rows cost little more than one.
        for rows in 1..=5 {
            cost.note(rows, 0, 0.004 + 0.000_1 * rows as f64);
        }
        assert_eq!(depth(&cost, acceptance(4, 4), 1), 4);
        assert_eq!(depth(&cost, acceptance(4, 0), 1), 0);
        // Bound by arithmetic: each row costs as much as the first.
        let mut dear = StepCost::default();
        for rows in 1..=200 {
            dear.note(rows, 0, 0.001 * rows as f64);
        }
        assert_eq!(depth(&dear, acceptance(4, 2), 16), 0);
        assert_eq!(depth(&dear, Acceptance::default(), 1), 0);
    }

    #[test]
    fn a_guess_has_its_own_price() {
        let mut cost = StepCost::default();
        cost.note(1, 0, 0.010);
        let setting = Setting { cost: &cost, adaptive: true, step: 1, decodes: 1, guessing: 1 };
        assert_eq!(setting.depth(acceptance(4, 4), 4, |count| 0.001 * count as f64), 4);
        assert_eq!(setting.depth(acceptance(4, 4), 4, |count| 0.020 * count as f64), 0);
    }

    #[test]
    fn who_rests_is_tried_again() {
        let mut acceptance = acceptance(4, 0);
        assert!(acceptance.gain(1) < 0.05);
        for _ in 0..100 {
            acceptance.rest();
        }
        assert!(acceptance.gain(1) > 0.4);
        let mut cost = StepCost::default();
        cost.note(1, 0, 0.001);
        cost.note(2, 0, 1.0);
        let setting = Setting { cost: &cost, adaptive: true, step: 256, decodes: 1, guessing: 1 };
        assert_eq!(setting.depth(acceptance, 4, |_| 0.0), 4, "at times at any price");
    }
}
