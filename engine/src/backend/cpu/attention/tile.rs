//! A tile: up to twelve queries of one key and value head, from their scores to their outputs.
#![allow(clippy::inline_always)]

use std::cell::RefCell;
use std::marker::PhantomData;

use super::parts::{Part, Sight, end_block, first_block, scored, weighed};
use super::tasks::{Spans, Task, WIDE};
use super::{Attention, Shape};
use crate::backend::BLOCK_TOKENS;
use crate::backend::cpu::cache::{self, LayerCache};
use crate::backend::cpu::element::Element;
use crate::backend::cpu::lines::{LANES, Line, SharedRows, flat};
use crate::backend::cpu::simd::{Kernel, Simd, exp};
use crate::backend::cpu::tanh::soft_cap;

/// Queries of a tile from which on all of them are computed as if there were [`WIDE`].
const NEARLY_WIDE: usize = 9;
/// Blocks between the one that is read and the one that is asked for: a block is a page or less, beyond
/// which the processor does not look ahead by itself, and read sooner than memory answers.
const AHEAD: usize = 3;
/// From so many blocks on, those of a head no longer stay in a near cache from one tile to the next.
const MANY_BLOCKS: usize = 96;

#[derive(Default)]
pub(super) struct Scratch {
    sights: Vec<Sight>,
    /// Where each query's numbers are: its row, and its first column.
    places: Vec<(usize, usize)>,
    parts: Vec<Part>,
    /// For each of a head's numbers those of all queries.
    queries: Vec<[f32; WIDE]>,
    /// Scores, then weights: for each block a line of each query.
    scores: Vec<Line>,
    totals: Vec<f32>,
    /// For each query the lines of its output.
    outputs: Vec<Line>,
}

thread_local! {
    pub(super) static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A task, on one thread.
pub(super) struct Tile<'a, E> {
    pub(super) attention: &'a Attention<'a>,
    pub(super) task: Task<'a>,
    pub(super) scratch: &'a mut Scratch,
    pub(super) out: SharedRows<'a>,
    pub(super) element: PhantomData<E>,
}

/// Calls `$run::<S, E, N>` for as many queries at a time as fit the registers, `$at` being the first.
/// Only all of a tile's are rounded up to [`WIDE`]: behind fewer of them are others.
macro_rules! by_width {
    ($queries:expr, $all:expr, $at:ident => $run:ident($($argument:expr),*)) => {{
        let (mut $at, end) = ($queries.start, $queries.end);
        while $at < end {
            let left = end - $at;
            if S::WIDE && left >= NEARLY_WIDE && left == $all {
                $run::<S, E, WIDE>($($argument),*);
                $at += WIDE;
            } else if left >= 4 {
                $run::<S, E, 4>($($argument),*);
                $at += 4;
            } else if left == 3 && !S::PLAIN {
                $run::<S, E, 3>($($argument),*);
                $at += 3;
            } else if left == 2 && !S::PLAIN {
                $run::<S, E, 2>($($argument),*);
                $at += 2;
            } else {
                $run::<S, E, 1>($($argument),*);
                $at += 1;
            }
        }
    }};
}

impl<E: Element> Kernel for Tile<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { attention, task, scratch, out, .. } = self;
        let Attention { shape, spans, cache, .. } = *attention;
        scratch.see(attention, task);
        let Scratch { sights, places, parts, queries, scores, totals, outputs } = scratch;
        let (count, width) = (sights.len(), shape.head_dim.div_ceil(LANES));
        let first = first_block(sights);
        let blocks = sights.iter().map(end_block).max().unwrap_or(first) - first;
        let area = Area {
            shape,
            head: Head { cache, index: task.kv_head, element: PhantomData::<E> },
            first,
            stride: if S::WIDE && count >= NEARLY_WIDE { WIDE } else { count },
        };
        scores.resize(area.stride * blocks, Line::ZERO);

        scored(sights, task.shared, parts);
        for part in parts.iter() {
            let table = &spans[sights[part.queries.start].span].blocks;
            // Many queries of one sequence find its blocks in a near cache.
            let near = count >= NEARLY_WIDE && matches!(task.spans, Spans::One(_));
            let ahead = !near || blocks > MANY_BLOCKS;
            by_width!(part.queries, count, at => score(s, &area, at, part, table, queries, sights, ahead, scores));
        }
        totals.clear();
        for (i, sight) in sights.iter().enumerate() {
            let own = first_block(std::slice::from_ref(sight));
            let from = (own - first) * area.stride + i;
            let lines = (end_block(sight) - own - 1) * area.stride + 1;
            totals.push(exponentials(s, &mut scores[from..from + lines], area.stride));
        }
        if E::TYPE.scaled() {
            for part in parts.iter() {
                let table = &spans[sights[part.queries.start].span].blocks;
                scale_by_values(s, &area, part, table, scores);
            }
        }

        outputs.clear();
        outputs.resize(area.stride * width, Line::ZERO);
        weighed(sights, task.shared, parts);
        for part in parts.iter() {
            let table = &spans[sights[part.queries.start].span].blocks;
            by_width!(part.queries, count, at => add(s, &area, at, part, table, scores, outputs));
        }
        for (i, (row, column)) in places.iter().enumerate() {
            let output = &outputs[i * width..(i + 1) * width];
            if shape.head_dim.is_multiple_of(LANES) {
                let total = s.splat(totals[i]);
                // SAFETY: each (token, head) pair belongs to one task, and its numbers are whole lines.
                let to = unsafe { out.lines(*row, column / LANES, width) };
                for (to, output) in to.iter_mut().zip(output) {
                    s.store(to, s.div(s.load(output), total));
                }
                continue;
            }
            for (d, x) in flat(output)[..shape.head_dim].iter().enumerate() {
                // SAFETY: each (token, head) pair belongs to one task, which writes it once.
                unsafe { out.set(*row, column + d, x / totals[i]) };
            }
        }
    }
}

