//! An InferencePool of the Gateway API as the source of replicas.

use std::time::Duration;

use serde_json::{Value, json};
use strata_scheduler::{Kubernetes, SchedulerOptions};

use crate::support::api_server::{NAMESPACE, PODS, POOLS, pod};
use crate::support::picker::{Ask, DUPLEX, Picker, said};
use crate::support::{ApiServer, Engine, Rig, eventually, quick};

/// A pool of the pods with this label, at the port of this engine.
fn pool(app: &str, engine: &Engine) -> Value {
    let port: u16 = engine.url().rsplit_once(':').unwrap().1.parse().unwrap();
    json!({
        "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool",
        "metadata": {"name": "models"},
        "spec": {
            "selector": {"matchLabels": {"app": app}},
            "targetPorts": [{"number": port}],
            "endpointPickerRef": {"name": "strata", "port": {"number": 9002}},
        },
    })
}

/// A pod of an engine that knows nothing of Strata, at another port than the pool's.
fn stranger(engine: &Engine, app: &str) -> Value {
    let mut pod = pod(engine, "", "stable");
    pod["metadata"]["labels"] = json!({"app": app});
    pod["spec"]["containers"][0]["ports"] = json!([]);
    pod
}

async fn watching(server: &ApiServer) -> Rig {
    let kubernetes = Kubernetes {
        namespace: Some(NAMESPACE.to_owned()),
        server: Some(server.url()),
        inference_pool: Some("models".to_owned()),
        ..Kubernetes::default()
    };
    let options = SchedulerOptions { queue_timeout: Duration::from_millis(150), ..quick() };
    let rig = Rig::start(SchedulerOptions { kubernetes: Some(kubernetes), ..options }).await;
    eventually("pods and pools are known", || rig.scheduler.is_discovered()).await;
    rig
}

#[tokio::test]
async fn its_ready_pods_are_the_replicas_of_what_they_serve() {
    let server = ApiServer::start();
    let (a, b) = (Engine::start("pod-a"), Engine::serving("pod-b", "n"));
    let rig = watching(&server).await;
    assert_eq!(rig.chat("hello").await.error().0, 503, "a pool that is not there yet may have it");
    server.put(PODS, stranger(&a, "llama"));
    server.put(PODS, stranger(&b, "other"));
    server.put(POOLS, pool("llama", &a));
    rig.ready("m", 1).await;
    assert_eq!(rig.chat("hello").await.header("x-strata-replica"), "pod-a");
    let models = rig.get("/v1/models").await.json();
    assert_eq!(models["data"].as_array().unwrap().len(), 1, "{models}");

    let picker = Picker::of(&rig.scheduler).await;
    let mut asking = picker.ask(&Ask::new(DUPLEX)).await;
    asking.send_body(br#"{"model":"m","messages":[]}"#, 1000);
    let endpoint = a.url().trim_start_matches("http://").to_owned();
    assert_eq!(said(&asking.answer().await).metadata, Some(endpoint));
    drop(asking);

    server.change(PODS, "pod-a", |pod| pod["status"]["conditions"][0]["status"] = json!("False"));
    eventually("an unready pod is not routed to", || rig.scheduler.registry.pool("m").is_none()).await;
    let reply = rig.chat("hello").await;
    assert_eq!(reply.error().0, 503, "it may come back: the model is not unknown");
    server.change(PODS, "pod-a", |pod| pod["status"]["conditions"][0]["status"] = json!("True"));
    rig.ready("m", 1).await;
    assert_eq!(rig.chat("hello").await.status, 200);

    // The pool takes other pods.
    server.put(POOLS, pool("other", &b));
    rig.ready("n", 1).await;
    assert_eq!(rig.chat("hello").await.error().1, "model_not_found");
    server.delete(POOLS, "models");
    eventually("there is no replica", || rig.scheduler.registry.replicas().is_empty()).await;
}

#[tokio::test]
async fn a_pool_that_cannot_be_read_stays_as_it_was() {
    let server = ApiServer::start();
    let engine = Engine::start("pod-a");
    server.put(PODS, stranger(&engine, "llama"));
    server.put(POOLS, pool("llama", &engine));
    let rig = watching(&server).await;
    rig.ready("m", 1).await;
    server.change(POOLS, "models", |pool| pool["spec"]["targetPorts"] = json!("none"));
    let malformed = "strata_scheduler_malformed_objects_total{kind=\"InferencePool\"}";
    while !String::from_utf8_lossy(&rig.get("/metrics").await.body).contains(malformed) {
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.chat("hello").await.status, 200);
}
