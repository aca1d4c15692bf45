//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use serde_json::{Value, json};
use strata_hop::Fault;

use super::members::{Members, wrong};
use super::{chat, messages, options, submit};
use crate::runtime::Engine;

/// The tokens of a text, or of a conversation.
pub(super) async fn tokenize(State(engine): State<Arc<Engine>>, body: Body) -> Result<Json<Value>, Fault> {
    let members = Members::read(body).await?;
    submit::check_model(&members, &engine, false)?;
    let (text, add_special) = match members.get("prompt") {
        Some(Value::String(text)) => (text.clone(), true),
        Some(other) => return Err(wrong("prompt", "a string", other)),
        None if members.get("messages").is_some() => {
            let messages = messages::read(&members)?;
            let tools = messages::tools(&members)?;
            (
                chat::render(
                    &engine,
                    &members,
                    &messages,
                    tools.as_ref().map(|tools| tools.list.as_slice()),
                )?,
                false,
            )
        }
        None => {
            return Err(Fault::invalid_param("prompt", "`prompt` is missing: send a text, or `messages`"));
        }
    };
    let add_special = members.boolean("add_special_tokens")?.unwrap_or(add_special);
    let tokenizer = engine.tokenizer().clone();
    let written = members.boolean("return_token_strs")?.unwrap_or(false);
    let tokens = submit::tokens(&engine, text, add_special, "prompt").await?;
    let token_strs: Option<Vec<String>> =
        written.then(|| tokens.iter().map(|t| tokenizer.written(*t)).collect());
    Ok(Json(json!({
        "count": tokens.len(), "max_model_len": engine.max_model_len(), "tokens": tokens, "token_strs": token_strs,
    })))
}

/// The text of tokens.
pub(super) async fn detokenize(State(engine): State<Arc<Engine>>, body: Body) -> Result<Json<Value>, Fault> {
    let members = Members::read(body).await?;
    submit::check_model(&members, &engine, false)?;
    let Some(tokens) = members.array("tokens")? else {
        return Err(Fault::invalid_param("tokens", "`tokens` is missing: send an array of token ids"));
    };
    let ids: Vec<u32> = tokens
        .iter()
        .enumerate()
        .map(|(i, id)| options::token_id(&format!("tokens[{i}]"), id, engine.tokenizer()))
        .collect::<Result<_, _>>()?;
    Ok(Json(json!({"prompt": engine.tokenizer().decode(&ids, false)})))
}
