//! What operators and the layers above ask of an engine that reads: models, health, metrics, abort.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderName, header};
use serde_json::{Value, json};
use strata_hop::Fault;
use strata_wire::ErrorKind;
use strata_wire::models::{Model, ModelList};

use super::super::drain;
use super::submit;
use crate::embed::Embedder;
use crate::telemetry;

fn card(embedder: &Embedder) -> Model {
    let card = embedder.card();
    Model {
        max_model_len: Some(embedder.max_len() as u64),
        template_overhead: Some(card.template_overhead),
        ..Model::new(card.name.clone(), card.created)
    }
}

/// The one model that is served.
pub(super) async fn models(State(embedder): State<Arc<Embedder>>) -> Json<ModelList> {
    Json(ModelList::new(vec![card(&embedder)]))
}

/// The model of this name.
pub(super) async fn model(
    State(embedder): State<Arc<Embedder>>,
    Path(id): Path<String>,
) -> Result<Json<Model>, Fault> {
    if id == embedder.card().name {
        Ok(Json(card(&embedder)))
    } else {
        Err(submit::no_such_model(&id, &embedder.card().name))
    }
}

/// Whether the process is worth keeping.
pub(super) async fn health(State(embedder): State<Arc<Embedder>>) -> Result<(), Fault> {
    if embedder.is_alive() {
        return Ok(());
    }
    Err(Fault::new(ErrorKind::Overloaded, "the engine has stopped; the process must be restarted"))
}

/// Whether to send it requests.
pub(super) async fn ready(State(embedder): State<Arc<Embedder>>) -> Result<(), Fault> {
    if embedder.is_draining() {
        return Err(drain::refusal());
    }
    health(State(embedder)).await
}

/// The metrics, for a scraper.
pub(super) async fn metrics(State(embedder): State<Arc<Embedder>>) -> Response {
    let kind: [(HeaderName, &str); 1] = [(header::CONTENT_TYPE, telemetry::CONTENT_TYPE)];
    (kind, embedder.metrics().render()).into_response()
}

/// Ends the request of this minted id.
pub(super) async fn abort(State(embedder): State<Arc<Embedder>>, Path(id): Path<String>) -> Json<Value> {
    let aborted = embedder.abort(&id);
    Json(json!({"id": id, "aborted": aborted}))
}
