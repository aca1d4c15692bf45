//! Files written here: good ones, and every way to be bad.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;

use super::Header;
use crate::backend::cpu::{CacheType, CpuBackend, CpuOptions, Precision};
use crate::backend::{Backend, BackendError, LogitRows, SequenceSpan, StepBatch};
use crate::model::load::{LoadedModel, TokenizerSource, load};
use crate::model::spec::{ExpertsSpec, ModelSpec, RopeLayout};
use crate::model::vectors::Pooling;
use crate::tensor::{Experts, FeedForward, Gated, Linear, Tensor, TensorKind, Weights};
use crate::tokenizer::Tokenizer;

/// A GGUF file in the making.
#[derive(Clone, Default)]
pub(crate) struct Writer {
    keys: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<(String, Vec<usize>, u32, Vec<u8>)>,
}

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

impl Writer {
    fn set(&mut self, key: &str, kind: u32, value: impl Into<Vec<u8>>) -> &mut Self {
        self.keys.retain(|(k, _, _)| k != key);
        self.keys.push((key.to_owned(), kind, value.into()));
        self
    }

    fn u32(&mut self, key: &str, value: usize) -> &mut Self {
        self.set(key, 4, (value as u32).to_le_bytes())
    }

    fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.set(key, 6, value.to_le_bytes())
    }

    fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.set(key, 8, text(value))
    }

    fn texts(&mut self, key: &str, values: &[&str]) -> &mut Self {
        let mut bytes = [&8u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        bytes.extend(values.iter().flat_map(|s| text(s)));
        self.set(key, 9, bytes)
    }

    fn remove(&mut self, key: &str) -> &mut Self {
        self.keys.retain(|(k, _, _)| k != key);
        self
    }

    fn tensor(&mut self, name: &str, dims: &[usize], kind: TensorKind, bytes: Vec<u8>) -> &mut Self {
        self.tensors.push((name.to_owned(), dims.to_vec(), kind.ggml_id(), bytes));
        self
    }

    fn matrix(&mut self, name: &str, tensor: &Tensor) -> &mut Self {
        let bytes = (0..tensor.rows()).flat_map(|row| tensor.row(row).to_vec()).collect();
        self.tensor(name, &[tensor.cols(), tensor.rows()], tensor.kind(), bytes)
    }

    fn vector(&mut self, name: &str, values: &[f32]) -> &mut Self {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensor(name, &[values.len()], TensorKind::F32, bytes)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.keys {
            out.extend([text(key), kind.to_le_bytes().to_vec(), value.clone()].concat());
        }
        let mut offset = 0u64;
        for (name, dims, kind, bytes) in &self.tensors {
            out.extend(text(name));
            out.extend((dims.len() as u32).to_le_bytes());
            out.extend(dims.iter().flat_map(|d| (*d as u64).to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += bytes.len().next_multiple_of(32) as u64;
        }
        for (_, _, _, bytes) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(bytes);
        }
        out
    }
}

/// A model as llama.cpp's converter writes it.
fn write_model(architecture: &str, spec: &ModelSpec, weights: &Weights) -> Writer {
    write_model_with(architecture, spec, weights, true)
}

/// The same with all experts' matrices in one tensor, or each by itself as the first files have them.
fn write_model_with(architecture: &str, spec: &ModelSpec, weights: &Weights, stacked: bool) -> Writer {
    let mut w = Writer::default();
    let key = |name: &str| format!("{architecture}.{name}");
    w.text("general.architecture", architecture)
        .text("general.name", "tiny")
        .u32(&key("block_count"), spec.layers)
        .u32(&key("context_length"), spec.max_context)
        .u32(&key("embedding_length"), spec.hidden)
        .u32(&key("feed_forward_length"), spec.intermediate)
        .u32(&key("attention.head_count"), spec.heads)
        .u32(&key("attention.head_count_kv"), spec.kv_heads)
        .u32(&key("attention.key_length"), spec.head_dim)
        .u32(&key("attention.value_length"), spec.head_dim)
        .f32(&key("attention.layer_norm_rms_epsilon"), spec.norm_eps)
        .f32(&key("rope.freq_base"), spec.rope.theta)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "smollm")
        .texts("tokenizer.ggml.tokens", &["a", "b", "ab"])
        .texts("tokenizer.ggml.merges", &["a b"])
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .u32("tokenizer.ggml.eot_token_id", 2)
        .set("tokenizer.ggml.add_bos_token", 7, [1]);
    w.matrix("token_embd.weight", &weights.embedding).vector("output_norm.weight", &weights.output_norm);
    if let Some(output) = &weights.output {
        w.matrix("output.weight", &output.weight);
    }
    if !spec.rope.factors.is_empty() {
        w.vector("rope_freqs.weight", &spec.rope.factors);
    }
    for (i, layer) in weights.layers.iter().enumerate() {
        let name = |part: &str| format!("blk.{i}.{part}.weight");
        let permute = |l: &Linear, heads| {
            if architecture == "llama" { interleaved(&l.weight, heads) } else { l.weight.clone() }
        };
        w.vector(&name("attn_norm"), &layer.attention_norm)
            .matrix(&name("attn_q"), &permute(&layer.query, spec.heads))
            .matrix(&name("attn_k"), &permute(&layer.key, spec.kv_heads))
            .matrix(&name("attn_v"), &layer.value.weight)
            .matrix(&name("attn_output"), &layer.attention_output.weight)
            .vector(&name("ffn_norm"), &layer.feed_forward_norm);
        write_feed_forward(&mut w, i, &layer.feed_forward, stacked);
        for (part, norm) in [("attn_q_norm", &layer.query_norm), ("attn_k_norm", &layer.key_norm)] {
            if let Some(norm) = norm {
                w.vector(&name(part), norm);
            }
        }
        for (part, linear) in [("attn_q", &layer.query), ("attn_k", &layer.key), ("attn_v", &layer.value)] {
            if let Some(bias) = &linear.bias {
                w.vector(&format!("blk.{i}.{part}.bias"), bias);
            }
        }
    }
    w
}

