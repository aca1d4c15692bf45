//! Tools in the Hermes form, for models whose template says nothing about them: the tools are
//! described in the system message, and calls come as `<tool_call>{"name": …, "arguments": …}
//! </tool_call>`.

use serde_json::{Map, Value as Json};

use super::form::CLOSE;

const OPEN: &str = "<tool_call>";

/// Puts the description of the tools before the system message, and turns earlier calls and their
/// answers into text.
pub(super) fn describe(messages: &mut Vec<Json>, tools: &[Json]) {
    let mut text = String::from(
        "You are a function calling AI model. You are provided with function signatures within <tools></tools> XML \
         tags. You may call one or more functions to assist with the user query. Here are the available tools:\n\
         <tools>\n",
    );
    for tool in tools {
        text.push_str(&super::json::dump(tool, None).unwrap_or_default());
        text.push('\n');
    }
    text.push_str(
        "</tools>\nFor each function call return a json object with function name and arguments within \
         <tool_call></tool_call> XML tags as follows:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": \
         <args-json-object>}\n</tool_call>",
    );
    for message in messages.iter_mut().filter_map(Json::as_object_mut) {
        write_out(message);
    }
    match messages
        .first_mut()
        .and_then(Json::as_object_mut)
        .filter(|m| role(m) == "system" || role(m) == "developer")
    {
        Some(system) => {
            let own = content(system).to_owned();
            system.insert("content".into(), Json::String(format!("{text}\n\n{own}")));
        }
        None => messages.insert(0, serde_json::json!({"role": "system", "content": text})),
    }
}

fn role(message: &Map<String, Json>) -> &str {
    message.get("role").and_then(Json::as_str).unwrap_or_default()
}

fn content(message: &Map<String, Json>) -> &str {
    message.get("content").and_then(Json::as_str).unwrap_or_default()
}

/// Writes a message's calls, or a tool's answer, into its text.
fn write_out(message: &mut Map<String, Json>) {
    if role(message) == "tool" {
        let text = format!("<tool_response>\n{}\n</tool_response>", content(message));
        message.insert("role".into(), "user".into());
        message.insert("content".into(), Json::String(text));
        return;
    }
    let Some(Json::Array(calls)) = message.remove("tool_calls") else { return };
    let mut text = content(message).to_owned();
    for call in calls {
        if !text.is_empty() {
            text.push('\n');
        }
        let call = super::json::dump(&call["function"], None).unwrap_or_default();
        text.extend([OPEN, "\n", &call, "\n", CLOSE]);
    }
    message.insert("content".into(), Json::String(text));
}
