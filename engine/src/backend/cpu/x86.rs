//! AVX2 with FMA, and AVX-512.
//!
//! A value of [`Avx2`] or [`Avx512`] exists only where the processor was asked and has it: that is what
//! makes every intrinsic here sound.
#![allow(clippy::inline_always, clippy::wildcard_imports)]

mod avx2;
mod avx512;

use std::arch::x86_64::*;

pub(super) use self::avx2::Avx2;
pub(super) use self::avx512::Avx512;
use super::lines::Line;

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
