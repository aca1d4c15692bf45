//! What the gateway tells Prometheus. No label holds a tenant, a key or a user; a model is a label
//! only once the caller may see it.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Labels of a finished inference call.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CallLabels {
    /// The endpoint.
    pub endpoint: &'static str,
    /// The model.
    pub model: String,
    /// The HTTP status.
    pub status: u16,
}

/// Labels of a decision.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DecisionLabels {
    /// `allow` or `deny`.
    pub decision: &'static str,
    /// The audit's reason code.
    pub reason: &'static str,
}

/// Labels of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TokenLabels {
    /// The model.
    pub model: String,
    /// `prompt`, `cached` or `completion`.
    pub kind: &'static str,
}

/// The gateway's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Inference calls that ended.
    pub calls: Family<CallLabels, Counter>,
    /// Decisions.
    pub decisions: Family<DecisionLabels, Counter>,
    /// Tokens metered.
    pub tokens: Family<TokenLabels, Counter>,
    /// Calls in flight.
    pub in_flight: Gauge,
    /// Calls that no policy counted.
    pub unmatched: Counter,
    /// Calls that used more than was reserved.
    pub over_reserved: Counter,
    /// Calls whose usage is estimated.
    pub estimated: Counter,
    /// Calls that a policy on trial would have refused.
    pub would_refuse: Counter,
    /// Audit entries dropped because the ledger could not keep up.
    pub audit_dropped: Counter,
    /// Entries that the ledger could not write.
    pub ledger_failures: Counter,
    /// Edits of the manifests that were refused.
    pub config_rejected: Counter,
    /// Lists and watches of the API server that failed.
    pub watch_failures: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("strata_gateway"),
            calls: Family::default(),
            decisions: Family::default(),
            tokens: Family::default(),
            in_flight: Gauge::default(),
            unmatched: Counter::default(),
            over_reserved: Counter::default(),
            estimated: Counter::default(),
            would_refuse: Counter::default(),
            audit_dropped: Counter::default(),
            ledger_failures: Counter::default(),
            config_rejected: Counter::default(),
            watch_failures: Counter::default(),
        };
        let r = &mut metrics.registry;
        r.register("requests", "Inference calls that ended", metrics.calls.clone());
        r.register("decisions", "Decisions about requests", metrics.decisions.clone());
        r.register("tokens", "Tokens metered", metrics.tokens.clone());
        r.register("requests_in_flight", "Inference calls in flight", metrics.in_flight.clone());
        r.register("requests_unmatched", "Calls that no policy counted", metrics.unmatched.clone());
        r.register(
            "requests_over_reserved",
            "Calls that used more than was reserved",
            metrics.over_reserved.clone(),
        );
        r.register("requests_estimated", "Calls whose usage is estimated", metrics.estimated.clone());
        r.register(
            "requests_would_refuse",
            "Calls that a policy on trial would have refused",
            metrics.would_refuse.clone(),
        );
        r.register("audit_dropped", "Audit entries dropped", metrics.audit_dropped.clone());
        r.register(
            "ledger_failures",
            "Entries that the ledger could not write",
            metrics.ledger_failures.clone(),
        );
        r.register("config_rejected", "Edits of the manifests refused", metrics.config_rejected.clone());
        r.register(
            "watch_failures",
            "Lists and watches of the API server that failed",
            metrics.watch_failures.clone(),
        );
        metrics
    }
}

impl Metrics {
    /// The OpenMetrics text.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            // Writing to a String cannot fail.
            text.clear();
        }
        text
    }
}
