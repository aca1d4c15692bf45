//! An answer that broke off after its first words, as it is asked for anew where these end. Pure.
//!
//! Only what is exact is gone on with: one answer of text by Strata's own engine, whose words so far are the
//! same tokens when they are read as a prompt. Of the others (several answers, tool calls, probabilities,
//! structured output, seeds, penalties) this module says that they cannot.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use strata_wire::sse::{self, Splitter};

/// Members with which an answer's second part would not be what its first part's engine would have made:
/// what they keep of an answer, or ask for, is lost with that engine. Beside each the values that ask for
/// nothing.
const EXCLUDED: &[(&str, &[&str])] = &[
    ("n", &["1"]),
    ("best_of", &["1"]),
    ("use_beam_search", &["false"]),
    ("tools", &["[]"]),
    ("functions", &["[]"]),
    ("logprobs", &["false"]),
    ("top_logprobs", &["0"]),
    ("prompt_logprobs", &[]),
    ("response_format", &[r#"{"type":"text"}"#]),
    ("structured_outputs", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("echo", &["false"]),
    ("suffix", &[]),
    ("presence_penalty", &["0", "0.0"]),
    ("frequency_penalty", &["0", "0.0"]),
    ("repetition_penalty", &["1", "1.0"]),
    ("bad_words", &["[]"]),
    ("continue_final_message", &["false"]),
    ("add_generation_prompt", &["true"]),
    ("truncate_prompt_tokens", &[]),
    ("return_token_ids", &["false"]),
    ("return_tokens_as_token_ids", &["false"]),
    ("kv_transfer_params", &[]),
];

/// A request that may be gone on with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    body: Map<String, Value>,
    /// Where its prompt stands.
    prompt: Prompt,
}

#[derive(Clone, Debug, PartialEq)]
enum Prompt {
    Messages(Vec<Value>),
    Text(String),
}

impl Plan {
    /// Of a body on this route; `None` when its answer cannot be gone on with.
    pub(crate) fn of(path: &str, body: &[u8]) -> Option<Self> {
        let body: Map<String, Value> = serde_json::from_slice(body).ok()?;
        let asks = |(name, nothing): &(&str, &[&str])| {
            let value = body.get(*name).filter(|value| !value.is_null());
            value.is_some_and(|value| !nothing.contains(&value.to_string().as_str()))
        };
        if EXCLUDED.iter().any(asks) || body.get("stream") != Some(&Value::Bool(true)) {
            return None;
        }
        let given = |name: &str| body.get(name).filter(|value| !value.is_null());
        let is_greedy = given("temperature").and_then(Value::as_f64).is_some_and(|t| t <= 0.0);
        if given("seed").is_some() && !is_greedy {
            return None;
        }
        let prompt = match (path, body.get("messages"), body.get("prompt")) {
            ("/v1/chat/completions", Some(Value::Array(messages)), _) => Prompt::Messages(messages.clone()),
            ("/v1/completions", _, Some(Value::String(text))) => Prompt::Text(text.clone()),
            _ => return None,
        };
        Some(Self { body, prompt })
    }

    /// The members by which these words follow the prompt, or the prompt's own where there are none.
    fn prompted(&self, sent: Option<&str>) -> Map<String, Value> {
        let mut members = Map::new();
        match (&self.prompt, sent) {
            (Prompt::Text(text), sent) => {
                members.insert("prompt".to_owned(), format!("{text}{}", sent.unwrap_or_default()).into());
            }
            (Prompt::Messages(messages), None) => {
                members.insert("messages".to_owned(), messages.clone().into());
            }
            (Prompt::Messages(messages), Some(sent)) => {
                let mut messages = messages.clone();
                messages.push(json!({"role": "assistant", "content": sent}));
                members.insert("messages".to_owned(), messages.into());
                members.insert("continue_final_message".to_owned(), true.into());
                members.insert("add_generation_prompt".to_owned(), false.into());
            }
        }
        members
    }

    /// What is asked of `/tokenize`: the prompt, and these words behind it.
    pub(crate) fn to_tokenize(&self, sent: Option<&str>) -> String {
        let mut body = self.prompted(sent);
        for name in ["model", "chat_template_kwargs", "reasoning_effort", "add_special_tokens"] {
            if let Some(value) = self.body.get(name) {
                body.insert(name.to_owned(), value.clone());
            }
        }
        Value::Object(body).to_string()
    }

    /// The request that goes on after these words of so many tokens. `None` when nothing is left to say.
    pub(crate) fn body(&self, sent: &str, tokens: u64) -> Option<String> {
        let mut body = self.body.clone();
        body.extend(self.prompted(Some(sent)));
        for name in ["max_tokens", "max_completion_tokens"] {
            if let Some(most) = body.get(name).and_then(Value::as_u64) {
                let left = most.checked_sub(tokens).filter(|left| *left > 0)?;
                body.insert(name.to_owned(), left.into());
            }
        }
        if let Some(least) = body.get("min_tokens").and_then(Value::as_u64) {
            body.insert("min_tokens".to_owned(), least.saturating_sub(tokens).into());
        }
        Some(Value::Object(body).to_string())
    }
}

/// What a client has got of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sent {
    /// The words.
    pub(crate) text: String,
    /// In how many pieces they came: as many tokens, or more where a letter takes several.
    pieces: u64,
    /// Tokens by the engine's own count, and the prompt's that were cached, where its chunks say so.
    counted: Option<(u64, Option<u64>)>,
    /// Members that every chunk of an answer repeats.
    head: Map<String, Value>,
}

/// Members that are an answer's own.
const HEAD: &[&str] = &["id", "created", "model"];

impl Sent {
    /// Reads whole events as they were passed. `None` when they are not one answer of text that has begun and
    /// not ended.
    pub(crate) fn read(events: &[Bytes]) -> Option<Self> {
        let (mut sent, mut splitter) = (Self::default(), Splitter::default());
        for event in events {
            splitter.push(event);
        }
        while let Some(event) = splitter.next_event() {
            let chunk: Value = serde_json::from_str(&event.data).ok()?;
            for name in HEAD {
                if let (false, Some(value)) = (sent.head.contains_key(*name), chunk.get(*name)) {
                    sent.head.insert((*name).to_owned(), value.clone());
                }
            }
            if let Some(usage) = chunk.get("usage").filter(|usage| !usage.is_null()) {
                let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
                sent.counted = Some((usage["completion_tokens"].as_u64()?, cached));
            }
            for choice in chunk["choices"].as_array()? {
                sent.take(choice)?;
            }
        }
        (splitter.pending() == 0 && !sent.text.is_empty()).then_some(sent)
    }

    fn take(&mut self, choice: &Value) -> Option<()> {
        let is_more =
            choice["index"] == 0 && choice["finish_reason"].is_null() && choice["logprobs"].is_null();
        let mut text = choice["text"].as_str();
        if let Some(delta) = choice["delta"].as_object() {
            let known: BTreeSet<&str> = ["role", "content"].into();
            // Reasoning and calls are no text that a template puts back as it was.
            if delta.iter().any(|(name, value)| !value.is_null() && !known.contains(name.as_str())) {
                return None;
            }
            text = delta.get("content").and_then(Value::as_str);
        }
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            self.text.push_str(text);
            self.pieces += 1;
        }
        is_more.then_some(())
    }

    /// How many tokens the words are, where reading them behind the prompt gives the tokens that were made:
    /// the prompt's stay as they are, and there are as many more as came. `None` when they are others.
    pub(crate) fn tokens(&self, prompt: &[u32], with: &[u32]) -> Option<u64> {
        let more = with.strip_prefix(prompt)?.len() as u64;
        let is_same = match self.counted {
            // What was made and held back is not among the words.
            Some((made, _)) => more == made || (more < made && more == self.pieces),
            None => more == self.pieces || (more > self.pieces && !self.text.is_ascii()),
        };
        (is_same && more > 0).then_some(more)
    }
}

