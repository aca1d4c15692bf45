//! Sixteen lanes of arithmetic on whatever registers the processor has.
//!
//! A kernel is written once over [`Simd`] and compiled for each instruction set. All of them do the
//! same operations in the same order, with one rounding in a multiply-add, so that every processor
//! computes the same bits.
#![allow(clippy::inline_always)]

use super::lines::{LANES, Line};
use crate::tensor::half_to_f32;

/// An instruction set that the processor is known to have.
pub(super) trait Simd: Copy + Send + Sync {
    /// Sixteen lanes.
    type V: Copy;
    /// Sixteen bytes.
    type B: Copy;
    /// Sixty-four unsigned bytes: the codes of sixteen rows of weights at four inputs.
    type U: Copy;
    /// Sixteen 32-bit integers.
    type I: Copy;
    /// Whether 32 vectors fit the registers, so that kernels may use larger tiles.
    const WIDE: bool;
    /// Whether this is plain Rust, for which kernels keep to one tile so as to stay quick to build.
    const PLAIN: bool = false;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, from: &Line) -> Self::V;
    fn store(self, to: &mut Line, v: Self::V);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a` where it is greater, else `b`.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a` where it is less, else `b`.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a × b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `v` where `x >= limit`, else zero.
    fn keep_at_least(self, v: Self::V, x: Self::V, limit: Self::V) -> Self::V;
    /// Two to the power of the integer in the low bits of a number near 1.5 × 2^23.
    fn power_of_two(self, v: Self::V) -> Self::V;
    /// All lanes' sum: lane i + 8 is added to lane i, then i + 4, i + 2, i + 1.
    fn sum(self, v: Self::V) -> f32;

    /// The largest magnitude of all lanes, of which NaN is the largest.
    fn largest_magnitude(self, a: Self::V, b: Self::V) -> f32;
    /// The low byte of each lane's bits.
    fn low_bytes(self, v: Self::V) -> [i8; LANES];

    /// Asks for bytes that will be read soon.
    fn prefetch(self, _bytes: &[u8]) {}

    /// Asks for the line at an address, which may be any.
    fn prefetch_at(self, _address: *const u8) {}

    fn bytes(self, from: &[u8; LANES]) -> Self::B;
    /// `(b >> shift) & mask` of each byte, for a mask of at most `8 - shift` bits.
    fn bits(self, b: Self::B, shift: u32, mask: u8) -> Self::B;
    /// `low | high << shift` of each byte, for a `high` that stays in its byte.
    fn join(self, low: Self::B, high: Self::B, shift: u32) -> Self::B;
    /// Bytes as numbers from 0 to 255.
    fn unsigned(self, b: Self::B) -> Self::V;
    /// Bytes as numbers from -128 to 127.
    fn signed(self, b: Self::B) -> Self::V;
    /// Sixteen signed bytes.
    #[inline(always)]
    fn signed_row(self, from: &[u8; LANES]) -> Self::V {
        self.signed(self.bytes(from))
    }
    /// A half-precision number.
    fn half(self, bits: u16) -> f32;
    /// Two half-precision numbers, the first in the low bits.
    fn half_pair(self, bits: u32) -> (f32, f32);
    /// Sixteen 32-bit numbers, little-endian.
    fn words(self, from: &[u8; 4 * LANES]) -> Self::V;
    /// Sixteen half-precision numbers, little-endian.
    fn halves(self, from: &[u8; 2 * LANES]) -> Self::V;
    /// Sixteen bfloat16 numbers, little-endian.
    fn upper_halves(self, from: &[u8; 2 * LANES]) -> Self::V;

    /// Half-precision numbers, rounded to the nearest, little-endian.
    fn to_halves(self, v: Self::V) -> [u8; 2 * LANES];

    fn codes(self, from: &[u8; CODES]) -> Self::U;
    /// Codes that are zero.
    #[inline(always)]
    fn code_zero(self) -> Self::U {
        self.codes(&[0; CODES])
    }
    fn store_codes(self, to: &mut Line, u: Self::U);
    /// `(u >> SHIFT) & mask` of each byte, for a mask of at most `8 - SHIFT` bits.
    fn code_bits<const SHIFT: u32>(self, u: Self::U, mask: u8) -> Self::U;
    /// `low | high << SHIFT` of each byte, for a `high` that stays in its byte.
    fn code_join<const SHIFT: u32>(self, low: Self::U, high: Self::U) -> Self::U;
    /// Each byte less `zero`, as a signed byte.
    fn code_less(self, u: Self::U, zero: u8) -> Self::U;
    /// The same integer in every lane.
    fn integer(self, x: i32) -> Self::I;
    /// `x × 2^shift` in every lane.
    fn shifted(self, x: i32, shift: u32) -> Self::I;
    /// Adds to each lane the products of its four codes with the four numbers. Codes are at most 127
    /// unless `wide`; numbers are at least −127.
    fn dot(self, sum: Self::I, codes: Self::U, x: [i8; 4], wide: bool) -> Self::I;
    /// Integers as floats, exact below 2^24.
    fn float(self, i: Self::I) -> Self::V;
}

