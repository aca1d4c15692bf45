//! Formats with one scale for 32 numbers: scale, then perhaps a minimum and fifth bits, then nibbles
//! (the low ones are the first 16 numbers, the high ones the last 16) or bytes.
//!
//! A half-precision scale times a small integer is exact in 32 bits, so each number is rounded at most
//! once, by the addition of the minimum.
#![allow(clippy::inline_always)]

use super::float::half_to_f32;

/// Numbers in a block.
pub(super) const LEN: usize = 32;

/// The half-precision number at byte `at` of a block.
#[inline(always)]
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    half_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// `scale × (nibble − 8)`.
#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; LEN]) {
    let d = half_at(block, 0);
    for i in 0..16 {
        let q = block[2 + i];
        out[i] = d * (i32::from(q & 15) - 8) as f32;
        out[i + 16] = d * (i32::from(q >> 4) - 8) as f32;
    }
}

/// `scale × nibble + minimum`.
#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; LEN]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for i in 0..16 {
        let q = block[4 + i];
        out[i] = d * f32::from(q & 15) + m;
        out[i + 16] = d * f32::from(q >> 4) + m;
    }
}

/// `scale × (five bits − 16)`.
#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; LEN]) {
    let d = half_at(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for i in 0..16 {
        let (low, up) = fifth_bits(block[6 + i], high, i);
        out[i] = d * (low - 16) as f32;
        out[i + 16] = d * (up - 16) as f32;
    }
}

/// `scale × five bits + minimum`.
#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; LEN]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for i in 0..16 {
        let (low, up) = fifth_bits(block[8 + i], high, i);
        out[i] = d * low as f32 + m;
        out[i + 16] = d * up as f32 + m;
    }
}

/// The `i`-th and the `i + 16`-th number of a five-bit block.
#[inline(always)]
fn fifth_bits(nibbles: u8, high: u32, i: usize) -> (i32, i32) {
    let low = u32::from(nibbles & 15) | ((high >> i) & 1) << 4;
    let up = u32::from(nibbles >> 4) | ((high >> (i + 16)) & 1) << 4;
    (low as i32, up as i32)
}

/// `scale × signed byte`.
#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; LEN]) {
    let d = half_at(block, 0);
    for i in 0..LEN {
        out[i] = d * f32::from(block[2 + i] as i8);
    }
}
