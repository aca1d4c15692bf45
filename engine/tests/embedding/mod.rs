//! Asking a model that reads over HTTP, without a socket.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use strata_engine::backend::vectors::VectorBackend;
use strata_engine::embed::{EmbedConfig, Embedder, EmbedderParts};
use strata_engine::runtime::ModelCard;
use strata_engine::serve;
use strata_engine::tokenizer::Tokenizer;
use strata_hop::Above;
use tower::ServiceExt;

/// A model named `small`, served.
pub(crate) fn serve_small(
    tokenizer: Tokenizer,
    model: Box<dyn VectorBackend>,
    config: EmbedConfig,
) -> (Arc<Embedder>, Router) {
    let card = ModelCard { name: "small".into(), created: 1_700_000_000, template_overhead: 0 };
    let embedder = Embedder::start(EmbedderParts { tokenizer, model, card }, config).unwrap();
    let router = serve::embed::router(embedder.clone(), Above::new(None, None, serve::CALLERS));
    (embedder, router)
}

/// The status and JSON of an answer.
pub(crate) async fn post(router: &Router, path: &str, body: Value) -> (StatusCode, Value) {
    let request = Request::post(path).body(Body::from(body.to_string())).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

/// The numbers of an array.
pub(crate) fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}
