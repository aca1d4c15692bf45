//! What a replica's metrics say, and what follows from two looks at them. Time comes in as an argument.

use std::time::Duration;

use strata_wire::defaults::BLOCK_BYTES;
use strata_wire::engine_events::Load;
use strata_wire::metrics::engine;

use crate::exposition::samples;
use crate::pick::{Gauges, InterToken, Own};

/// Names that older vLLM versions used.
const OLD_KV_USAGE: &str = "vllm:gpu_cache_usage_perc";
const OLD_ITL: &str = "vllm:time_per_output_token_seconds";
/// When the process was started, by every Prometheus client library.
const START_TIME: &str = "process_start_time_seconds";

/// Values that are believed, zero beside them. With others sums and ratios leave the range of a number, and a
/// score that is none has no place among the scores of other replicas.
const BELIEVED: std::ops::RangeInclusive<f64> = 1e-9..=1e15;

/// Time over which the time between tokens is averaged; without a token for as long, it is unknown.
pub const LATENCY_WINDOW: Duration = Duration::from_secs(10);
/// Bytes of canonical text to one token, until it is observed.
pub const DEFAULT_BYTES_PER_TOKEN: f64 = 4.0;
/// Prompts to observe before the ratio of bytes to tokens is believed.
const MIN_PROMPTS: f64 = 8.0;

/// One look at a replica's metrics. Several series of one name (data-parallel ranks, models) are added
/// up; of the share of KV blocks in use the largest counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Sequences running.
    pub running: Option<f64>,
    /// Sequences waiting.
    pub waiting: Option<f64>,
    /// Share of KV blocks in use.
    pub kv_usage: Option<f64>,
    /// Prompt tokens waiting.
    pub waiting_tokens: Option<f64>,
    /// Sequences that run at most.
    pub max_sequences: Option<f64>,
    /// Prompt tokens a second, measured by the engine itself.
    pub prefill_rate: Option<f64>,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: Option<f64>,
    /// Prompt tokens found there.
    pub prefix_hits: Option<f64>,
    /// Prompt tokens processed.
    pub prompt_tokens: Option<f64>,
    /// Tokens generated.
    pub generation_tokens: Option<f64>,
    /// Seconds of all times between two tokens, and how many there were.
    pub inter_token: Option<(f64, f64)>,
    /// Prompt tokens of all finished requests, and how many there were.
    pub prompts: Option<(f64, f64)>,
    /// Seconds that finished requests spent in prefill.
    pub prefill_seconds: Option<f64>,
    /// Tokens that the KV cache holds.
    pub cache_tokens: Option<f64>,
    /// When the process was started, in seconds since 1970.
    pub started: Option<f64>,
}

impl Reading {
    /// Reads the text of `/metrics`. Whatever is missing or wrong in it is `None`.
    pub fn parse(text: &str) -> Self {
        let mut reading = Self::default();
        let mut pairs = [(None, None); 2];
        for sample in samples(text) {
            let value = sample.value;
            if value != 0.0 && !BELIEVED.contains(&value) {
                continue;
            }
            let name = sample.name;
            let slot = match name {
                engine::RUNNING => &mut reading.running,
                engine::WAITING => &mut reading.waiting,
                engine::WAITING_TOKENS => &mut reading.waiting_tokens,
                engine::MAX_SEQUENCES => &mut reading.max_sequences,
                engine::PREFILL_RATE => &mut reading.prefill_rate,
                START_TIME => &mut reading.started,
                engine::KV_USAGE | OLD_KV_USAGE => {
                    reading.kv_usage = Some(reading.kv_usage.unwrap_or(0.0).max(value));
                    continue;
                }
                engine::CACHE_CONFIG => {
                    let number = |label| sample.label(label).and_then(|v| v.parse::<f64>().ok());
                    if let (Some(size), Some(count)) = (number("block_size"), number("num_gpu_blocks")) {
                        let tokens = size * count;
                        if tokens.is_finite() && tokens > 0.0 {
                            reading.cache_tokens = Some(reading.cache_tokens.unwrap_or(0.0) + tokens);
                        }
                    }
                    continue;
                }
                _ => match counter(name) {
                    Some((engine::PREFIX_QUERIES, Part::Total)) => &mut reading.prefix_queries,
                    Some((engine::PREFIX_HITS, Part::Total)) => &mut reading.prefix_hits,
                    Some((engine::PROMPT_TOKENS, Part::Total)) => &mut reading.prompt_tokens,
                    Some((engine::GENERATION_TOKENS, Part::Total)) => &mut reading.generation_tokens,
                    Some((engine::PREFILL_TIME, Part::Sum)) => &mut reading.prefill_seconds,
                    Some((engine::ITL | OLD_ITL, Part::Sum)) => &mut pairs[0].0,
                    Some((engine::ITL | OLD_ITL, Part::Count)) => &mut pairs[0].1,
                    Some((engine::REQUEST_PROMPT_TOKENS, Part::Sum)) => &mut pairs[1].0,
                    Some((engine::REQUEST_PROMPT_TOKENS, Part::Count)) => &mut pairs[1].1,
                    _ => continue,
                },
            };
            *slot = Some(slot.unwrap_or(0.0) + value);
        }
        reading.inter_token = pairs[0].0.zip(pairs[0].1);
        reading.prompts = pairs[1].0.zip(pairs[1].1);
        reading
    }
}

