//! Who waits for how long when replicas are full: priorities, flows, and whose place is taken.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use strata_scheduler::SchedulerOptions;
use tokio::task::JoinHandle;

use crate::support::{Engine, PATIENCE, Reply, Rig, eventually, quick};

/// A request of this objective and flow.
fn classed(rig: &Rig, text: &str, objective: &str, flow: &str) -> Request<Body> {
    let mut request = rig.chat_request(text, false);
    request.headers_mut().insert("x-gateway-inference-objective", objective.parse().unwrap());
    request.headers_mut().insert("x-gateway-inference-fairness-id", flow.parse().unwrap());
    request
}

fn ask(rig: &Arc<Rig>, text: &str, objective: &str, flow: &str) -> JoinHandle<Reply> {
    let (rig, request) = (Arc::clone(rig), classed(rig, text, objective, flow));
    tokio::spawn(async move { rig.send(request).await })
}

/// Asks, and waits until so many are held.
async fn held(rig: &Arc<Rig>, text: &str, objective: &str, flow: &str, count: usize) -> JoinHandle<Reply> {
    let asked = ask(rig, text, objective, flow);
    eventually("it is held", || rig.held("m") == count).await;
    asked
}

/// A replica that says that much waits at it.
async fn crowded(engine: &Engine, rig: &Rig, waiting: f64) {
    engine.load(|load| load.waiting = waiting);
    let read = || {
        let states = rig.states("m");
        states.iter().any(|s| s.url == engine.url() && (s.waiting - waiting).abs() < 1e-9)
    };
    eventually("the metrics are read", read).await;
}

/// The texts that an engine got, in order.
fn got(engine: &Engine) -> Vec<String> {
    let text = |body: &[u8]| {
        let body: serde_json::Value = serde_json::from_slice(body).unwrap();
        body["messages"][0]["content"].as_str().unwrap().to_owned()
    };
    engine.got().iter().map(|got| text(&got.body)).collect()
}

/// Which place each had. Two that were placed one after the other may come in the other order.
fn places(engine: &Engine, texts: &[&str]) -> Vec<usize> {
    let got = got(engine);
    texts.iter().map(|text| got.iter().position(|other| other == text).unwrap()).collect()
}

#[tokio::test]
async fn gaie_674_a_flow_with_many_does_not_delay_another() {
    let engine = Engine::start("m-0");
    let rig = Arc::new(Rig::before(&[&engine], quick()).await);
    crowded(&engine, &rig, 50.0).await;
    let mut asked = Vec::new();
    for n in 0..6 {
        asked.push(held(&rig, &format!("a{n}"), "priority-0", "a", n + 1).await);
    }
    for n in 0..2 {
        asked.push(held(&rig, &format!("b{n}"), "priority-0", "b", n + 7).await);
    }
    // Room for one at a time.
    crowded(&engine, &rig, 7.0).await;
    for reply in asked {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    let first = places(&engine, &["b0", "b1"]);
    assert!(first[0] <= 2 && first[1] <= 4, "{:?}", got(&engine));
    let waited = "inference_extension_flow_control_request_queue_duration_seconds_count";
    let label = "{model_name=\"m\",priority=\"0\",outcome=\"Dispatched\"}";
    assert!((rig.metric(&format!("{waited}{label}")).await - 8.0).abs() < 1e-9);
}

#[tokio::test]
async fn a_higher_priority_goes_first_and_our_engine_is_told() {
    let engine = Engine::start("m-0");
    engine.inner.ours.store(true, Ordering::SeqCst);
    let rig = Arc::new(Rig::before(&[&engine], quick()).await);
    crowded(&engine, &rig, 50.0).await;
    let mut asked = Vec::new();
    let objectives = ["priority-0", "gold", "priority-0", "priority-0", "priority-10", "5"];
    for (n, objective) in objectives.into_iter().enumerate() {
        asked.push(held(&rig, &format!("{n}"), objective, "a", n + 1).await);
    }
    let size = "inference_extension_flow_control_queue_size{model_name=\"m\",priority=";
    assert!((rig.metric(&format!("{size}\"10\"}}")).await - 1.0).abs() < 1e-9);
    assert!((rig.metric(&format!("{size}\"0\"}}")).await - 4.0).abs() < 1e-9);
    crowded(&engine, &rig, 7.0).await;
    for reply in asked {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    let first = places(&engine, &["4", "5"]);
    assert!(first[0] <= 1 && first[1] <= 2, "{:?}", got(&engine));
    let mut told: Vec<i64> = engine
        .got()
        .iter()
        .filter_map(|got| {
            serde_json::from_slice::<serde_json::Value>(&got.body).unwrap()["priority"].as_i64()
        })
        .collect();
    told.sort_unstable();
    assert_eq!(told, [-10, -5], "lower is earlier there");
}

#[tokio::test]
async fn an_engine_that_is_not_ours_is_told_no_priority() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    assert_eq!(rig.send(classed(&rig, "hello", "priority-10", "a")).await.status, 200);
    assert!(!String::from_utf8_lossy(&engine.got()[0].body).contains("priority"));
}

#[tokio::test]
async fn what_may_be_shed_is_refused_and_not_held() {
    let engine = Engine::start("m-0");
    let options = SchedulerOptions { shed_after: PATIENCE * 2, ..quick() };
    let rig = Arc::new(Rig::before(&[&engine], options).await);
    assert_eq!(rig.send(classed(&rig, "there is room", "priority--1", "a")).await.status, 200);
    crowded(&engine, &rig, 50.0).await;
    let alone = held(&rig, "alone", "priority--1", "a", 1).await;
    let other = held(&rig, "other", "priority-0", "b", 2).await;
    let reply = rig.send(classed(&rig, "behind another", "priority--1", "a")).await;
    assert_eq!(reply.error(), (429, "capacity_exceeded".to_owned(), "rate_limit_error".to_owned()));
    let wait: u64 = reply.header("retry-after").parse().unwrap();
    assert!((1..=60).contains(&wait));
    let shed = "strata_scheduler_refused_requests_total{model_name=\"m\",reason=\"shed\"}";
    assert!((rig.metric(shed).await - 1.0).abs() < 1e-9);
    crowded(&engine, &rig, 7.0).await;
    assert_eq!(
        (alone.await.unwrap().status, other.await.unwrap().status),
        (200.try_into().unwrap(), 200.try_into().unwrap())
    );
    assert_eq!(got(&engine).len(), 3);
}

#[tokio::test]
async fn what_may_be_shed_is_not_held_for_long() {
    let engine = Engine::start("m-0");
    let options =
        SchedulerOptions { shed_after: Duration::from_millis(50), queue_timeout: PATIENCE * 2, ..quick() };
    let rig = Rig::before(&[&engine], options).await;
    crowded(&engine, &rig, 50.0).await;
    let reply = rig.send(classed(&rig, "alone", "priority--1", "a")).await;
    assert_eq!(reply.error().0, 429);
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("priority below zero"));
}

