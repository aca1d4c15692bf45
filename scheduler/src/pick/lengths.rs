//! How long a model's answers are, learnt from those that it gave. Bounded: a count for each length to
//! within a fifth, of which old ones fade.

/// Lengths between one and the double are told apart in so many steps.
const STEPS: f64 = 4.0;
/// Buckets: up to 2^20 tokens.
const BUCKETS: usize = 80;
/// Answers that are counted until all counts are halved.
const FADE: f64 = 1024.0;
/// Answers before anything is expected.
const LEAST: f64 = 16.0;

/// The lengths of a model's answers, in tokens.
#[derive(Clone, Debug)]
pub struct Lengths {
    counts: [f64; BUCKETS],
    all: f64,
}

impl Default for Lengths {
    fn default() -> Self {
        Self { counts: [0.0; BUCKETS], all: 0.0 }
    }
}

impl Lengths {
    /// An answer was so long. One that was cut by its request's limit would have been longer: it counts only
    /// where that is more than what is expected anyway.
    pub fn observe(&mut self, tokens: u64, cut: bool, expected: Option<f64>) {
        if tokens == 0 || (cut && expected.is_some_and(|expected| (tokens as f64) < expected)) {
            return;
        }
        self.counts[bucket(tokens)] += 1.0;
        self.all += 1.0;
        if self.all >= FADE {
            self.counts.iter_mut().for_each(|count| *count /= 2.0);
            self.all /= 2.0;
        }
    }

    /// The length that so many percent of the answers did not exceed. `None` until there were enough.
    pub fn percentile(&self, percent: u8) -> Option<f64> {
        if percent == 0 || self.all < LEAST {
            return None;
        }
        let mut left = self.all * f64::from(percent.min(100)) / 100.0;
        let last = self.counts.iter().rposition(|count| *count > 0.0)?;
        let at = self.counts[..last].iter().position(|count| {
            left -= count;
            left <= 0.0
        });
        Some(longest(at.unwrap_or(last)))
    }
}

fn bucket(tokens: u64) -> usize {
    ((STEPS * (tokens as f64).log2()).ceil() as usize).min(BUCKETS - 1)
}

/// The longest that a bucket holds.
fn longest(bucket: usize) -> f64 {
    (bucket as f64 / STEPS).exp2()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(lengths: impl IntoIterator<Item = u64>) -> Lengths {
        let mut learnt = Lengths::default();
        lengths.into_iter().for_each(|tokens| learnt.observe(tokens, false, None));
        learnt
    }

    #[test]
    fn percentiles_are_those_of_what_was_seen_lately() {
        assert_eq!(of(vec![100; 15]).percentile(50), None, "too few");
        let mut learnt = of((0..300).map(|n| if n % 3 == 0 { 1000 } else { 10 }));
        let near = |learnt: &Lengths, percent, tokens: f64| {
            let found = learnt.percentile(percent).unwrap();
            assert!((tokens..=tokens * 1.2).contains(&found), "{found} of {tokens}");
        };
        near(&learnt, 50, 10.0);
        near(&learnt, 75, 1000.0);
        assert_eq!(learnt.percentile(0), None, "switched off");
        (0..4000).for_each(|_| learnt.observe(300, false, None));
        near(&learnt, 50, 300.0);
        near(&learnt, 99, 300.0);
    }

    #[test]
    fn what_was_cut_short_says_nothing_of_what_is_longer() {
        let mut learnt = of(vec![500; 20]);
        let expected = learnt.percentile(75);
        for _ in 0..200 {
            learnt.observe(5, true, expected);
        }
        assert_eq!(learnt.percentile(75), expected);
        for _ in 0..200 {
            learnt.observe(4000, true, expected);
        }
        assert!(learnt.percentile(75) > Some(3900.0), "it would have been longer still");
    }

    proptest! {
        /// A percentile is never less than that many of the answers, and at most a fifth more than the one
        /// that it stands for.
        #[test]
        fn within_a_fifth(mut lengths in prop::collection::vec(1u64..100_000, 16..200), percent in 1u8..=100) {
            let found = of(lengths.iter().copied()).percentile(percent).unwrap();
            lengths.sort_unstable();
            let at = (lengths.len() * usize::from(percent)).div_ceil(100).max(1) - 1;
            let exact = lengths[at] as f64;
            prop_assert!((exact - 1e-6..=exact * 1.2).contains(&found), "{found} of {exact}");
        }
    }
}
