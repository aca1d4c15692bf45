//! Speculative decoding: tokens are guessed, and one forward pass of the model says how many of the
//! guesses were right (Leviathan et al. 2023, Chen et al. 2023).
//!
//! A guess is accepted when it is the token that the model's own sampling takes at that place, with
//! the random number that belongs to the place. So answers are the same, token for token, as without
//! guesses, whatever the temperature, the penalties or the seed, and whether or not other requests
//! leave room for guessing: a rule that draws another random number to accept or reject keeps the
//! distribution, too, but then a seed's answer would change with the load.

mod config;
mod draft_model;
mod ngram;
mod worth;

use std::collections::HashMap;

pub use config::SpeculativeConfig;

use self::worth::{Acceptance, Setting};
use super::choice::Choice;
use crate::backend::{Backend, BackendError};
use crate::step::{Planner, SequenceId};
use crate::telemetry::Metrics;

/// What a drafter is asked about one sequence.
struct Ask<'a> {
    id: SequenceId,
    tokens: &'a [u32],
    /// Guesses that are wanted at most.
    count: usize,
    choice: &'a Choice,
}

impl Ask<'_> {
    /// What the sequence's sampling would take from these logits, so many places ahead.
    fn guess(&self, logits: &[f32], ahead: usize) -> Option<u32> {
        self.choice.guess(logits, ahead)
    }
}

/// Guesses tokens.
trait Drafter: Send {
    /// Whether asking costs next to nothing.
    fn is_free(&self) -> bool;
    /// Appends to each ask's drafts at most as many guesses as are wanted.
    fn draft(&mut self, asks: &[Ask<'_>], drafts: &mut [Vec<u32>]);
    /// A sequence ended.
    fn forget(&mut self, id: SequenceId);
    /// What `count` guesses for each of so many sequences cost.
    fn seconds(&self, sequences: usize, count: usize) -> f64;
    /// Gives memory back that is empty.
    fn sleep(&mut self) {}
    /// Takes it again.
    fn wake(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
}

/// Guesses for all sequences of an engine.
pub struct Speculation {
    drafter: Box<dyn Drafter>,
    tokens: usize,
    adaptive: bool,
    longest: usize,
    steps: u64,
    acceptance: HashMap<SequenceId, Acceptance>,
    drafts: Vec<Vec<u32>>,
}

impl std::fmt::Debug for Speculation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Speculation").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

impl Speculation {
    /// Guesses as this says; with a draft model, on this backend.
    pub fn new(config: &SpeculativeConfig, draft: Option<Box<dyn Backend>>) -> Result<Self, String> {
        config.check()?;
        let drafter: Box<dyn Drafter> = match (config, draft) {
            (SpeculativeConfig::Ngram { prompt_lookup_max, prompt_lookup_min, .. }, _) => {
                Box::new(ngram::Ngram { longest: *prompt_lookup_max, shortest: *prompt_lookup_min })
            }
            (SpeculativeConfig::DraftModel { .. }, Some(backend)) => {
                Box::new(draft_model::DraftModel::new(backend))
            }
            (SpeculativeConfig::DraftModel { model, .. }, None) => {
                return Err(format!("the draft model {model} was not opened"));
            }
        };
        Ok(Self {
            drafter,
            tokens: config.tokens(),
            adaptive: config.is_adaptive(),
            longest: usize::MAX,
            steps: 0,
            acceptance: HashMap::new(),
            drafts: Vec::new(),
        })
    }

    /// Guesses never go beyond this many tokens of a sequence.
    pub(super) fn within(mut self, longest: usize) -> Self {
        self.longest = longest;
        self
    }

    /// Makes guesses for the next step, for as many sequences and as far ahead as pays.
    pub(super) fn propose(&mut self, planner: &mut Planner, choices: &HashMap<SequenceId, Choice>) {
        self.steps += 1;
        let decoding: Vec<(SequenceId, &[u32], &Choice)> =
            planner.decoding().filter_map(|(id, tokens)| Some((id, tokens, choices.get(&id)?))).collect();
        if decoding.is_empty() {
            return;
        }
        let drafter = &mut self.drafter;
        let mut setting = Setting {
            cost: planner.cost(),
            adaptive: self.adaptive,
            step: self.steps,
            decodes: decoding.len(),
            guessing: decoding.len(),
        };
        let mut asks: Vec<Ask<'_>> = Vec::with_capacity(decoding.len());
        for (id, tokens, choice) in decoding {
            let room = choice.room().min(self.longest.saturating_sub(tokens.len()));
            // One token comes without a guess.
            let most = self.tokens.min(room.saturating_sub(1));
            let acceptance = *self.acceptance.entry(id).or_default();
            let count = if drafter.is_free() {
                most
            } else {
                setting.depth(acceptance, most, |count| drafter.seconds(setting.decodes, count))
            };
            asks.push(Ask { id, tokens, count, choice });
        }
        self.drafts.resize_with(self.drafts.len().max(asks.len()), Vec::new);
        self.drafts.iter_mut().for_each(Vec::clear);
        drafter.draft(&asks, &mut self.drafts[..asks.len()]);
        if drafter.is_free() {
            setting.guessing = self.drafts.iter().filter(|drafts| !drafts.is_empty()).count();
            for (ask, drafts) in asks.iter().zip(&mut self.drafts) {
                let acceptance = *self.acceptance.entry(ask.id).or_default();
                drafts.truncate(setting.depth(acceptance, drafts.len(), |_| 0.0));
            }
        }
        let ids: Vec<SequenceId> = asks.iter().map(|ask| ask.id).collect();
        for (id, drafts) in ids.into_iter().zip(&self.drafts) {
            if drafts.is_empty() {
                self.acceptance.entry(id).or_default().rest();
            } else {
                planner.propose(id, drafts);
            }
        }
    }

    /// Of a sequence's `drafted` guesses the first `accepted` came true.
    pub(super) fn note(&mut self, id: SequenceId, drafted: usize, accepted: usize, metrics: &Metrics) {
        // Absent when the last of them ended the answer.
        if let Some(acceptance) = self.acceptance.get_mut(&id) {
            acceptance.note(drafted, accepted);
        }
        metrics.speculation.count(drafted, accepted);
    }

    /// Gives the draft model's KV cache back; no sequence is left.
    pub(super) fn sleep(&mut self) {
        self.drafter.sleep();
    }

    /// Takes it again.
    pub(super) fn wake(&mut self) -> Result<(), BackendError> {
        self.drafter.wake()
    }

    /// A sequence ended.
    pub(super) fn forget(&mut self, id: SequenceId) {
        self.acceptance.remove(&id);
        self.drafter.forget(id);
    }
}
