//! The paged KV cache's memory, allocated once.
//!
//! A layer's blocks lie one after the other, each with the parts of all heads, so that a whole block is
//! one run of bytes a layer. A part is the keys, transposed: a row for each of a head's numbers with a
//! lane for each token; the values: for each token rows of its numbers; and where numbers have a scale,
//! a line of the keys' scales and one of the values', a lane for each token.

#![allow(clippy::inline_always)]

mod blocks;

use std::marker::PhantomData;
use std::ops::Range;

use super::element::{CacheType, Element, with_element};
use super::lines::{LANES, Line, Rows, Shared, ZeroedLines, bytes, bytes_mut};
use super::simd::{Kernel, Simd};
use super::team::Machine;
use crate::backend::BLOCK_TOKENS;
use crate::model::spec::ModelSpec;

// A block's keys lie transposed, one row for each of a head's numbers with a lane for each token.
const _: () = assert!(BLOCK_TOKENS == LANES, "a row holds a block of tokens");

/// Keys and values of all layers.
pub(super) struct Cache {
    layers: Vec<LayerCache>,
}

/// Keys and values of one layer.
pub(super) struct LayerCache {
    lines: ZeroedLines,
    form: Form,
}

/// How a layer's memory is divided.
#[derive(Clone, Copy, Debug)]
struct Form {
    element: CacheType,
    heads: usize,
    head_dim: usize,
}

impl Form {
    fn of(spec: &ModelSpec, element: CacheType) -> Self {
        Self { element, heads: spec.kv_heads, head_dim: spec.head_dim }
    }

    /// Lines of the keys, or of the values, of one head in one block.
    fn key_lines(self) -> usize {
        (self.head_dim * LANES * self.element.bytes()).div_ceil(size_of::<Line>())
    }

    fn value_lines(self) -> usize {
        let numbers = BLOCK_TOKENS * self.head_dim.next_multiple_of(LANES);
        (numbers * self.element.bytes()).div_ceil(size_of::<Line>())
    }

    fn scale_lines(self) -> usize {
        if self.element.scaled() { 2 } else { 0 }
    }

    /// Lines of one head in one block.
    fn part_lines(self) -> usize {
        self.key_lines() + self.value_lines() + self.scale_lines()
    }

    fn block_lines(self) -> usize {
        self.heads * self.part_lines()
    }

    /// Where one head's lines of a block begin.
    fn part_at(self, head: usize, block: u32) -> usize {
        block as usize * self.block_lines() + head * self.part_lines()
    }
}

/// Bytes of a block over all layers.
pub(super) fn block_bytes(spec: &ModelSpec, element: CacheType) -> usize {
    Form::of(spec, element).block_lines() * size_of::<Line>() * spec.layers
}

impl Cache {
    /// Memory for `blocks` blocks; none when the system refuses it.
    pub(super) fn new(spec: &ModelSpec, element: CacheType, blocks: usize) -> Option<Self> {
        let form = Form::of(spec, element);
        let lines = blocks.checked_mul(form.block_lines())?;
        let layer = |_| {
            let lines = ZeroedLines::new(lines)?;
            lines.use_large_pages();
            Some(LayerCache { lines, form })
        };
        Some(Self { layers: (0..spec.layers).map(layer).collect::<Option<_>>()? })
    }

    pub(super) fn layer(&self, layer: usize) -> &LayerCache {
        &self.layers[layer]
    }

    pub(super) fn layer_mut(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }
}

impl LayerCache {
    pub(super) fn element(&self) -> CacheType {
        self.form.element
    }

    /// Where a block's lines begin, and how many they are.
    fn lines_of(&self, block: u32) -> (usize, usize) {
        let len = self.form.block_lines();
        (self.form.part_at(0, block), len)
    }

