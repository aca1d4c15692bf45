//! Mixtures of experts: which experts each token goes to, and the experts' products batched by expert.
//!
//! A token's choice and weights follow from its own row alone, each expert's products give each row
//! the same bits whatever other rows they hold, and the outputs are added in the order of the experts'
//! numbers: so a token's result does not depend on the batch.
#![allow(clippy::inline_always)]

use super::layer::ExpertsLayer;
use super::lines::{Line, Rows, flat, flat_mut};
use super::lora::{LoraRuns, Loras};
use super::pointwise::gate_rows;
use super::product::multiply;
use super::quantise::Quantised;
use super::simd::{Kernel, Simd, exp};
use super::team::Machine;
use crate::lora::{Part, Target};
use crate::model::spec::{Activation, ExpertsSpec};

/// What a mixture works in, kept from step to step.
#[derive(Default)]
pub(super) struct Mixture {
    scores: Rows,
    /// Of each token its experts, by number, with their weights: `used` for each.
    chosen: Vec<(usize, f32)>,
    /// The tokens that go to one expert, with its weight for each.
    tokens: Vec<(usize, f32)>,
    gathered: Rows,
    quantised: Quantised,
    gate: Rows,
    up: Rows,
    down: Rows,
    /// Which of the gathered rows run with which adapter.
    runs: LoraRuns,
}

/// The adapters of a step's tokens, in one layer.
#[derive(Clone, Copy)]
pub(super) struct Adapted<'a> {
    pub(super) loras: &'a Loras,
    pub(super) runs: &'a LoraRuns,
    pub(super) layer: usize,
}

impl Mixture {
    /// Writes the mixture's output for each row of `x` to `out`, and returns how many products that
    /// took: one for the router, three for each expert that has tokens.
    pub(super) fn run(
        &mut self,
        machine: &mut Machine,
        (experts, spec, activation): (&ExpertsLayer, ExpertsSpec, Activation),
        adapted: Adapted<'_>,
        x: &Rows,
        out: &mut Rows,
    ) -> u64 {
        multiply(machine, x, &mut self.quantised, [experts.router.to(&mut self.scores)]);
        let Adapted { loras, runs, layer } = adapted;
        loras.add(machine, runs, (layer, Part::Shared), x, [(Target::Router, &mut self.scores)]);
        self.choose(machine, spec);
        out.reshape(x.count(), x.width());
        out.lines_mut().fill(Line::ZERO);
        let mut products = 1;
        for (index, expert) in experts.experts.iter().enumerate() {
            self.tokens.clear();
            let by_token = self.chosen.chunks_exact(spec.used).enumerate();
            self.tokens.extend(by_token.filter_map(|(token, chosen)| {
                chosen.iter().find(|(expert, _)| *expert == index).map(|(_, weight)| (token, *weight))
            }));
            if self.tokens.is_empty() {
                continue;
            }
            self.gathered.reshape(self.tokens.len(), x.width());
            for (row, (token, _)) in self.tokens.iter().enumerate() {
                self.gathered.row_mut(row).copy_from_slice(x.row(*token));
            }
            self.runs.gather(runs, self.tokens.iter().map(|(token, _)| *token));
            let part = (layer, Part::Expert(index));
            let projections = [expert.gate.to(&mut self.gate), expert.up.to(&mut self.up)];
            multiply(machine, &self.gathered, &mut self.quantised, projections);
            let outputs = [(Target::Gate, &mut self.gate), (Target::Up, &mut self.up)];
            loras.add(machine, &self.runs, part, &self.gathered, outputs);
            gate_rows(machine, activation, &mut self.gate, &self.up);
            multiply(machine, &self.gate, &mut self.quantised, [expert.down.to(&mut self.down)]);
            let outputs = [(Target::Down, &mut self.down)];
            loras.add(machine, &self.runs, part, &self.gate, outputs);
            for (row, (token, weight)) in self.tokens.iter().enumerate() {
                for (sum, part) in out.row_mut(*token).iter_mut().zip(self.down.row(row)) {
                    *sum += part * weight;
                }
            }
            products += 3;
        }
        products
    }

    /// Turns each row of scores into its experts and their weights.
    fn choose(&mut self, machine: &Machine, spec: ExpertsSpec) {
        self.chosen.clear();
        let width = self.scores.width();
        let mut order: Vec<usize> = Vec::with_capacity(width);
        for token in 0..self.scores.count() {
            let row = self.scores.row_mut(token);
            order.clear();
            order.extend(0..width);
            // Equal scores: the lower number first.
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
            order.truncate(spec.used);
            // Shares of all experts, so that the padding takes part as minus infinity.
            let largest = row[order[0]];
            let mut lines = vec![Line([f32::NEG_INFINITY; super::lines::LANES]); width.div_ceil(16)];
            flat_mut(&mut lines)[..width].copy_from_slice(row);
            let total = machine.run(Exponentials(&mut lines, largest));
            let shares = flat(&lines);
            let share = |expert: usize| shares[expert] / total;
            let sum = if spec.normalise { order.iter().map(|e| share(*e)).sum() } else { 1.0 };
            self.chosen.extend(order.iter().map(|expert| (*expert, share(*expert) / sum)));
        }
    }
}

/// The exponentials of the numbers' distance from the largest, and their sum.
struct Exponentials<'a>(&'a mut [Line], f32);

impl Kernel for Exponentials<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (mut total, largest) = (s.splat(0.0), s.splat(self.1));
        for line in self.0 {
            let weight = exp(s, s.sub(s.load(line), largest));
            s.store(line, weight);
            total = s.add(total, weight);
        }
        s.sum(total)
    }
}
