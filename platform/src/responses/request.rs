//! Reads the body of `POST /v1/responses`. What is not built is refused by name; nothing is ignored.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value, json};
use strata_hop::Fault;
use strata_wire::toplevel::TopLevel;

use super::intake;
use super::item::Item;
use crate::fields::{Fields, metadata, shown, wrong};
use crate::refusal::not_built;
use crate::tool::Tools;

/// Most tools in one request.
const MAX_TOOLS: usize = 128;

/// A request to create a response.
#[derive(Debug)]
pub(crate) struct Create {
    pub(crate) model: String,
    pub(crate) input: Vec<Item>,
    pub(crate) instructions: Option<String>,
    pub(crate) previous: Option<String>,
    pub(crate) conversation: Option<String>,
    pub(crate) store: bool,
    pub(crate) stream: bool,
    pub(crate) metadata: Map<String, Value>,
    pub(crate) max_output_tokens: Option<u64>,
    pub(crate) max_tool_calls: Option<u64>,
    pub(crate) temperature: Option<f64>,
    pub(crate) top_p: Option<f64>,
    pub(crate) parallel_tool_calls: bool,
    pub(crate) user: Option<String>,
    pub(crate) safety_identifier: Option<String>,
    pub(crate) tools: Toolbox,
    pub(crate) tool_choice: Choice,
}

/// The tools of one request.
#[derive(Debug, Default)]
pub(crate) struct Toolbox {
    /// As the response repeats them.
    pub(crate) shown: Vec<Value>,
    /// The application's functions, as chat completions take them.
    pub(crate) functions: Vec<Value>,
    /// The server's functions, as chat completions take them.
    pub(crate) server: Vec<Value>,
    /// Kinds of the server's tools by the function name that the model calls.
    pub(crate) kinds: BTreeMap<String, String>,
    names: HashSet<String>,
}

/// Whether and what the model must call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choice {
    /// As the response repeats it.
    pub(crate) shown: Value,
    /// As chat completions take it.
    pub(crate) chat: Value,
}

impl Choice {
    /// Whether the model is forced to call something.
    pub(crate) fn forces(&self) -> bool {
        self.chat != json!("auto") && self.chat != json!("none")
    }
}

/// Reads a body.
pub(crate) fn json_body(body: &[u8]) -> Result<Value, Fault> {
    if let Err(error) = TopLevel::scan(body) {
        return Err(Fault::from_body(strata_wire::ErrorKind::InvalidRequest, error.to_body()));
    }
    serde_json::from_slice(body).map_err(|e| Fault::invalid(format!("the body is not valid JSON: {e}")))
}

impl Create {
    /// Reads and checks a request.
    pub(crate) fn parse(body: Value, offered: &Tools) -> Result<Self, Fault> {
        let mut fields = Fields::new("", body)?;
        let model = fields.required_text("model")?;
        let input = match fields.take("input") {
            Some(value) => intake::input("input", value)?,
            None => Vec::new(),
        };
        let previous = fields.text("previous_response_id")?;
        let conversation = conversation(&mut fields)?;
        if previous.is_some() && conversation.is_some() {
            return Err(Fault::invalid_param(
                "previous_response_id",
                "send `previous_response_id` or `conversation`, not both",
            ));
        }
        if input.is_empty() && previous.is_none() && conversation.is_none() {
            return Err(Fault::invalid_param("input", "missing required parameter: 'input'"));
        }
        let store = fields.flag("store")?.unwrap_or(true);
        if !store && conversation.is_some() {
            return Err(Fault::invalid_param(
                "store",
                "`store: false` keeps nothing, and a conversation keeps its items; leave one of them out",
            ));
        }
        let instructions = match fields.take("instructions") {
            None => None,
            Some(Value::String(text)) => Some(text),
            Some(Value::Array(_)) => return Err(not_built("instructions", "a list of items")),
            Some(other) => return Err(wrong("instructions", "a string", &other)),
        };
        let tools = match fields.take("tools") {
            None => Toolbox::default(),
            Some(value) => Toolbox::parse(value, offered)?,
        };
        let tool_choice = choice(&mut fields, &tools)?;
        let create = Self {
            model,
            input,
            instructions,
            previous,
            conversation,
            store,
            stream: fields.flag("stream")?.unwrap_or(false),
            metadata: metadata("metadata", fields.take("metadata"))?,
            max_output_tokens: fields.count("max_output_tokens", 1)?,
            max_tool_calls: fields.count("max_tool_calls", 1)?,
            temperature: fields.number("temperature", 0.0, 2.0)?,
            top_p: fields.number("top_p", 0.0, 1.0)?,
            parallel_tool_calls: fields.flag("parallel_tool_calls")?.unwrap_or(true),
            user: fields.text("user")?,
            safety_identifier: fields.text("safety_identifier")?,
            tools,
            tool_choice,
        };
        refuse_the_rest(&mut fields)?;
        fields.finish()?;
        Ok(create)
    }
}

/// Parameters that OpenAI has and this platform has not, but for values that change nothing.
fn refuse_the_rest(fields: &mut Fields) -> Result<(), Fault> {
    fields.only("background", &[json!(false)])?;
    fields.only("truncation", &[json!("disabled")])?;
    fields.only("include", &[json!([])])?;
    fields.only("top_logprobs", &[json!(0)])?;
    fields.only("service_tier", &[json!("auto"), json!("default")])?;
    fields.only("stream_options", &[json!({}), json!({"include_obfuscation": false})])?;
    if let Some(value) = fields.take("text") {
        let mut text = Fields::new("text", value)?;
        text.only("format", &[json!({"type": "text"})])?;
        text.only("verbosity", &[json!("medium")])?;
        text.finish()?;
    }
    if let Some(value) = fields.take("reasoning") {
        let mut reasoning = Fields::new("reasoning", value)?;
        reasoning.refuse(&["effort", "summary", "generate_summary"])?;
        reasoning.finish()?;
    }
    fields.refuse(&[
        "access_programs",
        "background_options",
        "context_management",
        "image",
        "moderation",
        "prompt",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
    ])
}

