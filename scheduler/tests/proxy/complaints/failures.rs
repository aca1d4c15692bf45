//! What becomes of requests when replicas fail, and of replicas that have failed.

use std::time::Duration;

use strata_scheduler::{Policy, SchedulerOptions};
use strata_wire::replicas::Endpoints;

use super::name;
use crate::support::{Does, EndpointsFile, Engine, PATIENCE, Rig, eventually, listed_with, quick};

/// The dead among them are found out by requests alone.
fn seldom() -> SchedulerOptions {
    SchedulerOptions { scrape_interval: Duration::from_secs(600), ..quick() }
}

fn in_turn() -> SchedulerOptions {
    SchedulerOptions { policy: Policy::RoundRobin, ..quick() }
}

/// A replica's engine is dead, or dies on each request: the request goes to another, and each is asked once.
#[tokio::test]
async fn production_stack_382_a_request_that_one_replica_fails_is_answered_by_another() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Rig::before(&[&a, &b], in_turn()).await;
    for fails in [Does::Refuse, Does::Break(0)] {
        a.does(fails);
        let (before, deadline) = (a.got().len(), tokio::time::Instant::now() + PATIENCE);
        while a.got().len() < before + 3 {
            assert!(tokio::time::Instant::now() < deadline, "the broken one is never asked");
            let stream = rig.stream("hello").await;
            assert_eq!((stream.status.as_u16(), stream.headers["x-strata-replica"].clone()), (200, by(&b)));
            assert_eq!(stream.rest().await.last().unwrap(), "[DONE]");
        }
    }
    rig.ready("m", 2).await;
    b.does(Does::Refuse);
    a.does(Does::Refuse);
    let before = a.got().len() + b.got().len();
    assert_eq!(rig.chat("hello").await.status, 503);
    assert!(a.got().len() + b.got().len() <= before + 2, "not again and again");
}

fn by(engine: &Engine) -> http::HeaderValue {
    name(engine).parse().unwrap()
}

/// The proposal's first two points of failure: the replica that computes the prompt cannot be reached, or
/// the one that answers cannot.
#[tokio::test]
async fn llm_d_router_2345_a_dead_prefill_and_a_dead_decode_replica_lose_no_request() {
    let (mut p, mut d, other) = (Engine::start("p"), Engine::start("d-0"), Engine::start("d-1"));
    let file = EndpointsFile::new();
    file.write(&Endpoints { models: [("m".to_owned(), listed_with(&[&d, &other], &[&p]))].into() });
    let rig = Rig::start(SchedulerOptions { endpoints: Some(file.path()), ..seldom() }).await;
    eventually("the file is read", || rig.states("m").len() == 3).await;
    rig.ready("m", 3).await;
    p.kill();
    d.kill();
    let dead = || rig.states("m").iter().filter(|state| !state.ready).count();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for n in 0.. {
        let stream = rig.stream(&format!("{n} {}", "long ".repeat(1000))).await;
        assert_eq!(
            (stream.status.as_u16(), stream.headers["x-strata-replica"].to_str().unwrap()),
            (200, "d-1")
        );
        assert_eq!(stream.rest().await.last().unwrap(), "[DONE]");
        if n >= 6 && dead() == 2 {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "one of the dead was never tried");
    }
}

/// Its third: a stream that breaks in its middle is not passed off as whole.
#[tokio::test]
async fn llm_d_router_2345_a_client_is_told_that_its_stream_broke() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    engine.does(Does::Break(2));
    let events = rig.stream("hello").await.rest().await;
    assert!(!events.iter().any(|event| event == "[DONE]"), "{events:?}");
    let last: serde_json::Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert!(last["error"]["code"].is_string(), "{events:?}");
}

/// Replicas that once refused a request as too busy, all at the same time: a mark that only a change of the
/// load takes away would stay for ever.
#[tokio::test]
async fn dynamo_12138_a_replica_that_refused_once_gets_requests_again_without_a_restart() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Rig::before(&[&a, &b], in_turn()).await;
    a.does(Does::Refuse);
    b.does(Does::Refuse);
    assert_eq!(rig.chat("hello").await.status, 503);
    a.does(Does::Answer);
    b.does(Does::Answer);
    rig.ready("m", 2).await;
    let before = (a.got().len(), b.got().len());
    for _ in 0..6 {
        assert_eq!(rig.chat("hello").await.status, 200);
    }
    assert_eq!((a.got().len(), b.got().len()), (before.0 + 3, before.1 + 3));
}
