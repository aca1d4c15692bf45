//! Quantised weights as the integers that they are stored as, for backends that multiply integers.

use super::TensorKind;
use super::kind::SUPER_BLOCK;
use super::kquant::{scale_and_min, signed_scale, two_bit_offset, two_bit_shift};

/// 32 neighbouring weights of a row: `scale × (code − zero) + minimum`, the zero being the format's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredTile {
    /// Unsigned integers of as many bits as the format's name says, four neighbours to a word, the first
    /// in its lowest byte.
    pub(crate) codes: [u32; 8],
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
    // Without a division by a number that is not known here.
    let (block, part) = if kind.block_len() == SUPER_BLOCK { (tile / 8, tile % 8) } else { (tile, 0) };
    let block = &row[block * size..][..size];
    match kind {
        TensorKind::Q4_0 => simple(block, None, None, 2),
        TensorKind::Q4_1 => simple(block, Some(2), None, 4),
        TensorKind::Q5_0 => simple(block, None, Some(2), 6),
        TensorKind::Q5_1 => simple(block, Some(2), Some(4), 8),
        TensorKind::Q8_0 => StoredTile {
            // From −128..=127 to 0..=255.
            codes: words(block, 2).map(|word| word ^ 0x8080_8080),
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

/// `N` words of a block.
fn words<const N: usize>(block: &[u8], at: usize) -> [u32; N] {
    let (bytes, _) = block[at..at + 4 * N].as_chunks::<4>();
    std::array::from_fn(|i| u32::from_le_bytes(bytes[i]))
}

/// `BITS` bits of each of four bytes, from bit `from` on.
fn field<const BITS: u32>(word: u32, from: usize) -> u32 {
    (word >> from) & (0x0101_0101 * ((1 << BITS) - 1))
}

/// The bits of a byte, the lowest first, each as a byte of two words.
fn bits(byte: u8) -> [u32; 2] {
    // Bit k of the lower seven goes to byte k: copies that are seven bits apart do not touch.
    let spread = u64::from(byte & 0x7f).wrapping_mul(0x0002_0408_1020_4081) & 0x0101_0101_0101_0101;
    let spread = spread | u64::from(byte >> 7) << 56;
    [spread as u32, (spread >> 32) as u32]
}

/// A tile from its halves.
fn joined(halves: [[u32; 4]; 2]) -> [u32; 8] {
    std::array::from_fn(|i| halves[i / 4][i % 4])
}

fn simple(block: &[u8], minimum: Option<usize>, fifth: Option<usize>, nibbles: usize) -> StoredTile {
    let packed = words::<4>(block, nibbles);
    let mut codes = joined([packed.map(|word| field::<4>(word, 0)), packed.map(|word| field::<4>(word, 4))]);
    if let Some(at) = fifth {
        for (i, byte) in block[at..at + 4].iter().enumerate() {
            let [low, high] = bits(*byte);
            codes[2 * i] |= low << 4;
            codes[2 * i + 1] |= high << 4;
        }
    }
    StoredTile {
        codes,
        scales: [pair(block, 0), [0; 2]],
        minima: [minimum.map_or([0; 2], |at| pair(block, at)), [0; 2]],
        ..StoredTile::default()
    }
}

fn q45_k(block: &[u8], part: usize, fifth: Option<usize>, nibbles: usize) -> StoredTile {
    let (scale, minimum) = scale_and_min(&block[4..16], part);
    let packed = words::<8>(block, nibbles + part / 2 * 32);
    let mut codes = packed.map(|word| field::<4>(word, part % 2 * 4));
    if let Some(at) = fifth {
        for (code, word) in codes.iter_mut().zip(words::<8>(block, at)) {
            *code |= field::<1>(word, part) << 4;
        }
    }
    StoredTile {
        codes,
        scales: [[scale, 0], [0; 2]],
        minima: [[minimum, 0], [0; 2]],
        scale_of_scales: pair(block, 0),
        scale_of_minima: pair(block, 2),
    }
}

/// The sixteen two-bit fields of half a tile, in a block whose fields begin at `at`.
fn two_bits(block: &[u8], at: usize, half: usize) -> [u32; 4] {
    words::<4>(block, at + two_bit_offset(half)).map(|word| field::<2>(word, two_bit_shift(half)))
}

fn q2_k(block: &[u8], part: usize) -> StoredTile {
    let of_half = |half: usize| block[2 * part + half];
    StoredTile {
        codes: joined([two_bits(block, 16, 2 * part), two_bits(block, 16, 2 * part + 1)]),
        scales: [[of_half(0) & 15, 0], [of_half(1) & 15, 0]],
        minima: [[of_half(0) >> 4, 0], [of_half(1) >> 4, 0]],
        scale_of_scales: pair(block, 80),
        scale_of_minima: pair(block, 82),
    }
}

fn q3_k(block: &[u8], part: usize) -> StoredTile {
    let scale = |half: usize| [signed_scale(&block[96..108], 2 * part + half) as u8, 0];
    let half = |half: usize| {
        let mut codes = two_bits(block, 32, half);
        for (code, word) in codes.iter_mut().zip(words::<4>(block, half % 2 * 16)) {
            *code |= field::<1>(word, half / 2) << 2;
        }
        codes
    };
    StoredTile {
        codes: joined([half(2 * part), half(2 * part + 1)]),
        scales: [scale(0), scale(1)],
        scale_of_scales: pair(block, 108),
        ..StoredTile::default()
    }
}

fn q6_k(block: &[u8], part: usize) -> StoredTile {
    let (half, quarter) = (part / 4, part % 4);
    let scale = |sub: usize| [block[192 + half * 8 + quarter * 2 + sub], 0];
    let low = words::<8>(block, half * 64 + quarter % 2 * 32);
    let mut codes = low.map(|word| field::<4>(word, quarter / 2 * 4));
    for (code, word) in codes.iter_mut().zip(words::<8>(block, 128 + half * 32)) {
        *code |= field::<2>(word, quarter * 2) << 4;
    }
    StoredTile {
        codes,
        scales: [scale(0), scale(1)],
        scale_of_scales: pair(block, 208),
        ..StoredTile::default()
    }
}

const _: () = assert!(SUPER_BLOCK == 256, "eight tiles share a K-quant's scales");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The `i`-th code of a tile, one at a time as the formats are described.
    fn plain(kind: TensorKind, block: &[u8], part: usize, i: usize) -> u8 {
        let nibble = |at: usize, shift: usize| (block[at] >> shift) & 15;
        let small = |fifth: Option<usize>, at: usize| {
            let bit = fifth.map_or(0, |fifth| (block[fifth + i / 8] >> (i % 8)) & 1);
            nibble(at + i % 16, i / 16 * 4) | bit << 4
        };
        let half = 2 * part + i / 16;
        let two = |at: usize| (block[at + two_bit_offset(half) + i % 16] >> two_bit_shift(half)) & 3;
        match kind {
            TensorKind::Q4_0 => small(None, 2),
            TensorKind::Q4_1 => small(None, 4),
            TensorKind::Q5_0 => small(Some(2), 6),
            TensorKind::Q5_1 => small(Some(4), 8),
            TensorKind::Q8_0 => (i16::from(block[2 + i] as i8) + 128) as u8,
            TensorKind::Q2K => two(16),
            TensorKind::Q3K => two(32) | ((block[half % 2 * 16 + i % 16] >> (half / 2)) & 1) << 2,
            TensorKind::Q4K => nibble(16 + part / 2 * 32 + i, part % 2 * 4),
            TensorKind::Q5K => {
                nibble(48 + part / 2 * 32 + i, part % 2 * 4) | ((block[16 + i] >> part) & 1) << 4
            }
            TensorKind::Q6K => {
                let (half, quarter) = (part / 4, part % 4);
                nibble(half * 64 + quarter % 2 * 32 + i, quarter / 2 * 4)
                    | ((block[128 + half * 32 + i] >> (quarter * 2)) & 3) << 4
            }
            TensorKind::F32 | TensorKind::F16 | TensorKind::BF16 => panic!("{kind} is not quantised"),
        }
    }

    proptest! {
        #[test]
        fn codes_are_those_of_the_plain_description(bytes in prop::collection::vec(any::<u8>(), 512)) {
            for kind in TensorKind::ALL.into_iter().filter(|kind| kind.block_len() > 1) {
                let row = &bytes[..2 * kind.block_bytes()];
                let tiles = kind.block_len() / 32;
                for tile in 0..2 * tiles {
                    let block = &row[tile / tiles * kind.block_bytes()..][..kind.block_bytes()];
                    let want: [u8; 32] = std::array::from_fn(|i| plain(kind, block, tile % tiles, i));
                    let got = stored_tile(kind, row, tile).codes.map(u32::to_le_bytes);
                    prop_assert_eq!(got.as_flattened(), want, "{} {}", kind, tile);
                }
            }
        }
    }
}
