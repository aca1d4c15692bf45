//! Decoders that read: against transformers, and their HTTP API from the outside. `scripts/golden.py`
//! makes the vectors.
#![allow(clippy::unwrap_used)]

mod embedding;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use strata_engine::Task;
use strata_engine::backend::BLOCK_TOKENS;
use strata_engine::backend::cpu::{CacheType, CpuOptions, Precision};
use strata_engine::backend::vectors::{TextInput, VectorBackend};
use strata_engine::embed::{EmbedConfig, Embedder, Reader, reads};
use strata_engine::model::load::load;
use strata_engine::tokenizer::Tokenizer;

use crate::embedding::{floats, post, serve_small};

/// Largest difference of a number that rounding in another order explains, of small random models.
const TOLERANCE: f32 = 1e-5;
/// The same for the real model of 30 layers.
const REAL_TOLERANCE: f32 = 1e-5;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: Value,
    tokens: Vec<u32>,
    vector: Vec<f32>,
}

fn golden(file: &str) -> Vec<Case> {
    serde_json::from_slice::<Golden>(&std::fs::read(data(file)).unwrap()).unwrap().cases
}

/// A model opened to read, in 32-bit floats or in bytes.
fn open(path: &Path, precision: Precision, step_tokens: usize, blocks: usize) -> (Reader, Tokenizer) {
    let model = load(path).unwrap();
    let tokenizer = Tokenizer::build(&model.tokenizer_source, &model.special).unwrap();
    let output = reads(Task::Embed, &model).unwrap().unwrap();
    let cpu = CpuOptions {
        threads: 2,
        kv_blocks: blocks,
        max_model_len: blocks * BLOCK_TOKENS,
        precision,
        cache: CacheType::F32,
    };
    let reader = Reader::open(model.spec, model.weights, model.head, output, cpu, step_tokens).unwrap();
    (reader, tokenizer)
}

