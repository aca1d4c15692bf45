//! What happens to each token by itself: norms, rotation, the gate of the feed-forward layer.
#![allow(clippy::inline_always)]

use std::ops::Range;

use super::lines::{LANES, Line, Rows, Shared, SharedRows, flat, flat_mut};
use super::simd::{Kernel, Level, Simd, exp};
use super::tanh::gelu_exponent;
use super::team::Machine;
use crate::model::spec::{Activation, Rope, RopeLayout};

/// Tokens that one thread takes at least: less is not worth waking another for.
const MIN_TOKENS: usize = 8;
/// Lines, likewise.
const MIN_LINES: usize = 512;

/// A vector of parameters, padded with zeros to whole lines.
pub(super) fn padded(numbers: &[f32]) -> Box<[Line]> {
    let mut lines = vec![Line::ZERO; numbers.len().div_ceil(LANES)];
    flat_mut(&mut lines)[..numbers.len()].copy_from_slice(numbers);
    lines.into_boxed_slice()
}

/// RMSNorm of each row of `x` into `out`.
pub(super) fn norm_rows(machine: &mut Machine, x: &Rows, weight: &[Line], eps: f32, out: &mut Rows) {
    out.reshape(x.count(), x.width());
    let (stride, width, out) = (x.stride(), x.width(), out.shared());
    machine.for_ranges(x.count(), MIN_TOKENS, |level, tokens| {
        for token in tokens {
            // SAFETY: each token is one task's.
            let out = unsafe { out.lines(token, 0, stride) };
            out.copy_from_slice(&x.lines()[token * stride..(token + 1) * stride]);
            level.run(Norm { x: out, weight, width, eps });
        }
    });
}

/// RMSNorm in place: `x / √(mean(x²) + eps) × weight`.
struct Norm<'a> {
    x: &'a mut [Line],
    weight: &'a [Line],
    width: usize,
    eps: f32,
}

impl Kernel for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut squares = s.splat(0.0);
        for x in self.x.iter() {
            let x = s.load(x);
            squares = s.fma(x, x, squares);
        }
        let scale = s.splat(1.0 / (s.sum(squares) / self.width as f32 + self.eps).sqrt());
        for (x, weight) in self.x.iter_mut().zip(self.weight) {
            let scaled = s.mul(s.load(x), scale);
            s.store(x, s.mul(scaled, s.load(weight)));
        }
    }
}

/// `a += b`.
pub(super) fn add_rows(machine: &mut Machine, a: &mut Rows, b: &Rows) {
    struct Add<'a>(&'a mut [Line], &'a [Line]);
    impl Kernel for Add<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (a, b) in self.0.iter_mut().zip(self.1) {
                let sum = s.add(s.load(a), s.load(b));
                s.store(a, sum);
            }
        }
    }
    let (len, a) = (a.lines().len(), Shared::new(a.lines_mut()));
    machine.for_ranges(len, MIN_LINES, |level, lines| {
        // SAFETY: each range of lines is one task's.
        let a = unsafe { a.slice(lines.start, lines.len()) };
        level.run(Add(a, &b.lines()[lines]));
    });
}

/// `activation(gate) × up`.
#[inline(always)]
fn gated<S: Simd>(s: S, activation: Activation, gate: S::V, up: S::V) -> S::V {
    let exponent = match activation {
        Activation::Silu => s.sub(s.splat(0.0), gate),
        Activation::GeluTanh => gelu_exponent(s, gate),
    };
    s.mul(s.div(gate, s.add(s.splat(1.0), exp(s, exponent))), up)
}

/// Some columns of gates with what they gate, a line of each token for every group of sixteen.
pub(super) struct GateGroups<'a> {
    pub(super) activation: Activation,
    pub(super) gates: &'a [Line],
    pub(super) ups: &'a [Line],
    pub(super) out: SharedRows<'a>,
    /// Which groups of columns, for this thread alone.
    pub(super) groups: Range<usize>,
}

impl Kernel for GateGroups<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let count = self.groups.len();
        let rows = self.gates.chunks_exact(count).zip(self.ups.chunks_exact(count));
        for (token, (gates, ups)) in rows.enumerate() {
            // SAFETY: each group of columns is one task's.
            let lines = unsafe { self.out.lines(token, self.groups.start, count) };
            for ((line, gate), up) in lines.iter_mut().zip(gates).zip(ups) {
                s.store(line, gated(s, self.activation, s.load(gate), s.load(up)));
            }
        }
    }
}

