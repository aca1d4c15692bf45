//! Weights repacked for integer products.
//!
//! Sixteen rows of a matrix, a group, lie together, cut into tiles of 32 inputs. A weight is a code, an
//! unsigned integer of two to eight bits, and sixteen or 32 codes of a row share a scale and perhaps a
//! minimum. The codes of a tile lie so that one load gives four neighbouring inputs of all sixteen rows:
//! byte `4 r + k` of vector `j` is row `r`, input `4 j + k`. Codes of fewer than eight bits share bytes:
//! nibble `n` of vector `i` belongs to vector `i + 4 n`, two-bit field `n` to vector `i + 2 n`, bit `n` to
//! vector `n`.
#![allow(clippy::inline_always, clippy::many_single_char_names)]

use super::lines::{LANES, Line};
use super::simd::{CODES, Simd};

/// Vectors of codes in a tile.
pub(super) const VECTORS: usize = 8;

/// Codes of one vector for four inputs of sixteen rows.
pub(super) type Vector = [u8; CODES];

/// How codes lie.
pub(super) trait Codes: Copy + Sync {
    /// Whether codes go beyond 127.
    const WIDE: bool = false;

    /// The codes of a tile.
    fn tile<S: Simd>(self, s: S, tile: usize) -> [S::U; VECTORS];
}

/// The bytes after some groups, that are asked for before they are needed.
#[derive(Clone, Copy)]
pub(super) struct Ahead<'a> {
    /// What lies behind is what is asked for.
    bytes: &'a [u8],
    /// Lines for each tile, so that the groups' tiles ask for as many as the groups have.
    step: usize,
}

/// Bytes between a group's beginning and what its first tile asks for, when it is read alone: as many as
/// are multiplied while memory answers.
const AHEAD: usize = 4096;

impl<'a> Ahead<'a> {
    /// For `N` groups that are read side by side, of so many tiles each. Of several groups every tile needs
    /// bytes far from each other, so they ask for those of the groups after them.
    pub(super) fn new<const N: usize>(groups: &'a [u8], tiles: usize) -> Self {
        let step = groups.len().div_ceil(size_of::<Line>()).div_ceil(tiles.max(1));
        let bytes = if N == 1 { &groups[..AHEAD.min(groups.len())] } else { groups };
        Self { bytes, step }
    }

    /// Asks for one tile's share of the bytes.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(self, s: S, tile: usize) {
        let end = self.bytes.as_ptr_range().end;
        let from = end.wrapping_add(tile * self.step * size_of::<Line>());
        for line in 0..self.step {
            s.prefetch_at(from.wrapping_add(line * size_of::<Line>()));
        }
    }
}

/// Eight bits.
#[derive(Clone, Copy)]
pub(super) struct Eight<'a>(pub(super) &'a [[Vector; 8]]);
/// Eight bits of which one is clear.
#[derive(Clone, Copy)]
pub(super) struct Seven<'a>(pub(super) &'a [[Vector; 8]]);
/// Nibbles.
#[derive(Clone, Copy)]
pub(super) struct Four<'a>(pub(super) &'a [[Vector; 4]]);
/// Two bits.
#[derive(Clone, Copy)]
pub(super) struct Two<'a>(pub(super) &'a [[Vector; 2]]);
/// Nibbles and a fifth bit.
#[derive(Clone, Copy)]
pub(super) struct Five<'a>(pub(super) Four<'a>, pub(super) &'a [Vector]);
/// Nibbles and two upper bits.
#[derive(Clone, Copy)]
pub(super) struct Six<'a>(pub(super) Four<'a>, pub(super) Two<'a>);
/// Two bits and a third.
#[derive(Clone, Copy)]
pub(super) struct Three<'a>(pub(super) Two<'a>, pub(super) &'a [Vector]);

