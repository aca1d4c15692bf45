//! `GET /v1/models`.

use serde::{Deserialize, Serialize};

/// The list of models that the caller may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    /// Always `list`.
    pub object: String,
    /// The models.
    pub data: Vec<Model>,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// The name by which requests ask for it.
    pub id: String,
    /// Always `model`.
    pub object: String,
    /// Seconds since 1970 when it was made known.
    pub created: i64,
    /// Who serves it.
    pub owned_by: String,
    /// Tokens of prompt and output together that it can hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<u64>,
    /// The model that this one is an adapter of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Prompt tokens that the chat template can add to the bytes of a body, published by the
    /// engine so that the gateway can bound a prompt without reading it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_overhead: Option<u64>,
}

impl ModelList {
    /// A list of these models.
    pub fn new(data: Vec<Model>) -> Self {
        Self { object: "list".to_owned(), data }
    }
}

impl Model {
    /// A model of this name, owned by Strata.
    pub fn new(id: impl Into<String>, created: i64) -> Self {
        Self {
            id: id.into(),
            object: "model".to_owned(),
            created,
            owned_by: "strata".to_owned(),
            max_model_len: None,
            parent: None,
            template_overhead: None,
        }
    }
}
