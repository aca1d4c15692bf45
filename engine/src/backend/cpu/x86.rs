//! AVX2 with FMA, and AVX-512.
//!
//! A value of [`Avx2`] or [`Avx512`] exists only where the processor was asked and has it: that is what
//! makes every intrinsic here sound.
#![allow(clippy::inline_always, clippy::wildcard_imports)]

use std::arch::x86_64::*;

use super::lines::{LANES, Line};
use super::simd::{CODES, Kernel, Simd};

/// AVX2 and FMA: sixteen lanes are two registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

/// AVX-512: sixteen lanes are one register. With `VNNI`, four products of bytes are one instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512<const VNNI: bool>(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        (has && is_x86_feature_detected!("f16c")).then_some(Self(()))
    }

    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled_for<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` exists only where these features were detected.
        unsafe { compiled_for(self, kernel) }
    }
}

impl<const VNNI: bool> Avx512<VNNI> {
    /// The same without VNNI.
    pub(super) fn without_vnni(self) -> Avx512<false> {
        let Self(detected) = self;
        Avx512(detected)
    }

    pub(super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        let has = has && is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl");
        let has = has && (!VNNI || is_x86_feature_detected!("avx512vnni"));
        (has && Avx2::detect().is_some()).then_some(Self(()))
    }

    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
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

/// The largest of eight unsigned integers, as the bits of a float.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn largest_of_eight(v: __m256i) -> f32 {
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
fn sum_of_four(v: __m128) -> f32 {
    // SAFETY: SSE2 is part of x86-64.
    unsafe {
        let two = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

#[inline(always)]
fn prefetch(bytes: &[u8]) {
    for line in bytes.chunks(size_of::<Line>()) {
        // SAFETY: SSE is part of x86-64, and a prefetch of any address has no effect but on caches.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
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
        // SAFETY: AVX2 was detected.
        v.map(|v| unsafe {
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
        // SAFETY: AVX2 was detected. Magnitudes are ordered as their bits are.
        unsafe {
            let mask = _mm256_set1_ps(f32::from_bits(0x7fff_ffff));
            let [a, b] = [both!(_mm256_and_ps, a, [mask; 2]), both!(_mm256_and_ps, b, [mask; 2])];
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
        // SAFETY: F16C was detected; both types are 32 bytes of which any are valid.
        unsafe {
            std::mem::transmute::<[u8; 2 * LANES], [__m128i; 2]>(*from).map(|half| _mm256_cvtph_ps(half))
        }
    }
    #[inline(always)]
    fn upper_halves(self, from: &[u8; 2 * LANES]) -> Self::V {
        // SAFETY: AVX2 was detected; both types are 32 bytes of which any are valid.
        unsafe {
            std::mem::transmute::<[u8; 2 * LANES], [__m128i; 2]>(*from)
                .map(|bits| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits))))
        }
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
        // SAFETY: AVX2 was detected. What a 16-bit shift brings in from the byte above is masked.
        u.map(|u| unsafe {
            let shifted = _mm256_srl_epi16(u, _mm_cvtsi32_si128(SHIFT as i32));
            _mm256_and_si256(shifted, _mm256_set1_epi8(mask as i8))
        })
    }
    #[inline(always)]
    fn code_join<const SHIFT: u32>(self, low: Self::U, high: Self::U) -> Self::U {
        // SAFETY: AVX2 was detected.
        std::array::from_fn(|i| unsafe {
            _mm256_or_si256(low[i], _mm256_sll_epi16(high[i], _mm_cvtsi32_si128(SHIFT as i32)))
        })
    }
    #[inline(always)]
    fn code_less(self, u: Self::U, zero: u8) -> Self::U {
        // SAFETY: AVX2 was detected.
        u.map(|u| unsafe { _mm256_sub_epi8(u, _mm256_set1_epi8(zero as i8)) })
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
        // SAFETY: AVX2 was detected.
        std::array::from_fn(|i| unsafe {
            let x = _mm256_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8)));
            let ones = _mm256_set1_epi16(1);
            let pairs = if wide {
                // Two products of codes up to 255 do not fit 16 bits together, so one at a time.
                let even = _mm256_and_si256(codes[i], _mm256_set1_epi16(0xff));
                let odd = _mm256_andnot_si256(_mm256_set1_epi16(0xff), codes[i]);
                let odd = _mm256_madd_epi16(_mm256_maddubs_epi16(odd, x), ones);
                _mm256_add_epi32(_mm256_madd_epi16(_mm256_maddubs_epi16(even, x), ones), odd)
            } else {
                _mm256_madd_epi16(_mm256_maddubs_epi16(codes[i], x), ones)
            };
            _mm256_add_epi32(sum[i], pairs)
        })
    }
    #[inline(always)]
    fn float(self, i: Self::I) -> Self::V {
        // SAFETY: AVX2 was detected.
        i.map(|i| unsafe { _mm256_cvtepi32_ps(i) })
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
