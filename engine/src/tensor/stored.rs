//! Quantised weights as the integers that they are stored as, for backends that multiply integers.

use super::TensorKind;
use super::kind::SUPER_BLOCK;
use super::kquant::{scale_and_min, signed_scale, two_bit_offset, two_bit_shift};

/// 32 neighbouring weights of a row: `scale × (code − zero) + minimum`, the zero being the format's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredTile {
    /// Unsigned integers of as many bits as the format's name says.
    pub(crate) codes: [u8; 32],
    /// For each half of the tile, or in the first for all of it: little-endian half precision; for K-quants
    /// an integer in the first byte, signed in the formats without minima.
    pub(crate) scales: [[u8; 2]; 2],
    /// Likewise. K-quants subtract theirs.
    pub(crate) minima: [[u8; 2]; 2],
    /// For K-quants: half precision, times the scale.
    pub(crate) scale_of_scales: [u8; 2],
    /// For K-quants: half precision, times the minimum.
    pub(crate) scale_of_minima: [u8; 2],
}

/// The `tile`-th 32 weights of a quantised row.
///
/// # Panics
/// For a format that is not quantised, and beyond the row.
pub(crate) fn stored_tile(kind: TensorKind, row: &[u8], tile: usize) -> StoredTile {
    let size = kind.block_bytes();
    let tiles_of_block = kind.block_len() / 32;
    let block = &row[tile / tiles_of_block * size..][..size];
    let part = tile % tiles_of_block;
    match kind {
        TensorKind::Q4_0 => simple(block, None, None, 2),
        TensorKind::Q4_1 => simple(block, Some(2), None, 4),
        TensorKind::Q5_0 => simple(block, None, Some(2), 6),
        TensorKind::Q5_1 => simple(block, Some(2), Some(4), 8),
        TensorKind::Q8_0 => StoredTile {
            // From −128..=127 to 0..=255.
            codes: std::array::from_fn(|i| block[2 + i] ^ 0x80),
            scales: [[block[0], block[1]], [0; 2]],
            ..StoredTile::default()
        },
        TensorKind::Q2K => q2_k(block, part),
        TensorKind::Q3K => q3_k(block, part),
        TensorKind::Q4K => q45_k(block, part, None, 16),
        TensorKind::Q5K => q45_k(block, part, Some(16), 48),
        TensorKind::Q6K => q6_k(block, part),
        TensorKind::F32 | TensorKind::F16 | TensorKind::BF16 => panic!("{kind} is not quantised"),
    }
}

fn pair(bytes: &[u8], at: usize) -> [u8; 2] {
    [bytes[at], bytes[at + 1]]
}

fn simple(block: &[u8], minimum: Option<usize>, fifth: Option<usize>, nibbles: usize) -> StoredTile {
    let fifth =
        fifth.map_or(0, |at| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]));
    let code = |i: usize| {
        let nibble = (block[nibbles + i % 16] >> (i / 16 * 4)) & 15;
        nibble | (((fifth >> i) & 1) as u8) << 4
    };
    StoredTile {
        codes: std::array::from_fn(code),
        scales: [pair(block, 0), [0; 2]],
        minima: [minimum.map_or([0; 2], |at| pair(block, at)), [0; 2]],
        ..StoredTile::default()
    }
}

fn q45_k(block: &[u8], part: usize, fifth: Option<usize>, nibbles: usize) -> StoredTile {
    let (scale, minimum) = scale_and_min(&block[4..16], part);
    let code = |i: usize| {
        let nibble = (block[nibbles + part / 2 * 32 + i] >> (part % 2 * 4)) & 15;
        nibble | fifth.map_or(0, |at| (block[at + i] >> part) & 1) << 4
    };
    StoredTile {
        codes: std::array::from_fn(code),
        scales: [[scale, 0], [0; 2]],
        minima: [[minimum, 0], [0; 2]],
        scale_of_scales: pair(block, 0),
        scale_of_minima: pair(block, 2),
    }
}

fn q2_k(block: &[u8], part: usize) -> StoredTile {
    let of_half = |half: usize| block[2 * part + half];
    let code = |i: usize| {
        let half = 2 * part + i / 16;
        (block[16 + two_bit_offset(half) + i % 16] >> two_bit_shift(half)) & 3
    };
    StoredTile {
        codes: std::array::from_fn(code),
        scales: [[of_half(0) & 15, 0], [of_half(1) & 15, 0]],
        minima: [[of_half(0) >> 4, 0], [of_half(1) >> 4, 0]],
        scale_of_scales: pair(block, 80),
        scale_of_minima: pair(block, 82),
    }
}

fn q3_k(block: &[u8], part: usize) -> StoredTile {
    let scale = |half: usize| [signed_scale(&block[96..108], 2 * part + half) as u8, 0];
    let code = |i: usize| {
        let half = 2 * part + i / 16;
        let low = (block[32 + two_bit_offset(half) + i % 16] >> two_bit_shift(half)) & 3;
        let third = (block[half % 2 * 16 + i % 16] >> (half / 2)) & 1;
        low | third << 2
    };
    StoredTile {
        codes: std::array::from_fn(code),
        scales: [scale(0), scale(1)],
        scale_of_scales: pair(block, 108),
        ..StoredTile::default()
    }
}

fn q6_k(block: &[u8], part: usize) -> StoredTile {
    let (half, quarter) = (part / 4, part % 4);
    let scale = |sub: usize| [block[192 + half * 8 + quarter * 2 + sub], 0];
    let code = |i: usize| {
        let nibble = (block[half * 64 + quarter % 2 * 32 + i] >> (quarter / 2 * 4)) & 15;
        nibble | ((block[128 + half * 32 + i] >> (quarter * 2)) & 3) << 4
    };
    StoredTile {
        codes: std::array::from_fn(code),
        scales: [scale(0), scale(1)],
        scale_of_scales: pair(block, 208),
        ..StoredTile::default()
    }
}

const _: () = assert!(SUPER_BLOCK == 256, "eight tiles share a K-quant's scales");
