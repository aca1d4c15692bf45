//! Adapters beside the model against models that have them in their weights: `W + scale × B A`.

use super::tests::{blocks, options, shapes, span};
use super::{CacheType, CpuBackend};
use crate::backend::{Backend, StepBatch};
use crate::lora::{AdapterId, LayerLora, LoraWeights, LowRank, Part, Target, tests as lora};
use crate::model::spec::ModelSpec;
use crate::tensor::{Bytes, FeedForward, Gated, Linear, Tensor, TensorKind, Weights};

/// Adds a product to a matrix, number by number.
fn merge(linear: &mut Linear, pair: Option<&LowRank>) {
    let Some(pair) = pair else { return };
    let (rows, cols, rank) = (linear.weight.rows(), linear.weight.cols(), pair.a.rows());
    let (a, b) = (pair.a.to_f32(), pair.b.to_f32());
    let mut sums = linear.weight.to_f32().to_vec();
    for row in 0..rows {
        for col in 0..cols {
            let products = (0..rank).map(|r| f64::from(b[row * rank + r]) * f64::from(a[r * cols + col]));
            sums[row * cols + col] += (f64::from(pair.scale) * products.sum::<f64>()) as f32;
        }
    }
    let bytes: Vec<u8> = sums.iter().flat_map(|x| x.to_le_bytes()).collect();
    linear.weight = Tensor::new(TensorKind::F32, rows, cols, Bytes::from(bytes)).unwrap();
}

/// The model with an adapter in its weights.
fn merged(spec: &ModelSpec, adapter: &LoraWeights) -> CpuBackend {
    let mut weights = Weights::random(spec, 3);
    for (layer, own) in weights.layers.iter_mut().zip(adapter.layers.iter()) {
        merge(&mut layer.query, own.get(Target::Query));
        merge(&mut layer.key, own.get(Target::Key));
        merge(&mut layer.value, own.get(Target::Value));
        merge(&mut layer.attention_output, own.get(Target::Output));
        let gated = |gated: &mut Gated, part| {
            let pair = |target| match part {
                Part::Shared => own.get(target),
                Part::Expert(expert) => own.get_expert(expert, target),
            };
            merge(&mut gated.gate, pair(Target::Gate));
            merge(&mut gated.up, pair(Target::Up));
            merge(&mut gated.down, pair(Target::Down));
        };
        match &mut layer.feed_forward {
            FeedForward::Dense(dense) => gated(dense, Part::Shared),
            FeedForward::Experts(mixture) => {
                merge(&mut mixture.router, own.get(Target::Router));
                for (index, expert) in mixture.experts.iter_mut().enumerate() {
                    gated(expert, Part::Expert(index));
                }
            }
        }
    }
    CpuBackend::new(spec.clone(), weights, options(2, CacheType::F32)).unwrap()
}

#[test]
fn each_sequence_of_a_mixed_batch_is_its_merged_model_s() {
    for spec in shapes().into_iter().filter(|spec| spec.experts.is_some()) {
        let adapters = [lora::random(&spec, 3, 1), lora::random(&spec, 8, 2)];
        let mut mixed =
            CpuBackend::new(spec.clone(), Weights::random(&spec, 3), options(2, CacheType::F32)).unwrap();
        for (id, adapter) in (1..).zip(&adapters) {
            mixed.load_adapter(AdapterId(id), adapter).unwrap();
        }
        let mut step = StepBatch::default();
        let sequences: Vec<(Vec<u32>, Option<u64>)> = [(23, Some(1)), (9, None), (17, Some(2)), (5, Some(1))]
            .into_iter()
            .enumerate()
            .map(|(i, (len, id))| ((0..len).map(|t| (t * 13 + i as u32 * 31) % 97).collect(), id))
            .collect();
        for (i, (tokens, id)) in sequences.iter().enumerate() {
            span(&mut step, tokens, 0, tokens.len(), &blocks(2 * i as u32, 2));
            step.spans[i].adapter = id.map(AdapterId);
        }
        let logits = mixed.forward(&step).unwrap();
        for (i, (tokens, id)) in sequences.iter().enumerate() {
            let mut whole = match id {
                Some(id) => merged(&spec, &adapters[*id as usize - 1]),
                None => {
                    merged(&spec, &LoraWeights { layers: vec![LayerLora::default(); spec.layers].into() })
                }
            };
            let mut alone = StepBatch::default();
            span(&mut alone, tokens, 0, tokens.len(), &blocks(0, 2));
            let want = whole.forward(&alone).unwrap().data;
            let spread = want.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
            let worst =
                logits.row(i).iter().zip(&want).fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()));
            assert!(worst <= 2e-5 * spread, "sequence {i}: {worst} of {spread} in {spec:?}");
        }
    }
}
