//! Turns items into the messages of a chat. The same items always give the same messages, in the loop
//! and in a later response alike, so that the engines' prefix caches are hit.

use std::collections::HashSet;

use serde_json::{Map, json};
use strata_wire::chat::{self, Content, ToolCall};

use super::item::{Item, Message, Output, Part, ServerCall, Status};

/// Why a context cannot be shown to a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ContextError {
    /// A result without its call.
    #[error("no tool call found for the function call output with call_id '{0}'")]
    NoCall(String),
    /// A call without its result.
    #[error("no tool output found for the function call with call_id '{0}'; send a function_call_output")]
    NoOutput(String),
}

/// Whether every call has its result and every result its call.
pub(crate) fn check<'i>(items: impl Iterator<Item = &'i Item>) -> Result<(), ContextError> {
    let (mut open, mut order) = (HashSet::new(), Vec::new());
    let mut known = HashSet::new();
    for item in items {
        match item {
            Item::FunctionCall(call) if call.status != Status::Incomplete => {
                open.insert(call.call_id.as_str());
                known.insert(call.call_id.as_str());
                order.push(call.call_id.as_str());
            }
            Item::FunctionCallOutput(output) => {
                if !known.contains(output.call_id.as_str()) {
                    return Err(ContextError::NoCall(output.call_id.clone()));
                }
                open.remove(output.call_id.as_str());
            }
            _ => {}
        }
    }
    match order.into_iter().find(|id| open.contains(id)) {
        Some(id) => Err(ContextError::NoOutput(id.to_owned())),
        None => Ok(()),
    }
}

/// The messages of a chat: the instructions, and then the items. Calls that broke off are left out.
pub(crate) fn messages<'i>(
    instructions: Option<&str>,
    items: impl Iterator<Item = &'i Item>,
) -> Vec<chat::Message> {
    let mut messages = Vec::new();
    if let Some(text) = instructions {
        messages.push(chat::Message::text("system", text));
    }
    for item in items {
        match item {
            Item::Message(message) => messages.push(said(message)),
            Item::FunctionCall(call) if call.status == Status::Incomplete => {}
            Item::FunctionCall(call) => called(&mut messages, &call.call_id, &call.name, &call.arguments),
            Item::FunctionCallOutput(output) => {
                messages.push(result(&output.call_id, content_of(&output.output)));
            }
            Item::McpCall(call) if call.status == Status::Incomplete => {}
            Item::McpCall(call) => {
                called(&mut messages, &call.id, &call.name, &call.arguments);
                messages.push(result(&call.id, Content::Text(outcome(call))));
            }
        }
    }
    messages
}

fn said(message: &Message) -> chat::Message {
    // Most chat templates know no `developer`.
    let role = if message.role == "developer" { "system" } else { &message.role };
    chat::Message { role: role.to_owned(), content: Some(content(&message.content)), ..Default::default() }
}

/// One text as it is; several as parts, which templates join as they like.
fn content(parts: &[Part]) -> Content {
    match parts {
        [part] => Content::Text(part.text().to_owned()),
        parts => Content::Parts(
            parts
                .iter()
                .map(|part| {
                    let mut map = Map::new();
                    map.insert("type".to_owned(), json!("text"));
                    map.insert("text".to_owned(), json!(part.text()));
                    map
                })
                .collect(),
        ),
    }
}

fn content_of(output: &Output) -> Content {
    match output {
        Output::Text(text) => Content::Text(text.clone()),
        Output::Parts(parts) => content(parts),
    }
}

/// Adds a call to the assistant's message that stands last, or to a new one.
fn called(messages: &mut Vec<chat::Message>, id: &str, name: &str, arguments: &str) {
    let call = ToolCall {
        id: id.to_owned(),
        kind: "function".to_owned(),
        function: chat::FunctionCall { name: name.to_owned(), arguments: arguments.to_owned() },
    };
    match messages.last_mut().filter(|m| m.role == "assistant") {
        Some(last) => last.tool_calls.get_or_insert_default().push(call),
        None => messages.push(chat::Message {
            role: "assistant".to_owned(),
            tool_calls: Some(vec![call]),
            ..Default::default()
        }),
    }
}

fn result(id: &str, content: Content) -> chat::Message {
    chat::Message {
        role: "tool".to_owned(),
        content: Some(content),
        tool_call_id: Some(id.to_owned()),
        ..Default::default()
    }
}

fn outcome(call: &ServerCall) -> String {
    match (&call.output, &call.error) {
        (Some(output), _) => output.clone(),
        (None, Some(error)) => format!("error: {}", error.text()),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::responses::intake;

    fn read(items: Value) -> Vec<Item> {
        intake::items("input", items).unwrap()
    }

    #[test]
    fn calls_join_the_message_before_them_and_results_follow() {
        let items = read(json!([
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"role": "assistant", "content": "let me see"},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
            {"type": "function_call", "call_id": "c3", "name": "g", "arguments": "{\"x", "status": "incomplete"},
            {"type": "function_call_output", "call_id": "c2", "output": "2"},
            {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "1"}]},
        ]));
        assert_eq!(check(items.iter()), Ok(()));
        let shown = messages(Some("rules"), items.iter())
            .iter()
            .map(|m| serde_json::to_string(m).unwrap())
            .collect::<Vec<_>>()
            .join("\n");
        insta::assert_snapshot!(shown, @r#"
        {"role":"system","content":"rules"}
        {"role":"system","content":"be brief"}
        {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}
        {"role":"assistant","content":"let me see","tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}},{"id":"c2","type":"function","function":{"name":"g","arguments":"{}"}}]}
        {"role":"tool","content":"2","tool_call_id":"c2"}
        {"role":"tool","content":"1","tool_call_id":"c1"}
        "#);
    }

    #[test]
    fn calls_and_results_must_match() {
        let call = json!({"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"});
        let output = json!({"type": "function_call_output", "call_id": "c1", "output": "1"});
        assert_eq!(check(read(json!([call])).iter()), Err(ContextError::NoOutput("c1".into())));
        assert_eq!(check(read(json!([output])).iter()), Err(ContextError::NoCall("c1".into())));
        assert_eq!(check(read(json!([output, call])).iter()), Err(ContextError::NoCall("c1".into())));
        assert_eq!(check(read(json!([call, output])).iter()), Ok(()));
    }
}
