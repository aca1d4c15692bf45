//! Integer products against a plain reference, for every quantised format and odd shapes.

use proptest::prelude::*;

use super::*;
use crate::tensor::{Bytes, TensorKind};

const QUANTISED: [TensorKind; 10] = [
    TensorKind::Q4_0,
    TensorKind::Q4_1,
    TensorKind::Q5_0,
    TensorKind::Q5_1,
    TensorKind::Q8_0,
    TensorKind::Q2K,
    TensorKind::Q3K,
    TensorKind::Q4K,
    TensorKind::Q5K,
    TensorKind::Q6K,
];

/// Random stored blocks whose half-precision numbers are about one.
fn stored(kind: TensorKind, rows: usize, cols: usize, mut next: impl FnMut() -> u32) -> Tensor {
    let halves: &[usize] = match kind {
        TensorKind::Q4_0 | TensorKind::Q5_0 | TensorKind::Q8_0 => &[0],
        TensorKind::Q4_1 | TensorKind::Q5_1 | TensorKind::Q4K | TensorKind::Q5K => &[0, 2],
        TensorKind::Q2K => &[80, 82],
        TensorKind::Q3K => &[108],
        TensorKind::Q6K => &[208],
        TensorKind::F32 | TensorKind::F16 | TensorKind::BF16 => panic!("{kind} is not quantised"),
    };
    let mut bytes = Vec::new();
    for _ in 0..rows * cols / kind.block_len() {
        let mut block: Vec<u8> = (0..kind.block_bytes()).map(|_| (next() >> 16) as u8).collect();
        for &at in halves {
            // From 0.25 to 4, of either sign.
            let half = 0x3400 + (next() >> 18) as u16 % 0x1000 + ((next() >> 31) as u16) * 0x8000;
            block[at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
        bytes.extend(block);
    }
    Tensor::new(kind, rows, cols, Bytes::from(bytes)).unwrap()
}

fn random(seed: u32) -> impl FnMut() -> u32 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    }
}

/// Activations of which every 32nd is larger than the others.
fn activations(tokens: usize, cols: usize, mut next: impl FnMut() -> u32) -> Rows {
    let mut rows = Rows::default();
    rows.reshape(tokens, cols);
    for token in 0..tokens {
        for (k, x) in rows.row_mut(token).iter_mut().enumerate() {
            let unit = next() as i32 as f32 / 2f32.powi(31);
            *x = if k % 32 == 5 { 3.0 * unit } else { unit };
        }
    }
    rows
}

/// The products of the weights with the activations as they were quantised, in 64 bits; and for each
/// what rounding can come to.
fn reference(weight: &Tensor, bias: &[f32], quantised: &Quantised, tokens: usize) -> Vec<(f64, f64)> {
    let (cols, weights) = (weight.cols(), weight.to_f32());
    let mut out = Vec::new();
    for token in 0..tokens {
        for row in 0..weight.rows() {
            let (mut sum, mut magnitude) = (f64::from(bias[row]), 0.0);
            for (k, w) in weights[row * cols..(row + 1) * cols].iter().enumerate() {
                let block = &quantised.rows(token, 1)[k / 32];
                let x = f64::from(block.scale) * f64::from(block.codes[k % 32]);
                sum += f64::from(*w) * x;
                magnitude += f64::from(w.abs()) * x.abs();
            }
            out.push((sum, magnitude));
        }
    }
    out
}