/// Codes that a vector of them holds: four for each lane.
pub(super) const CODES: usize = 4 * LANES;

/// A computation that can run on any instruction set.
pub(super) trait Kernel {
    type Output;

    /// Must be inlined, and so must everything it calls on vectors.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The instruction set in use.
#[derive(Clone, Copy, Debug)]
pub(super) enum Level {
    /// What every processor has.
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(super::x86::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(super::x86::Avx512<false>),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(super::x86::Avx512<true>),
    #[cfg(target_arch = "x86_64")]
    Amx(super::amx::Amx),
}

impl Level {
    /// The widest that this processor has.
    pub(super) fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::Portable(Portable))
    }

    /// All that this processor has, narrowest first.
    pub(super) fn available() -> Vec<Self> {
        let mut levels = vec![Self::Portable(Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(super::x86::Avx2::detect().map(Self::Avx2));
            levels.extend(super::x86::Avx512::<false>::detect().map(Self::Avx512));
            levels.extend(super::x86::Avx512::<true>::detect().map(Self::Avx512Vnni));
            levels.extend(super::amx::Amx::detect().map(Self::Amx));
        }
        levels
    }

    /// The name, for a person.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(_) => "AVX-512 VNNI",
            #[cfg(target_arch = "x86_64")]
            Self::Amx(_) => "AMX",
        }
    }

    /// Tiles for products of bytes with so many tokens, where there are any and they are worth it.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn tiles(self, tokens: usize) -> Option<super::amx::Amx> {
        match self {
            Self::Amx(tiles) if tokens >= super::amx::LEAST_TOKENS => Some(tiles),
            _ => None,
        }
    }

    /// Tiles for products of bytes: not on this processor.
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn tiles(self, _: usize) -> Option<std::convert::Infallible> {
        None
    }

    /// Runs a kernel that multiplies no bytes: VNNI's is the plain AVX-512 one, which need not be built
    /// twice.
    #[inline]
    pub(super) fn run_floats<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(simd) => simd.without_vnni().run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Amx(tiles) => tiles.simd().without_vnni().run(kernel),
            other => other.run(kernel),
        }
    }

    /// Runs a kernel as compiled for this instruction set.
    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Portable(simd) => kernel.run(simd),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Amx(tiles) => tiles.simd().run(kernel),
        }
    }
}

/// `e^x` to within two units in the last place, and exactly zero where that is below the smallest
/// normal number, so that a masked score weighs nothing.
#[inline(always)]
#[allow(clippy::excessive_precision, clippy::many_single_char_names)]
pub(super) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 is split in two so that n ln 2 is exact enough.
    const SMALLEST: f32 = -87.336_54;
    const LARGEST: f32 = 88.376_26;
    const ROUNDER: f32 = 12_582_912.0;
    const POLYNOMIAL: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.000_000_1e-1];
    let clamped = s.min(s.max(x, s.splat(SMALLEST)), s.splat(LARGEST));
    let shifted = s.fma(clamped, s.splat(std::f32::consts::LOG2_E), s.splat(ROUNDER));
    let n = s.sub(shifted, s.splat(ROUNDER));
    let r = s.fma(n, s.splat(-0.693_359_375), clamped);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(POLYNOMIAL[0]);
    for c in &POLYNOMIAL[1..] {
        p = s.fma(p, r, s.splat(*c));
    }
    let p = s.add(s.fma(p, s.mul(r, r), r), s.splat(1.0));
    s.keep_at_least(s.mul(p, s.power_of_two(shifted)), x, s.splat(SMALLEST))
}

