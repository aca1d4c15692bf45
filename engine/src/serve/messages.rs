//! A chat request's messages and tools, checked.

use serde_json::{Map, Value};
use strata_hop::Fault;
use strata_wire::chat::{Content, Message, ToolCall};

use super::members::{Members, wrong};

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// The conversation of a request.
pub(super) fn read(members: &Members) -> Result<Vec<Message>, Fault> {
    let Some(messages) = members.array("messages")? else {
        return Err(Fault::invalid_param(
            "messages",
            "`messages` is missing: send an array of at least one message",
        ));
    };
    if messages.is_empty() {
        return Err(Fault::invalid_param("messages", "`messages` is empty: send at least one message"));
    }
    messages.iter().enumerate().map(|(i, message)| one(&format!("messages[{i}]"), message)).collect()
}

fn one(at: &str, value: &Value) -> Result<Message, Fault> {
    let Some(map) = value.as_object() else { return Err(wrong(at, "an object", value)) };
    let name = format!("{at}.role");
    let role = match map.get("role") {
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role.as_str(),
        Some(Value::String(role)) => {
            let shown: String = role.chars().take(40).collect();
            let message = format!("`{name}` must be one of {}, and it is `{shown}`", ROLES.join(", "));
            return Err(Fault::invalid_param(&name, message));
        }
        other => return Err(wrong(&name, "a string", other.unwrap_or(&Value::Null))),
    };
    let content = content(&format!("{at}.content"), role, map.get("content").unwrap_or(&Value::Null))?;
    let tool_calls = match map.get("tool_calls") {
        None | Some(Value::Null) => None,
        Some(calls) => {
            let name = format!("{at}.tool_calls");
            let calls: Vec<ToolCall> = serde_json::from_value(calls.clone()).map_err(|e| {
                Fault::invalid_param(&name, format!("`{name}` is not an array of function calls: {e}"))
            })?;
            Some(calls)
        }
    };
    let tool_call_id = match map.get("tool_call_id") {
        None | Some(Value::Null) => None,
        Some(Value::String(id)) => Some(id.clone()),
        Some(other) => return Err(wrong(&format!("{at}.tool_call_id"), "a string", other)),
    };
    if content.is_none() && tool_calls.is_none() && role != "assistant" {
        let name = format!("{at}.content");
        return Err(Fault::invalid_param(
            &name,
            format!("`{name}` is missing: a {role} message needs content"),
        ));
    }
    let known = ["role", "content", "tool_calls", "tool_call_id"];
    let extra: Map<String, Value> = map
        .iter()
        .filter(|(k, _)| !known.contains(&k.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    // OpenAI's newer name for the system's role; models were trained on the older one.
    let role = if role == "developer" { "system" } else { role };
    Ok(Message { role: role.to_owned(), content, tool_calls, tool_call_id, extra })
}

fn content(at: &str, role: &str, value: &Value) -> Result<Option<Content>, Fault> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(Content::Text(text.clone()))),
        Value::Array(parts) => {
            let parts = parts.iter().enumerate().map(|(i, p)| part(&format!("{at}[{i}]"), role, p));
            Ok(Some(Content::Parts(parts.collect::<Result<_, _>>()?)))
        }
        other => Err(wrong(at, "a string or an array of parts", other)),
    }
}

fn part(at: &str, role: &str, value: &Value) -> Result<Map<String, Value>, Fault> {
    let Some(part) = value.as_object() else { return Err(wrong(at, "an object", value)) };
    let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
    let field = match kind {
        "text" => "text",
        "refusal" if role == "assistant" => "refusal",
        "" => return Err(wrong(&format!("{at}.type"), "a string", part.get("type").unwrap_or(&Value::Null))),
        other => {
            let shown: String = other.chars().take(40).collect();
            let message = format!("`{at}` is a part of type `{shown}`: this model takes text only");
            return Err(Fault::invalid_param(at, message));
        }
    };
    let Some(text) = part.get(field).and_then(Value::as_str) else {
        return Err(wrong(&format!("{at}.{field}"), "a string", part.get(field).unwrap_or(&Value::Null)));
    };
    let mut plain = Map::new();
    plain.insert("type".into(), "text".into());
    plain.insert("text".into(), text.into());
    Ok(plain)
}

/// The tools of a request.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    /// As they were sent, for the template.
    pub(super) list: Vec<Value>,
    /// Those of which one must be called, with the schemas of their arguments; empty when none must.
    pub(super) required: Vec<(String, Value)>,
    /// All of them, when none must be called and one is `strict`: what a call may be then. Arguments of
    /// those that are not may be any object.
    pub(super) bound: Vec<(String, Value)>,
    /// Whether there may be more than one call.
    pub(super) parallel: bool,
}

