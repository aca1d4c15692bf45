//! The loop: the model speaks, the server runs the tools that are its own, the model goes on, until it
//! is done, calls a function of the application, or meets a limit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use http::HeaderMap;
use serde_json::{Value, json};
use strata_wire::chat::{ChatRequest, StreamOptions};
use strata_wire::{ErrorKind, Usage, defaults};
use tokio::sync::mpsc;

use super::chunk::Finish;
use super::event::Event;
use super::item::{CallError, Item, Status};
use super::model::{self, Failure, Pieces};
use super::prompt;
use super::request::Create;
use super::turn::Turn;
use crate::app::App;
use crate::options::UpstreamKind;
use crate::tool::ToolError;

/// Most calls of the model in one response.
pub(crate) const MAX_STEPS: usize = 10;
/// Longest run of one server-side call.
const TOOL_TIMEOUT: Duration = Duration::from_secs(30);

/// How the loop ended.
pub(crate) enum End {
    Completed,
    Incomplete(&'static str),
    Failed(Failure),
    /// The client left.
    Cancelled,
}

/// What has been made so far; it outlives a loop that is cut off.
#[derive(Default)]
pub(crate) struct Progress {
    output: Vec<Item>,
    turn: Option<Turn>,
    usage: Option<Usage>,
}

impl Progress {
    /// The items and the usage. What was open is incomplete.
    pub(crate) fn settle(mut self) -> (Vec<Item>, Option<Usage>) {
        if let Some(turn) = self.turn.take() {
            self.output.extend(turn.finish(false).0);
        }
        for item in &mut self.output {
            if let Item::McpCall(call) = item
                && call.status == Status::InProgress
            {
                call.status = Status::Incomplete;
            }
        }
        (self.output, self.usage)
    }

    fn add(&mut self, step: Usage) {
        let sum = self.usage.unwrap_or(Usage::new(0, 0, 0));
        self.usage = Some(Usage::new(
            sum.prompt_tokens + step.prompt_tokens,
            sum.cached_tokens() + step.cached_tokens(),
            sum.completion_tokens + step.completion_tokens,
        ));
    }
}

/// Where events go. Without a channel they go nowhere.
pub(crate) struct Sink {
    to: Option<mpsc::Sender<Bytes>>,
    sequence: u64,
}

impl Sink {
    pub(crate) fn new(to: Option<mpsc::Sender<Bytes>>) -> Self {
        Self { to, sequence: 0 }
    }

    /// Sends events. `false` when the client is gone, or takes nothing for too long.
    pub(crate) async fn emit(&mut self, events: impl IntoIterator<Item = Event>) -> bool {
        let Some(to) = &self.to else {
            return true;
        };
        for event in events {
            let bytes = event.render(self.sequence);
            self.sequence += 1;
            match tokio::time::timeout(defaults::IDLE_TIMEOUT, to.send(bytes)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return false,
            }
        }
        true
    }
}

/// One response being made.
pub(crate) struct Agent<'a> {
    pub(crate) app: &'a App,
    pub(crate) create: &'a Create,
    pub(crate) context: &'a [Item],
    pub(crate) headers: &'a HeaderMap,
    pub(crate) explain: bool,
}

