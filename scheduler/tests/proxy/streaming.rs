use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::{Does, Engine, PATIENCE, Rig, eventually, quick};

#[tokio::test]
async fn a_piece_arrives_while_the_next_is_held() {
    let engine = Engine::start("m-0");
    engine.does(Does::Held);
    let rig = Rig::before(&[&engine], quick()).await;
    engine.let_go(1);
    let mut stream = rig.stream("hello").await;
    assert_eq!(stream.status, 200);
    assert_eq!(stream.headers["content-type"], "text/event-stream; charset=utf-8");
    for n in 0..5 {
        let data = stream.event().await.unwrap().data;
        assert!(data.contains(&format!("\"content\":\"{n}\"")), "{data}");
        assert_eq!(engine.inner.pieces.available_permits(), 0, "the engine is held before the next piece");
        engine.let_go(1);
    }
    engine.inner.ended.store(true, Ordering::SeqCst);
    engine.let_go(10);
    assert_eq!(stream.rest().await.last().unwrap(), "[DONE]");
    eventually("the books are closed", || rig.states("m")[0].in_flight == 0).await;
}

#[tokio::test]
async fn a_stream_that_breaks_ends_with_an_error_event() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    for does in [Does::Break(2), Does::BreakWithin] {
        engine.does(does);
        let events = rig.stream("hello").await.rest().await;
        let last: serde_json::Value = serde_json::from_str(events.last().unwrap()).unwrap();
        assert_eq!(last["error"]["code"], "upstream_failed", "{events:?}");
        assert_eq!(last["error"]["type"], "server_error");
        assert!(!events.iter().any(|e| e == "[DONE]"));
        for event in &events {
            let whole: serde_json::Value = serde_json::from_str(event).expect("only whole events pass");
            assert!(whole.is_object());
        }
    }
    assert_eq!(engine.got().len(), 2, "nothing is sent again once it has begun");
    assert!((rig.metric("strata_scheduler_broken_responses_total").await - 2.0).abs() < 1e-9);
}

#[tokio::test]
async fn silence_in_mid_stream_ends_it_with_an_error_event() {
    let engine = Engine::start("m-0");
    engine.does(Does::Held);
    let options = strata_scheduler::SchedulerOptions { idle_timeout: Duration::from_millis(100), ..quick() };
    let rig = Rig::before(&[&engine], options).await;
    engine.let_go(2);
    let events = rig.stream("hello").await.rest().await;
    assert_eq!(events.len(), 3);
    assert!(events[2].contains("upstream_timeout"), "{events:?}");
    eventually("the engine is told", || engine.open() == 0).await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_engines_work() {
    let engine = Engine::start("m-0");
    engine.does(Does::Held);
    let rig = Rig::before(&[&engine], quick()).await;
    // One leaves in mid-stream, one before the first piece.
    engine.let_go(1);
    let mut stream = rig.stream("hello").await;
    stream.event().await.unwrap();
    assert_eq!(engine.open(), 1);
    drop(stream);
    eventually("the first stream is closed", || engine.open() == 0).await;
    let waiting = tokio::time::timeout(Duration::from_millis(100), rig.stream("hello")).await;
    assert!(waiting.is_err());
    drop(waiting);
    eventually("the second request is closed", || engine.got().len() == 2 && engine.open() == 0).await;
    eventually("the books are closed", || rig.states("m")[0].in_flight == 0).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_engine_back() {
    let engine = Engine::start("m-0");
    engine.does(Does::Flood);
    let rig = Rig::before(&[&engine], quick()).await;
    let mut stream = rig.stream("hello").await;
    stream.event().await.unwrap();
    // The sockets fill up, and then nothing moves.
    let sent = || engine.inner.sent.load(Ordering::SeqCst);
    let (mut before, mut since) = (sent(), tokio::time::Instant::now());
    let deadline = since + PATIENCE;
    while since.elapsed() < Duration::from_millis(300) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(tokio::time::Instant::now() < deadline, "the flood goes on: {before} bytes");
        if sent() != before {
            (before, since) = (sent(), tokio::time::Instant::now());
        }
    }
    assert!(before < 32 * 1024 * 1024, "{before} bytes are under way");
    stream.event().await.unwrap();
}

#[tokio::test]
async fn an_answer_that_is_no_stream_and_breaks_is_cut_off() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    engine.does(Does::BreakJson);
    let answer = rig.open(rig.chat_request("hello", false)).await;
    assert_eq!(answer.status, 200);
    engine.let_go(1);
    assert!(answer.breaks().await, "half an answer must not look like a whole one");
}