/// The tools that the model is to be told of: none when there are none, or when `tool_choice` says so.
pub(super) fn tools(members: &Members) -> Result<Option<Tools>, Fault> {
    let list = members.array("tools")?.unwrap_or_default();
    let functions = list.iter().enumerate().map(|(i, tool)| function(&format!("tools[{i}]"), tool));
    let functions = functions.collect::<Result<Vec<Function>, _>>()?;
    for name in ["functions", "function_call"] {
        members.unbuilt(name, |_| false, "use `tools` and `tool_choice`")?;
    }
    let name = "tool_choice";
    let bound = bound(&functions);
    let functions: Vec<(String, Value)> = functions.into_iter().map(|f| (f.name, f.schema)).collect();
    let required = match members.get(name) {
        None => Vec::new(),
        Some(Value::String(choice)) => match choice.as_str() {
            "auto" => Vec::new(),
            "none" => return Ok(None),
            "required" if functions.is_empty() => {
                let message = "`tool_choice` is `required` and `tools` holds no function";
                return Err(Fault::invalid_param(name, message));
            }
            "required" => functions,
            _ => {
                let message =
                    "`tool_choice` must be `none`, `auto`, `required` or an object that names a function";
                return Err(Fault::invalid_param(name, message));
            }
        },
        Some(Value::Object(choice)) => {
            let named = choice.get("function").and_then(|f| f.get("name")).unwrap_or(&Value::Null);
            let Some(named) = named.as_str() else {
                return Err(wrong("tool_choice.function.name", "a string", named));
            };
            let found = functions.into_iter().find(|(function, _)| function == named);
            vec![found.ok_or_else(|| {
                let shown: String = named.chars().take(40).collect();
                Fault::invalid_param(name, format!("`tool_choice` names `{shown}`, which is not in `tools`"))
            })?]
        }
        Some(other) => return Err(wrong(name, "a string or an object", other)),
    };
    let named = members.get(name).is_some_and(Value::is_object);
    let parallel = members.boolean("parallel_tool_calls")?.unwrap_or(true) && !named;
    let bound = if required.is_empty() { bound } else { Vec::new() };
    Ok((!list.is_empty()).then(|| Tools { list: list.to_vec(), required, bound, parallel }))
}

/// A function as a request describes it.
struct Function {
    name: String,
    /// Of its arguments.
    schema: Value,
    /// Whether the arguments must follow the schema even where the model is free to call.
    strict: bool,
}

/// What calls may be where the model is free to call; nothing where nothing is strict.
fn bound(functions: &[Function]) -> Vec<(String, Value)> {
    let free = || serde_json::json!({"type": "object"});
    let allowed = |f: &Function| (f.name.clone(), if f.strict { f.schema.clone() } else { free() });
    if functions.iter().any(|f| f.strict) { functions.iter().map(allowed).collect() } else { Vec::new() }
}

fn function(at: &str, tool: &Value) -> Result<Function, Fault> {
    match tool.get("type").and_then(Value::as_str) {
        Some("function") => {}
        Some(other) => {
            let shown: String = other.chars().take(40).collect();
            let message = format!("`{at}.type` is `{shown}`: only `function` tools are known here");
            return Err(Fault::invalid_param(at, message));
        }
        None => {
            let found = tool.get("type").unwrap_or(&Value::Null);
            return Err(wrong(&format!("{at}.type"), "\"function\"", found));
        }
    }
    let name = tool.get("function").and_then(|f| f.get("name")).unwrap_or(&Value::Null);
    let Some(name) = name.as_str().filter(|name| !name.is_empty()) else {
        return Err(wrong(&format!("{at}.function.name"), "a string", name));
    };
    let parameters = match tool.get("function").and_then(|f| f.get("parameters")) {
        None | Some(Value::Null) => {
            serde_json::json!({"type": "object", "properties": {}, "additionalProperties": false})
        }
        Some(schema @ Value::Object(_)) => schema.clone(),
        Some(other) => return Err(wrong(&format!("{at}.function.parameters"), "a JSON schema", other)),
    };
    let strict = match tool.get("function").and_then(|f| f.get("strict")) {
        None | Some(Value::Null) => false,
        Some(Value::Bool(strict)) => *strict,
        Some(other) => return Err(wrong(&format!("{at}.function.strict"), "true or false", other)),
    };
    Ok(Function { name: name.to_owned(), schema: parameters, strict })
}
