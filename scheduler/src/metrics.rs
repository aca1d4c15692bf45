//! What the scheduler counts. Where the Gateway API Inference Extension has a name, it is that name,
//! so that its dashboards work.

mod predictions;
mod spans;

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use strata_trace::Tracer;
use strata_wire::prefix::Prefix;

use crate::index::Found;
use crate::pick::{Decision, Gate};
use crate::prediction::{Prediction, Usage};
use crate::scheduler::Shared;
use predictions::Predictions;
use spans::Spans;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfModel {
    model_name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfError {
    model_name: String,
    error_code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfPool {
    name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfReplica {
    name: String,
    model_server_pod: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfReason {
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfTrack {
    model_name: String,
    track: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfOutcome {
    model_name: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfPriority {
    model_name: String,
    priority: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfQueued {
    model_name: String,
    priority: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfRefusal {
    model_name: String,
    reason: &'static str,
}

/// Priorities that are told apart; those that come later are `other`. The layer above sets them, and a label
/// must have bounds.
const PRIORITIES: usize = 16;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfResult {
    outcome: &'static str,
}

type Level = Gauge<f64, AtomicU64>;

/// All counters, and the registry that prints them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<OfModel, Counter>,
    errors: Family<OfError, Counter>,
    duration: Family<OfModel, Histogram, fn() -> Histogram>,
    running: Family<OfModel, Gauge>,
    scheduling: Histogram,
    hit_ratio: Histogram,
    index_size: Family<OfReplica, Gauge>,
    queue_size: Family<OfPriority, Gauge>,
    queue_bytes: Family<OfModel, Gauge>,
    queue_time: Family<OfQueued, Histogram, fn() -> Histogram>,
    priorities: Mutex<BTreeSet<i32>>,
    refusals: Family<OfRefusal, Counter>,
    breakers: Family<OfReplica, Level>,
    breaker_openings: Counter,
    saturation: Family<OfPool, Level>,
    ready: Family<OfPool, Gauge>,
    kv_usage: Family<OfPool, Level>,
    pool_queue: Family<OfPool, Level>,
    replica_queue: Family<OfReplica, Level>,
    retries: Family<OfReason, Counter>,
    broken: Family<OfModel, Counter>,
    continuations: Family<OfOutcome, Counter>,
    retry_budget: Level,
    tracks: Family<OfTrack, Counter>,
    prefills: Family<OfOutcome, Counter>,
    prefill_requests: Family<OfReplica, Gauge>,
    watch_failures: Family<OfKind, Counter>,
    malformed: Family<OfKind, Counter>,
    discovered: Gauge,
    schedulers: Gauge,
    telling: Family<OfPool, Gauge>,
    told_blocks: Gauge,
    events_ended: Family<OfReason, Counter>,
    tokenised: Family<OfResult, Counter>,
    predictions: Predictions,
    spans: Spans,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 20))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Everything at zero.
    pub fn new() -> Self {
        fn by_seconds<L: Clone + std::hash::Hash + Eq>() -> Family<L, Histogram, fn() -> Histogram> {
            Family::new_with_constructor(seconds as fn() -> Histogram)
        }
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            errors: Family::default(),
            duration: by_seconds(),
            running: Family::default(),
            scheduling: Histogram::new(exponential_buckets(1e-6, 2.0, 20)),
            hit_ratio: Histogram::new((0..=10).map(|tenth| f64::from(tenth) / 10.0)),
            index_size: Family::default(),
            queue_size: Family::default(),
            queue_bytes: Family::default(),
            queue_time: by_seconds(),
            priorities: Mutex::new(BTreeSet::from([0])),
            refusals: Family::default(),
            breakers: Family::default(),
            breaker_openings: Counter::default(),
            saturation: Family::default(),
            ready: Family::default(),
            kv_usage: Family::default(),
            pool_queue: Family::default(),
            replica_queue: Family::default(),
            retries: Family::default(),
            broken: Family::default(),
            continuations: Family::default(),
            retry_budget: Gauge::default(),
            tracks: Family::default(),
            prefills: Family::default(),
            prefill_requests: Family::default(),
            watch_failures: Family::default(),
            malformed: Family::default(),
            discovered: Gauge::default(),
            schedulers: Gauge::default(),
            telling: Family::default(),
            told_blocks: Gauge::default(),
            events_ended: Family::default(),
            tokenised: Family::default(),
            predictions: Predictions::default(),
            spans: Spans::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let mut r = std::mem::take(&mut self.registry);
        r.register("inference_objective_request", "Requests received", self.requests.clone());
        r.register(
            "inference_objective_request_error",
            "Requests that ended in an error",
            self.errors.clone(),
        );
        r.register(
            "inference_objective_request_duration_seconds",
            "Time from a request to the end of its response",
            self.duration.clone(),
        );
        r.register("inference_objective_running_requests", "Requests under way", self.running.clone());
        r.register(
            "inference_extension_scheduler_e2e_duration_seconds",
            "Time to choose a replica",
            self.scheduling.clone(),
        );
        r.register(
            "inference_extension_prefix_indexer_hit_ratio",
            "Share of a prompt's blocks that the chosen replica probably held",
            self.hit_ratio.clone(),
        );
        r.register(
            "inference_extension_prefix_indexer_size",
            "Blocks in a replica's prefix index",
            self.index_size.clone(),
        );
        r.register(
            "inference_extension_flow_control_queue_size",
            "Requests held back",
            self.queue_size.clone(),
        );
        r.register(
            "inference_extension_flow_control_request_queue_duration_seconds",
            "Time that requests were held back",
            self.queue_time.clone(),
        );
        r.register(
            "inference_extension_flow_control_queue_bytes",
            "Bytes of the bodies of requests held back",
            self.queue_bytes.clone(),
        );
        r.register(
            "strata_scheduler_refused_requests",
            "Requests that found no place, by why",
            self.refusals.clone(),
        );
        r.register(
            "strata_scheduler_breaker_open",
            "1 while a replica is passed over because its answers fail, 0.5 while one request tries it",
            self.breakers.clone(),
        );
        r.register(
            "strata_scheduler_breaker_openings",
            "How often a replica's breaker opened",
            self.breaker_openings.clone(),
        );
        r.register(
            "inference_extension_flow_control_pool_saturation",
            "How full the emptiest ready replica is; 1 holds requests back",
            self.saturation.clone(),
        );
        r.register("inference_pool_ready_pods", "Ready replicas", self.ready.clone());
        r.register(
            "inference_pool_average_kv_cache_utilization",
            "Mean share of KV blocks in use",
            self.kv_usage.clone(),
        );
        r.register(
            "inference_pool_average_queue_size",
            "Mean number of requests that wait at a replica",
            self.pool_queue.clone(),
        );
        r.register(
            "inference_pool_per_pod_queue_size",
            "Requests that wait at a replica",
            self.replica_queue.clone(),
        );
        r.register(
            "strata_scheduler_retries",
            "Requests sent to another replica, by the first one's failure",
            self.retries.clone(),
        );
        r.register(
            "strata_scheduler_broken_responses",
            "Responses that broke off after they had begun",
            self.broken.clone(),
        );
        r.register(
            "strata_scheduler_continuations",
            "Answers that broke off and were to go on at another replica, by what came of it",
            self.continuations.clone(),
        );
        r.register("strata_scheduler_retry_budget", "Retries left", self.retry_budget.clone());
        r.register(
            "strata_scheduler_track_requests",
            "Requests placed while a share of them goes to a canary, by track",
            self.tracks.clone(),
        );
        r.register(
            "strata_scheduler_prefills",
            "Prompts that were to be computed by a prefill replica, by what came of it",
            self.prefills.clone(),
        );
        r.register(
            "strata_scheduler_prefill_replica_requests",
            "Prompts sent to a prefill replica since it is listed",
            self.prefill_requests.clone(),
        );
        r.register(
            "strata_scheduler_watch_failures",
            "Failed lists and watches of the Kubernetes API; the last state stays in force",
            self.watch_failures.clone(),
        );
        r.register(
            "strata_scheduler_malformed_objects",
            "Kubernetes objects that could not be read; their last good state stays in force",
            self.malformed.clone(),
        );
        r.register(
            "strata_scheduler_telling_replicas",
            "Replicas that tell which blocks they hold",
            self.telling.clone(),
        );
        r.register(
            "strata_scheduler_told_blocks",
            "Pairs of a block and a replica that holds it in one medium, those to be swept away among them",
            self.told_blocks.clone(),
        );
        r.register(
            "strata_scheduler_event_streams_ended",
            "Streams of a replica's events that ended, by why",
            self.events_ended.clone(),
        );
        r.register(
            "strata_scheduler_tokenised_prompts",
            "Prompts sent to a replica that publishes KV events as vLLM does, by whether their tokens became known",
            self.tokenised.clone(),
        );
        r.register(
            "strata_scheduler_discovered",
            "1 when every source of models and replicas has been read whole",
            self.discovered.clone(),
        );
        r.register(
            "strata_scheduler_live_schedulers",
            "Schedulers that share the bounds of what is held back, this one among them",
            self.schedulers.clone(),
        );
        self.predictions.register(&mut r);
        r.register_collector(Box::new(self.spans.clone()));
        self.registry = r;
    }

    /// A request for a known model came in.
    pub fn received(&self, model: &str) {
        let label = OfModel { model_name: model.to_owned() };
        self.requests.get_or_create(&label).inc();
        self.running.get_or_create(&label).inc();
    }

    /// A request ended, its response passed on whole or not.
    pub fn ended(&self, model: &str, took: Duration) {
        let label = OfModel { model_name: model.to_owned() };
        self.running.get_or_create(&label).dec();
        self.duration.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// A request ended with this status, 400 or more.
    pub fn failed(&self, model: &str, status: u16) {
        let label = OfError { model_name: model.to_owned(), error_code: status.to_string() };
        self.errors.get_or_create(&label).inc();
    }

    /// A response broke off after it had begun.
    pub fn broke(&self, model: &str) {
        self.broken.get_or_create(&OfModel { model_name: model.to_owned() }).inc();
    }

    /// An answer that broke off goes on elsewhere, or does not, for this reason.
    pub fn continued(&self, model: &str, outcome: &'static str) {
        self.continuations.get_or_create(&OfOutcome { model_name: model.to_owned(), outcome }).inc();
    }

    /// A request goes to another replica.
    pub fn retried(&self, reason: &str) {
        self.retries.get_or_create(&OfReason { reason: reason.to_owned() }).inc();
    }

    /// A request was held back for so long, with this outcome.
    pub fn queued(&self, model: &str, priority: i32, outcome: &'static str, waited: Duration) {
        let label = OfQueued { model_name: model.to_owned(), priority: self.priority(priority), outcome };
        self.queue_time.get_or_create(&label).observe(waited.as_secs_f64());
    }

    /// A request found no place.
    pub fn refused(&self, model: &str, reason: &'static str) {
        self.refusals.get_or_create(&OfRefusal { model_name: model.to_owned(), reason }).inc();
    }

    /// A replica's breaker opened.
    pub fn breaker_opened(&self) {
        self.breaker_openings.inc();
    }

    fn priority(&self, priority: i32) -> String {
        let mut known = self.priorities.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < PRIORITIES {
            known.insert(priority);
        }
        if known.contains(&priority) { priority.to_string() } else { "other".to_owned() }
    }

    /// A prompt was to be computed by a prefill replica, and this came of it: `computed`, or why not.
    pub fn prefilled(&self, model: &str, outcome: &'static str) {
        let label = OfOutcome { model_name: model.to_owned(), outcome };
        self.prefills.get_or_create(&label).inc();
    }

    /// Objects of this kind could not be listed or watched.
    pub fn watch_failed(&self, kind: &'static str) {
        self.watch_failures.get_or_create(&OfKind { kind }).inc();
    }

    /// A stream of a replica's events ended.
    pub fn events_ended(&self, reason: &str) {
        self.events_ended.get_or_create(&OfReason { reason: reason.to_owned() }).inc();
    }

    /// A prompt's tokens became known, or this came of it.
    pub fn tokenised(&self, outcome: &'static str) {
        self.tokenised.get_or_create(&OfResult { outcome }).inc();
    }

    /// An object of this kind could not be read.
    pub fn malformed(&self, kind: &'static str) {
        self.malformed.get_or_create(&OfKind { kind }).inc();
    }

    /// A prompt was answered of which this was thought, and its engine said that of it.
    pub fn predicted(&self, model: &str, prediction: Prediction, usage: Option<&Usage>) {
        self.predictions.count(model, prediction, usage);
    }

    /// Shows what becomes of this tracer's spans from now on.
    pub fn follow_spans(&self, tracer: &Tracer) {
        self.spans.follow(tracer);
    }

    /// A replica was chosen.
    pub fn picked(&self, model: &str, took: Duration, decision: &Decision) {
        self.scheduling.observe(took.as_secs_f64());
        if let Some(track) = decision.track {
            let track = if track.is_stable() { "stable" } else { "canary" };
            self.tracks.get_or_create(&OfTrack { model_name: model.to_owned(), track }).inc();
        }
        if decision.blocks > 0 {
            self.hit_ratio.observe(decision.cached_blocks as f64 / decision.blocks as f64);
        }
    }

    /// The text of `GET /metrics`, with the state of the pools as they are now.
    pub fn render(&self, shared: &Shared) -> String {
        self.look(shared);
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::error!(%error, "could not write the metrics");
        }
        text
    }

    fn look(&self, shared: &Shared) {
        self.index_size.clear();
        self.queue_size.clear();
        self.queue_bytes.clear();
        self.breakers.clear();
        self.saturation.clear();
        self.ready.clear();
        self.kv_usage.clear();
        self.pool_queue.clear();
        self.replica_queue.clear();
        self.prefill_requests.clear();
        self.retry_budget.set(shared.budget().left());
        self.discovered.set(i64::from(shared.is_discovered()));
        self.schedulers.set(shared.live() as i64);
        self.telling.clear();
        self.told_blocks.set(shared.registry.blocks.entries() as i64);
        let (now, stale, nothing) = (shared.now(), shared.options.stale_after(), Prefix::default());
        let found = Found::default();
        for (name, pool) in shared.registry.pools().iter() {
            let of_pool = OfPool { name: name.clone() };
            let (held, bytes) = {
                let queue = pool.queue();
                (queue.by_priority().collect::<Vec<_>>(), queue.bytes())
            };
            for (priority, count) in held.into_iter().chain([(0, 0)]) {
                let label = OfPriority { model_name: name.clone(), priority: self.priority(priority) };
                self.queue_size.get_or_create(&label).inc_by(count as i64);
            }
            self.queue_bytes.get_or_create(&OfModel { model_name: name.clone() }).set(bytes as i64);
            let (mut kv, mut waiting, mut ready) = (Vec::new(), Vec::new(), 0);
            let mut emptiest = f64::INFINITY;
            let (replicas, prefill) = (pool.replicas.load(), pool.prefill.load());
            for replica in replicas.iter().chain(prefill.iter()) {
                let label = OfReplica { name: name.clone(), model_server_pod: replica.name().to_owned() };
                self.index_size.get_or_create(&label).set(replica.indexed_blocks() as i64);
                let view = replica.view(&nothing, &found, now, stale);
                if let Some(count) = view.load.waiting.filter(|_| view.ready) {
                    self.replica_queue.get_or_create(&label).set(count);
                }
                let open = match view.standing.gate {
                    Gate::Closed => 0.0,
                    Gate::Probe => 0.5,
                    Gate::Open => 1.0,
                };
                self.breakers.get_or_create(&label).set(open);
                // The pool is what answers: by its means the model is scaled.
                if !replica.role().is_decode() {
                    self.prefill_requests.get_or_create(&label).set(replica.requests() as i64);
                    continue;
                }
                if !view.ready {
                    continue;
                }
                ready += 1;
                emptiest = emptiest.min(view.load.saturation());
                kv.extend(view.kv_usage);
                waiting.extend(view.load.waiting);
            }
            let telling = replicas.iter().chain(prefill.iter()).filter(|replica| replica.tells()).count();
            self.telling.get_or_create(&of_pool).set(telling as i64);
            self.ready.get_or_create(&of_pool).set(ready);
            // No ready replica at all is as full as can be.
            let saturation = if emptiest.is_finite() { emptiest } else { 1.0 };
            self.saturation.get_or_create(&of_pool).set(saturation);
            let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
            if !kv.is_empty() {
                self.kv_usage.get_or_create(&of_pool).set(mean(&kv));
            }
            if !waiting.is_empty() {
                self.pool_queue.get_or_create(&of_pool).set(mean(&waiting));
            }
        }
    }
}
