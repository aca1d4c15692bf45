//! Attention among all tokens of a text, in both directions.
#![allow(clippy::inline_always)]

use std::cell::RefCell;
use std::ops::Range;

use super::super::attention::exponentials;
use super::super::lines::{LANES, Line, Rows, SharedRows, flat, flat_mut};
use super::super::simd::{Kernel, Simd};
use super::super::team::Machine;

/// Writes each token's attention over its text to `out`.
pub(super) fn attend(
    machine: &mut Machine,
    heads: usize,
    texts: &[Range<usize>],
    [queries, keys, values]: [&Rows; 3],
    out: &mut Rows,
) {
    out.reshape(queries.count(), queries.width());
    let dims = queries.width() / heads;
    let out = out.shared();
    machine.for_each(texts.len() * heads, |level, task| {
        let (text, head) = (&texts[task / heads], task % heads);
        SCRATCH.with_borrow_mut(|scratch| {
            level.run(Head { queries, keys, values, text, first: head * dims, dims, scratch, out });
        });
    });
}

#[derive(Default)]
struct Scratch {
    /// The text's keys, transposed: for each of a head's numbers a lane for each token.
    keys: Vec<Line>,
    /// Its values, each padded to whole lines.
    values: Vec<Line>,
    /// One query's scores, then weights.
    weights: Vec<Line>,
    output: Vec<Line>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// One head of one text.
struct Head<'a> {
    queries: &'a Rows,
    keys: &'a Rows,
    values: &'a Rows,
    text: &'a Range<usize>,
    /// Its first column.
    first: usize,
    dims: usize,
    scratch: &'a mut Scratch,
    out: SharedRows<'a>,
}

impl Kernel for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { queries, keys, values, text, first, dims, scratch, out } = self;
        let columns = first..first + dims;
        let (blocks, width) = (text.len().div_ceil(LANES), dims.div_ceil(LANES));
        reset(&mut scratch.keys, dims * blocks);
        reset(&mut scratch.values, text.len() * width);
        reset(&mut scratch.weights, blocks);
        reset(&mut scratch.output, width);
        for (i, row) in text.clone().enumerate() {
            for (d, x) in keys.row(row)[columns.clone()].iter().enumerate() {
                scratch.keys[d * blocks + i / LANES].0[i % LANES] = *x;
            }
            let value = &mut scratch.values[i * width..(i + 1) * width];
            flat_mut(value)[..dims].copy_from_slice(&values.row(row)[columns.clone()]);
        }
        let scale = s.splat(1.0 / (dims as f32).sqrt());
        for row in text.clone() {
            let query = &queries.row(row)[columns.clone()];
            for (b, line) in scratch.weights.iter_mut().enumerate() {
                let mut sum = s.splat(0.0);
                for (d, q) in query.iter().enumerate() {
                    sum = s.fma(s.splat(*q), s.load(&scratch.keys[d * blocks + b]), sum);
                }
                s.store(line, s.mul(sum, scale));
            }
            flat_mut(&mut scratch.weights)[text.len()..].fill(f32::NEG_INFINITY);
            let total = exponentials(s, &mut scratch.weights, 1);
            for (c, line) in scratch.output.iter_mut().enumerate() {
                let mut sum = s.splat(0.0);
                for (i, weight) in flat(&scratch.weights)[..text.len()].iter().enumerate() {
                    sum = s.fma(s.splat(*weight), s.load(&scratch.values[i * width + c]), sum);
                }
                s.store(line, sum);
            }
            for (d, x) in flat(&scratch.output)[..dims].iter().enumerate() {
                // SAFETY: a row's columns of one head belong to one task, which writes each once.
                unsafe { out.set(row, first + d, x / total) };
            }
        }
    }
}

fn reset(lines: &mut Vec<Line>, len: usize) {
    lines.clear();
    lines.resize(len, Line::ZERO);
}
