//! Encoders: against transformers and sentence-transformers, and their HTTP API from the outside.
//! `scripts/golden.py` makes the vectors.
#![allow(clippy::unwrap_used)]

mod embedding;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use strata_engine::backend::cpu::encoder::CpuEncoder;
use strata_engine::backend::vectors::{TextInput, VectorBackend};
use strata_engine::embed::{EmbedConfig, Embedder};
use strata_engine::model::encoder;
use strata_engine::tokenizer::Tokenizer;

use crate::embedding::{floats, post, serve_small};

/// Largest difference of a number that rounding in another order, and an error function to 1.5e-7,
/// explain.
const TOLERANCE: f32 = 3e-6;

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

fn golden(file: &str) -> Golden {
    serde_json::from_slice(&std::fs::read(data(file)).unwrap()).unwrap()
}

/// Compares a folder's encoder with a golden file: tokens from the text, vectors alone and, to the bit,
/// all in one batch.
fn compare(folder: &Path, file: &str) {
    let model = encoder::load(folder).unwrap().unwrap();
    let tokenizer = Tokenizer::build(&model.tokenizer_source, &model.special).unwrap();
    let mut encoder = CpuEncoder::new(model.spec, model.weights, 2).unwrap();
    let (mut inputs, mut alone) = (Vec::new(), Vec::new());
    for case in golden(file).cases {
        let input = match &case.text {
            Value::String(text) => TextInput { tokens: tokenizer.encode(text, true).unwrap(), second: None },
            pair => {
                let (tokens, begin) =
                    tokenizer.encode_pair(pair[0].as_str().unwrap(), pair[1].as_str().unwrap()).unwrap();
                TextInput { tokens, second: Some(begin) }
            }
        };
        assert_eq!(input.tokens, case.tokens, "{}", case.text);
        let got = encoder.run(std::slice::from_ref(&input)).unwrap().remove(0);
        assert_eq!(got.len(), case.vector.len());
        let difference = got.iter().zip(&case.vector).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        eprintln!("{file}, {} tokens: largest difference {difference:e}", input.tokens.len());
        assert!(difference <= TOLERANCE, "{file}: {difference} for {}", case.text);
        inputs.push(input);
        alone.push(got);
    }
    assert!(encoder.run(&inputs).unwrap() == alone, "{file}: a batch changes a vector");
}

#[test]
fn small_random_encoders_equal_transformers() {
    for name in ["golden_bert", "golden_bert_rank", "golden_bert_classes"] {
        compare(&data(name), &format!("{name}/golden.json"));
    }
}

#[test]
fn minilm_equals_sentence_transformers() {
    let cached =
        || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/strata/models/all-MiniLM-L6-v2"));
    let folder = std::env::var_os("STRATA_TEST_ENCODER").map(PathBuf::from).or_else(cached);
    match folder.filter(|folder| folder.join("model.safetensors").is_file()) {
        Some(folder) => compare(&folder, "golden_minilm.json"),
        None => eprintln!("skipped: no all-MiniLM-L6-v2; run `make model` or set STRATA_TEST_ENCODER"),
    }
}

fn start(name: &str, max_waiting: usize) -> (Arc<Embedder>, Router) {
    let model = encoder::load(&data(name)).unwrap().unwrap();
    let tokenizer = Tokenizer::build(&model.tokenizer_source, &model.special).unwrap();
    let model = Box::new(CpuEncoder::new(model.spec, model.weights, 1).unwrap());
    let config = EmbedConfig { max_len: 40, batch_tokens: 64, max_sequences: 8, max_waiting };
    serve_small(tokenizer, model, config)
}

