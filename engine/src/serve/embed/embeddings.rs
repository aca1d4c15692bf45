//! `POST /v1/embeddings` in OpenAI's shape, and `POST /pooling` in vLLM's.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use serde_json::{Value, json};
use strata_hop::Fault;

use super::super::members::Members;
use super::{envelope, input, needs_classes, needs_embedding, run_input};
use crate::embed::Embedder;

/// How a vector is written.
#[derive(Clone, Copy)]
enum Encoding {
    Float,
    /// The bytes of little-endian 32-bit floats.
    Base64,
}

impl Encoding {
    fn read(members: &Members) -> Result<Self, Fault> {
        match members.text("encoding_format")? {
            None | Some("float") => Ok(Self::Float),
            Some("base64") => Ok(Self::Base64),
            Some(other) => {
                let shown: String = other.chars().take(40).collect();
                let message = format!("`encoding_format` must be `float` or `base64`, and it is `{shown}`");
                Err(Fault::invalid_param("encoding_format", message))
            }
        }
    }

    fn write(self, vector: &[f32]) -> Value {
        match self {
            Self::Float => json!(vector),
            Self::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                json!(STANDARD.encode(bytes))
            }
        }
    }
}

/// The vectors of texts.
pub(super) async fn create(
    State(embedder): State<Arc<Embedder>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Fault> {
    let members = Members::read(body).await?;
    input::check(&members, &embedder)?;
    needs_embedding(&embedder)?;
    let encoding = Encoding::read(&members)?;
    let width = embedder.info().width as i64;
    if let Some(asked) = members.whole("dimensions", 1..=i64::MAX)?.filter(|asked| *asked != width) {
        let message = format!(
            "`dimensions` is {asked}, and the embeddings of `{}` have {width} and were not trained to be cut; leave \
             it out",
            embedder.card().name
        );
        return Err(Fault::invalid_param("dimensions", message));
    }
    let (vectors, tokens) = run_input(&embedder, &headers, &members).await?;
    let item = |(index, vector): (usize, &Vec<f32>)| json!({"index": index, "object": "embedding", "embedding": encoding.write(vector)});
    let data: Vec<Value> = vectors.iter().enumerate().map(item).collect();
    Ok(Json(envelope(&embedder, "embd", tokens, &data)))
}

/// What the model's last stage gives for texts, whatever it is.
pub(super) async fn pooling(
    State(embedder): State<Arc<Embedder>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Fault> {
    let members = Members::read(body).await?;
    input::check(&members, &embedder)?;
    let encoding = Encoding::read(&members)?;
    match members.text("task")? {
        None => {}
        Some("embed") => needs_embedding(&embedder)?,
        Some("classify") => drop(needs_classes(&embedder)?),
        Some(other) => {
            let shown: String = other.chars().take(40).collect();
            let message = format!("`task` must be `embed` or `classify`, and it is `{shown}`");
            return Err(Fault::invalid_param("task", message));
        }
    }
    let (mut vectors, tokens) = run_input(&embedder, &headers, &members).await?;
    if needs_classes(&embedder).is_ok() {
        vectors = vectors.iter().map(|scores| super::classify::probabilities(scores)).collect();
    }
    let item = |(index, vector): (usize, &Vec<f32>)| json!({"index": index, "object": "pooling", "data": encoding.write(vector)});
    let data: Vec<Value> = vectors.iter().enumerate().map(item).collect();
    Ok(Json(envelope(&embedder, "pool", tokens, &data)))
}
