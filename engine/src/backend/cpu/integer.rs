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
use super::pack::{Packed, Packs, Unpacked, Visitor};
use super::quantise::{Block, Quantised};
use super::simd::{Kernel, Simd};

/// Up to so many tokens a group's codes are read as they are packed; for more it is unpacked once.
pub(super) const DIRECT: usize = 4;
/// The same where the registers hold the codes of two groups: to unpack them a second time there costs
/// less than to write them down.
const WIDE_DIRECT: usize = 32;
/// Tokens that a pair of groups is multiplied with in one pass: their sums stay in the nearest cache.
const PASS: usize = 16;

/// Some groups' part of a product, for one thread.
pub(super) struct Groups<'a> {
    pub(super) weight: &'a Packed,
    /// A number for each row, padded to whole lines.
    pub(super) bias: Option<&'a [Line]>,
    pub(super) x: &'a Quantised,
    pub(super) tokens: usize,
    pub(super) out: SharedRows<'a>,
    pub(super) range: Range<usize>,
    pub(super) unpacked: &'a mut [Unpacked; 2],
}

impl Kernel for Groups<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut group = self.range.start;
        while group < self.range.end {
            if S::WIDE && self.tokens > DIRECT && group + 1 < self.range.end {
                self.multiply::<S, 2>(s, group);
                group += 2;
            } else {
                self.multiply::<S, 1>(s, group);
                group += 1;
            }
        }
    }
}

impl Groups<'_> {
    /// The products of `N` groups from `index` on.
    #[inline(always)]
    fn multiply<S: Simd, const N: usize>(&mut self, s: S, index: usize) {
        let Self { weight, bias, x, tokens, out, .. } = *self;
        let task = Group { bias, x, tokens, out, index };
        if tokens <= if S::WIDE { WIDE_DIRECT } else { DIRECT } && !S::PLAIN {
            return weight.visit::<_, N>(index, Direct { s, task });
        }
        let shape = weight.visit::<_, N>(index, Unpack { s, tiles: x.stride(), unpacked: self.unpacked });
        let (zero, [first, second]) = (shape.zero, &*self.unpacked);
        let groups: [&Unpacked; N] = std::array::from_fn(|n| if n == 0 { first } else { second });
        macro_rules! sweep {
            ($codes:ident, $halves:literal, $minima:literal) => {
                task.sweep(
                    s,
                    groups.map(|group| group.$codes()),
                    groups.map(|group| group.scales::<$halves, $minima>()),
                    zero,
                    None,
                )
            };
        }
        match (shape.wide, shape.halves, shape.minima) {
            (true, ..) => sweep!(eight, false, false),
            (_, false, false) => sweep!(seven, false, false),
            (_, false, true) => sweep!(seven, false, true),
            (_, true, false) => sweep!(seven, true, false),
            (_, true, true) => sweep!(seven, true, true),
        }
    }
}

/// Some neighbouring groups' part of a product.
#[derive(Clone, Copy)]
struct Group<'a> {
    bias: Option<&'a [Line]>,
    x: &'a Quantised,
    tokens: usize,
    out: SharedRows<'a>,
    /// The place of the first in the matrix.
    index: usize,
}

/// Multiplies groups as they are packed.
struct Direct<'a, S> {
    s: S,
    task: Group<'a>,
}

impl<S: Simd> Visitor for Direct<'_, S> {
    type Output = ();

    #[inline(always)]
    fn visit<C: Codes, X: Scales, const N: usize>(self, groups: Packs<'_, C, X, N>) {
        let Packs { codes, scales, zero, ahead } = groups;
        self.task.sweep(self.s, codes, scales, zero, Some(ahead));
    }
}

/// Unpacks groups.
struct Unpack<'a, S> {
    s: S,
    tiles: usize,
    unpacked: &'a mut [Unpacked; 2],
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
    fn visit<C: Codes, X: Scales, const N: usize>(self, groups: Packs<'_, C, X, N>) -> Shape {
        let Packs { codes, scales, zero, ahead } = groups;
        for (n, unpacked) in self.unpacked.iter_mut().enumerate().take(N) {
            unpacked.take(self.s, codes[n], scales[n], self.tiles, None, (n == 0).then_some(ahead));
        }
        Shape { wide: C::WIDE, halves: X::HALVES, minima: X::MINIMA, zero }
    }
}

