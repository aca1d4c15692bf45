//! Grouped-query attention over block tables.
//!
//! Each query is computed by itself, position after position: its scores by one chain of
//! multiply-adds each, the sum of their exponentials over sixteen lanes by position mod 16, and its
//! output by one chain for each number. Which queries share a tile decides only what is read together.
#![allow(clippy::inline_always)]

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use super::cache::{LayerCache, Part};
use super::element::{CacheType, Element, with_element};
use super::lines::{LANES, Line, Rows, SharedRows, flat};
use super::simd::{Kernel, Simd, exp};
use super::tanh::soft_cap;
use super::team::Machine;
use crate::backend::{BLOCK_TOKENS, SequenceSpan};

/// Queries that read the cache together at most, where the registers hold them.
const WIDE: usize = 8;
/// Queries that read it together elsewhere, and where a sequence has few.
const NARROW: usize = 4;

/// Queries of one key and value head of one sequence: so many of its (token, head in the group) pairs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    span: usize,
    kv_head: usize,
    first: usize,
    wide: bool,
}

/// How the model attends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) head_dim: usize,
    pub(super) kv_heads: usize,
    /// Query heads that share a key and value head.
    pub(super) group: usize,
    /// A token sees so many, itself counted.
    pub(super) window: Option<usize>,
    /// Multiplies the products of queries and keys.
    pub(super) scale: f32,
    /// Bounds what comes out of that; see [`soft_cap`].
    pub(super) softcap: Option<f32>,
}

/// Divides a step's queries into tasks.
pub(super) fn tasks(spans: &[SequenceSpan], shape: Shape) -> Vec<Task> {
    let mut tasks = Vec::new();
    for (span, s) in spans.iter().enumerate() {
        for kv_head in 0..shape.kv_heads {
            let pairs = s.len * shape.group;
            let wide = pairs >= WIDE;
            let tile = if wide { WIDE } else { NARROW };
            tasks.extend((0..pairs).step_by(tile).map(|first| Task { span, kv_head, first, wide }));
        }
    }
    tasks
}

/// Attention of one layer for a whole step.
pub(super) struct Attention<'a> {
    pub(super) shape: Shape,
    pub(super) spans: &'a [SequenceSpan],
    pub(super) queries: &'a Rows,
    pub(super) cache: &'a LayerCache,
}

impl Attention<'_> {
    /// Writes every query's output to `out`.
    pub(super) fn run(&self, machine: &mut Machine, tasks: &[Task], out: &mut Rows) {
        out.reshape(self.queries.count(), self.queries.width());
        let out = out.shared();
        with_element!(self.cache.element(), E => {
            machine.for_ranges(tasks.len(), 1, |level, range| {
                SCRATCH.with_borrow_mut(|scratch| {
                    for task in &tasks[range] {
                        let scratch = &mut *scratch;
                        level.run_floats(Tiles::<E> { attention: self, task, scratch, out, element: PhantomData });
                    }
                });
            });
        });
    }
}

#[derive(Default)]
struct Scratch {
    /// Scores, then weights, of each query of the tile: a line for each block.
    scores: Vec<Line>,
    /// Output of each query of the tile.
    outputs: Vec<Line>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A task, as one tile or as two.
struct Tiles<'a, E> {
    attention: &'a Attention<'a>,
    task: &'a Task,
    scratch: &'a mut Scratch,
    out: SharedRows<'a>,
    element: PhantomData<E>,
}

/// One query of a tile.
#[derive(Clone)]
struct Query<'a> {
    row: usize,
    column: usize,
    q: &'a [f32],
    /// Positions that it sees.
    sees: Range<usize>,
}

impl<E: Element> Kernel for Tiles<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let first = self.task.first;
        if self.task.wide && S::WIDE {
            return self.tile::<S, WIDE>(s, first);
        }
        let pairs = self.attention.spans[self.task.span].len * self.attention.shape.group;
        let end = if self.task.wide { pairs.min(first + WIDE) } else { first + 1 };
        for first in (first..end).step_by(NARROW) {
            self.tile::<S, NARROW>(s, first);
        }
    }
}

