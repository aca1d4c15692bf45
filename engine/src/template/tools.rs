//! Tools in the Hermes form, for models whose template says nothing about them: the tools are
//! described in the system message, and calls come as `<tool_call>{"name": …, "arguments": …}
//! </tool_call>`.

use serde_json::{Map, Value as Json};
use strata_wire::chat::FunctionCall;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

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

/// A piece of what a model said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolOutput {
    /// Plain text.
    Text(String),
    /// A whole call.
    Call(FunctionCall),
}

/// Finds calls in a stream of text pieces. Text is held back from a call's opening tag on, and so is
/// what could be the beginning of one.
#[derive(Clone, Debug, Default)]
pub struct ToolParser {
    held: String,
    inside: bool,
    called: bool,
}

impl ToolParser {
    /// Takes more text.
    pub fn push(&mut self, text: &str) -> Vec<ToolOutput> {
        self.held.push_str(text);
        let mut out = Vec::new();
        loop {
            if self.inside {
                let Some(end) = self.held.find(CLOSE) else { return out };
                let body = self.held[..end].to_owned();
                self.held.drain(..end + CLOSE.len());
                self.inside = false;
                self.finish_call(&body, CLOSE, &mut out);
            } else if let Some(begin) = self.held.find(OPEN) {
                let text = self.held[..begin].to_owned();
                self.held.drain(..begin + OPEN.len());
                self.inside = true;
                self.say(&text, &mut out);
            } else {
                let keep = self.keep();
                let rest = self.held.split_off(self.held.len() - keep);
                let text = std::mem::replace(&mut self.held, rest);
                self.say(&text, &mut out);
                return out;
            }
        }
    }

    /// What is left when no more text comes. A call that was not closed still counts when it is
    /// whole.
    pub fn flush(&mut self) -> Vec<ToolOutput> {
        let held = std::mem::take(&mut self.held);
        let mut out = Vec::new();
        if std::mem::take(&mut self.inside) {
            self.finish_call(&held, "", &mut out);
        } else {
            self.say(&held, &mut out);
        }
        out
    }

    /// Whether there was a call.
    pub fn called(&self) -> bool {
        self.called
    }

    /// Bytes at the end that must wait: a beginning of the tag, and white space after a call, which
    /// is only dropped when nothing or another call follows.
    fn keep(&self) -> usize {
        let tag = (1..OPEN.len()).rev().find(|n| self.held.ends_with(&OPEN[..*n])).unwrap_or(0);
        let before = &self.held[..self.held.len() - tag];
        tag + (before.len() - before.trim_end().len())
    }

    fn say(&mut self, text: &str, out: &mut Vec<ToolOutput>) {
        // White space around calls is their layout, not the answer's.
        let layout = self.called || self.inside;
        let text = if layout && text.trim().is_empty() {
            ""
        } else if self.inside {
            text.trim_end()
        } else {
            text
        };
        if !text.is_empty() {
            out.push(ToolOutput::Text(text.to_owned()));
        }
    }

    fn finish_call(&mut self, body: &str, close: &str, out: &mut Vec<ToolOutput>) {
        if let Some(call) = parse_call(body) {
            self.called = true;
            out.push(ToolOutput::Call(call));
        } else {
            // Not a call after all: the model's words are not thrown away.
            out.push(ToolOutput::Text(format!("{OPEN}{body}{close}")));
        }
    }
}

fn parse_call(body: &str) -> Option<FunctionCall> {
    let call: Map<String, Json> = serde_json::from_str(body.trim()).ok()?;
    let name = call.get("name")?.as_str()?.to_owned();
    let arguments = match call.get("arguments").or_else(|| call.get("parameters")) {
        None | Some(Json::Null) => "{}".to_owned(),
        Some(Json::String(text)) => text.clone(),
        Some(arguments) => arguments.to_string(),
    };
    Some(FunctionCall { name, arguments })
}

#[cfg(test)]
#[path = "tools_tests.rs"]
mod tests;
