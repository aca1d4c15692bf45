//! One answer in the making: from a row of logits to text, and to its end.

use std::sync::Arc;
use std::time::Instant;

use strata_wire::chat::FinishReason;

use super::generation::{OutputRules, Piece, PieceToken};
use crate::sampling::{Sampler, SamplingError, StopMatcher};
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
    pub(super) fn new(place: Place, sampler: Sampler, rules: Arc<OutputRules>, ends: Arc<[u32]>) -> Self {
        Self {
            key: place.key,
            index: place.index,
            prompt_tokens: place.prompt_tokens,
            generated: 0,
            times: Times { arrived: place.arrived, scheduled: None, first_token: None, last_token: None },
            sampler,
            detokenizer: Detokenizer::new(!rules.keep_special),
            stops: StopMatcher::new(rules.stop.iter().cloned()),
            rules,
            ends,
        }
    }

    /// Chooses the next token and says what of the answer it makes certain.
    pub(super) fn advance(
        &mut self,
        logits: &[f32],
        tokenizer: &Tokenizer,
    ) -> Result<(u32, Piece), SamplingError> {
        let may_end = self.generated >= self.rules.min_tokens;
        let sampled = self.sampler.sample(logits, if may_end { &[] } else { &self.ends })?;
        self.generated += 1;
        let (mut text, mut finish) = (String::new(), None);
        if self.ends.contains(&sampled.token) {
            finish = Some(FinishReason::Stop);
        } else {
            let more = self.detokenizer.push(tokenizer, sampled.token);
            finish = self.say(&more, &mut text).or(finish);
            if finish.is_none() && self.generated >= self.rules.max_tokens {
                finish = Some(FinishReason::Length);
            }
        }
        if finish.is_some() {
            let stopped = self.close(&mut text);
            // A cut character at the very end can complete a stop text only by coincidence; it ends
            // the text all the same.
            finish = stopped.or(finish);
        }
        let token = PieceToken { id: sampled.token, logprobs: sampled.logprobs };
        Ok((sampled.token, Piece { choice: self.index, text, token: Some(token), finish }))
    }

    /// The last piece of an answer that is ended from outside.
    pub(super) fn abort(&mut self) -> Piece {
        let mut text = String::new();
        self.close(&mut text);
        Piece { choice: self.index, text, token: None, finish: Some(FinishReason::Abort) }
    }

    fn say(&mut self, more: &str, text: &mut String) -> Option<FinishReason> {
        if self.generated < self.rules.min_tokens {
            text.push_str(more);
            return None;
        }
        let got = self.stops.push(more);
        text.push_str(&got.text);
        got.stop.map(|_| {
            // What follows the stop text is dropped, and so is a character begun after it.
            self.detokenizer = Detokenizer::new(true);
            FinishReason::Stop
        })
    }

    fn close(&mut self, text: &mut String) -> Option<FinishReason> {
        let rest = self.detokenizer.flush();
        let stopped = if rest.is_empty() { None } else { self.say(&rest, text) };
        text.push_str(&self.stops.flush());
        stopped
    }
}
