//! The data plane: a streaming proxy that answers one question for every request, where it should run.
//!
//! It watches the engines' metrics, remembers which prompt prefixes it sent where, and picks the
//! replica that will have the prompt processed soonest ([`pick`]). Requests that no replica has room
//! for are held back, in order and not for ever. A replica that fails a request before the first byte
//! of its answer is passed over for the next best. The scheduler knows no tenants and keeps no text:
//! of a prompt it holds hashes.

pub mod adapters;
pub mod answers;
mod ask_peers;
pub mod call;
pub mod choose;
pub mod class;
mod continuation;
pub mod demand;
pub mod discovery;
pub mod endpoints;
pub mod exposition;
pub mod extproc;
pub mod follow;
mod go_on;
pub mod index;
pub mod inference_pool;
pub mod journal;
pub mod metrics;
pub mod options;
mod order;
pub mod peers;
pub mod pick;
pub mod prediction;
pub mod prefill;
pub mod proxy;
pub mod queue;
pub mod refusal;
pub mod registry;
pub mod replica;
pub mod report;
pub mod scheduler;
pub mod scrape;
pub mod stream;
pub mod subset;
pub mod telemetry;
mod traces;
mod views;
pub mod vllm;
pub mod watch;
pub mod wishes;

use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use strata_hop::{Above, Bound, Component, ListenError, caller, fault};
use strata_trace::Exporter;
use tokio_util::sync::CancellationToken;

pub use options::{Kubernetes, SchedulerError, SchedulerOptions};
pub use pick::Policy;
pub use scheduler::Scheduler;

/// Who may call a scheduler: the gateway; in production mode, without one, the platform; the operator,
/// which asks how the replicas are; and other schedulers of the namespace.
pub const CALLERS: &[Component] =
    &[Component::Gateway, Component::Platform, Component::Operator, Component::Scheduler];

/// Longest time that the last spans may take at a stop.
const LAST_SPANS: Duration = Duration::from_secs(5);

/// The scheduler's routes.
pub fn router(scheduler: Scheduler) -> Router {
    let options = &scheduler.options;
    let above = Above::new(options.hop_token.clone(), options.mtls.as_ref(), CALLERS);
    let mut router = Router::new()
        .route("/v1/models", get(report::models))
        .route("/v1/models/{*name}", get(report::model))
        .route("/replicas", get(report::replicas))
        .route(strata_wire::decisions::DECISIONS, get(report::decisions))
        .route("/health", get(report::health))
        .route("/ready", get(report::ready))
        .route("/version", get(report::version))
        .route("/metrics", get(report::metrics));
    for (path, _) in call::ROUTES {
        router = router.route(path, post(proxy::handle));
    }
    fault::with_openai_fallbacks(router)
        .layer(axum::middleware::from_fn_with_state(above, caller::require))
        .with_state(scheduler)
}

/// Runs a scheduler until `shutdown`. Then it says that it is not ready, closes its door a moment later,
/// and lets open requests finish.
pub async fn run(options: SchedulerOptions, shutdown: CancellationToken) -> Result<(), SchedulerError> {
    options.check()?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let bound = Bound::bind(&options.listen).await?.secured(options.mtls.clone()).on_threads(threads);
    run_on(bound, options, shutdown).await
}

/// The same, on an address that is bound already.
pub async fn run_on(
    bound: Bound,
    options: SchedulerOptions,
    shutdown: CancellationToken,
) -> Result<(), SchedulerError> {
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let grace = options.drain_grace.saturating_sub(options.leave_after);
    tracing::info!(
        address = %bound.addr(),
        options = %serde_json::to_string(&options).unwrap_or_default(),
        mtls = ?options.mtls,
        hop_token = if options.hop_token.is_some() { "set" } else { "none" },
        "scheduler listens"
    );
    let leave_after = options.leave_after;
    let picker = match &options.extproc_listen {
        Some(address) => Some(bind_picker(address, &options).await?),
        None => None,
    };
    let exporter = options.traces.clone().map(Exporter::start).transpose()?;
    let scheduler = Scheduler::start(options, stop).await?;
    if let Some(exporter) = &exporter {
        scheduler.trace(exporter.tracer().clone());
    }
    let closed = CancellationToken::new();
    let leaving = async {
        shutdown.cancelled().await;
        tracing::info!("scheduler stops; open requests finish");
        scheduler.leave();
        tokio::time::sleep(leave_after).await;
        closed.cancel();
    };
    let picks = async {
        if let Some(picker) = picker {
            picker.serve(extproc::router(scheduler.clone()), closed.clone(), grace).await;
        }
    };
    tokio::join!(bound.serve(router(scheduler.clone()), closed.clone(), grace), picks, leaving);
    if let Some(exporter) = exporter {
        exporter.close(LAST_SPANS).await;
    }
    Ok(())
}

/// The address at which proxies ask, guarded as the other is.
async fn bind_picker(address: &str, options: &SchedulerOptions) -> Result<Bound, SchedulerError> {
    let bound = Bound::bind(address).await.map_err(|error| match error {
        ListenError::InUse { addr } => SchedulerError::Options(format!(
            "{addr} is in use by another process; stop it, or choose another address with --extproc-listen"
        )),
        other @ ListenError::Failed { .. } => other.into(),
    })?;
    let bound = bound.secured(options.mtls.clone()).over_http2();
    tracing::info!(address = %bound.addr(), "endpoint picker listens");
    if options.mtls.is_none() && options.hop_token.is_none() && !bound.addr().ip().is_loopback() {
        tracing::warn!(
            address = %bound.addr(),
            "whoever reaches the endpoint picker can ask it: let only the gateway, by a NetworkPolicy"
        );
    }
    Ok(bound)
}
