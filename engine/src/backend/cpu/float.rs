//! Products in 32-bit floats.
//!
//! Sixteen rows of the weights at a time, a panel, are turned into 32-bit floats in a thread's scratch
//! and multiplied with all tokens while they are in the nearest cache. Each output is the sum over
//! sixteen partial results, the k-th input going to partial result k mod 16, in order: so it has the
//! same bits whether its token came alone or with others.
#![allow(clippy::inline_always)]

use super::lines::{Line, Rows, SharedRows};
use super::simd::{Kernel, Simd};
use super::unpack::{dot, unpack};
use crate::tensor::Tensor;

/// Rows of weights in a panel.
pub(super) const PANEL: usize = 16;

/// One panel's part of a product.
pub(super) struct Panel<'a> {
    pub(super) weight: &'a Tensor,
    /// A number for each row, padded to whole lines.
    pub(super) bias: Option<&'a [Line]>,
    pub(super) x: &'a Rows,
    pub(super) out: SharedRows<'a>,
    /// The first row.
    pub(super) first: usize,
    pub(super) scratch: &'a mut Vec<Line>,
}

impl Panel<'_> {
    /// Adds the bias and writes a result. Only the task of the row's panel may.
    #[inline(always)]
    fn finish(&self, token: usize, row: usize, sum: f32) {
        let sum = self.bias.map_or(sum, |bias| sum + bias[row / PANEL].0[row % PANEL]);
        // SAFETY: columns of a panel are written only by the task of that panel, each panel is one task,
        // and the products of one call have different outputs.
        unsafe { self.out.set(token, row, sum) };
    }
}

impl Kernel for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (weight, x) = (self.weight, self.x);
        let (stride, cols) = (x.stride(), x.width());
        let rows = PANEL.min(weight.rows() - self.first);
        if x.count() == 1 && single(s, &self, rows) {
            return;
        }
        // Only ever grown: what an earlier panel left is overwritten, but for rows that are not there,
        // whose results nobody takes.
        let mut scratch = std::mem::take(self.scratch);
        if scratch.len() < PANEL * stride {
            scratch.resize(PANEL * stride, Line::ZERO);
        }
        let panel = &mut scratch[..PANEL * stride];
        for (row, lines) in panel.chunks_exact_mut(stride).take(rows).enumerate() {
            lines[stride - 1] = Line::ZERO;
            unpack(s, weight.kind(), weight.row(self.first + row), cols, lines);
        }
        if S::WIDE {
            sweep::<S, 4, 6, 8>(s, &self, rows, panel);
        } else {
            sweep::<S, 2, 3, 4>(s, &self, rows, panel);
        }
        *self.scratch = scratch;
    }
}

/// One token with one panel, for the formats that need no scratch; false for others.
#[inline(always)]
fn single<S: Simd>(s: S, panel: &Panel<'_>, rows: usize) -> bool {
    const TOGETHER: usize = 4;
    let (weight, x, first) = (panel.weight, panel.x.lines(), panel.first);
    for start in (first..first + rows).step_by(TOGETHER) {
        let last = weight.rows() - 1;
        let together: [&[u8]; TOGETHER] = std::array::from_fn(|i| weight.row((start + i).min(last)));
        // The rows after these, which come from memory while these are worked on.
        for i in TOGETHER..2 * TOGETHER {
            s.prefetch(weight.row((start + i).min(last)));
        }
        let Some(sums) = dot(s, weight.kind(), weight.cols(), together, x) else { return false };
        for (row, sum) in (start..first + rows).zip(sums) {
            panel.finish(0, row, sum);
        }
    }
    true
}

/// All tokens with one panel: tiles of `R` rows and `T` tokens, then `R1` rows for each token left.
#[inline(always)]
fn sweep<S: Simd, const R: usize, const T: usize, const R1: usize>(
    s: S,
    task: &Panel<'_>,
    rows: usize,
    panel: &[Line],
) {
    let (stride, tokens, x) = (task.x.stride(), task.x.count(), task.x.lines());
    let whole = tokens / T * T;
    for token in (0..whole).step_by(T) {
        let x = &x[token * stride..(token + T) * stride];
        for row in (0..rows).step_by(R) {
            let sums = tile::<S, R, T>(s, &panel[row * stride..(row + R) * stride], x, stride);
            write(s, task, task.first + row, token, &sums);
        }
    }
    for token in whole..tokens {
        let x = &x[token * stride..(token + 1) * stride];
        for row in (0..rows).step_by(R1) {
            let sums = tile::<S, R1, 1>(s, &panel[row * stride..(row + R1) * stride], x, stride);
            write(s, task, task.first + row, token, &sums);
        }
    }
}

#[inline(always)]
fn tile<S: Simd, const R: usize, const T: usize>(
    s: S,
    w: &[Line],
    x: &[Line],
    stride: usize,
) -> [[S::V; T]; R] {
    assert!(w.len() == R * stride && x.len() == T * stride, "whole rows");
    let mut sums = [[s.splat(0.0); T]; R];
    for k in 0..stride {
        let mut xs = [s.splat(0.0); T];
        for (t, to) in xs.iter_mut().enumerate() {
            // SAFETY: t < T and k < stride, and x has T × stride lines by the check above.
            *to = s.load(unsafe { x.get_unchecked(t * stride + k) });
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: r < R and k < stride, and w has R × stride lines by the check above.
            let w = s.load(unsafe { w.get_unchecked(r * stride + k) });
            for (sum, x) in sums.iter_mut().zip(xs) {
                *sum = s.fma(w, x, *sum);
            }
        }
    }
    sums
}

#[inline(always)]
fn write<S: Simd, const R: usize, const T: usize>(
    s: S,
    task: &Panel<'_>,
    first: usize,
    token: usize,
    sums: &[[S::V; T]; R],
) {
    for (r, sums) in sums.iter().enumerate().take(task.weight.rows() - first) {
        let row = first + r;
        for (t, sum) in sums.iter().enumerate() {
            task.finish(token + t, row, s.sum(*sum));
        }
    }
}
