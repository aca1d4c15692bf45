//! The engine's metrics, under vLLM's names, so that dashboards and scalers made for it work.

mod external;
mod lora;
mod residency;
mod sleep;
mod speculation;
mod traces;

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use strata_wire::metrics::engine as names;

pub use external::ExternalMetrics;
pub use lora::LoraMetrics;
pub use residency::{Residency, ResidencyMetrics, SampleShare};
pub use sleep::SleepMetrics;
pub use speculation::SpeculationMetrics;
pub use traces::TraceMetrics;

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type FloatGauge = Gauge<f64, AtomicU64>;

/// Why a sequence ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FinishedLabels {
    finished_reason: &'static str,
}

/// All metrics of one engine. Updating them is a few atomic operations.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Sequences in the running batch.
    pub running: Gauge,
    /// Sequences that wait.
    pub waiting: Gauge,
    /// Tokens of the sequences that wait.
    pub waiting_tokens: Gauge,
    /// Share of blocks in use.
    pub kv_usage: FloatGauge,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: Counter,
    /// Prompt tokens found there.
    pub prefix_hits: Counter,
    /// Prompt tokens below the pool.
    pub external: ExternalMetrics,
    /// How long blocks are of use.
    pub residency: ResidencyMetrics,
    /// Preemptions.
    pub preemptions: Counter,
    /// Prompt tokens of admitted sequences.
    pub prompt_tokens: Counter,
    /// Those among them that came from the cache.
    pub prompt_tokens_cached: Counter,
    /// Tokens generated.
    pub generation_tokens: Counter,
    finished: Family<FinishedLabels, Counter>,
    /// Tokens in a step.
    pub iteration_tokens: Histogram,
    /// Time from arrival to the first token.
    pub ttft: Histogram,
    /// Time between two tokens.
    pub itl: Histogram,
    /// Mean time per output token after the first.
    pub tpot: Histogram,
    /// Time from arrival to the end.
    pub e2e: Histogram,
    /// Time from arrival to the first step.
    pub queue: Histogram,
    /// Time from the first step to the first token.
    pub prefill: Histogram,
    /// Time from the first token to the last.
    pub decode: Histogram,
    /// Prompt tokens of a sequence.
    pub request_prompt_tokens: Histogram,
    /// Generated tokens of a sequence.
    pub request_generation_tokens: Histogram,
    /// Prompt tokens a second over recent steps.
    pub prefill_rate: FloatGauge,
    /// Time from the first step to the last token.
    pub inference: Histogram,
    /// Answers that a request asks for.
    pub request_n: Histogram,
    /// Tokens that a request may generate for each answer.
    pub request_max_tokens: Histogram,
    /// Whether the engine sleeps.
    pub sleep: SleepMetrics,
    /// Guessed tokens.
    pub speculation: SpeculationMetrics,
    /// Adapters; none where there cannot be any.
    pub lora: Option<LoraMetrics>,
    /// Spans of requests.
    pub traces: TraceMetrics,
}

/// Seconds, from one millisecond to a quarter of an hour.
const SECONDS: [f64; 19] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0,
    480.0, 960.0,
];
/// Tokens, from one to a long context.
const TOKENS: [f64; 16] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0, 20_000.0,
    50_000.0, 100_000.0,
];

/// What does not change while an engine runs.
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    /// Sequences that a step holds at most.
    pub max_sequences: usize,
    /// Blocks of the KV cache.
    pub total_blocks: usize,
    /// Tokens of a block.
    pub block_tokens: usize,
    /// Different adapters that a step holds at most; none where there are none.
    pub max_loras: Option<usize>,
}