fn write_feed_forward(w: &mut Writer, layer: usize, feed_forward: &FeedForward, stacked: bool) {
    let parts = ["gate", "up", "down"];
    for (index, part) in parts.into_iter().enumerate() {
        let of = |gated: &Gated| [&gated.gate, &gated.up, &gated.down][index].weight.clone();
        let name = |rest: &str| format!("blk.{layer}.ffn_{part}{rest}.weight");
        match feed_forward {
            FeedForward::Dense(gated) => drop(w.matrix(&name(""), &of(gated))),
            FeedForward::Experts(Experts { experts, .. }) if stacked => {
                let (first, count) = (of(&experts[0]), experts.len());
                let rows = |expert| {
                    let matrix = of(expert);
                    (0..matrix.rows()).flat_map(move |row| matrix.row(row).to_vec())
                };
                let bytes = experts.iter().flat_map(rows).collect();
                w.tensor(&name("_exps"), &[first.cols(), first.rows(), count], first.kind(), bytes);
            }
            FeedForward::Experts(Experts { experts, .. }) => {
                for (i, expert) in experts.iter().enumerate() {
                    w.matrix(&name(&format!(".{i}")), &of(expert));
                }
            }
        }
    }
    if let FeedForward::Experts(experts) = feed_forward {
        w.matrix(&format!("blk.{layer}.ffn_gate_inp.weight"), &experts.router.weight);
    }
}

/// Rows moved from (0, d/2) pairs to (0, 1) pairs, as the converter does for `llama`.
fn interleaved(tensor: &Tensor, heads: usize) -> Tensor {
    let head = tensor.rows() / heads;
    let source = |row: usize| row / head * head + row % head / 2 + row % 2 * (head / 2);
    let bytes: Vec<u8> = (0..tensor.rows()).flat_map(|row| tensor.row(source(row)).to_vec()).collect();
    Tensor::new(tensor.kind(), tensor.rows(), tensor.cols(), bytes.into()).unwrap()
}

pub(crate) fn tiny() -> Writer {
    let spec = ModelSpec::tiny(32);
    write_model("llama", &spec, &Weights::random(&spec, 1))
}

