//! AVX2 with FMA: sixteen lanes are two registers.

use std::arch::x86_64::*;

use super::{largest_of_eight, prefetch, sum_of_four};
use crate::backend::cpu::lines::{LANES, Line};
use crate::backend::cpu::simd::{CODES, Kernel, Simd};

/// AVX2 and FMA: sixteen lanes are two registers.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cpu) struct Avx2(());

impl Avx2 {
    pub(in crate::backend::cpu) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        (has && is_x86_feature_detected!("f16c")).then_some(Self(()))
    }

    #[inline]
    pub(in crate::backend::cpu) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled_for<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` exists only where these features were detected.
        unsafe { compiled_for(self, kernel) }
    }
}

/// A pair of registers, one operation on each.
macro_rules! both {
    ($op:ident, $a:expr, $b:expr) => {{
        let (a, b) = ($a, $b);
        // SAFETY: an `Avx2` exists only where AVX2 and FMA were detected.
        unsafe { [$op(a[0], b[0]), $op(a[1], b[1])] }
    }};
}

/// A pair of registers, each of which becomes what is said of it. No closure: one would be compiled without
/// AVX2, and where the compiler does not inline it each of its instructions is a call.
macro_rules! each {
    ($pair:expr, |$half:ident| $becomes:expr) => {{
        let [low, high] = $pair;
        // SAFETY: an `Avx2` exists only where AVX2, FMA and F16C were detected.
        unsafe {
            [
                {
                    let $half = low;
                    $becomes
                },
                {
                    let $half = high;
                    $becomes
                },
            ]
        }
    }};
}

/// Adds to eight lanes the products of their four codes with four numbers; see [`Simd::dot`].
#[inline]
#[target_feature(enable = "avx2")]
fn dot_of_eight(sum: __m256i, codes: __m256i, x: __m256i, wide: bool) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    let pairs = if wide {
        // Two products of codes up to 255 do not fit 16 bits together, so one at a time.
        let even = _mm256_and_si256(codes, _mm256_set1_epi16(0xff));
        let odd = _mm256_andnot_si256(_mm256_set1_epi16(0xff), codes);
        let odd = _mm256_madd_epi16(_mm256_maddubs_epi16(odd, x), ones);
        _mm256_add_epi32(_mm256_madd_epi16(_mm256_maddubs_epi16(even, x), ones), odd)
    } else {
        _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), ones)
    };
    _mm256_add_epi32(sum, pairs)
}

impl Simd for Avx2 {
    type V = [__m256; 2];
    type B = __m128i;
    type U = [__m256i; 2];
    type I = [__m256i; 2];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: an `Avx2` exists only where AVX2 and FMA were detected; so in all methods below.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    fn load(self, from: &Line) -> Self::V {
        let p = from.0.as_ptr();
        // SAFETY: a line is 16 floats, aligned to 64 bytes.
        unsafe { [_mm256_load_ps(p), _mm256_load_ps(p.add(8))] }
    }
    #[inline(always)]
    fn store(self, to: &mut Line, v: Self::V) {
        let p = to.0.as_mut_ptr();
        // SAFETY: a line is 16 floats, aligned to 64 bytes.
        unsafe {
            _mm256_store_ps(p, v[0]);
            _mm256_store_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: FMA was detected.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn keep_at_least(self, v: Self::V, x: Self::V, limit: Self::V) -> Self::V {
        both!(_mm256_and_ps, v, both!(greater_or_equal, x, limit))
    }
    #[inline(always)]
    fn power_of_two(self, v: Self::V) -> Self::V {
        each!(v, |v| {
            let bits = _mm256_slli_epi32::<23>(_mm256_castps_si256(v));
            _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_set1_epi32(127 << 23)))
        })
    }
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        // SAFETY: AVX2 was detected.
        sum_of_four(unsafe {
            let eight = _mm256_add_ps(v[0], v[1]);
            _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight))
        })
    }
    #[inline(always)]
    fn largest_magnitude(self, a: Self::V, b: Self::V) -> f32 {
        // Magnitudes are ordered as their bits are.
        let mask = self.splat(f32::from_bits(0x7fff_ffff));
        let (a, b) = (both!(_mm256_and_ps, a, mask), both!(_mm256_and_ps, b, mask));
        // SAFETY: AVX2 was detected.
        unsafe {
            let a = _mm256_max_epu32(_mm256_castps_si256(a[0]), _mm256_castps_si256(a[1]));
            let b = _mm256_max_epu32(_mm256_castps_si256(b[0]), _mm256_castps_si256(b[1]));
            largest_of_eight(_mm256_max_epu32(a, b))
        }
    }
    #[inline(always)]
    fn low_bytes(self, v: Self::V) -> [i8; LANES] {
        // SAFETY: AVX2 was detected; both types are 16 bytes of which any are valid.
        unsafe {
            let byte = _mm256_set1_epi32(0xff);
            let (low, high) = (_mm256_castps_si256(v[0]), _mm256_castps_si256(v[1]));
            // By halves of registers: 0 to 3, 8 to 11, 4 to 7, 12 to 15.
            let pairs = _mm256_packus_epi32(_mm256_and_si256(low, byte), _mm256_and_si256(high, byte));
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(pairs);
            let (low, high) = (_mm256_castsi256_si128(ordered), _mm256_extracti128_si256::<1>(ordered));
            std::mem::transmute::<__m128i, [i8; LANES]>(_mm_packus_epi16(low, high))
        }
    }
    narrow_registers!();
    #[inline(always)]
    fn unsigned(self, b: __m128i) -> Self::V {
        // SAFETY: AVX2 was detected.
        unsafe {
            let high = _mm_srli_si128::<8>(b);
            [_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(b)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(high))]
        }
    }
    #[inline(always)]
    fn signed(self, b: __m128i) -> Self::V {
        // SAFETY: AVX2 was detected.
        unsafe {
            let high = _mm_srli_si128::<8>(b);
            [_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high))]
        }
    }
    #[inline(always)]
    fn halves(self, from: &[u8; 2 * LANES]) -> Self::V {
        // SAFETY: both types are 32 bytes of which any are valid.
        let halves = unsafe { std::mem::transmute::<[u8; 2 * LANES], [__m128i; 2]>(*from) };
        each!(halves, |half| _mm256_cvtph_ps(half))
    }
    #[inline(always)]
    fn upper_halves(self, from: &[u8; 2 * LANES]) -> Self::V {
        // SAFETY: both types are 32 bytes of which any are valid.
        let halves = unsafe { std::mem::transmute::<[u8; 2 * LANES], [__m128i; 2]>(*from) };
        each!(halves, |bits| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits))))
    }
    #[inline(always)]
    fn to_halves(self, v: Self::V) -> [u8; 2 * LANES] {
        // SAFETY: F16C was detected; both types are 32 bytes of which any are valid.
        unsafe {
            let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]);
            let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]);
            std::mem::transmute::<[__m128i; 2], [u8; 2 * LANES]>([low, high])
        }
    }
    #[inline(always)]
    fn codes(self, from: &[u8; CODES]) -> Self::U {
        // SAFETY: both types are 64 bytes of which any are valid.
        unsafe { std::mem::transmute::<[u8; CODES], Self::U>(*from) }
    }
    #[inline(always)]
    fn store_codes(self, to: &mut Line, u: Self::U) {
        // SAFETY: AVX2 was detected; a line is 64 bytes, aligned to as many.
        unsafe {
            let p: *mut __m256i = to.0.as_mut_ptr().cast();
            _mm256_store_si256(p, u[0]);
            _mm256_store_si256(p.add(1), u[1]);
        }
    }
    #[inline(always)]
    fn code_bits<const SHIFT: u32>(self, u: Self::U, mask: u8) -> Self::U {
        // What a 16-bit shift brings in from the byte above is masked.
        each!(u, |u| {
            let shifted = _mm256_srl_epi16(u, _mm_cvtsi32_si128(SHIFT as i32));
            _mm256_and_si256(shifted, _mm256_set1_epi8(mask as i8))
        })
    }
    #[inline(always)]
    fn code_join<const SHIFT: u32>(self, low: Self::U, high: Self::U) -> Self::U {
        let moved = each!(high, |high| _mm256_sll_epi16(high, _mm_cvtsi32_si128(SHIFT as i32)));
        both!(_mm256_or_si256, low, moved)
    }
    #[inline(always)]
    fn code_less(self, u: Self::U, zero: u8) -> Self::U {
        each!(u, |u| _mm256_sub_epi8(u, _mm256_set1_epi8(zero as i8)))
    }
    #[inline(always)]
    fn integer(self, x: i32) -> Self::I {
        // SAFETY: AVX2 was detected.
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    fn shifted(self, x: i32, shift: u32) -> Self::I {
        self.integer(x << shift)
    }
    #[inline(always)]
    fn dot(self, sum: Self::I, codes: Self::U, x: [i8; 4], wide: bool) -> Self::I {
        let x = [x[0] as u8, x[1] as u8, x[2] as u8, x[3] as u8];
        // SAFETY: AVX2 was detected.
        unsafe {
            let x = _mm256_set1_epi32(i32::from_le_bytes(x));
            [dot_of_eight(sum[0], codes[0], x, wide), dot_of_eight(sum[1], codes[1], x, wide)]
        }
    }
    #[inline(always)]
    fn float(self, i: Self::I) -> Self::V {
        each!(i, |i| _mm256_cvtepi32_ps(i))
    }
}

/// All bits set where `a >= b`.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn greater_or_equal(a: __m256, b: __m256) -> __m256 {
    // SAFETY: the caller vouches for AVX2.
    unsafe { _mm256_cmp_ps::<_CMP_GE_OQ>(a, b) }
}
