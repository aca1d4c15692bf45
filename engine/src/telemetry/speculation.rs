//! How much guessing brings, under vLLM's names.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use strata_wire::metrics::engine as names;

/// Which of the guesses of one step.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PositionLabels {
    position: u32,
}

/// Guesses, and those that came true.
#[derive(Debug)]
pub struct SpeculationMetrics {
    drafts: Counter,
    draft_tokens: Counter,
    accepted_tokens: Counter,
    accepted_by_position: Family<PositionLabels, Counter>,
}

impl SpeculationMetrics {
    pub(super) fn new(r: &mut Registry) -> Self {
        let accepted_by_position = Family::default();
        r.register(
            names::SPEC_ACCEPTED_PER_POSITION,
            "Guessed tokens that came true, by their place among those of one step",
            accepted_by_position.clone(),
        );
        Self {
            drafts: super::counter(r, names::SPEC_DRAFTS, "Times that tokens were guessed"),
            draft_tokens: super::counter(r, names::SPEC_DRAFT_TOKENS, "Guessed tokens"),
            accepted_tokens: super::counter(r, names::SPEC_ACCEPTED, "Guessed tokens that came true"),
            accepted_by_position,
        }
    }

    /// Counts one sequence's guesses in one step; the first `accepted` came true.
    pub fn count(&self, drafted: usize, accepted: usize) {
        self.drafts.inc();
        self.draft_tokens.inc_by(drafted as u64);
        self.accepted_tokens.inc_by(accepted as u64);
        for position in 0..accepted as u32 {
            self.accepted_by_position.get_or_create(&PositionLabels { position }).inc();
        }
    }
}
