//! The chat template, rendered as Hugging Face renders it.

use std::sync::Arc;

use jiff::Zoned;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, context};
use serde_json::{Map, Value as Json};
use strata_wire::chat::{Content, Message};

use super::form::ToolFormat;
use super::json;
use super::reasoning::ReasoningFormat;

const NAME: &str = "chat";

/// Work that one rendering may take: an instruction is one step, and so are 64 bytes that it makes or
/// reads. Some tens of thousands of messages stay below it, and an endless loop is ended within seconds.
const FUEL: u64 = 20_000_000;

/// Why messages make no prompt.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The checkpoint's template is not valid Jinja.
    #[error("the model's chat template cannot be parsed: {0}")]
    Malformed(String),
    /// The template refuses these messages, in its own words.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// The template does not come to an end, or makes too much of these messages.
    #[error(
        "the model's chat template does not come to an end on these messages: it was stopped after {FUEL} steps; \
         send fewer, or have the model's template mended"
    )]
    Endless,
    /// The template failed on these messages.
    #[error("the model's chat template fails on these messages: {0}")]
    Failed(String),
}

/// A model's chat template. Shared by all requests.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    knows_tools: bool,
    tool_format: ToolFormat,
    reasoning_format: Option<ReasoningFormat>,
}

/// What a prompt is made of.
#[derive(Clone, Debug, Default)]
pub struct Prompt<'a> {
    /// The conversation.
    pub messages: &'a [Message],
    /// The tools that the model may call.
    pub tools: Option<&'a [Json]>,
    /// Whether the prompt ends where the assistant begins to speak.
    pub add_generation_prompt: bool,
    /// More variables for the template.
    pub extra: Map<String, Json>,
}

impl ChatTemplate {
    /// Parses a template. `bos` and `eos` are the texts of these tokens.
    pub fn new(source: String, bos: String, eos: String) -> Result<Self, TemplateError> {
        let malformed = |e: Error| TemplateError::Malformed(e.to_string());
        let mut environment = Environment::new();
        let syntax =
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(malformed)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_formatter(print);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", |state: &State<'_, '_>, value: &Value, kwargs: Kwargs| {
            json::tojson(state, value, &kwargs)
        });
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, format!("{REFUSAL}{message}")))
        });
        let tool_format = ToolFormat::of_template(&source);
        let reasoning_format = ReasoningFormat::of_template(&source);
        environment.add_template_owned(NAME, source).map_err(malformed)?;
        let knows_tools =
            environment.get_template(NAME).map_err(malformed)?.undeclared_variables(false).contains("tools");
        // A template that says nothing of tools gets them described in the Hermes form.
        let tool_format = if knows_tools { tool_format } else { ToolFormat::Hermes };
        Ok(Self { environment, bos, eos, knows_tools, tool_format, reasoning_format })
    }

    /// The same with calls in this form, whatever the template looks like.
    #[must_use]
    pub fn calling(self, tool_format: ToolFormat) -> Self {
        Self { tool_format, ..self }
    }

    /// The same with reasoning in this form, or none.
    #[must_use]
    pub fn reasoning(self, reasoning_format: Option<ReasoningFormat>) -> Self {
        Self { reasoning_format, ..self }
    }

    /// How the model writes its calls.
    pub fn tool_format(&self) -> ToolFormat {
        self.tool_format
    }

    /// How the model reasons, if it does.
    pub fn reasoning_format(&self) -> Option<ReasoningFormat> {
        self.reasoning_format
    }

    /// Whether the template itself says something about tools.
    pub fn knows_tools(&self) -> bool {
        self.knows_tools
    }

    /// The prompt's text. `now` is what the template's `strftime_now` says.
    pub fn render(&self, prompt: &Prompt<'_>, now: &Zoned) -> Result<String, TemplateError> {
        let mut messages: Vec<Json> = prompt.messages.iter().map(flatten).collect();
        let tools = match prompt.tools {
            Some(tools) if !tools.is_empty() && !self.knows_tools => {
                super::tools::describe(&mut messages, tools);
                None
            }
            tools => tools,
        };
        let now = Arc::new(now.clone());
        let strftime = Value::from_function(move |format: String| -> Result<String, Error> {
            jiff::fmt::strtime::format(&format, &*now)
                .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))
        });
        let base = context! {
            messages => Value::from(Serde(&messages)),
            tools => Value::from(Serde(tools)),
            add_generation_prompt => prompt.add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            strftime_now => strftime,
        };
        let extra = Value::from(Serde(&prompt.extra));
        let template =
            self.environment.get_template(NAME).map_err(|e| TemplateError::Malformed(e.to_string()))?;
        template.render(context! { ..base, ..extra }).map_err(|error| {
            if runs_out(&error) {
                return TemplateError::Endless;
            }
            match error.detail().and_then(|d| d.strip_prefix(REFUSAL)) {
                Some(message) => TemplateError::Refused(message.to_owned()),
                None => TemplateError::Failed(error.to_string()),
            }
        })
    }
}

/// Prints a value, once it is paid for: a list can be small and its text without an end, and the template
/// engine asks for its price afterwards.
fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    pay(state, value)?;
    minijinja::escape_formatter(out, state, value)
}

/// Pays for all that a list or a map holds, and stops where that cannot be paid.
fn pay(state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                state.consume_fuel(1 + (item.as_str().map_or(0, str::len) / 64) as u64)?;
                pay(state, &item)?;
            }
        }
        ValueKind::Map => {
            for key in value.try_iter()? {
                let item = value.get_item(&key)?;
                state.consume_fuel(1 + (item.as_str().map_or(0, str::len) / 64) as u64)?;
                pay(state, &item)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Whether rendering was stopped for the work that it took, wherever in the template that was.
fn runs_out(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Marks an error that the template raised itself.
const REFUSAL: &str = "raise_exception: ";

/// A message as templates expect it: content parts joined to one text, arguments of calls as objects.
fn flatten(message: &Message) -> Json {
    let mut out = Map::new();
    out.insert("role".into(), Json::String(message.role.clone()));
    let content = match &message.content {
        None => String::new(),
        Some(Content::Text(text)) => text.clone(),
        Some(Content::Parts(parts)) => {
            let texts: Vec<&str> =
                parts.iter().filter_map(|p| p.get("text").and_then(Json::as_str)).collect();
            texts.join("\n")
        }
    };
    out.insert("content".into(), Json::String(content));
    if let Some(calls) = &message.tool_calls {
        let calls = calls
            .iter()
            .map(|call| {
                let arguments = serde_json::from_str(&call.function.arguments)
                    .unwrap_or_else(|_| Json::String(call.function.arguments.clone()));
                serde_json::json!({
                    "id": call.id, "type": call.kind,
                    "function": {"name": call.function.name, "arguments": arguments},
                })
            })
            .collect();
        out.insert("tool_calls".into(), Json::Array(calls));
    }
    if let Some(id) = &message.tool_call_id {
        out.insert("tool_call_id".into(), Json::String(id.clone()));
    }
    for (key, value) in &message.extra {
        out.insert(key.clone(), value.clone());
    }
    Json::Object(out)
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
