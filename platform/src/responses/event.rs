//! The events of a streamed response, in OpenAI's form.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use strata_wire::sse;

use super::item::{Item, Part};

/// One event that has no sequence number yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    kind: &'static str,
    members: Value,
}

impl Event {
    /// `response.created`, `response.in_progress`, or how it ended.
    pub(crate) fn response(kind: &'static str, response: &Value) -> Self {
        Self { kind, members: json!({ "response": response }) }
    }

    pub(crate) fn item_added(index: usize, item: &Item) -> Self {
        Self { kind: "response.output_item.added", members: json!({"output_index": index, "item": item}) }
    }

    pub(crate) fn item_done(index: usize, item: &Item) -> Self {
        Self { kind: "response.output_item.done", members: json!({"output_index": index, "item": item}) }
    }

    pub(crate) fn part_added(index: usize, item_id: &str, part: &Part) -> Self {
        Self::part("response.content_part.added", index, item_id, part)
    }

    pub(crate) fn part_done(index: usize, item_id: &str, part: &Part) -> Self {
        Self::part("response.content_part.done", index, item_id, part)
    }

    fn part(kind: &'static str, index: usize, item_id: &str, part: &Part) -> Self {
        let members = json!({"item_id": item_id, "output_index": index, "content_index": 0, "part": part});
        Self { kind, members }
    }

    pub(crate) fn text_delta(index: usize, item_id: &str, delta: &str) -> Self {
        Self {
            kind: "response.output_text.delta",
            members: json!({
                "item_id": item_id, "output_index": index, "content_index": 0, "delta": delta, "logprobs": [],
            }),
        }
    }

    pub(crate) fn text_done(index: usize, item_id: &str, text: &str) -> Self {
        Self {
            kind: "response.output_text.done",
            members: json!({
                "item_id": item_id, "output_index": index, "content_index": 0, "text": text, "logprobs": [],
            }),
        }
    }

    /// More of a call's arguments.
    pub(crate) fn arguments_delta(server: bool, index: usize, item_id: &str, delta: &str) -> Self {
        let kind = if server {
            "response.mcp_call_arguments.delta"
        } else {
            "response.function_call_arguments.delta"
        };
        Self { kind, members: json!({"item_id": item_id, "output_index": index, "delta": delta}) }
    }

    /// All of a call's arguments.
    pub(crate) fn arguments_done(
        server: bool,
        index: usize,
        item_id: &str,
        name: &str,
        arguments: &str,
    ) -> Self {
        let mut members = json!({"item_id": item_id, "output_index": index});
        if !server {
            members["name"] = json!(name);
        }
        members["arguments"] = json!(arguments);
        let kind =
            if server { "response.mcp_call_arguments.done" } else { "response.function_call_arguments.done" };
        Self { kind, members }
    }

    /// How far a server-side call is: `response.mcp_call.in_progress`, `.completed` or `.failed`.
    pub(crate) fn server_call(kind: &'static str, index: usize, item_id: &str) -> Self {
        Self { kind, members: json!({"item_id": item_id, "output_index": index}) }
    }

    /// The event's bytes, with its place in the stream.
    pub(crate) fn render(self, sequence: u64) -> Bytes {
        let mut map = Map::new();
        map.insert("type".to_owned(), json!(self.kind));
        map.insert("sequence_number".to_owned(), json!(sequence));
        if let Value::Object(members) = self.members {
            map.extend(members);
        }
        sse::named(self.kind, &Value::Object(map).to_string())
    }
}
