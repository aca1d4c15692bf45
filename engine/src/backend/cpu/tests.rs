//! Whatever a step is made of, a token's logits have the same bits.

use std::sync::Arc;

use proptest::prelude::*;

use super::simd::Level;
use super::{CacheType, CpuBackend, CpuOptions, Precision};
use crate::backend::{BLOCK_TOKENS, Backend, BackendError, LogitRows, SequenceSpan, StepBatch};
use crate::lora::{AdapterId, tests as lora};
use crate::model::spec::{Activation, ExpertsSpec, LayerSpec, ModelSpec, Rope, RopeLayout, Rotation};
use crate::tensor::Weights;

const VOCAB: usize = 97;
const KV_BLOCKS: usize = 64;

const CACHES: [CacheType; 4] = [CacheType::F32, CacheType::F16, CacheType::Bf16, CacheType::Int8];

pub(super) fn options(threads: usize, cache: CacheType) -> CpuOptions {
    CpuOptions { threads, kv_blocks: KV_BLOCKS, max_model_len: 512, precision: Precision::Exact, cache }
}

fn backend_on(spec: &ModelSpec, options: CpuOptions, level: Level) -> CpuBackend {
    CpuBackend::with_level(spec.clone(), Weights::random(spec, 3), options, level).unwrap()
}

fn backend(spec: &ModelSpec) -> CpuBackend {
    backend_on(spec, options(2, CacheType::F32), Level::detect())
}

fn backend_with(spec: &ModelSpec, cache: CacheType) -> CpuBackend {
    backend_on(spec, options(2, cache), Level::detect())
}

/// Each shape with each form of the cache.
fn shapes_and_caches() -> impl Iterator<Item = (ModelSpec, CacheType)> {
    shapes().into_iter().flat_map(|spec| CACHES.map(|cache| (spec.clone(), cache)))
}

/// One part of a step: tokens of `sequence[from..to]`, with its blocks.
pub(super) fn span(step: &mut StepBatch, sequence: &[u32], from: usize, to: usize, blocks: &[u32]) {
    step.spans.push(SequenceSpan {
        start: step.tokens.len(),
        len: to - from,
        context: from,
        blocks: blocks.to_vec().into(),
        logits: LogitRows::Last(1),
        adapter: None,
    });
    step.tokens.extend(&sequence[from..to]);
}

/// The bits of the logits after `sequence`, run alone in chunks of `chunk`.
fn run(backend: &mut CpuBackend, sequence: &[u32], chunk: usize, blocks: &[u32]) -> Vec<u32> {
    let mut bits = Vec::new();
    for from in (0..sequence.len()).step_by(chunk) {
        let mut step = StepBatch::default();
        span(&mut step, sequence, from, sequence.len().min(from + chunk), blocks);
        bits = to_bits(&backend.forward(&step).unwrap().data);
    }
    bits
}

fn to_bits(logits: &[f32]) -> Vec<u32> {
    assert!(logits.iter().all(|x| x.is_finite()), "finite logits");
    logits.iter().map(|x| x.to_bits()).collect()
}

pub(super) fn blocks(first: u32, count: u32) -> Vec<u32> {
    // Out of order, as they are after a while.
    (first..first + count).rev().collect()
}

/// Every flag that a shape has, and widths that fill no line.
pub(super) fn shapes() -> Vec<ModelSpec> {
    let plain = ModelSpec::tiny(VOCAB);
    let interleaved = Rope { layout: RopeLayout::Interleaved, ..plain.rope.clone() };
    let experts = |normalise| Some(ExpertsSpec { count: 5, used: 2, intermediate: 40, normalise });
    let windows = |window| LayerSpec { window: Some(window), ..LayerSpec::default() };
    vec![
        plain.clone(),
        ModelSpec { qkv_bias: true, tied_embeddings: false, rope: interleaved, ..plain.clone() },
        ModelSpec {
            qk_norm: true,
            head_dim: 24,
            intermediate: 72,
            hidden: 40,
            rope: Rope { dims: 24, ..plain.rope.clone() },
            ..plain.clone()
        },
        ModelSpec {
            per_layer: vec![windows(5), LayerSpec { rotation: Rotation::None, ..windows(19) }],
            heads: 6,
            head_dim: 80,
            rope: Rope { dims: 24, magnitude: 1.2, ..plain.rope.clone() },
            ..plain.clone()
        },
        ModelSpec {
            per_layer: vec![
                LayerSpec { rotation: Rotation::Local, ..windows(7) },
                LayerSpec { experts: true, ..LayerSpec::default() },
            ],
            local_rope: Some(Rope::plain(500.0, RopeLayout::Halves, 16)),
            post_norms: true,
            activation: Activation::GeluTanh,
            embedding_scale: Some(8.0),
            attention_scale: Some(0.3),
            attention_softcap: Some(5.0),
            logit_softcap: Some(10.0),
            experts: experts(true),
            qk_norm: true,
            ..plain.clone()
        },
        ModelSpec {
            per_layer: vec![LayerSpec { experts: true, ..LayerSpec::default() }; 2],
            experts: experts(false),
            ..plain.clone()
        },
        // Groups of which a tile holds parts.
        ModelSpec { heads: 18, per_layer: vec![LayerSpec::default(), windows(19)], ..plain.clone() },
        ModelSpec { heads: 13, kv_heads: 1, ..plain.clone() },
    ]
}

