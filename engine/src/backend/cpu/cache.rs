//! The paged KV cache's memory: 32-bit floats, allocated once.
//!
//! 32 bits rather than 16, because the first thing asked of this backend is to agree with the
//! reference; a narrower cache is a matter of this file and the attention kernel's two loads.

mod blocks;

use super::lines::{LANES, Line, Rows, Shared, ZeroedLines, flat_mut};
use super::team::Machine;
use crate::backend::BLOCK_TOKENS;
use crate::model::spec::ModelSpec;

// A block's keys lie transposed, one line for each of a head's numbers with a lane for each token.
const _: () = assert!(BLOCK_TOKENS == LANES, "a line holds a block of tokens");

/// Keys and values of all layers.
pub(super) struct Cache {
    layers: Vec<LayerCache>,
}

/// Keys and values of one layer, by head, then block.
pub(super) struct LayerCache {
    /// A block is `head_dim` lines, one lane a token.
    keys: ZeroedLines,
    /// A block is `BLOCK_TOKENS` rows of `head_dim` padded to whole lines.
    values: ZeroedLines,
    head_dim: usize,
    blocks: usize,
}

/// One head's keys and values in one layer.
#[derive(Clone, Copy)]
pub(super) struct HeadCache<'a> {
    keys: &'a [Line],
    values: &'a [Line],
    head_dim: usize,
}

/// Bytes of a block over all layers.
pub(super) fn block_bytes(spec: &ModelSpec) -> usize {
    let lines = spec.head_dim + BLOCK_TOKENS * spec.head_dim.div_ceil(LANES);
    lines * size_of::<Line>() * spec.kv_heads * spec.layers
}

impl Cache {
    /// Memory for `blocks` blocks; none when the system refuses it.
    pub(super) fn new(spec: &ModelSpec, blocks: usize) -> Option<Self> {
        let heads = spec.kv_heads.checked_mul(blocks)?;
        let keys = heads.checked_mul(spec.head_dim)?;
        let values = heads.checked_mul(BLOCK_TOKENS * spec.head_dim.div_ceil(LANES))?;
        let layer = |_| {
            Some(LayerCache {
                keys: ZeroedLines::new(keys)?,
                values: ZeroedLines::new(values)?,
                head_dim: spec.head_dim,
                blocks,
            })
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
    /// Writes each token's key and value to its slot: (block, place in it).
    pub(super) fn write(&mut self, machine: &mut Machine, slots: &[(u32, u32)], keys: &Rows, values: &Rows) {
        let (head_dim, width, blocks) = (self.head_dim, self.head_dim.div_ceil(LANES), self.blocks);
        let heads = keys.width() / head_dim;
        let key_lines = Shared::new(&mut self.keys);
        let value_lines = Shared::new(&mut self.values);
        machine.for_ranges(heads, slots.len().min(1), |_, range| {
            for head in range {
                let part = head * head_dim..(head + 1) * head_dim;
                for (token, &(block, place)) in slots.iter().enumerate() {
                    let (block, place) = (head * blocks + block as usize, place as usize);
                    // SAFETY: each head is one task's.
                    let block_keys = unsafe { key_lines.slice(block * head_dim, head_dim) };
                    for (line, x) in block_keys.iter_mut().zip(&keys.row(token)[part.clone()]) {
                        line.0[place] = *x;
                    }
                    // SAFETY: as above.
                    let row = unsafe { value_lines.slice((block * BLOCK_TOKENS + place) * width, width) };
                    flat_mut(row)[..head_dim].copy_from_slice(&values.row(token)[part.clone()]);
                }
            }
        });
    }

    /// One head's part.
    pub(super) fn head(&self, head: usize) -> HeadCache<'_> {
        let keys = self.blocks * self.head_dim;
        let values = self.blocks * BLOCK_TOKENS * self.head_dim.div_ceil(LANES);
        HeadCache {
            keys: &self.keys[head * keys..(head + 1) * keys],
            values: &self.values[head * values..(head + 1) * values],
            head_dim: self.head_dim,
        }
    }
}

impl<'a> HeadCache<'a> {
    /// A block's keys: a line for each of a head's numbers, a lane for each token.
    #[inline]
    pub(super) fn keys(&self, block: u32) -> &'a [Line] {
        let at = block as usize * self.head_dim;
        &self.keys[at..at + self.head_dim]
    }

    /// A block's values: for each token the lines of its value.
    #[inline]
    pub(super) fn values(&self, block: u32) -> &'a [Line] {
        let len = BLOCK_TOKENS * self.head_dim.div_ceil(LANES);
        let at = block as usize * len;
        &self.values[at..at + len]
    }
}
