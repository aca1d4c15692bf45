//! AVX2 with FMA, and AVX-512.
//!
//! A value of [`Avx2`] or [`Avx512`] exists only where the processor was asked and has it: that is what
//! makes every intrinsic here sound.
#![allow(clippy::inline_always, clippy::wildcard_imports)]

use std::arch::x86_64::*;

use super::lines::Line;

/// What both sets do in the registers of 128 bits, or by their type alone.
macro_rules! narrow_registers {
    () => {
        #[inline(always)]
        fn prefetch(self, bytes: &[u8]) {
            prefetch(bytes);
        }
        #[inline(always)]
        fn prefetch_at(self, address: *const u8) {
            // SAFETY: SSE is part of x86-64, and a prefetch of any address has no effect but on caches.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        }
        #[inline(always)]
        fn bytes(self, from: &[u8; LANES]) -> __m128i {
            // SAFETY: both are 16 bytes of which any are valid.
            unsafe { std::mem::transmute::<[u8; LANES], __m128i>(*from) }
        }
        #[inline(always)]
        fn bits(self, b: __m128i, shift: u32, mask: u8) -> __m128i {
            // SAFETY: SSE2 is part of x86-64. What a 16-bit shift brings in from the byte above is masked.
            unsafe {
                let shifted = _mm_srl_epi16(b, _mm_cvtsi32_si128(shift as i32));
                _mm_and_si128(shifted, _mm_set1_epi8(mask as i8))
            }
        }
        #[inline(always)]
        fn join(self, low: __m128i, high: __m128i, shift: u32) -> __m128i {
            // SAFETY: SSE2 is part of x86-64.
            unsafe { _mm_or_si128(low, _mm_sll_epi16(high, _mm_cvtsi32_si128(shift as i32))) }
        }
        #[inline(always)]
        fn half(self, bits: u16) -> f32 {
            // SAFETY: F16C was detected.
            unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
        }
        #[inline(always)]
        fn half_pair(self, bits: u32) -> (f32, f32) {
            // SAFETY: F16C was detected, which implies SSE3.
            unsafe {
                let both = _mm_cvtph_ps(_mm_cvtsi32_si128(bits as i32));
                (_mm_cvtss_f32(both), _mm_cvtss_f32(_mm_movehdup_ps(both)))
            }
        }
        #[inline(always)]
        fn words(self, from: &[u8; 4 * LANES]) -> Self::V {
            // SAFETY: both types are 64 bytes of which any are valid.
            unsafe { std::mem::transmute::<[u8; 4 * LANES], Self::V>(*from) }
        }
    };
}

mod avx2;
mod avx512;

pub(super) use self::avx2::Avx2;
pub(super) use self::avx512::Avx512;

/// The largest of eight unsigned integers, as the bits of a float.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
pub(super) unsafe fn largest_of_eight(v: __m256i) -> f32 {
    // SAFETY: the caller vouches for AVX2, which implies SSE4.1.
    unsafe {
        let four = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
        let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b10_11_10_11>(four));
        let one = _mm_max_epu32(two, _mm_shuffle_epi32::<0b01_01_01_01>(two));
        f32::from_bits(_mm_cvtsi128_si32(one) as u32)
    }
}

/// Lanes 0 to 3 of a sum's last two steps: i + 2, then i + 1.
#[inline(always)]
pub(super) fn sum_of_four(v: __m128) -> f32 {
    // SAFETY: SSE2 is part of x86-64.
    unsafe {
        let two = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

#[inline(always)]
pub(super) fn prefetch(bytes: &[u8]) {
    for line in bytes.chunks(size_of::<Line>()) {
        // SAFETY: SSE is part of x86-64, and a prefetch of any address has no effect but on caches.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
}