impl Agent<'_> {
    /// The chat that the first step asks for.
    pub(crate) fn opening(&self) -> ChatRequest {
        self.chat(&Progress::default(), 0, self.create.max_output_tokens, true)
    }

    /// Runs the loop from the first step's answer on.
    pub(crate) async fn run(&self, first: Pieces, progress: &mut Progress, sink: &mut Sink) -> End {
        let kinds = Arc::new(self.create.tools.kinds.clone());
        let mut calls_left = self.create.max_tool_calls.unwrap_or(u64::MAX);
        let mut pieces = first;
        for step in 1.. {
            let begun = progress.output.len();
            let finish = match self.step(&mut pieces, &kinds, progress, sink).await {
                Ok(finish) => finish,
                Err(end) => return end,
            };
            match finish {
                Finish::Done => {}
                Finish::Length => return End::Incomplete("max_output_tokens"),
                Finish::Filtered => return End::Incomplete("content_filter"),
                Finish::Aborted => {
                    return End::Failed(Failure::new(
                        ErrorKind::BadGateway,
                        "the model's answer was aborted",
                    ));
                }
            }
            if !progress.output[begun..].iter().any(|i| matches!(i, Item::McpCall(_))) {
                return End::Completed;
            }
            if step == MAX_STEPS {
                // The last step was not offered them; they do not run.
                calls_left = 0;
            }
            if !self.run_tools(begun, &mut calls_left, progress, sink).await {
                return End::Cancelled;
            }
            if progress.output[begun..].iter().any(|i| matches!(i, Item::FunctionCall(_))) {
                return End::Completed;
            }
            if step == MAX_STEPS {
                return End::Incomplete("max_messages");
            }
            let used = progress.usage.map_or(0, |u| u.completion_tokens);
            let tokens_left = self.create.max_output_tokens.map(|most| most.saturating_sub(used));
            if tokens_left == Some(0) {
                return End::Incomplete("max_output_tokens");
            }
            let may_call = calls_left > 0 && step + 1 < MAX_STEPS;
            let chat = self.chat(progress, step, tokens_left, may_call);
            pieces = match model::ask_again(self.app, self.headers, self.explain, &chat).await {
                Ok(pieces) => pieces,
                Err(failure) => return End::Failed(failure),
            };
        }
        End::Completed
    }

    /// Reads one answer of the model to its end.
    async fn step(
        &self,
        pieces: &mut Pieces,
        kinds: &Arc<BTreeMap<String, String>>,
        progress: &mut Progress,
        sink: &mut Sink,
    ) -> Result<Finish, End> {
        let one_call = !self.create.parallel_tool_calls;
        progress.turn = Some(Turn::new(progress.output.len(), kinds.clone(), one_call));
        let (mut finish, mut usage, mut failed) = (None, None, None);
        while let Some(chunk) = pieces.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(failure) => {
                    failed = Some(failure);
                    break;
                }
            };
            usage = chunk.usage.or(usage);
            let Some(choice) = chunk.choices.into_iter().next() else {
                continue;
            };
            // After its reason to finish the model says nothing more; only the usage is to come.
            let Some(turn) = progress.turn.as_mut() else {
                continue;
            };
            let mut events = Vec::new();
            if let Err(error) = turn.push(choice.delta, &mut events) {
                failed = Some(Failure::new(ErrorKind::BadGateway, error.to_string()));
            } else if let Some(reason) = choice.finish_reason.as_deref() {
                let reason = Finish::read(reason);
                finish = Some(reason);
                if let Some(turn) = progress.turn.take() {
                    let (items, last) = turn.finish(reason == Finish::Done);
                    progress.output.extend(items);
                    events.extend(last);
                }
            }
            if !sink.emit(events).await {
                return Err(End::Cancelled);
            }
            if failed.is_some() {
                break;
            }
        }
        if let Some(usage) = usage {
            progress.add(usage);
        }
        match (failed, finish) {
            (Some(failure), _) => Err(End::Failed(failure)),
            (None, Some(finish)) => Ok(finish),
            (None, None) => {
                let layer = self.app.options.upstream_kind.layer();
                let message =
                    format!("{layer} broke off in mid-answer: the stream ended before the model did");
                Err(End::Failed(Failure::new(ErrorKind::BadGateway, message)))
            }
        }
    }

    /// Runs the server's calls of the step that began at item `begun`, all at once. `false` when the
    /// client is gone.
    async fn run_tools(
        &self,
        begun: usize,
        calls_left: &mut u64,
        progress: &mut Progress,
        sink: &mut Sink,
    ) -> bool {
        let mut running = Vec::new();
        for (at, item) in progress.output.iter().enumerate().skip(begun) {
            if let Item::McpCall(call) = item {
                let may = *calls_left > 0;
                *calls_left = calls_left.saturating_sub(1);
                running.push(async move { (at, self.run_tool(may, &call.name, &call.arguments).await) });
            }
        }
        let done = join_all(running).await;
        for (at, result) in done {
            let Item::McpCall(call) = &mut progress.output[at] else {
                continue;
            };
            let kind = match result {
                Ok(output) => {
                    call.status = Status::Completed;
                    call.output = Some(output);
                    "response.mcp_call.completed"
                }
                Err(ToolError(why)) => {
                    call.status = Status::Failed;
                    call.error = Some(CallError::new(&why));
                    "response.mcp_call.failed"
                }
            };
            let ended = Event::server_call(kind, at, &call.id);
            let shown = Event::item_done(at, &progress.output[at]);
            if !sink.emit([ended, shown]).await {
                return false;
            }
        }
        true
    }

    async fn run_tool(&self, may: bool, name: &str, arguments: &str) -> Result<String, ToolError> {
        if !may {
            return Err(ToolError(
                "not run: the limit of tool calls is reached; answer without it".to_owned(),
            ));
        }
        let tool = self.create.tools.kinds.get(name).and_then(|kind| self.app.tools.get(kind));
        let Some(tool) = tool else {
            return Err(ToolError(format!("there is no tool '{name}'")));
        };
        match tokio::time::timeout(TOOL_TIMEOUT, tool.call(arguments)).await {
            Ok(result) => result,
            Err(_) => Err(ToolError(format!("no result within {} s", TOOL_TIMEOUT.as_secs()))),
        }
    }

    /// The chat of step `step`, counted from 0.
    fn chat(
        &self,
        progress: &Progress,
        step: usize,
        tokens_left: Option<u64>,
        may_call_server: bool,
    ) -> ChatRequest {
        let create = self.create;
        let items = self.context.iter().chain(&create.input).chain(&progress.output);
        let mut chat = ChatRequest {
            model: create.model.clone(),
            messages: prompt::messages(create.instructions.as_deref(), items),
            stream: Some(true),
            stream_options: Some(StreamOptions { include_usage: Some(true), continuous_usage_stats: None }),
            max_completion_tokens: tokens_left.and_then(|n| i64::try_from(n).ok()),
            ..ChatRequest::default()
        };
        chat.sampling.temperature = create.temperature;
        chat.sampling.top_p = create.top_p;
        let (tools, choice) = self.tools(step, may_call_server);
        chat.tools = (!tools.is_empty()).then_some(tools);
        chat.tool_choice = choice.filter(|_| chat.tools.is_some());
        if chat.tools.is_some() && !create.parallel_tool_calls {
            chat.extra.insert("parallel_tool_calls".to_owned(), json!(false));
        }
        if self.app.options.upstream_kind == UpstreamKind::Gateway {
            // A gateway keeps limits by these and takes them out; nobody else is to see them.
            for (key, value) in [("user", &create.user), ("safety_identifier", &create.safety_identifier)] {
                if let Some(value) = value {
                    chat.extra.insert(key.to_owned(), json!(value));
                }
            }
        }
        chat
    }

    /// The tools on offer in a step, and the choice among them.
    fn tools(&self, step: usize, may_call_server: bool) -> (Vec<Value>, Option<Value>) {
        let tools = &self.create.tools;
        let all = || tools.functions.iter().chain(&tools.server).cloned().collect();
        let choice = &self.create.tool_choice;
        let none = json!("none");
        if choice.chat == none {
            return (all(), Some(none));
        }
        // A forced call is forced once: after it the model is free to answer.
        let forced = (step == 0 && choice.forces()).then(|| choice.chat.clone());
        if may_call_server || tools.server.is_empty() {
            (all(), forced)
        } else if tools.functions.is_empty() {
            // The same tools as before keep the prompt's beginning, and so its cached prefix.
            (all(), Some(none))
        } else {
            (tools.functions.clone(), forced)
        }
    }
}
