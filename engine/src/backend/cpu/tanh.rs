//! What is built on the hyperbolic tangent: soft caps, and GELU by its approximation.
#![allow(clippy::inline_always)]

use super::lines::{Line, Rows};
use super::simd::{Kernel, Simd, exp};
use super::team::Machine;

/// `cap × tanh(x / cap)`: nearly `x` near zero, and never beyond `cap`.
#[inline(always)]
pub(super) fn soft_cap<S: Simd>(s: S, x: S::V, cap: f32) -> S::V {
    let one = s.splat(1.0);
    let e = exp(s, s.mul(x, s.splat(2.0 / cap)));
    // tanh y = (e - 1) / (e + 1) with e = exp 2y, which stays exact where e is so large that 1 is lost.
    s.mul(s.splat(cap), s.div(s.sub(e, one), s.add(e, one)))
}

/// The exponent with which GELU's tanh approximation is `x / (1 + exp exponent)`.
#[inline(always)]
pub(super) fn gelu_exponent<S: Simd>(s: S, x: S::V) -> S::V {
    // ½ (1 + tanh z) = 1 / (1 + exp -2z), with z = √(2/π) (x + 0.044715 x³).
    const TWICE: f32 = -1.595_769;
    let cubic = s.fma(s.mul(s.mul(x, x), s.splat(0.044_715)), x, x);
    s.mul(s.splat(TWICE), cubic)
}

/// [`soft_cap`] of every number.
pub(super) fn cap_rows(machine: &Machine, rows: &mut Rows, cap: f32) {
    struct Cap<'a>(&'a mut [Line], f32);
    impl Kernel for Cap<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for line in self.0 {
                let capped = soft_cap(s, s.load(line), self.1);
                s.store(line, capped);
            }
        }
    }
    machine.run(Cap(rows.lines_mut(), cap));
}

/// Every number times `factor`.
pub(super) fn scale_rows(machine: &Machine, rows: &mut Rows, factor: f32) {
    struct Scale<'a>(&'a mut [Line], f32);
    impl Kernel for Scale<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let factor = s.splat(self.1);
            for line in self.0 {
                let scaled = s.mul(s.load(line), factor);
                s.store(line, scaled);
            }
        }
    }
    machine.run(Scale(rows.lines_mut(), factor));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::simd::Level;

    #[test]
    fn a_soft_cap_is_the_tangent_s() {
        let mut rows = Rows::default();
        rows.reshape(1, 64);
        let inputs: Vec<f32> = (0..64).map(|i| ((i as f32) - 32.0).powi(3) / 20.0).collect();
        rows.row_mut(0).copy_from_slice(&inputs);
        cap_rows(&Machine::new(Level::detect(), 1).unwrap(), &mut rows, 50.0);
        for (x, got) in inputs.iter().zip(rows.row(0)) {
            let want = 50.0 * (f64::from(*x) / 50.0).tanh();
            assert!((f64::from(*got) - want).abs() < 2e-5, "{x}: {got} for {want}");
        }
    }
}
