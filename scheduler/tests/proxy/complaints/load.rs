//! How busy replicas are thought to be, what finding that out costs them, and what becomes of a scheduler
//! before very many clients.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::extract::State;
use strata_scheduler::{SchedulerOptions, proxy};

use super::passes;
use crate::support::{Does, Engine, PATIENCE, Rig, eventually, quick};

const SATURATION: &str = "inference_extension_flow_control_pool_saturation";

/// The replica's metrics never show a request: what was sent there shows by itself, and goes away with it.
#[tokio::test]
async fn llm_d_router_1474_saturation_rises_and_falls_with_what_is_in_flight() {
    let engine = Engine::start("m-0");
    engine.does(Does::Held).load(|load| {
        load.max_sequences = 4.0;
        load.counts = false;
    });
    let rig = Arc::new(Rig::before(&[&engine], quick()).await);
    assert!(rig.metric(SATURATION).await < 0.01);
    let streams: Vec<_> = (0..20)
        .map(|n| {
            let rig = Arc::clone(&rig);
            tokio::spawn(async move { rig.stream(&format!("{n}")).await.rest().await.len() })
        })
        .collect();
    eventually("some are held", || rig.held("m") > 0 && engine.open() + rig.held("m") == 20).await;
    assert!(rig.metric(SATURATION).await >= 1.0);
    engine.inner.ended.store(true, Ordering::SeqCst);
    engine.let_go(1000);
    for stream in streams {
        assert!(stream.await.unwrap() > 0);
    }
    eventually("the books are closed", || rig.states("m")[0].in_flight == 0).await;
    assert!(rig.metric(SATURATION).await < 0.01);
}

/// Clients, not connections of theirs: these would take more files than a test may open everywhere.
#[tokio::test]
async fn production_stack_448_a_thousand_clients_at_once_are_all_answered() {
    let engine = Engine::start("m-0");
    engine.does(Does::Late);
    let options = SchedulerOptions { queue_per_replica: 2000, queue_timeout: PATIENCE * 10, ..quick() };
    let rig = Rig::before(&[&engine], options).await;
    let asked: Vec<_> = (0..1200)
        .map(|n| {
            let request = rig.chat_request(&format!("client {n}"), false);
            tokio::spawn(proxy::handle(State(rig.scheduler.clone()), request))
        })
        .collect();
    eventually("all are there", || engine.open() > 0 && engine.open() + rig.held("m") == 1200).await;
    // What restarts a router is a probe that nobody answers.
    for probe in ["/health", "/ready"] {
        assert_eq!(rig.get(probe).await.status, 200);
    }
    engine.let_go(1200);
    for reply in asked {
        assert_eq!(reply.await.unwrap().status(), 200);
    }
    assert_eq!(engine.got().len(), 1200);
}

/// However many requests there are: a replica's metrics are asked for once in an interval, and not while
/// an answer is awaited.
#[tokio::test]
async fn aibrix_2569_requests_do_not_make_scrapes() {
    let engine = Engine::start("m-0");
    let interval = Duration::from_millis(100);
    let options = SchedulerOptions { scrape_interval: interval, scrape_timeout: PATIENCE * 4, ..quick() };
    let rig = Rig::before(&[&engine], options).await;
    let scrapes = || engine.inner.scrapes.load(Ordering::SeqCst);
    let (began, before) = (Instant::now(), scrapes());
    let mut requests = 0;
    while began.elapsed() < 5 * interval || requests < 100 {
        assert_eq!(rig.chat("hello").await.status, 200);
        requests += 1;
    }
    let most = began.elapsed().as_millis() / interval.as_millis() + 2;
    assert!((scrapes() - before) as u128 <= most, "{} scrapes, {most} intervals", scrapes() - before);

    engine.inner.metrics_status.store(0, Ordering::SeqCst);
    let before = scrapes();
    eventually("it is asked once more", || scrapes() > before).await;
    let before = scrapes();
    passes(5 * interval).await;
    assert_eq!(scrapes(), before, "another one while that waits");
}

/// Both replicas do not answer when they are asked for their metrics. A router that asks before it chooses
/// keeps its proxy waiting until that gives up.
#[tokio::test]
async fn aibrix_916_a_choice_waits_for_no_replica() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let options = SchedulerOptions { scrape_timeout: PATIENCE * 4, ..quick() };
    let rig = Rig::before(&[&a, &b], options).await;
    for engine in [&a, &b] {
        engine.inner.metrics_status.store(0, Ordering::SeqCst);
    }
    let scrapes = || [&a, &b].map(|engine| engine.inner.scrapes.load(Ordering::SeqCst));
    let before = scrapes();
    eventually("both are being asked", || scrapes().iter().zip(before).all(|(now, then)| *now > then)).await;
    for n in 0..20 {
        assert_eq!(rig.chat(&format!("{n}")).await.status, 200);
    }
}
