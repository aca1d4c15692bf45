//! What the scheduler says of itself and of its replicas.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde_json::json;
use strata_hop::Fault;
use strata_wire::decisions::Decisions;
use strata_wire::models::{Model, ModelList};
use strata_wire::replicas::ReplicaReport;

use crate::journal::Which;
use crate::refusal::unknown_model;
use crate::scheduler::Scheduler;

/// `GET /v1/models`.
pub async fn models(State(scheduler): State<Scheduler>) -> Json<ModelList> {
    Json(ModelList::new(scheduler.registry.models()))
}

/// `GET /v1/models/NAME`, whose name may hold slashes.
pub async fn model(
    State(scheduler): State<Scheduler>,
    Path(name): Path<String>,
) -> Result<Json<Model>, Fault> {
    let found = scheduler.registry.models().into_iter().find(|model| model.id == name);
    found.map(Json).ok_or_else(|| unknown_model(&name))
}

/// `GET /replicas`.
pub async fn replicas(State(scheduler): State<Scheduler>) -> Json<ReplicaReport> {
    Json(scheduler.registry.report(scheduler.now()))
}

/// `GET /debug/decisions`: the latest choices.
pub async fn decisions(
    State(scheduler): State<Scheduler>,
    which: Result<Query<Which>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Decisions>, Fault> {
    let Query(which) = which.map_err(|error| {
        Fault::invalid(format!("{error}; the parameters are request=ID, model=NAME and last=N"))
    })?;
    Ok(Json(Decisions { decisions: scheduler.journal.latest(&which) }))
}

/// `GET /health`: the process answers.
pub async fn health() -> Json<serde_json::Value> {
    Json(json!({"status": "ok"}))
}

/// `GET /ready`: whether requests should be sent here. With replicas from the command line or a file,
/// that takes one that can answer. On Kubernetes it takes the whole lists of models and pods, and no
/// replica: requests for a model that sleeps are what wakes it. Not when it is about to stop.
pub async fn ready(State(scheduler): State<Scheduler>) -> Response {
    let replicas = scheduler.registry.replicas();
    let ready = replicas.iter().filter(|replica| replica.is_ready()).count();
    let (discovered, leaving) = (scheduler.is_discovered(), scheduler.is_leaving());
    let status = if is_ready(&scheduler) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "ready_replicas": ready,
        "replicas": replicas.len(),
        "discovered": discovered,
        "stopping": leaving,
    });
    (status, Json(body)).into_response()
}

/// What `GET /ready` says.
pub(crate) fn is_ready(scheduler: &Scheduler) -> bool {
    let has_replica = || scheduler.registry.replicas().iter().any(|replica| replica.is_ready());
    let has_enough = scheduler.options.kubernetes.is_some() || has_replica();
    scheduler.is_discovered() && has_enough && !scheduler.is_leaving()
}

/// `GET /version`.
pub async fn version() -> Json<serde_json::Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// `GET /metrics`.
pub async fn metrics(State(scheduler): State<Scheduler>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], scheduler.metrics.render(&scheduler)).into_response()
}
