//! One answer in the making: from a row of logits to text, and to its end.

use std::sync::Arc;
use std::time::Instant;

use strata_wire::chat::FinishReason;

use super::generation::{Blame, OutputRules, Piece, PieceToken, StopCause};
use super::score::PromptScore;
use super::structured::{Structure, Structured, Turn};
use crate::grammar::DeadEnd;
use crate::sampling::{Allowed, Sampler, SamplingError, StopMatcher};
use crate::tokenizer::{Detokenizer, Tokenizer};

/// An answer's state between steps.
#[derive(Debug)]
pub(super) struct Choice {
    /// The request that it belongs to.
    pub(super) key: u64,
    /// Its place in the request.
    pub(super) index: usize,
    pub(super) prompt_tokens: usize,
    pub(super) generated: usize,
    pub(super) times: Times,
    sampler: Sampler,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    rules: Arc<OutputRules>,
    /// Tokens that end the answer.
    ends: Arc<[u32]>,
    structured: Option<Structured>,
    /// Of its prompt, when that is wanted from this answer.
    pub(super) score: Option<PromptScore>,
}

/// Why an answer cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AdvanceError {
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    #[error(transparent)]
    DeadEnd(#[from] DeadEnd),
}

impl AdvanceError {
    /// Whose fault it is.
    pub(super) fn blame(&self) -> Blame {
        match self {
            Self::Sampling(SamplingError::NothingAllowed) | Self::DeadEnd(DeadEnd::Reached(_)) => {
                Blame::Request
            }
            Self::Sampling(SamplingError::NoFiniteLogit) | Self::DeadEnd(DeadEnd::Lost) => Blame::Engine,
        }
    }
}

/// When things happened to an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) arrived: Instant,
    pub(super) scheduled: Option<Instant>,
    pub(super) first_token: Option<Instant>,
    pub(super) last_token: Option<Instant>,
}

/// Where an answer belongs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) key: u64,
    pub(super) index: usize,
    pub(super) prompt_tokens: usize,
    pub(super) arrived: Instant,
}

impl Choice {
    pub(super) fn new(
        place: Place,
        sampler: Sampler,
        rules: Arc<OutputRules>,
        ends: Arc<[u32]>,
        structure: Option<&Structure>,
    ) -> Self {
        Self {
            key: place.key,
            index: place.index,
            prompt_tokens: place.prompt_tokens,
            generated: 0,
            times: Times { arrived: place.arrived, scheduled: None, first_token: None, last_token: None },
            sampler,
            detokenizer: Detokenizer::keeping(!rules.keep_special, rules.marks.clone()),
            stops: StopMatcher::new(rules.stop.iter().cloned()),
            rules,
            ends,
            structured: structure.map(Structured::new),
            score: None,
        }
    }

    /// Chooses the next token and says what of the answer it makes certain.
    pub(super) fn advance(&mut self, logits: &[f32], tokenizer: &Tokenizer) -> Result<Piece, AdvanceError> {
        let banned: &[u32] = if self.generated >= self.rules.min_tokens { &[] } else { &self.ends };
        let mut opening = Vec::new();
        let allowed = match self.structured.as_mut().map(Structured::turn).transpose()? {
            None => Allowed { banned, ..Allowed::default() },
            // The answer is still to come.
            Some(Turn::Free) => Allowed { banned: &self.ends, ..Allowed::default() },
            Some(Turn::Bound(next, _))
                if next.may_end && next.mask.is_empty() && banned.len() == self.ends.len() =>
            {
                return Ok(self.end());
            }
            Some(Turn::Bound(next, open)) => {
                opening.extend(open);
                if next.may_end {
                    opening.extend_from_slice(&self.ends);
                }
                Allowed { banned, mask: Some(&next.mask), beside: &opening }
            }
        };
        let sampled = self.sampler.sample(logits, allowed)?;
        self.generated += 1;
        let (mut text, mut finish, mut stop) = (String::new(), None, None);
        if self.ends.contains(&sampled.token) {
            finish = Some(FinishReason::Stop);
            if !tokenizer.special().eos.contains(&sampled.token) {
                stop = Some(StopCause::Token(sampled.token));
            }
        } else {
            let whole = match &mut self.structured {
                Some(structured) => structured.push(sampled.token, tokenizer.bytes(sampled.token))?,
                None => false,
            };
            let more = self.detokenizer.push(tokenizer, sampled.token);
            stop = self.say(&more, &mut text);
            if stop.is_some() || whole {
                finish = Some(FinishReason::Stop);
            } else if self.generated >= self.rules.max_tokens {
                finish = Some(FinishReason::Length);
            }
        }
        if finish.is_some() {
            // A cut character at the very end can complete a stop text only by coincidence; it ends
            // the text all the same.
            if let Some(stopped) = self.close(&mut text) {
                (finish, stop) = (Some(FinishReason::Stop), Some(stopped));
            }
        }
        let token = PieceToken { id: sampled.token, logprobs: sampled.logprobs };
        Ok(Piece { choice: self.index, text, token: Some(token), finish, stop })
    }

    /// The last piece of an answer that is whole as it is.
    fn end(&mut self) -> Piece {
        let mut text = String::new();
        let stop = self.close(&mut text);
        Piece { choice: self.index, text, token: None, finish: Some(FinishReason::Stop), stop }
    }

    /// What it would probably choose from these logits, so many tokens ahead.
    pub(super) fn guess(&self, logits: &[f32], ahead: usize) -> Option<u32> {
        self.sampler.guess(logits, ahead)
    }

    /// Tokens that it may still generate.
    pub(super) fn room(&self) -> usize {
        self.rules.max_tokens.saturating_sub(self.generated)
    }

    /// The last piece of an answer that is ended from outside.
    pub(super) fn abort(&mut self) -> Piece {
        let mut text = String::new();
        self.close(&mut text);
        Piece { choice: self.index, text, token: None, finish: Some(FinishReason::Abort), stop: None }
    }

    fn say(&mut self, more: &str, text: &mut String) -> Option<StopCause> {
        if self.generated < self.rules.min_tokens {
            text.push_str(more);
            return None;
        }
        let got = self.stops.push(more);
        text.push_str(&got.text);
        got.stop.map(|stop| {
            if self.rules.include_stop {
                text.push_str(&stop);
            }
            // What follows the stop text is dropped, and so is a character begun after it.
            self.detokenizer = Detokenizer::new(true);
            StopCause::Text(stop)
        })
    }

    fn close(&mut self, text: &mut String) -> Option<StopCause> {
        let rest = self.detokenizer.flush();
        let stopped = if rest.is_empty() { None } else { self.say(&rest, text) };
        text.push_str(&self.stops.flush());
        stopped
    }
}
