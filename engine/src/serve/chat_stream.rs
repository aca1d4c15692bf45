//! A chat answer as a stream of chunks, in OpenAI's order: the role, the pieces, the end, the usage.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, stream};
use strata_wire::chat::{
    ChatChunk, ChoiceLogprobs, ChunkChoice, Delta, FinishReason, FunctionDelta, TokenLogprob, ToolCallDelta,
};
use strata_wire::{Usage, sse};

use super::answer::{self, Meter};
use super::chat::{Head, call_id};
use super::next_turn::NextTurn;
use super::options::Streaming;
use super::speech::{Growing, Said};
use crate::runtime::{Engine, Event, Generation, Piece, StopCause};

/// The state of one stream.
pub(super) struct ChatStream {
    head: Head,
    how: Streaming,
    meter: Meter,
    engine: Arc<Engine>,
    generation: Generation,
    answers: Vec<Answer>,
    next: Option<NextTurn>,
    ready: VecDeque<Bytes>,
    ended: bool,
}

struct Answer {
    growing: Growing,
    /// Log probabilities of tokens whose text is still held back.
    logprobs: Vec<TokenLogprob>,
    tokens: Vec<u32>,
}

impl ChatStream {
    pub(super) fn new(
        head: Head,
        how: Streaming,
        meter: Meter,
        engine: Arc<Engine>,
        generation: Generation,
        begun: Vec<Event>,
        next: Option<NextTurn>,
    ) -> Self {
        let answers = (0..head.n)
            .map(|_| Answer { growing: Growing::new(head.speech), logprobs: Vec::new(), tokens: Vec::new() })
            .collect();
        let mut stream = Self {
            head,
            how,
            meter,
            engine,
            generation,
            answers,
            next,
            ready: VecDeque::new(),
            ended: false,
        };
        for index in 0..stream.head.n {
            let role = Some(stream.head.role.clone());
            let begins = Delta { role, content: Some(String::new()), ..Delta::default() };
            stream.send(index, begins, None, None, None);
        }
        if !stream.head.echoed.is_empty() {
            for index in 0..stream.head.n {
                let content = Some(stream.head.echoed.clone());
                stream.send(index, Delta { content, ..Delta::default() }, None, None, None);
            }
        }
        for event in begun {
            stream.take(event);
        }
        stream
    }

    /// The stream's events.
    pub(super) fn events(self) -> impl Stream<Item = Bytes> + Send + 'static {
        stream::unfold(self, |mut state| async move {
            loop {
                if let Some(bytes) = state.ready.pop_front() {
                    return Some((bytes, state));
                }
                if state.ended {
                    return None;
                }
                match state.generation.next().await {
                    Some(event) => state.take(event),
                    None => state.end(),
                }
            }
        })
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Failed(failure) => {
                self.ready.push_back(answer::failed(&failure));
                self.ended = true;
            }
            Event::Admitted { cached_tokens, .. } => self.meter.cached += cached_tokens,
            Event::Scored { .. } => {}
            Event::Piece(piece) => self.piece(piece),
        }
    }

    fn piece(&mut self, piece: Piece) {
        let Piece { choice, text, token, finish, stop } = piece;
        let Some(answer) = self.answers.get_mut(choice) else { return };
        if let Some(token) = &token {
            self.meter.completion += 1;
            let by_id = self.head.tokens.by_id;
            answer.logprobs.extend(answer::token_logprob(token, self.engine.tokenizer(), by_id));
            answer.tokens.extend(self.head.tokens.ids.then_some(token.id));
        }
        let first_call = answer.growing.calls;
        let outputs = answer.growing.push(&text, finish.is_some());
        let reason = finish.map(|reason| answer.growing.finish(reason));
        let mut calls = first_call as u32;
        for output in outputs {
            if let Some(next) = &mut self.next {
                next.hear(&output);
            }
            let logprobs = self.take_logprobs(choice);
            let call = |index: u32, id: Option<String>, function: FunctionDelta| {
                let kind = id.is_some().then(|| "function".to_owned());
                let delta = ToolCallDelta { index, id, kind, function };
                Delta { tool_calls: Some(vec![delta]), ..Delta::default() }
            };
            let delta = match output {
                Said::Reasoning(text) => {
                    Delta { reasoning: Some(text.clone()), reasoning_content: Some(text), ..Delta::default() }
                }
                Said::Text(text) => Delta { content: Some(text), ..Delta::default() },
                Said::Call(name) => {
                    calls += 1;
                    let function = FunctionDelta { name: Some(name), arguments: Some(String::new()) };
                    call(calls - 1, Some(call_id()), function)
                }
                Said::Arguments(more) => {
                    let function = FunctionDelta { name: None, arguments: Some(more) };
                    call(calls.saturating_sub(1), None, function)
                }
            };
            self.send(choice, delta, logprobs, None, None);
        }
        if reason.is_some() {
            if let Some(next) = self.next.take() {
                next.tell();
            }
            let logprobs = self.take_logprobs(choice);
            self.send(choice, Delta::default(), logprobs, reason, stop);
        }
    }

    fn take_logprobs(&mut self, choice: usize) -> Option<ChoiceLogprobs> {
        let logprobs = std::mem::take(&mut self.answers[choice].logprobs);
        (!logprobs.is_empty()).then_some(ChoiceLogprobs { content: Some(logprobs) })
    }

    fn send(
        &mut self,
        index: usize,
        delta: Delta,
        logprobs: Option<ChoiceLogprobs>,
        finish: Option<FinishReason>,
        stop: Option<StopCause>,
    ) {
        let tokens = std::mem::take(&mut self.answers[index].tokens);
        let choice = ChunkChoice {
            index: index as u32,
            delta,
            logprobs,
            finish_reason: finish,
            stop_reason: answer::stop_reason(stop),
            token_ids: (!tokens.is_empty()).then_some(tokens),
        };
        let usage = self.how.continuous_usage.then(|| self.meter.usage());
        self.chunk(vec![choice], usage);
    }

    fn chunk(&mut self, choices: Vec<ChunkChoice>, usage: Option<Usage>) {
        let chunk = ChatChunk {
            id: self.head.id.clone(),
            object: "chat.completion.chunk".into(),
            created: self.head.created,
            model: self.head.model.clone(),
            choices,
            usage,
        };
        self.ready.push_back(answer::event(&chunk));
    }

    fn end(&mut self) {
        if self.how.usage {
            self.chunk(Vec::new(), Some(self.meter.usage()));
        }
        self.ready.push_back(sse::data(sse::DONE));
        self.ended = true;
    }
}
