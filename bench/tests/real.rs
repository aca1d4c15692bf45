//! The benchmarks on a real engine, and on a server that fails.

#![allow(clippy::unwrap_used)]

#[path = "../../engine/tests/real_model/mod.rs"]
mod real_model;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::{Map, json};
use strata_bench::arrival::Arrival;
use strata_bench::dataset::{Request, Uniform, Vocabulary, uniform};
use strata_bench::offline::{Generating, Offline};
use strata_bench::serve::{Run, ServeError, ServeOptions, run};
use strata_bench::summary::{Goodput, Metric, Outcome};
use strata_bench::{Api, Target};
use strata_engine::{EngineOptions, KvCache, run_on};
use strata_hop::Bound;
use tokio_util::sync::CancellationToken;

use self::real_model::real_model;

fn engine_options(model: &std::path::Path) -> EngineOptions {
    EngineOptions { kv_cache: KvCache::Blocks(256), ..EngineOptions::new(model.to_str().unwrap()) }
}

fn options(base_url: String, api: Api) -> ServeOptions {
    let endpoint = match api {
        Api::Completions => "/v1/completions",
        Api::Chat => "/v1/chat/completions",
    };
    let body = json!({"ignore_eos": true, "temperature": 0});
    ServeOptions {
        target: Target {
            base_url,
            endpoint: endpoint.into(),
            api,
            model: None,
            headers: axum::http::HeaderMap::new(),
            body: body.as_object().cloned().unwrap_or_else(Map::new),
        },
        arrival: Arrival { rate: f64::INFINITY, burstiness: 1.0, ramp: None },
        max_concurrency: Some(2),
        warmups: 0,
        ready_within: Duration::from_secs(60),
        request_id_prefix: "test-".into(),
        percentiles: vec![99.0],
        goodput: Goodput::from([(Metric::E2el, 1e9)]),
        adapters: Vec::new(),
        seed: 0,
    }
}

fn prompts(count: usize) -> Vec<Request> {
    let shape = Uniform { count, prefix_len: 48, input_len: 16, output_len: 6, range_ratio: 0.0 };
    uniform(shape, &Vocabulary::Words, 4)
}

fn checks_out(run: &Run, count: usize) {
    assert_eq!((run.summary.completed, run.summary.failed), (count, 0), "{:?}", run.outcomes);
    assert_eq!(run.summary.total_output_tokens, 6 * count as u64, "as many as were asked for");
    assert!(run.summary.max_concurrent_requests <= 2, "{}", run.summary.max_concurrent_requests);
    assert!(run.summary.request_goodput.unwrap() > 0.0);
    for (metric, spread) in &run.summary.metrics {
        assert!(spread.median > 0.0 && spread.percentiles[0].1 >= spread.median, "{metric:?}: {spread:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_is_measured_by_both_apis() {
    let Some(model) = real_model() else { return };
    let bound = Bound::bind("127.0.0.1:0").await.unwrap();
    let (url, stop) = (bound.url(), CancellationToken::new());
    let engine = tokio::spawn(run_on(bound, engine_options(&model), stop.clone()));

    let completions = run(options(url.clone(), Api::Completions), prompts(5)).await.unwrap();
    checks_out(&completions, 5);
    assert_eq!(completions.summary.total_input_tokens, 5 * 64, "each word is one token of this model");
    assert!(completions.summary.total_cached_tokens >= 3 * 48, "the common prefix is found");

    let chat = run(options(url.clone(), Api::Chat), prompts(3)).await.unwrap();
    checks_out(&chat, 3);
    assert!(chat.summary.total_input_tokens > 3 * 64, "the template adds to each");

    let none = ServeOptions { adapters: vec!["no-such-adapter".into()], ..options(url, Api::Completions) };
    let refused = run(none, prompts(2)).await.unwrap();
    assert_eq!((refused.summary.completed, refused.summary.failed), (0, 2), "each asks for an adapter");
    let asked_for = |outcome: &Outcome| outcome.result.as_ref().is_err_and(|e| e.contains("no-such-adapter"));
    assert!(refused.outcomes.iter().all(asked_for), "{:?}", refused.outcomes);

    stop.cancel();
    engine.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_engine_is_measured_in_process() {
    let Some(model) = real_model() else { return };
    let generating = Generating { n: 1, temperature: 0.0, seed: 1 };
    let offline = Offline::open(engine_options(&model), generating).unwrap();
    let vocabulary = Vocabulary::Tokens(offline.tokenizer().clone());
    let shape = Uniform { count: 3, prefix_len: 0, input_len: 20, output_len: 4, range_ratio: 0.0 };
    let requests = uniform(shape, &vocabulary, 1);
    let result = offline.throughput(&requests).await.unwrap();
    assert_eq!((result.prompt_tokens, result.output_tokens), (60, 12));
    assert_eq!(result.json()["total_num_tokens"], 72);

    let latency = offline.latency(2, 8, 3, 1, 2).await.unwrap();
    assert_eq!(latency.latencies.len(), 2);
    assert!(latency.latencies.iter().all(|seconds| *seconds > 0.0));

    let long = Uniform { input_len: 100_000, ..shape };
    let error = offline.throughput(&uniform(long, &vocabulary, 1)).await.unwrap_err().to_string();
    assert!(error.starts_with("prompt 0 has 100000 tokens and 4 are to be generated"), "{error}");
}

/// Answers every second request; breaks off every fourth.
async fn flaky() -> String {
    let asked = Arc::new(AtomicUsize::new(0));
    let answer = move || async move {
        let piece = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":1}}\n\n";
        match asked.fetch_add(1, Ordering::Relaxed) % 4 {
            0 | 2 => format!("{piece}{usage}data: [DONE]\n\n").into_response(),
            1 => (StatusCode::SERVICE_UNAVAILABLE, "{\"error\":{\"message\":\"full\"}}").into_response(),
            _ => piece.into_response(),
        }
    };
    let router = axum::Router::new()
        .route("/v1/models", get(|| async { "{\"data\":[{\"id\":\"flaky\"}]}" }))
        .route("/v1/completions", post(answer));
    let bound = Bound::bind("127.0.0.1:0").await.unwrap();
    let url = bound.url();
    tokio::spawn(bound.serve(router, CancellationToken::new(), Duration::ZERO));
    url
}

#[tokio::test]
async fn failures_are_counted_with_their_reasons() {
    let one_by_one = ServeOptions { max_concurrency: Some(1), ..options(flaky().await, Api::Completions) };
    let run = run(one_by_one, prompts(8)).await.unwrap();
    assert_eq!((run.model.as_str(), run.summary.completed, run.summary.failed), ("flaky", 4, 4));
    assert_eq!(run.summary.total_output_tokens, 4);
    let errors: Vec<&str> =
        run.outcomes.iter().filter_map(|o| o.result.as_ref().err().map(String::as_str)).collect();
    let no_usage = "the answer ended without `usage`, by which tokens are counted";
    for error in ["HTTP 503: full", no_usage] {
        assert_eq!(errors.iter().filter(|e| **e == error).count(), 2, "{errors:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error() {
    let gone = Bound::bind("127.0.0.1:0").await.unwrap().url();
    let now = ServeOptions { ready_within: Duration::ZERO, ..options(gone.clone(), Api::Completions) };
    let error = run(now, prompts(1)).await.unwrap_err();
    assert!(matches!(error, ServeError::Target(_)) && error.to_string().contains(&gone), "{error}");
    let error = run(options("localhost:8000".into(), Api::Completions), prompts(1)).await.unwrap_err();
    assert!(error.to_string().ends_with("give it as http://HOST:PORT"), "{error}");
}
