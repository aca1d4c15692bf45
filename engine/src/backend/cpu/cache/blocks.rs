//! Whole blocks in and out of the cache, as bytes.

use super::{BLOCK_TOKENS, Cache, LANES, LayerCache};
use crate::backend::cpu::lines::{Line, flat, flat_mut};

impl Cache {
    /// The form of [`Cache::export`]: what differs in it cannot be exchanged.
    pub(in crate::backend::cpu) fn layout(&self) -> String {
        let (head_dim, heads) = self.layers.first().map_or((0, 0), |layer| (layer.head_dim, layer.heads()));
        let order = if cfg!(target_endian = "little") { "le" } else { "be" };
        format!("cpu-f32-{order}-{}x{heads}x{head_dim}x{BLOCK_TOKENS}", self.layers.len())
    }

    /// Appends a block's numbers: by layer, then head, the keys and then the values.
    pub(in crate::backend::cpu) fn export(&self, block: u32, bytes: &mut Vec<u8>) {
        for layer in &self.layers {
            for head in 0..layer.heads() {
                let part = layer.head(head);
                for lines in [part.keys(block), part.values(block)] {
                    bytes.extend_from_slice(bytemuck::cast_slice(flat(lines)));
                }
            }
        }
    }

    /// Fills a block with exported numbers, which must be as many as a block has.
    pub(in crate::backend::cpu) fn import(&mut self, block: u32, mut bytes: &[u8]) {
        let mut fill = |lines: &mut [Line]| {
            let to: &mut [u8] = bytemuck::cast_slice_mut(flat_mut(lines));
            let (own, rest) = bytes.split_at(to.len());
            to.copy_from_slice(own);
            bytes = rest;
        };
        for layer in &mut self.layers {
            for head in 0..layer.heads() {
                let (keys, values) = layer.block_mut(head, block as usize);
                fill(keys);
                fill(values);
            }
        }
    }
}

impl LayerCache {
    fn heads(&self) -> usize {
        self.keys.len() / (self.blocks * self.head_dim).max(1)
    }

    fn block_mut(&mut self, head: usize, block: usize) -> (&mut [Line], &mut [Line]) {
        let at = head * self.blocks + block;
        let (keys, values) = (self.head_dim, BLOCK_TOKENS * self.head_dim.div_ceil(LANES));
        (&mut self.keys[at * keys..(at + 1) * keys], &mut self.values[at * values..(at + 1) * values])
    }
}