enum Part {
    Total,
    Sum,
    Count,
}

fn counter(name: &str) -> Option<(&str, Part)> {
    let part = |suffix, part| name.strip_suffix(suffix).map(|base| (base, part));
    part("_total", Part::Total).or_else(|| part("_sum", Part::Sum)).or_else(|| part("_count", Part::Count))
}

/// What follows from looking at a replica again and again.
#[derive(Clone, Debug, Default)]
pub struct Trend {
    last: Option<(Reading, Duration)>,
    inter_token: Option<(f64, Duration)>,
    /// The same between the last two looks alone, if there were any tokens.
    lately: Option<f64>,
    /// Prompts this scheduler had answered there: bytes and number; and what the engine counted in the
    /// same time: tokens and number.
    sent: (f64, f64),
    counted: (f64, f64),
    /// What follows from all of it: asked for at each choice, and found anew when something changes.
    derived: Derived,
}

/// What follows from the last look, whenever that was.
#[derive(Clone, Copy, Debug)]
struct Derived {
    bytes_per_token: f64,
    /// As the last look has it.
    gauges: Gauges,
    /// When that was.
    at: Option<Duration>,
}

impl Default for Derived {
    fn default() -> Self {
        Self { bytes_per_token: DEFAULT_BYTES_PER_TOKEN, gauges: Gauges::default(), at: None }
    }
}

fn gauges(reading: &Reading) -> Gauges {
    let mean_prompt = reading.prompts.filter(|(_, count)| *count > 0.0).map(|(sum, count)| sum / count);
    let waiting_tokens = reading.waiting_tokens.or(match (reading.waiting, mean_prompt) {
        (Some(waiting), _) if waiting <= 0.0 => Some(0.0),
        (Some(waiting), Some(mean)) => Some(waiting * mean),
        _ => None,
    });
    let prefill_rate = reading.prefill_rate.filter(|rate| *rate > 0.0).or_else(|| {
        let seconds = reading.prefill_seconds.filter(|s| *s > 0.0)?;
        let (tokens, _) = reading.prompts?;
        (tokens > 0.0).then_some(tokens / seconds)
    });
    Gauges {
        running: reading.running,
        waiting: reading.waiting,
        waiting_tokens,
        max_sequences: reading.max_sequences,
        kv_usage: reading.kv_usage,
        prefill_rate,
        inter_token: if reading.inter_token.is_some() { InterToken::Idle } else { InterToken::Missing },
        own: Own::default(),
    }
}

impl Trend {
    /// Takes another look. Returns whether it shows a process that cannot be the one looked at
    /// before: it was started at another time, or its counters went back.
    pub fn observe(&mut self, reading: Reading, now: Duration) -> bool {
        let restarted = self.last.is_some_and(|(before, _)| is_other_process(&before, &reading));
        if restarted {
            *self = Self::default();
        }
        self.lately = None;
        if let Some((before, _)) = self.last {
            if let (Some(then), Some(since)) = (before.inter_token, reading.inter_token)
                && since.1 > then.1
                && since.0 >= then.0
            {
                let mean = (since.0 - then.0) / (since.1 - then.1);
                self.lately = Some(mean);
                self.inter_token = Some((
                    match self.inter_token {
                        Some((average, at)) => {
                            let passed = now.saturating_sub(at).as_secs_f64() / LATENCY_WINDOW.as_secs_f64();
                            average + (mean - average) * (1.0 - (-passed).exp()).max(0.02)
                        }
                        None => mean,
                    },
                    now,
                ));
            }
            if let (Some(then), Some(since)) = (before.prompts, reading.prompts)
                && since.1 > then.1
                && since.0 > then.0
            {
                self.counted.0 += since.0 - then.0;
                self.counted.1 += since.1 - then.1;
                fade(&mut self.counted);
            }
        }
        if self.inter_token.is_some_and(|(_, at)| now.saturating_sub(at) >= LATENCY_WINDOW) {
            self.inter_token = None;
        }
        self.last = Some((reading, now));
        self.derive();
        restarted
    }

