//! The formats that matter most, turned into 32-bit floats sixteen at a time; the rest goes through the
//! portable code in `tensor`. Both give the same bits.
#![allow(clippy::inline_always)]

use super::lines::{LANES, Line, flat_mut};
use super::simd::Simd;
use crate::tensor::{TensorKind, dequantise};

/// Turns a stored row of `cols` numbers into lines; what pads the last line is left as it is.
#[inline(always)]
pub(super) fn unpack<S: Simd>(s: S, kind: TensorKind, row: &[u8], cols: usize, out: &mut [Line]) {
    assert!(kind.bytes_for(cols) == Some(row.len()) && out.len() == cols.div_ceil(LANES), "a whole row");
    macro_rules! each_block {
        ($one:ident) => {{
            let (blocks, _) = row.as_chunks();
            let lines = out.len() / blocks.len().max(1);
            for (block, out) in blocks.iter().zip(out.chunks_exact_mut(lines)) {
                for (out, v) in out.iter_mut().zip($one(s, block)) {
                    s.store(out, v);
                }
            }
        }};
    }
    match kind {
        TensorKind::F32 if cols.is_multiple_of(LANES) => each_block!(f32),
        TensorKind::F16 if cols.is_multiple_of(LANES) => each_block!(f16),
        TensorKind::BF16 if cols.is_multiple_of(LANES) => each_block!(bf16),
        TensorKind::Q4_0 => each_block!(q4_0),
        TensorKind::Q4_1 => each_block!(q4_1),
        TensorKind::Q8_0 => each_block!(q8_0),
        TensorKind::Q4K => each_block!(q4_k),
        TensorKind::Q5K => each_block!(q5_k),
        TensorKind::Q6K => each_block!(q6_k),
        other => dequantise(other, row, &mut flat_mut(out)[..cols]),
    }
}

/// The products of `R` stored rows with one row of activations, without writing the rows' numbers
/// anywhere; none for a format that has to be unpacked first. The sums are those that a panel gives.
#[inline(always)]
pub(super) fn dot<S: Simd, const R: usize>(
    s: S,
    kind: TensorKind,
    cols: usize,
    rows: [&[u8]; R],
    x: &[Line],
) -> Option<[f32; R]> {
    macro_rules! each_block {
        ($one:ident, $lines:literal) => {{
            let rows = rows.map(|row| row.as_chunks().0);
            let x = x.as_chunks::<$lines>().0;
            assert!(rows.iter().all(|row| row.len() == x.len()), "rows as long as the activations");
            let mut sums = [s.splat(0.0); R];
            for (b, x) in x.iter().enumerate() {
                for (sum, row) in sums.iter_mut().zip(rows) {
                    // SAFETY: b < x.len(), which is the length of every row.
                    let numbers: [S::V; $lines] = $one(s, unsafe { row.get_unchecked(b) });
                    for i in 0..$lines {
                        *sum = s.fma(numbers[i], s.load(&x[i]), *sum);
                    }
                }
            }
            sums
        }};
    }
    let sums = match kind {
        TensorKind::F32 if cols.is_multiple_of(LANES) => each_block!(f32, 1),
        TensorKind::F16 if cols.is_multiple_of(LANES) => each_block!(f16, 1),
        TensorKind::BF16 if cols.is_multiple_of(LANES) => each_block!(bf16, 1),
        TensorKind::Q4_0 => each_block!(q4_0, 2),
        TensorKind::Q4_1 => each_block!(q4_1, 2),
        TensorKind::Q8_0 => each_block!(q8_0, 2),
        TensorKind::Q4K => each_block!(q4_k, 16),
        TensorKind::Q5K => each_block!(q5_k, 16),
        TensorKind::Q6K => each_block!(q6_k, 16),
        _ => return None,
    };
    let mut totals = [0.0; R];
    for (total, sum) in totals.iter_mut().zip(sums) {
        *total = s.sum(sum);
    }
    Some(totals)
}

