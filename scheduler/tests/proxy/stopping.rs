//! A scheduler that is told to stop.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use strata_hop::{Bound, Upstream, forward};
use strata_scheduler::{SchedulerOptions, run_on};
use tokio_util::sync::CancellationToken;

use crate::support::{Does, Engine, PATIENCE, quick};

async fn get(client: &Upstream, url: &str) -> Result<u16, strata_hop::SendError> {
    let request = Request::get(url).body(Body::empty()).unwrap();
    client.send(request, PATIENCE).await.map(|response| response.status().as_u16())
}

#[tokio::test]
async fn it_says_that_it_stops_then_closes_its_door_and_finishes_what_it_streams() {
    let engine = Engine::start("m-0");
    engine.does(Does::Held).let_go(1);
    let options = SchedulerOptions {
        replicas: vec![engine.url()],
        leave_after: Duration::from_millis(400),
        drain_grace: PATIENCE,
        ..quick()
    };
    let bound = Bound::bind("127.0.0.1:0").await.unwrap();
    let (url, stop) = (bound.url(), CancellationToken::new());
    let running = tokio::spawn(run_on(bound, options, stop.clone()));
    let client = Upstream::new();
    let ready = || async { get(&client, &format!("{url}/ready")).await };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while ready().await.ok() != Some(200) {
        assert!(tokio::time::Instant::now() < deadline);
    }
    let body = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;
    let ask = || Request::post(format!("{url}/v1/chat/completions")).body(Body::from(body)).unwrap();
    let stream = client.send(ask(), PATIENCE).await.unwrap();
    assert_eq!(stream.status(), 200);

    stop.cancel();
    while ready().await.ok() != Some(503) {
        assert!(tokio::time::Instant::now() < deadline);
    }
    engine.does(Does::Answer);
    let late = client.send(ask(), PATIENCE).await.unwrap();
    assert_eq!(late.status(), 200, "who has not heard yet is served");
    // Connections that stay open are closed, new ones are refused.
    let fresh = || async { get(&Upstream::new(), &format!("{url}/ready")).await };
    while fresh().await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline);
    }
    assert!(!running.is_finished(), "streams go on");
    engine.inner.ended.store(true, Ordering::SeqCst);
    engine.let_go(100);
    for response in [stream, late] {
        let text = forward::collect(response.into_body(), PATIENCE, 1 << 20).await.unwrap();
        assert!(String::from_utf8_lossy(&text).trim_end().ends_with("[DONE]"));
    }
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
}