impl Metrics {
    /// The metrics of the model of this name.
    pub fn new(model_name: &str, fixed: Fixed) -> Self {
        let mut registry = Registry::default();
        let r = registry.sub_registry_with_label(("model_name".into(), model_name.to_owned().into()));
        let config: Family<Vec<(String, String)>, Gauge> = Family::default();
        let labels = vec![
            ("block_size".to_owned(), fixed.block_tokens.to_string()),
            ("num_gpu_blocks".to_owned(), fixed.total_blocks.to_string()),
        ];
        config.get_or_create(&labels).set(1);
        r.register(names::CACHE_CONFIG, "Size and number of the KV cache's blocks", config);
        let most = Gauge::<i64>::default();
        most.set(fixed.max_sequences as i64);
        r.register(names::MAX_SEQUENCES, "Sequences that a step holds at most", most);
        let finished = family(r, names::REQUEST_SUCCESS, "Sequences finished, by reason");
        for finished_reason in ["stop", "length", "abort", "error"] {
            // There from the start, so that a rate over it has a beginning.
            drop(finished.get_or_create(&FinishedLabels { finished_reason }));
        }
        Self {
            inference: histogram(
                r,
                names::INFERENCE_TIME,
                "Time from the first step to the last token",
                &SECONDS,
            ),
            request_n: histogram(r, names::REQUEST_N, "Answers that a request asks for", &TOKENS),
            request_max_tokens: histogram(
                r,
                names::REQUEST_MAX_TOKENS,
                "Tokens that a request may generate for each answer",
                &TOKENS,
            ),
            sleep: SleepMetrics::new(r),
            speculation: SpeculationMetrics::new(r),
            lora: fixed.max_loras.map(|most| LoraMetrics::new(r, most)),
            traces: TraceMetrics::new(r),
            running: gauge(r, names::RUNNING, "Sequences in the running batch"),
            waiting: gauge(r, names::WAITING, "Sequences that wait to be scheduled"),
            waiting_tokens: gauge(
                r,
                names::WAITING_TOKENS,
                "Tokens of the sequences that wait, and of prompts that are being read what is left",
            ),
            kv_usage: gauge(r, names::KV_USAGE, "Share of the KV cache's blocks in use, 0 to 1"),
            prefix_queries: counter(r, names::PREFIX_QUERIES, "Prompt tokens looked up in the prefix cache"),
            prefix_hits: counter(r, names::PREFIX_HITS, "Prompt tokens found in the prefix cache"),
            external: ExternalMetrics::new(r),
            residency: ResidencyMetrics::new(r),
            preemptions: counter(r, names::PREEMPTIONS, "Sequences that lost their blocks and began again"),
            prompt_tokens: counter(r, names::PROMPT_TOKENS, "Prompt tokens processed"),
            prompt_tokens_cached: counter(
                r,
                names::PROMPT_TOKENS_CACHED,
                "Prompt tokens taken from the cache",
            ),
            generation_tokens: counter(r, names::GENERATION_TOKENS, "Tokens generated"),
            finished,
            iteration_tokens: histogram(r, names::ITERATION_TOKENS, "Tokens in a step", &TOKENS),
            ttft: histogram(r, names::TTFT, "Time from arrival to the first token", &SECONDS),
            itl: histogram(r, names::ITL, "Time between two tokens", &SECONDS),
            tpot: histogram(r, names::TPOT, "Mean time per output token after the first", &SECONDS),
            e2e: histogram(r, names::E2E, "Time from arrival to the end", &SECONDS),
            queue: histogram(r, names::QUEUE_TIME, "Time from arrival to the first step", &SECONDS),
            prefill: histogram(
                r,
                names::PREFILL_TIME,
                "Time from the first step to the first token",
                &SECONDS,
            ),
            decode: histogram(r, names::DECODE_TIME, "Time from the first token to the last", &SECONDS),
            request_prompt_tokens: histogram(
                r,
                names::REQUEST_PROMPT_TOKENS,
                "Prompt tokens of a sequence",
                &TOKENS,
            ),
            request_generation_tokens: histogram(
                r,
                names::REQUEST_GENERATION_TOKENS,
                "Generated tokens of a sequence",
                &TOKENS,
            ),
            prefill_rate: gauge(r, names::PREFILL_RATE, "Prompt tokens a second over recent steps"),
            registry,
        }
    }

    /// Counts a sequence that ended for this reason.
    pub fn count_finished(&self, reason: &'static str) {
        self.finished.get_or_create(&FinishedLabels { finished_reason: reason }).inc();
    }

    /// The text that a scraper reads.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

fn gauge<N, A>(registry: &mut Registry, name: &str, help: &str) -> Gauge<N, A>
where
    Gauge<N, A>: Default + Clone + prometheus_client::registry::Metric,
{
    let metric = Gauge::<N, A>::default();
    registry.register(name, help, metric.clone());
    metric
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let metric = Counter::default();
    registry.register(name, help, metric.clone());
    metric
}

fn family(registry: &mut Registry, name: &str, help: &str) -> Family<FinishedLabels, Counter> {
    let metric = Family::default();
    registry.register(name, help, metric.clone());
    metric
}

fn histogram(registry: &mut Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let metric = Histogram::new(buckets.iter().copied());
    registry.register(name, help, metric.clone());
    metric
}