/// The bytes as a file that lives as long as the folder.
fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn load_bytes(bytes: &[u8]) -> Result<LoadedModel, String> {
    let (folder, path) = file(bytes);
    load(&path).map_err(|e| e.to_string().replace(&format!("{}/", folder.path().display()), ""))
}

fn logits(model: LoadedModel, tokens: &[u32]) -> Result<Vec<f32>, BackendError> {
    let options = CpuOptions {
        threads: 1,
        kv_blocks: 8,
        max_model_len: 128,
        precision: Precision::Exact,
        cache: CacheType::F32,
    };
    let mut backend = CpuBackend::new(model.spec, model.weights, options)?;
    let blocks = Arc::new((0..8).collect::<Vec<u32>>());
    let span = SequenceSpan {
        start: 0,
        len: tokens.len(),
        context: 0,
        blocks,
        logits: LogitRows::Last(1),
        adapter: None,
    };
    Ok(backend.forward(&StepBatch { tokens: tokens.to_vec(), spans: vec![span] })?.data)
}

/// The golden checkpoints, which agree with transformers, written as GGUF compute the same.
#[test]
fn each_architecture_computes_the_same_from_a_gguf() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let tokens: Vec<u32> = (0..90).map(|i| i * 37 % 160).collect();
    for (folder, architecture) in
        [("golden_llama3", "llama"), ("golden_qwen2", "qwen2"), ("golden_qwen3", "qwen3")]
    {
        let original = load(&data.join(folder)).unwrap();
        let writer = write_model(architecture, &original.spec, &original.weights);
        let converted = load_bytes(&writer.bytes()).unwrap();
        let interleaved = converted.spec.rope.layout == RopeLayout::Interleaved;
        assert_eq!(interleaved, architecture == "llama");
        let layout = original.spec.rope.layout;
        let mut spec =
            ModelSpec { architecture: original.spec.architecture.clone(), ..converted.spec.clone() };
        spec.rope.layout = layout;
        assert_eq!(spec, original.spec);
        let (got, want) = (logits(converted, &tokens).unwrap(), logits(original, &tokens).unwrap());
        if interleaved {
            // The sum over a head's numbers goes in another order.
            let difference = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference < 1e-4, "{folder}: {difference}");
        } else {
            assert_eq!(got, want, "{folder}");
        }
    }
}

/// Mixtral's first files have each expert's matrices by themselves.
#[test]
fn experts_by_themselves_compute_what_stacked_ones_do() {
    let experts = ExpertsSpec { count: 4, used: 2, intermediate: 32, normalise: true };
    let mut spec = ModelSpec { experts: Some(experts), intermediate: 32, ..ModelSpec::tiny(32) };
    spec.per_layer.iter_mut().for_each(|layer| layer.experts = true);
    let weights = Weights::random(&spec, 5);
    let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 32).collect();
    let computed = |stacked, remove: &str| {
        let mut writer = write_model_with("llama", &spec, &weights, stacked);
        writer.u32("llama.expert_count", 4).u32("llama.expert_used_count", 2);
        writer.tensors.retain(|(name, ..)| name != remove);
        load_bytes(&writer.bytes()).map(|model| {
            assert!(model.spec.per_layer.iter().all(|layer| layer.experts));
            logits(model, &tokens).unwrap()
        })
    };
    assert_eq!(computed(false, "").unwrap(), computed(true, "").unwrap());
    let messages = [
        computed(false, "blk.1.ffn_up.3.weight").unwrap_err(),
        computed(true, "blk.1.ffn_gate_exps.weight").unwrap_err(),
    ];
    insta::assert_snapshot!(messages.join("\n"), @r"
    model.gguf: tensor `blk.1.ffn_up.3.weight` is missing
    model.gguf: tensor `blk.1.ffn_gate_exps.weight` is missing
    ");
}

