//! Priorities by the names that InferenceObjectives give them.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use serde_json::{Value, json};
use strata_scheduler::{Kubernetes, SchedulerOptions};

use crate::support::api_server::{Fault, MODELS, NAMESPACE, OBJECTIVES, PODS, model, pod};
use crate::support::picker::{Ask, DUPLEX, Picker, refused};
use crate::support::{ApiServer, Engine, Reply, Rig, eventually, quick};

fn objective(name: &str, priority: i32, pool: &str) -> Value {
    json!({
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferenceObjective",
        "metadata": {"name": name},
        "spec": {"priority": priority, "poolRef": {"group": "inference.networking.k8s.io", "name": pool}},
    })
}

/// A scheduler whose one replica is full, of a queue that holds one request.
async fn full(server: &ApiServer, engine: &Engine) -> Arc<Rig> {
    server.put(MODELS, model("m"));
    server.put(PODS, pod(engine, "m", "stable"));
    engine.load(|load| load.waiting = 50.0);
    let kubernetes = Kubernetes {
        namespace: Some(NAMESPACE.to_owned()),
        server: Some(server.url()),
        watch: Duration::from_secs(1),
        ..Kubernetes::default()
    };
    let options = SchedulerOptions { shed_after: Duration::from_millis(20), ..quick() };
    let rig = Rig::start(SchedulerOptions { kubernetes: Some(kubernetes), ..options }).await;
    rig.ready("m", 1).await;
    eventually("it is full", || rig.states("m")[0].waiting > 49.0).await;
    Arc::new(rig)
}

async fn ask(rig: &Rig, objective: &str) -> Reply {
    let mut request = rig.chat_request("hello", false);
    request.headers_mut().insert("x-gateway-inference-objective", HeaderValue::from_str(objective).unwrap());
    rig.send(request).await
}

/// How many wait with this priority.
async fn wait_with(rig: &Rig, priority: &str) -> bool {
    let text = String::from_utf8(rig.get("/metrics").await.body.to_vec()).unwrap();
    let name = "inference_extension_flow_control_queue_size{model_name=\"m\",priority=";
    text.lines().any(|line| line == format!("{name}\"{priority}\"}} 1"))
}

#[tokio::test]
async fn a_request_that_names_one_has_its_priority() {
    let (server, engine) = (ApiServer::start(), Engine::start("m-a"));
    server.put(OBJECTIVES, objective("batch", -5, "m"));
    server.put(OBJECTIVES, objective("gold", 7, "m"));
    let rig = full(&server, &engine).await;
    eventually("objectives are watched", || server.watches(OBJECTIVES) > 0).await;
    let asking = Arc::clone(&rig);
    let gold = tokio::spawn(async move { ask(&asking, "gold").await });
    eventually("it is held", || rig.held("m") == 1).await;
    assert!(wait_with(&rig, "7").await);
    assert_eq!(ask(&rig, "batch").await.error().1, "capacity_exceeded");
    let shed = rig.metric("strata_scheduler_refused_requests_total{model_name=\"m\",reason=\"shed\"}").await;
    assert!((shed - 1.0).abs() < 1e-9, "below zero it is not held");
    // Through a proxy that asks, too.
    let picker = Picker::of(&rig.scheduler).await;
    let headers = [("x-gateway-inference-objective", "batch")];
    let asking = picker.ask(&Ask { headers: &headers, ..Ask::new(DUPLEX) }).await;
    asking.send_body(br#"{"model":"m","messages":[]}"#, 1000);
    assert_eq!(refused(&asking.refusal().await).0, 429);
    // It changes, and goes: then its name says nothing.
    server.put(OBJECTIVES, objective("batch", 3, "m"));
    let held = |priority: &'static str, objective: &'static str| {
        let (rig, asking) = (Arc::clone(&rig), Arc::clone(&rig));
        async move {
            // Until the change is known it is refused at once.
            let asked = tokio::spawn(async move {
                loop {
                    let reply = ask(&asking, objective).await;
                    if reply.status == 200 {
                        return reply;
                    }
                }
            });
            let deadline = tokio::time::Instant::now() + crate::support::PATIENCE;
            while !wait_with(&rig, priority).await {
                assert!(tokio::time::Instant::now() < deadline, "none waits with the priority {priority}");
            }
            (asked,)
        }
    };
    let (third,) = held("3", "batch").await;
    server.delete(OBJECTIVES, "gold");
    let zeroth = {
        let deadline = tokio::time::Instant::now() + crate::support::PATIENCE;
        loop {
            let asking = Arc::clone(&rig);
            let asked = tokio::spawn(async move { ask(&asking, "gold").await });
            eventually("it is held", || rig.held("m") == 3).await;
            if wait_with(&rig, "0").await {
                break asked;
            }
            asked.abort();
            eventually("it has left", || rig.held("m") == 2).await;
            assert!(tokio::time::Instant::now() < deadline, "the object's end is never known");
        }
    };
    engine.load(|load| load.waiting = 0.0);
    for asked in [gold, third, zeroth] {
        assert_eq!(asked.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_cluster_without_the_kind_is_done_without_and_asked_again() {
    let (server, engine) = (ApiServer::start(), Engine::start("m-a"));
    server.put(OBJECTIVES, objective("gold", 7, "m"));
    server.fail(OBJECTIVES, [Fault::Status(404), Fault::Status(403)]);
    let rig = full(&server, &engine).await;
    let asking = Arc::clone(&rig);
    let asked = tokio::spawn(async move { ask(&asking, "gold").await });
    eventually("it is held", || rig.held("m") == 1).await;
    assert!(wait_with(&rig, "0").await, "an unknown name is zero");
    assert!(
        !String::from_utf8_lossy(&rig.get("/metrics").await.body).contains("kind=\"InferenceObjective\"")
    );
    eventually("objectives are watched", || server.watches(OBJECTIVES) > 0).await;
    let asking = Arc::clone(&rig);
    let second = tokio::spawn(async move { ask(&asking, "gold").await });
    eventually("it is held", || rig.held("m") == 2).await;
    assert!(wait_with(&rig, "7").await);
    engine.load(|load| load.waiting = 0.0);
    assert_eq!(
        (asked.await.unwrap().status, second.await.unwrap().status.as_u16()),
        (http::StatusCode::OK, 200)
    );
}
