//! The paged KV cache's memory, allocated once.
//!
//! A layer's blocks lie one after the other, each with the parts of all heads, so that a whole block is
//! one run of bytes a layer. A part is the keys, transposed: a row for each of a head's numbers with a
//! lane for each token; the values: for each token rows of its numbers; and where numbers have a scale,
//! a line of the keys' scales and one of the values', a lane for each token.

mod blocks;

use super::element::{CacheType, Element, with_element};
use super::lines::{LANES, Line, Rows, Shared, ZeroedLines, bytes, bytes_mut};
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
        let layer = |_| Some(LayerCache { lines: ZeroedLines::new(lines)?, form });
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

    /// Writes each token's key and value to its slot: (block, place in it).
    pub(super) fn write(&mut self, machine: &mut Machine, slots: &[(u32, u32)], keys: &Rows, values: &Rows) {
        let form = self.form;
        let lines = Shared::new(&mut self.lines);
        machine.for_ranges(form.heads, if slots.len() < 8 { form.heads } else { 1 }, |_, heads| {
            for head in heads {
                let columns = head * form.head_dim..(head + 1) * form.head_dim;
                for (token, &(block, place)) in slots.iter().enumerate() {
                    let at = form.part_at(head, block);
                    // SAFETY: each head's parts are one task's.
                    let part = unsafe { lines.slice(at, form.part_lines()) };
                    let (key, value) = (&keys.row(token)[columns.clone()], &values.row(token)[columns.clone()]);
                    with_element!(form.element, E => write_token::<E>(form, part, place as usize, key, value));
                }
            }
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

fn write_token<E: Element>(form: Form, part: &mut [Line], place: usize, key: &[f32], value: &[f32]) {
    let (keys, rest) = part.split_at_mut(form.key_lines());
    let (values, scales) = rest.split_at_mut(form.value_lines());
    let mut scale_of = |which: usize, numbers: &[f32]| match scales.get_mut(which) {
        None => 1.0,
        Some(line) => {
            let largest = numbers.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
            line.0[place] = largest / 127.0;
            if largest > 0.0 { 127.0 / largest } else { 0.0 }
        }
    };
    let (key_factor, value_factor) = (scale_of(0, key), scale_of(1, value));
    let keys = bytes_mut(keys);
    for (d, x) in key.iter().enumerate() {
        E::put(keys, d * LANES + place, x * key_factor);
    }
    let (values, width) = (bytes_mut(values), form.head_dim.next_multiple_of(LANES));
    for (d, x) in value.iter().enumerate() {
        E::put(values, place * width + d, x * value_factor);
    }
}