#[test]
fn a_file_says_how_its_texts_become_vectors() {
    let with = |pooling| load_bytes(&tiny().u32("llama.pooling_type", pooling).bytes());
    let embedding = |pooling| with(pooling).unwrap().embedding.map(|embedding| embedding.pooling);
    assert_eq!(
        [0, 1, 2, 3].map(embedding),
        [None, Some(Pooling::Mean), Some(Pooling::First), Some(Pooling::Last)]
    );
    insta::assert_snapshot!(with(4).unwrap_err(), @"model.gguf: `llama.pooling_type` is 4; 1 (mean), 2 (first) and 3 (last) are supported, ranking heads only in safetensors");
    let ends = load_bytes(&tiny().set("tokenizer.ggml.add_eos_token", 7, [1]).bytes()).unwrap();
    let tokenizer = Tokenizer::build(&ends.tokenizer_source, &ends.special).unwrap();
    assert_eq!(tokenizer.encode("b", true).unwrap(), [1, 1, 2][1..]);
    assert_eq!(tokenizer.encode("a", true).unwrap(), [1, 0, 2]);
}

#[test]
fn the_tokenizer_and_the_special_tokens_come_along() {
    let mut writer = tiny();
    writer.text("tokenizer.chat_template", "{{ messages }}");
    let model = load_bytes(&writer.bytes()).unwrap();
    let TokenizerSource::Gguf(tokenizer) = &model.tokenizer_source else { panic!("not from the GGUF") };
    assert_eq!((tokenizer.model.as_str(), tokenizer.pre.as_str()), ("gpt2", "smollm"));
    assert_eq!(tokenizer.tokens, ["a", "b", "ab"]);
    assert_eq!(tokenizer.merges, ["a b"]);
    assert_eq!(model.special.eos, [2]);
    assert!(model.special.bos == Some(1) && model.special.add_bos);
    assert_eq!(model.chat_template.as_deref(), Some("{{ messages }}"));
    assert_eq!(model.name.as_deref(), Some("tiny"));
}

