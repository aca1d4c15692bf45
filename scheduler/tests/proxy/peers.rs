//! Several schedulers of one model hold together what one alone would.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use strata_scheduler::{Kubernetes, SchedulerOptions};
use tokio::task::JoinHandle;

use crate::support::api_server::{MODELS, NAMESPACE, PODS, POOLS, model, pod};
use crate::support::{ApiServer, Engine, Reply, Rig, eventually, quick};

/// A queue of this many requests.
fn holding(requests: usize) -> SchedulerOptions {
    SchedulerOptions { queue_per_replica: requests, ..quick() }
}

async fn live(rig: &Rig, count: usize) {
    let deadline = tokio::time::Instant::now() + crate::support::PATIENCE;
    loop {
        let schedulers = rig.metric("strata_scheduler_live_schedulers").await;
        if (schedulers - count as f64).abs() < 1e-9 {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{schedulers} are live, not {count}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn crowd(rig: &Rig, engine: &Engine) {
    engine.load(|load| load.waiting = 50.0);
    eventually("it is full", || rig.states("m").iter().all(|s| s.waiting > 49.0)).await;
}

/// Sends twenty requests, of which so many are held and all others refused.
async fn holds(rig: &Arc<Rig>, count: usize) {
    let ask = |n| {
        let rig = Arc::clone(rig);
        tokio::spawn(async move { rig.chat(&format!("{n}")).await })
    };
    let asked: Vec<JoinHandle<Reply>> = (0..20).map(ask).collect();
    eventually(&format!("{count} are held and the others refused"), || {
        let refused = asked.iter().filter(|task| task.is_finished()).count();
        rig.held("m") == count && refused == 20 - count
    })
    .await;
    for task in asked {
        task.abort();
    }
    eventually("they have left", || rig.held("m") == 0).await;
}

#[tokio::test]
async fn schedulers_that_are_named_share_the_queue_while_they_are_there() {
    let engine = Engine::start("m-0");
    let second = Rig::before(&[&engine], quick()).await;
    let options = SchedulerOptions { peers: vec![second.url.clone()], ..holding(12) };
    let rig = Arc::new(Rig::before(&[&engine], options).await);
    live(&rig, 2).await;
    crowd(&rig, &engine).await;
    holds(&rig, 6).await;
    drop(second);
    live(&rig, 1).await;
    holds(&rig, 12).await;
}

#[tokio::test]
async fn one_that_leaves_counts_no_more() {
    let engine = Engine::start("m-0");
    let second = Rig::before(&[&engine], quick()).await;
    let options = SchedulerOptions { peers: vec![second.url.clone()], ..holding(12) };
    let rig = Rig::before(&[&engine], options).await;
    live(&rig, 2).await;
    second.scheduler.leave();
    live(&rig, 1).await;
}

/// A ready pod of a scheduler.
fn scheduler(name: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "status": {"podIP": "10.9.9.9", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn cluster(server: &ApiServer, own: &str, pool: Option<&str>) -> SchedulerOptions {
    let kubernetes = Kubernetes {
        namespace: Some(NAMESPACE.to_owned()),
        server: Some(server.url()),
        pod: Some(own.to_owned()),
        inference_pool: pool.map(str::to_owned),
        ..Kubernetes::default()
    };
    SchedulerOptions { kubernetes: Some(kubernetes), ..holding(12) }
}

#[tokio::test]
async fn the_schedulers_of_a_namespace_share_the_queue() {
    let (server, engine) = (ApiServer::start(), Engine::start("m-a"));
    let labels = json!({"app.kubernetes.io/component": "scheduler"});
    server.put(MODELS, model("m"));
    server.put(PODS, pod(&engine, "m", "stable"));
    for name in ["scheduler-0", "scheduler-1", "scheduler-2"] {
        server.put(PODS, scheduler(name, &labels));
    }
    let rig = Arc::new(Rig::start(cluster(&server, "scheduler-0", None)).await);
    rig.ready("m", 1).await;
    live(&rig, 3).await;
    crowd(&rig, &engine).await;
    holds(&rig, 4).await;
    let unready = |pod: &mut Value| pod["status"]["conditions"][0]["status"] = json!("False");
    server.change(PODS, "scheduler-2", unready);
    live(&rig, 2).await;
    server.change(PODS, "scheduler-0", unready);
    server.delete(PODS, "scheduler-1");
    live(&rig, 1).await;
    assert_eq!(rig.states("m").len(), 1, "they are no replicas");
}

#[tokio::test]
async fn a_pools_schedulers_are_those_that_are_labelled_alike() {
    let (server, engine) = (ApiServer::start(), Engine::start("pod-a"));
    let port: u16 = engine.url().rsplit_once(':').unwrap().1.parse().unwrap();
    let mut replica = pod(&engine, "", "stable");
    replica["metadata"]["labels"] = json!({"app": "llama"});
    server.put(PODS, replica);
    server.put(PODS, scheduler("p-0", &json!({"app": "picker", "pod-template-hash": "a"})));
    server.put(PODS, scheduler("p-1", &json!({"app": "picker", "pod-template-hash": "b"})));
    server.put(PODS, scheduler("q-0", &json!({"app": "another"})));
    server.put(
        POOLS,
        json!({
            "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool",
            "metadata": {"name": "models"},
            "spec": {"selector": {"matchLabels": {"app": "llama"}}, "targetPorts": [{"number": port}]},
        }),
    );
    let rig = Rig::start(cluster(&server, "p-0", Some("models"))).await;
    rig.ready("m", 1).await;
    live(&rig, 2).await;
}
