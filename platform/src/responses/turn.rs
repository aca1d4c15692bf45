//! One step of the model: chunks come in, events and items come out. Pure but for the ids.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::chunk::{CallDelta, Delta};
use super::event::Event;
use super::item::{FunctionCall, Item, Message, Part, SERVER_LABEL, ServerCall, Status};
use crate::mint;

/// Largest text of one step, in bytes.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Most calls in one step.
const MAX_CALLS: usize = 128;

/// Why a step cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TurnError {
    #[error("the model wrote more than {} MiB in one step", MAX_BYTES / (1024 * 1024))]
    TooLarge,
    #[error("the model made more than {MAX_CALLS} calls in one step")]
    TooManyCalls,
    #[error("the model called a tool without naming it")]
    Nameless,
}

/// What the model has said in this step so far.
#[derive(Debug)]
pub(crate) struct Turn {
    /// The place of this step's first item in the response's output.
    base: usize,
    /// Function names of the tools that the server runs, with their kinds.
    server: Arc<BTreeMap<String, String>>,
    /// Calls beyond the first are dropped.
    one_call: bool,
    slots: Vec<Slot>,
    bytes: usize,
}

#[derive(Debug)]
struct Slot {
    item: Item,
    kind: Kind,
}

#[derive(Debug, PartialEq)]
enum Kind {
    OpenMessage,
    ClosedMessage,
    /// A call, by its place in the model's message.
    Call(u32),
}

impl Turn {
    pub(crate) fn new(base: usize, server: Arc<BTreeMap<String, String>>, one_call: bool) -> Self {
        Self { base, server, one_call, slots: Vec::new(), bytes: 0 }
    }

    /// Takes what is new, and adds its events, those before an error included.
    pub(crate) fn push(&mut self, delta: Delta, events: &mut Vec<Event>) -> Result<(), TurnError> {
        if let Some(text) = delta.content.filter(|t| !t.is_empty()) {
            self.count(text.len())?;
            self.text(&text, events);
        }
        for call in delta.tool_calls.unwrap_or_default() {
            self.call(call, events)?;
        }
        Ok(())
    }

    fn count(&mut self, bytes: usize) -> Result<(), TurnError> {
        self.bytes += bytes;
        if self.bytes > MAX_BYTES { Err(TurnError::TooLarge) } else { Ok(()) }
    }

    fn text(&mut self, delta: &str, events: &mut Vec<Event>) {
        let open = self.slots.iter().position(|s| s.kind == Kind::OpenMessage);
        let at = open.unwrap_or_else(|| {
            let message = Message {
                id: mint::id("msg"),
                status: Status::InProgress,
                role: "assistant".to_owned(),
                content: Vec::new(),
            };
            let id = message.id.clone();
            let index = self.base + self.slots.len();
            let mut item = Item::Message(message);
            events.push(Event::item_added(index, &item));
            events.push(Event::part_added(index, &id, &Part::output("")));
            if let Item::Message(m) = &mut item {
                m.content.push(Part::output(""));
            }
            self.slots.push(Slot { item, kind: Kind::OpenMessage });
            self.slots.len() - 1
        });
        if let Item::Message(message) = &mut self.slots[at].item
            && let Some(Part::OutputText { text, .. }) = message.content.first_mut()
        {
            text.push_str(delta);
            events.push(Event::text_delta(self.base + at, &message.id, delta));
        }
    }

    fn call(&mut self, delta: CallDelta, events: &mut Vec<Event>) -> Result<(), TurnError> {
        let arguments = delta.function.arguments.unwrap_or_default();
        self.count(arguments.len())?;
        let at = match self.slots.iter().position(|s| s.kind == Kind::Call(delta.index)) {
            Some(at) => at,
            None if self.one_call && self.calls() > 0 => return Ok(()),
            None if self.calls() == MAX_CALLS => return Err(TurnError::TooManyCalls),
            None => {
                let name = delta.function.name.filter(|n| !n.is_empty()).ok_or(TurnError::Nameless)?;
                self.close_message(Status::Completed, events);
                self.begin_call(delta.index, delta.id, name, events)
            }
        };
        if arguments.is_empty() {
            return Ok(());
        }
        let index = self.base + at;
        match &mut self.slots[at].item {
            Item::FunctionCall(call) => {
                call.arguments.push_str(&arguments);
                events.push(Event::arguments_delta(false, index, &call.id, &arguments));
            }
            Item::McpCall(call) => {
                call.arguments.push_str(&arguments);
                events.push(Event::arguments_delta(true, index, &call.id, &arguments));
            }
            Item::Message(_) | Item::FunctionCallOutput(_) => {}
        }
        Ok(())
    }

    fn calls(&self) -> usize {
        self.slots.iter().filter(|s| matches!(s.kind, Kind::Call(_))).count()
    }

    fn begin_call(
        &mut self,
        place: u32,
        call_id: Option<String>,
        name: String,
        events: &mut Vec<Event>,
    ) -> usize {
        let at = self.slots.len();
        let index = self.base + at;
        let item = if self.server.contains_key(&name) {
            Item::McpCall(ServerCall {
                id: mint::id("mcp"),
                status: Status::InProgress,
                server_label: SERVER_LABEL.to_owned(),
                name,
                arguments: String::new(),
                output: None,
                error: None,
                approval_request_id: None,
            })
        } else {
            Item::FunctionCall(FunctionCall {
                id: mint::id("fc"),
                status: Status::InProgress,
                call_id: call_id.filter(|id| !id.is_empty()).unwrap_or_else(|| mint::id("call")),
                name,
                arguments: String::new(),
            })
        };
        events.push(Event::item_added(index, &item));
        if let Item::McpCall(call) = &item {
            events.push(Event::server_call("response.mcp_call.in_progress", index, &call.id));
        }
        self.slots.push(Slot { item, kind: Kind::Call(place) });
        at
    }