#[test]
fn each_bad_file_says_what_is_wrong() {
    let good = tiny().bytes();
    let with = |at: usize, bytes: &[u8]| {
        let mut copy = good.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        copy
    };
    let files = [
        vec![],
        b"PK\x03\x04".to_vec(),
        with(4, &1u32.to_le_bytes()),
        with(4, &3u32.to_be_bytes()),
        good[..100].to_vec(),
        good[..good.len() - 1].to_vec(),
    ];
    let mut messages: Vec<String> = files.iter().map(|file| load_bytes(file).unwrap_err()).collect();

    let changes: [fn(&mut Writer); 22] = [
        |w| {
            w.text("general.architecture", "mamba");
        },
        |w| {
            w.remove("llama.block_count");
        },
        |w| {
            w.remove("tokenizer.ggml.tokens");
        },
        |w| {
            w.text("llama.block_count", "two");
        },
        |w| {
            w.u32("llama.block_count", 3);
        },
        |w| {
            w.u32("llama.block_count", 1);
        },
        |w| {
            w.u32("llama.vocab_size", 31);
        },
        |w| {
            w.u32("llama.feed_forward_length", 95);
        },
        |w| {
            w.u32("llama.attention.head_count_kv", 3);
        },
        |w| {
            w.u32("llama.attention.head_count", 0);
        },
        |w| {
            w.u32("llama.expert_count", 8);
        },
        |w| {
            w.text("llama.rope.scaling.type", "dynamic");
        },
        |w| {
            w.u32("general.alignment", 24);
        },
        |w| w.tensors[2].2 = 23,
        |w| (w.tensors[2].1, w.tensors[2].2) = (vec![40], 2),
        |w| w.tensors[2].0 = "token_embd.weight".into(),
        |w| w.tensors[0].1 = vec![0, 32],
        |w| w.tensors[0].1 = vec![usize::MAX, 32],
        |w| w.keys.push(w.keys[0].clone()),
        |w| {
            w.set("x", 9, [8, 0, 0, 0, 255, 255, 255, 255, 255, 0, 0, 0]);
        },
        |w| {
            w.set("x", 8, [2, 0, 0, 0, 0, 0, 0, 0, 0xc3, 0x28]);
        },
        |w| {
            w.set("x", 77, []);
        },
    ];
    messages.extend(changes.map(|change| {
        let mut writer = tiny();
        change(&mut writer);
        load_bytes(&writer.bytes()).unwrap_err()
    }));
    insta::assert_snapshot!(messages.join("\n"), @r#"
    model.gguf is not a model: expected a GGUF file, a .safetensors file with config.json beside it, or a folder that holds either (an empty file)
    model.gguf is not a model: expected a GGUF file, a .safetensors file with config.json beside it, or a folder that holds either (a file that begins with "PK\u{3}\u{4}")
    model.gguf: GGUF version 1 is not supported, only 2 and 3: convert the model again
    model.gguf: a big-endian GGUF file: convert it with gguf_convert_endian.py
    model.gguf: truncated: the file ends at byte 100, inside the value of key `general.name`; download it again
    model.gguf: truncated: the file ends at byte 257311, but tensor `blk.1.ffn_down.weight` takes bytes 232736 to 257312; download it again
    model.gguf: the architecture `mamba` is not supported; supported are llama, qwen2, qwen3, qwen3moe, gemma2, gemma3, phi3, smollm3
    model.gguf: the metadata key `llama.block_count` is missing
    model.gguf: the metadata key `tokenizer.ggml.tokens` is missing
    model.gguf: the metadata key `llama.block_count` should be a non-negative integer, but is "two"
    model.gguf: tensor `blk.2.attn_norm.weight` is missing
    model.gguf: `llama.block_count` is 1, and there is a tensor `blk.1.ffn_up.weight`, of layer 2 of the model; convert it again
    model.gguf: `llama.vocab_size` is 31, and `token_embd.weight` has 32 tokens; convert the model again
    model.gguf: tensor `blk.0.ffn_gate.weight` has the shape [64, 96], expected [64, 95]
    model.gguf: 4 heads do not share 3 key and value heads evenly
    model.gguf: the number of heads is 0, expected 1 to 16777216
    model.gguf: the metadata key `llama.expert_used_count` is missing
    model.gguf: rotary scaling of the type `dynamic` is not supported; `linear`, `yarn`, Llama 3's and Phi-3's are
    model.gguf: the metadata key `general.alignment` should be a power of two, but is 24
    model.gguf: tensor `blk.0.attn_norm.weight` has the type IQ4_XS, which is not supported; supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K
    model.gguf: tensor `blk.0.attn_norm.weight` has rows of 40, not a multiple of Q4_0's block of 32
    model.gguf: damaged: tensor `token_embd.weight` appears twice
    model.gguf: tensor `token_embd.weight` has a dimension of 0
    model.gguf: tensor `token_embd.weight` has more elements than can be counted
    model.gguf: damaged: key `general.architecture` appears twice
    model.gguf: damaged: an array of 1099511627775 items in the value of key `x` at byte 928
    model.gguf: damaged: text that is not UTF-8 in the value of key `x` at byte 916
    model.gguf: damaged: the unknown value type 77 of key `x` at byte 916
    "#);
}

#[test]
fn no_cut_is_taken_for_a_whole_file() {
    let bytes = tiny().bytes();
    for len in 0..bytes.len() {
        // Every place in the header, and every 97th in the data.
        if len < 4096 || len % 97 == 0 {
            let error = Header::parse(&bytes[..len]).unwrap_err();
            assert!(!error.to_string().is_empty());
        }
    }
    assert!(Header::parse(&bytes).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever bytes of the header change, reading ends with a message, or with a model that runs.
    #[test]
    fn no_damage_to_the_header_panics(
        changes in prop::collection::vec((0usize..3500, any::<u8>()), 1..4),
    ) {
        thread_local! { static GOOD: Vec<u8> = tiny().bytes(); }
        let mut bytes = GOOD.with(Clone::clone);
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        match Header::parse(&bytes).map_err(|e| e.to_string()).and_then(|_| load_bytes(&bytes)) {
            Err(message) => prop_assert!(!message.is_empty()),
            Ok(model) => drop(logits(model, &[1, 2, 3])),
        }
    }
}