fn conversation(fields: &mut Fields) -> Result<Option<String>, Fault> {
    match fields.take("conversation") {
        None => Ok(None),
        Some(Value::String(id)) => Ok(Some(id)),
        Some(value @ Value::Object(_)) => {
            let mut object = Fields::new("conversation", value)?;
            let id = object.required_text("id")?;
            object.finish()?;
            Ok(Some(id))
        }
        Some(other) => Err(wrong("conversation", "an id, or an object with an id", &other)),
    }
}

impl Toolbox {
    fn parse(value: Value, offered: &Tools) -> Result<Self, Fault> {
        let Value::Array(values) = value else {
            return Err(wrong("tools", "an array", &value));
        };
        if values.len() > MAX_TOOLS {
            return Err(Fault::invalid_param("tools", format!("more than {MAX_TOOLS} tools")));
        }
        let mut tools = Self::default();
        for (i, value) in values.into_iter().enumerate() {
            let mut fields = Fields::new(format!("tools[{i}]"), value)?;
            let kind = fields.required_text("type")?;
            let name = if kind == "function" {
                tools.function(&mut fields)?
            } else if let Some(tool) = offered.get(&kind) {
                let definition = tool.definition();
                tools.server.push(definition.to_chat());
                tools.shown.push(json!({"type": kind}));
                tools.kinds.insert(definition.name.clone(), kind);
                definition.name
            } else {
                let mut fault = not_built(&fields.path("type"), "");
                fault.body.error.message = format!(
                    "`{}`: the tool type {} is not built yet; there are `function` and {}",
                    fields.path("type"),
                    shown(&Value::String(kind)),
                    offered.kinds()
                );
                return Err(fault);
            };
            fields.finish()?;
            if !tools.names.insert(name.clone()) {
                return Err(Fault::invalid_param("tools", format!("two tools are called '{name}'")));
            }
        }
        Ok(tools)
    }

    fn function(&mut self, fields: &mut Fields) -> Result<String, Fault> {
        if fields.take("function").is_some() {
            return Err(Fault::invalid_param(
                &fields.path("function"),
                "this is the tool form of chat completions; here `name` and `parameters` stand beside `type`",
            ));
        }
        let name = fields.required_text("name")?;
        let sane =
            name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if !sane {
            return Err(Fault::invalid_param(
                &fields.path("name"),
                format!("'{}' must be at most 64 letters, digits, `_` and `-`", fields.path("name")),
            ));
        }
        let description = fields.text("description")?;
        let parameters = fields.take("parameters");
        if let Some(other) = parameters.as_ref().filter(|p| !p.is_object()) {
            return Err(wrong(&fields.path("parameters"), "an object (JSON Schema)", other));
        }
        let strict = fields.flag("strict")?;
        fields.refuse(&["async", "allowed_callers", "defer_loading", "output_schema"])?;
        let mut function = Map::new();
        function.insert("name".to_owned(), json!(name));
        for (key, value) in [
            ("description", description.clone().map(Value::String)),
            ("parameters", parameters.clone()),
            ("strict", strict.map(Value::Bool)),
        ] {
            if let Some(value) = value {
                function.insert(key.to_owned(), value);
            }
        }
        self.functions.push(json!({"type": "function", "function": function}));
        self.shown.push(json!({
            "type": "function", "name": name, "description": description,
            "parameters": parameters, "strict": strict.unwrap_or(false),
        }));
        Ok(name)
    }
}

fn choice(fields: &mut Fields, tools: &Toolbox) -> Result<Choice, Fault> {
    let plain = |word: &str| Choice { shown: json!(word), chat: json!(word) };
    let named = |shown: Value, name: &str| Choice {
        shown,
        chat: json!({"type": "function", "function": {"name": name}}),
    };
    let choice = match fields.take("tool_choice") {
        None => return Ok(plain("auto")),
        Some(Value::String(word)) if ["auto", "none", "required"].contains(&word.as_str()) => plain(&word),
        Some(value @ Value::Object(_)) => {
            let mut object = Fields::new("tool_choice", value.clone())?;
            let kind = object.required_text("type")?;
            if kind == "function" {
                let name = object.required_text("name")?;
                object.finish()?;
                if !tools.names.contains(&name) || tools.kinds.contains_key(&name) {
                    return Err(Fault::invalid_param(
                        "tool_choice",
                        format!("'tool_choice' names the function '{name}', which is not in 'tools'"),
                    ));
                }
                named(value, &name)
            } else if let Some((name, _)) = tools.kinds.iter().find(|(_, k)| **k == kind) {
                object.finish()?;
                named(value, name)
            } else {
                let mut fault = not_built("tool_choice", "");
                fault.body.error.message = format!(
                    "`tool_choice`: the type {} is not built yet, or no such tool is in 'tools'",
                    shown(&Value::String(kind))
                );
                return Err(fault);
            }
        }
        Some(other) => {
            return Err(wrong("tool_choice", "`auto`, `none`, `required` or an object with a type", &other));
        }
    };
    if choice.forces() && tools.shown.is_empty() {
        return Err(Fault::invalid_param("tool_choice", "'tool_choice' forces a call, and 'tools' is empty"));
    }
    Ok(choice)
}
