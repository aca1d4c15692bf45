//! From messages to a prompt, by the model's own Jinja template, and from its output to tool calls.

mod chat;
mod json;
mod tools;

pub use chat::{ChatTemplate, Prompt, TemplateError};
pub use tools::{ToolOutput, ToolParser};
