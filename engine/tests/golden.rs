//! Strata against independent implementations: transformers for whole models, gguf's Python package
//! for the quantisations. `scripts/golden.py` makes the vectors.
#![allow(clippy::unwrap_used)]

mod real_model;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use strata_engine::backend::cpu::{CacheType, CpuBackend, CpuOptions, Precision};
use strata_engine::backend::{BLOCK_TOKENS, Backend, LogitRows, SequenceSpan, StepBatch};
use strata_engine::lora::{self, AdapterId};
use strata_engine::model::load::load;
use strata_engine::model::spec::{ModelSpec, RopeLayout, Rotation};
use strata_engine::tensor::{Bytes, Tensor, TensorKind};

use self::real_model::real_model;

/// Largest difference of a logit that rounding in another order explains, for random two-layer models
/// whose logits reach about 30.
const TINY_TOLERANCE: f32 = 5e-5;
/// The same for the real model of 30 layers, whose logits reach about 30.
const REAL_TOLERANCE: f32 = 2e-4;
/// A reference margin above which the likeliest token must be the same.
const CLEAR_MARGIN: f32 = 10.0 * REAL_TOLERANCE;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn read<T: DeserializeOwned>(name: &str) -> T {
    let text = std::fs::read(data(name)).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn from_hex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

/// One sequence on a backend of its own.
struct Sequence {
    backend: CpuBackend,
    blocks: Arc<Vec<u32>>,
    context: usize,
    adapter: Option<AdapterId>,
}

impl Sequence {
    fn new(model: &Path, max_len: usize) -> Self {
        Self::with(model, max_len, Precision::Exact)
    }

    fn with(model: &Path, max_len: usize, precision: Precision) -> Self {
        let model = load(model).unwrap();
        let kv_blocks = max_len.div_ceil(BLOCK_TOKENS);
        let cache = if precision == Precision::Exact { CacheType::F32 } else { CacheType::F16 };
        let options = CpuOptions { threads: 2, kv_blocks, max_model_len: max_len, precision, cache };
        let backend = CpuBackend::new(model.spec, model.weights, options).unwrap();
        Self { backend, blocks: Arc::new((0..kv_blocks as u32).rev().collect()), context: 0, adapter: None }
    }

    /// The same with the adapter in this folder.
    fn adapted(model: &Path, max_len: usize, adapter: &Path) -> Self {
        let mut sequence = Self::new(model, max_len);
        let spec = load(model).unwrap().spec;
        let weights = lora::read(adapter, lora::Read { spec: &spec, max_rank: 16, within: None }).unwrap();
        sequence.backend.load_adapter(AdapterId(7), &weights).unwrap();
        sequence.adapter = Some(AdapterId(7));
        sequence
    }

    /// The logits after these tokens.
    fn run(&mut self, tokens: &[u32]) -> Vec<f32> {
        let span = SequenceSpan {
            start: 0,
            len: tokens.len(),
            context: self.context,
            blocks: Arc::clone(&self.blocks),
            logits: LogitRows::Last(1),
            adapter: self.adapter,
        };
        self.context += tokens.len();
        self.backend.forward(&StepBatch { tokens: tokens.to_vec(), spans: vec![span] }).unwrap().data
    }
}

fn largest_difference(got: impl IntoIterator<Item = f32>, want: &[f32]) -> f32 {
    got.into_iter().zip(want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max)
}

#[test]
fn dequantisation_equals_gguf_s_to_the_bit() {
    #[derive(Deserialize)]
    struct Case {
        kind: String,
        ggml_id: u32,
        bytes: String,
        bits: String,
    }
    #[derive(Deserialize)]
    struct Cases {
        cases: Vec<Case>,
    }
    let cases = read::<Cases>("golden_dequant.json").cases;
    assert_eq!(cases.len(), TensorKind::ALL.len());
    for case in cases {
        let kind = TensorKind::from_ggml(case.ggml_id).unwrap();
        assert_eq!(kind.to_string(), case.kind);
        let want: Vec<u32> =
            from_hex(&case.bits).chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
        let tensor = Tensor::new(kind, 1, want.len(), Bytes::from(from_hex(&case.bytes))).unwrap();
        let got: Vec<u32> = tensor.to_f32().iter().map(|x| x.to_bits()).collect();
        assert_eq!(got, want, "{}", case.kind);
    }
}

#[derive(Deserialize)]
struct Tiny {
    tokens: Vec<u32>,
    positions: Vec<Position>,
}

#[derive(Deserialize)]
struct Position {
    position: usize,
    logits: Vec<f32>,
}

/// Compares a model with a golden file of its folder, in chunks that end where the file has logits.
fn compare(model: &Path, golden: &str) {
    let golden: Tiny = read(golden);
    let sequence = Sequence::new(model, golden.tokens.len());
    compare_with(sequence, model, golden);
}

fn compare_with(mut sequence: Sequence, model: &Path, golden: Tiny) {
    for Position { position, logits: want } in golden.positions {
        let got = sequence.run(&golden.tokens[sequence.context..=position]);
        assert_eq!(got.len(), want.len());
        let difference = largest_difference(got, &want);
        eprintln!("{} at position {position}: largest difference {difference:e}", model.display());
        assert!(difference <= TINY_TOLERANCE, "{} at position {position}: {difference}", model.display());
    }
}

/// Compares the checkpoint and, where there is one, the GGUF of the same weights. Returns their shapes.
fn compare_tiny(name: &str) -> Vec<ModelSpec> {
    let gguf = data(name).join("model.gguf");
    let models = [Some(data(name)), gguf.is_file().then_some(gguf)];
    let each = models.into_iter().flatten().map(|model| {
        compare(&model, &format!("{name}/golden.json"));
        load(&model).unwrap().spec
    });
    each.collect()
}

#[test]
fn llama_with_llama_3_s_rotary_scaling() {
    let spec = &compare_tiny("golden_llama3")[0];
    assert!(spec.rope.factors.iter().any(|f| *f > 1.0) && !spec.tied_embeddings);
}

#[test]
fn mistral_with_a_sliding_window() {
    let spec = &compare_tiny("golden_mistral")[0];
    assert!(spec.per_layer.iter().all(|layer| layer.window == Some(8)));
}

#[test]
fn qwen2_with_biases_in_two_shards() {
    let spec = &compare_tiny("golden_qwen2")[0];
    assert!(spec.qkv_bias && spec.tied_embeddings && spec.per_layer.iter().all(|l| l.window.is_none()));
}

#[test]
fn qwen3_with_head_norms_and_a_head_width_of_its_own() {
    let spec = &compare_tiny("golden_qwen3")[0];
    assert!(spec.qk_norm && spec.head_dim * spec.heads != spec.hidden);
}

#[test]
fn qwen3_stretched_by_yarn() {
    let specs = compare_tiny("golden_yarn");
    assert_eq!(specs.len(), 2);
    assert!(specs.iter().all(|spec| spec.rope.magnitude > 1.0));
}

#[test]
fn gemma2_with_soft_caps_and_every_second_layer_sliding() {
    let specs = compare_tiny("golden_gemma2");
    assert_eq!(specs.len(), 2);
    for spec in specs {
        let windows: Vec<_> = spec.per_layer.iter().map(|layer| layer.window).collect();
        assert_eq!(windows, [Some(8), None]);
        assert_eq!((spec.attention_softcap, spec.logit_softcap), (Some(4.0), Some(20.0)));
    }
}

#[test]
fn gemma3_with_another_rotation_in_its_sliding_layers() {
    let specs = compare_tiny("golden_gemma3");
    assert_eq!(specs.len(), 2);
    for spec in specs {
        let rotations: Vec<_> = spec.per_layer.iter().map(|layer| layer.rotation).collect();
        assert_eq!(rotations, [Rotation::Local, Rotation::Global, Rotation::Local]);
        assert!(spec.rope.factors.iter().all(|f| (f - 8.0).abs() < f32::EPSILON));
    }
}

#[test]
fn gemma3_within_a_model_that_sees_images() {
    let specs = compare_tiny("golden_gemma3_vision");
    assert!(specs[0].tied_embeddings && specs[0].post_norms && specs[0].local_rope.is_some());
}

/// Beyond its first context, and in an engine that serves no longer one.
#[test]
fn phi3_with_long_rope_and_joined_projections() {
    for spec in compare_tiny("golden_phi3") {
        assert!(spec.rope.dims < spec.head_dim && spec.rope.long.is_some());
    }
    for model in [data("golden_phi3"), data("golden_phi3/model.gguf")] {
        compare(&model, "golden_phi3/golden_short.json");
    }
}

#[test]
fn smollm3_without_positions_in_every_fourth_layer() {
    let specs = compare_tiny("golden_smollm3");
    assert_eq!(specs.len(), 2);
    assert!(specs.iter().all(|spec| spec.per_layer[3].rotation == Rotation::None));
}

#[test]
fn mixtral_and_qwen3_moe() {
    for (name, files) in [("golden_mixtral", 2), ("golden_qwen3moe", 2), ("golden_qwen3moe_mixed", 1)] {
        let specs = compare_tiny(name);
        assert_eq!(specs.len(), files);
        assert!(specs.iter().all(|spec| spec.per_layer[1].experts && spec.experts.is_some()));
    }
}

/// All modules; queries and keys of a GGUF, which has their rows in another order, by the square root of
/// the rank; joined modules; one module of one layer.
#[test]
fn adapters_as_peft_computes_them() {
    let models = [
        ("llama3", "golden_llama3"),
        ("smollm3", "golden_smollm3"),
        ("smollm3", "golden_smollm3/model.gguf"),
        ("phi3", "golden_phi3"),
        ("phi3", "golden_phi3/model.gguf"),
        ("qwen3", "golden_qwen3"),
    ];
    for (name, model) in models {
        let (model, adapter) = (data(model), format!("golden_lora_{name}"));
        let golden: Tiny = read(&format!("{adapter}/golden.json"));
        // Without the adapter the reference is far.
        let first = golden.positions[0].position;
        let base = Sequence::new(&model, golden.tokens.len()).run(&golden.tokens[..=first]);
        let difference = largest_difference(base, &golden.positions[0].logits);
        assert!(difference > 1000.0 * TINY_TOLERANCE, "{name}: {difference}");
        let sequence = Sequence::adapted(&model, golden.tokens.len(), &data(&adapter));
        compare_with(sequence, &model, golden);
    }
}

#[derive(Deserialize)]
struct Real {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    text: String,
    tokens: Vec<u32>,
    ids: Vec<usize>,
    logits: Vec<f32>,
    greedy: Vec<Greedy>,
}

#[derive(Deserialize)]
struct Greedy {
    token: u32,
    margin: f32,
}

#[test]
fn smollm2_equals_transformers() {
    let Some(path) = real_model() else { return };
    let spec = load(&path).unwrap().spec;
    assert_eq!((spec.architecture.as_str(), spec.rope.layout), ("llama", RopeLayout::Interleaved));
    for prompt in read::<Real>("golden_smollm2.json").prompts {
        let mut sequence = Sequence::new(&path, prompt.tokens.len() + prompt.greedy.len());
        let mut logits = sequence.run(&prompt.tokens);
        let difference = largest_difference(prompt.ids.iter().map(|id| logits[*id]), &prompt.logits);
        let best = logits.iter().copied().fold(f32::MIN, f32::max);
        eprintln!("{:?}: largest difference {difference:e}, largest logit {best}", prompt.text);
        assert!(difference <= REAL_TOLERANCE, "{:?}: {difference}", prompt.text);
        // The reference's 64 likeliest are the likeliest here too.
        assert!(
            logits
                .iter()
                .enumerate()
                .all(|(id, x)| prompt.ids.contains(&id) || *x <= prompt.logits[63] + REAL_TOLERANCE)
        );

        let mut clear = 0;
        for step in &prompt.greedy {
            let (best, _) = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
            if step.margin > CLEAR_MARGIN {
                assert_eq!(best as u32, step.token, "{:?} after {clear} tokens", prompt.text);
                clear += 1;
            }
            // Where the margin is not clear, the reference's choice is followed.
            logits = sequence.run(&[step.token]);
        }
        eprintln!("{:?}: {clear} of {} tokens had a clear margin", prompt.text, prompt.greedy.len());
        assert!(clear >= 24, "the comparison is worth little with {clear} clear tokens");
    }
}

/// Products of bytes are not the reference's, but the reference's likeliest token is theirs wherever its
/// margin is more than rounding the activations to bytes comes to.
#[test]
fn smollm2_in_bytes_says_what_transformers_says() {
    const MARGIN: f32 = 1.0;
    let Some(path) = real_model() else { return };
    let (mut clear, mut same, mut all) = (0, 0, 0);
    for prompt in read::<Real>("golden_smollm2.json").prompts {
        let len = prompt.tokens.len() + prompt.greedy.len();
        let mut sequence = Sequence::with(&path, len, Precision::Int8);
        let mut logits = sequence.run(&prompt.tokens);
        let difference = largest_difference(prompt.ids.iter().map(|id| logits[*id]), &prompt.logits);
        eprintln!("{:?}: largest difference {difference}", prompt.text);
        for step in &prompt.greedy {
            let (best, _) = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
            all += 1;
            same += usize::from(best as u32 == step.token);
            if step.margin > MARGIN {
                clear += 1;
                assert_eq!(best as u32, step.token, "{:?}: margin {}", prompt.text, step.margin);
            }
            logits = sequence.run(&[step.token]);
        }
    }
    eprintln!("{same} of {all} tokens are the reference's, all of {clear} with a margin over {MARGIN}");
    assert!(clear >= 48 && same * 10 >= all * 9);
}