/// Plain Rust, for processors without a wider set of their own here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portable;

impl Portable {
    #[inline(always)]
    fn zip(a: Line, b: Line, f: impl Fn(f32, f32) -> f32) -> Line {
        Line(std::array::from_fn(|i| f(a.0[i], b.0[i])))
    }
}

impl Simd for Portable {
    type V = Line;
    type B = [u8; LANES];
    type U = [u8; CODES];
    type I = [i32; LANES];
    const WIDE: bool = false;
    const PLAIN: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> Line {
        Line([x; LANES])
    }
    #[inline(always)]
    fn load(self, from: &Line) -> Line {
        *from
    }
    #[inline(always)]
    fn store(self, to: &mut Line, v: Line) {
        *to = v;
    }
    #[inline(always)]
    fn add(self, a: Line, b: Line) -> Line {
        Self::zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Line, b: Line) -> Line {
        Self::zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Line, b: Line) -> Line {
        Self::zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Line, b: Line) -> Line {
        Self::zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, a: Line, b: Line) -> Line {
        Self::zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Line, b: Line) -> Line {
        Self::zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn fma(self, a: Line, b: Line, c: Line) -> Line {
        Line(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], c.0[i])))
    }
    #[inline(always)]
    fn keep_at_least(self, v: Line, x: Line, limit: Line) -> Line {
        Line(std::array::from_fn(|i| if x.0[i] >= limit.0[i] { v.0[i] } else { 0.0 }))
    }
    #[inline(always)]
    fn power_of_two(self, v: Line) -> Line {
        Line(v.0.map(|x| f32::from_bits((x.to_bits() << 23).wrapping_add(127 << 23))))
    }
    #[inline(always)]
    fn sum(self, v: Line) -> f32 {
        let v = v.0;
        let eight: [f32; 8] = std::array::from_fn(|i| v[i] + v[i + 8]);
        let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    fn largest_magnitude(self, a: Line, b: Line) -> f32 {
        // Magnitudes are ordered as their bits are.
        let largest = |m: u32, x: &f32| m.max(x.to_bits() & 0x7fff_ffff);
        f32::from_bits(a.0.iter().chain(&b.0).fold(0, largest))
    }
    #[inline(always)]
    fn low_bytes(self, v: Line) -> [i8; LANES] {
        v.0.map(|x| x.to_bits() as u8 as i8)
    }
    #[inline(always)]
    fn bytes(self, from: &[u8; LANES]) -> [u8; LANES] {
        *from
    }
    #[inline(always)]
    fn bits(self, b: [u8; LANES], shift: u32, mask: u8) -> [u8; LANES] {
        b.map(|b| (b >> shift) & mask)
    }
    #[inline(always)]
    fn join(self, low: [u8; LANES], high: [u8; LANES], shift: u32) -> [u8; LANES] {
        std::array::from_fn(|i| low[i] | high[i] << shift)
    }
    #[inline(always)]
    fn unsigned(self, b: [u8; LANES]) -> Line {
        Line(b.map(f32::from))
    }
    #[inline(always)]
    fn signed(self, b: [u8; LANES]) -> Line {
        Line(b.map(|b| f32::from(b as i8)))
    }
    #[inline(always)]
    fn half(self, bits: u16) -> f32 {
        half_to_f32(bits)
    }
    #[inline(always)]
    fn half_pair(self, bits: u32) -> (f32, f32) {
        (half_to_f32(bits as u16), half_to_f32((bits >> 16) as u16))
    }
    #[inline(always)]
    fn words(self, from: &[u8; 4 * LANES]) -> Line {
        Line(std::array::from_fn(|i| {
            f32::from_le_bytes([from[4 * i], from[4 * i + 1], from[4 * i + 2], from[4 * i + 3]])
        }))
    }
    #[inline(always)]
    fn halves(self, from: &[u8; 2 * LANES]) -> Line {
        Line(std::array::from_fn(|i| half_to_f32(u16::from_le_bytes([from[2 * i], from[2 * i + 1]]))))
    }
    #[inline(always)]
    fn upper_halves(self, from: &[u8; 2 * LANES]) -> Line {
        Line(std::array::from_fn(|i| {
            f32::from_bits(u32::from_le_bytes([0, 0, from[2 * i], from[2 * i + 1]]))
        }))
    }
    #[inline(always)]
    fn to_halves(self, v: Line) -> [u8; 2 * LANES] {
        let mut halves = [0; 2 * LANES];
        for (to, x) in halves.as_chunks_mut().0.iter_mut().zip(v.0) {
            *to = half::f16::from_f32(x).to_le_bytes();
        }
        halves
    }
    #[inline(always)]
    fn codes(self, from: &[u8; CODES]) -> [u8; CODES] {
        *from
    }
    #[inline(always)]
    fn store_codes(self, to: &mut Line, u: [u8; CODES]) {
        let (words, _) = u.as_chunks();
        *to = Line(std::array::from_fn(|i| f32::from_bits(u32::from_ne_bytes(words[i]))));
    }
    #[inline(always)]
    fn code_bits<const SHIFT: u32>(self, u: [u8; CODES], mask: u8) -> [u8; CODES] {
        u.map(|u| (u >> SHIFT) & mask)
    }
    #[inline(always)]
    fn code_join<const SHIFT: u32>(self, low: [u8; CODES], high: [u8; CODES]) -> [u8; CODES] {
        std::array::from_fn(|i| low[i] | high[i] << SHIFT)
    }
    #[inline(always)]
    fn code_less(self, u: [u8; CODES], zero: u8) -> [u8; CODES] {
        u.map(|u| u.wrapping_sub(zero))
    }
    #[inline(always)]
    fn integer(self, x: i32) -> [i32; LANES] {
        [x; LANES]
    }
    #[inline(always)]
    fn shifted(self, x: i32, shift: u32) -> [i32; LANES] {
        [x << shift; LANES]
    }
    #[inline(always)]
    fn dot(self, sum: [i32; LANES], codes: [u8; CODES], x: [i8; 4], _wide: bool) -> [i32; LANES] {
        std::array::from_fn(|i| {
            (0..4).fold(sum[i], |sum, k| sum + i32::from(codes[4 * i + k]) * i32::from(x[k]))
        })
    }
    #[inline(always)]
    fn float(self, i: [i32; LANES]) -> Line {
        Line(i.map(|i| i as f32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Everything(Line, Line, Line);

    impl Kernel for Everything {
        type Output = Vec<u32>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<u32> {
            let (a, b, c) = (s.load(&self.0), s.load(&self.1), s.load(&self.2));
            let results = [
                s.add(a, b),
                s.sub(a, b),
                s.mul(a, b),
                s.div(a, b),
                s.max(a, b),
                s.min(a, b),
                s.fma(a, b, c),
                s.keep_at_least(a, b, c),
                exp(s, s.mul(a, s.splat(30.0))),
                s.splat(s.sum(a)),
            ];
            let mut bits = Vec::new();
            for v in results {
                let mut line = Line::ZERO;
                s.store(&mut line, v);
                bits.extend(line.0.map(f32::to_bits));
            }
            bits
        }
    }

    struct Exp(Line);

    impl Kernel for Exp {
        type Output = Line;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Line {
            let mut out = Line::ZERO;
            s.store(&mut out, exp(s, s.load(&self.0)));
            out
        }
    }

    proptest::proptest! {
        #[test]
        fn every_instruction_set_computes_the_same_bits(numbers in proptest::array::uniform32(-4f32..4f32)) {
            let line = |step: usize| Line(std::array::from_fn(|i| numbers[(i * step + step) % 32]));
            let run = |level: Level| level.run(Everything(line(1), line(3), line(7)));
            let want = run(Level::Portable(Portable));
            for level in Level::available() {
                proptest::prop_assert_eq!(&run(level), &want, "{}", level.name());
            }
        }

        #[test]
        fn exp_is_within_two_units_in_the_last_place(x in -87f32..88f32) {
            let got = Level::detect().run(Exp(Line([x; LANES]))).0[0];
            let want = f64::from(x).exp();
            proptest::prop_assert!((f64::from(got) - want).abs() <= want * 2.0 * f64::from(f32::EPSILON));
        }
    }

    #[test]
    fn a_masked_score_weighs_nothing() {
        for level in Level::available() {
            let out = level.run(Exp(Line([f32::NEG_INFINITY; LANES])));
            assert_eq!(out, Line::ZERO, "{}", level.name());
        }
    }
}
