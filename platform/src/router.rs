//! The platform's routes.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router, middleware};
use http::Request;
use serde_json::{Value, json};
use strata_hop::{Body, Fault, fault};
use strata_wire::{ErrorKind, defaults};

use crate::app::App;
use crate::{conversations, relay, request_id, responses};

/// Every route of this platform. The listener must set [`strata_hop::Peer`], as
/// [`strata_hop::Bound::serve`] does, for a caller on this machine to see routing decisions.
pub fn router(app: App) -> Router {
    let routes = Router::new()
        .route("/v1/chat/completions", post(relay::pass))
        .route("/v1/completions", post(relay::pass))
        .route("/v1/embeddings", post(relay::pass))
        .route("/v1/models", get(relay::pass))
        .route("/v1/models/{*id}", get(relay::pass))
        .route("/v1/keys", any(relay::pass_to_gateway))
        .route("/v1/keys/{*rest}", any(relay::pass_to_gateway))
        .route("/v1/organization/usage/{*rest}", any(relay::pass_to_gateway))
        .route("/health", get(|| async { "ok" }))
        .route("/ready", get(ready))
        .route("/version", get(version))
        .merge(responses::routes())
        .merge(conversations::routes());
    fault::with_openai_fallbacks(routes).layer(middleware::from_fn(request_id::attach)).with_state(app)
}

/// What runs here.
async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION"), "component": "platform"}))
}

/// Ready when the database answers and the next layer does, whatever it answers short of a failure.
async fn ready(State(app): State<App>) -> Result<&'static str, Response> {
    let not_ready = |why: String| Fault::new(ErrorKind::Overloaded, why).into_response();
    app.store.check().await.map_err(|error| not_ready(error.to_string()))?;
    let layer = app.options.upstream_kind.layer();
    let mut request = Request::get(format!("{}/health", app.base))
        .body(Body::empty())
        .map_err(|error| not_ready(error.to_string()))?;
    if let Some(token) = &app.options.hop_token {
        token.attach(request.headers_mut());
    }
    let response = app
        .client
        .send(request, defaults::CONNECT_TIMEOUT)
        .await
        .map_err(|error| not_ready(format!("{layer} at {}: {error}", app.base)))?;
    if response.status().is_server_error() {
        return Err(not_ready(format!("{layer} at {} answers {}", app.base, response.status())));
    }
    Ok("ready")
}
