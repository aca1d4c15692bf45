//! A GGUF file's metadata, with typed access.

use std::collections::BTreeMap;

use super::{GgufError, Value};
use crate::model::load::{GgufTokenizer, SpecialTokens};

/// The metadata, with typed access.
pub(super) struct Keys(pub(super) BTreeMap<String, Value>);

impl Keys {
    pub(super) fn optional<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let wrong = |v: &Value| GgufError::WrongValue { key: key.into(), expected, found: v.describe() };
        self.0.get(key).map(|value| read(value).ok_or_else(|| wrong(value))).transpose()
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>, GgufError> {
        self.optional(key, "a non-negative integer", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    pub(super) fn size(&self, key: &str) -> Result<usize, GgufError> {
        self.optional_size(key)?.ok_or_else(|| GgufError::MissingKey(key.into()))
    }

    pub(super) fn optional_float(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.optional(key, "a float", Value::as_f32)
    }

    pub(super) fn float(&self, key: &str) -> Result<f32, GgufError> {
        self.optional_float(key)?.ok_or_else(|| GgufError::MissingKey(key.into()))
    }

    pub(super) fn string(&self, key: &str) -> Result<&str, GgufError> {
        match self.0.get(key) {
            None => Err(GgufError::MissingKey(key.into())),
            Some(value) => value.as_str().ok_or_else(|| GgufError::WrongValue {
                key: key.into(),
                expected: "text",
                found: value.describe(),
            }),
        }
    }

    fn token_id(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.optional(key, "a token id", |v| v.as_u64().and_then(|n| u32::try_from(n).ok()))
    }

    pub(super) fn special(&self) -> Result<SpecialTokens, GgufError> {
        let mut eos = Vec::new();
        for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
            if let Some(id) = self.token_id(&format!("tokenizer.ggml.{key}"))?
                && !eos.contains(&id)
            {
                eos.push(id);
            }
        }
        let bos = self.token_id("tokenizer.ggml.bos_token_id")?;
        let add_bos = self.optional("tokenizer.ggml.add_bos_token", "true or false", Value::as_bool)?;
        // SentencePiece models begin with it unless they say otherwise.
        let sentence_piece = self.0.get("tokenizer.ggml.model").and_then(Value::as_str) == Some("llama");
        let add_eos = self.optional("tokenizer.ggml.add_eos_token", "true or false", Value::as_bool)?;
        Ok(SpecialTokens {
            bos,
            add_bos: bos.is_some() && add_bos.unwrap_or(sentence_piece),
            add_eos: !eos.is_empty() && add_eos.unwrap_or(false),
            eos,
        })
    }

    /// Moves the vocabulary out of the metadata.
    pub(super) fn tokenizer(&mut self) -> Result<GgufTokenizer, GgufError> {
        let model = self.string("tokenizer.ggml.model")?.to_owned();
        let pre = self.0.get("tokenizer.ggml.pre").and_then(Value::as_str).unwrap_or("default").to_owned();
        let unknown = self.token_id("tokenizer.ggml.unknown_token_id")?;
        let add_space_prefix =
            self.optional("tokenizer.ggml.add_space_prefix", "true or false", Value::as_bool)?;
        let tokens = "tokenizer.ggml.tokens";
        if !self.0.contains_key(tokens) {
            return Err(GgufError::MissingKey(tokens.into()));
        }
        let text = |value| match value {
            Value::String(s) => Ok(s),
            other => Err(other),
        };
        let integer = |v: Value| v.as_i64().and_then(|n| i32::try_from(n).ok()).ok_or(v);
        let float = |v: Value| v.as_f32().ok_or(v);
        Ok(GgufTokenizer {
            model,
            pre,
            unknown,
            add_space_prefix,
            tokens: self.take_list(tokens, "an array of text", text)?,
            token_types: self.take_list("tokenizer.ggml.token_type", "an array of integers", integer)?,
            merges: self.take_list("tokenizer.ggml.merges", "an array of text", text)?,
            scores: self.take_list("tokenizer.ggml.scores", "an array of floats", float)?,
        })
    }

    fn take_list<T>(
        &mut self,
        key: &str,
        expected: &'static str,
        one: impl Fn(Value) -> Result<T, Value>,
    ) -> Result<Vec<T>, GgufError> {
        self.0.remove(key).map_or_else(|| Ok(Vec::new()), |value| value.into_list(key, expected, one))
    }
}
