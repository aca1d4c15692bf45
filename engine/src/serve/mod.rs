//! The OpenAI-compatible HTTP API over one engine.
//!
//! Everything a client sends is checked here, by name and range, before the engine sees it; what is
//! not built is refused, never ignored.

mod adapters;
mod answer;
mod chat;
mod chat_stream;
mod completion_stream;
mod completions;
mod control;
mod drain;
mod echo;
pub mod embed;
mod events;
mod members;
mod messages;
mod next_turn;
mod operate;
mod options;
mod speech;
mod structural_tag;
mod structured;
mod submit;
mod tokenize;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use strata_hop::{Above, Component, caller, fault};

use crate::runtime::Engine;

pub(crate) use drain::end_uploads;

/// Who may call an engine: the scheduler; in development mode, without one, the platform.
pub const CALLERS: &[Component] = &[Component::Scheduler, Component::Platform, Component::Operator];

/// The engine's routes. Callers that are not the layer above are refused everywhere but on `/health`,
/// `/ready`, `/ping`, `/version` and `/metrics`.
pub fn router(engine: Arc<Engine>, above: Above) -> Router {
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
        .route("/internal/v1/abort/{id}", post(operate::abort))
        .route("/internal/v1/events", get(events::follow))
        .route("/internal/v1/kv/{id}", get(operate::blocks))
        .route("/v1/load_lora_adapter", post(adapters::load))
        .route("/v1/unload_lora_adapter", post(adapters::unload))
        .route("/sleep", post(control::sleep))
        .route("/wake_up", post(control::wake_up))
        .route("/is_sleeping", get(control::is_sleeping))
        .route("/pause", post(control::pause))
        .route("/resume", post(control::resume))
        .route("/is_paused", get(control::is_paused))
        .route("/reset_prefix_cache", post(control::reset_prefix_cache))
        .route("/abort_requests", post(control::abort_requests))
        .route("/load", get(control::load))
        .route("/server_info", get(control::server_info))
        .route("/tokenizer_info", get(control::tokenizer_info));
    let router = router.merge(embed::elsewhere());
    fault::with_openai_fallbacks(router).layer(from_fn_with_state(above, caller::require)).with_state(engine)
}