    /// Writes each token's key and value to its slot: (block, place in it). Slots of one block are
    /// neighbours.
    pub(super) fn write(&mut self, machine: &mut Machine, slots: &[(u32, u32)], keys: &Rows, values: &Rows) {
        let form = self.form;
        let lines = Shared::new(&mut self.lines);
        with_element!(form.element, E => {
            machine.for_ranges(slots.len(), BLOCK_TOKENS, |level, tokens| {
                // A block goes to the range that has its first token.
                let is_first = |token: usize| token == 0 || slots[token - 1].0 != slots[token].0;
                let first = tokens.clone().find(|token| is_first(*token)).unwrap_or(tokens.end);
                let end = (tokens.end..slots.len()).find(|token| is_first(*token)).unwrap_or(slots.len());
                let same = |token: &usize| slots[*token].0;
                let mut blocks = (first..if first < tokens.end { end } else { first }).peekable();
                while let Some(from) = blocks.next() {
                    let mut to = from + 1;
                    while blocks.next_if(|token| same(token) == same(&from)).is_some() {
                        to += 1;
                    }
                    for head in 0..form.heads {
                        let at = form.part_at(head, slots[from].0);
                        // SAFETY: each block is one range's.
                        let part = unsafe { lines.slice(at, form.part_lines()) };
                        let (tokens, element) = (from..to, PhantomData::<E>);
                        level.run_floats(Write { form, head, part, tokens, slots, keys, values, element });
                    }
                }
            });
        });
    }

    /// One head's part of a block.
    #[inline(always)]
    #[allow(clippy::inline_always)]
    pub(super) fn part<E: Element>(&self, head: usize, block: u32) -> Part<'_, E> {
        let form = self.form;
        let at = form.part_at(head, block);
        let part = &self.lines[at..at + form.part_lines()];
        let (keys, rest) = part.split_at(form.key_lines());
        let (values, scales) = rest.split_at(form.value_lines());
        Part {
            keys: &E::rows(bytes(keys))[..form.head_dim],
            values: E::rows(bytes(values)),
            key_scales: scales.first(),
            value_scales: scales.get(1),
        }
    }
}

/// One head's keys and values in one block.
#[derive(Clone, Copy)]
pub(super) struct Part<'a, E: Element> {
    /// A row for each of a head's numbers, a lane for each token.
    pub(super) keys: &'a [E::Row],
    /// For each token the rows of its value.
    pub(super) values: &'a [E::Row],
    /// A lane for each token.
    pub(super) key_scales: Option<&'a Line>,
    pub(super) value_scales: Option<&'a Line>,
}

/// Writes the keys and values of one head for tokens that lie in one block.
struct Write<'a, E> {
    form: Form,
    head: usize,
    part: &'a mut [Line],
    tokens: Range<usize>,
    slots: &'a [(u32, u32)],
    keys: &'a Rows,
    values: &'a Rows,
    element: PhantomData<E>,
}

impl<E: Element> Kernel for Write<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { form, head, part, tokens, slots, keys, values, element: _ } = self;
        let (key_lines, rest) = part.split_at_mut(form.key_lines());
        let (value_lines, scales) = rest.split_at_mut(form.value_lines());
        let (key_bytes, value_bytes) = (bytes_mut(key_lines), bytes_mut(value_lines));
        let (size, columns) = (E::TYPE.bytes(), head * form.head_dim..(head + 1) * form.head_dim);
        let width = form.head_dim.next_multiple_of(LANES);
        for token in tokens {
            let place = slots[token].1 as usize;
            let (key, value) = (&keys.row(token)[columns.clone()], &values.row(token)[columns.clone()]);
            let mut factors = [1.0; 2];
            for ((line, numbers), factor) in scales.iter_mut().zip([key, value]).zip(&mut factors) {
                let mut largest = 0.0_f32;
                for x in numbers {
                    largest = largest.max(x.abs());
                }
                line.0[place] = largest / 127.0;
                *factor = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            }
            for (i, numbers) in key.chunks(LANES).enumerate() {
                let row = store_row::<S, E>(s, numbers, factors[0]);
                for (d, number) in E::bytes(&row).chunks_exact(size).take(numbers.len()).enumerate() {
                    let at = ((i * LANES + d) * LANES + place) * size;
                    key_bytes[at..at + size].copy_from_slice(number);
                }
            }
            for (i, numbers) in value.chunks(LANES).enumerate() {
                let row = store_row::<S, E>(s, numbers, factors[1]);
                let at = (place * width + i * LANES) * size;
                value_bytes[at..at + numbers.len() * size]
                    .copy_from_slice(&E::bytes(&row)[..numbers.len() * size]);
            }
        }
    }
}

/// Up to sixteen numbers, times a factor, as they are stored.
#[inline(always)]
fn store_row<S: Simd, E: Element>(s: S, numbers: &[f32], factor: f32) -> E::Row {
    let mut line = Line::ZERO;
    line.0[..numbers.len()].copy_from_slice(numbers);
    E::store(s, s.mul(s.load(&line), s.splat(factor)))
}
