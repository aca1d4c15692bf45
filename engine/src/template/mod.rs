//! From messages to a prompt, by the model's own Jinja template, and from its output to reasoning,
//! text and tool calls.

mod calls;
mod chat;
mod enforce;
mod form;
mod head;
mod json;
mod reasoning;
mod scan;
mod tools;

pub use calls::{ToolOutput, ToolParser};
pub use chat::{ChatTemplate, Prompt, TemplateError};
pub use enforce::{CallGrammar, Marks};
pub use form::ToolFormat;
pub use reasoning::{ReasoningFormat, ReasoningParser, ReasoningStart, THINK_CLOSE, THINK_OPEN};
