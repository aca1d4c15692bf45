//! Answers of `POST /v1/completions`. The engine reads the request member by member, so that each refusal
//! names the member at fault.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::chat::FinishReason;
use crate::usage::Usage;

/// A whole answer, or with `object` `text_completion` and partial texts, one chunk of a stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionResponse {
    /// The answer's id, `cmpl-…`.
    pub id: String,
    /// Always `text_completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: i64,
    /// The model that answered.
    pub model: String,
    /// The answers.
    pub choices: Vec<CompletionChoice>,
    /// What it consumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Where another engine can fetch what was computed of the prompt; see vLLM's connectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_transfer_params: Option<Value>,
}

/// One answer, or a piece of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionChoice {
    /// Its place, from 0.
    pub index: u32,
    /// The text.
    pub text: String,
    /// Log probabilities, when asked for.
    #[serde(default)]
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
    /// vLLM's extension: the stop text or the stop token that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Value>,
    /// vLLM's extension: the tokens that were generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// vLLM's extension: log probabilities of the prompt's tokens, by token id at each place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Value>,
    /// vLLM's extension: the prompt's tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// Log probabilities in the completion API's own form.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionLogprobs {
    /// The tokens' texts.
    pub tokens: Vec<String>,
    /// Their log probabilities; the first of an echoed prompt has none.
    pub token_logprobs: Vec<Option<f32>>,
    /// The likeliest alternatives of each.
    pub top_logprobs: Option<Vec<Map<String, Value>>>,
    /// Where each begins in the text, in characters.
    pub text_offset: Vec<usize>,
}