impl Codes for Eight<'_> {
    const WIDE: bool = true;

    #[inline(always)]
    fn tile<S: Simd>(self, s: S, tile: usize) -> [S::U; VECTORS] {
        let [a, b, c, d, e, f, g, h] = &self.0[tile];
        let [a, b, c, d] = [s.codes(a), s.codes(b), s.codes(c), s.codes(d)];
        [a, b, c, d, s.codes(e), s.codes(f), s.codes(g), s.codes(h)]
    }
}

impl Codes for Seven<'_> {
    #[inline(always)]
    fn tile<S: Simd>(self, s: S, tile: usize) -> [S::U; VECTORS] {
        Eight(self.0).tile(s, tile)
    }
}

impl Codes for Four<'_> {
    #[inline(always)]
    fn tile<S: Simd>(self, s: S, tile: usize) -> [S::U; VECTORS] {
        let tile = &self.0[tile];
        let [a, b, c, d] = [s.codes(&tile[0]), s.codes(&tile[1]), s.codes(&tile[2]), s.codes(&tile[3])];
        [
            s.code_bits::<0>(a, 15),
            s.code_bits::<0>(b, 15),
            s.code_bits::<0>(c, 15),
            s.code_bits::<0>(d, 15),
            s.code_bits::<4>(a, 15),
            s.code_bits::<4>(b, 15),
            s.code_bits::<4>(c, 15),
            s.code_bits::<4>(d, 15),
        ]
    }
}

impl Codes for Two<'_> {
    #[inline(always)]
    fn tile<S: Simd>(self, s: S, tile: usize) -> [S::U; VECTORS] {
        let tile = &self.0[tile];
        let (a, b) = (s.codes(&tile[0]), s.codes(&tile[1]));
        [
            s.code_bits::<0>(a, 3),
            s.code_bits::<0>(b, 3),
            s.code_bits::<2>(a, 3),
            s.code_bits::<2>(b, 3),
            s.code_bits::<4>(a, 3),
            s.code_bits::<4>(b, 3),
            s.code_bits::<6>(a, 3),
            s.code_bits::<6>(b, 3),
        ]
    }
}

/// Each vector's bit of the bytes.
#[inline(always)]
fn bits<S: Simd>(s: S, vector: &Vector) -> [S::U; VECTORS] {
    let u = s.codes(vector);
    [
        s.code_bits::<0>(u, 1),
        s.code_bits::<1>(u, 1),
        s.code_bits::<2>(u, 1),
        s.code_bits::<3>(u, 1),
        s.code_bits::<4>(u, 1),
        s.code_bits::<5>(u, 1),
        s.code_bits::<6>(u, 1),
        s.code_bits::<7>(u, 1),
    ]
}

/// `low | high << SHIFT` of each code.
#[inline(always)]
fn join<S: Simd, const SHIFT: u32>(s: S, low: [S::U; VECTORS], high: [S::U; VECTORS]) -> [S::U; VECTORS] {
    let mut codes = low;
    for (code, high) in codes.iter_mut().zip(high) {
        *code = s.code_join::<SHIFT>(*code, high);
    }
    codes
}

impl Codes for Five<'_> {
    #[inline(always)]
    fn tile<S: Simd>(self, s: S, tile: usize) -> [S::U; VECTORS] {
        let (low, high) = (self.0.tile(s, tile), bits(s, &self.1[tile]));
        join::<S, 4>(s, low, high)
    }
}

impl Codes for Six<'_> {
    #[inline(always)]
    fn tile<S: Simd>(self, s: S, tile: usize) -> [S::U; VECTORS] {
        let (low, high) = (self.0.tile(s, tile), self.1.tile(s, tile));
        join::<S, 4>(s, low, high)
    }
}

impl Codes for Three<'_> {
    #[inline(always)]
    fn tile<S: Simd>(self, s: S, tile: usize) -> [S::U; VECTORS] {
        let (low, high) = (self.0.tile(s, tile), bits(s, &self.1[tile]));
        join::<S, 2>(s, low, high)
    }
}

/// How scales lie. A weight is `scale × (code − zero) + minimum`.
pub(super) trait Scales: Copy + Sync {
    /// Whether each sixteen inputs have their own, not each 32.
    const HALVES: bool = false;
    /// Whether there are minima.
    const MINIMA: bool = false;

