//! Whole blocks in and out of the cache, as bytes.

use super::{BLOCK_TOKENS, Cache};
use crate::backend::cpu::lines::{bytes, bytes_mut};

impl Cache {
    /// The form of [`Cache::export`]: what differs in it cannot be exchanged.
    pub(in crate::backend::cpu) fn layout(&self) -> String {
        let order = if cfg!(target_endian = "little") { "le" } else { "be" };
        let form = self.layers.first().map(|layer| layer.form);
        let (element, heads, head_dim) =
            form.map_or_else(Default::default, |form| (form.element, form.heads, form.head_dim));
        format!("cpu-{element:?}-{order}-{}x{heads}x{head_dim}x{BLOCK_TOKENS}", self.layers.len())
    }

    /// Appends a block's bytes, layer after layer.
    pub(in crate::backend::cpu) fn export(&self, block: u32, out: &mut Vec<u8>) {
        for layer in &self.layers {
            let (at, len) = layer.lines_of(block);
            out.extend_from_slice(bytes(&layer.lines[at..at + len]));
        }
    }

    /// Fills a block with exported bytes, which must be as many as a block has.
    pub(in crate::backend::cpu) fn import(&mut self, block: u32, mut from: &[u8]) {
        for layer in &mut self.layers {
            let (at, len) = layer.lines_of(block);
            let to = bytes_mut(&mut layer.lines[at..at + len]);
            let (own, rest) = from.split_at(to.len());
            to.copy_from_slice(own);
            from = rest;
        }
    }
}
