//! What happens to each row by itself: layer norm and GELU.
#![allow(clippy::inline_always)]

use super::super::lines::{Line, Rows, flat_mut};
use super::super::simd::{Kernel, Simd, exp};
use super::super::team::Machine;
use super::Norm;

/// Layer norm in place: `(x - mean) / √(variance + eps) × weight + bias`.
pub(super) fn layer_norm_rows(machine: &Machine, rows: &mut Rows, norm: &Norm) {
    let (stride, width) = (rows.stride(), rows.width());
    for x in rows.lines_mut().chunks_exact_mut(stride) {
        machine.run(Normalise { x, width, norm });
    }
}

struct Normalise<'a> {
    x: &'a mut [Line],
    width: usize,
    norm: &'a Norm,
}

impl Kernel for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut sum = s.splat(0.0);
        for x in self.x.iter() {
            sum = s.add(sum, s.load(x));
        }
        let mean = s.splat(s.sum(sum) / self.width as f32);
        for x in self.x.iter_mut() {
            let centred = s.sub(s.load(x), mean);
            s.store(x, centred);
        }
        // The padding must stay out of the variance.
        flat_mut(self.x)[self.width..].fill(0.0);
        let mut squares = s.splat(0.0);
        for x in self.x.iter() {
            let x = s.load(x);
            squares = s.fma(x, x, squares);
        }
        let scale = s.splat(1.0 / (s.sum(squares) / self.width as f32 + self.norm.eps).sqrt());
        for ((x, weight), bias) in self.x.iter_mut().zip(&self.norm.weight).zip(&self.norm.bias) {
            let scaled = s.mul(s.load(x), scale);
            s.store(x, s.fma(scaled, s.load(weight), s.load(bias)));
        }
    }
}

/// GELU in place: `x Φ(x)`, with the error function to 1.5e-7 (Abramowitz and Stegun, 7.1.26).
pub(super) fn gelu_rows(machine: &Machine, rows: &mut Rows) {
    struct Gelu<'a>(&'a mut [Line]);
    impl Kernel for Gelu<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for line in self.0 {
                let out = gelu(s, s.load(line));
                s.store(line, out);
            }
        }
    }
    machine.run(Gelu(rows.lines_mut()));
}

#[inline(always)]
fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    const POLYNOMIAL: [f32; 5] = [1.061_405_4, -1.453_152, 1.421_413_8, -0.284_496_72, 0.254_829_6];
    let zero = s.splat(0.0);
    let positive = s.max(x, zero);
    let size = s.max(x, s.sub(zero, x));
    // erfc(z) = t (a₁ + t (a₂ + …)) e^-z², with z = |x| / √2 and t = 1 / (1 + p z).
    let t = s
        .div(s.splat(1.0), s.fma(size, s.splat(0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2), s.splat(1.0)));
    let mut p = s.splat(POLYNOMIAL[0]);
    for c in &POLYNOMIAL[1..] {
        p = s.fma(p, t, s.splat(*c));
    }
    let tail = s.mul(s.mul(p, t), exp(s, s.mul(s.mul(x, x), s.splat(-0.5))));
    s.sub(positive, s.mul(s.mul(size, s.splat(0.5)), tail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::pointwise::padded;
    use crate::backend::cpu::simd::Level;

    fn rows(values: &[f32]) -> Rows {
        let mut rows = Rows::default();
        rows.reshape(1, values.len());
        rows.row_mut(0).copy_from_slice(values);
        rows
    }

    #[test]
    fn gelu_is_x_times_the_normal_distribution() {
        // From tables of the normal distribution.
        let known = [
            (-3.0, -0.004_049_694),
            (-1.0, -0.158_655_25),
            (0.0, 0.0),
            (0.5, 0.345_731_23),
            (2.0, 1.954_499_7),
        ];
        let mut x = rows(&known.map(|(x, _)| x));
        gelu_rows(&Machine::new(Level::detect(), 1).unwrap(), &mut x);
        for ((x, want), got) in known.iter().zip(x.row(0)) {
            assert!((got - want).abs() < 4e-7, "{x}: {got} for {want}");
        }
    }

    #[test]
    fn a_layer_norm_leaves_the_padding_out() {
        let norm = Norm { weight: padded(&[2.0; 3]), bias: padded(&[1.0; 3]), eps: 1e-12 };
        let mut x = rows(&[1.0, 2.0, 3.0]);
        layer_norm_rows(&Machine::new(Level::detect(), 1).unwrap(), &mut x, &norm);
        let deviation = (2.0f32 / 3.0).sqrt();
        for (got, want) in x.row(0).iter().zip([1.0 - 2.0 / deviation, 1.0, 1.0 + 2.0 / deviation]) {
            assert!((got - want).abs() < 1e-6, "{got} for {want}");
        }
    }
}
