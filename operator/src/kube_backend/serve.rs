//! The operator's own probes and metrics.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use http::{StatusCode, header};
use strata_hop::listen::Bound;
use tokio_util::sync::CancellationToken;

use super::gate::Gate;
use super::metrics::Metrics;
use super::queue::Queue;
use super::shell::Shell;
use super::watch::Filling;

/// What the probes look at.
#[derive(Clone)]
pub(super) struct Probes {
    pub(super) filling: Filling,
    pub(super) gate: Arc<Gate>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) queue: Arc<Queue>,
    pub(super) shell: Arc<Shell>,
}

/// Serves `/health`, `/ready` and `/metrics` until `shutdown`.
pub(super) async fn serve(bound: Bound, probes: Probes, shutdown: CancellationToken) {
    let router = Router::new()
        .route("/health", get(async || "alive\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(probes);
    bound.serve(router, shutdown, Duration::from_secs(1)).await;
}

/// Ready when the caches are filled, as leader or as standby: a standby that is ready can take over.
async fn ready(State(probes): State<Probes>) -> impl IntoResponse {
    if !probes.filling.is_full() {
        return (StatusCode::SERVICE_UNAVAILABLE, "reading the cluster\n");
    }
    let leads = *probes.gate.leads().borrow();
    (StatusCode::OK, if leads { "ready: leader\n" } else { "ready: standby\n" })
}

async fn metrics(State(probes): State<Probes>) -> impl IntoResponse {
    probes.metrics.leads(*probes.gate.leads().borrow());
    probes.metrics.queue(probes.queue.depth());
    for (kind, count) in probes.shell.caches.sizes() {
        probes.metrics.cached(kind, count);
    }
    probes.metrics.objects(probes.shell.by_reason());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], probes.metrics.text())
}
