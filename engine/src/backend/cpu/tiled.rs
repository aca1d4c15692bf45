//! Quantised activations of sixteen tokens at a time, as products on tiles read them.

use super::lines::{LANES, Line};
use super::quantise::{BLOCK, Block};

/// The blocks of sixteen tokens at the same 32 inputs.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(super) struct Tile {
    pub(super) codes: [[i8; BLOCK]; LANES],
    pub(super) scales: Line,
    /// Each token's scale times the sum of its codes.
    pub(super) sums: Line,
    /// The same of the first and of the last sixteen codes.
    pub(super) half_sums: [Line; 2],
}

impl Tile {
    pub(super) const ZERO: Self =
        Self { codes: [[0; BLOCK]; LANES], scales: Line::ZERO, sums: Line::ZERO, half_sums: [Line::ZERO; 2] };

    /// Puts a token's block into its lane.
    pub(super) fn put(&mut self, lane: usize, block: &Block) {
        self.codes[lane] = block.codes;
        self.scales.0[lane] = block.scale;
        self.sums.0[lane] = -block.scale * block.negated_sum as f32;
        for (sums, negated) in self.half_sums.iter_mut().zip(block.negated_halves) {
            sums.0[lane] = -block.scale * negated as f32;
        }
    }
}

/// A matrix of activations in tiles. Lanes beyond the last token hold what was there before.
#[derive(Debug, Default)]
pub(super) struct Tiled {
    pub(super) tiles: Vec<Tile>,
    /// Tiles of sixteen tokens.
    stride: usize,
}

impl Tiled {
    /// Makes room for so many tokens of `stride` blocks each.
    pub(super) fn reshape(&mut self, tokens: usize, stride: usize) {
        self.stride = stride;
        self.tiles.resize(tokens.div_ceil(LANES) * stride, Tile::ZERO);
    }

    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// The tiles of each sixteen tokens.
    pub(super) fn tiles(&self) -> std::slice::ChunksExact<'_, Tile> {
        self.tiles.chunks_exact(self.stride)
    }
}
