//! What is added, against a plain reference.

use proptest::prelude::*;

use super::*;
use crate::backend::LogitRows;
use crate::backend::cpu::lines::flat;
use crate::backend::cpu::simd::Level;
use crate::tensor::{Bytes, Tensor, TensorKind};

fn matrix(rows: usize, cols: usize, mut next: impl FnMut() -> f32) -> Tensor {
    let bytes: Vec<u8> = (0..rows * cols).flat_map(|_| next().to_le_bytes()).collect();
    Tensor::new(TensorKind::F32, rows, cols, Bytes::from(bytes)).unwrap()
}

fn random(seed: u32) -> impl FnMut() -> f32 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as i32 as f32 / 2f32.powi(31)
    }
}

fn rows(count: usize, width: usize, mut next: impl FnMut() -> f32) -> Rows {
    let mut rows = Rows::default();
    rows.reshape(count, width);
    for row in 0..count {
        rows.row_mut(row).fill_with(&mut next);
    }
    rows
}

/// Spans of these lengths, each with its adapter.
fn spans(of: &[(usize, Option<u64>)]) -> Vec<SequenceSpan> {
    let mut start = 0;
    let span = |&(len, adapter): &(usize, Option<u64>)| {
        start += len;
        SequenceSpan {
            start: start - len,
            len,
            context: 0,
            blocks: std::sync::Arc::default(),
            logits: LogitRows::None,
            adapter: adapter.map(AdapterId),
        }
    };
    of.iter().map(span).collect()
}

#[test]
fn tokens_of_one_adapter_are_read_together() {
    let mut runs = LoraRuns::default();
    runs.place(&spans(&[(1, Some(1)), (9, Some(1)), (2, None), (1, Some(1)), (1, Some(2))]));
    let run = |adapter, first, count| Run { adapter: AdapterId(adapter), first, count };
    assert_eq!(runs.0, [run(1, 0, 8), run(1, 8, 2), run(1, 12, 1), run(2, 13, 1)]);
    let mut some = LoraRuns::default();
    some.gather(&runs, [0, 3, 9, 10, 12, 13].into_iter());
    assert_eq!(some.0, [run(1, 0, 3), run(1, 4, 1), run(2, 5, 1)], "the tenth has none, and takes a row");
    runs.place(&spans(&[(3, None)]));
    assert!(runs.0.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn each_token_gets_its_adapters_product_and_nothing_else(
        rank in 1usize..20, inputs in 1usize..90, outputs in 1usize..150, seed: u32,
        of in prop::collection::vec((1usize..12, prop::option::of(1u64..3)), 1..6),
    ) {
        let mut next = random(seed);
        let mut loras = Loras::default();
        let mut pairs = Vec::new();
        for (id, rank) in [(1, rank), (2, 21 - rank)] {
            let (a, b) = (matrix(rank, inputs, &mut next), matrix(outputs, rank, &mut next));
            let pair = LowRank { a, b, scale: next() * 3.0 };
            let mut layer = LayerLora::default();
            prop_assert!(layer.set(Part::Shared, Target::Value, pair.clone()));
            loras.load(AdapterId(id), &LoraWeights { layers: [LayerLora::default(), layer].into() });
            pairs.push((pair.a.to_f32(), pair.b.to_f32(), pair.scale, rank));
        }
        let spans = spans(&of);
        let count = spans.iter().map(|span| span.len).sum();
        let (x, before) = (rows(count, inputs, &mut next), rows(count, outputs, &mut next));
        let added = |level: Level, threads: usize, spans: &[SequenceSpan]| {
            let mut machine = Machine::new(level, threads).unwrap();
            let (mut runs, mut out) = (LoraRuns::default(), Rows::default());
            out.reshape(count, outputs);
            out.lines_mut().copy_from_slice(before.lines());
            runs.place(spans);
            loras.add(&mut machine, &runs, (1, Part::Shared), &x, [(Target::Value, &mut out)]);
            out
        };
        let bits = |rows: &Rows| flat(rows.lines()).iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let got = added(Level::detect(), 2, &spans);
        for span in &spans {
            for token in span.start..span.start + span.len {
                for (o, got) in got.row(token).iter().enumerate() {
                    let old = before.row(token)[o];
                    let Some(AdapterId(id)) = span.adapter else {
                        prop_assert_eq!(got.to_bits(), old.to_bits());
                        continue;
                    };
                    let (a, b, scale, rank) = &pairs[id as usize - 1];
                    let narrow = |r: usize| -> f64 {
                        x.row(token).iter().enumerate().map(|(k, x)| f64::from(a[r * inputs + k]) * f64::from(*x)).sum()
                    };
                    let sum: f64 = (0..*rank).map(|r| f64::from(b[o * rank + r]) * narrow(r)).sum();
                    let want = f64::from(old) + f64::from(*scale) * sum;
                    prop_assert!((f64::from(*got) - want).abs() < 1e-4 * (1.0 + want.abs()), "{} for {}", got, want);
                }
            }
        }
        for level in Level::available() {
            prop_assert_eq!(bits(&added(level, 1, &spans)), bits(&got), "{}", level.name());
        }
        // Each span by itself.
        for span in &spans {
            let alone = added(Level::detect(), 1, std::slice::from_ref(span));
            for token in span.start..span.start + span.len {
                prop_assert!(alone.row(token).iter().zip(got.row(token)).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
    }
}

#[test]
fn what_overflows_stays_out_of_the_padding() {
    let mut loras = Loras::default();
    let huge = || 1e30;
    let pair = LowRank { a: matrix(3, 20, huge), b: matrix(20, 3, huge), scale: 1.0 };
    let mut layer = LayerLora::default();
    assert!(layer.set(Part::Shared, Target::Up, pair));
    loras.load(AdapterId(1), &LoraWeights { layers: [layer].into() });
    let (x, mut out) = (rows(2, 20, || 1e10), rows(2, 20, || 1.0));
    let mut runs = LoraRuns::default();
    runs.place(&spans(&[(1, Some(1)), (1, None)]));
    loras.add(
        &mut Machine::new(Level::detect(), 1).unwrap(),
        &runs,
        (0, Part::Shared),
        &x,
        [(Target::Up, &mut out)],
    );
    assert!(out.row(0).iter().all(|x| !x.is_finite()));
    assert!(flat(out.lines())[20..32].iter().all(|x| *x == 0.0));
    assert!(out.row(1).iter().all(|x| x.to_bits() == 1f32.to_bits()));
}