/// The second part of an answer, as it is made to follow the first.
#[derive(Debug)]
pub(crate) struct Join {
    sent: Sent,
    /// Tokens of the prompt, and of the words that are sent.
    prompt: u64,
    tokens: u64,
}

impl Join {
    pub(crate) fn new(sent: Sent, prompt: u64, tokens: u64) -> Self {
        Self { sent, prompt, tokens }
    }

    /// An event as the client gets it; `None` for one that it has had.
    pub(crate) fn event(&self, data: &str) -> Option<Bytes> {
        let Ok(Value::Object(mut chunk)) = serde_json::from_str::<Value>(data) else {
            return Some(sse::data(data));
        };
        let has_begun = |choice: &Value| {
            let role = !choice["delta"]["role"].is_null();
            role && choice["delta"]["content"].as_str().is_none_or(str::is_empty)
                && choice["finish_reason"].is_null()
        };
        let choices = chunk.get("choices").and_then(Value::as_array);
        if choices.is_some_and(|choices| !choices.is_empty() && choices.iter().all(has_begun)) {
            return None;
        }
        for (name, value) in self.sent.head.iter().filter(|(name, _)| HEAD.contains(&name.as_str())) {
            if chunk.contains_key(name) {
                chunk.insert(name.clone(), value.clone());
            }
        }
        if let Some(Value::Object(usage)) = chunk.get_mut("usage") {
            self.count(usage);
        }
        Some(sse::data(&Value::Object(chunk).to_string()))
    }

    /// One usage of the whole: the words that were sent are no prompt.
    fn count(&self, usage: &mut Map<String, Value>) {
        let made = usage.get("completion_tokens").and_then(Value::as_u64).unwrap_or(0) + self.tokens;
        usage.insert("prompt_tokens".to_owned(), self.prompt.into());
        usage.insert("completion_tokens".to_owned(), made.into());
        usage.insert("total_tokens".to_owned(), (self.prompt + made).into());
        if let Some(Value::Object(details)) = usage.get_mut("prompt_tokens_details")
            && let Some(cached) = details.get("cached_tokens").and_then(Value::as_u64)
        {
            let first = self.sent.counted.and_then(|(_, cached)| cached);
            let cached = first.unwrap_or_else(|| cached.min(self.prompt));
            details.insert("cached_tokens".to_owned(), cached.into());
        }
    }
}

#[cfg(test)]
mod tests;
