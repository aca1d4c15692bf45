//! What operators ask of a running engine.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http::StatusCode;
use serde_json::json;
use strata_engine::assemble;
use strata_engine::runtime::{Engine, EngineConfig, Event, Generation};
use strata_engine::sampling::SamplingParams;
use strata_engine::serve::{CALLERS, router};
use strata_hop::{Above, HopToken};

use crate::backend::FakeBackend;
use crate::client::{get, metric, post, send, until};
use crate::process::{model, options};
use crate::scheduling::{finish, prompt, request};
use crate::support::{blocks_of, config, engine};

async fn next_token(generation: &mut Generation) -> Option<u32> {
    loop {
        match generation.next().await? {
            Event::Piece(piece) => return piece.token.map(|t| t.id),
            Event::Failed(failure) => panic!("{failure}"),
            Event::Admitted { .. } | Event::Scored { .. } => {}
        }
    }
}

async fn command(router: &Router, path: &str) -> StatusCode {
    send(router, "POST", path, &[], "").await.status
}

fn greedy(engine: &Engine, family: u32, tokens: usize) -> Generation {
    engine.submit(request(prompt(family, 20), tokens, SamplingParams::greedy())).unwrap()
}

#[tokio::test]
async fn health_fails_while_a_step_hangs_and_recovers_with_it() {
    let (backend, gate) = FakeBackend::new(blocks_of(1024)).gated();
    let engine = engine(backend, EngineConfig { step_timeout: Duration::from_millis(10), ..config() });
    let router = router(engine.clone(), Above::default());
    gate.send(()).unwrap();
    let mut running = greedy(&engine, 0, 4);
    assert!(next_token(&mut running).await.is_some());
    // The next step, of one token, may take a second.
    assert_eq!(get(&router, "/health").await.status, StatusCode::OK);
    until(async || get(&router, "/health").await.status == StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(get(&router, "/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
    drop(gate);
    while next_token(&mut running).await.is_some() {}
    engine.idle().await;
    assert_eq!(get(&router, "/health").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_leaves_is_not_in_the_next_step() {
    let (backend, gate) = FakeBackend::new(blocks_of(1024)).gated();
    let remote = backend.remote();
    let engine = engine(backend, config());
    let stays = greedy(&engine, 0, 5);
    let leaves = greedy(&engine, 1, 5);
    until(async || remote.begun() == 1).await;
    gate.send(()).unwrap();
    until(async || remote.begun() == 2).await;
    drop(leaves);
    gate.send(()).unwrap();
    until(async || remote.begun() == 3).await;
    let text = engine.metrics().render();
    let usage = text.lines().find(|l| l.starts_with("vllm:kv_cache_usage_perc{")).unwrap();
    assert!(
        usage.ends_with(&format!(" {}", 2.0 / 64.0)),
        "its blocks are free before the step is run: {usage}"
    );
    drop((gate, stays));
    engine.idle().await;
    assert_eq!(remote.batches()[2].spans.len(), 1);
}

#[tokio::test]
async fn a_pause_keeps_ends_or_waits_for_what_runs() {
    let (backend, gate) = FakeBackend::new(blocks_of(1024)).gated();
    let remote = backend.remote();
    let engine = engine(backend, config());
    let router = router(engine.clone(), Above::default());

    let mut kept = greedy(&engine, 0, 500);
    gate.send(()).unwrap();
    assert!(next_token(&mut kept).await.is_some());
    let pausing = tokio::spawn({
        let router = router.clone();
        async move { command(&router, "/pause?mode=keep").await }
    });
    until(async || {
        gate.send(()).unwrap();
        pausing.is_finished()
    })
    .await;
    assert_eq!(pausing.await.unwrap(), StatusCode::OK);
    assert_eq!(get(&router, "/is_paused").await.json().await["is_paused"], true);
    assert_eq!(get(&router, "/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(&router, "/health").await.status, StatusCode::OK);
    let begun = remote.begun();
    let waiting = greedy(&engine, 1, 2);
    until(async || get(&router, "/load").await.json().await["server_load"] == 2).await;
    assert_eq!(remote.begun(), begun, "nothing is run");
    drop(gate);
    assert_eq!(command(&router, "/resume").await, StatusCode::OK);
    while next_token(&mut kept).await.is_some() {}
    drop(waiting);
    engine.idle().await;

    assert_eq!(command(&router, "/pause?mode=wait").await, StatusCode::OK);
    let mut held = greedy(&engine, 2, 2);
    until(async || get(&router, "/load").await.json().await["server_load"] == 1).await;
    assert_eq!(command(&router, "/pause").await, StatusCode::OK, "the default ends what there is");
    assert_eq!(next_token(&mut held).await, None);
    assert_eq!(command(&router, "/resume").await, StatusCode::OK);
    assert_eq!(finish(&engine, request(prompt(0, 9), 3, SamplingParams::greedy())).await.0[0].len(), 3);
    for (path, why) in [
        ("/pause?mode=stop", "`mode` must be abort, wait or keep, and it is `stop`"),
        ("/pause?clear_cache=1", "`clear_cache` must be true or false, and it is `1`"),
        ("/sleep?level=3", "`level` must be 1 or 2, and it is `3`"),
    ] {
        let answer = send(&router, "POST", path, &[], "").await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        let text = answer.text().await;
        assert!(text.contains(why), "{text}");
    }
}

#[tokio::test]
async fn an_engine_sleeps_and_wakes_with_the_same_answers() {
    let folder = model();
    let engine = assemble(&options(folder.path()), 0).unwrap();
    let router = router(engine.clone(), Above::default());
    let ask = || {
        let prompt: Vec<u32> = (3..60).collect();
        finish(&engine, request(prompt, 20, SamplingParams::greedy()))
    };
    let (before, _) = ask().await;
    for (level, state) in [(1, "weights_offloaded"), (2, "discard_all")] {
        assert!(ask().await.1 > 0, "the prefix is cached");
        assert_eq!(command(&router, &format!("/sleep?level={level}")).await, StatusCode::OK);
        assert_eq!(get(&router, "/is_sleeping").await.json().await["is_sleeping"], true);
        let gauge = metric(
            &router,
            &format!("vllm:engine_sleep_state{{model_name=\"small\",sleep_state=\"{state}\""),
        )
        .await;
        assert!((gauge - 1.0).abs() < 1e-9);
        let refused = post(&router, "/v1/completions", &json!({"model": "small", "prompt": "a"})).await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.text().await.contains("sleeps"));
        assert_eq!(command(&router, "/resume").await, StatusCode::BAD_REQUEST);
        assert_eq!(command(&router, "/wake_up").await, StatusCode::OK);
        assert_eq!(get(&router, "/is_sleeping").await.json().await["is_sleeping"], false);
        assert_eq!(ask().await, (before.clone(), 0), "the cache is empty, the answer the same");
    }
    assert_eq!(command(&router, "/reset_prefix_cache").await, StatusCode::OK);
    assert_eq!(ask().await.1, 0);
}

#[tokio::test]
async fn requests_are_aborted_by_id_or_all() {
    let (backend, gate) = FakeBackend::new(blocks_of(1024)).gated();
    let engine = engine(backend, config());
    let router = router(engine.clone(), Above::default());
    let mut named = engine
        .submit(strata_engine::runtime::GenerationRequest {
            id: "other".into(),
            ..request(prompt(1, 20), 900, SamplingParams::greedy())
        })
        .unwrap();
    let mut shown = engine
        .submit(strata_engine::runtime::GenerationRequest {
            id: "shown".into(),
            ..request(prompt(2, 20), 900, SamplingParams::greedy())
        })
        .unwrap();
    let mut rest = greedy(&engine, 0, 900);
    gate.send(()).unwrap();
    assert!(next_token(&mut named).await.is_some());
    let aborting = tokio::spawn({
        let router = router.clone();
        let body = json!({"request_ids": ["other", "chatcmpl-shown", "unknown", "cmpl-unknown"]});
        async move { post(&router, "/abort_requests", &body).await.json().await }
    });
    until(async || {
        let _ = gate.send(());
        aborting.is_finished()
    })
    .await;
    assert_eq!(aborting.await.unwrap()["aborted"], 2);
    drop(gate);
    assert_eq!(send(&router, "POST", "/abort_requests", &[], "").await.status, StatusCode::OK);
    while next_token(&mut named).await.is_some() {}
    while next_token(&mut shown).await.is_some() {}
    while next_token(&mut rest).await.is_some() {}
    engine.idle().await;
    for (body, why) in [
        (json!({"ids": []}), "`request_ids` is missing"),
        (json!({"request_ids": [1]}), "`request_ids[0]` must be a string"),
    ] {
        let text = post(&router, "/abort_requests", &body).await.text().await;
        assert!(text.contains(why), "{text}");
    }
}

#[tokio::test]
async fn only_the_layer_above_may_ask() {
    let engine: Arc<Engine> = engine(FakeBackend::new(8), config());
    let router = router(engine, Above::new(HopToken::new("secret"), None, CALLERS));
    let posts = ["sleep", "wake_up", "pause", "resume", "reset_prefix_cache", "abort_requests"];
    let gets = ["is_sleeping", "is_paused", "load", "server_info", "tokenizer_info"];
    for (method, path) in posts.map(|p| ("POST", p)).into_iter().chain(gets.map(|p| ("GET", p))) {
        let path = format!("/{path}");
        assert_eq!(send(&router, method, &path, &[], "").await.status, StatusCode::UNAUTHORIZED, "{path}");
        let token = [("x-strata-hop-token", "secret")];
        assert_eq!(send(&router, method, &path, &token, "").await.status, StatusCode::OK, "{path}");
    }
    let token = [("x-strata-hop-token", "secret")];
    let info = send(&router, "GET", "/server_info", &token, "").await.json().await;
    assert_eq!((&info["model"], &info["kv_cache"]["blocks"]), (&json!("test-model"), &json!(8)));
    let info = send(&router, "GET", "/tokenizer_info", &token, "").await.json().await;
    assert_eq!((&info["vocab_size"], &info["eos_token"]), (&json!(259), &json!("<|im_end|>")));
}