impl Scratch {
    /// Takes a task's queries: what each sees, and their numbers side by side.
    fn see(&mut self, attention: &Attention<'_>, task: Task<'_>) {
        let Attention { shape, spans, queries, .. } = *attention;
        self.sights.clear();
        self.places.clear();
        self.queries.clear();
        self.queries.resize(shape.head_dim, [0.0; WIDE]);
        for i in 0..task.count {
            let (index, pair) = task.query(i, shape.group);
            let span = &spans[index];
            let (token, head) = (pair / shape.group, task.kv_head * shape.group + pair % shape.group);
            let (row, column, end) = (span.start + token, head * shape.head_dim, span.context + token + 1);
            let begin = shape.window.map_or(0, |window| end.saturating_sub(window));
            self.sights.push(Sight { span: index, sees: begin..end });
            self.places.push((row, column));
            let numbers = &queries.row(row)[column..column + shape.head_dim];
            for (to, number) in self.queries.iter_mut().zip(numbers) {
                to[i] = *number;
            }
        }
    }
}

/// What all parts of a tile have in common.
struct Area<'a, E> {
    shape: Shape,
    head: Head<'a, E>,
    /// The block of which the first scores are.
    first: usize,
    /// Lines of scores for each block.
    stride: usize,
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
    fn part(self, block: u32) -> cache::Part<'a, E> {
        self.cache.part(self.index, block)
    }
}

/// Scaled products of `T` queries from one on with the keys of a part's blocks, minus infinity for the
/// positions that a query does not see.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn score<S: Simd, E: Element, const T: usize>(
    s: S,
    area: &Area<'_, E>,
    at: usize,
    part: &Part,
    table: &[u32],
    queries: &[[f32; WIDE]],
    sights: &[Sight],
    ahead: bool,
    scores: &mut [Line],
) {
    let mut blocks = part.range.clone();
    if T == WIDE {
        // Two blocks at a time, so that each number of a query is loaded for both.
        while blocks.len() >= 2 {
            score_blocks::<S, E, T, 2>(s, area, at, blocks.start, table, queries, sights, ahead, scores);
            blocks.start += 2;
        }
    }
    for block in blocks {
        score_blocks::<S, E, T, 1>(s, area, at, block, table, queries, sights, ahead, scores);
    }
}