fn product(machine: &mut Machine, weight: &Tensor, bias: &[f32], x: &Rows) -> (Vec<f32>, Quantised) {
    let matrix = Matrix::new(machine, weight.clone(), false).unwrap();
    assert!(matches!(matrix, Matrix::Integer(_)), "{} is multiplied in integers", weight.kind());
    let (mut out, mut quantised) = (Rows::default(), Quantised::default());
    let bias = crate::backend::cpu::pointwise::padded(bias);
    multiply(machine, x, &mut quantised, [Product::new(&matrix, Some(&bias), &mut out)]);
    let padding = |row: usize| crate::backend::cpu::lines::flat(&out.lines()[row * out.stride()..]);
    for row in 0..out.count() {
        let end = out.width().next_multiple_of(16);
        assert!(padding(row)[out.width()..end].iter().all(|x| *x == 0.0), "the padding stays zero");
    }
    ((0..x.count()).flat_map(|t| out.row(t).to_vec()).collect(), quantised)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn integer_products_equal_the_reference(
        which in 0usize..10, rows in 1usize..70, blocks in 1usize..5, tokens in 1usize..70, seed: u32,
    ) {
        let kind = QUANTISED[which];
        let cols = blocks * kind.block_len().max(64);
        let weight = stored(kind, rows, cols, random(seed));
        let x = activations(tokens, cols, random(seed ^ 0x5555));
        let bias: Vec<f32> = (0..rows).map(|r| r as f32 * 0.25 - 3.0).collect();
        let levels = Level::available();
        let mut machine = Machine::new(levels[levels.len() - 1], 2).unwrap();
        let (got, quantised) = product(&mut machine, &weight, &bias, &x);
        for (i, (got, (want, magnitude))) in got.iter().zip(reference(&weight, &bias, &quantised, tokens)).enumerate() {
            // Minima and codes cancel, so the bound is on the parts: a code's share of its weight is at
            // most about 200 times the weight itself.
            let bound = 1e-4 * (magnitude + 1.0);
            prop_assert!((f64::from(*got) - want).abs() <= bound, "{kind} [{i}]: {got} for {want} ± {bound}");
        }
        for level in levels {
            let mut machine = Machine::new(level, 1).unwrap();
            let (same, _) = product(&mut machine, &weight, &bias, &x);
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&same), bits(&got), "{} on {}", kind, level.name());
        }
    }
}

#[test]
fn a_token_has_the_same_bits_in_any_company() {
    for kind in QUANTISED {
        let weight = stored(kind, 33, 512, random(7));
        let x = activations(61, 512, random(9));
        let bias = vec![0.5; 33];
        let mut machine = Machine::new(Level::detect(), 2).unwrap();
        let (all, _) = product(&mut machine, &weight, &bias, &x);
        for count in [1, 2, 3, 5, 15, 16, 23, 24, 40] {
            let mut some = Rows::default();
            some.reshape(count, 512);
            for t in 0..count {
                some.row_mut(t).copy_from_slice(x.row(61 - count + t));
            }
            let (got, _) = product(&mut machine, &weight, &bias, &some);
            let want = &all[(61 - count) * 33..];
            assert!(got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits()), "{kind} with {count}");
        }
    }
}

/// What is not written in between changes nothing.
#[test]
fn gated_products_equal_products_and_their_gate() {
    use crate::backend::cpu::pointwise::gate_rows;

    let floats = TensorKind::ALL.into_iter().filter(|kind| !QUANTISED.contains(kind));
    for kind in QUANTISED.into_iter().chain(floats) {
        let (rows, cols, tokens) = (37, 256, 40);
        let [gate, up] = [3, 5].map(|seed| {
            let weight = if QUANTISED.contains(&kind) {
                stored(kind, rows, cols, random(seed))
            } else {
                // Halves of about one, whatever the format makes of them.
                let bytes: Vec<u8> =
                    (0..kind.bytes_for(rows * cols).unwrap() / 2).flat_map(|_| [0x1f, 0x3f]).collect();
                Tensor::new(kind, rows, cols, Bytes::from(bytes)).unwrap()
            };
            Matrix::new(&mut Machine::new(Level::detect(), 1).unwrap(), weight, false).unwrap()
        });
        let x = activations(tokens, cols, random(9));
        let bias = crate::backend::cpu::pointwise::padded(&vec![0.5; rows]);
        for level in Level::available() {
            let mut machine = Machine::new(level, 2).unwrap();
            let mut quantised = Quantised::default();
            let (mut want, mut other, mut got) = (Rows::default(), Rows::default(), Rows::default());
            let products = [Product::new(&gate, Some(&bias), &mut want), Product::new(&up, None, &mut other)];
            multiply(&mut machine, &x, &mut quantised, products);
            gate_rows(&mut machine, Activation::Silu, &mut want, &other);
            let (gate, up) =
                (Factor { weight: &gate, bias: Some(&bias) }, Factor { weight: &up, bias: None });
            multiply_gated(&mut machine, &x, &mut quantised, Activation::Silu, gate, up, &mut got);
            assert!(got.lines() == want.lines(), "{kind} on {}", level.name());
        }
    }
}