/// `gate = activation(gate) × up`.
pub(super) fn gate_rows(machine: &mut Machine, activation: Activation, gate: &mut Rows, up: &Rows) {
    struct Gate<'a>(Activation, &'a mut [Line], &'a [Line]);
    impl Kernel for Gate<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (gate, up) in self.1.iter_mut().zip(self.2) {
                let x = s.load(gate);
                s.store(gate, gated(s, self.0, x, s.load(up)));
            }
        }
    }
    let (len, gate) = (gate.lines().len(), Shared::new(gate.lines_mut()));
    machine.for_ranges(len, MIN_LINES, |level, lines| {
        // SAFETY: each range of lines is one task's.
        let gate = unsafe { gate.slice(lines.start, lines.len()) };
        level.run(Gate(activation, gate, &up.lines()[lines]));
    });
}

/// The rotation of each pair of a head, for each token of a step.
pub(super) struct Rotation {
    frequencies: Vec<f32>,
    head_dim: usize,
    magnitude: f32,
    layout: RopeLayout,
    /// For each token, cosines of all pairs, then their sines.
    angles: Vec<f32>,
}

impl Rotation {
    /// The rotation for contexts of at most `longest` tokens.
    pub(super) fn new(rope: &Rope, head_dim: usize, longest: usize) -> Self {
        let factors = rope.factors_for(longest);
        let frequency = |i: usize| {
            let frequency = f64::from(rope.theta).powf(-2.0 * i as f64 / rope.dims as f64);
            (frequency / f64::from(factors.get(i).copied().unwrap_or(1.0))) as f32
        };
        Self {
            frequencies: (0..rope.dims / 2).map(frequency).collect(),
            head_dim,
            magnitude: rope.magnitude,
            layout: rope.layout,
            angles: Vec::new(),
        }
    }

    /// Prepares for tokens at these positions.
    pub(super) fn prepare(&mut self, positions: &[u32]) {
        self.angles.clear();
        for position in positions {
            // In 32 bits, as the reference does: at far positions the rounding is part of the model.
            let angle = |frequency: &f32| f64::from(*position as f32 * frequency);
            let magnitude = self.magnitude;
            self.angles.extend(self.frequencies.iter().map(|f| angle(f).cos() as f32 * magnitude));
            self.angles.extend(self.frequencies.iter().map(|f| angle(f).sin() as f32 * magnitude));
        }
    }

    /// Normalises (if the model does) and rotates every head of every row.
    pub(super) fn rotate(&self, machine: &mut Machine, rows: &mut Rows, norm: Option<(&[Line], f32)>) {
        let (count, stride, width) = (rows.count(), rows.stride(), rows.width());
        let rows = rows.shared();
        machine.for_ranges(count, MIN_TOKENS, |level, tokens| {
            for token in tokens {
                // SAFETY: each token is one task's.
                let row = unsafe { rows.lines(token, 0, stride) };
                self.rotate_row(level, &mut flat_mut(row)[..width], token, norm);
            }
        });
    }

    fn rotate_row(&self, level: Level, row: &mut [f32], token: usize, norm: Option<(&[Line], f32)>) {
        let pairs = self.frequencies.len();
        let (cos, sin) = self.angles[2 * pairs * token..][..2 * pairs].split_at(pairs);
        for head in row.chunks_exact_mut(self.head_dim) {
            if let Some((weight, eps)) = norm {
                let mut lines = padded(head);
                level.run(Norm { x: &mut lines, weight, width: self.head_dim, eps });
                head.copy_from_slice(&flat(&lines)[..self.head_dim]);
            }
            level.run_floats(Rotate { layout: self.layout, head: &mut head[..2 * pairs], cos, sin });
        }
    }
}

/// Turns each pair of a head by its angle.
struct Rotate<'a> {
    layout: RopeLayout,
    head: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        match self.layout {
            RopeLayout::Interleaved => rotate_interleaved(self.head, self.cos, self.sin),
            RopeLayout::Halves => rotate_halves(self.head, self.cos, self.sin),
        }
    }
}

/// Plain Rust that the compiler vectorises for the instruction set that it is inlined into.
#[inline(always)]
fn rotate_interleaved(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((pair, cos), sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
        let (a, b) = (pair[0], pair[1]);
        pair[0] = a * cos - b * sin;
        pair[1] = b * cos + a * sin;
    }
}

/// Likewise.
#[inline(always)]
fn rotate_halves(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
