//! Every path that the gateway answers. What is not listed here does not exist.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;
use strata_hop::{Fault, Peer, fault};
use uuid::Uuid;

use crate::ask::Endpoint;
use crate::gateway::{Gateway, Inner};
use crate::{inference, refuse, selfservice, usage_api};

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
        .route("/health", get(|| async { "ok" }))
        .route("/ready", get(ready))
        .route("/version", get(|| async { axum::Json(json!({"version": env!("CARGO_PKG_VERSION")})) }))
        .route("/metrics", get(metrics));
    fault::with_openai_fallbacks(router).with_state(gateway.0)
}

async fn ready(State(inner): State<Arc<Inner>>) -> Response {
    if inner.writer.is_open() && !inner.stop.is_cancelled() {
        "ok".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the ledger is closed").into_response()
    }
}

/// The public entrance shows its metrics to this machine and to the layers' own token alone.
async fn metrics(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let local = request.extensions().get::<Peer>().is_some_and(|peer| peer.is_loopback());
    let known = inner.hop_token.as_ref().is_some_and(|token| token.matches(request.headers()));
    if !local && !known {
        return fault::no_such_path(request).await.into_response();
    }
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], inner.metrics.render()).into_response()
}

/// The models that the tenant may use; never counted against a limit.
async fn models(State(inner): State<Arc<Inner>>, request: Request) -> Result<Response, Fault> {
    let session = inner.session(Uuid::now_v7(), request.headers(), request.extensions()).await?;
    let listing = inner.catalog.listing().await?;
    let visible: Vec<&str> = listing
        .entries
        .iter()
        .filter(|(name, _)| session.directory.permits(&session.tenant, name))
        .map(|(_, raw)| raw.get())
        .collect();
    Ok(json_text(format!("{{\"object\":\"list\",\"data\":[{}]}}", visible.join(","))))
}

async fn model(
    State(inner): State<Arc<Inner>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Fault> {
    let session = inner.session(Uuid::now_v7(), request.headers(), request.extensions()).await?;
    let listing = inner.catalog.listing_for(Some(&id)).await?;
    listing
        .entries
        .iter()
        .find(|(name, _)| *name == id && session.directory.permits(&session.tenant, name))
        .map(|(_, raw)| json_text(raw.get().to_owned()))
        .ok_or_else(|| refuse::no_model(&id))
}

fn json_text(text: String) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
}