/// Whether the `i`-th row of some begins a line, of which each is asked for once.
#[inline(always)]
fn starts_line<E: Element>(i: usize) -> bool {
    (i * size_of::<E::Row>()).is_multiple_of(size_of::<Line>())
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn score_blocks<S: Simd, E: Element, const T: usize, const B: usize>(
    s: S,
    area: &Area<'_, E>,
    at: usize,
    block: usize,
    table: &[u32],
    queries: &[[f32; WIDE]],
    sights: &[Sight],
    ahead: bool,
    scores: &mut [Line],
) {
    let Area { shape, head, first, stride } = area;
    let mut keys = [head.part(table[block]).keys; B];
    let mut next = [std::ptr::null(); B];
    for b in 0..B {
        keys[b] = head.part(table[block + b]).keys;
        next[b] = head.part(table[(block + b + AHEAD).min(table.len() - 1)]).keys.as_ptr();
        assert!(keys[b].len() == queries.len(), "keys as wide as queries");
    }
    assert!(at + T <= WIDE, "queries of the tile");
    let mut sums = [[s.splat(0.0); T]; B];
    for (d, query) in queries.iter().enumerate() {
        let mut key = [s.splat(0.0); B];
        for b in 0..B {
            if ahead && starts_line::<E>(d) {
                s.prefetch_at(next[b].wrapping_add(d).cast());
            }
            // SAFETY: d < queries.len(), which is the length of the keys by the check above.
            key[b] = E::load(s, unsafe { keys[b].get_unchecked(d) });
        }
        for t in 0..T {
            let q = s.splat(query[at + t]);
            for b in 0..B {
                sums[b][t] = s.fma(q, key[b], sums[b][t]);
            }
        }
    }
    let scale = s.splat(shape.scale);
    for b in 0..B {
        let lines = &mut scores[(block + b - first) * stride + at..][..T];
        let scales = head.part(table[block + b]).key_scales;
        let begin = (block + b) * BLOCK_TOKENS;
        for t in 0..T {
            let mut score = sums[b][t];
            if let Some(scales) = scales {
                score = s.mul(score, s.load(scales));
            }
            score = s.mul(score, scale);
            if let Some(cap) = shape.softcap {
                score = soft_cap(s, score, cap);
            }
            s.store(&mut lines[t], score);
            let Some(sight) = sights.get(at + t) else { continue };
            if begin < sight.sees.start || begin + BLOCK_TOKENS > sight.sees.end {
                for (lane, x) in lines[t].0.iter_mut().enumerate() {
                    if !sight.sees.contains(&(begin + lane)) {
                        *x = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

/// Replaces scores, which are every `stride`-th line, by the exponentials of their distance from the
/// largest, and returns their sum.
#[inline(always)]
pub(in crate::backend::cpu) fn exponentials<S: Simd>(s: S, scores: &mut [Line], stride: usize) -> f32 {
    let mut largest = s.splat(f32::NEG_INFINITY);
    for line in scores.iter().step_by(stride) {
        largest = s.max(s.load(line), largest);
    }
    let mut lanes = Line::ZERO;
    s.store(&mut lanes, largest);
    let largest = s.splat(lanes.0.into_iter().fold(f32::NEG_INFINITY, f32::max));
    let mut total = s.splat(0.0);
    for line in scores.iter_mut().step_by(stride) {
        let weight = exp(s, s.sub(s.load(line), largest));
        s.store(line, weight);
        total = s.add(total, weight);
    }
    s.sum(total)
}

/// Multiplies the weights of a part's queries by the scales of the values that they weigh.
#[inline(always)]
fn scale_by_values<S: Simd, E: Element>(
    s: S,
    area: &Area<'_, E>,
    part: &Part,
    table: &[u32],
    weights: &mut [Line],
) {
    for block in part.range.clone() {
        let Some(scales) = area.head.part(table[block]).value_scales else { return };
        let scales = s.load(scales);
        for line in &mut weights[(block - area.first) * area.stride..][part.queries.clone()] {
            let scaled = s.mul(s.load(line), scales);
            s.store(line, scaled);
        }
    }
}

/// Adds the values of a part's positions to the outputs of `T` queries from one on by their weights, in
/// order.
#[inline(always)]
fn add<S: Simd, E: Element, const T: usize>(
    s: S,
    area: &Area<'_, E>,
    at: usize,
    part: &Part,
    table: &[u32],
    weights: &[Line],
    outputs: &mut [Line],
) {
    let width = outputs.len() / area.stride;
    let mut column = 0;
    while column < width {
        // Several lines of each query at a time where the registers hold them.
        if S::WIDE && T <= 4 && width - column >= 4 {
            add_columns::<S, E, T, 4>(s, area, at, part, table, weights, outputs, column);
            column += 4;
        } else if S::WIDE && width - column >= 2 {
            add_columns::<S, E, T, 2>(s, area, at, part, table, weights, outputs, column);
            column += 2;
        } else {
            add_columns::<S, E, T, 1>(s, area, at, part, table, weights, outputs, column);
            column += 1;
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn add_columns<S: Simd, E: Element, const T: usize, const C: usize>(
    s: S,
    area: &Area<'_, E>,
    at: usize,
    part: &Part,
    table: &[u32],
    weights: &[Line],
    outputs: &mut [Line],
    column: usize,
) {
    let width = outputs.len() / area.stride;
    let mut sums = [[s.splat(0.0); C]; T];
    for t in 0..T {
        for c in 0..C {
            sums[t][c] = s.load(&outputs[(at + t) * width + column + c]);
        }
    }
    let mut position = part.range.start;
    while position < part.range.end {
        let block = position / BLOCK_TOKENS;
        let end = part.range.end.min((block + 1) * BLOCK_TOKENS);
        let values = area.head.part(table[block]).values;
        let next = area.head.part(table[(block + AHEAD).min(table.len() - 1)]).values.as_ptr();
        let lines = &weights[(block - area.first) * area.stride + at..][..T];
        for position in position % BLOCK_TOKENS..end - block * BLOCK_TOKENS {
            let row = position * width + column;
            let values = &values[row..row + C];
            let mut value = [s.splat(0.0); C];
            for c in 0..C {
                if T <= 4 && starts_line::<E>(c) {
                    s.prefetch_at(next.wrapping_add(row + c).cast());
                }
                value[c] = E::load(s, &values[c]);
            }
            for t in 0..T {
                // SAFETY: a position in its block is below sixteen, the numbers of a line.
                let weight = s.splat(unsafe { *lines[t].0.get_unchecked(position) });
                for c in 0..C {
                    sums[t][c] = s.fma(weight, value[c], sums[t][c]);
                }
            }
        }
        position = end;
    }
    for t in 0..T {
        for c in 0..C {
            s.store(&mut outputs[(at + t) * width + column + c], sums[t][c]);
        }
    }
}