impl Group<'_> {
    /// All tokens with all groups. The first pass over the groups asks for what is `ahead`.
    #[inline(always)]
    fn sweep<S: Simd, C: Codes, X: Scales, const N: usize>(
        self,
        s: S,
        codes: [C; N],
        scales: [X; N],
        zero: Option<u32>,
        mut ahead: Option<Ahead<'_>>,
    ) {
        let mut token = 0;
        if S::WIDE && self.tokens > DIRECT {
            while token < self.tokens {
                let count = PASS.min(self.tokens - token);
                self.pass(s, codes, scales, zero, ahead.take(), token..token + count);
                token += count;
            }
            return;
        }
        for n in 0..N {
            let (codes, scales) = (codes[n], scales[n]);
            token = 0;
            if !S::PLAIN {
                while self.tokens - token >= 4 {
                    self.tile::<S, C, X, 4>(s, codes, scales, zero, ahead.take(), (token, n));
                    token += 4;
                }
                if self.tokens - token >= 2 {
                    self.tile::<S, C, X, 2>(s, codes, scales, zero, ahead.take(), (token, n));
                    token += 2;
                }
            }
            while token < self.tokens {
                self.tile::<S, C, X, 1>(s, codes, scales, zero, ahead.take(), (token, n));
                token += 1;
            }
        }
    }

    /// `T` tokens from one on, with the `n`-th group.
    #[inline(always)]
    fn tile<S: Simd, C: Codes, X: Scales, const T: usize>(
        self,
        s: S,
        codes: C,
        scales: X,
        zero: Option<u32>,
        ahead: Option<Ahead<'_>>,
        (token, n): (usize, usize),
    ) {
        for token in token..token + T {
            self.out.prefetch(token, self.index + n);
        }
        let mut sums = [[s.splat(0.0)]; T];
        add_products(s, [codes], [scales], zero, ahead, self.x.rows(token, T), &mut sums);
        self.write(s, token, n, &sums);
    }

    /// Up to [`PASS`] tokens with all groups.
    #[inline(always)]
    fn pass<S: Simd, C: Codes, X: Scales, const N: usize>(
        self,
        s: S,
        codes: [C; N],
        scales: [X; N],
        zero: Option<u32>,
        ahead: Option<Ahead<'_>>,
        tokens: Range<usize>,
    ) {
        for token in tokens.clone() {
            for n in 0..N {
                self.out.prefetch(token, self.index + n);
            }
        }
        let mut sums = [[s.splat(0.0); N]; PASS];
        let (x, sums) = (self.x.rows(tokens.start, tokens.len()), &mut sums[..tokens.len()]);
        add_products(s, codes, scales, zero, ahead, x, sums);
        self.write(s, tokens.start, 0, sums);
    }

    /// Writes the sums of some tokens and of the groups from the `n`-th on.
    #[inline(always)]
    fn write<S: Simd, const N: usize>(self, s: S, token: usize, n: usize, sums: &[[S::V; N]]) {
        for (t, sums) in sums.iter().enumerate() {
            for (i, sum) in sums.iter().enumerate() {
                let group = self.index + n + i;
                let sum = self.bias.map_or(*sum, |bias| s.add(*sum, s.load(&bias[group])));
                // SAFETY: a group's columns are written only by the task that has the group, and the
                // products of one call have different outputs.
                let [line] = (unsafe { self.out.lines(token + t, group, 1) }) else { return };
                s.store(line, sum);
            }
        }
    }
}

/// Adds to `sums` the products of `N` groups of sixteen rows with its tokens, whose blocks lie one token
/// after the other.
#[inline(always)]
fn add_products<S: Simd, C: Codes, X: Scales, const N: usize>(
    s: S,
    codes: [C; N],
    scales: [X; N],
    zero: Option<u32>,
    ahead: Option<Ahead<'_>>,
    x: &[Block],
    sums: &mut [[S::V; N]],
) {
    let tiles = x.len() / sums.len();
    assert!(x.len() == sums.len() * tiles, "whole tokens");
    for tile in 0..tiles {
        if let Some(ahead) = ahead {
            ahead.prefetch(s, tile);
        }
        let mut w = [[s.code_zero(); VECTORS]; N];
        let mut scale = [[s.splat(0.0); 2]; N];
        let mut minimum = [[s.splat(0.0); 2]; N];
        for n in 0..N {
            w[n] = codes[n].tile(s, tile);
            for half in 0..if X::HALVES { 2 } else { 1 } {
                scale[n][half] = scales[n].scale(s, tile, half);
                if X::MINIMA {
                    minimum[n][half] = scales[n].minimum(s, tile, half);
                }
            }
        }
        for (t, out) in sums.iter_mut().enumerate() {
            // SAFETY: t and tile are below the numbers of tokens and of tiles, whose product is x's length.
            let block = unsafe { x.get_unchecked(t * tiles + tile) };
            let (x, _) = block.codes.as_chunks::<4>();
            let token_scale = s.splat(block.scale);
            // Each tile's inputs in one part or in halves.
            for half in 0..if X::HALVES { 2 } else { 1 } {
                let (range, negated) = if X::HALVES {
                    (half * VECTORS / 2..(half + 1) * VECTORS / 2, block.negated_halves[half])
                } else {
                    (0..VECTORS, block.negated_sum)
                };
                let mut dots = [start(s, negated, zero); N];
                for j in range {
                    for n in 0..N {
                        dots[n] = s.dot(dots[n], w[n][j], x[j], C::WIDE);
                    }
                }
                for n in 0..N {
                    out[n] = s.fma(s.float(dots[n]), s.mul(scale[n][half], token_scale), out[n]);
                }
                if X::MINIMA {
                    let of_codes = s.splat(-block.scale * negated as f32);
                    for n in 0..N {
                        out[n] = s.fma(minimum[n][half], of_codes, out[n]);
                    }
                }
            }
        }
    }
}

/// What a sum of products of codes begins with, so that it is that of the codes less their zero.
#[inline(always)]
fn start<S: Simd>(s: S, negated_sum: i32, zero: Option<u32>) -> S::I {
    match zero {
        Some(zero) => s.shifted(negated_sum, zero),
        None => s.integer(0),
    }
}
