//! The items that responses and conversations consist of, as they are stored and shown.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Item {
    /// Somebody said something.
    Message(Message),
    /// The model calls a function of the application.
    FunctionCall(FunctionCall),
    /// What that function gave.
    FunctionCallOutput(FunctionCallOutput),
    /// The model called a tool that the server ran, with what it gave. OpenAI's item for calls that
    /// are never the application's to answer.
    McpCall(ServerCall),
}

/// How far an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    InProgress,
    Completed,
    Incomplete,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) status: Status,
    /// `user`, `system`, `developer` or `assistant`.
    pub(crate) role: String,
    pub(crate) content: Vec<Part>,
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Part {
    InputText { text: String },
    OutputText { text: String, annotations: Vec<Value>, logprobs: Vec<Value> },
    Refusal { refusal: String },
}

impl Part {
    pub(crate) fn output(text: impl Into<String>) -> Self {
        Self::OutputText { text: text.into(), annotations: Vec::new(), logprobs: Vec::new() }
    }

    pub(crate) fn text(&self) -> &str {
        match self {
            Self::InputText { text } | Self::OutputText { text, .. } => text,
            Self::Refusal { refusal } => refusal,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FunctionCall {
    pub(crate) id: String,
    pub(crate) status: Status,
    pub(crate) call_id: String,
    pub(crate) name: String,
    /// JSON, as the model wrote it.
    pub(crate) arguments: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FunctionCallOutput {
    pub(crate) id: String,
    pub(crate) status: Status,
    pub(crate) call_id: String,
    pub(crate) output: Output,
}

/// A function's result: a text, or parts of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Output {
    Text(String),
    Parts(Vec<Part>),
}

/// The `server_label` of the platform's own tools.
pub(crate) const SERVER_LABEL: &str = "strata";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ServerCall {
    pub(crate) id: String,
    pub(crate) status: Status,
    pub(crate) server_label: String,
    pub(crate) name: String,
    /// JSON, as the model wrote it.
    pub(crate) arguments: String,
    pub(crate) output: Option<String>,
    pub(crate) error: Option<CallError>,
    pub(crate) approval_request_id: Option<String>,
}

/// Why a server-side call gave nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum CallError {
    /// The tool ran and failed, or was not run for a limit.
    McpToolExecutionError { content: Value },
}

impl CallError {
    pub(crate) fn new(text: &str) -> Self {
        Self::McpToolExecutionError { content: serde_json::json!([{"type": "text", "text": text}]) }
    }

    /// The text that the model gets to see.
    pub(crate) fn text(&self) -> String {
        let Self::McpToolExecutionError { content } = self;
        content[0]["text"].as_str().map_or_else(|| content.to_string(), str::to_owned)
    }
}

impl Item {
    pub(crate) fn id(&self) -> &str {
        match self {
            Self::Message(m) => &m.id,
            Self::FunctionCall(c) => &c.id,
            Self::FunctionCallOutput(o) => &o.id,
            Self::McpCall(c) => &c.id,
        }
    }
}
