//! Whether the engine sleeps, under vLLM's name and labels.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use strata_wire::metrics::engine as names;

use crate::runtime::Condition;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SleepLabels {
    sleep_state: &'static str,
}

/// One gauge a state; the present one is 1.
#[derive(Debug)]
pub struct SleepMetrics(Family<SleepLabels, Gauge>);

impl SleepMetrics {
    pub(super) fn new(r: &mut Registry) -> Self {
        let family = Family::default();
        r.register(names::SLEEP_STATE, "1 for the state in which the engine is", family.clone());
        let metrics = Self(family);
        metrics.set(Condition::Awake);
        metrics
    }

    /// Notes the state.
    pub fn set(&self, condition: Condition) {
        let now = match condition {
            Condition::Awake | Condition::Paused => "awake",
            Condition::AsleepWithWeights => "weights_offloaded",
            Condition::AsleepWithout => "discard_all",
        };
        for sleep_state in ["awake", "weights_offloaded", "discard_all"] {
            self.0.get_or_create(&SleepLabels { sleep_state }).set(i64::from(sleep_state == now));
        }
    }
}
