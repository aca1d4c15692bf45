//! Models and replicas from a Kubernetes API server, which fails in every way it can.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use strata_scheduler::{Kubernetes, SchedulerOptions};

use crate::support::api_server::{End, Fault, MODELS, NAMESPACE, PODS, model, pod};
use crate::support::{ApiServer, Does, Engine, Rig, eventually, quick};

async fn watching(server: &ApiServer) -> Rig {
    let kubernetes = Kubernetes {
        namespace: Some(NAMESPACE.to_owned()),
        server: Some(server.url()),
        ..Kubernetes::default()
    };
    Rig::start(SchedulerOptions { kubernetes: Some(kubernetes), ..quick() }).await
}

/// A scheduler that has found the model `m` and these engines as its pods.
async fn found(server: &ApiServer, engines: &[&Engine]) -> Rig {
    server.put(MODELS, model("m"));
    for engine in engines {
        server.put(PODS, pod(engine, "m", "stable"));
    }
    let rig = watching(server).await;
    eventually("models and pods are known", || rig.scheduler.is_discovered()).await;
    rig.ready("m", engines.len()).await;
    rig
}

fn names(rig: &Rig) -> Vec<String> {
    rig.states("m").into_iter().map(|state| state.name).collect()
}

#[tokio::test]
async fn it_is_not_ready_before_it_knows_all_and_then_without_a_replica_too() {
    let server = ApiServer::start();
    server.put(MODELS, model("m"));
    server.fail(MODELS, [Fault::Status(500), Fault::Status(503), Fault::Status(429)]);
    let rig = watching(&server).await;
    eventually("pods are listed", || server.lists(PODS) > 0).await;
    assert_eq!(rig.get("/health").await.status, 200, "the API server says nothing about this process");
    assert_eq!(rig.get("/ready").await.status, 503);
    let reply = rig.chat("hello").await;
    assert_eq!(
        reply.error(),
        (503, "overloaded".to_owned(), "server_error".to_owned()),
        "the model is not unknown, only not known yet"
    );
    eventually("models and pods are known", || rig.scheduler.is_discovered()).await;
    assert_eq!(rig.get("/ready").await.status, 200);
    assert_eq!(rig.get("/v1/models").await.json()["data"][0]["id"], "m");
    let failures = rig.metric("strata_scheduler_watch_failures_total{kind=\"ModelDeployment\"}").await;
    assert!((failures - 3.0).abs() < 1e-9, "{failures}");
}

#[tokio::test]
async fn pods_come_and_go_and_no_stream_is_cut() {
    let server = ApiServer::start();
    let (a, b) = (Engine::start("m-a"), Engine::start("m-b"));
    let rig = found(&server, &[&a]).await;
    a.does(Does::Held).let_go(1);
    let mut stream = rig.stream("hello").await;
    stream.event().await.unwrap();

    let unready = |p: &mut serde_json::Value| p["status"]["conditions"][0]["status"] = json!("False");
    let mut starting = pod(&b, "m", "stable");
    unready(&mut starting);
    server.put(PODS, starting);
    server.change(PODS, "m-a", |p| p["metadata"]["deletionTimestamp"] = json!("2026-11-24T01:00:00Z"));
    eventually("the pod that is deleted is not routed to", || names(&rig).is_empty()).await;
    server.put(PODS, pod(&b, "m", "stable"));
    rig.ready("m", 1).await;
    assert_eq!(rig.chat("other").await.header("x-strata-replica"), "m-b");
    server.delete(PODS, "m-a");

    server.change(PODS, "m-b", unready);
    eventually("an unready pod is not routed to", || names(&rig).is_empty()).await;
    a.inner.ended.store(true, Ordering::SeqCst);
    a.let_go(100);
    assert_eq!(stream.rest().await.last().unwrap(), "[DONE]");

    server.delete(MODELS, "m");
    eventually("the model is gone", || rig.scheduler.registry.pool("m").is_none()).await;
    assert_eq!(rig.chat("hello").await.error().1, "model_not_found");
}

#[tokio::test]
async fn a_pod_that_was_unready_for_a_moment_is_known_as_it_was() {
    let server = ApiServer::start();
    let engine = Engine::start("m-a");
    let rig = found(&server, &[&engine]).await;
    let prompt = "x".repeat(4000);
    assert_eq!(rig.chat(&prompt).await.status, 200);
    server.change(PODS, "m-a", |p| p["status"]["conditions"][0]["status"] = json!("False"));
    eventually("it is not routed to", || names(&rig).is_empty()).await;
    server.change(PODS, "m-a", |p| p["status"]["conditions"][0]["status"] = json!("True"));
    rig.ready("m", 1).await;
    let decision = rig.chat(&prompt).await.header("x-strata-decision").to_owned();
    assert!(decision.contains("cached_blocks=15/15"), "{decision}");
}

#[tokio::test]
async fn a_watch_that_drops_is_taken_up_where_it_was() {
    let server = ApiServer::start();
    let (a, b) = (Engine::start("m-a"), Engine::start("m-b"));
    let rig = found(&server, &[&a]).await;
    for how in [End::Clean, End::Broken] {
        let watches = server.watches(PODS);
        server.end_watches(how);
        eventually("it watches again", || server.watches(PODS) > watches).await;
    }
    assert_eq!(server.lists(PODS), 1, "nothing is listed a second time");
    server.put(PODS, pod(&b, "m", "stable"));
    rig.ready("m", 2).await;
}

