//! Products of quantised weights with quantised activations, in integers.
//!
//! For each tile of a group and each token, 32 products of bytes are summed exactly; the sum, as a float,
//! times both scales is added to the result, tile after tile. So an output is one chain of sixteen-lane
//! multiply-adds over the inputs in their order, whatever the number of tokens, and has the same bits on
//! every instruction set.
#![allow(clippy::inline_always)]

use std::ops::Range;

use super::codes::{Ahead, Codes, Scales, VECTORS};
use super::lines::{Line, SharedRows};
use super::pack::{Packed, Unpacked, Visitor};
use super::quantise::{Block, Quantised};
use super::simd::{Kernel, Simd};

/// Up to so many tokens a group's codes are read as they are packed; for more it is unpacked once.
const DIRECT: usize = 4;
/// The same where the registers hold the sums of sixteen tokens: to unpack a group a second time there
/// costs less than to write it down.
const WIDE_DIRECT: usize = 32;

/// Some groups' part of a product, for one thread.
pub(super) struct Groups<'a> {
    pub(super) weight: &'a Packed,
    /// A number for each row, padded to whole lines.
    pub(super) bias: Option<&'a [Line]>,
    pub(super) x: &'a Quantised,
    pub(super) tokens: usize,
    pub(super) out: SharedRows<'a>,
    pub(super) range: Range<usize>,
    pub(super) unpacked: &'a mut Unpacked,
}

impl Kernel for Groups<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { weight, bias, x, tokens, out, range, unpacked } = self;
        for group in range {
            let task = Group { bias: bias.map(|bias| &bias[group]), x, tokens, out, index: group };
            if tokens <= if S::WIDE { WIDE_DIRECT } else { DIRECT } && !S::PLAIN {
                weight.visit(group, Direct { s, task });
                continue;
            }
            let shape = weight.visit(group, Unpack { s, tiles: x.stride(), unpacked: &mut *unpacked });
            let zero = shape.zero;
            match (shape.wide, shape.halves, shape.minima) {
                (true, ..) => task.sweep(s, unpacked.eight(), unpacked.scales::<false, false>(), zero),
                (_, false, false) => task.sweep(s, unpacked.seven(), unpacked.scales::<false, false>(), zero),
                (_, false, true) => task.sweep(s, unpacked.seven(), unpacked.scales::<false, true>(), zero),
                (_, true, false) => task.sweep(s, unpacked.seven(), unpacked.scales::<true, false>(), zero),
                (_, true, true) => task.sweep(s, unpacked.seven(), unpacked.scales::<true, true>(), zero),
            }
        }
    }
}

/// One group's part of a product.
#[derive(Clone, Copy)]
struct Group<'a> {
    bias: Option<&'a Line>,
    x: &'a Quantised,
    tokens: usize,
    out: SharedRows<'a>,
    /// Its place in the matrix.
    index: usize,
}

/// Multiplies a group as it is packed.
struct Direct<'a, S> {
    s: S,
    task: Group<'a>,
}

impl<S: Simd> Visitor for Direct<'_, S> {
    type Output = ();

    #[inline(always)]
    fn visit<C: Codes, X: Scales>(self, codes: C, scales: X, zero: Option<u32>, ahead: Ahead<'_>) {
        let Self { s, task } = self;
        // The first pass over the group asks for the next one.
        let (mut token, mut ahead) = (0, Some(ahead));
        if S::WIDE {
            while task.tokens - token >= 16 {
                task.tile::<S, C, X, 16>(s, codes, scales, zero, ahead.take(), token);
                token += 16;
            }
            if task.tokens - token >= 8 {
                task.tile::<S, C, X, 8>(s, codes, scales, zero, ahead.take(), token);
                token += 8;
            }
        }
        while task.tokens - token >= 4 {
            task.tile::<S, C, X, 4>(s, codes, scales, zero, ahead.take(), token);
            token += 4;
        }
        while task.tokens - token >= 2 {
            task.tile::<S, C, X, 2>(s, codes, scales, zero, ahead.take(), token);
            token += 2;
        }
        if token < task.tokens {
            task.tile::<S, C, X, 1>(s, codes, scales, zero, ahead.take(), token);
        }
    }
}

/// Unpacks a group.
struct Unpack<'a, S> {
    s: S,
    tiles: usize,
    unpacked: &'a mut Unpacked,
}

/// What a group's format is like.
struct Shape {
    wide: bool,
    halves: bool,
    minima: bool,
    zero: Option<u32>,
}

impl<S: Simd> Visitor for Unpack<'_, S> {
    type Output = Shape;

    #[inline(always)]
    fn visit<C: Codes, X: Scales>(self, codes: C, scales: X, zero: Option<u32>, ahead: Ahead<'_>) -> Shape {
        self.unpacked.take(self.s, codes, scales, self.tiles, None, ahead);
        Shape { wide: C::WIDE, halves: X::HALVES, minima: X::MINIMA, zero }
    }
}

