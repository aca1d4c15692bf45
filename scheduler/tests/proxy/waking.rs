//! Models without a replica: asleep, or starting.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::json;
use strata_scheduler::SchedulerOptions;
use strata_wire::replicas::{Demand, Endpoints, ModelEndpoints, ReplicaReport};

use crate::support::{Does, EndpointsFile, Engine, Reply, Rig, eventually, quick};

/// A scheduler that knows the model `m`, of which nothing runs.
async fn asleep(file: &EndpointsFile, options: SchedulerOptions) -> Arc<Rig> {
    file.list(&[]);
    let rig = Rig::start(SchedulerOptions { endpoints: Some(file.path()), ..options }).await;
    eventually("the file is read", || rig.scheduler.registry.pool("m").is_some()).await;
    Arc::new(rig)
}

fn ask(rig: &Arc<Rig>, text: &str) -> tokio::task::JoinHandle<Reply> {
    let (rig, text) = (Arc::clone(rig), text.to_owned());
    tokio::spawn(async move { rig.chat(&text).await })
}

fn demand(rig: &Rig) -> Demand {
    rig.scheduler.registry.report(rig.scheduler.now()).demand["m"]
}

#[tokio::test]
async fn requests_wait_for_a_model_that_wakes_longer_than_for_one_that_is_busy() {
    let (file, engine) = (EndpointsFile::new(), Engine::start("m-0"));
    let patience = Duration::from_millis(500);
    let rig = asleep(&file, SchedulerOptions { queue_timeout: patience, ..quick() }).await;
    let (began, mut asked) = (Instant::now(), Vec::new());
    for n in 0..6 {
        asked.push(ask(&rig, &format!("number {n}")));
        eventually("it is held", || rig.held("m") == n + 1).await;
    }
    assert_eq!(demand(&rig), Demand { held: 6, in_flight: 0, idle_s: 0.0 });
    eventually("time passes", || began.elapsed() > 2 * patience).await;
    // Long after a busy model would have been given up on, a replica comes, with room for one at a
    // time: they are placed in order.
    engine.load(|load| load.waiting = 7.0);
    file.list(&[&engine]);
    for reply in asked {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    engine.got_in_order(&(0..6).map(|n| format!("number {n}")).collect::<Vec<_>>());
    eventually("all is done", || demand(&rig).in_flight == 0).await;
}

#[tokio::test]
async fn one_that_does_not_wake_in_time_is_503_and_says_so() {
    let file = EndpointsFile::new();
    let rig = asleep(&file, SchedulerOptions { wake_timeout: Duration::from_millis(80), ..quick() }).await;
    let reply = rig.chat("hello").await;
    assert_eq!(reply.error(), (503, "model_starting".to_owned(), "server_error".to_owned()));
    assert_eq!(reply.header("retry-after"), "5");
    insta::assert_snapshot!(reply.json()["error"]["message"].as_str().unwrap(), @"the model `m` is asleep or starting and did not start in time; it is being woken, try again shortly");

    let rig = asleep(&file, quick()).await;
    let mut request = rig.chat_request("hello", false);
    request.headers_mut().insert("x-strata-deadline-ms", "60".parse().unwrap());
    assert_eq!(rig.send(request).await.error().1, "model_starting", "the deadline ends the wait, too");
}

#[tokio::test]
async fn no_more_wait_for_a_sleeper_than_the_bound() {
    let file = EndpointsFile::new();
    let options = SchedulerOptions { queue_per_replica: 3, queue_bytes: 20_000, ..quick() };
    let rig = asleep(&file, options).await;
    let large = ask(&rig, &"x".repeat(15_000));
    eventually("it is held", || rig.held("m") == 1).await;
    assert_eq!(rig.chat(&"x".repeat(15_000)).await.error().1, "model_starting");
    let rest: Vec<_> = (0..2).map(|_| ask(&rig, "short")).collect();
    eventually("three are held", || rig.held("m") == 3).await;
    let reply = rig.chat("one too many").await;
    assert_eq!((reply.error().0, reply.header("retry-after")), (503, "5"));
    // Those who leave free their places and ask for nothing any more.
    for asked in rest.iter().chain([&large]) {
        asked.abort();
    }
    eventually("nobody waits", || demand(&rig).held == 0 && demand(&rig).in_flight == 0).await;
}

#[tokio::test]
async fn sleepers_share_a_bound_on_bytes() {
    let file = EndpointsFile::new();
    let both = ["m", "n"].map(|name| (name.to_owned(), ModelEndpoints::default()));
    file.write(&Endpoints { models: both.into() });
    let options = SchedulerOptions { endpoints: Some(file.path()), queue_bytes_all: 20_000, ..quick() };
    let rig = Arc::new(Rig::start(options).await);
    eventually("the file is read", || rig.scheduler.registry.pool("n").is_some()).await;
    let large = ask(&rig, &"x".repeat(15_000));
    eventually("it is held", || rig.held("m") == 1).await;
    let body = json!({"model": "n", "prompt": "y".repeat(15_000)}).to_string();
    let other = || rig.send(rig.request("/v1/completions", body.clone()));
    assert_eq!(other().await.error().1, "model_starting");
    assert_eq!(rig.held("n"), 0);
    large.abort();
    eventually("nothing is held", || rig.held("m") == 0).await;
    tokio::select! {
        reply = other() => panic!("{reply:?}"),
        () = eventually("the other is held", || rig.held("n") == 1) => {}
    }
}

#[tokio::test]
async fn waiting_for_a_replica_that_loads_is_demand() {
    let (file, engine) = (EndpointsFile::new(), Engine::start("m-0"));
    engine.inner.health.store(503, Ordering::SeqCst);
    let rig = asleep(&file, quick()).await;
    let asked = ask(&rig, "hello");
    eventually("it is held", || rig.held("m") == 1).await;
    // It is listed and loads, goes and comes again: the request is held all the time.
    for listed in [true, false, true, false] {
        file.list(&[&engine][..usize::from(listed)]);
        eventually("the list is read", || rig.states("m").len() == usize::from(listed)).await;
        assert_eq!(demand(&rig), Demand { held: 1, in_flight: 0, idle_s: 0.0 });
    }
    engine.inner.health.store(200, Ordering::SeqCst);
    engine.does(Does::Held).let_go(1);
    file.list(&[&engine]);
    eventually("it is placed", || demand(&rig) == Demand { held: 0, in_flight: 1, idle_s: 0.0 }).await;
    engine.inner.ended.store(true, Ordering::SeqCst);
    engine.let_go(100);
    assert_eq!(asked.await.unwrap().status, 200);
    eventually("it is idle", || demand(&rig).idle_s > 0.0).await;
    let report: ReplicaReport = serde_json::from_slice(&rig.get("/replicas").await.body).unwrap();
    assert_eq!((report.demand["m"].held, report.demand["m"].in_flight), (0, 0));
}

#[tokio::test]
async fn a_sleeping_model_is_listed_as_its_replicas_described_it() {
    let (file, engine) = (EndpointsFile::new(), Engine::start("m-0"));
    let rig = asleep(&file, quick()).await;
    file.list(&[&engine]);
    rig.ready("m", 1).await;
    let awake = rig.get("/v1/models/m").await.json();
    file.list(&[]);
    eventually("it sleeps", || rig.states("m").is_empty()).await;
    assert_eq!(rig.get("/v1/models/m").await.json(), awake);
    assert_eq!(rig.get("/v1/models").await.json()["data"][0], awake);
}