#[tokio::test]
async fn what_was_missed_is_listed_again_when_it_is_too_late_to_take_up_a_watch() {
    let server = ApiServer::start();
    let (a, b, c) = (Engine::start("m-a"), Engine::start("m-b"), Engine::start("m-c"));
    let rig = found(&server, &[&a]).await;
    for (by_status, goes, comes) in [(false, &a, &b), (true, &b, &c)] {
        // While it cannot watch, it misses that one pod goes and another comes.
        server.fail(PODS, [Fault::Status(500)]);
        server.end_watches(End::Broken);
        server.delete(PODS, goes.name());
        server.put(PODS, pod(comes, "m", "stable"));
        server.compact(by_status);
        eventually("only the new one is routed to", || names(&rig) == [comes.name()]).await;
    }
    assert!(server.lists(PODS) >= 3);
    rig.ready("m", 1).await;
    assert_eq!(rig.chat("hello").await.header("x-strata-replica"), "m-c");
}

#[tokio::test]
async fn while_the_api_server_is_away_the_last_state_stays_in_force() {
    let mut server = ApiServer::start();
    let (mut a, b, c) = (Engine::start("m-a"), Engine::start("m-b"), Engine::start("m-c"));
    let rig = found(&server, &[&a, &b]).await;
    server.kill();
    for n in 0..5 {
        assert_eq!(rig.chat(&format!("{n}")).await.status, 200);
    }
    // A replica that dies meanwhile is noticed without it.
    a.kill();
    rig.ready("m", 1).await;
    assert_eq!(rig.chat("hello").await.header("x-strata-replica"), "m-b");
    assert_eq!(rig.get("/ready").await.status, 200);
    assert_eq!(rig.get("/health").await.status, 200);
    server.delete(PODS, "m-a");
    server.put(PODS, pod(&c, "m", "stable"));
    server.restart();
    eventually("what happened meanwhile is known", || names(&rig) == ["m-b", "m-c"]).await;
}

#[tokio::test]
async fn an_object_that_cannot_be_read_stops_only_itself() {
    let server = ApiServer::start();
    let (a, b) = (Engine::start("m-a"), Engine::start("m-b"));
    let broken_pod = json!({"metadata": {"name": "m-x", "labels": {
        "app.kubernetes.io/component": "engine", "strata.dev/model-deployment": "m"}}, "spec": "broken"});
    let broken_model = json!({"metadata": {"name": "x"}, "spec": {"model": {"name": 7}}});
    server.put(PODS, broken_pod.clone());
    server.put(MODELS, broken_model.clone());
    let rig = found(&server, &[&a]).await;
    server.put(PODS, broken_pod);
    server.put(MODELS, broken_model);
    server.put(PODS, pod(&b, "m", "stable"));
    server.put(MODELS, model("n"));
    rig.ready("m", 2).await;
    eventually("the other model is known", || rig.scheduler.registry.pool("n").is_some()).await;
    assert!(rig.metric("strata_scheduler_malformed_objects_total{kind=\"Pod\"}").await >= 2.0);

    // What breaks later keeps its last good state, over a new list too.
    server.change(PODS, "m-a", |p| p["spec"]["containers"] = json!("broken"));
    server.change(MODELS, "m", |m| m["spec"] = json!(null));
    server.compact(false);
    server.end_watches(End::Clean);
    server.put(MODELS, model("o"));
    eventually("a later model is known", || rig.scheduler.registry.pool("o").is_some()).await;
    eventually("pods are listed again", || server.lists(PODS) > 1).await;
    rig.ready("m", 2).await;
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_asked_again() {
    let server = ApiServer::start();
    server.put(MODELS, model("m"));
    server.fail(PODS, [Fault::Hang]);
    server.fail(MODELS, [Fault::Slow(Duration::from_millis(300))]);
    let kubernetes = Kubernetes {
        namespace: Some(NAMESPACE.to_owned()),
        server: Some(server.url()),
        watch: Duration::from_secs(1),
        ..Kubernetes::default()
    };
    let rig = Rig::start(SchedulerOptions { kubernetes: Some(kubernetes), ..quick() }).await;
    eventually("models and pods are known", || rig.scheduler.is_discovered()).await;
    // A watch that hangs silently is given up too.
    let engine = Engine::start("m-a");
    server.fail(PODS, [Fault::Hang]);
    server.end_watches(End::Clean);
    server.put(PODS, pod(&engine, "m", "stable"));
    rig.ready("m", 1).await;
}

#[tokio::test]
async fn rules_come_from_the_model_and_the_older_of_two_serves() {
    let server = ApiServer::start();
    let (a, b) = (Engine::start("m-a"), Engine::start("m-b"));
    let rig = Arc::new(found(&server, &[&a]).await);
    server.change(MODELS, "m", |m| {
        m["spec"]["routing"] = json!({"policy": "RoundRobin", "weights": {"prefix": 0}});
    });
    let mut younger = model("a-younger");
    younger["spec"]["model"]["name"] = json!("m");
    younger["metadata"]["creationTimestamp"] = json!("2026-11-24T09:00:00Z");
    server.put(MODELS, younger);
    server.put(PODS, pod(&b, "a-younger", "stable"));
    let pool = rig.scheduler.registry.pool("m").unwrap();
    eventually("the rules are known", || pool.rules.load().policy.is_some()).await;
    assert!(pool.rules.load().weights.hit.abs() < 1e-9);
    assert_eq!(names(&rig), ["m-a"]);
    assert!(rig.chat("hello").await.header("x-strata-decision").ends_with("it was its turn"));
    server.delete(MODELS, "m");
    eventually("the younger one serves", || names(&rig) == ["m-b"]).await;
}