#[test]
fn blocks_that_went_out_and_came_in_elsewhere_are_the_same() {
    let sequence: Vec<u32> = (0..75).map(|i| i * 31 % VOCAB as u32).collect();
    for spec in shapes() {
        let (mut here, mut there) = (backend(&spec), backend(&spec));
        let whole = run(&mut here, &sequence, sequence.len(), &blocks(0, 5));
        assert_eq!(here.layout(), there.layout());
        for (from, to) in blocks(0, 5).into_iter().zip(blocks(20, 5)).take(4) {
            let mut bytes = Vec::new();
            here.export_block(from, &mut bytes);
            assert_eq!(bytes.len(), here.info().block_bytes);
            there.import_block(to, &bytes).unwrap();
            assert!(matches!(there.import_block(to, &bytes[1..]), Err(BackendError::BlockSize { .. })));
        }
        let mut step = StepBatch::default();
        span(&mut step, &sequence, 64, 75, &blocks(20, 5));
        assert_eq!(to_bits(&there.forward(&step).unwrap().data), whole, "{spec:?}");
    }
}

#[test]
fn chunked_equals_whole() {
    let sequence: Vec<u32> = (0..75).map(|i| i * 31 % VOCAB as u32).collect();
    for (spec, cache) in shapes_and_caches() {
        let mut backend = backend_with(&spec, cache);
        let whole = run(&mut backend, &sequence, sequence.len(), &blocks(0, 5));
        for chunk in [1, 7, 16, 33] {
            assert_eq!(
                run(&mut backend, &sequence, chunk, &blocks(10, 5)),
                whole,
                "{spec:?} in chunks of {chunk}"
            );
        }
    }
}

#[test]
fn batched_equals_alone_and_takes_as_many_products() {
    let sequences: Vec<Vec<u32>> = [3u32, 40, 17, 1, 64, 9, 2]
        .iter()
        .enumerate()
        .map(|(i, len)| (0..*len).map(|t| (t * 13 + i as u32 * 29) % VOCAB as u32).collect())
        .collect();
    for (spec, cache) in shapes_and_caches() {
        let mut backend = backend_with(&spec, cache);
        let alone: Vec<u32> =
            sequences.iter().flat_map(|s| run(&mut backend, s, s.len(), &blocks(0, 4))).collect();
        let one_step = |backend: &mut CpuBackend, sequences: &[Vec<u32>]| {
            let mut step = StepBatch::default();
            for (i, sequence) in sequences.iter().enumerate() {
                span(&mut step, sequence, 0, sequence.len(), &blocks(8 + i as u32 * 4, 4));
            }
            let before = backend.matrix_products();
            let logits = backend.forward(&step).unwrap();
            (to_bits(&logits.data), backend.matrix_products() - before)
        };
        let (bits, products) = one_step(&mut backend, &sequences);
        assert_eq!(bits, alone, "{spec:?}");
        if spec.experts.is_none() {
            assert_eq!(products, 7 * spec.layers as u64 + 1);
            assert_eq!(one_step(&mut backend, &sequences[..1]).1, products);
        } else {
            // Each expert's three at most once, whatever the batch.
            assert!(products <= (4 + 1 + 3 * 5) * spec.layers as u64 + 1);
        }
    }
}

#[test]
fn a_cached_prefix_equals_an_uncached_one() {
    let prefix: Vec<u32> = (0..48).map(|i| i * 7 % VOCAB as u32).collect();
    for (spec, cache) in shapes_and_caches() {
        let mut backend = backend_with(&spec, cache);
        run(&mut backend, &prefix, 48, &[3, 1, 2]);
        for (i, suffix) in [[5u32, 6, 7], [80, 2, 40]].iter().enumerate() {
            let sequence = [&prefix[..], suffix].concat();
            let mut step = StepBatch::default();
            span(&mut step, &sequence, prefix.len(), sequence.len(), &[3, 1, 2, 20 + i as u32]);
            let cached = to_bits(&backend.forward(&step).unwrap().data);
            assert_eq!(cached, run(&mut backend, &sequence, sequence.len(), &blocks(40, 4)));
        }
    }
}

