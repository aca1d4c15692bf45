//! AVX-512: sixteen lanes are one register.

use std::arch::x86_64::*;

use super::{Avx2, largest_of_eight, prefetch, sum_of_four};
use crate::backend::cpu::lines::{LANES, Line};
use crate::backend::cpu::simd::{CODES, Kernel, Simd};

/// AVX-512: sixteen lanes are one register. With `VNNI`, four products of bytes are one instruction.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct Avx512<const VNNI: bool>(());

impl<const VNNI: bool> Avx512<VNNI> {
    /// The same without VNNI.
    pub(in crate::backend::cpu) fn without_vnni(self) -> Avx512<false> {
        let Self(detected) = self;
        Avx512(detected)
    }

    pub(in crate::backend::cpu) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        let has = has && is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl");
        let has = has && (!VNNI || is_x86_feature_detected!("avx512vnni"));
        (has && Avx2::detect().is_some()).then_some(Self(()))
    }

    #[inline]
    pub(in crate::backend::cpu) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn compiled_for<K: Kernel, const VNNI: bool>(simd: Avx512<VNNI>, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn compiled_for_vnni<K: Kernel, const VNNI: bool>(simd: Avx512<VNNI>, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` exists only where these features were detected.
        unsafe { if VNNI { compiled_for_vnni(self, kernel) } else { compiled_for(self, kernel) } }
    }
}

impl<const VNNI: bool> Simd for Avx512<VNNI> {
    type V = __m512;
    type B = __m128i;
    type U = __m512i;
    type I = __m512i;
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: an `Avx512` exists only where AVX-512 was detected; so in all methods below.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, from: &Line) -> __m512 {
        // SAFETY: a line is 16 floats, aligned to 64 bytes.
        unsafe { _mm512_load_ps(from.0.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, to: &mut Line, v: __m512) {
        // SAFETY: a line is 16 floats, aligned to 64 bytes.
        unsafe { _mm512_store_ps(to.0.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn keep_at_least(self, v: __m512, x: __m512, limit: __m512) -> __m512 {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, limit), v) }
    }
    #[inline(always)]
    fn power_of_two(self, v: __m512) -> __m512 {
        // SAFETY: AVX-512 was detected.
        unsafe {
            let bits = _mm512_slli_epi32::<23>(_mm512_castps_si512(v));
            _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(127 << 23)))
        }
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: AVX-512 (F and DQ) was detected.
        sum_of_four(unsafe {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight))
        })
    }
    #[inline(always)]
    fn largest_magnitude(self, a: __m512, b: __m512) -> f32 {
        // SAFETY: AVX-512 was detected. Magnitudes are ordered as their bits are.
        unsafe {
            let mask = _mm512_set1_epi32(0x7fff_ffff);
            let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
            let larger = _mm512_max_epu32(_mm512_and_si512(a, mask), _mm512_and_si512(b, mask));
            let (low, high) = (_mm512_castsi512_si256(larger), _mm512_extracti64x4_epi64::<1>(larger));
            largest_of_eight(_mm256_max_epu32(low, high))
        }
    }
    #[inline(always)]
    fn low_bytes(self, v: __m512) -> [i8; LANES] {
        // SAFETY: AVX-512 was detected; both types are 16 bytes of which any are valid.
        unsafe { std::mem::transmute::<__m128i, [i8; LANES]>(_mm512_cvtepi32_epi8(_mm512_castps_si512(v))) }
    }
    narrow_registers!();
    #[inline(always)]
    fn unsigned(self, b: __m128i) -> __m512 {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(b)) }
    }
    #[inline(always)]
    fn signed(self, b: __m128i) -> __m512 {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b)) }
    }
    #[inline(always)]
    fn halves(self, from: &[u8; 2 * LANES]) -> __m512 {
        // SAFETY: AVX-512 was detected; both types are 32 bytes of which any are valid.
        unsafe { _mm512_cvtph_ps(std::mem::transmute::<[u8; 2 * LANES], __m256i>(*from)) }
    }
    #[inline(always)]
    fn upper_halves(self, from: &[u8; 2 * LANES]) -> __m512 {
        // SAFETY: AVX-512 was detected; both types are 32 bytes of which any are valid.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(std::mem::transmute::<[u8; 2 * LANES], __m256i>(*from));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    fn to_halves(self, v: __m512) -> [u8; 2 * LANES] {
        // SAFETY: AVX-512 was detected; both types are 32 bytes of which any are valid.
        unsafe {
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            std::mem::transmute::<__m256i, [u8; 2 * LANES]>(halves)
        }
    }
    #[inline(always)]
    fn codes(self, from: &[u8; CODES]) -> __m512i {
        // SAFETY: both types are 64 bytes of which any are valid.
        unsafe { std::mem::transmute::<[u8; CODES], __m512i>(*from) }
    }
    #[inline(always)]
    fn store_codes(self, to: &mut Line, u: __m512i) {
        // SAFETY: AVX-512 was detected; a line is 64 bytes, aligned to as many.
        unsafe { _mm512_store_si512(to.0.as_mut_ptr().cast(), u) }
    }
    #[inline(always)]
    fn code_bits<const SHIFT: u32>(self, u: __m512i, mask: u8) -> __m512i {
        // SAFETY: AVX-512 was detected. What a 16-bit shift brings in from the byte above is masked.
        unsafe {
            let shifted = if SHIFT == 0 { u } else { _mm512_srli_epi16::<SHIFT>(u) };
            _mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8))
        }
    }
    #[inline(always)]
    fn code_join<const SHIFT: u32>(self, low: __m512i, high: __m512i) -> __m512i {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_or_si512(low, _mm512_slli_epi16::<SHIFT>(high)) }
    }
    #[inline(always)]
    fn code_less(self, u: __m512i, zero: u8) -> __m512i {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_sub_epi8(u, _mm512_set1_epi8(zero as i8)) }
    }
    #[inline(always)]
    fn integer(self, x: i32) -> __m512i {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn shifted(self, x: i32, shift: u32) -> __m512i {
        // SAFETY: AVX-512 was detected. Shifted as a vector, so that the number is broadcast from memory.
        unsafe { _mm512_sll_epi32(_mm512_set1_epi32(x), _mm_cvtsi32_si128(shift as i32)) }
    }
    #[inline(always)]
    fn dot(self, sum: __m512i, codes: __m512i, x: [i8; 4], wide: bool) -> __m512i {
        // SAFETY: AVX-512 was detected, and VNNI where it is said.
        unsafe {
            let x = _mm512_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8)));
            if VNNI {
                return _mm512_dpbusd_epi32(sum, codes, x);
            }
            let ones = _mm512_set1_epi16(1);
            let pairs = if wide {
                // Two products of codes up to 255 do not fit 16 bits together, so one at a time.
                let even = _mm512_and_si512(codes, _mm512_set1_epi16(0xff));
                let odd = _mm512_andnot_si512(_mm512_set1_epi16(0xff), codes);
                let odd = _mm512_madd_epi16(_mm512_maddubs_epi16(odd, x), ones);
                _mm512_add_epi32(_mm512_madd_epi16(_mm512_maddubs_epi16(even, x), ones), odd)
            } else {
                _mm512_madd_epi16(_mm512_maddubs_epi16(codes, x), ones)
            };
            _mm512_add_epi32(sum, pairs)
        }
    }
    #[inline(always)]
    fn float(self, i: __m512i) -> __m512 {
        // SAFETY: AVX-512 was detected.
        unsafe { _mm512_cvtepi32_ps(i) }
    }
}
