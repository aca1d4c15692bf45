//! What operators and the layers above ask: models, health, version, metrics, abort.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderName, StatusCode, header};
use serde_json::{Value, json};
use strata_hop::Fault;
use strata_wire::ErrorKind;
use strata_wire::models::{Model, ModelList};

use super::{drain, submit};
use crate::lora::{Adapter, Adapters};
use crate::runtime::{Condition, Engine};
use crate::telemetry;

fn card(engine: &Engine) -> Model {
    let card = engine.card();
    Model {
        max_model_len: Some(engine.max_model_len() as u64),
        template_overhead: Some(card.template_overhead),
        ..Model::new(card.name.clone(), card.created)
    }
}

/// An adapter, which is asked for as a model.
fn adapter_card(engine: &Engine, adapter: &Adapter) -> Model {
    Model {
        id: adapter.key.name.to_string(),
        created: adapter.created,
        parent: Some(engine.card().name.clone()),
        ..card(engine)
    }
}

/// The model that is served, and its adapters.
pub(super) async fn models(State(engine): State<Arc<Engine>>) -> Json<ModelList> {
    let adapters = engine.adapters().map(Adapters::all).unwrap_or_default();
    let adapters = adapters.iter().map(|adapter| adapter_card(&engine, adapter));
    Json(ModelList::new(std::iter::once(card(&engine)).chain(adapters).collect()))
}

/// The model of this name.
pub(super) async fn model(
    State(engine): State<Arc<Engine>>,
    Path(id): Path<String>,
) -> Result<Json<Model>, Fault> {
    match submit::served(&engine, &id)? {
        None => Ok(Json(card(&engine))),
        Some(adapter) => Ok(Json(adapter_card(&engine, &adapter))),
    }
}

/// Whether the process is worth keeping.
pub(super) async fn health(State(engine): State<Arc<Engine>>) -> Result<(), Fault> {
    engine.health(Instant::now()).map_err(|unwell| Fault::new(ErrorKind::Overloaded, unwell.to_string()))
}

/// Whether to send it requests.
pub(super) async fn ready(State(engine): State<Arc<Engine>>) -> Result<(), Fault> {
    if engine.is_draining() {
        return Err(drain::refusal());
    }
    if engine.condition() != Condition::Awake {
        let fault = Fault::new(ErrorKind::Overloaded, "this replica is paused or sleeps");
        return Err(fault.retry_after(Duration::from_secs(1)));
    }
    health(State(engine)).await
}

/// This build's version.
pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// The metrics, for a scraper.
pub(super) async fn metrics(State(engine): State<Arc<Engine>>) -> Response {
    let kind: [(HeaderName, &str); 1] = [(header::CONTENT_TYPE, telemetry::CONTENT_TYPE)];
    (kind, engine.metrics().render()).into_response()
}

/// What was kept of a request's prompt, to be fetched once.
pub(super) async fn blocks(
    State(engine): State<Arc<Engine>>,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    let body = engine.transfer().and_then(|transfer| transfer.body(&id));
    let none = || Fault::new(ErrorKind::NotFound, "nothing is kept of a prompt under this request's id");
    Ok((StatusCode::OK, body.ok_or_else(none)?).into_response())
}

/// Ends the request of this minted id, or of the id that its answer shows; its stream ends with the usage
/// so far.
pub(super) async fn abort(State(engine): State<Arc<Engine>>, Path(id): Path<String>) -> Json<Value> {
    let aborted = end(&engine, &id).await;
    Json(json!({"id": id, "aborted": aborted}))
}

/// Ends a request by either of its ids; `false` when none runs under it.
pub(super) async fn end(engine: &Engine, id: &str) -> bool {
    if engine.abort(id).await {
        return true;
    }
    match ["chatcmpl-", "cmpl-"].iter().find_map(|kind| id.strip_prefix(kind)) {
        Some(minted) => engine.abort(minted).await,
        None => false,
    }
}
