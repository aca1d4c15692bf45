//! A request to the engine, and the stream of what it generates.

use std::sync::Arc;

use strata_trace::ActiveSpan;
use strata_wire::chat::FinishReason;
use tokio::sync::mpsc;

use super::drive::Command;
use super::structured::Structure;
use crate::events::Claim;
use crate::lora::Adapter;
use crate::sampling::{SamplingParams, ScoredToken, TokenLogprobs};

/// One request: some prompts, some answers to each.
#[derive(Clone, Debug)]
pub struct GenerationRequest {
    /// The minted request id; aborting goes by it.
    pub id: String,
    /// The prompts; each not empty and shorter than the model's context.
    pub prompts: Vec<Vec<u32>>,
    /// Answers to each prompt.
    pub n: usize,
    /// How to choose tokens.
    pub sampling: SamplingParams,
    /// When an answer ends and what of it is text.
    pub rules: OutputRules,
    /// What each answer must be.
    pub structure: Option<Structure>,
    /// What the first prompt is known by to a router; empty when that is not known.
    pub claims: Vec<Claim>,
    /// Whether what is computed of the prompt is kept for another engine, under the request's id.
    pub keeps: bool,
    /// Scope inside which prefixes are shared.
    pub cache_salt: Option<String>,
    /// Lower runs first.
    pub priority: i64,
    /// The adapter that all of it runs with.
    pub adapter: Option<Arc<Adapter>>,
    /// Ended with what became of the request, when it is over.
    pub span: Option<ActiveSpan>,
}

/// When an answer ends and what of it is text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputRules {
    /// Tokens to generate at most; at least one.
    pub max_tokens: usize,
    /// Tokens to generate before the answer may end by itself.
    pub min_tokens: usize,
    /// Whether the model's end-of-sequence tokens are tokens like others.
    pub ignore_eos: bool,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Whether such a text is part of the answer.
    pub include_stop: bool,
    /// Tokens that end the answer, beside the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Whether special tokens stay in the text.
    pub keep_special: bool,
    /// Special tokens that stay in the text in any case: they mark its parts.
    pub marks: Arc<[u32]>,
}

/// What the engine says about a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A prompt's first sequence left the queue.
    Admitted {
        /// Which prompt.
        prompt: usize,
        /// Tokens of it that the prefix cache had.
        cached_tokens: usize,
    },
    /// More tokens of a prompt, from its second on, and how likely each was.
    Scored {
        /// Which prompt.
        prompt: usize,
        /// The tokens, in order.
        tokens: Vec<ScoredToken>,
    },
    /// More of an answer.
    Piece(Piece),
    /// The request failed; nothing follows.
    Failed(Failure),
}

/// More of one answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Which answer: `prompt · n + i`.
    pub choice: usize,
    /// Text that became certain; often empty, when it is held back for a stop text.
    pub text: String,
    /// The token that was generated; absent when the answer was aborted, or is whole without one.
    pub token: Option<PieceToken>,
    /// Why the answer ended, in its last piece.
    pub finish: Option<FinishReason>,
    /// What of the request's own stops ended it; absent when the model ended it.
    pub stop: Option<StopCause>,
}

/// A stop of the request that was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// A stop text.
    Text(String),
    /// A stop token.
    Token(u32),
}

/// A generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct PieceToken {
    /// Its id.
    pub id: u32,
    /// Its log probabilities, when asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// Why a request failed after it was accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// One sentence for the client.
    pub message: Arc<str>,
    /// Whose fault it is.
    pub blame: Blame,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The engine's: the same request may go well elsewhere.
    Engine,
    /// The request's own: what it asks for leads nowhere.
    Request,
}

/// A request that the engine works on. Dropping it aborts what has not finished.
#[derive(Debug)]
pub struct Generation {
    pub(super) key: u64,
    pub(super) open: usize,
    pub(super) events: mpsc::UnboundedReceiver<Event>,
    pub(super) commands: mpsc::UnboundedSender<Command>,
}

impl Generation {
    /// The next event; `None` after the last answer's last piece. The channel is not bounded, but
    /// what goes through it is: by the number of answers and their token limits.
    pub async fn next(&mut self) -> Option<Event> {
        if self.open == 0 {
            return None;
        }
        let event = self.events.recv().await.unwrap_or_else(|| {
            let message = "the engine stopped while it worked on this request".into();
            Event::Failed(Failure { message, blame: Blame::Engine })
        });
        match &event {
            Event::Piece(Piece { finish: Some(_), .. }) => self.open -= 1,
            Event::Failed(_) => self.open = 0,
            _ => {}
        }
        Some(event)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.open > 0 {
            // The engine may be gone already; then there is nothing to abort.
            let _ = self.commands.send(Command::Abandon(self.key));
        }
    }
}
