//! Replicas that are ready and should not get everything: those whose answers fail, and those that are new.

use std::time::{Duration, Instant};

use strata_scheduler::{Policy, SchedulerOptions};
use tokio::task::JoinSet;

use crate::support::{Does, EndpointsFile, Engine, PATIENCE, Rig, eventually, quick};

fn in_turn() -> SchedulerOptions {
    SchedulerOptions { policy: Policy::RoundRobin, ..quick() }
}

fn broken(rig: &Rig, engine: &Engine) -> bool {
    rig.states("m").iter().any(|state| state.url == engine.url() && state.ready && state.broken)
}

#[tokio::test]
async fn a_replica_whose_answers_fail_is_passed_over_until_one_does_not() {
    let (bad, good) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Rig::before(&[&bad, &good], in_turn()).await;
    bad.does(Does::Fail);
    let began = Instant::now();
    for n in 0..40 {
        let status = rig.chat(&format!("{n}")).await.status.as_u16();
        assert!([200, 500].contains(&status), "{status}");
    }
    assert!(broken(&rig, &bad) && !broken(&rig, &good));
    // Five open it; then one tries it each second at most.
    let most = 5 + began.elapsed().as_secs() as usize;
    assert!(bad.got().len() <= most, "{} of {most}", bad.got().len());
    assert!(rig.metric("strata_scheduler_breaker_openings_total").await >= 1.0);

    bad.does(Does::Answer);
    let deadline = Instant::now() + PATIENCE;
    while broken(&rig, &bad) {
        assert!(Instant::now() < deadline, "it never came back");
        assert_eq!(rig.chat("again").await.status, 200);
    }
    let before = bad.got().len();
    for _ in 0..4 {
        assert_eq!(rig.chat("again").await.status, 200);
    }
    assert_eq!(bad.got().len(), before + 2, "it has its turns again");
}

#[tokio::test]
async fn when_all_fail_none_is_passed_over() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    engine.does(Does::Fail);
    for n in 1..=12 {
        assert_eq!((rig.chat("hello").await.status.as_u16(), engine.got().len()), (500, n));
    }
    assert!(broken(&rig, &engine));
}

#[tokio::test]
async fn what_is_the_clients_fault_opens_no_breaker() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    engine.does(Does::Reject);
    for _ in 0..12 {
        assert_eq!(rig.chat("hello").await.status, 400);
    }
    engine.does(Does::Nothing);
    for _ in 0..6 {
        let mut request = rig.chat_request("hello", false);
        request.headers_mut().insert("x-strata-deadline-ms", "20".parse().unwrap());
        assert_eq!(rig.send(request).await.status, 504);
    }
    assert!(!broken(&rig, &engine));
}

#[tokio::test]
async fn answers_that_break_off_or_never_come_open_it() {
    let engine = Engine::start("m-0");
    let options = SchedulerOptions { first_byte_timeout: Duration::from_millis(60), ..quick() };
    let rig = Rig::before(&[&engine], options).await;
    engine.does(Does::Nothing);
    for _ in 0..5 {
        assert!(!broken(&rig, &engine));
        assert_eq!(rig.chat("hello").await.status, 504);
    }
    assert!(broken(&rig, &engine));

    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    engine.does(Does::Break(1));
    // Each begins well, and none ends so.
    for _ in 0..12 {
        assert!(rig.stream("hello").await.rest().await.last().unwrap().contains("error"));
    }
    eventually("it is passed over", || broken(&rig, &engine)).await;
}

#[tokio::test]
async fn a_new_replica_gets_a_growing_share() {
    let (file, old, new) = (EndpointsFile::new(), Engine::start("m-0"), Engine::start("m-1"));
    let window = Duration::from_secs(3);
    file.list(&[&old]);
    let options = SchedulerOptions { endpoints: Some(file.path()), slow_start: window, ..quick() };
    let rig = std::sync::Arc::new(Rig::start(options).await);
    rig.ready("m", 1).await;
    let since = Instant::now();
    eventually("the first is no longer new", || since.elapsed() > window).await;
    for engine in [&old, &new] {
        engine.does(Does::Held).load(|load| load.max_sequences = 64.0);
    }
    let before = Instant::now();
    file.list(&[&old, &new]);
    rig.ready("m", 2).await;
    let mut streams = JoinSet::new();
    for n in 0..60 {
        let rig = std::sync::Arc::clone(&rig);
        streams.spawn(async move { rig.stream(&format!("{n}")).await.rest().await.len() });
    }
    eventually("all are placed", || old.open() + new.open() == 60).await;
    let (taken, passed) = (new.open() as f64, before.elapsed().as_secs_f64());
    // Two at once, and of the 72 that it runs and queues as large a part as of the window has passed.
    assert!(taken <= 2.0f64.max(72.0 * passed / window.as_secs_f64()), "{taken} after {passed} s");
    assert!(taken >= 1.0);
    for engine in [&old, &new] {
        engine.inner.ended.store(true, std::sync::atomic::Ordering::SeqCst);
        engine.let_go(1000);
    }
    while streams.join_next().await.is_some() {}
}
