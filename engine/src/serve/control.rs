//! What operators ask of a running engine: sleep, pause, forget, abort, and what it is. These routes
//! answer only the layer above; a tenant cannot reach them.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use serde::Deserialize;
use serde_json::{Value, json};
use strata_hop::Fault;
use strata_wire::ErrorKind;

use super::members::{Members, wrong};
use super::operate;
use crate::runtime::{Condition, Engine, PauseMode, SleepLevel};

/// Ids in one request to abort.
const MAX_IDS: usize = 4096;

#[derive(Debug, Deserialize)]
pub(super) struct SleepQuery {
    level: Option<String>,
}

/// Gives memory back until `/wake_up`: level 1 the KV cache, level 2 the weights, too. Ends what runs.
pub(super) async fn sleep(
    State(engine): State<Arc<Engine>>,
    Query(query): Query<SleepQuery>,
) -> Result<Json<Value>, Fault> {
    let level = match query.level.as_deref() {
        None | Some("1") => SleepLevel::Cache,
        Some("2") => SleepLevel::Weights,
        Some(other) => return Err(choice("level", "1 or 2", other)),
    };
    engine.sleep(level).await.map_err(|e| Fault::new(ErrorKind::InvalidRequest, e))?;
    Ok(Json(json!({"is_sleeping": true})))
}

/// Takes the memory back and goes on.
pub(super) async fn wake_up(State(engine): State<Arc<Engine>>) -> Result<Json<Value>, Fault> {
    engine.wake().await.map_err(|e| Fault::new(ErrorKind::Internal, e))?;
    Ok(Json(json!({"is_sleeping": false})))
}

/// Whether it sleeps.
pub(super) async fn is_sleeping(State(engine): State<Arc<Engine>>) -> Json<Value> {
    Json(json!({"is_sleeping": engine.condition().is_asleep()}))
}

#[derive(Debug, Deserialize)]
pub(super) struct PauseQuery {
    mode: Option<String>,
    clear_cache: Option<String>,
}

/// Runs nothing until `/resume`; new requests wait. Answers when nothing runs any more.
pub(super) async fn pause(
    State(engine): State<Arc<Engine>>,
    Query(query): Query<PauseQuery>,
) -> Result<Json<Value>, Fault> {
    let mode = match query.mode.as_deref() {
        None | Some("abort") => PauseMode::Abort,
        Some("wait") => PauseMode::Wait,
        Some("keep") => PauseMode::Keep,
        Some(other) => return Err(choice("mode", "abort, wait or keep", other)),
    };
    let clear = match query.clear_cache.as_deref() {
        None | Some("true") => mode != PauseMode::Keep,
        Some("false") => false,
        Some(other) => return Err(choice("clear_cache", "true or false", other)),
    };
    engine.pause(mode).await;
    if clear {
        engine.forget_cache().await;
    }
    Ok(Json(json!({"status": "paused"})))
}

/// Goes on.
pub(super) async fn resume(State(engine): State<Arc<Engine>>) -> Result<Json<Value>, Fault> {
    if engine.condition().is_asleep() {
        return Err(Fault::new(ErrorKind::InvalidRequest, "the engine sleeps: send POST /wake_up"));
    }
    engine.resume().await;
    Ok(Json(json!({"status": "resumed"})))
}

/// Whether it is paused.
pub(super) async fn is_paused(State(engine): State<Arc<Engine>>) -> Json<Value> {
    Json(json!({"is_paused": engine.condition() == Condition::Paused}))
}

/// Forgets all cached prefixes.
pub(super) async fn reset_prefix_cache(State(engine): State<Arc<Engine>>) -> Json<Value> {
    engine.forget_cache().await;
    Json(json!({"success": true}))
}

/// Ends the requests of these ids, as minted or as their answers show them, `{"request_ids": […]}`, or all when there is no body.
pub(super) async fn abort_requests(
    State(engine): State<Arc<Engine>>,
    body: Body,
) -> Result<Json<Value>, Fault> {
    let body = strata_hop::spool::read(body, 1 << 20).await?;
    if body.is_empty() {
        return Ok(Json(json!({"aborted": engine.abort_all().await})));
    }
    let members = Members::parse(&body)?;
    let Some(ids) = members.array("request_ids")? else {
        return Err(Fault::invalid_param(
            "request_ids",
            "`request_ids` is missing: send an array of ids, or no body to abort all",
        ));
    };
    if ids.len() > MAX_IDS {
        let message = format!("`request_ids` must hold at most {MAX_IDS} ids, and it holds {}", ids.len());
        return Err(Fault::invalid_param("request_ids", message));
    }
    let mut aborted = 0;
    for (i, id) in ids.iter().enumerate() {
        let id = id.as_str().ok_or_else(|| wrong(&format!("request_ids[{i}]"), "a string", id))?;
        aborted += usize::from(operate::end(&engine, id).await);
    }
    Ok(Json(json!({"aborted": aborted})))
}

/// Requests in progress.
pub(super) async fn load(State(engine): State<Arc<Engine>>) -> Json<Value> {
    let m = engine.metrics();
    Json(json!({"server_load": m.running.get() + m.waiting.get()}))
}

/// What runs here, and within which limits.
pub(super) async fn server_info(State(engine): State<Arc<Engine>>) -> Json<Value> {
    Json(engine.description().clone())
}

/// The tokenizer's vocabulary and special tokens.
pub(super) async fn tokenizer_info(State(engine): State<Arc<Engine>>) -> Json<Value> {
    let tokenizer = engine.tokenizer();
    let special = tokenizer.special();
    let written = |id: u32| tokenizer.written(id);
    Json(json!({
        "vocab_size": tokenizer.vocab_size(),
        "model_max_length": engine.max_model_len(),
        "bos_token": special.bos.map(written),
        "eos_token": special.eos.first().copied().map(written),
        "eos_token_ids": special.eos,
        "add_bos_token": special.add_bos,
        "has_chat_template": engine.template().is_some(),
    }))
}

fn choice(name: &str, wanted: &str, got: &str) -> Fault {
    let got: String = got.chars().take(40).collect();
    Fault::invalid_param(name, format!("`{name}` must be {wanted}, and it is `{got}`"))
}