#[tokio::test]
async fn a_full_queue_gives_the_place_of_the_lowest_and_of_the_greediest() {
    let engine = Engine::start("m-0");
    let options = SchedulerOptions { queue_per_replica: 4, ..quick() };
    let rig = Arc::new(Rig::before(&[&engine], options).await);
    crowded(&engine, &rig, 50.0).await;
    let mut asked = Vec::new();
    for n in 0..4 {
        asked.push(held(&rig, &format!("greedy {n}"), "priority-0", "greedy", n + 1).await);
    }
    let refused = |reply: &Reply| {
        let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        (reply.status.as_u16(), message.contains("took this one's place"))
    };
    let high = ask(&rig, "high", "priority-5", "greedy");
    assert_eq!(refused(&asked.pop().unwrap().await.unwrap()), (429, true));
    let modest = ask(&rig, "modest", "priority-0", "modest");
    assert_eq!(refused(&asked.pop().unwrap().await.unwrap()), (429, true));
    eventually("four are held", || rig.held("m") == 4).await;
    // None has less right to a place than this one.
    let low = rig.send(classed(&rig, "low", "priority-0", "greedy")).await;
    assert_eq!(refused(&low), (429, false));
    crowded(&engine, &rig, 7.0).await;
    for reply in asked.into_iter().chain([high, modest]) {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    let mut all = got(&engine);
    all.sort_unstable();
    assert_eq!(all, ["greedy 0", "greedy 1", "high", "modest"]);
}

#[tokio::test]
async fn a_full_queue_hides_no_place_that_none_before_wants() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let options = SchedulerOptions { queue_per_replica: 2, queue_timeout: PATIENCE * 4, ..quick() };
    let rig = Arc::new(Rig::before(&[&a, &b], options).await);
    let prompts = ["x".repeat(2000), "y".repeat(2000)];
    for (prompt, full, free) in [(&prompts[0], &b, &a), (&prompts[1], &a, &b)] {
        crowded(full, &rig, 50.0).await;
        crowded(free, &rig, 0.0).await;
        assert_eq!(rig.chat(prompt).await.status, 200);
    }
    // The one takes nothing, the other those whose prompts it has.
    crowded(&b, &rig, 4.0).await;
    let mut asked = Vec::new();
    for n in 0..4 {
        asked.push(held(&rig, &prompts[0], "priority-0", "a", n + 1).await);
    }
    let reply = rig.chat(&prompts[1]).await;
    assert_eq!((reply.status.as_u16(), b.got().len()), (200, 2));
    let fifth = rig.send(classed(&rig, &prompts[0], "priority-0", "a")).await;
    assert_eq!((fifth.status.as_u16(), rig.held("m")), (429, 4));
    crowded(&a, &rig, 0.0).await;
    for reply in asked {
        assert_eq!(reply.await.unwrap().status, 200);
    }
}
