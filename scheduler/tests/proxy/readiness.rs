use std::sync::atomic::Ordering;

use strata_scheduler::SchedulerOptions;
use strata_wire::replicas::Endpoints;

use crate::support::{Does, EndpointsFile, Engine, Rig, eventually, listed, quick};

async fn following(file: &EndpointsFile) -> Rig {
    Rig::start(SchedulerOptions { endpoints: Some(file.path()), ..quick() }).await
}

#[tokio::test]
async fn a_replica_goes_and_comes_back() {
    let (mut a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Rig::before(&[&a, &b], quick()).await;
    assert_eq!(rig.get("/ready").await.status, 200);
    a.kill();
    rig.ready("m", 1).await;
    for n in 0..6 {
        assert_eq!(
            rig.chat(&format!("{n}")).await.header("x-strata-replica"),
            b.url().trim_start_matches("http://")
        );
    }
    a.restart();
    rig.ready("m", 2).await;
    b.load(|load| load.waiting = 50.0);
    eventually("the second is full", || rig.states("m").iter().any(|s| s.waiting > 40.0)).await;
    assert_eq!(rig.chat("hello").await.header("x-strata-replica"), a.url().trim_start_matches("http://"));
}

#[tokio::test]
async fn an_engine_that_reports_itself_dead_gets_nothing() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Rig::before(&[&a, &b], quick()).await;
    a.inner.health.store(503, Ordering::SeqCst);
    rig.ready("m", 1).await;
    let state = rig.states("m").into_iter().find(|s| !s.ready).unwrap();
    assert_eq!(state.reason.as_deref(), Some("GET /health answered 503"));
    a.inner.health.store(200, Ordering::SeqCst);
    rig.ready("m", 2).await;
}

#[tokio::test]
async fn metrics_out_of_all_range_fail_no_request() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    // Two ranks, whose sum is infinite, and so would be the rate that it is divided by.
    let rank = |n| {
        format!(
            "strata:waiting_tokens{{engine=\"{n}\"}} 1.7e308\nstrata:prefill_tokens_per_second{{engine=\"{n}\"}} 1.7e308\n"
        )
    };
    let text = format!("vllm:num_requests_running 3\nvllm:num_requests_waiting 0\n{}{}", rank(0), rank(1));
    engine.load(|load| load.text = Some(text));
    eventually("they are read", || rig.states("m")[0].running > 2.0).await;
    for n in 0..3 {
        assert_eq!(rig.chat(&format!("{n}")).await.status, 200);
    }
}

#[tokio::test]
async fn the_file_scales_one_to_three_to_one_and_cuts_no_stream() {
    let file = EndpointsFile::new();
    let (a, b, c) = (Engine::start("m-0"), Engine::start("m-1"), Engine::start("m-2"));
    for engine in [&a, &b, &c] {
        engine.does(Does::Held);
    }
    file.list(&[&a]);
    let rig = following(&file).await;
    rig.ready("m", 1).await;
    a.let_go(1);
    let mut on_a = rig.stream("first").await;
    on_a.event().await.unwrap();

    file.list(&[&a, &b, &c]);
    rig.ready("m", 3).await;
    for engine in [&b, &c] {
        engine.let_go(1);
    }
    let mut streams = Vec::new();
    for n in 0..2 {
        let mut stream = rig.stream(&format!("other {n}")).await;
        stream.event().await.unwrap();
        streams.push(stream);
    }
    assert_eq!((a.open(), b.open(), c.open()), (1, 1, 1), "new requests go to the new replicas");

    file.list(&[&c]);
    eventually("one is left", || rig.states("m").len() == 1).await;
    c.does(Does::Answer);
    let last = rig.stream("last").await;
    assert_eq!(last.headers["x-strata-replica"], "m-2");
    for engine in [&a, &b, &c] {
        engine.inner.ended.store(true, Ordering::SeqCst);
        engine.let_go(100);
    }
    streams.extend([on_a, last]);
    for stream in streams {
        assert_eq!(stream.rest().await.last().unwrap(), "[DONE]");
    }
}

#[tokio::test]
async fn a_broken_or_missing_file_changes_nothing() {
    let (file, engine) = (EndpointsFile::new(), Engine::start("m-0"));
    let rig = following(&file).await;
    assert_eq!(rig.chat("hello").await.error().1, "model_not_found");
    file.list(&[&engine]);
    eventually("the file is read", || !rig.states("m").is_empty()).await;
    rig.ready("m", 1).await;
    for text in [
        "{\"models\": {\"m\": {\"repl",
        "",
        "[]",
        r#"{"models":{"m":{"replicas":[{"name":"x","url":"ftp://y"}]}}}"#,
    ] {
        file.write_text(text);
        assert_eq!(rig.chat("hello").await.status, 200, "{text}");
    }
    std::fs::remove_file(file.path()).unwrap();
    assert_eq!(rig.chat("hello").await.status, 200);
    // Proof that the file was looked at in between: a good one is taken again.
    file.write(&Endpoints { models: [("n".to_owned(), listed(&[&engine]))].into() });
    eventually("the new list is in force", || !rig.states("n").is_empty() && rig.states("m").is_empty())
        .await;
    assert_eq!(rig.chat("hello").await.error().1, "model_not_found");
}

#[tokio::test]
async fn weights_come_from_the_file() {
    let file = EndpointsFile::new();
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let mut model = listed(&[&a, &b]);
    model.weights = [("prefix".to_owned(), 0.0)].into();
    file.write(&Endpoints { models: [("m".to_owned(), model)].into() });
    let rig = following(&file).await;
    eventually("the file is read", || !rig.states("m").is_empty()).await;
    rig.ready("m", 2).await;
    let prompt = "x".repeat(4000);
    rig.chat(&prompt).await;
    let scores = rig.chat(&prompt).await.header("x-strata-decision").to_owned();
    assert!(scores.contains("score=-5.0"), "a hit counts nothing: {scores}");
}

#[tokio::test]
async fn a_replica_that_never_answers_is_never_ready() {
    let mut engine = Engine::start("m-0");
    let options = SchedulerOptions { replicas: vec![engine.url()], ..quick() };
    engine.kill();
    let rig = Rig::start(options).await;
    let reply = rig.chat("hello").await;
    assert_eq!(
        reply.error(),
        (503, "overloaded".to_owned(), "server_error".to_owned()),
        "it may serve the model"
    );
    engine.restart();
    rig.ready("m", 1).await;
    assert_eq!(rig.chat("hello").await.status, 200);
}
