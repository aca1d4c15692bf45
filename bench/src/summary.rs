//! From what was seen of the requests to figures. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

/// What became of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// When it was sent, in seconds since 1970.
    pub start: f64,
    /// How long it waited here for its turn, where requests at once are limited.
    pub queued: Duration,
    /// Its answer, or why there is none.
    pub result: Result<Completed, String>,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completed {
    /// From sending to the first text.
    pub ttft: Duration,
    /// From sending to the last text.
    pub latency: Duration,
    /// Between pieces of text.
    pub itl: Vec<Duration>,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of it that the server had in its cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
}

impl Completed {
    /// Time for each token after the first; `None` when there is no second.
    pub fn tpot(&self) -> Option<Duration> {
        let more = u32::try_from(self.output_tokens.saturating_sub(1)).ok().filter(|n| *n > 0)?;
        Some(self.latency.saturating_sub(self.ttft) / more)
    }
}

/// A time that is summed up over the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Time to the first token.
    Ttft,
    /// Time for each output token after the first.
    Tpot,
    /// Between pieces of text.
    Itl,
    /// The whole request.
    E2el,
}

impl Metric {
    /// All, in the order in which they are told.
    pub const ALL: [Self; 4] = [Self::Ttft, Self::Tpot, Self::Itl, Self::E2el];

    /// As options and results write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ttft => "ttft",
            Self::Tpot => "tpot",
            Self::Itl => "itl",
            Self::E2el => "e2el",
        }
    }

    fn values(self, answers: &[&Completed]) -> Vec<f64> {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        match self {
            Self::Ttft => answers.iter().map(|a| ms(a.ttft)).collect(),
            Self::Tpot => answers.iter().filter_map(|a| a.tpot()).map(ms).collect(),
            Self::Itl => answers.iter().flat_map(|a| &a.itl).map(|t| ms(*t)).collect(),
            Self::E2el => answers.iter().map(|a| ms(a.latency)).collect(),
        }
    }
}

/// One metric over all requests, in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub median: f64,
    /// Standard deviation of the population.
    pub std: f64,
    /// The percentiles that were asked for, each with its value.
    pub percentiles: Vec<(f64, f64)>,
}

/// Upper limits by which a request counts as good, in milliseconds.
pub type Goodput = BTreeMap<Metric, f64>;

/// The figures of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Requests with a whole answer.
    pub completed: usize,
    /// Requests without.
    pub failed: usize,
    /// Tokens of the prompts that were answered.
    pub total_input_tokens: u64,
    /// Tokens of them that the server had in its cache.
    pub total_cached_tokens: u64,
    /// Tokens generated.
    pub total_output_tokens: u64,
    /// Seconds from the first request to the end of the last.
    pub duration: f64,
    /// Answered requests within all limits, a second; only with limits.
    pub request_goodput: Option<f64>,
    /// The most pieces of text in any second of the run.
    pub max_output_tokens_per_s: f64,
    /// The most requests that were open at once.
    pub max_concurrent_requests: usize,
    /// The metrics.
    pub metrics: Vec<(Metric, Spread)>,
}

impl Summary {
    /// Sums up. `duration` is that of the whole run; what has no value (no answer, no second token) is 0.
    pub fn of(outcomes: &[Outcome], duration: Duration, percentiles: &[f64], goodput: &Goodput) -> Self {
        let answers: Vec<&Completed> = outcomes.iter().filter_map(|o| o.result.as_ref().ok()).collect();
        let total = |count: fn(&Completed) -> u64| answers.iter().map(|a| count(a)).sum();
        let seconds = duration.as_secs_f64();
        let good = answers.iter().filter(|a| is_good(a, goodput)).count();
        Self {
            completed: answers.len(),
            failed: outcomes.len() - answers.len(),
            total_input_tokens: total(|a| a.prompt_tokens),
            total_cached_tokens: total(|a| a.cached_tokens),
            total_output_tokens: total(|a| a.output_tokens),
            duration: seconds,
            request_goodput: (!goodput.is_empty()).then(|| per_second(good as f64, seconds)),
            max_output_tokens_per_s: busiest_second(outcomes),
            max_concurrent_requests: most_at_once(outcomes),
            metrics: Metric::ALL.map(|m| (m, spread(m.values(&answers), percentiles))).into(),
        }
    }

    /// Answered requests a second.
    pub fn request_throughput(&self) -> f64 {
        per_second(self.completed as f64, self.duration)
    }

    /// Generated tokens a second.
    pub fn output_throughput(&self) -> f64 {
        per_second(self.total_output_tokens as f64, self.duration)
    }

    /// Tokens of prompts and answers a second.
    pub fn total_token_throughput(&self) -> f64 {
        per_second((self.total_input_tokens + self.total_output_tokens) as f64, self.duration)
    }
}

fn per_second(count: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { count / seconds } else { 0.0 }
}

fn is_good(answer: &Completed, goodput: &Goodput) -> bool {
    let within = |(metric, limit): (&Metric, &f64)| metric.values(&[answer]).iter().all(|v| v <= limit);
    goodput.iter().all(within)
}

