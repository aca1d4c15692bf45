//! What a replica will take for a request, learnt from what it took for others: the time to first token by
//! the prompt tokens that are ahead, the time per output token by the sequences that run.
//!
//! Each is a line, `base + slope · x`, fitted by recursive least squares with exponential forgetting (Ljung,
//! *System Identification*, section 11.2), so that a replica that becomes slower is noticed within some tens
//! of requests and nothing is kept but five numbers. The mean error is learnt beside it: a promise is made
//! of the line and that error.

/// What an observation weighs, beside the next one: about the last fifty count.
const FORGET: f64 = 0.98;
/// Uncertainty of the first line. Large: the first observations count in full.
const UNCERTAIN: f64 = 1e3;
/// Beyond it nothing more is forgotten: without it, a replica that shows the same `x` for an hour would
/// make anything of the first other one.
const MOST_UNCERTAIN: f64 = 1e6;
/// Observations before a line is believed.
const LEAST: u32 = 4;
/// An observation further off than so many mean errors is taken to be as far off as that.
const OUTLIER: f64 = 5.0;

/// A line that is learnt, `base + slope · x`. `x` is scaled by `unit`, so that both numbers are of the same
/// order.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    unit: f64,
    weights: [f64; 2],
    /// Symmetric: [base·base, base·slope, slope·slope].
    spread: [f64; 3],
    error: f64,
    seen: u32,
}

impl Line {
    /// A line of which nothing is known. `unit` is a usual value of `x`.
    pub const fn new(unit: f64) -> Self {
        Self { unit, weights: [0.0; 2], spread: [UNCERTAIN, 0.0, UNCERTAIN], error: 0.0, seen: 0 }
    }

    /// At `x` it was `y`. What is no finite number from zero is not taken.
    pub fn observe(&mut self, x: f64, y: f64) {
        let valid = |v: f64| v.is_finite() && v >= 0.0;
        if !valid(x) || !valid(y) {
            return;
        }
        let x = x / self.unit;
        let mut off = y - (self.weights[0] + self.weights[1] * x);
        if self.seen >= LEAST {
            // Against the value too, for a replica that was exact may become slow at once.
            let most = OUTLIER * self.error.max(y.min(self.at_scaled(x)) / OUTLIER).max(1e-3);
            off = off.clamp(-most, most);
        }
        let [base, both, slope] = self.spread;
        let toward = [base + both * x, both + slope * x];
        let forget = if base + slope < MOST_UNCERTAIN { FORGET } else { 1.0 };
        let by = forget + toward[0] + toward[1] * x;
        self.weights[0] += off * toward[0] / by;
        self.weights[1] += off * toward[1] / by;
        self.spread = [
            (base - toward[0] * toward[0] / by) / forget,
            (both - toward[0] * toward[1] / by) / forget,
            (slope - toward[1] * toward[1] / by) / forget,
        ];
        if self.seen > 0 {
            let rate = (1.0 / f64::from(self.seen)).max(1.0 - FORGET);
            self.error += (off.abs() - self.error) * rate;
        }
        self.seen = self.seen.saturating_add(1);
    }

    fn at_scaled(&self, x: f64) -> f64 {
        (self.weights[0] + self.weights[1] * x).max(0.0)
    }

    /// What it will be at `x`, and how far off such a word is on average. `None` until enough was seen.
    pub fn at(&self, x: f64) -> Option<Expected> {
        (self.seen >= LEAST).then(|| Expected { mean: self.at_scaled(x / self.unit), error: self.error })
    }
}

/// What is expected.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Expected {
    /// The value.
    pub mean: f64,
    /// How far off it is on average.
    pub error: f64,
}

impl Expected {
    /// What can be promised.
    pub fn safe(&self) -> f64 {
        self.mean + self.error
    }
}

/// A replica's two lines.
#[derive(Clone, Copy, Debug)]
pub struct Learnt {
    /// Seconds to the first token, by prompt tokens ahead: those that wait and those of the request that
    /// are not cached.
    pub first_token: Line,
    /// Seconds between two tokens, by sequences that run.
    pub inter_token: Line,
}

impl Default for Learnt {
    fn default() -> Self {
        Self { first_token: Line::new(1000.0), inter_token: Line::new(16.0) }
    }
}

impl Learnt {
    /// What it will take for a request that has so many prompt tokens before its first token, beside so many
    /// sequences that run.
    pub fn forecast(&self, ahead: f64, running: f64) -> Forecast {
        Forecast { first_token: self.first_token.at(ahead), inter_token: self.inter_token.at(running) }
    }
}

