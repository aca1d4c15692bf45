//! Unquantised formats.
//!
//! Everything here is inlined into kernels that enable wider instruction sets: that is why it is
//! written by hand and marked so, where `half`'s conversions would be calls.
#![allow(clippy::inline_always)]

/// Little-endian 32-bit floats.
#[inline(always)]
pub(super) fn f32(bytes: &[u8], out: &mut [f32]) {
    for (bytes, out) in bytes.chunks_exact(4).zip(out) {
        *out = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
}

/// Little-endian IEEE half precision.
#[inline(always)]
pub(super) fn f16(bytes: &[u8], out: &mut [f32]) {
    for (bytes, out) in bytes.chunks_exact(2).zip(out) {
        *out = half_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]));
    }
}

/// Little-endian bfloat16: the upper half of a 32-bit float.
#[inline(always)]
pub(super) fn bf16(bytes: &[u8], out: &mut [f32]) {
    for (bytes, out) in bytes.chunks_exact(2).zip(out) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16);
    }
}

/// One half-precision number, without branches so that loops over it vectorise.
#[inline(always)]
pub(crate) fn half_to_f32(half: u16) -> f32 {
    let half = u32::from(half);
    let magnitude = half & 0x7fff;
    // Moving the exponent field up leaves it short by the difference of the biases, 127 − 15 = 112.
    // A subnormal half is a number below 2^-14 whose integer value counts units of 2^-24.
    let normal = (magnitude << 13) + (112 << 23);
    let subnormal = ((magnitude as f32) * f32::from_bits((127 - 24) << 23)).to_bits();
    let infinite = (magnitude << 13) | (0xff << 23);
    let bits = if magnitude >= 0x7c00 {
        infinite
    } else if magnitude < 0x0400 {
        subnormal
    } else {
        normal
    };
    f32::from_bits(bits | ((half & 0x8000) << 16))
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_half_equals_the_library_s() {
        for bits in 0..=u16::MAX {
            let want = half::f16::from_bits(bits).to_f32();
            let got = super::half_to_f32(bits);
            assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{bits:#06x}");
        }
    }
}
