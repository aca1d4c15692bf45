//! Running a step that was planned, and handing out what it says.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use strata_wire::chat::FinishReason;

use super::Driver;
use crate::backend::{BackendError, Logits, SequenceSpan};
use crate::runtime::generation::Event;
use crate::step::{Part, Plan, SequenceId};

/// Numbers of a step's logits up to which their memory is kept for the next one: a prompt that is scored
/// has a row for each token.
const KEPT_LOGITS: usize = 16 << 20;

impl Driver {
    pub(super) fn run_plan(&mut self, plan: &Plan) {
        let begun = Instant::now();
        self.note_plan(plan, begun);
        self.publish();
        if plan.parts.is_empty() {
            // Something waits and nothing fits: cannot be, and must not become an endless loop.
            tracing::error!(state = ?self.planner.state(), "no step could be planned");
            let keys: Vec<u64> = self.requests.keys().copied().collect();
            for key in keys {
                self.fail(key, "the engine could not plan this request; this is a defect, please report it");
            }
            return;
        }
        self.watch.begin(plan.batch.tokens.len(), begun);
        let mut logits = std::mem::take(&mut self.logits);
        if let Err(error) = self.forward(plan, &mut logits) {
            tracing::error!(%error, sequences = plan.parts.len(), "a step failed");
            let message = format!("the model could not be run for this request: {error}");
            let keys: Vec<u64> =
                plan.parts.iter().filter_map(|p| Some(self.choices.get(&p.id)?.key)).collect();
            for key in keys {
                self.fail(key, &message);
            }
        } else {
            self.accept(plan, &logits, begun);
        }
        if logits.data.capacity() <= KEPT_LOGITS {
            self.logits = logits;
        }
    }

    /// Hands out what a step that has run says.
    fn accept(&mut self, plan: &Plan, logits: &Logits, begun: Instant) {
        self.planner.advance(plan);
        let now = Instant::now();
        let seconds = (now - begun).as_secs_f64();
        self.planner.observe(plan, seconds);
        self.note_prefill(plan, seconds);
        let mut rows = 0;
        for (part, span) in plan.parts.iter().zip(&plan.batch.spans) {
            self.note_scores(part.id, span, |row| logits.row(rows + row));
            if part.samples {
                let drafts = &plan.batch.tokens[span.start + span.len - part.drafted..][..part.drafted];
                self.verify(*part, drafts, logits, rows + span.logits.count() - 1 - part.drafted, now);
            }
            rows += span.logits.count();
        }
        self.blocks.follow(&mut self.planner, self.backend.as_ref());
    }

    /// Sends what a step says of a prompt's tokens.
    fn note_scores<'a>(&mut self, id: SequenceId, span: &SequenceSpan, row: impl Fn(usize) -> &'a [f32]) {
        let Some(choice) = self.choices.get_mut(&id) else { return };
        let Some(score) = &mut choice.score else { return };
        let tokens = score.advance(span, row);
        if let Some(open) = self.requests.get(&choice.key)
            && !tokens.is_empty()
        {
            let _ = open.events.send(Event::Scored { prompt: choice.index / open.n, tokens });
        }
    }

    /// One forward pass. A panic in a backend is its failure, not the end of the engine.
    fn forward(&mut self, plan: &Plan, logits: &mut Logits) -> Result<(), BackendError> {
        let name = self.backend.info().name;
        let backend = &mut self.backend;
        logits.data.clear();
        catch_unwind(AssertUnwindSafe(|| backend.forward_into(&plan.batch, &mut *logits))).unwrap_or_else(
            |_| Err(BackendError::Device { backend: name, message: "it panicked; see the log".into() }),
        )?;
        let rows = plan.batch.logit_rows();
        if logits.data.len() == rows * logits.vocab && (rows == 0 || logits.vocab > 0) {
            return Ok(());
        }
        let message = format!("it returned {} logits for {rows} rows of {}", logits.data.len(), logits.vocab);
        Err(BackendError::Device { backend: name, message })
    }

    /// Chooses tokens from a sequence's rows of logits, the first of them `row`, as long as they are
    /// those that were guessed.
    fn verify(&mut self, part: Part, drafts: &[u32], logits: &Logits, row: usize, now: Instant) {
        let mut chosen = std::mem::take(&mut self.chosen);
        chosen.clear();
        for at in 0..=part.drafted {
            match self.hand_out(part.id, logits.row(row + at), now) {
                Some(token) => chosen.push(token),
                None => break,
            }
            if drafts.get(at) != chosen.last() {
                break;
            }
        }
        if part.drafted > 0
            && let Some(speculation) = &mut self.speculation
        {
            let accepted = chosen.iter().zip(drafts).filter(|(chosen, draft)| chosen == draft).count();
            speculation.note(part.id, part.drafted, accepted, &self.metrics);
        }
        self.planner.push(part.id, &chosen);
        self.chosen = chosen;
    }

    /// Chooses a sequence's next token and sends what it makes certain. Returns the token when the
    /// answer goes on after it.
    fn hand_out(&mut self, id: SequenceId, logits: &[f32], now: Instant) -> Option<u32> {
        // Absent when another answer of the same request failed in this step.
        let choice = self.choices.get_mut(&id)?;
        let key = choice.key;
        let piece = match choice.advance(logits, &self.tokenizer) {
            Ok(piece) => piece,
            Err(error) => {
                self.fail_by(key, error.blame(), &error.to_string());
                return None;
            }
        };
        self.metrics.generation_tokens.inc_by(u64::from(piece.token.is_some()));
        if let Some(last) = choice.times.last_token.replace(now) {
            // Tokens of one step come at the same time.
            if now > last {
                self.metrics.itl.observe((now - last).as_secs_f64());
            }
        } else {
            choice.times.first_token = Some(now);
            self.metrics.ttft.observe((now - choice.times.arrived).as_secs_f64());
            if let Some(scheduled) = choice.times.scheduled {
                self.metrics.prefill.observe((now - scheduled).as_secs_f64());
            }
        }
        let open = self.requests.get_mut(&key)?;
        let events = open.events.clone();
        let goes_on = piece.token.as_ref().filter(|_| piece.finish.is_none()).map(|token| token.id);
        match piece.finish {
            None => {}
            Some(reason) => {
                if open.keeps {
                    self.blocks.give(&open.id, id, &self.planner, self.backend.as_ref());
                }
                open.sequences.retain(|other| *other != id);
                let over = open.sequences.is_empty();
                if let Some(choice) = self.choices.remove(&id) {
                    let reason = if reason == FinishReason::Length { "length" } else { "stop" };
                    if let Some(trace) = &mut open.trace {
                        trace.note(&choice, open.n, reason);
                    }
                    self.finish(id, &choice, reason);
                }
                if over {
                    self.end(key, "stop");
                }
            }
        }
        // Last, so that who has read the end of an answer finds it counted. When nobody listens, the
        // drop of the other end has sent an abandon, which is about to come.
        let _ = events.send(Event::Piece(piece));
        goes_on
    }
}
