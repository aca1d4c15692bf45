use std::sync::Arc;
use std::time::Duration;

use strata_scheduler::SchedulerOptions;
use strata_wire::replicas::Endpoints;

use crate::support::{Does, EndpointsFile, Engine, Reply, Rig, eventually, quick};

fn short(queue_timeout_ms: u64) -> SchedulerOptions {
    SchedulerOptions { queue_timeout: Duration::from_millis(queue_timeout_ms), ..quick() }
}

fn ask(rig: &Arc<Rig>, text: &str) -> tokio::task::JoinHandle<Reply> {
    let (rig, text) = (Arc::clone(rig), text.to_owned());
    tokio::spawn(async move { rig.chat(&text).await })
}

/// A replica that says that much waits at it.
async fn crowded(engine: &Engine, rig: &Rig, waiting: f64) {
    engine.load(|load| load.waiting = waiting);
    eventually("the metrics are read", || (rig.states("m")[0].waiting - waiting).abs() < 1e-9).await;
}

#[tokio::test]
async fn a_full_replica_holds_requests_back_and_lets_them_go_in_order() {
    let engine = Engine::start("m-0");
    let rig = Arc::new(Rig::before(&[&engine], quick()).await);
    crowded(&engine, &rig, 50.0).await;
    assert!(rig.metric("inference_extension_flow_control_pool_saturation").await >= 1.0);
    let mut asked = Vec::new();
    for n in 0..5 {
        asked.push(ask(&rig, &format!("number {n}")));
        eventually("it is held", || rig.held("m") == n + 1).await;
    }
    assert!(engine.got().is_empty());
    assert!((rig.metric("inference_extension_flow_control_queue_size").await - 5.0).abs() < 1e-9);
    // Room for one at a time.
    crowded(&engine, &rig, 7.0).await;
    for reply in asked {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    engine.got_in_order(&(0..5).map(|n| format!("number {n}")).collect::<Vec<_>>());
    eventually("nothing is held", || rig.held("m") == 0).await;
    assert!(rig.metric("inference_extension_flow_control_pool_saturation").await < 1.0);
}

#[tokio::test]
async fn waiting_too_long_for_a_full_replica_is_429_and_for_none_is_503() {
    let mut engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], short(150)).await;
    crowded(&engine, &rig, 50.0).await;
    let reply = rig.chat("hello").await;
    assert_eq!(reply.error(), (429, "capacity_exceeded".to_owned(), "rate_limit_error".to_owned()));
    assert_eq!(reply.header("retry-after"), "1");
    engine.kill();
    rig.ready("m", 0).await;
    let reply = rig.chat("hello").await;
    assert_eq!(reply.error(), (503, "overloaded".to_owned(), "server_error".to_owned()));
    assert_eq!(reply.header("retry-after"), "1");
    assert_eq!(rig.get("/ready").await.status, 503);
    assert!(
        rig.metric("inference_objective_request_error_total{model_name=\"m\",error_code=\"503\"}").await
            >= 1.0
    );
}

