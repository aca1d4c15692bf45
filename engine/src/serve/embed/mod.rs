//! The HTTP API over a model that reads: OpenAI's embeddings, and vLLM's pooling, scores, ranks and classes.

mod classify;
mod embeddings;
mod input;
mod operate;
mod rank;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use http::HeaderMap;
use serde_json::{Value, json};
use std::time::Duration;
use strata_hop::{Above, Fault, caller, fault};
use strata_wire::ErrorKind;

use super::members::Members;
use super::submit;
use crate::backend::vectors::TextInput;
use crate::embed::{EmbedError, Embedder};
use crate::model::vectors::VectorOutput;

/// The routes of an engine that reads. Callers that are not the layer above are refused as on a
/// generating engine's.
pub fn router(embedder: Arc<Embedder>, above: Above) -> Router {
    let router = Router::new()
        .route("/v1/embeddings", post(embeddings::create))
        .route("/pooling", post(embeddings::pooling))
        .route("/classify", post(classify::create))
        .route("/score", post(rank::score))
        .route("/v1/score", post(rank::score))
        .route("/rerank", post(rank::rerank))
        .route("/v1/rerank", post(rank::rerank))
        .route("/v2/rerank", post(rank::rerank))
        .route("/v1/chat/completions", post(generates_nothing))
        .route("/v1/completions", post(generates_nothing))
        .route("/v1/models", get(operate::models))
        .route("/v1/models/{id}", get(operate::model))
        .route("/health", get(operate::health))
        .route("/ping", get(operate::health))
        .route("/ready", get(operate::ready))
        .route("/version", get(super::operate::version))
        .route("/metrics", get(operate::metrics))
        .route("/internal/v1/abort/{id}", post(operate::abort));
    fault::with_openai_fallbacks(router)
        .layer(from_fn_with_state(above, caller::require))
        .with_state(embedder)
}

/// The routes that only an engine that reads serves, on one that generates.
pub(super) fn elsewhere<S: Clone + Send + Sync + 'static>() -> Router<S> {
    const PATHS: [&str; 8] = [
        "/v1/embeddings",
        "/pooling",
        "/classify",
        "/score",
        "/v1/score",
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
    ];
    PATHS.iter().fold(Router::new(), |router, path| router.route(path, post(embeds_nothing)))
}

async fn embeds_nothing() -> Fault {
    Fault::new(
        ErrorKind::NotFound,
        "this model generates text and is served for nothing else; embeddings, scores and classes need an engine \
         with `--task embed`, or an encoder such as MiniLM",
    )
}

async fn generates_nothing() -> Fault {
    Fault::new(
        ErrorKind::NotFound,
        "this model is opened to embed and generates no text; it serves /v1/embeddings, /pooling, /score, /rerank and \
         /classify, as far as its checkpoint can",
    )
}

/// Refuses routes that need one vector a text from a model with classes.
fn needs_embedding(embedder: &Embedder) -> Result<(), Fault> {
    match embedder.info().output {
        VectorOutput::Embedding(_) => Ok(()),
        VectorOutput::Classes { .. } => Err(Fault::invalid(format!(
            "the model `{}` has a classification head and gives no embeddings; use /classify, or /score and /rerank \
             where it has one class",
            embedder.card().name
        ))),
    }
}

/// The names of the classes, from a model that has some.
fn needs_classes(embedder: &Embedder) -> Result<&[String], Fault> {
    match &embedder.info().output {
        VectorOutput::Classes { labels } => Ok(labels),
        VectorOutput::Embedding(_) => Err(Fault::invalid(format!(
            "the model `{}` has no classification head; use /v1/embeddings, /score or /rerank",
            embedder.card().name
        ))),
    }
}

/// What the model gives for the texts of the member `input`, and how many tokens they have.
async fn run_input(
    embedder: &Arc<Embedder>,
    headers: &HeaderMap,
    members: &Members,
) -> Result<(Vec<Vec<f32>>, usize), Fault> {
    let inputs = input::encode(embedder, members, input::read(members)?, "input").await?;
    run(embedder, headers, inputs).await
}

/// Runs texts, and counts their tokens.
async fn run(
    embedder: &Embedder,
    headers: &HeaderMap,
    inputs: Vec<TextInput>,
) -> Result<(Vec<Vec<f32>>, usize), Fault> {
    let tokens = inputs.iter().map(|input| input.tokens.len()).sum();
    let pending = embedder.submit(submit::request_id(headers)?, inputs).map_err(|e| refused(&e))?;
    let vectors = pending.wait().await.map_err(|e| refused(&e))?;
    Ok((vectors, tokens))
}

fn refused(error: &EmbedError) -> Fault {
    let fault = |kind| Fault::new(kind, error.to_string());
    match error {
        EmbedError::TooMany { .. } | EmbedError::Input { .. } => {
            fault(ErrorKind::InvalidRequest).param("input")
        }
        EmbedError::Aborted => fault(ErrorKind::Conflict),
        EmbedError::Failed(_) | EmbedError::Stopped => fault(ErrorKind::Internal),
        EmbedError::Draining | EmbedError::Full { .. } => {
            fault(ErrorKind::Overloaded).retry_after(Duration::from_secs(1))
        }
    }
}

/// What all answers begin with.
fn envelope(embedder: &Embedder, prefix: &str, tokens: usize, data: &[Value]) -> Value {
    json!({
        "id": format!("{prefix}-{}", uuid::Uuid::now_v7().simple()),
        "object": "list",
        "created": submit::now(),
        "model": embedder.card().name,
        "data": data,
        "usage": usage(tokens),
    })
}

fn usage(tokens: usize) -> Value {
    json!({"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": null})
}
