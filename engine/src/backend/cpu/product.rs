//! Matrix products of activations with stored weights.
//!
//! Sixteen rows of the weights at a time, a panel, are turned into 32-bit floats in a thread's scratch
//! and multiplied with all tokens while they are in the nearest cache. Each output is the sum over
//! sixteen partial results, the k-th input going to partial result k mod 16, in order: so it has the
//! same bits whether its token came alone or with others.
#![allow(clippy::inline_always)]

use std::cell::RefCell;

use rayon::prelude::*;

use super::lines::{Line, Rows, SharedRows};
use super::simd::{Kernel, Level, Simd};
use super::unpack::{dot, unpack};
use crate::tensor::Tensor;

/// Rows of weights in a panel.
const PANEL: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// `out[t][r] = Σ weight[r][k] × x[t][k] + bias[r]`.
pub(super) struct Product<'a> {
    weight: &'a Tensor,
    bias: Option<&'a [f32]>,
    x: &'a Rows,
    out: SharedRows<'a>,
}

impl<'a> Product<'a> {
    /// Shapes `out` for the result. `x` has a row of `weight.cols()` for each token.
    pub(super) fn new(weight: &'a Tensor, bias: Option<&'a [f32]>, x: &'a Rows, out: &'a mut Rows) -> Self {
        assert_eq!(weight.cols(), x.width(), "the activations are as wide as the weights");
        assert!(bias.is_none_or(|b| b.len() == weight.rows()), "a bias for each row");
        out.reshape(x.count(), weight.rows());
        Self { weight, bias, x, out: out.shared() }
    }

    /// Adds the bias and writes a result. Only the task of the row's panel may.
    #[inline(always)]
    fn finish(&self, token: usize, row: usize, sum: f32) {
        let sum = self.bias.map_or(sum, |bias| sum + bias[row]);
        // SAFETY: columns of a panel are written only by the task of that panel, each panel is one task,
        // and the products of one call have different outputs.
        unsafe { self.out.set(token, row, sum) };
    }
}

/// Computes independent products at once, on all threads of the current pool.
pub(super) fn multiply<const N: usize>(level: Level, products: &[Product<'_>; N]) {
    if products.iter().all(|p| p.x.count() == 0) {
        return;
    }
    let panels = products.each_ref().map(|p| p.weight.rows().div_ceil(PANEL));
    (0..panels.iter().sum()).into_par_iter().for_each(|panel: usize| {
        let mut index = panel;
        let mut which = 0;
        while index >= panels[which] {
            index -= panels[which];
            which += 1;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            level.run(Panel { product: &products[which], first: index * PANEL, scratch });
        });
    });
}

/// One panel's part of a product.
struct Panel<'a> {
    product: &'a Product<'a>,
    first: usize,
    scratch: &'a mut Vec<Line>,
}

impl Kernel for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Product { weight, x, .. } = self.product;
        let (stride, cols) = (x.stride(), x.width());
        let rows = PANEL.min(weight.rows() - self.first);
        if x.count() == 1 && single(s, self.product, self.first, rows) {
            return;
        }
        // Only ever grown: what an earlier panel left is overwritten, but for rows that are not there,
        // whose results nobody takes.
        if self.scratch.len() < PANEL * stride {
            self.scratch.resize(PANEL * stride, Line::ZERO);
        }
        let panel = &mut self.scratch[..PANEL * stride];
        for (row, lines) in panel.chunks_exact_mut(stride).take(rows).enumerate() {
            lines[stride - 1] = Line::ZERO;
            unpack(s, weight.kind(), weight.row(self.first + row), cols, lines);
        }
        if S::WIDE {
            sweep::<S, 4, 6, 8>(s, self.product, self.first, rows, panel);
        } else {
            sweep::<S, 2, 3, 4>(s, self.product, self.first, rows, panel);
        }
    }
}

/// One token with one panel, for the formats that need no scratch; false for others.
#[inline(always)]
fn single<S: Simd>(s: S, product: &Product<'_>, first: usize, rows: usize) -> bool {
    const TOGETHER: usize = 4;
    let (weight, x) = (product.weight, product.x.lines());
    for start in (first..first + rows).step_by(TOGETHER) {
        let last = weight.rows() - 1;
        let together: [&[u8]; TOGETHER] = std::array::from_fn(|i| weight.row((start + i).min(last)));
        // The rows after these, which come from memory while these are worked on.
        for i in TOGETHER..2 * TOGETHER {
            s.prefetch(weight.row((start + i).min(last)));
        }
        let Some(sums) = dot(s, weight.kind(), weight.cols(), together, x) else { return false };
        for (row, sum) in (start..first + rows).zip(sums) {
            product.finish(0, row, sum);
        }
    }
    true
}

/// All tokens with one panel: tiles of `R` rows and `T` tokens, then `R1` rows for each token left.
#[inline(always)]
fn sweep<S: Simd, const R: usize, const T: usize, const R1: usize>(
    s: S,
    product: &Product<'_>,
    first: usize,
    rows: usize,
    panel: &[Line],
) {
    let (stride, tokens, x) = (product.x.stride(), product.x.count(), product.x.lines());
    let whole = tokens / T * T;
    for token in (0..whole).step_by(T) {
        let x = &x[token * stride..(token + T) * stride];
        for row in (0..rows).step_by(R) {
            let sums = tile::<S, R, T>(s, &panel[row * stride..(row + R) * stride], x, stride);
            write(s, product, first + row, token, &sums);
        }
    }
    for token in whole..tokens {
        let x = &x[token * stride..(token + 1) * stride];
        for row in (0..rows).step_by(R1) {
            let sums = tile::<S, R1, 1>(s, &panel[row * stride..(row + R1) * stride], x, stride);
            write(s, product, first + row, token, &sums);
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
    product: &Product<'_>,
    first: usize,
    token: usize,
    sums: &[[S::V; T]; R],
) {
    for (r, sums) in sums.iter().enumerate().take(product.weight.rows() - first) {
        let row = first + r;
        for (t, sum) in sums.iter().enumerate() {
            product.finish(token + t, row, s.sum(*sum));
        }
    }
}