impl Group<'_> {
    /// All tokens: as many together as the registers hold, then what is left.
    #[inline(always)]
    fn sweep<S: Simd, C: Codes, X: Scales>(self, s: S, codes: C, scales: X, zero: Option<u32>) {
        let mut token = 0;
        if S::WIDE {
            while self.tokens - token >= 16 {
                self.tile::<S, C, X, 16>(s, codes, scales, zero, None, token);
                token += 16;
            }
        }
        if !S::PLAIN {
            while self.tokens - token >= 4 {
                self.tile::<S, C, X, 4>(s, codes, scales, zero, None, token);
                token += 4;
            }
        }
        while token < self.tokens {
            self.tile::<S, C, X, 1>(s, codes, scales, zero, None, token);
            token += 1;
        }
    }

    #[inline(always)]
    fn tile<S: Simd, C: Codes, X: Scales, const T: usize>(
        self,
        s: S,
        codes: C,
        scales: X,
        zero: Option<u32>,
        ahead: Option<Ahead<'_>>,
        token: usize,
    ) {
        let x = self.x.rows(token, T);
        for token in token..token + T {
            self.out.prefetch(token, self.index);
        }
        let sums = sums::<S, C, X, T>(s, codes, scales, zero, ahead, x);
        for (t, sum) in sums.into_iter().enumerate() {
            let sum = self.bias.map_or(sum, |bias| s.add(sum, s.load(bias)));
            // SAFETY: a group's columns are written only by the task that has the group, and the products
            // of one call have different outputs.
            let [line] = (unsafe { self.out.lines(token + t, self.index, 1) }) else { return };
            s.store(line, sum);
        }
    }
}

/// The products of a group's sixteen rows with `T` tokens, whose blocks lie one token after the other.
#[inline(always)]
fn sums<S: Simd, C: Codes, X: Scales, const T: usize>(
    s: S,
    codes: C,
    scales: X,
    zero: Option<u32>,
    ahead: Option<Ahead<'_>>,
    x: &[Block],
) -> [S::V; T] {
    let tiles = x.len() / T;
    assert!(x.len() == T * tiles, "whole tokens");
    let mut out = [s.splat(0.0); T];
    for tile in 0..tiles {
        if let Some(ahead) = ahead {
            ahead.prefetch(s, tile);
        }
        let w = codes.tile(s, tile);
        let scale =
            [scales.scale(s, tile, 0), if X::HALVES { scales.scale(s, tile, 1) } else { s.splat(0.0) }];
        let zeros = s.splat(0.0);
        let minimum = match (X::MINIMA, X::HALVES) {
            (false, _) => [zeros; 2],
            (true, false) => [scales.minimum(s, tile, 0), zeros],
            (true, true) => [scales.minimum(s, tile, 0), scales.minimum(s, tile, 1)],
        };
        for (t, out) in out.iter_mut().enumerate() {
            // SAFETY: t < T and tile < tiles, and x has T × tiles blocks by the check above.
            let block = unsafe { x.get_unchecked(t * tiles + tile) };
            let (x, _) = block.codes.as_chunks::<4>();
            let token_scale = s.splat(block.scale);
            if X::HALVES {
                for half in 0..2 {
                    let first = half * VECTORS / 2;
                    let mut sum = start(s, block.negated_halves[half], zero);
                    for j in first..first + VECTORS / 2 {
                        sum = s.dot(sum, w[j], x[j], C::WIDE);
                    }
                    *out = s.fma(s.float(sum), s.mul(scale[half], token_scale), *out);
                    if X::MINIMA {
                        let of_codes = -block.scale * block.negated_halves[half] as f32;
                        *out = s.fma(minimum[half], s.splat(of_codes), *out);
                    }
                }
            } else {
                let mut sum = start(s, block.negated_sum, zero);
                for j in 0..VECTORS {
                    sum = s.dot(sum, w[j], x[j], C::WIDE);
                }
                *out = s.fma(s.float(sum), s.mul(scale[0], token_scale), *out);
                if X::MINIMA {
                    let of_codes = -block.scale * block.negated_sum as f32;
                    *out = s.fma(minimum[0], s.splat(of_codes), *out);
                }
            }
        }
    }
    out
}

/// What a sum of products of codes begins with, so that it is that of the codes less their zero.
#[inline(always)]
fn start<S: Simd>(s: S, negated_sum: i32, zero: Option<u32>) -> S::I {
    match zero {
        Some(zero) => s.shifted(negated_sum, zero),
        None => s.integer(0),
    }
}
