//! One answer's way through its grammar.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use llguidance::Matcher;

use super::compile::{Compiled, brief};
use crate::sampling::TokenMask;

/// What may come next.
#[derive(Clone, Debug)]
pub struct Next {
    /// The tokens of the grammar.
    pub mask: TokenMask,
    /// Whether the answer may end here.
    pub may_end: bool,
}

/// Why an answer cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeadEnd {
    /// The grammar leads nowhere from here, or further than it may.
    #[error("the structured output cannot go on: {0}")]
    Reached(String),
    /// What follows the grammar failed.
    #[error("the structured output cannot go on: its computation failed; this is a defect")]
    Lost,
}

/// Where the matcher is: here, or away on a thread that computes the next mask.
enum Place {
    Here(Box<Matcher>),
    Away(Receiver<(Box<Matcher>, Result<Next, String>)>),
    Known(Box<Matcher>, Next),
    Lost,
}

/// Follows one answer through a grammar.
pub struct Walk {
    compiled: Arc<Compiled>,
    place: Place,
}

impl std::fmt::Debug for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk").finish_non_exhaustive()
    }
}

impl Walk {
    /// At the grammar's beginning. The first mask is computed at once, on a thread of its own.
    pub fn begin(compiled: Arc<Compiled>) -> Self {
        let mut walk = Self { place: Place::Here(Box::new(compiled.matcher())), compiled };
        walk.look_ahead();
        walk
    }

    /// What may come now. Waits for the mask when it is still being computed.
    pub fn allowed(&mut self) -> Result<&Next, DeadEnd> {
        self.look_ahead();
        if let Place::Away(away) = &self.place {
            let (matcher, next) = away.recv().map_err(|_| DeadEnd::Lost)?;
            match next {
                Ok(next) => self.place = Place::Known(matcher, next),
                Err(message) => return Err(self.fail(&message)),
            }
        }
        match &self.place {
            Place::Known(_, next) => Ok(next),
            _ => Err(DeadEnd::Lost),
        }
    }

    /// Goes on by a token that [`Walk::allowed`] allowed. Returns whether the answer is whole, so that
    /// nothing can follow; otherwise the next mask is begun.
    pub fn push(&mut self, token: u32) -> Result<bool, DeadEnd> {
        self.consume(|_| vec![token])
    }

    /// Goes on by a text that was not chosen as tokens of its own.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> Result<bool, DeadEnd> {
        self.consume(|matcher| {
            matcher.tok_env().map(|env| env.tok_trie().greedy_tokenize(bytes)).unwrap_or_default()
        })
    }

    fn consume(&mut self, tokens: impl FnOnce(&Matcher) -> Vec<u32>) -> Result<bool, DeadEnd> {
        self.allowed()?;
        let Place::Known(mut matcher, _) = std::mem::replace(&mut self.place, Place::Lost) else {
            return Err(DeadEnd::Lost);
        };
        let tokens = tokens(&matcher);
        if let Err(error) = matcher.consume_tokens(&tokens) {
            return Err(self.fail(&brief(&error.to_string())));
        }
        let whole = matcher.is_stopped();
        self.place = Place::Here(matcher);
        if !whole {
            self.look_ahead();
        }
        Ok(whole)
    }

    fn look_ahead(&mut self) {
        let mut matcher = match std::mem::replace(&mut self.place, Place::Lost) {
            Place::Here(matcher) => matcher,
            other => {
                self.place = other;
                return;
            }
        };
        let (done, away) = channel();
        self.compiled.threads().spawn(move || {
            let next = look(&mut matcher);
            // Nobody waits when the request has ended.
            let _ = done.send((matcher, next));
        });
        self.place = Place::Away(away);
    }

    fn fail(&mut self, message: &str) -> DeadEnd {
        self.compiled.spoil();
        self.place = Place::Lost;
        DeadEnd::Reached(message.to_owned())
    }
}

fn look(matcher: &mut Matcher) -> Result<Next, String> {
    let may_end = matcher.is_accepting().map_err(|e| brief(&e.to_string()))?;
    match matcher.compute_mask() {
        Ok(mask) => Ok(Next { mask: TokenMask::from_words(mask.into()), may_end }),
        // Nothing can follow, and nothing has to.
        Err(_) if may_end => Ok(Next { mask: TokenMask::default(), may_end }),
        Err(error) => Err(brief(&error.to_string())),
    }
}