#[tokio::test]
async fn embeddings_of_texts_and_tokens_in_both_encodings() {
    let (_embedder, router) = start("golden_bert", 100);
    let case = golden("golden_bert/golden.json").cases.remove(0);
    let input = json!(["paris", case.text]);
    let (status, body) = post(&router, "/v1/embeddings", json!({"model": "small", "input": input})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let vector = floats(&body["data"][1]["embedding"]);
    assert!(vector.iter().zip(&case.vector).all(|(a, b)| (a - b).abs() <= TOLERANCE));
    assert_eq!(body["data"][1]["index"], 1);
    assert_eq!(body["usage"]["prompt_tokens"], 3 + case.tokens.len());

    let request = json!({"input": [case.tokens], "encoding_format": "base64", "dimensions": 40});
    let (_, body) = post(&router, "/v1/embeddings", request).await;
    let bytes = base64_bytes(body["data"][0]["embedding"].as_str().unwrap());
    let decoded: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(decoded, vector);
    let (_, body) = post(&router, "/pooling", json!({"input": case.tokens})).await;
    assert_eq!(floats(&body["data"][0]["data"]), vector);
}

fn base64_bytes(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

#[tokio::test]
async fn a_long_text_is_refused_or_cut() {
    let (_embedder, router) = start("golden_bert", 100);
    let long = "the cat ".repeat(30);
    let (status, body) = post(&router, "/v1/embeddings", json!({"input": long})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    insta::assert_snapshot!(body["error"]["message"].as_str().unwrap(), @"`input[0]` has 62 tokens and this model takes at most 40; shorten it, or set `truncate_prompt_tokens`");
    for (cut, tokens) in [(-1, 40), (7, 7)] {
        let request = json!({"input": long, "truncate_prompt_tokens": cut});
        let (_, body) = post(&router, "/v1/embeddings", request).await;
        assert_eq!(body["usage"]["total_tokens"], tokens);
    }
    // Cut, it is what the shorter text is.
    let (_, cut) = post(&router, "/v1/embeddings", json!({"input": long, "truncate_prompt_tokens": 4})).await;
    let (_, short) = post(&router, "/v1/embeddings", json!({"input": "the cat"})).await;
    assert_eq!(cut["data"], short["data"]);
}

#[tokio::test]
async fn scores_and_ranks_by_cosine() {
    let (_embedder, router) = start("golden_bert", 100);
    let request = json!({"text_1": "the cat sat", "text_2": ["the cat sat", "sky", "the dog sat"]});
    let (_, body) = post(&router, "/v1/score", request).await;
    let scores: Vec<f64> =
        body["data"].as_array().unwrap().iter().map(|s| s["score"].as_f64().unwrap()).collect();
    assert!((scores[0] - 1.0).abs() < 1e-6 && scores[1] < scores[0], "{scores:?}");
    let request =
        json!({"query": "the cat sat", "documents": ["sky", {"text": "the cat sat"}, "mat"], "top_n": 2});
    let (_, body) = post(&router, "/v2/rerank", request).await;
    assert_eq!(body["results"].as_array().unwrap().len(), 2);
    assert_eq!(body["results"][0]["index"], 1);
    assert_eq!(body["results"][0]["document"]["text"], "the cat sat");
    let request = json!({"query": "the cat sat", "documents": ["sky"], "return_documents": false});
    let (_, body) = post(&router, "/v2/rerank", request).await;
    assert!(body["results"][0].get("document").is_none() && body["results"][0]["index"] == 0, "{body}");
}

#[tokio::test]
async fn a_cross_encoder_reads_both_texts_at_once() {
    let (_embedder, router) = start("golden_bert_rank", 100);
    for case in golden("golden_bert_rank/golden.json").cases.iter().filter(|case| case.text.is_array()) {
        let request = json!({"queries": case.text[0], "documents": case.text[1]});
        let (_, body) = post(&router, "/score", request).await;
        let want = 1.0 / (1.0 + f64::from(-case.vector[0]).exp());
        assert!((body["data"][0]["score"].as_f64().unwrap() - want).abs() < 1e-5, "{body} for {want}");
    }
}

#[tokio::test]
async fn classes_have_names_and_probabilities() {
    let (_embedder, router) = start("golden_bert_classes", 100);
    let case = golden("golden_bert_classes/golden.json").cases.remove(0);
    let (_, body) = post(&router, "/classify", json!({"input": case.text})).await;
    let likeliest = (0..3).max_by(|a, b| case.vector[*a].total_cmp(&case.vector[*b])).unwrap();
    assert_eq!(body["data"][0]["label"], ["calm", "angry", "glad"][likeliest]);
    assert!((floats(&body["data"][0]["probs"]).iter().sum::<f32>() - 1.0).abs() < 1e-5);
    assert_eq!(body["data"][0]["num_classes"], 3);
}

#[tokio::test]
async fn what_cannot_be_served_says_so() {
    let (embedder, router) = start("golden_bert", 3);
    let (_classes, other) = start("golden_bert_classes", 3);
    let mut messages = Vec::new();
    for (router, path, body) in [
        (&router, "/v1/chat/completions", json!({})),
        (&router, "/classify", json!({"input": "cat"})),
        (&router, "/v1/embeddings", json!({})),
        (&router, "/v1/embeddings", json!({"input": []})),
        (&router, "/v1/embeddings", json!({"input": [1, "a"]})),
        (&router, "/v1/embeddings", json!({"input": [99]})),
        (&router, "/v1/embeddings", json!({"input": "cat", "dimensions": 8})),
        (&router, "/v1/embeddings", json!({"input": "cat", "encoding_format": "hex"})),
        (&router, "/v1/embeddings", json!({"input": "cat", "model": "big"})),
        (&router, "/v1/embeddings", json!({"input": ["cat", "cat", "cat", "cat"]})),
        (&router, "/pooling", json!({"input": "cat", "task": "token_embed"})),
        (&router, "/v1/embeddings", json!({"input": "cat", "embed_dtype": "float16"})),
        (&router, "/v1/embeddings", json!({"input": "cat", "endianness": "big"})),
        (&router, "/v1/embeddings", json!({"input": "cat", "truncation_side": "left"})),
        (&router, "/v1/embeddings", json!({"input": "cat", "normalize": false, "embed_dtype": "float32"})),
        (&router, "/pooling", json!({"input": "cat", "use_activation": "yes"})),
        (&other, "/classify", json!({"input": "cat", "use_activation": false})),
        (&router, "/v1/embeddings", json!({"input": "cat", "priority": "high"})),
        (&router, "/rerank", json!({"query": "a", "documents": ["a"], "return_documents": 1})),
        (&router, "/score", json!({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]})),
        (&router, "/rerank", json!({"documents": ["a"]})),
        (&other, "/v1/embeddings", json!({"input": "cat"})),
        (&other, "/rerank", json!({"query": "a", "documents": ["a"]})),
    ] {
        let (status, answer) = post(router, path, body).await;
        messages.push(format!(
            "{} {path}: {}",
            status.as_u16(),
            answer["error"]["message"].as_str().unwrap()
        ));
    }
    embedder.drain();
    let (status, answer) = post(&router, "/v1/embeddings", json!({"input": "cat"})).await;
    messages.push(format!("{}: {}", status.as_u16(), answer["error"]["message"].as_str().unwrap()));
    insta::assert_snapshot!(messages.join("\n"));
}

#[tokio::test]
async fn who_leaves_and_who_is_aborted_is_not_worked_on() {
    let (embedder, _router) = start("golden_bert", 2000);
    let inputs = vec![TextInput { tokens: vec![2; 40], second: None }; 1000];
    drop(embedder.submit("left".into(), inputs.clone()).unwrap());
    assert!(!embedder.abort("left"));
    let aborted = embedder.submit("aborted".into(), inputs).unwrap();
    assert!(embedder.abort("aborted"));
    assert_eq!(aborted.wait().await.unwrap_err().to_string(), "the request was aborted");
    // All of them are out of the queue, so that as many fit again.
    let one = TextInput { tokens: vec![2, 5, 3], second: None };
    let served = embedder.submit("served".into(), vec![one]).unwrap().wait().await.unwrap();
    assert_eq!(served.len(), 1);
    let metrics = embedder.metrics().render();
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("vllm:num_requests_waiting{").abs() < f64::EPSILON, "{metrics}");
    assert!(metrics.contains("finished_reason=\"abort\""));
}