/// Sixteen bytes of a block.
#[inline(always)]
fn part<S: Simd, const BYTES: usize>(s: S, block: &[u8; BYTES], at: usize) -> S::B {
    assert!(at + LANES <= BYTES, "a block holds whole parts");
    // SAFETY: the sixteen bytes from `at` lie in the block by the check above; bytes need no alignment.
    s.bytes(unsafe { &*block.as_ptr().add(at).cast() })
}

/// A block's half-precision number.
#[inline(always)]
fn half<S: Simd, const BYTES: usize>(s: S, block: &[u8; BYTES], at: usize) -> f32 {
    s.half(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// Two half-precision numbers of a block, one after the other.
#[inline(always)]
fn half_pair<S: Simd, const BYTES: usize>(s: S, block: &[u8; BYTES], at: usize) -> (f32, f32) {
    s.half_pair(u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]))
}

#[inline(always)]
fn f32<S: Simd>(s: S, block: &[u8; 64]) -> [S::V; 1] {
    [s.words(block)]
}

#[inline(always)]
fn f16<S: Simd>(s: S, block: &[u8; 32]) -> [S::V; 1] {
    [s.halves(block)]
}

#[inline(always)]
fn bf16<S: Simd>(s: S, block: &[u8; 32]) -> [S::V; 1] {
    [s.upper_halves(block)]
}

#[inline(always)]
fn q4_0<S: Simd>(s: S, block: &[u8; 18]) -> [S::V; 2] {
    let (d, eight) = (s.splat(half(s, block, 0)), s.splat(8.0));
    let q = part(s, block, 2);
    let low = s.sub(s.unsigned(s.bits(q, 0, 15)), eight);
    let high = s.sub(s.unsigned(s.bits(q, 4, 15)), eight);
    [s.mul(d, low), s.mul(d, high)]
}

#[inline(always)]
fn q4_1<S: Simd>(s: S, block: &[u8; 20]) -> [S::V; 2] {
    let (d, m) = half_pair(s, block, 0);
    let (d, m) = (s.splat(d), s.splat(m));
    let q = part(s, block, 4);
    [s.fma(d, s.unsigned(s.bits(q, 0, 15)), m), s.fma(d, s.unsigned(s.bits(q, 4, 15)), m)]
}

#[inline(always)]
fn q8_0<S: Simd>(s: S, block: &[u8; 34]) -> [S::V; 2] {
    let d = s.splat(half(s, block, 0));
    [s.mul(d, s.signed(part(s, block, 2))), s.mul(d, s.signed(part(s, block, 2 + LANES)))]
}

/// The `part`-th of eight six-bit scales and minima, packed in 12 bytes.
#[inline(always)]
fn scale_and_min(packed: &[u8], part: usize) -> (f32, f32) {
    let (scale, min) = if part < 4 {
        (packed[part] & 63, packed[part + 4] & 63)
    } else {
        let high = packed[part + 4];
        ((high & 15) | (packed[part - 4] >> 6) << 4, (high >> 4) | (packed[part] >> 6) << 4)
    };
    (f32::from(scale), f32::from(min))
}

#[inline(always)]
fn q4_k<S: Simd>(s: S, block: &[u8; 144]) -> [S::V; 16] {
    let (d, dmin) = half_pair(s, block, 0);
    let mut out = [s.splat(0.0); 16];
    for sub in 0..8 {
        let (scale, min) = scale_and_min(&block[4..16], sub);
        let (scale, min) = (s.splat(d * scale), s.splat(dmin * min));
        for i in 0..2 {
            let q = part(s, block, 16 + sub / 2 * 32 + i * LANES);
            let q = s.unsigned(s.bits(q, sub as u32 % 2 * 4, 15));
            out[sub * 2 + i] = s.sub(s.mul(scale, q), min);
        }
    }
    out
}