fn spread(mut values: Vec<f64>, percentiles: &[f64]) -> Spread {
    values.sort_by(f64::total_cmp);
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
    Spread {
        mean,
        median: percentile(&values, 50.0),
        std: variance.sqrt(),
        percentiles: percentiles.iter().map(|p| (*p, percentile(&values, *p))).collect(),
    }
}

/// The `p`-th percentile of sorted values, between neighbours by straight line; 0 of none.
pub fn percentile(sorted: &[f64], p: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = last as f64 * p / 100.0;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    sorted[low] + (sorted[high.min(last)] - sorted[low]) * (at - low as f64)
}

fn busiest_second(outcomes: &[Outcome]) -> f64 {
    let begin = outcomes.iter().map(|o| o.start).fold(f64::INFINITY, f64::min);
    let mut seconds = BTreeMap::<u64, u64>::new();
    for outcome in outcomes {
        let Ok(answer) = &outcome.result else { continue };
        let mut at = outcome.start - begin + answer.ttft.as_secs_f64();
        *seconds.entry(at as u64).or_default() += 1;
        for gap in &answer.itl {
            at += gap.as_secs_f64();
            *seconds.entry(at as u64).or_default() += 1;
        }
    }
    seconds.into_values().max().unwrap_or(0) as f64
}

fn most_at_once(outcomes: &[Outcome]) -> usize {
    let mut changes: Vec<(f64, i32)> = outcomes
        .iter()
        .filter_map(|o| o.result.as_ref().ok().map(|a| (o.start, o.start + a.latency.as_secs_f64())))
        .flat_map(|(begin, end)| [(begin, 1), (end, -1)])
        .collect();
    // An end comes before a start of the same moment.
    changes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let (mut open, mut most) = (0, 0);
    for (_, change) in changes {
        open += change;
        most = most.max(open);
    }
    usize::try_from(most).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn answer(start: f64, ttft: u64, itl: &[u64]) -> Outcome {
        let latency = ttft + itl.iter().sum::<u64>();
        Outcome {
            start,
            queued: Duration::ZERO,
            result: Ok(Completed {
                ttft: ms(ttft),
                latency: ms(latency),
                itl: itl.iter().map(|g| ms(*g)).collect(),
                prompt_tokens: 10,
                cached_tokens: 4,
                output_tokens: itl.len() as u64 + 1,
            }),
        }
    }

    fn failed() -> Outcome {
        Outcome { start: 0.0, queued: Duration::ZERO, result: Err("HTTP 503".into()) }
    }

    #[test]
    fn a_failed_request_counts_and_adds_nothing() {
        let outcomes = [answer(0.0, 100, &[10, 30]), failed(), answer(0.05, 300, &[20])];
        let goodput = Goodput::from([(Metric::Ttft, 200.0), (Metric::Tpot, 20.0)]);
        let summary = Summary::of(&outcomes, ms(2000), &[99.0], &goodput);
        assert_eq!((summary.completed, summary.failed), (2, 1));
        assert_eq!(
            (summary.total_input_tokens, summary.total_output_tokens, summary.total_cached_tokens),
            (20, 5, 8)
        );
        assert!((summary.output_throughput() - 2.5).abs() < 1e-9);
        assert!((summary.total_token_throughput() - 12.5).abs() < 1e-9);
        assert_eq!(summary.request_goodput, Some(0.5));
        assert_eq!(summary.max_concurrent_requests, 2);
        let of = |metric| &summary.metrics.iter().find(|(m, _)| *m == metric).unwrap().1;
        assert!((of(Metric::Ttft).mean - 200.0).abs() < 1e-9);
        assert!((of(Metric::Ttft).std - 100.0).abs() < 1e-9);
        assert!((of(Metric::Tpot).median - 20.0).abs() < 1e-9);
        assert!((of(Metric::Itl).median - 20.0).abs() < 1e-9);
        assert!((of(Metric::Itl).percentiles[0].1 - 29.8).abs() < 1e-9, "linear between neighbours");
    }

    #[test]
    fn nothing_gives_zeros() {
        let summary = Summary::of(&[failed()], Duration::ZERO, &[50.0], &Goodput::new());
        assert_eq!((summary.completed, summary.failed), (0, 1));
        assert!(summary.output_throughput().abs() < 1e-9);
        assert_eq!(summary.request_goodput, None);
    }

    proptest! {
        #[test]
        fn percentiles_are_ordered_and_among_the_values(
            mut values in proptest::collection::vec(0.0..1e6_f64, 1..50), p in 0.0..100.0_f64, q in 0.0..100.0_f64,
        ) {
            values.sort_by(f64::total_cmp);
            let (low, high) = (percentile(&values, p.min(q)), percentile(&values, p.max(q)));
            prop_assert!(low <= high + 1e-6);
            prop_assert!(values[0] - 1e-6 <= low && high <= values[values.len() - 1] + 1e-6);
        }
    }
}