/// Sequences that begin with the same blocks are read together where they are, whatever follows in each.
#[test]
fn decodes_that_share_blocks_equal_those_alone() {
    let prefix: Vec<u32> = (0..64).map(|i| i * 7 % VOCAB as u32).collect();
    let shared = [3, 1, 2, 9];
    for (spec, cache) in shapes_and_caches() {
        for level in Level::available() {
            let mut backend = backend_on(&spec, options(2, cache), level);
            run(&mut backend, &prefix, 64, &shared);
            let (mut together, mut alone) = (StepBatch::default(), Vec::new());
            for i in 0..9u32 {
                // Some share all of the prefix, some half of it; and all differ in length.
                let common = if i % 3 == 2 { 32 } else { 64 };
                let own = (0..2 + i * 3).map(|t| (t * 5 + i * 11) % VOCAB as u32);
                let sequence: Vec<u32> = prefix[..common].iter().copied().chain(own).collect();
                let mut table = shared[..common / 16].to_vec();
                table.extend(blocks(16 + i * 3, 3));
                let end = sequence.len();
                let mut step = StepBatch::default();
                span(&mut step, &sequence, common, end, &table);
                alone.extend(to_bits(&backend.forward(&step).unwrap().data));
                span(&mut together, &sequence, end - 1, end, &table);
            }
            let together = to_bits(&backend.forward(&together).unwrap().data);
            assert!(together == alone, "{} with {cache:?}: {spec:?}", level.name());
        }
    }
}

#[test]
fn what_a_block_held_before_does_not_matter() {
    let spec = ModelSpec::tiny(VOCAB);
    let mut used = backend(&spec);
    run(&mut used, &(0..64).collect::<Vec<u32>>(), 64, &blocks(0, 4));
    let sequence = [9u32, 8, 7];
    assert_eq!(run(&mut used, &sequence, 3, &[2]), run(&mut backend(&spec), &sequence, 3, &[2]));
}

#[test]
fn every_instruction_set_and_thread_count_computes_the_same_bits() {
    let sequence: Vec<u32> = (0..37).map(|i| i * 5 % VOCAB as u32).collect();
    for (spec, cache) in shapes_and_caches() {
        let want = run(&mut backend_with(&spec, cache), &sequence, 37, &blocks(0, 3));
        for level in Level::available() {
            for threads in [1, 3] {
                let mut backend = backend_on(&spec, options(threads, cache), level);
                let got = run(&mut backend, &sequence, 37, &blocks(0, 3));
                assert_eq!(got, want, "{} with {threads} threads", level.name());
            }
        }
    }
}