#[inline(always)]
fn q5_k<S: Simd>(s: S, block: &[u8; 176]) -> [S::V; 16] {
    let (d, dmin) = half_pair(s, block, 0);
    let mut out = [s.splat(0.0); 16];
    for sub in 0..8 {
        let (scale, min) = scale_and_min(&block[4..16], sub);
        let (scale, min) = (s.splat(d * scale), s.splat(dmin * min));
        for i in 0..2 {
            let low = s.bits(part(s, block, 48 + sub / 2 * 32 + i * LANES), sub as u32 % 2 * 4, 15);
            let high = s.bits(part(s, block, 16 + i * LANES), sub as u32, 1);
            let q = s.unsigned(s.join(low, high, 4));
            out[sub * 2 + i] = s.sub(s.mul(scale, q), min);
        }
    }
    out
}

#[inline(always)]
fn q6_k<S: Simd>(s: S, block: &[u8; 210]) -> [S::V; 16] {
    let d = half(s, block, 208);
    let mut out = [s.splat(0.0); 16];
    for (line, out) in out.iter_mut().enumerate() {
        let (half, quarter, sub) = (line / 8, line / 2 % 4, line % 2);
        let scale = s.splat(d * f32::from(block[192 + line] as i8));
        let low = part(s, block, half * 64 + quarter % 2 * 32 + sub * LANES);
        let low = s.bits(low, quarter as u32 / 2 * 4, 15);
        let high = s.bits(part(s, block, 128 + half * 32 + sub * LANES), quarter as u32 * 2, 3);
        let q = s.sub(s.unsigned(s.join(low, high, 4)), s.splat(32.0));
        *out = s.mul(scale, q);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::lines::flat;
    use super::super::simd::{Kernel, Level};
    use super::*;

    struct Unpack<'a>(TensorKind, &'a [u8], &'a mut [Line]);

    impl Kernel for Unpack<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            unpack(s, self.0, self.1, self.2.len() * LANES, self.2);
        }
    }

    struct Dot<'a>(TensorKind, &'a [u8], &'a [Line]);

    impl Kernel for Dot<'_> {
        type Output = Option<u32>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Option<u32> {
            let sums = dot(s, self.0, self.2.len() * LANES, [self.1; 1], self.2);
            sums.map(|[sum]| sum.to_bits())
        }
    }

    proptest! {
        /// Sums without scratch are those of the unpacked row, added up in the one order.
        #[test]
        fn a_dot_product_equals_that_of_the_unpacked_row(
            bytes in prop::collection::vec(0u8..0x44, 1024),
            x in prop::collection::vec(-2f32..2f32, 256),
        ) {
            let mut lines = vec![Line::ZERO; x.len() / LANES];
            flat_mut(&mut lines).copy_from_slice(&x);
            for kind in TensorKind::ALL {
                let row = &bytes[..kind.bytes_for(x.len()).unwrap()];
                let mut numbers = vec![0.0; x.len()];
                dequantise(kind, row, &mut numbers);
                let mut lanes = [0f32; LANES];
                for (i, (w, x)) in numbers.iter().zip(&x).enumerate() {
                    lanes[i % LANES] = w.mul_add(*x, lanes[i % LANES]);
                }
                let want = Simd::sum(super::super::simd::Portable, Line(lanes)).to_bits();
                for level in Level::available() {
                    let got = level.run(Dot(kind, row, &lines));
                    prop_assert!(got.is_none_or(|got| got == want), "{kind} on {}", level.name());
                }
            }
        }

        /// Any bytes at all, so with scales that are subnormal, infinite or NaN.
        #[test]
        fn every_format_equals_the_portable_code(bytes in prop::collection::vec(any::<u8>(), 1024)) {
            for kind in TensorKind::ALL {
                let cols = 256;
                let row = &bytes[..kind.bytes_for(cols).unwrap()];
                let mut want = vec![0.0; cols];
                dequantise(kind, row, &mut want);
                for level in Level::available() {
                    let mut got = vec![Line::ZERO; cols / LANES];
                    level.run(Unpack(kind, row, &mut got));
                    for (got, want) in flat(&got).iter().zip(&want) {
                        let same = got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan());
                        prop_assert!(same, "{kind} on {}: {got:e} for {want:e}", level.name());
                    }
                }
            }
        }
    }
}
