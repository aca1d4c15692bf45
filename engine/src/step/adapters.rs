//! How many different adapters run at once, and which wait.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::planner::Planner;
use crate::lora::{AdapterId, AdapterKey};

/// The adapters of the sequences that run and of those that wait, each named once, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdapterNames {
    /// Of those that run.
    pub running: Vec<Arc<str>>,
    /// Of those that wait.
    pub waiting: Vec<Arc<str>>,
}

/// The limit, and who waits.
#[derive(Debug)]
pub(super) struct AdapterPlaces {
    most: usize,
    /// For each name how many sequences wait, so that nobody has to look at them all.
    waiting: BTreeMap<Arc<str>, usize>,
}

impl Default for AdapterPlaces {
    fn default() -> Self {
        Self { most: usize::MAX, waiting: BTreeMap::new() }
    }
}

impl AdapterPlaces {
    pub(super) fn limit(&mut self, most: usize) {
        self.most = most;
    }

    pub(super) fn wait(&mut self, adapter: Option<&Arc<AdapterKey>>) {
        if let Some(adapter) = adapter {
            *self.waiting.entry(adapter.name.clone()).or_default() += 1;
        }
    }

    pub(super) fn wait_no_longer(&mut self, adapter: Option<&Arc<AdapterKey>>) {
        let Some(adapter) = adapter else { return };
        if let Some(count) = self.waiting.get_mut(&adapter.name) {
            *count -= 1;
            if *count == 0 {
                self.waiting.remove(&adapter.name);
            }
        }
    }
}

/// The places for adapters while sequences are admitted, in order.
#[derive(Debug)]
pub(super) struct Admitting {
    used: Vec<AdapterId>,
    most: usize,
    /// Whether somebody has found no place: then nobody behind takes one, not even with an adapter that
    /// runs, or that somebody might find none for ever.
    closed: bool,
}

impl Admitting {
    /// Whether a sequence of this adapter may be admitted; it has its place then.
    pub(super) fn admits(&mut self, adapter: Option<&AdapterKey>) -> bool {
        let Some(adapter) = adapter else { return true };
        if self.closed {
            return false;
        }
        if self.used.contains(&adapter.id) {
            return true;
        }
        if self.used.len() < self.most {
            self.used.push(adapter.id);
            return true;
        }
        self.closed = true;
        false
    }
}

impl Planner {
    /// The places for adapters that are free beside the sequences that hold blocks.
    pub(super) fn admitting(&self) -> Admitting {
        let mut admitting = Admitting { used: Vec::new(), most: usize::MAX, closed: false };
        for sequence in self.holding() {
            admitting.admits(sequence.adapter.as_deref());
        }
        admitting.most = self.adapters.most;
        admitting
    }

    /// The adapters that run and wait.
    pub fn adapters(&self) -> AdapterNames {
        let names = |sequences: &BTreeMap<_, super::sequence::Sequence>| {
            let names = sequences.values().filter_map(|s| Some(s.adapter.as_ref()?.name.clone()));
            names.collect::<Vec<Arc<str>>>()
        };
        let in_order = |mut names: Vec<Arc<str>>| {
            names.sort_unstable();
            names.dedup();
            names
        };
        let mut waiting = names(&self.loading);
        waiting.extend(self.adapters.waiting.keys().cloned());
        AdapterNames { running: in_order(names(&self.running)), waiting: in_order(waiting) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::{NewSequence, SequenceId, StepLimits};

    fn key(id: u64) -> Arc<AdapterKey> {
        let name = format!("a{id}").into();
        Arc::new(AdapterKey { id: AdapterId(id), name, number: id, digest: [id as u8; 32] })
    }

    /// Runs to the end, each sequence until it has so many tokens. Returns for each step which sequences
    /// it held.
    fn run(planner: &mut Planner, most: usize) -> Vec<Vec<SequenceId>> {
        let mut lengths = std::collections::HashMap::new();
        let mut steps = Vec::new();
        while !planner.is_idle() {
            let plan = planner.plan();
            assert!(!plan.parts.is_empty() && steps.len() < 1000, "it gets on");
            steps.push(plan.parts.iter().map(|part| part.id).collect());
            planner.advance(&plan);
            for part in plan.parts.iter().filter(|part| part.samples) {
                let length = lengths.entry(part.id).or_insert(0);
                *length += 1;
                if *length == most {
                    planner.remove(part.id);
                } else {
                    planner.push(part.id, &[7]);
                }
            }
        }
        steps
    }

    #[test]
    fn a_step_holds_no_more_adapters_than_it_may_and_nobody_waits_for_ever() {
        for most in [1, 2, 3] {
            let mut planner = Planner::new(StepLimits { tokens: 64, sequences: 16 }, 64, true);
            planner.limit_adapters(most);
            let mut of = std::collections::HashMap::new();
            for (i, adapter) in
                [Some(1), Some(2), None, Some(1), Some(3), Some(2), None].into_iter().enumerate()
            {
                let new = NewSequence {
                    tokens: vec![i as u32; 20],
                    priority: 0,
                    cache_salt: None,
                    scored: false,
                    adapter: adapter.map(key),
                };
                of.insert(planner.add(new).unwrap(), adapter);
            }
            let waiting: Vec<String> = planner.adapters().waiting.iter().map(ToString::to_string).collect();
            assert_eq!(waiting, ["a1", "a2", "a3"]);
            let steps = run(&mut planner, 5);
            let mut widest = 0;
            for step in &steps {
                let mut adapters: Vec<u64> = step.iter().filter_map(|id| of[id]).collect();
                adapters.sort_unstable();
                adapters.dedup();
                widest = widest.max(adapters.len());
            }
            assert_eq!(widest, most);
            let first = |id: u64| steps.iter().position(|step| step.contains(&SequenceId(id))).unwrap();
            if most == 1 {
                assert!(first(6) < first(1), "who needs no adapter does not wait for one");
                assert!(first(1) < first(3), "nobody behind takes the place that one waits for");
            }
            assert!(first(6) < first(4) || most == 3);
            assert_eq!(planner.adapters(), AdapterNames::default());
        }
    }
}
