//! Activations as signed bytes: what integer products multiply quantised weights with.
//!
//! Each 32 numbers of a token share a scale, a 127th of their largest magnitude; each number becomes the
//! nearest multiple of it. A token's blocks depend on its own numbers alone, and integer sums have no
//! order, so products of them are the same to the bit whatever else is in the step.
#![allow(clippy::inline_always)]

use super::lines::{LANES, Line, Rows, Shared};
use super::simd::{Kernel, Simd};
use super::team::Machine;
use super::tiled::Tiled;

/// Numbers in a block.
pub(super) const BLOCK: usize = 32;

/// 32 numbers of one token: `scale × codes`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(16))]
pub(super) struct Block {
    pub(super) codes: [i8; BLOCK],
    pub(super) scale: f32,
    /// Minus the sum of all codes.
    pub(super) negated_sum: i32,
    /// Minus the sums of the first and of the last sixteen codes.
    pub(super) negated_halves: [i32; 2],
}

impl Block {
    const ZERO: Self = Self { codes: [0; BLOCK], scale: 0.0, negated_sum: 0, negated_halves: [0; 2] };
}

/// A matrix of activations in blocks, a row for each token.
#[derive(Debug, Default)]
pub(super) struct Quantised {
    blocks: Vec<Block>,
    /// Blocks of a row.
    stride: usize,
    /// The same for products on tiles.
    tiled: Tiled,
}

impl Quantised {
    /// Takes the numbers of `x`, whose rows are whole blocks.
    pub(super) fn take(&mut self, machine: &mut Machine, x: &Rows) {
        assert!(x.width().is_multiple_of(BLOCK), "rows of whole blocks");
        self.stride = x.width() / BLOCK;
        self.blocks.resize(x.count() * self.stride, Block::ZERO);
        let stride = self.stride;
        let rows = Shared::new(&mut self.blocks);
        machine.for_ranges(x.count(), 4, |level, tokens| {
            for token in tokens {
                // SAFETY: each token's blocks are written by the one task that has it.
                let out = unsafe { rows.slice(token * stride, stride) };
                level.run_floats(Row { x: &x.lines()[token * 2 * stride..(token + 1) * 2 * stride], out });
            }
        });
    }

    /// Takes the numbers of `x` for products on tiles.
    pub(super) fn take_tiled(&mut self, machine: &mut Machine, x: &Rows) {
        self.take(machine, x);
        let stride = self.stride;
        self.tiled.reshape(x.count(), stride);
        let (blocks, tiles) = (&self.blocks, Shared::new(&mut self.tiled.tiles));
        machine.for_ranges(x.count().div_ceil(LANES), 1, |_, range| {
            for sixteen in range {
                // SAFETY: each sixteen tokens' tiles are written by the one task that has them.
                let tiles = unsafe { tiles.slice(sixteen * stride, stride) };
                let blocks = blocks[sixteen * LANES * stride..].chunks_exact(stride).take(LANES);
                for (lane, blocks) in blocks.enumerate() {
                    for (tile, block) in tiles.iter_mut().zip(blocks) {
                        tile.put(lane, block);
                    }
                }
            }
        });
    }

    /// What [`Quantised::take_tiled`] took.
    pub(super) fn tiled(&self) -> &Tiled {
        &self.tiled
    }

    /// Blocks of a row.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// The blocks of `count` tokens from `first` on.
    pub(super) fn rows(&self, first: usize, count: usize) -> &[Block] {
        &self.blocks[first * self.stride..(first + count) * self.stride]
    }
}

struct Row<'a> {
    /// Two lines for each block.
    x: &'a [Line],
    out: &'a mut [Block],
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.x.as_chunks().0.iter().zip(self.out) {
            block(s, x, out);
        }
    }
}

#[inline(always)]
fn block<S: Simd>(s: S, [first, last]: &[Line; 2], out: &mut Block) {
    // Added to a number below 2^22 it leaves the nearest integer in the low bits, ties to even.
    const ROUNDER: f32 = 12_582_912.0;
    let halves = [s.load(first), s.load(last)];
    let largest = s.largest_magnitude(halves[0], halves[1]);
    let inverse = s.splat(if largest == 0.0 { 0.0 } else { 127.0 / largest });
    let rounder = s.splat(ROUNDER);
    out.scale = largest / 127.0;
    for (half, numbers) in halves.into_iter().enumerate() {
        let rounded = s.add(s.mul(numbers, inverse), rounder);
        out.codes.as_chunks_mut().0[half] = s.low_bytes(rounded);
        // Integers, of which every sum is exact.
        out.negated_halves[half] = -(s.sum(s.sub(rounded, rounder)) as i32);
    }
    out.negated_sum = out.negated_halves[0] + out.negated_halves[1];
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backend::cpu::lines::flat_mut;
    use crate::backend::cpu::simd::Level;

    fn quantise(level: Level, x: &[f32; BLOCK]) -> Block {
        let (mut lines, mut out) = ([Line::ZERO; 2], [Block::ZERO]);
        flat_mut(&mut lines).copy_from_slice(x);
        level.run_floats(Row { x: &lines, out: &mut out });
        out[0]
    }

    proptest! {
        #[test]
        fn a_code_is_the_nearest_and_alike_everywhere(x in prop::array::uniform32(-1e3f32..1e3), k in -8i32..8) {
            let x = x.map(|x| x * 10f32.powi(k));
            let want = quantise(Level::available()[0], &x);
            for level in Level::available() {
                prop_assert_eq!(quantise(level, &x), want, "{}", level.name());
            }
            for (x, code) in x.iter().zip(want.codes) {
                prop_assert!((x - want.scale * f32::from(code)).abs() <= want.scale * 0.501);
                prop_assert!(code >= -127);
            }
            let sum = |codes: &[i8]| -codes.iter().map(|c| i32::from(*c)).sum::<i32>();
            prop_assert_eq!(want.negated_sum, sum(&want.codes));
            prop_assert_eq!(want.negated_halves, [sum(&want.codes[..16]), sum(&want.codes[16..])]);
        }
    }

    #[test]
    fn zeros_stay_zeros_and_what_is_no_number_is_not_hidden() {
        for level in Level::available() {
            assert_eq!(quantise(level, &[0.0; BLOCK]), Block::ZERO);
            let mut x = [1.0; BLOCK];
            x[7] = f32::NAN;
            assert!(quantise(level, &x).scale.is_nan());
            x[7] = f32::NEG_INFINITY;
            assert!(quantise(level, &x).scale.is_infinite());
        }
    }
}
