//! A completion as a stream of chunks: the pieces, the end of each answer, the usage.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, stream};
use strata_wire::chat::FinishReason;
use strata_wire::completion::{CompletionChoice, CompletionLogprobs};
use strata_wire::sse;

use super::answer::{self, Meter};
use super::completions::{Head, note_logprob};
use super::echo;
use super::options::Streaming;
use crate::runtime::{Engine, Event, Generation, Piece, StopCause};
use crate::sampling::ScoredToken;

/// The state of one stream.
pub(super) struct CompletionStream {
    head: Head,
    how: Streaming,
    meter: Meter,
    engine: Arc<Engine>,
    generation: Generation,
    answers: Vec<Answer>,
    /// Of each prompt whose log probabilities are echoed: what is known of it so far.
    unscored: Vec<Option<Unscored>>,
    ready: VecDeque<Bytes>,
    ended: bool,
}

#[derive(Default)]
struct Answer {
    chars: usize,
    /// Log probabilities of tokens whose text is still held back.
    logprobs: CompletionLogprobs,
    tokens: Vec<u32>,
}

/// A prompt that is being scored, and what its answers say meanwhile.
#[derive(Default)]
struct Unscored {
    tokens: Vec<ScoredToken>,
    pieces: Vec<Piece>,
}

impl CompletionStream {
    pub(super) fn new(
        head: Head,
        how: Streaming,
        meter: Meter,
        engine: Arc<Engine>,
        generation: Generation,
        begun: Vec<Event>,
    ) -> Self {
        let answers = (0..head.n * head.echoed.len()).map(|_| Answer::default()).collect();
        let scores = head.echoes_logprobs();
        let unscored = head.echoed.iter().map(|_| scores.then(Unscored::default)).collect();
        let ready = VecDeque::new();
        let mut stream =
            Self { head, how, meter, engine, generation, answers, unscored, ready, ended: false };
        for prompt in 0..stream.head.echoed.len() {
            if scores {
                stream.when_scored(prompt);
            } else if !stream.head.echoed[prompt].is_empty() {
                stream.echo(prompt, None);
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
            Event::Scored { prompt, tokens } => {
                if let Some(Some(unscored)) = self.unscored.get_mut(prompt) {
                    unscored.tokens.extend(tokens);
                    self.when_scored(prompt);
                }
            }
            Event::Piece(piece) => match self.unscored.get_mut(piece.choice / self.head.n) {
                // One that is aborted is not scored any further.
                Some(Some(_)) if piece.finish == Some(FinishReason::Abort) => self.piece(piece),
                Some(Some(unscored)) => unscored.pieces.push(piece),
                _ => self.piece(piece),
            },
        }
    }

    /// Echoes a prompt once all of it is scored, and what its answers have said since.
    fn when_scored(&mut self, prompt: usize) {
        let whole = self.head.prompts[prompt].len() - 1;
        let Some(unscored) = self.unscored[prompt].take_if(|unscored| unscored.tokens.len() >= whole) else {
            return;
        };
        let none = CompletionLogprobs::default();
        let logprobs = echo::logprobs(&self.head, prompt, &unscored.tokens, self.engine.tokenizer(), none);
        let chars =
            self.head.prompts[prompt].iter().map(|id| self.engine.tokenizer().text(*id).chars().count());
        let chars = chars.sum();
        for answer in &mut self.answers[prompt * self.head.n..][..self.head.n] {
            answer.chars = chars;
        }
        self.echo(prompt, Some(&logprobs));
        unscored.pieces.into_iter().for_each(|piece| self.piece(piece));
    }

    fn echo(&mut self, prompt: usize, logprobs: Option<&CompletionLogprobs>) {
        for choice in prompt * self.head.n..(prompt + 1) * self.head.n {
            self.send(choice, self.head.echoed[prompt].clone(), logprobs.cloned(), None, None);
        }
    }

    fn piece(&mut self, piece: Piece) {
        let Piece { choice, text, token, finish, stop } = echo::told(&self.head, piece);
        let Some(answer) = self.answers.get_mut(choice) else { return };
        if let Some(token) = &token {
            self.meter.completion += 1;
            let by_id = self.head.tokens.by_id;
            note_logprob(&mut answer.logprobs, token, self.engine.tokenizer(), answer.chars, by_id);
            answer.tokens.extend(self.head.tokens.ids.then_some(token.id));
            answer.chars += self.engine.tokenizer().text(token.id).chars().count();
        }
        if !text.is_empty() {
            let logprobs = self.take_logprobs(choice);
            self.send(choice, text, logprobs, None, None);
        }
        if finish.is_some() {
            let logprobs = self.take_logprobs(choice);
            self.send(choice, String::new(), logprobs, finish, stop);
        }
    }

    fn take_logprobs(&mut self, choice: usize) -> Option<CompletionLogprobs> {
        let logprobs = std::mem::take(&mut self.answers[choice].logprobs);
        (!logprobs.tokens.is_empty()).then_some(logprobs)
    }

    fn send(
        &mut self,
        index: usize,
        text: String,
        logprobs: Option<CompletionLogprobs>,
        finish: Option<FinishReason>,
        stop: Option<StopCause>,
    ) {
        let tokens = std::mem::take(&mut self.answers[index].tokens);
        let choice = CompletionChoice {
            index: index as u32,
            text,
            logprobs,
            finish_reason: finish,
            stop_reason: answer::stop_reason(stop),
            token_ids: (!tokens.is_empty()).then_some(tokens),
            prompt_logprobs: None,
            prompt_token_ids: None,
        };
        let usage = self.how.continuous_usage.then(|| self.meter.usage());
        self.ready.push_back(answer::event(&self.head.response(vec![choice], usage)));
    }

    fn end(&mut self) {
        if self.how.usage {
            let usage = self.head.response(Vec::new(), Some(self.meter.usage()));
            self.ready.push_back(answer::event(&usage));
        }
        self.ready.push_back(sse::data(sse::DONE));
        self.ended = true;
    }
}