    /// Seconds between two tokens on average, since the look before the last; `None` when there were none.
    pub fn mean_between_tokens(&self) -> Option<f64> {
        self.lately
    }

    fn derive(&mut self) {
        let (sent, counted) = (self.sent, self.counted);
        let bytes_per_token = if sent.1 < MIN_PROMPTS || counted.1 < MIN_PROMPTS || counted.0 <= 0.0 {
            DEFAULT_BYTES_PER_TOKEN
        } else {
            ((sent.0 / sent.1) / (counted.0 / counted.1)).clamp(1.0, 8.0)
        };
        self.derived = Derived { bytes_per_token, ..self.derived };
        if let Some((reading, at)) = &self.last {
            (self.derived.gauges, self.derived.at) = (gauges(reading), Some(*at));
        }
    }

    /// Takes what the replica tells of its load by itself, in the place of what its metrics said. `false`
    /// when there are no metrics yet.
    pub fn told(&mut self, load: &Load, now: Duration) -> bool {
        let Some((reading, at)) = &mut self.last else { return false };
        reading.running = Some(load.running as f64);
        reading.waiting = Some(load.waiting as f64);
        reading.waiting_tokens = Some(load.waiting_tokens as f64);
        if load.total_blocks > 0 {
            reading.kv_usage = Some(1.0 - load.free_blocks as f64 / load.total_blocks as f64);
        }
        *at = now;
        self.derive();
        true
    }

    /// Whether this reading proves that the process is still the one looked at last: the same start
    /// time, or counters that only grew from something.
    pub fn proves_same_process(&self, reading: &Reading) -> bool {
        let Some((before, _)) = self.last else { return false };
        if is_other_process(&before, reading) {
            return false;
        }
        match (before.started, reading.started) {
            (Some(a), Some(b)) => (a - b).abs() < 0.5,
            _ => before.prompt_tokens.zip(reading.prompt_tokens).is_some_and(|(a, b)| a > 0.0 && b >= a),
        }
    }

    /// A prompt of this many canonical bytes was answered there.
    pub fn answered(&mut self, bytes: usize) {
        if bytes > 0 {
            self.sent.0 += bytes as f64;
            self.sent.1 += 1.0;
            fade(&mut self.sent);
            self.derive();
        }
    }

    /// Bytes of canonical text to one token: the mean prompt sent over the mean prompt counted there.
    /// Means, not sums, so that other schedulers' requests do not tilt it.
    pub fn bytes_per_token(&self) -> f64 {
        self.derived.bytes_per_token
    }

    /// The last look, if it is not older than `stale`.
    pub fn reading(&self, now: Duration, stale: Duration) -> Option<&Reading> {
        self.last.as_ref().filter(|(_, at)| now.saturating_sub(*at) <= stale).map(|(reading, _)| reading)
    }

    /// The last look, however old.
    pub fn last(&self) -> Option<&Reading> {
        self.last.as_ref().map(|(reading, _)| reading)
    }

    /// Prefix blocks that the replica's KV cache can hold, if it says so.
    pub fn cache_blocks(&self) -> Option<usize> {
        let tokens = self.last()?.cache_tokens?;
        Some((tokens * self.bytes_per_token() / BLOCK_BYTES as f64) as usize)
    }

    /// What scoring needs. `own` is what was under way when the metrics were asked for. `None` when
    /// the last look is older than `stale`.
    pub fn gauges(&self, own: Own, now: Duration, stale: Duration) -> Option<Gauges> {
        let Derived { gauges, at, .. } = self.derived;
        at.filter(|at| now.saturating_sub(*at) <= stale)?;
        let inter_token = match self.inter_token {
            Some((seconds, at)) if now.saturating_sub(at) < LATENCY_WINDOW => InterToken::Seconds(seconds),
            _ => gauges.inter_token,
        };
        Some(Gauges { inter_token, own, ..gauges })
    }
}

fn is_other_process(before: &Reading, now: &Reading) -> bool {
    if let (Some(a), Some(b)) = (before.started, now.started)
        && (a - b).abs() >= 0.5
    {
        return true;
    }
    let fell = |a: Option<f64>, b: Option<f64>| a.zip(b).is_some_and(|(a, b)| b < a);
    fell(before.prompt_tokens, now.prompt_tokens)
        || fell(before.generation_tokens, now.generation_tokens)
        || fell(before.prefix_queries, now.prefix_queries)
}

/// Halves both numbers now and then, so that old prompts count less.
fn fade(pair: &mut (f64, f64)) {
    if pair.1 > 512.0 {
        pair.0 /= 2.0;
        pair.1 /= 2.0;
    }
}

#[cfg(test)]
mod tests;
