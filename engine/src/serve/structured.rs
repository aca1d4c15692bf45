//! What a request says its answer must be: OpenAI's `response_format`, vLLM's `structured_outputs` and
//! its older `guided_…` members.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use strata_hop::Fault;
use strata_wire::ErrorKind;

use super::members::{Members, wrong};
use crate::grammar::{Compiled, Grammar, GrammarError};
use crate::runtime::Engine;

/// Texts of one choice.
const MAX_CHOICES: usize = 4096;

/// A grammar, and the member that asks for it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) member: String,
    pub(super) grammar: Grammar,
}

/// The one form that the request asks for, if any.
pub(super) fn read(members: &Members) -> Result<Option<Asked>, Fault> {
    let mut asked: Vec<Asked> = response_format(members)?.into_iter().collect();
    for (kind, name) in [
        ("json", "guided_json"),
        ("regex", "guided_regex"),
        ("choice", "guided_choice"),
        ("grammar", "guided_grammar"),
        ("json_object", "guided_json_object"),
    ] {
        if let Some(value) = members.get(name) {
            asked.extend(form(kind, name, value)?);
        }
    }
    if let Some(map) = members.object("structured_outputs")? {
        asked.extend(structured_outputs(map)?);
    }
    if let [first, second, ..] = asked.as_slice() {
        let message = format!(
            "`{}` and `{}` both say what the answer must be; send one of them",
            first.member, second.member
        );
        return Err(Fault::invalid_param(&second.member, message));
    }
    Ok(asked.pop())
}

/// Compiles a grammar, or says which member is at fault.
pub(super) async fn compile(engine: &Engine, asked: Asked) -> Result<Arc<Compiled>, Fault> {
    let Asked { member, grammar } = asked;
    engine.grammars().compile(grammar).await.map_err(|error| {
        let message = format!("`{member}` {error}");
        match error {
            GrammarError::Busy => {
                Fault::new(ErrorKind::Overloaded, message).retry_after(Duration::from_secs(1))
            }
            _ => Fault::invalid_param(&member, message),
        }
    })
}

fn response_format(members: &Members) -> Result<Option<Asked>, Fault> {
    let name = "response_format";
    let Some(format) = members.object(name)? else { return Ok(None) };
    let kind = format.get("type").unwrap_or(&Value::Null);
    match kind.as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Asked { member: name.into(), grammar: Grammar::json_object() })),
        Some("json_schema") => {
            let member = "response_format.json_schema";
            let given = format.get("json_schema").unwrap_or(&Value::Null);
            let Some(given) = given.as_object() else { return Err(wrong(member, "an object", given)) };
            let member = format!("{member}.schema");
            // OpenAI's own form allows to leave the schema out.
            match given.get("schema") {
                None | Some(Value::Null) => Ok(Some(Asked { member, grammar: Grammar::json_object() })),
                Some(schema) => form("json", &member, schema),
            }
        }
        Some(other) => {
            let shown: String = other.chars().take(40).collect();
            let message = format!(
                "`response_format.type` must be `text`, `json_object` or `json_schema`, and it is `{shown}`"
            );
            Err(Fault::invalid_param(name, message))
        }
        None => Err(wrong("response_format.type", "a string", kind)),
    }
}

fn structured_outputs(map: &Map<String, Value>) -> Result<Vec<Asked>, Fault> {
    let mut asked = Vec::new();
    for (kind, value) in map.iter().filter(|(_, value)| !value.is_null()) {
        let member = format!("structured_outputs.{kind}");
        match kind.as_str() {
            "json" | "regex" | "choice" | "grammar" | "json_object" => {
                asked.extend(form(kind, &member, value)?);
            }
            // What vLLM's client sends with every request.
            "disable_any_whitespace" | "disable_additional_properties" | "disable_fallback"
                if value == &Value::Bool(false) => {}
            _ => {
                let shown: String = kind.chars().take(40).collect();
                let message = format!(
                    "`structured_outputs` takes one of json, regex, choice, grammar and json_object; `{shown}` is \
                     none of them"
                );
                return Err(Fault::invalid_param("structured_outputs", message));
            }
        }
    }
    Ok(asked)
}

fn form(kind: &str, member: &str, value: &Value) -> Result<Option<Asked>, Fault> {
    let text = |what: &str| match value.as_str() {
        Some("") => Err(Fault::invalid_param(member, format!("`{member}` is empty: send {what}"))),
        Some(text) => Ok(text.to_owned()),
        None => Err(wrong(member, what, value)),
    };
    let grammar = match kind {
        "json" => Grammar::JsonSchema(schema(member, value)?),
        "regex" => Grammar::Regex(text("a regular expression")?),
        "grammar" => Grammar::Text(text("a grammar as text")?),
        "choice" => Grammar::Choice(choices(member, value)?),
        _ => match value {
            Value::Bool(true) => Grammar::json_object(),
            Value::Bool(false) => return Ok(None),
            other => return Err(wrong(member, "true or false", other)),
        },
    };
    Ok(Some(Asked { member: member.to_owned(), grammar }))
}

/// A schema, as an object or as JSON text.
fn schema(member: &str, value: &Value) -> Result<Value, Fault> {
    match value {
        Value::Object(_) | Value::Bool(_) => Ok(value.clone()),
        Value::String(text) => match serde_json::from_str(text) {
            Ok(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(schema),
            Ok(other) => Err(wrong(member, "a JSON schema", &other)),
            Err(error) => Err(Fault::invalid_param(member, format!("`{member}` is not JSON: {error}"))),
        },
        other => Err(wrong(member, "a JSON schema, which is an object", other)),
    }
}

fn choices(member: &str, value: &Value) -> Result<Vec<String>, Fault> {
    let wanted = "an array of texts";
    let Some(items) = value.as_array() else { return Err(wrong(member, wanted, value)) };
    if items.is_empty() || items.len() > MAX_CHOICES {
        let message = format!("`{member}` must hold 1 to {MAX_CHOICES} texts, and it holds {}", items.len());
        return Err(Fault::invalid_param(member, message));
    }
    let text = |(i, item): (usize, &Value)| {
        let text = item.as_str().ok_or_else(|| wrong(&format!("{member}[{i}]"), "a string", item))?;
        if text.is_empty() {
            return Err(Fault::invalid_param(member, format!("`{member}` must not hold an empty text")));
        }
        Ok(text.to_owned())
    };
    items.iter().enumerate().map(text).collect()
}
