//! What adapters add to the outputs of projections, after the model's own products.
//!
//! Each token's `scale × B (A x)` is computed by itself in 32-bit floats, whatever the precision of the
//! model's products: of `A x` each number is the sum over sixteen partial results, the k-th input going to
//! partial result k mod 16; of `B u` each is summed in the order of the ranks. So it has the same bits
//! whichever tokens are beside it, with whichever adapters. Tokens of one adapter are only read together.
#![allow(clippy::inline_always)]

use std::collections::HashMap;

use super::lines::{LANES, Line, Rows, SharedRows, flat_mut};
use super::simd::{Kernel, Simd};
use super::team::Machine;
use crate::backend::SequenceSpan;
use crate::lora::{AdapterId, LayerLora, LoraWeights, LowRank, MAX_RANK, Part, Target};

/// Tokens of a task: enough to read the weights seldom, few enough for all threads to have some.
const TOKENS: usize = 8;
/// Tokens whose sums are in registers at once.
const TOGETHER: usize = 4;
/// Lines of outputs of one token whose sums are in registers at once, to be summed side by side.
const SIDE_BY_SIDE: usize = 4;

/// The adapters that were loaded.
#[derive(Default)]
pub(super) struct Loras(HashMap<AdapterId, Vec<LayerPairs>>);

/// What an adapter adds in one layer.
struct LayerPairs {
    shared: [Option<Pair>; Target::ALL.len()],
    /// By expert, in the order of [`Target::OF_EXPERT`].
    experts: Vec<[Option<Pair>; Target::OF_EXPERT.len()]>,
}

impl LayerPairs {
    fn new(layer: &LayerLora) -> Self {
        let expert = |index| Target::OF_EXPERT.map(|target| layer.get_expert(index, target).map(Pair::new));
        Self {
            shared: Target::ALL.map(|target| layer.get(target).map(Pair::new)),
            experts: (0..layer.experts()).map(expert).collect(),
        }
    }

    fn get(&self, part: Part, target: Target) -> Option<&Pair> {
        match part {
            Part::Shared => self.shared[target as usize].as_ref(),
            Part::Expert(index) => {
                let place = Target::OF_EXPERT.iter().position(|other| *other == target)?;
                self.experts.get(index)?[place].as_ref()
            }
        }
    }
}

/// What is added to one projection, as the kernels read it.
struct Pair {
    rank: usize,
    /// A row for each rank, padded with zeros to whole lines.
    a: Box<[Line]>,
    /// For each line of outputs, a line for each rank; padded with zeros.
    b: Box<[Line]>,
    scale: f32,
}

impl Pair {
    fn new(pair: &LowRank) -> Self {
        let (rank, inputs, outputs) = (pair.a.rows(), pair.a.cols(), pair.b.rows());
        assert!(rank == pair.b.cols() && (1..=MAX_RANK).contains(&rank), "the halves are of one rank");
        let stride = inputs.div_ceil(LANES);
        let mut a = vec![Line::ZERO; rank * stride];
        for (row, lines) in pair.a.to_f32().chunks_exact(inputs).zip(a.chunks_exact_mut(stride)) {
            flat_mut(lines)[..inputs].copy_from_slice(row);
        }
        let mut b = vec![Line::ZERO; rank * outputs.div_ceil(LANES)];
        for (output, row) in pair.b.to_f32().chunks_exact(rank).enumerate() {
            for (r, number) in row.iter().enumerate() {
                b[output / LANES * rank + r].0[output % LANES] = *number;
            }
        }
        Self { rank, a: a.into(), b: b.into(), scale: pair.scale }
    }
}

/// Tokens of a step that lie side by side and run with one adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    adapter: AdapterId,
    first: usize,
    count: usize,
}

/// Which tokens of a step run with which adapter; kept from step to step.
#[derive(Default)]
pub(super) struct LoraRuns(Vec<Run>);

impl LoraRuns {
    /// Whether no token of the step has an adapter.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes the tokens of a step.
    pub(super) fn place(&mut self, spans: &[SequenceSpan]) {
        self.0.clear();
        for span in spans {
            let Some(adapter) = span.adapter else { continue };
            for token in span.start..span.start + span.len {
                self.push(adapter, token);
            }
        }
    }

    /// Notes some tokens of a step, in their order, that lie side by side elsewhere.
    pub(super) fn gather(&mut self, of: &Self, tokens: impl Iterator<Item = usize>) {
        self.0.clear();
        let mut runs = of.0.iter().copied().peekable();
        for (row, token) in tokens.enumerate() {
            while runs.next_if(|run| run.first + run.count <= token).is_some() {}
            if let Some(run) = runs.peek().filter(|run| run.first <= token) {
                self.push(run.adapter, row);
            }
        }
    }

    fn push(&mut self, adapter: AdapterId, token: usize) {
        match self.0.last_mut() {
            Some(run) if run.adapter == adapter && run.first + run.count == token && run.count < TOKENS => {
                run.count += 1;
            }
            _ => self.0.push(Run { adapter, first: token, count: 1 }),
        }
    }
}

impl Loras {
    /// Takes an adapter over.
    pub(super) fn load(&mut self, id: AdapterId, weights: &LoraWeights) {
        self.0.insert(id, weights.layers.iter().map(LayerPairs::new).collect());
    }

    /// Lets go of an adapter.
    pub(super) fn unload(&mut self, id: AdapterId) {
        self.0.remove(&id);
    }

    /// Whether it is there.
    pub(super) fn has(&self, id: AdapterId) -> bool {
        self.0.contains_key(&id)
    }