/// Compares a model with a golden file: tokens from the texts, vectors alone and, to the bit, all in one
/// batch, in steps of any size and with a cache that holds few texts at once. Returns the least cosine.
fn compare(path: &Path, file: &str, tolerance: f32) -> f64 {
    let (mut reader, tokenizer) = open(path, Precision::Exact, 512, 32);
    let (mut inputs, mut alone, mut least) = (Vec::new(), Vec::new(), f64::MAX);
    for case in golden(file) {
        let tokens = match &case.text {
            Value::String(text) => tokenizer.encode(text, true).unwrap(),
            pair => tokenizer.encode_pair(pair[0].as_str().unwrap(), pair[1].as_str().unwrap()).unwrap().0,
        };
        assert_eq!(tokens, case.tokens, "{}", case.text);
        let input = TextInput { tokens, second: None };
        let got = reader.run(std::slice::from_ref(&input)).unwrap().remove(0);
        assert_eq!(got.len(), case.vector.len());
        let difference = got.iter().zip(&case.vector).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        eprintln!("{file}, {} tokens: largest difference {difference:e}", input.tokens.len());
        assert!(difference <= tolerance, "{file}: {difference} for {}", case.text);
        least = least.min(cosine(&got, &case.vector));
        inputs.push(input);
        alone.push(got);
    }
    for (step_tokens, blocks) in [(512, 64), (512, 16), (7, 16), (100, 20)] {
        let (mut other, _) = open(path, Precision::Exact, step_tokens, blocks);
        assert!(other.run(&inputs).unwrap() == alone, "{file}: steps of {step_tokens} change a vector");
    }
    least
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn small_random_decoders_equal_transformers() {
    for name in ["last", "mean", "plain", "rank", "classes"] {
        compare(
            &data(&format!("golden_reader_{name}")),
            &format!("golden_reader_{name}/golden.json"),
            TOLERANCE,
        );
    }
}

#[test]
fn smollm2_reads_what_transformers_reads() {
    let cached = || {
        let home = std::env::var_os("HOME")?;
        Some(PathBuf::from(home).join(".cache/strata/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
    };
    let path = std::env::var_os("STRATA_TEST_MODEL").map(PathBuf::from).or_else(cached);
    let Some(path) = path.filter(|path| path.is_file()) else {
        return eprintln!("skipped: no SmolLM2; run `make model` or set STRATA_TEST_MODEL");
    };
    let file = "golden_smollm2_reads.json";
    let exact = compare(&path, file, REAL_TOLERANCE);
    let (mut reader, _) = open(&path, Precision::Int8, 512, 32);
    let rounded = golden(file).into_iter().map(|case| {
        let got = reader.run(&[TextInput { tokens: case.tokens, second: None }]).unwrap();
        cosine(&got[0], &case.vector)
    });
    let rounded = rounded.fold(f64::MAX, f64::min);
    eprintln!("least cosine: {exact} in 32-bit floats, {rounded} in bytes");
    assert!(exact > 0.999_999 && rounded > 0.99, "{exact} {rounded}");
}

#[test]
fn what_a_checkpoint_is_opened_for() {
    let is = |name: &str, task| match reads(task, &load(&data(name)).unwrap()) {
        Ok(Some(output)) => format!("{name} {task:?}: {output:?}"),
        Ok(None) => format!("{name} {task:?}: generates"),
        Err(problem) => format!("{name} {task:?}: {problem}"),
    };
    let mut lines = Vec::new();
    for name in ["golden_llama3", "golden_reader_last", "golden_reader_plain", "golden_reader_classes"] {
        lines.extend([Task::Auto, Task::Generate, Task::Embed].map(|task| is(name, task)));
    }
    insta::assert_snapshot!(lines.join("\n"));
}

fn start(name: &str) -> (Arc<Embedder>, Router) {
    let (reader, tokenizer) = open(&data(name), Precision::Int8, 64, 16);
    let config = EmbedConfig { max_len: 200, batch_tokens: 64, max_sequences: 8, max_waiting: 100 };
    serve_small(tokenizer, Box::new(reader), config)
}

#[tokio::test]
async fn a_decoder_serves_embeddings_scores_and_ranks() {
    let (_embedder, router) = start("golden_reader_last");
    let case = golden("golden_reader_last/golden.json").remove(0);
    let (status, body) = post(&router, "/v1/embeddings", json!({"input": ["paris", case.text]})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let vector = floats(&body["data"][1]["embedding"]);
    assert!(vector.iter().zip(&case.vector).all(|(a, b)| (a - b).abs() <= TOLERANCE));
    assert_eq!(body["usage"]["prompt_tokens"], 6 + case.tokens.len());
    // Cut, a text still ends with what ends a text, for its row is the vector.
    let (_, cut) =
        post(&router, "/pooling", json!({"input": "paris in spring", "truncate_prompt_tokens": 6})).await;
    let (_, short) = post(&router, "/pooling", json!({"input": "paris"})).await;
    assert_eq!(cut["data"], short["data"]);
    let request = json!({"query": "paris", "documents": ["the sky", "paris", "a mat"]});
    let (_, body) = post(&router, "/rerank", request).await;
    assert_eq!(body["results"][0]["index"], 1, "{body}");
    let (_, body) = post(&router, "/score", json!({"text_1": "paris", "text_2": "paris"})).await;
    assert!((body["data"][0]["score"].as_f64().unwrap() - 1.0).abs() < 1e-6, "{body}");
    let (status, body) = post(&router, "/v1/chat/completions", json!({})).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    insta::assert_snapshot!(body["error"]["message"].as_str().unwrap(), @"this model is opened to embed and generates no text; it serves /v1/embeddings, /pooling, /score, /rerank and /classify, as far as its checkpoint can");
}

#[tokio::test]
async fn a_decoder_with_a_head_classifies_and_ranks() {
    let (_embedder, router) = start("golden_reader_classes");
    let case = golden("golden_reader_classes/golden.json").remove(0);
    let (_, body) = post(&router, "/classify", json!({"input": case.text})).await;
    let likeliest = (0..3).max_by(|a, b| case.vector[*a].total_cmp(&case.vector[*b])).unwrap();
    assert_eq!(body["data"][0]["label"], ["calm", "angry", "glad"][likeliest], "{body}");

    let (_embedder, router) = start("golden_reader_rank");
    for case in golden("golden_reader_rank/golden.json").iter().filter(|case| case.text.is_array()) {
        let request = json!({"queries": case.text[0], "documents": case.text[1]});
        let (_, body) = post(&router, "/score", request).await;
        let want = 1.0 / (1.0 + f64::from(-case.vector[0]).exp());
        assert!((body["data"][0]["score"].as_f64().unwrap() - want).abs() < 1e-5, "{body} for {want}");
    }
}
