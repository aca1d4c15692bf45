//! Tools that the platform runs itself in the agent loop.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use serde_json::{Value, json};

/// How a tool is shown to the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// The function's name.
    pub name: String,
    /// What it does and when to use it.
    pub description: String,
    /// JSON Schema of its arguments.
    pub parameters: Value,
}

impl Definition {
    /// The tool as `/v1/chat/completions` takes it.
    pub(crate) fn to_chat(&self) -> Value {
        json!({"type": "function", "function": {
            "name": self.name, "description": self.description, "parameters": self.parameters,
        }})
    }
}

/// Why a call gave no result. The text goes to the model, so that it can correct itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ToolError(pub String);

/// A tool that runs on the server. A request switches it on by `{"type": KIND}` in `tools`.
pub trait ServerTool: Send + Sync {
    /// Its `type` in a request's `tools`.
    fn kind(&self) -> &str;

    /// How the model sees it.
    fn definition(&self) -> Definition;

    /// Runs one call. `arguments` is the JSON text that the model wrote and may be anything.
    fn call<'a>(&'a self, arguments: &'a str) -> BoxFuture<'a, Result<String, ToolError>>;
}

/// The tools that this platform offers, by kind.
#[derive(Clone, Default)]
pub struct Tools(BTreeMap<String, Arc<dyn ServerTool>>);

impl Tools {
    /// Adds a tool; one of the same kind is replaced.
    pub fn add(&mut self, tool: Arc<dyn ServerTool>) {
        self.0.insert(tool.kind().to_owned(), tool);
    }

    /// The tool of this kind.
    pub(crate) fn get(&self, kind: &str) -> Option<&Arc<dyn ServerTool>> {
        self.0.get(kind)
    }

    /// The kinds on offer, for error messages.
    pub(crate) fn kinds(&self) -> String {
        self.0.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ")
    }
}
