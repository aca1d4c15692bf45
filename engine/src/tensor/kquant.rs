//! K-quants: super-blocks of 256 numbers in parts of 16 or 32, each part with a small integer scale
//! (and minimum) that is itself scaled by the super-block's half-precision scale.
//!
//! Scale times part scale times number fits 24 bits, so it is exact in 32-bit floats; the minimum's
//! subtraction rounds once.
#![allow(clippy::inline_always)]

use super::kind::SUPER_BLOCK;
use super::quant::half_at;

/// 16 bytes of (scale, minimum) nibbles, 64 bytes of two-bit numbers, scale, scale of minima. Two-bit
/// numbers lie in four layers over 32 bytes, twice.
#[inline(always)]
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; SUPER_BLOCK]) {
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for part in 0..16 {
        let scale = d * f32::from(block[part] & 15);
        let min = dmin * f32::from(block[part] >> 4);
        let (quants, shift) = (16 + two_bit_offset(part), two_bit_shift(part));
        for i in 0..16 {
            let q = (block[quants + i] >> shift) & 3;
            out[part * 16 + i] = scale * f32::from(q) - min;
        }
    }
}

/// Where the part's bytes begin among 64 bytes of two-bit numbers.
#[inline(always)]
pub(super) fn two_bit_offset(part: usize) -> usize {
    part / 8 * 32 + part % 2 * 16
}

/// Which of a byte's four two-bit numbers belongs to the part.
#[inline(always)]
pub(super) fn two_bit_shift(part: usize) -> usize {
    part % 8 / 2 * 2
}

/// 32 bytes of third bits (clear means −4), 64 bytes of two-bit numbers, 12 bytes of six-bit scales,
/// scale.
#[inline(always)]
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; SUPER_BLOCK]) {
    let d = half_at(block, 108);
    for part in 0..16 {
        let scale = d * f32::from(signed_scale(&block[96..108], part));
        let (quants, shift) = (32 + two_bit_offset(part), two_bit_shift(part));
        for i in 0..16 {
            let q = i32::from((block[quants + i] >> shift) & 3);
            let third = i32::from((block[part % 2 * 16 + i] >> (part / 2)) & 1);
            out[part * 16 + i] = scale * (q - 4 * (1 - third)) as f32;
        }
    }
}

/// The `part`-th of sixteen six-bit scales from −32 to 31, packed in 12 bytes.
#[inline(always)]
pub(super) fn signed_scale(packed: &[u8], part: usize) -> i8 {
    let low = if part < 8 { packed[part] & 15 } else { packed[part - 8] >> 4 };
    let high = (packed[8 + part % 4] >> (part / 4 * 2)) & 3;
    (low | high << 4) as i8 - 32
}

/// The `part`-th of eight six-bit scales and minima, packed in 12 bytes.
#[inline(always)]
pub(super) fn scale_and_min(packed: &[u8], part: usize) -> (u8, u8) {
    if part < 4 {
        (packed[part] & 63, packed[part + 4] & 63)
    } else {
        let high = packed[part + 4];
        ((high & 15) | (packed[part - 4] >> 6) << 4, (high >> 4) | (packed[part] >> 6) << 4)
    }
}

/// The scales and minima of two neighbouring parts, whole.
#[inline(always)]
fn two_parts(block: &[u8], pair: usize) -> [f32; 4] {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (low, low_min) = scale_and_min(&block[4..16], 2 * pair);
    let (high, high_min) = scale_and_min(&block[4..16], 2 * pair + 1);
    [d * f32::from(low), dmin * f32::from(low_min), d * f32::from(high), dmin * f32::from(high_min)]
}

/// Scale, scale of minima, 12 bytes of six-bit scales and minima, 128 bytes of nibbles.
#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; SUPER_BLOCK]) {
    for pair in 0..4 {
        let [low, low_min, high, high_min] = two_parts(block, pair);
        for i in 0..32 {
            let q = block[16 + pair * 32 + i];
            out[pair * 64 + i] = low * f32::from(q & 15) - low_min;
            out[pair * 64 + 32 + i] = high * f32::from(q >> 4) - high_min;
        }
    }
}

/// As [`q4_k`] with 32 bytes of fifth bits before the nibbles.
#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; SUPER_BLOCK]) {
    for pair in 0..4 {
        let [low, low_min, high, high_min] = two_parts(block, pair);
        for i in 0..32 {
            let (q, fifth) = (block[48 + pair * 32 + i], block[16 + i] >> (2 * pair));
            out[pair * 64 + i] = low * f32::from((q & 15) | (fifth & 1) << 4) - low_min;
            out[pair * 64 + 32 + i] = high * f32::from((q >> 4) | (fifth & 2) << 3) - high_min;
        }
    }
}

/// 128 bytes of nibbles, 64 bytes of upper two bits, 16 signed scales, scale.
#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; SUPER_BLOCK]) {
    let d = half_at(block, 208);
    for half in 0..2 {
        let (low, high) = (&block[half * 64..][..64], &block[128 + half * 32..][..32]);
        let scales = &block[192 + half * 8..][..8];
        for quarter in 0..4 {
            for sub in 0..2 {
                let scale = d * f32::from(scales[quarter * 2 + sub] as i8);
                for i in sub * 16..sub * 16 + 16 {
                    let nibble = (low[quarter % 2 * 32 + i] >> (quarter / 2 * 4)) & 15;
                    let upper = (high[i] >> (quarter * 2)) & 3;
                    let q = i32::from(nibble | upper << 4) - 32;
                    out[half * 128 + quarter * 32 + i] = scale * q as f32;
                }
            }
        }
    }
}
