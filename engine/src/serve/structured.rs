//! What a request says its answer must be: OpenAI's `response_format`, vLLM's `structured_outputs` and
//! its older `guided_…` members.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use strata_hop::Fault;
use strata_wire::ErrorKind;

use super::members::{Members, wrong};
use super::structural_tag;
use crate::grammar::{self, Compiled, Grammar, GrammarError, Space};
use crate::runtime::Engine;
use crate::tokenizer::Tokenizer;

/// Texts of one choice.
const MAX_CHOICES: usize = 4096;
/// Bytes of a regular expression for white space.
const MAX_SPACE_BYTES: usize = 1024;

/// A grammar, and the member that asks for it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) member: String,
    pub(super) grammar: Grammar,
}

/// How JSON is to be written.
#[derive(Clone, Debug, Default)]
pub(super) struct Manner {
    pub(super) space: Space,
    /// Whether objects hold nothing that their schema does not name.
    closed: bool,
    /// The member that says so.
    member: Option<&'static str>,
}

impl Manner {
    /// A schema as it is to be followed.
    pub(super) fn schema(&self, mut schema: Value) -> Value {
        if self.closed {
            grammar::close(&mut schema);
        }
        schema
    }

    fn read(members: &Members) -> Result<Self, Fault> {
        const ANY: &str = "structured_outputs.disable_any_whitespace";
        const CLOSED: &str = "structured_outputs.disable_additional_properties";
        const PATTERN: &str = "structured_outputs.whitespace_pattern";
        const OLD_PATTERN: &str = "guided_whitespace_pattern";
        let nothing = Map::new();
        let map = members.object("structured_outputs")?.unwrap_or(&nothing);
        let flag = |name: &str| match map.get(name.rsplit('.').next().unwrap_or(name)) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(wrong(name, "true or false", other)),
        };
        let mut manner = Self { closed: flag(CLOSED)?, ..Self::default() };
        manner.member = manner.closed.then_some(CLOSED);
        if flag(ANY)? {
            (manner.space, manner.member) = (Space::None, Some(ANY));
        }
        let given = [(PATTERN, map.get("whitespace_pattern")), (OLD_PATTERN, members.get(OLD_PATTERN))];
        for (name, value) in given {
            let Some(value) = value.filter(|value| !value.is_null()) else { continue };
            let wanted = format!("a regular expression of 1 to {MAX_SPACE_BYTES} bytes");
            let pattern = value.as_str().filter(|text| (1..=MAX_SPACE_BYTES).contains(&text.len()));
            let Some(pattern) = pattern else { return Err(wrong(name, &wanted, value)) };
            if manner.space != Space::Bounded {
                let message =
                    format!("`{name}` and another member both say which white space there may be; send one");
                return Err(Fault::invalid_param(name, message));
            }
            if let Some(problem) = grammar::regex_problem(pattern) {
                let message = format!("`{name}` is no regular expression that can be followed: {problem}");
                return Err(Fault::invalid_param(name, message));
            }
            (manner.space, manner.member) = (Space::Pattern(pattern.to_owned()), Some(name));
        }
        Ok(manner)
    }
}

/// The one form that the request asks for, if any.
pub(super) fn read(members: &Members, tokenizer: &Tokenizer) -> Result<Option<Asked>, Fault> {
    let manner = Manner::read(members)?;
    let mut asked: Vec<Asked> = response_format(members, tokenizer, &manner)?.into_iter().collect();
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
        asked.extend(structured_outputs(map, tokenizer, &manner)?);
    }
    if let [first, second, ..] = asked.as_slice() {
        let message = format!(
            "`{}` and `{}` both say what the answer must be; send one of them",
            first.member, second.member
        );
        return Err(Fault::invalid_param(&second.member, message));
    }
    let mut asked = asked.pop();
    match asked.as_mut().map(|asked| &mut asked.grammar) {
        Some(Grammar::JsonSchema(schema, space)) => {
            (*schema, *space) = (manner.schema(schema.take()), manner.space);
        }
        // It was read by them.
        Some(Grammar::Lark(_)) => {}
        _ => {
            if let Some(member) = manner.member {
                let message = format!("`{member}` is about JSON, and no JSON is asked for; remove it");
                return Err(Fault::invalid_param(member, message));
            }
        }
    }
    Ok(asked)
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

fn response_format(
    members: &Members,
    tokenizer: &Tokenizer,
    manner: &Manner,
) -> Result<Option<Asked>, Fault> {
    let name = "response_format";
    let Some(format) = members.object(name)? else { return Ok(None) };
    if format.get("type").is_some_and(|kind| kind == "structural_tag") {
        return tagged(name, &Value::Object(format.clone()), tokenizer, manner).map(Some);
    }
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
                "`response_format.type` must be `text`, `json_object`, `json_schema` or `structural_tag`, and it is \
                 `{shown}`"
            );
            Err(Fault::invalid_param(name, message))
        }
        None => Err(wrong("response_format.type", "a string", kind)),
    }
}

fn tagged(member: &str, value: &Value, tokenizer: &Tokenizer, manner: &Manner) -> Result<Asked, Fault> {
    let content = structural_tag::read(member, value, tokenizer, manner)?;
    Ok(Asked { member: member.to_owned(), grammar: Grammar::Lark(content.lark()) })
}

fn structured_outputs(
    map: &Map<String, Value>,
    tokenizer: &Tokenizer,
    manner: &Manner,
) -> Result<Vec<Asked>, Fault> {
    let mut asked = Vec::new();
    for (kind, value) in map.iter().filter(|(_, value)| !value.is_null()) {
        let member = format!("structured_outputs.{kind}");
        match kind.as_str() {
            "json" | "regex" | "choice" | "grammar" | "json_object" => {
                asked.extend(form(kind, &member, value)?);
            }
            "structural_tag" => asked.push(tagged(&member, value, tokenizer, manner)?),
            // Of the whole, and read already.
            "disable_any_whitespace" | "disable_additional_properties" | "whitespace_pattern" => {}
            // What vLLM's older clients send with every request.
            "disable_fallback" if value == &Value::Bool(false) => {}
            _ => {
                let shown: String = kind.chars().take(40).collect();
                let message = format!(
                    "`structured_outputs` takes one of json, regex, choice, grammar, json_object and structural_tag; \
                     `{shown}` is none of them"
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
        "json" => Grammar::JsonSchema(schema(member, value)?, Space::default()),
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
pub(super) fn schema(member: &str, value: &Value) -> Result<Value, Fault> {
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