    /// Scales of the rows for a tile's inputs, or for one half of them.
    fn scale<S: Simd>(self, s: S, tile: usize, half: usize) -> S::V;

    /// Minima, likewise. Asked for only where there are any.
    fn minimum<S: Simd>(self, s: S, _tile: usize, _half: usize) -> S::V {
        s.splat(0.0)
    }
}

/// Half-precision scales.
#[derive(Clone, Copy)]
pub(super) struct Plain<'a>(pub(super) &'a [[u8; 2 * LANES]]);
/// Half-precision scales and minima.
#[derive(Clone, Copy)]
pub(super) struct WithMinima<'a>(pub(super) &'a [[u8; 2 * LANES]], pub(super) &'a [[u8; 2 * LANES]]);
/// Small integers, times a half-precision number for every 256 inputs. Signed ones have no minima.
#[derive(Clone, Copy)]
pub(super) struct Super<'a, const HALVES: bool, const MINIMA: bool> {
    /// For each tile, or each half of one.
    pub(super) scales: &'a [[u8; LANES]],
    pub(super) minima: &'a [[u8; LANES]],
    /// For each eight tiles.
    pub(super) scale_of_scales: &'a [[u8; 2 * LANES]],
    pub(super) scale_of_minima: &'a [[u8; 2 * LANES]],
}
/// 32-bit floats: a group that was unpacked for many tokens.
#[derive(Clone, Copy)]
pub(super) struct Floats<'a, const HALVES: bool, const MINIMA: bool>(
    pub(super) &'a [Line],
    pub(super) &'a [Line],
);

/// Tiles that share a scale of scales.
pub(super) const SUPER_TILES: usize = 8;

impl Scales for Plain<'_> {
    #[inline(always)]
    fn scale<S: Simd>(self, s: S, tile: usize, _: usize) -> S::V {
        s.halves(&self.0[tile])
    }
}

impl Scales for WithMinima<'_> {
    const MINIMA: bool = true;

    #[inline(always)]
    fn scale<S: Simd>(self, s: S, tile: usize, _: usize) -> S::V {
        s.halves(&self.0[tile])
    }

    #[inline(always)]
    fn minimum<S: Simd>(self, s: S, tile: usize, _: usize) -> S::V {
        s.halves(&self.1[tile])
    }
}

impl<const HALVES: bool, const MINIMA: bool> Scales for Super<'_, HALVES, MINIMA> {
    const HALVES: bool = HALVES;
    const MINIMA: bool = MINIMA;

    #[inline(always)]
    fn scale<S: Simd>(self, s: S, tile: usize, half: usize) -> S::V {
        let at = if HALVES { 2 * tile + half } else { tile };
        let small = s.bytes(&self.scales[at]);
        let small = if MINIMA { s.unsigned(small) } else { s.signed(small) };
        s.mul(small, s.halves(&self.scale_of_scales[tile / SUPER_TILES]))
    }

    #[inline(always)]
    fn minimum<S: Simd>(self, s: S, tile: usize, half: usize) -> S::V {
        let at = if HALVES { 2 * tile + half } else { tile };
        let small = s.unsigned(s.bytes(&self.minima[at]));
        // These formats subtract theirs.
        let product = s.mul(small, s.halves(&self.scale_of_minima[tile / SUPER_TILES]));
        s.sub(s.splat(0.0), product)
    }
}

impl<const HALVES: bool, const MINIMA: bool> Scales for Floats<'_, HALVES, MINIMA> {
    const HALVES: bool = HALVES;
    const MINIMA: bool = MINIMA;

    #[inline(always)]
    fn scale<S: Simd>(self, s: S, tile: usize, half: usize) -> S::V {
        s.load(&self.0[if HALVES { 2 * tile + half } else { tile }])
    }

    #[inline(always)]
    fn minimum<S: Simd>(self, s: S, tile: usize, half: usize) -> S::V {
        s.load(&self.1[if HALVES { 2 * tile + half } else { tile }])
    }
}