/// Sequences of adapters and of none, in one step and in chunks, are each what they are alone.
#[test]
fn adapters_do_not_depend_on_what_runs_beside_them() {
    let sequences: Vec<(Vec<u32>, Option<AdapterId>)> =
        [(3u32, None), (40, Some(1)), (17, Some(2)), (1, Some(1)), (9, None), (2, Some(1)), (21, Some(2))]
            .iter()
            .enumerate()
            .map(|(i, (len, adapter))| {
                let tokens = (0..*len).map(|t| (t * 13 + i as u32 * 29) % VOCAB as u32).collect();
                (tokens, adapter.map(AdapterId))
            })
            .collect();
    for spec in shapes() {
        let load = |backend: &mut CpuBackend| {
            for (id, rank) in [(1, 5), (2, 16)] {
                backend.load_adapter(AdapterId(id), &lora::random(&spec, rank, id)).unwrap();
            }
        };
        let run = |backend: &mut CpuBackend, chunk: usize, together: bool| {
            let mut last = vec![Vec::new(); sequences.len()];
            let groups: Vec<Vec<usize>> = if together {
                vec![(0..sequences.len()).collect()]
            } else {
                (0..sequences.len()).map(|i| vec![i]).collect()
            };
            for group in groups {
                for from in (0..40).step_by(chunk) {
                    let (mut step, mut members) = (StepBatch::default(), Vec::new());
                    for &i in &group {
                        let (tokens, adapter) = &sequences[i];
                        if from < tokens.len() {
                            let to = tokens.len().min(from + chunk);
                            span(&mut step, tokens, from, to, &blocks(8 + i as u32 * 4, 4));
                            step.spans.last_mut().unwrap().adapter = *adapter;
                            members.push(i);
                        }
                    }
                    let logits = backend.forward(&step).unwrap();
                    for (row, i) in members.into_iter().enumerate() {
                        last[i] = to_bits(logits.row(row));
                    }
                }
            }
            last
        };
        let mut plain = backend(&spec);
        let mut adapted = backend(&spec);
        load(&mut adapted);
        let alone = run(&mut adapted, 40, false);
        for (i, (tokens, adapter)) in sequences.iter().enumerate() {
            let base = super::tests::run(&mut plain, tokens, 40, &blocks(0, 4));
            assert_eq!(alone[i] == base, adapter.is_none(), "an adapter alone changes answers: {spec:?}");
        }
        for level in Level::available() {
            for (threads, chunk) in [(1, 40), (3, 7)] {
                let mut backend = backend_on(&spec, options(threads, CacheType::F32), level);
                load(&mut backend);
                let products = backend.matrix_products();
                assert_eq!(run(&mut backend, chunk, true), alone, "{} in {spec:?}", level.name());
                assert!(backend.matrix_products() > products);
            }
        }
        adapted.unload_adapter(AdapterId(2));
        let mut step = StepBatch::default();
        span(&mut step, &[1], 0, 1, &[0]);
        step.spans[0].adapter = Some(AdapterId(2));
        let error = adapted.forward(&step).unwrap_err().to_string();
        assert_eq!(error, "span 0 of the step names an adapter that is not loaded");
        let other = ModelSpec { intermediate: spec.intermediate + 16, ..spec.clone() };
        let error = adapted.load_adapter(AdapterId(3), &lora::random(&other, 2, 1));
        assert_eq!(error.is_err(), spec.per_layer.iter().any(|layer| !layer.experts));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Several sequences, cut into random chunks, whose steps are shuffled together.
    #[test]
    fn any_schedule_equals_one_step_alone(
        lengths in prop::collection::vec(1usize..50, 1..5),
        cuts in prop::collection::vec(1usize..20, 20),
        shape in 0usize..6,
    ) {
        let spec = &shapes()[shape];
        let mut backend = backend(spec);
        let sequences: Vec<Vec<u32>> = lengths.iter().enumerate()
            .map(|(i, len)| (0..*len).map(|t| ((t * 17 + i * 41) % VOCAB) as u32).collect())
            .collect();
        let tables: Vec<Vec<u32>> = (0..sequences.len()).map(|i| blocks(8 + 4 * i as u32, 4)).collect();
        let mut done = vec![0; sequences.len()];
        let mut last = vec![Vec::new(); sequences.len()];
        let mut cuts = cuts.iter().cycle();
        while done.iter().zip(&sequences).any(|(done, s)| *done < s.len()) {
            let mut step = StepBatch::default();
            let mut members = Vec::new();
            for (i, sequence) in sequences.iter().enumerate() {
                let to = sequence.len().min(done[i] + cuts.next().unwrap());
                // A small cut also sits some steps out.
                if to > done[i] && (to - done[i] > 3 || members.is_empty()) {
                    span(&mut step, sequence, done[i], to, &tables[i]);
                    members.push(i);
                    done[i] = to;
                }
            }
            let logits = backend.forward(&step).unwrap();
            for (row, i) in members.into_iter().enumerate() {
                last[i] = to_bits(logits.row(row));
            }
        }
        for (sequence, got) in sequences.iter().zip(last) {
            prop_assert_eq!(run(&mut backend, sequence, sequence.len(), &blocks(0, 4)), got);
        }
    }
}

#[test]
fn a_step_that_does_not_fit_is_refused() {
    let mut backend = backend(&ModelSpec::tiny(VOCAB));
    let good = SequenceSpan {
        start: 0,
        len: 2,
        context: 0,
        blocks: Arc::new(vec![0]),
        logits: LogitRows::Last(1),
        adapter: None,
    };
    let mut message = |tokens: &[u32], span: SequenceSpan| {
        let step = StepBatch { tokens: tokens.to_vec(), spans: vec![span] };
        backend.forward(&step).unwrap_err().to_string()
    };
    insta::assert_snapshot!(message(&[1, 97], good.clone()), @"token id 97 is outside the model's vocabulary of 97");
    insta::assert_snapshot!(
        message(&[1, 2], SequenceSpan { blocks: Arc::new(vec![64]), ..good.clone() }),
        @"span 0 of the step names block 64 of 64"
    );
    insta::assert_snapshot!(
        message(&[1, 2], SequenceSpan { context: 15, ..good.clone() }),
        @"span 0 of the step has 1 blocks, but 17 tokens need 2"
    );
    insta::assert_snapshot!(
        message(&[1, 2], SequenceSpan { context: 511, ..good.clone() }),
        @"span 0 of the step ends beyond the longest context of 512 tokens"
    );
    insta::assert_snapshot!(
        message(&[1, 2], SequenceSpan { context: usize::MAX, ..good.clone() }),
        @"span 0 of the step ends beyond the longest context of 512 tokens"
    );
    insta::assert_snapshot!(
        message(&[1, 2], SequenceSpan { start: 1, ..good.clone() }),
        @"span 0 of the step takes 2 tokens from 1, expected from 0 of 2"
    );
    insta::assert_snapshot!(
        message(&[1, 2], SequenceSpan { logits: LogitRows::Last(3), ..good.clone() }),
        @"span 0 of the step asks for the logits of 3 of its 2 tokens"
    );
    insta::assert_snapshot!(message(&[1, 2, 3], good), @"span 1 of the step leaves 1 tokens to nobody");
}

/// Every position's logits asked for in one step are those of the position alone.
#[test]
fn the_last_rows_are_the_logits_of_their_tokens() {
    let mut backend = backend(&ModelSpec::tiny(VOCAB));
    let (one, two): (Vec<u32>, Vec<u32>) = ((5..42).collect(), (50..61).collect());
    let mut step = StepBatch::default();
    span(&mut step, &one, 0, one.len(), &blocks(0, 4));
    span(&mut step, &two, 0, two.len(), &blocks(8, 4));
    step.spans[0].logits = LogitRows::Last(one.len());
    step.spans[1].logits = LogitRows::Last(3);
    assert_eq!(step.logit_rows(), one.len() + 3);
    let logits = backend.forward(&step).unwrap();
    let ends =
        (1..=one.len()).map(|end| &one[..end]).chain((two.len() - 2..=two.len()).map(|end| &two[..end]));
    for (row, sequence) in ends.enumerate() {
        let alone = run(&mut backend, sequence, sequence.len(), &blocks(16, 4));
        assert_eq!(to_bits(logits.row(row)), alone, "row {row}");
    }
}

#[test]
fn nobody_wanting_logits_gets_none() {
    let mut backend = backend(&ModelSpec::tiny(VOCAB));
    let mut step = StepBatch::default();
    span(&mut step, &[1, 2, 3], 0, 3, &[0]);
    step.spans[0].logits = LogitRows::None;
    assert!(backend.forward(&step).unwrap().data.is_empty());
    assert!(backend.forward(&StepBatch::default()).unwrap().data.is_empty());
}

#[test]
fn a_cache_beyond_the_machine_is_refused() {
    let spec = ModelSpec::tiny(VOCAB);
    let options = CpuOptions { kv_blocks: usize::MAX / 4096, ..options(1, CacheType::F32) };
    let error =
        CpuBackend::new(spec.clone(), Weights::random(&spec, 1), options).err().map(|e| e.to_string());
    assert!(error.is_some_and(|e| e.contains("no memory for a KV cache of")));
}

#[test]
fn a_block_costs_what_it_says() {
    let spec = ModelSpec::tiny(VOCAB);
    let numbers = 2 * spec.layers * spec.kv_heads * spec.head_dim * BLOCK_TOKENS;
    let scales = 2 * spec.layers * spec.kv_heads * BLOCK_TOKENS * 4;
    let bytes = CACHES.map(|cache| backend_with(&spec, cache).info().block_bytes);
    assert_eq!(bytes, [4 * numbers, 2 * numbers, 2 * numbers, numbers + scales]);
}

#[test]
fn a_narrower_cache_is_close_to_the_widest() {
    let sequence: Vec<u32> = (0..70).map(|i| i * 29 % VOCAB as u32).collect();
    for spec in shapes() {
        let [exact, half, brain, byte] = CACHES.map(|cache| {
            let bits = run(&mut backend_with(&spec, cache), &sequence, 70, &blocks(0, 5));
            bits.into_iter().map(f32::from_bits).collect::<Vec<f32>>()
        });
        let spread = exact.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
        for (name, got, bound) in [("f16", half, 2e-3), ("bf16", brain, 2e-2), ("int8", byte, 4e-2)] {
            let worst = exact.iter().zip(got).fold(0.0, |m: f32, (a, b)| m.max((a - b).abs()));
            assert!(worst > 0.0 && worst <= bound * spread, "{name}: {worst} of {spread} in {spec:?}");
        }
    }
}
