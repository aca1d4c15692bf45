//! An answer that must follow a grammar, from its beginning or from the end of its reasoning on.

use std::sync::Arc;

use crate::grammar::{Compiled, DeadEnd, Next, Walk};

/// What an answer must be.
#[derive(Clone, Debug)]
pub struct Structure {
    /// Its grammar.
    pub grammar: Arc<Compiled>,
    /// The reasoning that may stand before it, and is free.
    pub thinking: Option<Thinking>,
}

/// How reasoning before an answer is marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thinking {
    /// The text that ends it; not empty.
    pub close: Arc<str>,
    /// The token that begins it; `None` when the prompt has begun it already.
    pub open: Option<u32>,
}

/// Follows one answer.
#[derive(Debug)]
pub(super) struct Structured {
    walk: Walk,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// The first token may begin the reasoning or the answer.
    Beginning {
        open: u32,
        close: Arc<str>,
    },
    /// In the reasoning; the bytes that could begin its end.
    Thinking {
        close: Arc<str>,
        tail: Vec<u8>,
    },
    Answering,
}

/// What may come next.
#[derive(Debug)]
pub(super) enum Turn<'a> {
    /// Anything but an end.
    Free,
    /// What the grammar says, or the token that begins the reasoning.
    Bound(&'a Next, Option<u32>),
}

impl Structured {
    pub(super) fn new(structure: &Structure) -> Self {
        let phase = match structure.thinking.clone() {
            None => Phase::Answering,
            Some(Thinking { close, open: Some(open) }) => Phase::Beginning { open, close },
            Some(Thinking { close, open: None }) => Phase::Thinking { close, tail: Vec::new() },
        };
        Self { walk: Walk::begin(structure.grammar.clone()), phase }
    }

    pub(super) fn turn(&mut self) -> Result<Turn<'_>, DeadEnd> {
        let open = match self.phase {
            Phase::Thinking { .. } => return Ok(Turn::Free),
            Phase::Beginning { open, .. } => Some(open),
            Phase::Answering => None,
        };
        Ok(Turn::Bound(self.walk.allowed()?, open))
    }

    /// Takes the token that was chosen, which stands for these bytes. Returns whether the answer is
    /// whole.
    pub(super) fn push(&mut self, token: u32, bytes: &[u8]) -> Result<bool, DeadEnd> {
        match &mut self.phase {
            Phase::Answering => self.walk.push(token),
            Phase::Beginning { open, close } if *open == token => {
                self.phase = Phase::Thinking { close: close.clone(), tail: Vec::new() };
                Ok(false)
            }
            Phase::Beginning { .. } => {
                self.phase = Phase::Answering;
                self.walk.push(token)
            }
            Phase::Thinking { close, tail } => {
                tail.extend_from_slice(bytes);
                let mark = close.as_bytes();
                let Some(at) = tail.windows(mark.len()).position(|window| window == mark) else {
                    let kept = tail.len().min(mark.len() - 1);
                    tail.drain(..tail.len() - kept);
                    return Ok(false);
                };
                // A token can hold the end of the reasoning and the beginning of the answer.
                let rest = tail[at + mark.len()..].trim_ascii_start().to_vec();
                self.phase = Phase::Answering;
                self.walk.push_bytes(&rest)
            }
        }
    }
}
