//! What was thought of the replicas' caches, against what their engines said that they had.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::{OfModel, OfOutcome};
use crate::prediction::{Prediction, Usage};

/// Counters by model.
#[derive(Debug, Default)]
pub(super) struct Predictions {
    outcomes: Family<OfOutcome, Counter>,
    predicted: Family<OfModel, Counter>,
    cached: Family<OfModel, Counter>,
    prompt: Family<OfModel, Counter>,
}

impl Predictions {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "strata_scheduler_cache_predictions",
            "Answers by whether so much of their prompts was cached as was thought when the replica was chosen",
            self.outcomes.clone(),
        );
        r.register(
            "strata_scheduler_cache_predicted_tokens",
            "Prompt tokens that were thought to be cached, of answers whose engine says how many were",
            self.predicted.clone(),
        );
        r.register("strata_scheduler_cache_actual_tokens", "Those that were", self.cached.clone());
        r.register(
            "strata_scheduler_cache_prompt_tokens",
            "All tokens of these prompts",
            self.prompt.clone(),
        );
    }

    /// A prompt was answered, and its engine said this of it.
    pub(super) fn count(&self, model: &str, prediction: Prediction, usage: Option<&Usage>) {
        let of = |outcome| OfOutcome { model_name: model.to_owned(), outcome };
        let told = usage.and_then(|usage| Some((usage.prompt, usage.cached?)));
        let Some((prompt, cached)) = told else {
            self.outcomes.get_or_create(&of("untold")).inc();
            return;
        };
        self.outcomes.get_or_create(&of(prediction.judge(prompt, cached).name())).inc();
        let label = OfModel { model_name: model.to_owned() };
        self.predicted.get_or_create(&label).inc_by(prediction.tokens.round() as u64);
        self.cached.get_or_create(&label).inc_by(cached);
        self.prompt.get_or_create(&label).inc_by(prompt);
    }
}
