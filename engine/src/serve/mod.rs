//! The OpenAI-compatible HTTP API over one engine.
//!
//! Everything a client sends is checked here, by name and range, before the engine sees it; what is
//! not built is refused, never ignored.

mod answer;
mod chat;
mod chat_stream;
mod completion_stream;
mod completions;
mod members;
mod messages;
mod operate;
mod options;
mod submit;
mod tokenize;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use strata_hop::{HopToken, fault, token};

use crate::runtime::Engine;

/// The engine's routes. With a hop token, callers without it are refused everywhere but on `/health`,
/// `/ready`, `/ping` and `/version`.
pub fn router(engine: Arc<Engine>, hop_token: Option<HopToken>) -> Router {
    let router = Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/models", get(operate::models))
        .route("/v1/models/{id}", get(operate::model))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/health", get(operate::health))
        .route("/ping", get(operate::health))
        .route("/ready", get(operate::ready))
        .route("/version", get(operate::version))
        .route("/metrics", get(operate::metrics))
        .route("/internal/v1/abort/{id}", post(operate::abort));
    fault::with_openai_fallbacks(router)
        .layer(from_fn_with_state(hop_token, token::require))
        .with_state(engine)
}
