//! Which adapters run and wait, under vLLM's name and labels.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use strata_wire::metrics::engine as names;

use super::FloatGauge;
use crate::step::AdapterNames;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LoraLabels {
    max_lora: u64,
    running_lora_adapters: String,
    waiting_lora_adapters: String,
}

/// One gauge, whose value is the time since which it is so: vLLM's readers take the latest.
#[derive(Debug)]
pub struct LoraMetrics {
    family: Family<LoraLabels, FloatGauge>,
    max_loras: usize,
    told: Mutex<Option<AdapterNames>>,
}

impl LoraMetrics {
    pub(super) fn new(r: &mut Registry, max_loras: usize) -> Self {
        let family = Family::default();
        r.register(names::LORA_REQUESTS, "Adapters of the requests that run and that wait", family.clone());
        let metrics = Self { family, max_loras, told: Mutex::default() };
        metrics.set(&AdapterNames::default());
        metrics
    }

    /// Notes which there are.
    pub fn set(&self, now: &AdapterNames) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.as_ref() == Some(now) {
            return;
        }
        // Only what is so now is shown: every crowd of adapters would be a series of its own.
        self.family.clear();
        let labels = LoraLabels {
            max_lora: self.max_loras as u64,
            running_lora_adapters: now.running.join(","),
            waiting_lora_adapters: now.waiting.join(","),
        };
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        self.family.get_or_create(&labels).set(seconds);
        *told = Some(now.clone());
    }
}