impl<E: Element> Tiles<'_, E> {
    /// `TILE` queries from the pair `from` on.
    #[inline(always)]
    fn tile<S: Simd, const TILE: usize>(&mut self, s: S, from: usize) {
        let Attention { shape, spans, queries, cache } = *self.attention;
        let span = &spans[self.task.span];
        let count = TILE.min(span.len * shape.group - from);
        // A tile that is not full repeats its last query.
        let tile: [Query<'_>; TILE] = std::array::from_fn(|i| {
            let pair = from + i.min(count - 1);
            let (token, head) = (pair / shape.group, self.task.kv_head * shape.group + pair % shape.group);
            let (row, column, end) = (span.start + token, head * shape.head_dim, span.context + token + 1);
            let begin = shape.window.map_or(0, |window| end.saturating_sub(window));
            let q = &queries.row(row)[column..column + shape.head_dim];
            Query { row, column, q, sees: begin..end }
        });
        let head = Head { cache, index: self.task.kv_head, element: self.element };
        let blocks = tile[0].sees.start / BLOCK_TOKENS..tile[TILE - 1].sees.end.div_ceil(BLOCK_TOKENS);
        let table = &span.blocks[blocks.clone()];
        let first = blocks.start * BLOCK_TOKENS;

        let len = table.len();
        self.scratch.scores.resize(TILE * len, Line::ZERO);
        score(s, shape, &tile, head, table, first, &mut self.scratch.scores);
        let mut totals = [0.0; TILE];
        for (row, total) in self.scratch.scores.chunks_exact_mut(len).zip(&mut totals) {
            *total = exponentials(s, row);
        }
        if E::TYPE.scaled() {
            scale_by_values(s, head, table, &mut self.scratch.scores);
        }

        let width = shape.head_dim.div_ceil(LANES);
        self.scratch.outputs.clear();
        self.scratch.outputs.resize(TILE * width, Line::ZERO);
        let weights = flat(&self.scratch.scores);
        let sees = tile.each_ref().map(|query| query.sees.start - first..query.sees.end - first);
        weigh(s, weights, &sees, head, table, &mut self.scratch.outputs);

        for (i, query) in tile.iter().enumerate().take(count) {
            let output = &self.scratch.outputs[i * width..(i + 1) * width];
            if shape.head_dim.is_multiple_of(LANES) {
                let total = s.splat(totals[i]);
                // SAFETY: each (token, head) pair belongs to one task, and its numbers are whole lines.
                let to = unsafe { self.out.lines(query.row, query.column / LANES, width) };
                for (to, output) in to.iter_mut().zip(output) {
                    s.store(to, s.div(s.load(output), total));
                }
                continue;
            }
            let output = flat(output);
            for (d, x) in output[..shape.head_dim].iter().enumerate() {
                // SAFETY: each (token, head) pair belongs to one task, which writes it once.
                unsafe { self.out.set(query.row, query.column + d, x / totals[i]) };
            }
        }
    }
}

/// One key and value head of a layer's cache.
#[derive(Clone, Copy)]
struct Head<'a, E> {
    cache: &'a LayerCache,
    index: usize,
    element: PhantomData<E>,
}

impl<'a, E: Element> Head<'a, E> {
    #[inline(always)]
    fn part(self, block: u32) -> Part<'a, E> {
        self.cache.part(self.index, block)
    }
}

/// Multiplies each query's weights by the scales of the values that they weigh.
#[inline(always)]
fn scale_by_values<S: Simd, E: Element>(s: S, head: Head<'_, E>, table: &[u32], weights: &mut [Line]) {
    for (b, block) in table.iter().enumerate() {
        let Some(scales) = head.part(*block).value_scales else { return };
        let scales = s.load(scales);
        for line in weights[b..].iter_mut().step_by(table.len()) {
            let scaled = s.mul(s.load(line), scales);
            s.store(line, scaled);
        }
    }
}