#[tokio::test]
async fn no_more_wait_than_the_bound() {
    let engine = Engine::start("m-0");
    let options = SchedulerOptions { queue_per_replica: 3, ..quick() };
    let rig = Arc::new(Rig::before(&[&engine], options).await);
    crowded(&engine, &rig, 50.0).await;
    let asked: Vec<_> = (0..3).map(|_| ask(&rig, "held")).collect();
    eventually("three are held", || rig.held("m") == 3).await;
    let reply = rig.chat("one too many").await;
    assert_eq!(reply.error().0, 429);
    crowded(&engine, &rig, 0.0).await;
    for reply in asked {
        assert_eq!(reply.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn no_more_bytes_wait_than_the_bound() {
    let engine = Engine::start("m-0");
    let rig = Arc::new(Rig::before(&[&engine], SchedulerOptions { queue_bytes: 10_000, ..quick() }).await);
    crowded(&engine, &rig, 50.0).await;
    let first = ask(&rig, &"x".repeat(8_000));
    eventually("it is held", || rig.held("m") == 1).await;
    assert_eq!(rig.chat(&"x".repeat(8_000)).await.error().0, 429);
    let second = ask(&rig, "short");
    eventually("it is held", || rig.held("m") == 2).await;
    crowded(&engine, &rig, 0.0).await;
    assert_eq!(
        (first.await.unwrap().status, second.await.unwrap().status),
        (200.try_into().unwrap(), 200.try_into().unwrap())
    );
}

#[tokio::test]
async fn one_that_leaves_the_queue_frees_its_place() {
    let engine = Engine::start("m-0");
    let rig = Arc::new(Rig::before(&[&engine], SchedulerOptions { queue_per_replica: 1, ..quick() }).await);
    crowded(&engine, &rig, 50.0).await;
    let first = ask(&rig, "held");
    eventually("it is held", || rig.held("m") == 1).await;
    first.abort();
    eventually("its place is free", || rig.held("m") == 0).await;
}

#[tokio::test]
async fn a_replica_takes_no_more_than_it_can_run_and_queue_whatever_its_metrics_say() {
    let engine = Engine::start("m-0");
    engine.does(Does::Held).load(|load| {
        load.max_sequences = 4.0;
        load.counts = false;
    });
    let rig = Arc::new(Rig::before(&[&engine], quick()).await);
    let streams: Vec<_> = (0..20)
        .map(|n| {
            let rig = Arc::clone(&rig);
            tokio::spawn(async move { rig.stream(&format!("{n}")).await.rest().await.len() })
        })
        .collect();
    eventually("some are held", || engine.open() + rig.held("m") == 20).await;
    assert_eq!(engine.open(), 12, "four run and eight wait there");
    engine.inner.ended.store(true, std::sync::atomic::Ordering::SeqCst);
    engine.let_go(1000);
    for stream in streams {
        assert!(stream.await.unwrap() > 0);
    }
}

#[tokio::test]
async fn a_replica_is_not_busy_for_ever() {
    let engine = Engine::start("m-0");
    let rig = Arc::new(Rig::before(&[&engine], quick()).await);
    crowded(&engine, &rig, 1000.0).await;
    let held = ask(&rig, "hello");
    eventually("it is held", || rig.held("m") == 1).await;
    // The metric that said so disappears: what is not known holds nobody back.
    engine.load(|load| load.text = Some("something_else 1\n".to_owned()));
    assert_eq!(held.await.unwrap().status, 200);

    // The same when metrics come so late that they are no longer true.
    engine.load(|load| load.text = None);
    crowded(&engine, &rig, 1000.0).await;
    let held = ask(&rig, "hello");
    eventually("it is held", || rig.held("m") == 1).await;
    crowded(&engine, &rig, 0.0).await;
    assert_eq!(held.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_held_request_finds_the_replica_that_comes() {
    let (file, engine) = (EndpointsFile::new(), Engine::start("m-0"));
    file.list(&[]);
    let rig = Arc::new(Rig::start(SchedulerOptions { endpoints: Some(file.path()), ..quick() }).await);
    eventually("the file is read", || rig.scheduler.registry.pool("m").is_some()).await;
    let held = ask(&rig, "hello");
    eventually("it is held", || rig.held("m") == 1).await;
    file.list(&[&engine]);
    assert_eq!(held.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_held_request_whose_model_goes_is_told_so() {
    let file = EndpointsFile::new();
    file.list(&[]);
    let rig = Arc::new(Rig::start(SchedulerOptions { endpoints: Some(file.path()), ..quick() }).await);
    eventually("the file is read", || rig.scheduler.registry.pool("m").is_some()).await;
    let held = ask(&rig, "hello");
    eventually("it is held", || rig.held("m") == 1).await;
    file.write(&Endpoints::default());
    assert_eq!(held.await.unwrap().error().1, "model_not_found");
}

#[tokio::test]
async fn the_deadline_ends_the_wait() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    crowded(&engine, &rig, 50.0).await;
    let with = |ms: &str| {
        let mut request = rig.chat_request("hello", false);
        request.headers_mut().insert("x-strata-deadline-ms", ms.parse().unwrap());
        request
    };
    assert_eq!(
        rig.send(with("80")).await.error(),
        (504, "upstream_timeout".to_owned(), "server_error".to_owned())
    );
    assert_eq!(rig.send(with("0")).await.status, 504);
    assert_eq!(rig.send(with("soon")).await.status, 400);
    crowded(&engine, &rig, 0.0).await;
    engine.does(Does::Nothing);
    assert_eq!(rig.send(with("80")).await.status, 504);
    eventually("the engine is told", || engine.open() == 0).await;
    engine.does(Does::Answer);
    assert_eq!(rig.send(with("5000")).await.status, 200);
    let passed =
        engine.got().last().unwrap().headers["x-strata-deadline-ms"].to_str().unwrap().parse::<u64>();
    assert!((1..=5000).contains(&passed.unwrap()));
}