    fn close_message(&mut self, status: Status, events: &mut Vec<Event>) {
        let Some(at) = self.slots.iter().position(|s| s.kind == Kind::OpenMessage) else {
            return;
        };
        let index = self.base + at;
        let slot = &mut self.slots[at];
        slot.kind = Kind::ClosedMessage;
        if let Item::Message(message) = &mut slot.item {
            message.status = status;
            for part in &message.content {
                events.push(Event::text_done(index, &message.id, part.text()));
                events.push(Event::part_done(index, &message.id, part));
            }
        }
        events.push(Event::item_done(index, &slot.item));
    }

    /// Ends the step. With `whole` false it was cut short, and what was open is incomplete. Server-side
    /// calls of a whole step stay in progress: they have yet to run.
    pub(crate) fn finish(mut self, whole: bool) -> (Vec<Item>, Vec<Event>) {
        let mut events = Vec::new();
        let status = if whole { Status::Completed } else { Status::Incomplete };
        self.close_message(status, &mut events);
        for (at, slot) in self.slots.iter_mut().enumerate() {
            let index = self.base + at;
            match &mut slot.item {
                Item::FunctionCall(call) => {
                    call.status = status;
                    events.push(Event::arguments_done(false, index, &call.id, &call.name, &call.arguments));
                    events.push(Event::item_done(index, &slot.item));
                }
                Item::McpCall(call) => {
                    events.push(Event::arguments_done(true, index, &call.id, &call.name, &call.arguments));
                    if !whole {
                        call.status = Status::Incomplete;
                        events.push(Event::server_call("response.mcp_call.failed", index, &call.id));
                        events.push(Event::item_done(index, &slot.item));
                    }
                }
                Item::Message(_) | Item::FunctionCallOutput(_) => {}
            }
        }
        (self.slots.into_iter().map(|s| s.item).collect(), events)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;
    use strata_wire::sse;

    use super::*;
    use crate::responses::chunk::FunctionDelta;

    fn delta() -> impl Strategy<Value = Delta> {
        let name = prop::option::of(prop::sample::select(vec!["calculator", "weather"]));
        let call = (0u32..3, name, "[a-z]{0,4}").prop_map(|(index, name, arguments)| CallDelta {
            index,
            id: None,
            function: FunctionDelta { name: name.map(str::to_owned), arguments: Some(arguments) },
        });
        let calls = prop::option::of(prop::collection::vec(call, 0..3));
        (prop::option::of("[a-zé]{0,4}"), calls)
            .prop_map(|(content, tool_calls)| Delta { content, tool_calls })
    }

    fn read(event: Event) -> Value {
        let raw = event.render(0);
        serde_json::from_str(&sse::parse(&raw).unwrap().data).unwrap()
    }

    fn content(item: &Value) -> String {
        let part = &item["content"][0]["text"];
        part.as_str().or(item["arguments"].as_str()).unwrap().to_owned()
    }

    proptest! {
        /// Whatever the model says, and wherever it is cut: each item is added once and done once
        /// (a server's call is done by the loop), its deltas make up its content, and the items are
        /// those that the events showed.
        #[test]
        fn events_tell_the_items(deltas in prop::collection::vec(delta(), 0..30), whole: bool, one_call: bool) {
            let server = Arc::new(BTreeMap::from([("calculator".to_owned(), "calculator".to_owned())]));
            let mut turn = Turn::new(5, server, one_call);
            let mut events = Vec::new();
            for delta in deltas {
                if let Err(error) = turn.push(delta, &mut events) {
                    prop_assert_eq!(error, TurnError::Nameless);
                }
            }
            let (items, last) = turn.finish(whole);
            let events: Vec<Value> = events.into_iter().chain(last).map(read).collect();
            let (mut texts, mut done) = (Vec::new(), vec![false; items.len()]);
            for event in &events {
                let kind = event["type"].as_str().unwrap();
                let index = event["output_index"].as_u64().unwrap() as usize - 5;
                if kind == "response.output_item.added" {
                    prop_assert_eq!(index, texts.len(), "items are added in order");
                    texts.push(String::new());
                } else if event.get("delta").is_some() {
                    prop_assert!(!done[index]);
                    texts[index].push_str(event["delta"].as_str().unwrap());
                } else if kind == "response.output_item.done" {
                    prop_assert!(!std::mem::replace(&mut done[index], true), "done twice");
                    prop_assert_eq!(&event["item"], &serde_json::to_value(&items[index]).unwrap());
                }
            }
            prop_assert_eq!(texts.len(), items.len());
            let mut calls = 0;
            for (at, item) in items.iter().enumerate() {
                let shown = serde_json::to_value(item).unwrap();
                prop_assert_eq!(content(&shown), texts[at].clone());
                let waits = whole && matches!(item, Item::McpCall(_));
                prop_assert_eq!(done[at], !waits);
                calls += usize::from(!matches!(item, Item::Message(_)));
            }
            prop_assert!(!one_call || calls <= 1);
        }
    }
}