/// Scaled products of each query with the keys of its positions, minus infinity for all others.
#[inline(always)]
fn score<S: Simd, E: Element, const TILE: usize>(
    s: S,
    shape: Shape,
    tile: &[Query<'_>; TILE],
    head: Head<'_, E>,
    table: &[u32],
    first: usize,
    scores: &mut [Line],
) {
    let len = table.len();
    let dims = tile[0].q.len();
    assert!(scores.len() == TILE * len && tile.iter().all(|query| query.q.len() == dims), "whole queries");
    let scale = s.splat(shape.scale);
    for (b, block) in table.iter().enumerate() {
        let part = head.part(*block);
        let keys = part.keys;
        assert!(keys.len() == dims, "keys as wide as queries");
        let next = head.part(table[(b + 1).min(len - 1)]).keys.as_ptr();
        let mut sums = [s.splat(0.0); TILE];
        for (d, key) in keys.iter().enumerate() {
            // A block is a page or less, beyond which the processor does not look ahead by itself. Many
            // queries of one sequence find it in a near cache.
            if TILE <= NARROW {
                s.prefetch_at(next.wrapping_add(d).cast());
            }
            let key = E::load(s, key);
            for (sum, query) in sums.iter_mut().zip(tile) {
                // SAFETY: d < keys.len(), which is dims, which is the length of every q, both checked.
                let q = unsafe { *query.q.get_unchecked(d) };
                *sum = s.fma(s.splat(q), key, *sum);
            }
        }
        if let Some(scales) = part.key_scales {
            let scales = s.load(scales);
            for sum in &mut sums {
                *sum = s.mul(*sum, scales);
            }
        }
        for (i, (sum, query)) in sums.iter().zip(tile).enumerate() {
            let line = &mut scores[i * len + b];
            let scaled = s.mul(*sum, scale);
            let capped = match shape.softcap {
                Some(cap) => soft_cap(s, scaled, cap),
                None => scaled,
            };
            s.store(line, capped);
            let begin = first + b * BLOCK_TOKENS;
            if begin < query.sees.start || begin + BLOCK_TOKENS > query.sees.end {
                for (lane, x) in line.0.iter_mut().enumerate() {
                    if !query.sees.contains(&(begin + lane)) {
                        *x = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

/// Replaces scores by the exponentials of their distance from the largest, and returns their sum.
#[inline(always)]
pub(super) fn exponentials<S: Simd>(s: S, scores: &mut [Line]) -> f32 {
    let mut largest = s.splat(f32::NEG_INFINITY);
    for line in scores.iter() {
        largest = s.max(s.load(line), largest);
    }
    let mut lanes = Line::ZERO;
    s.store(&mut lanes, largest);
    let largest = s.splat(lanes.0.into_iter().fold(f32::NEG_INFINITY, f32::max));
    let mut total = s.splat(0.0);
    for line in scores {
        let weight = exp(s, s.sub(s.load(line), largest));
        s.store(line, weight);
        total = s.add(total, weight);
    }
    s.sum(total)
}

/// Adds up the values of each query's positions by weight. Positions count from the table's start.
#[inline(always)]
fn weigh<S: Simd, E: Element, const TILE: usize>(
    s: S,
    weights: &[f32],
    sees: &[Range<usize>; TILE],
    head: Head<'_, E>,
    table: &[u32],
    outputs: &mut [Line],
) {
    let (len, width) = (table.len() * BLOCK_TOKENS, outputs.len() / TILE);
    // All queries see the middle. What only some see is added for each alone, so that a position beyond
    // a query's own never enters its sum, not even with the weight zero.
    let middle =
        sees.iter().map(|r| r.start).max().unwrap_or(0)..sees.iter().map(|r| r.end).min().unwrap_or(0);
    // Before the middle, the middle, and after it; all of it before where there is none.
    for (i, own) in sees.iter().enumerate() {
        let before = own.start..if middle.is_empty() { own.end } else { middle.start };
        let row = [&weights[i * len..(i + 1) * len]];
        add::<S, E, 1>(s, row, before, head, table, &mut outputs[i * width..(i + 1) * width]);
    }
    if middle.is_empty() {
        return;
    }
    let rows: [&[f32]; TILE] = std::array::from_fn(|i| &weights[i * len..(i + 1) * len]);
    add::<S, E, TILE>(s, rows, middle.clone(), head, table, outputs);
    for (i, own) in sees.iter().enumerate() {
        let row = [&weights[i * len..(i + 1) * len]];
        let output = &mut outputs[i * width..(i + 1) * width];
        add::<S, E, 1>(s, row, middle.end..own.end, head, table, output);
    }
}

/// Adds the values of `positions` to `Q` outputs by their weights, in order.
#[inline(always)]
fn add<S: Simd, E: Element, const Q: usize>(
    s: S,
    weights: [&[f32]; Q],
    positions: Range<usize>,
    head: Head<'_, E>,
    table: &[u32],
    outputs: &mut [Line],
) {
    if positions.is_empty() {
        return;
    }
    let width = outputs.len() / Q;
    let mut column = 0;
    while column < width {
        // Several lines of each query at a time where the registers hold them.
        if S::WIDE && Q <= NARROW && width - column >= 4 {
            add_columns::<S, E, Q, 4>(s, weights, positions.clone(), head, table, outputs, column);
            column += 4;
        } else if S::WIDE && width - column >= 2 {
            add_columns::<S, E, Q, 2>(s, weights, positions.clone(), head, table, outputs, column);
            column += 2;
        } else {
            add_columns::<S, E, Q, 1>(s, weights, positions.clone(), head, table, outputs, column);
            column += 1;
        }
    }
}

#[inline(always)]
fn add_columns<S: Simd, E: Element, const Q: usize, const C: usize>(
    s: S,
    weights: [&[f32]; Q],
    positions: Range<usize>,
    head: Head<'_, E>,
    table: &[u32],
    outputs: &mut [Line],
    column: usize,
) {
    let width = outputs.len() / Q;
    let mut sums = [[s.splat(0.0); C]; Q];
    for (q, sums) in sums.iter_mut().enumerate() {
        for (c, sum) in sums.iter_mut().enumerate() {
            *sum = s.load(&outputs[q * width + column + c]);
        }
    }
    let mut at = positions.start;
    while at < positions.end {
        let block = at / BLOCK_TOKENS;
        let end = positions.end.min((block + 1) * BLOCK_TOKENS);
        let values = head.part(table[block]).values;
        let next = head.part(table[(block + 1).min(table.len() - 1)]).values.as_ptr();
        for position in at..end {
            let row = position % BLOCK_TOKENS * width + column;
            if Q <= NARROW {
                s.prefetch_at(next.wrapping_add(row).cast());
            }
            let values = &values[row..row + C];
            // No closure: one that is not inlined would be compiled without the wider instructions.
            let mut splats = [s.splat(0.0); Q];
            for (splat, weights) in splats.iter_mut().zip(weights) {
                *splat = s.splat(weights[position]);
            }
            for c in 0..C {
                let value = E::load(s, &values[c]);
                for (sums, weight) in sums.iter_mut().zip(splats) {
                    sums[c] = s.fma(weight, value, sums[c]);
                }
            }
        }
        at = end;
    }
    for (q, sums) in sums.iter().enumerate() {
        for (c, sum) in sums.iter().enumerate() {
            s.store(&mut outputs[q * width + column + c], *sum);
        }
    }
}
