//! What the operator counts.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::queue::Depth;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfResult {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfCall {
    verb: &'static str,
    resource: String,
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfState {
    kind: &'static str,
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfQueue {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfPoll {
    target: &'static str,
    result: &'static str,
}

/// All counters, and the registry that prints them.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    reconciles: Family<OfResult, Counter>,
    duration: Family<OfKind, Histogram, fn() -> Histogram>,
    waited: Family<OfKind, Histogram, fn() -> Histogram>,
    queue: Family<OfQueue, Gauge>,
    calls: Family<OfCall, Counter>,
    leader: Gauge,
    objects: Family<OfState, Gauge>,
    cached: Family<OfKind, Gauge>,
    polls: Family<OfPoll, Counter>,
    skipped: Counter<u64, AtomicU64>,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 20))
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("strata_operator"),
            reconciles: Family::default(),
            duration: Family::new_with_constructor(seconds as fn() -> Histogram),
            waited: Family::new_with_constructor(seconds as fn() -> Histogram),
            queue: Family::default(),
            calls: Family::default(),
            leader: Gauge::default(),
            objects: Family::default(),
            cached: Family::default(),
            polls: Family::default(),
            skipped: Counter::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let m = self;
        let r = &mut m.registry;
        r.register("reconciles", "Reconciliations by kind and result", m.reconciles.clone());
        r.register("reconcile_duration_seconds", "Time that a reconciliation took", m.duration.clone());
        r.register(
            "queue_wait_seconds",
            "Time between a change and its reconciliation's start",
            m.waited.clone(),
        );
        r.register("queue_depth", "Objects that wait, are reconciled, or failed last time", m.queue.clone());
        r.register("api_requests", "Requests to the API server; code 0 when no answer came", m.calls.clone());
        r.register("leader", "1 while this process leads", m.leader.clone());
        r.register("objects", "Objects by kind and the reason of their main condition", m.objects.clone());
        r.register("cached_objects", "Objects held in memory by kind", m.cached.clone());
        r.register("polls", "Requests to schedulers, gateways and downloads", m.polls.clone());
        r.register(
            "applies_skipped",
            "Children that were as they should be, so that nothing was sent",
            m.skipped.clone(),
        );
    }

    pub(super) fn reconciled(&self, kind: &'static str, result: &'static str, took: Duration) {
        self.reconciles.get_or_create(&OfResult { kind, result }).inc();
        self.duration.get_or_create(&OfKind { kind }).observe(took.as_secs_f64());
    }

    pub(super) fn waited(&self, kind: &'static str, waited: Duration) {
        self.waited.get_or_create(&OfKind { kind }).observe(waited.as_secs_f64());
    }

    pub(super) fn api_call(&self, verb: &'static str, resource: &str, code: u16) {
        self.calls.get_or_create(&OfCall { verb, resource: resource.to_owned(), code }).inc();
    }

    pub(super) fn polled(&self, target: &'static str, result: &'static str) {
        self.polls.get_or_create(&OfPoll { target, result }).inc();
    }

    pub(super) fn skipped(&self) {
        self.skipped.inc();
    }

    pub(super) fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    pub(super) fn queue(&self, depth: Depth) {
        let states = [("waiting", depth.waiting), ("running", depth.running), ("failing", depth.failing)];
        for (state, count) in states {
            self.queue.get_or_create(&OfQueue { state }).set(count as i64);
        }
    }

    pub(super) fn cached(&self, kind: &'static str, count: usize) {
        self.cached.get_or_create(&OfKind { kind }).set(count as i64);
    }

    /// Sets how many objects there are for each kind and reason; those not named are gone.
    pub(super) fn objects(&self, counts: impl IntoIterator<Item = ((&'static str, String), usize)>) {
        self.objects.clear();
        for ((kind, reason), count) in counts {
            self.objects.get_or_create(&OfState { kind, reason }).set(count as i64);
        }
    }

    /// All of it, as Prometheus reads it.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(error) => format!("# cannot be written: {error}\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_frozen() {
        let metrics = Metrics::new();
        metrics.reconciled("ModelDeployment", "ok", Duration::from_millis(1));
        metrics.waited("ModelDeployment", Duration::from_millis(1));
        metrics.api_call("apply", "deployments", 200);
        metrics.polled("scheduler", "ok");
        metrics.queue(Depth::default());
        metrics.cached("Pod", 3);
        metrics.objects([(("ModelDeployment", "Serving".to_owned()), 2)]);
        let text = metrics.text();
        let names: Vec<&str> = text.lines().filter(|l| l.starts_with("# TYPE")).collect();
        insta::assert_snapshot!(names.join("\n"));
    }
}
