//! Every path that the gateway answers. What is not listed here does not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;
use strata_hop::{Fault, Peer, caller, fault};
use strata_wire::governance::STATUS_PATH;
use strata_wire::models::Model;
use uuid::Uuid;

use crate::ask::Endpoint;
use crate::directory::ModelEntry;
use crate::gateway::{Gateway, Inner};
use crate::place::Places;
use crate::session::Session;
use crate::{inference, refuse, selfservice, status, usage_api};

pub(crate) fn router(gateway: Gateway) -> Router {
    let inference = |endpoint: Endpoint| {
        post(move |State(inner): State<Arc<Inner>>, request: Request| {
            inference::answer(inner, endpoint, request)
        })
    };
    let mut router = Router::new();
    for endpoint in [Endpoint::Chat, Endpoint::Completions, Endpoint::Embeddings] {
        router = router.route(endpoint.path(), inference(endpoint));
    }
    let router = router
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/keys", get(selfservice::list).post(selfservice::create))
        .route("/v1/keys/{id}", delete(selfservice::revoke))
        .route("/v1/keys/{id}/rotate", post(selfservice::rotate))
        .route("/v1/organization/usage/completions", get(usage_api::completions))
        .route("/internal/v1/whoami", get(selfservice::whoami))
        .route(STATUS_PATH, get(status::status))
        .route("/health", get(|| async { "ok" }))
        .route("/ready", get(ready))
        .route("/version", get(|| async { axum::Json(json!({"version": env!("CARGO_PKG_VERSION")})) }))
        .route("/metrics", get(metrics));
    let above = gateway.0.above.clone();
    fault::with_openai_fallbacks(router)
        .layer(axum::middleware::from_fn_with_state(above, caller::require_inside))
        .with_state(gateway.0)
}

async fn ready(State(inner): State<Arc<Inner>>) -> Response {
    let not_yet = |why: String| (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    if !inner.writer.is_open() || inner.stop.is_cancelled() {
        return not_yet("the ledger is closed".to_owned());
    }
    match inner.watched.as_ref().filter(|watched| !watched.is_taken_over()) {
        None => "ok".into_response(),
        Some(watched) => not_yet(watched.awaited()),
    }
}

/// The public entrance shows its metrics to this machine and to the layers' own token alone. On a cluster
/// Prometheus has no token, and a NetworkPolicy says who reaches the port.
async fn metrics(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let local = request.extensions().get::<Peer>().is_some_and(|peer| peer.is_loopback());
    let known = inner.above.knows(request.extensions(), request.headers());
    if !local && !known && inner.watched.is_none() {
        return fault::no_such_path(request).await.into_response();
    }
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], inner.metrics.render()).into_response()
}

/// The models that the tenant may use; never counted against a limit.
async fn models(State(inner): State<Arc<Inner>>, request: Request) -> Result<Response, Fault> {
    let session = inner.session(Uuid::now_v7(), request.headers(), request.extensions()).await?;
    let entries = listed(&inner, &session, None).await?;
    Ok(json_text(format!("{{\"object\":\"list\",\"data\":[{}]}}", entries.join(","))))
}

async fn model(
    State(inner): State<Arc<Inner>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Fault> {
    let session = inner.session(Uuid::now_v7(), request.headers(), request.extensions()).await?;
    let mut entries = listed(&inner, &session, Some(&id)).await?;
    entries.pop().map(json_text).ok_or_else(|| refuse::no_model(&id))
}

/// The entries of the models that the tenant may use, or of the one of this name.
async fn listed(inner: &Inner, session: &Session, only: Option<&str>) -> Result<Vec<String>, Fault> {
    let wanted =
        |name: &str| only.is_none_or(|only| only == name) && session.directory.permits(&session.tenant, name);
    if let Places::One(place) = &inner.places {
        let listing = place.catalog.listing_for(only).await?;
        let entries = listing.entries.iter().filter(|(name, _)| wanted(name));
        return Ok(entries.map(|(_, raw)| raw.get().to_owned()).collect());
    }
    let mut declared: Vec<_> = session.directory.models().filter(|(name, _)| wanted(name)).collect();
    declared.sort_unstable_by_key(|(name, _)| *name);
    let namespaces: BTreeSet<&Arc<str>> = declared.iter().map(|(_, entry)| &entry.namespace).collect();
    let listings = futures::future::join_all(namespaces.into_iter().map(|namespace| async move {
        let place = inner.place(namespace);
        // What cannot be asked now is listed by what its manifest says.
        let listing = if place.pool.is_empty() { None } else { place.catalog.listing_for(only).await.ok() };
        (namespace, listing)
    }));
    let listings: BTreeMap<_, _> = listings.await.into_iter().collect();
    let entry = |name: &str, declared: &ModelEntry| {
        let known = listings.get(&declared.namespace).and_then(Option::as_ref);
        match known.and_then(|listing| listing.entries.iter().find(|(id, _)| id == name)) {
            Some((_, raw)) => raw.get().to_owned(),
            None => serde_json::to_string(&Model::new(name, declared.created)).unwrap_or_default(),
        }
    };
    Ok(declared.into_iter().map(|(name, declared)| entry(name, declared)).collect())
}

fn json_text(text: String) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
}