/// What a request aims at, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objectives {
    /// To the first token.
    pub first_token: f64,
    /// Between two tokens.
    pub inter_token: f64,
}

/// What one replica is expected to do for one request, in seconds. `None` of what is not known yet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Forecast {
    /// To the first token.
    pub first_token: Option<Expected>,
    /// Between two tokens.
    pub inter_token: Option<Expected>,
}

/// How much each headroom counts: the first token decides more, as in llm-d's latency scorer.
const FIRST: f64 = 0.8;

impl Forecast {
    /// How far the replica stays below what is aimed at, as a share of it: 1 is all of it, 0 none, below 0 the
    /// aim is missed. One of which nothing is known yet is tried: it counts as the best until so many
    /// requests are under way there as it takes to know more.
    pub fn headroom(&self, aims: &Objectives, in_flight: u64) -> f64 {
        let share = |expected: Expected, aim: f64| (1.0 - expected.safe() / aim.max(1e-6)).max(-10.0);
        let Some(first) = self.first_token.map(|first| share(first, aims.first_token)) else {
            return (1.0 - in_flight as f64 / f64::from(LEAST)).max(0.0);
        };
        match self.inter_token.map(|inter| share(inter, aims.inter_token)) {
            None => first,
            // One that is missed is not made good by the other.
            Some(inter) if first < 0.0 || inter < 0.0 => first.min(inter),
            Some(inter) => FIRST * first + (1.0 - FIRST) * inter,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn learn(line: &mut Line, pairs: impl IntoIterator<Item = (f64, f64)>) {
        for (x, y) in pairs {
            line.observe(x, y);
        }
    }

    #[test]
    fn a_line_is_found_and_followed() {
        let mut line = Line::new(1000.0);
        assert_eq!(line.at(100.0), None);
        let by = |slope: f64| {
            (0..60).map(move |i| (f64::from(i * 37 % 50) * 100.0, 0.05 + f64::from(i * 37 % 50) * slope))
        };
        learn(&mut line, by(0.1));
        let word = line.at(2000.0).unwrap();
        assert!((word.mean - 2.05).abs() < 0.02 && word.error < 0.1, "{word:?}");
        // The replica is twice as slow from now on.
        learn(&mut line, by(0.2).chain(by(0.2)).chain(by(0.2)));
        let word = line.at(2000.0).unwrap();
        assert!((word.mean - 4.05).abs() < 0.3, "{word:?}");
    }

    #[test]
    fn the_same_again_and_again_says_nothing_of_others() {
        let mut line = Line::new(1000.0);
        learn(&mut line, (0..5000).map(|_| (500.0, 0.5)));
        assert!((line.at(500.0).unwrap().mean - 0.5).abs() < 1e-3);
        line.observe(2000.0, 2.0);
        let far = line.at(2000.0).unwrap().mean;
        assert!((0.0..=4.0).contains(&far), "{far}");
        assert!((line.at(500.0).unwrap().mean - 0.5).abs() < 0.2);
    }

    #[test]
    fn headroom_is_what_is_left_of_the_worse() {
        let aims = Objectives { first_token: 2.0, inter_token: 0.1 };
        let of = |first: f64, inter: f64| Forecast {
            first_token: Some(Expected { mean: first, error: 0.0 }),
            inter_token: Some(Expected { mean: inter, error: 0.0 }),
        };
        assert!((of(1.0, 0.05).headroom(&aims, 9) - 0.5).abs() < 1e-9);
        assert!((of(0.5, 0.2).headroom(&aims, 9) - -1.0).abs() < 1e-9, "missed by the second");
        let alone = Forecast { inter_token: None, ..of(1.5, 9.0) };
        assert!((alone.headroom(&aims, 0) - 0.25).abs() < 1e-9);
        let new = Forecast::default();
        assert!(new.headroom(&aims, 0) > of(0.1, 0.01).headroom(&aims, 0), "a new one is tried");
        assert!(new.headroom(&aims, 4) < of(1.0, 0.05).headroom(&aims, 0), "and not by all at once");
    }

    proptest! {
        /// Whatever is observed, what is said is a number from zero.
        #[test]
        fn nothing_makes_nonsense_of_it(pairs in proptest::collection::vec((any::<f64>(), any::<f64>()), 0..200), x in 0.0..1e9f64) {
            let mut line = Line::new(1000.0);
            learn(&mut line, pairs.into_iter().map(|(x, y)| (x.min(1e9), y.min(1e6))));
            if let Some(word) = line.at(x) {
                prop_assert!(word.mean.is_finite() && word.mean >= 0.0 && word.error.is_finite());
            }
        }
    }
}