    /// Adds what the adapters of a step's tokens add to projections of the same activations in one part of a
    /// layer.
    pub(super) fn add<const N: usize>(
        &self,
        machine: &mut Machine,
        runs: &LoraRuns,
        (layer, part): (usize, Part),
        x: &Rows,
        outputs: [(Target, &mut Rows); N],
    ) {
        if runs.0.is_empty() {
            return;
        }
        let outputs = outputs.map(|(target, rows)| (target, rows.stride(), rows.width(), rows.shared()));
        machine.for_each(runs.0.len(), |level, task| {
            let run = runs.0[task];
            // Absent in a layer that the adapter does not change, and never for want of the adapter.
            let Some(layer) = self.0.get(&run.adapter).and_then(|layers| layers.get(layer)) else { return };
            for (target, stride, width, out) in &outputs {
                if let Some(pair) = layer.get(part, *target) {
                    level.run_floats(Delta { pair, x, out: *out, stride: *stride, width: *width, run });
                }
            }
        });
    }
}

/// What one adapter adds to one projection for a run of tokens.
struct Delta<'a> {
    pair: &'a Pair,
    x: &'a Rows,
    out: SharedRows<'a>,
    /// Lines and numbers of a row of outputs.
    stride: usize,
    width: usize,
    run: Run,
}

impl Kernel for Delta<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Run { first, count, .. } = self.run;
        let whole = count / TOGETHER * TOGETHER;
        for token in (first..first + whole).step_by(TOGETHER) {
            tokens::<S, TOGETHER>(s, &self, token);
        }
        for token in first + whole..first + count {
            tokens::<S, 1>(s, &self, token);
        }
    }
}

/// `T` tokens from `first` on.
#[inline(always)]
fn tokens<S: Simd, const T: usize>(s: S, delta: &Delta<'_>, first: usize) {
    let (pair, inputs) = (delta.pair, delta.x.stride());
    assert_eq!(pair.a.len(), pair.rank * inputs, "the activations are as wide as the adapter's inputs");
    assert_eq!(pair.b.len(), pair.rank * delta.stride, "the outputs are as wide as the adapter's");
    let x = &delta.x.lines()[first * inputs..(first + T) * inputs];
    let mut narrow = [[0.0; T]; MAX_RANK];
    let rows = |r: usize, count: usize| &pair.a[r * inputs..(r + count) * inputs];
    let paired = pair.rank / 2 * 2;
    for r in (0..paired).step_by(2) {
        [narrow[r], narrow[r + 1]] = dots::<S, 2, T>(s, rows(r, 2), x);
    }
    if paired < pair.rank {
        [narrow[paired]] = dots::<S, 1, T>(s, rows(paired, 1), x);
    }
    let narrow = &narrow[..pair.rank];
    // SAFETY: each token of a step is in one run at most, each run is one task, and the projections of one
    // call have different outputs.
    let mut out: [&mut [Line]; T] =
        std::array::from_fn(|t| unsafe { delta.out.lines(first + t, 0, delta.stride) });
    let scale = s.splat(pair.scale);
    if T == 1 {
        let together = delta.stride / SIDE_BY_SIDE * SIDE_BY_SIDE;
        for line in (0..together).step_by(SIDE_BY_SIDE) {
            let sums = widen::<S, SIDE_BY_SIDE, T>(s, pair, line, narrow);
            write(s, &mut out, line, &sums, scale);
        }
        for line in together..delta.stride {
            write(s, &mut out, line, &widen::<S, 1, T>(s, pair, line, narrow), scale);
        }
    } else {
        for line in 0..delta.stride {
            write(s, &mut out, line, &widen::<S, 1, T>(s, pair, line, narrow), scale);
        }
    }
    // Padding is zero for whoever sums over whole lines, also where a number has overflown.
    for out in out {
        flat_mut(out)[delta.width..].fill(0.0);
    }
}

/// The products of `R` rows with `T` tokens.
#[inline(always)]
fn dots<S: Simd, const R: usize, const T: usize>(s: S, rows: &[Line], x: &[Line]) -> [[f32; T]; R] {
    let stride = rows.len() / R;
    let mut sums = [[s.splat(0.0); T]; R];
    for k in 0..stride {
        let x: [S::V; T] = std::array::from_fn(|t| s.load(&x[t * stride + k]));
        for (r, sums) in sums.iter_mut().enumerate() {
            let row = s.load(&rows[r * stride + k]);
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = s.fma(row, x, *sum);
            }
        }
    }
    sums.map(|sums| sums.map(|sum| s.sum(sum)))
}

/// `L` lines of `B u` for `T` tokens.
#[inline(always)]
fn widen<S: Simd, const L: usize, const T: usize>(
    s: S,
    pair: &Pair,
    line: usize,
    narrow: &[[f32; T]],
) -> [[S::V; T]; L] {
    let mut sums = [[s.splat(0.0); T]; L];
    let b = &pair.b[line * pair.rank..(line + L) * pair.rank];
    for (r, u) in narrow.iter().enumerate() {
        for (l, sums) in sums.iter_mut().enumerate() {
            let b = s.load(&b[l * pair.rank + r]);
            for (sum, u) in sums.iter_mut().zip(u) {
                *sum = s.fma(b, s.splat(*u), *sum);
            }
        }
    }
    sums
}

/// Adds to the outputs.
#[inline(always)]
fn write<S: Simd, const L: usize, const T: usize>(
    s: S,
    out: &mut [&mut [Line]; T],
    line: usize,
    sums: &[[S::V; T]; L],
    scale: S::V,
) {
    for (l, sums) in sums.iter().enumerate() {
        for (out, sum) in out.iter_mut().zip(sums) {
            let old = s.load(&out[line + l]);
            s.store(&mut out[line + l], s.add(old, s.mul(*sum, scale)));
        }
    }
}

#[cfg(test)]
#[path = "lora_tests.rs"]
mod tests;
