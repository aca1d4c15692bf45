//! Matrix products of activations with weights: which kernel, and who does what part.

use std::cell::RefCell;

use super::float::{PANEL, Panel};
use super::integer::{DIRECT, Groups};
use super::lines::{Line, Rows, SharedRows};
use super::pack::{GROUP, Packed, Unpacked};
use super::pointwise::GateGroups;
use super::quantise::Quantised;
use super::simd::Level;
use super::team::Machine;
use crate::model::spec::Activation;
use crate::tensor::Tensor;

/// A matrix as the kernels read it.
pub(super) enum Matrix {
    /// As it is stored, multiplied in 32-bit floats.
    Float(Tensor),
    /// Repacked, multiplied in integers.
    Integer(Packed),
}

impl Matrix {
    /// Repacks a quantised matrix unless `exact`; says when there is no memory for it.
    pub(super) fn new(machine: &mut Machine, tensor: Tensor, exact: bool) -> Result<Self, String> {
        let packed = if exact { None } else { Packed::new(machine, &tensor)? };
        Ok(match packed {
            Some(packed) => {
                tensor.forget_pages();
                Self::Integer(packed)
            }
            None => Self::Float(tensor),
        })
    }

    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Float(tensor) => tensor.rows(),
            Self::Integer(packed) => packed.rows(),
        }
    }

    pub(super) fn cols(&self) -> usize {
        match self {
            Self::Float(tensor) => tensor.cols(),
            Self::Integer(packed) => packed.cols(),
        }
    }
}

const _: () = assert!(PANEL == GROUP, "a task is sixteen rows whatever the format");

/// Groups that kernels multiply together with so many tokens: as many a task has, if there are as many.
fn together(tokens: usize) -> usize {
    if tokens > DIRECT { 2 } else { 1 }
}

#[derive(Default)]
struct Scratch {
    panel: Vec<Line>,
    unpacked: [Unpacked; 2],
    gate: Rows,
    up: Rows,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// `out[t][r] = Σ weight[r][k] × x[t][k] + bias[r]`.
pub(super) struct Product<'a> {
    weight: &'a Matrix,
    bias: Option<&'a [Line]>,
    out: &'a mut Rows,
}

impl<'a> Product<'a> {
    /// A product; `bias` is padded to whole lines.
    pub(super) fn new(weight: &'a Matrix, bias: Option<&'a [Line]>, out: &'a mut Rows) -> Self {
        assert!(bias.is_none_or(|b| b.len() == weight.rows().div_ceil(PANEL)), "a bias for each row");
        Self { weight, bias, out }
    }
}

/// A matrix and the bias of its rows, padded to whole lines.
#[derive(Clone, Copy)]
pub(super) struct Factor<'a> {
    pub(super) weight: &'a Matrix,
    pub(super) bias: Option<&'a [Line]>,
}

/// Computes independent products of the same activations at once. `x` has a row of `weight.cols()` for
/// each token; `quantised` is scratch for it.
pub(super) fn multiply<const N: usize>(
    machine: &mut Machine,
    x: &Rows,
    quantised: &mut Quantised,
    products: [Product<'_>; N],
) {
    let tokens = x.count();
    quantise(machine, x, quantised, products.each_ref().map(|product| product.weight));
    let mut first = 0;
    let parts = products.map(|Product { weight, bias, out }| {
        out.reshape(tokens, weight.rows());
        let start = first;
        first += weight.rows().div_ceil(GROUP);
        (start..first, weight, bias, out.shared())
    });
    if tokens == 0 {
        return;
    }
    let quantised = &*quantised;
    let together = together(tokens);
    machine.for_ranges(first.div_ceil(together), 1, |level, range| {
        let groups = range.start * together..first.min(range.end * together);
        SCRATCH.with_borrow_mut(|scratch| {
            for (own, weight, bias, out) in &parts {
                let from = groups.start.max(own.start);
                let to = groups.end.min(own.end);
                if from < to {
                    let groups = from - own.start..to - own.start;
                    part(level, weight, *bias, x, quantised, *out, groups, scratch);
                }
            }
        });
    });
}

/// Computes `activation(gate x) × (up x)`, of which nothing but the result is written beyond the nearest
/// caches. For many tokens: for few of them [`multiply`] reads weights faster.
pub(super) fn multiply_gated(
    machine: &mut Machine,
    x: &Rows,
    quantised: &mut Quantised,
    activation: Activation,
    gate: Factor<'_>,
    up: Factor<'_>,
    out: &mut Rows,
) {
    let (tokens, rows) = (x.count(), gate.weight.rows());
    assert_eq!(rows, up.weight.rows(), "as many gates as numbers");
    quantise(machine, x, quantised, [gate.weight, up.weight]);
    out.reshape(tokens, rows);
    let (quantised, out) = (&*quantised, out.shared());
    let (all, together) = (rows.div_ceil(GROUP), together(tokens));
    machine.for_ranges(all.div_ceil(together), 1, |level, range| {
        SCRATCH.with_borrow_mut(|scratch| {
            // Out of the scratch while it is in use.
            let (mut gates, mut ups) = (std::mem::take(&mut scratch.gate), std::mem::take(&mut scratch.up));
            for index in range {
                let groups = index * together..all.min((index + 1) * together);
                for (factor, to) in [(gate, &mut gates), (up, &mut ups)] {
                    to.reshape(tokens, groups.len() * GROUP);
                    if groups.end * GROUP > rows {
                        // What pads the last group stays zero.
                        to.lines_mut().fill(Line::ZERO);
                    }
                    let to = to.shared().starting_at(groups.start);
                    part(level, factor.weight, factor.bias, x, quantised, to, groups.clone(), scratch);
                }
                level.run_floats(GateGroups {
                    activation,
                    gates: gates.lines(),
                    ups: ups.lines(),
                    out,
                    groups,
                });
            }
            (scratch.gate, scratch.up) = (gates, ups);
        });
    });
}

/// Quantises the activations if any of the products is one of integers.
fn quantise<const N: usize>(
    machine: &mut Machine,
    x: &Rows,
    quantised: &mut Quantised,
    weights: [&Matrix; N],
) {
    for weight in weights {
        assert_eq!(weight.cols(), x.width(), "the activations are as wide as the weights");
    }
    if weights.iter().any(|weight| matches!(weight, Matrix::Integer(_))) {
        match machine.level.tiles(x.count()) {
            Some(_) => quantised.take_tiled(machine, x),
            None => quantised.take(machine, x),
        }
    }
}

/// Some groups of one product.
#[allow(clippy::too_many_arguments)]
fn part(
    level: Level,
    weight: &Matrix,
    bias: Option<&[Line]>,
    x: &Rows,
    quantised: &Quantised,
    out: SharedRows<'_>,
    groups: std::ops::Range<usize>,
    scratch: &mut Scratch,
) {
    match weight {
        Matrix::Integer(weight) => {
            let (x, tokens, unpacked) = (quantised, x.count(), &mut scratch.unpacked);
            let groups = Groups { weight, bias, x, tokens, out, range: groups, unpacked };
            #[cfg(target_arch = "x86_64")]
            if let Some(tiles) = level.tiles(tokens) {
                return tiles.multiply(groups);
            }
            level.run(groups);
        }
        Matrix::Float(weight) => {
            for group in groups {
                let scratch = &mut scratch.panel;
                level.run(Panel { weight, bias, x, out, first: group * PANEL, scratch });
            }
        }
    }
}

#[cfg(test)]
#[path = "product_tests.rs"]
mod tests;
