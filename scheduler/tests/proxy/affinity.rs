use serde_json::{Value, json};
use strata_scheduler::{Policy, SchedulerOptions};

use crate::support::{Does, Engine, Rig, eventually, quick};

/// `cached_blocks=a/b` of a decision.
fn blocks(decision: &str) -> (u32, u32) {
    let part = decision.split(' ').find_map(|p| p.strip_prefix("cached_blocks=")).expect(decision);
    let (a, b) = part.trim_end_matches(';').split_once('/').unwrap();
    (a.parse().unwrap(), b.parse().unwrap())
}

/// Plays conversations side by side, a turn of each in turn. Returns the share of prompt blocks, of
/// second and later turns, that were routed to a replica that had them, and requests by replica.
async fn converse(
    rig: &Rig,
    conversations: usize,
    turns: usize,
) -> (f64, std::collections::BTreeMap<String, u32>) {
    let mut histories: Vec<Vec<Value>> = vec![Vec::new(); conversations];
    let (mut hit, mut all, mut by) = (0, 0, std::collections::BTreeMap::new());
    for turn in 0..turns {
        for (c, history) in histories.iter_mut().enumerate() {
            let text = format!("conversation {c} turn {turn} {}", format!("{c} words of it ").repeat(60));
            history.push(json!({"role": "user", "content": text}));
            let body = json!({"model": "m", "messages": history});
            let reply = rig.send(rig.request("/v1/chat/completions", body.to_string())).await;
            assert_eq!(reply.status, 200);
            history.push(reply.json()["choices"][0]["message"].clone());
            *by.entry(reply.header("x-strata-replica").to_owned()).or_default() += 1;
            let (cached, blocks) = blocks(reply.header("x-strata-decision"));
            if turn > 0 {
                hit += cached;
                all += blocks;
            }
        }
    }
    (f64::from(hit) / f64::from(all), by)
}

#[tokio::test]
async fn conversations_stay_where_their_prefix_is() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Rig::before(&[&a, &b], quick()).await;
    let (hit, by) = converse(&rig, 12, 4).await;
    assert!(hit > 0.6, "{hit}");
    assert_eq!(by.len(), 2, "both replicas are used: {by:?}");

    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Rig::before(&[&a, &b], SchedulerOptions { policy: Policy::RoundRobin, ..quick() }).await;
    let (robin, by) = converse(&rig, 11, 4).await;
    assert_eq!(by.values().copied().collect::<Vec<_>>(), [22, 22]);
    assert!(robin < hit - 0.2, "round robin {robin}, by prefix {hit}");
}

#[tokio::test]
async fn the_decision_is_explained() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Rig::before(&[&a, &b], quick()).await;
    let prompt = "x".repeat(14 * 256);
    let first = rig.chat(&prompt).await;
    let again = rig.chat(&prompt).await;
    assert_eq!(first.header("x-strata-replica"), again.header("x-strata-replica"));
    let text = again.header("x-strata-decision").replace(again.header("x-strata-replica"), "REPLICA");
    insta::assert_snapshot!(text, @"replica=REPLICA score=32.4 hit=0.75 queue=0.00 decode=0.00 latency=0.50 cached_blocks=14/14 candidates=2; it holds 14 of the prompt's 14 blocks, more than any other");
}

#[tokio::test]
async fn another_scope_finds_nothing() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let rig = Rig::before(&[&a, &b], quick()).await;
    let ask = async |scope: &str| {
        let mut request = rig.chat_request(&"x".repeat(4000), false);
        request.headers_mut().insert("x-strata-cache-scope", scope.parse().unwrap());
        blocks(rig.send(request).await.header("x-strata-decision")).0
    };
    assert_eq!(ask("one").await, 0);
    assert_eq!(ask("one").await, 15);
    assert_eq!(ask("two").await, 0);
}

#[tokio::test]
async fn a_restarted_replica_holds_nothing() {
    let mut engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    let prompt = "x".repeat(4000);
    for _ in 0..3 {
        rig.chat(&prompt).await;
    }
    assert_eq!(blocks(rig.chat(&prompt).await.header("x-strata-decision")), (15, 15));
    eventually("the counters are read", || {
        let r = &rig.scheduler.registry.replicas()[0];
        r.indexed_blocks() == 15 && rig.states("m")[0].in_flight == 0
    })
    .await;
    engine.kill();
    rig.ready("m", 0).await;
    engine.restart();
    rig.ready("m", 1).await;
    assert_eq!(blocks(rig.chat(&prompt).await.header("x-strata-decision")), (0, 15));
}

#[tokio::test]
async fn vllms_metrics_are_understood() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let text = include_str!("../../src/telemetry/vllm.prom");
    a.load(|load| load.text = Some(text.to_owned()));
    b.load(|load| {
        load.text =
            Some(text.replace("engine=\"0\",model_name=\"Qwen/Qwen3-32B\"} 2.0", "engine=\"0\"} 40.0"));
    });
    let rig = Rig::before(&[&a, &b], quick()).await;
    for n in 0..6 {
        let reply = rig.chat(&format!("{n}")).await;
        assert_eq!(
            reply.header("x-strata-replica"),
            a.url().trim_start_matches("http://"),
            "the other is full"
        );
    }
    let state = rig.states("m").into_iter().find(|s| s.url == a.url()).unwrap();
    assert!((state.running - 12.0).abs() < 1e-9 && (state.kv_usage - 0.4502).abs() < 1e-9, "{state:?}");
    assert!((rig.metric("inference_pool_average_kv_cache_utilization").await - 0.4502).abs() < 1e-9);
}

#[tokio::test]
async fn an_engine_without_metrics_is_used() {
    let engine = Engine::start("m-0");
    engine.inner.metrics_status.store(404, std::sync::atomic::Ordering::SeqCst);
    let rig = Rig::before(&[&engine], quick()).await;
    let reply = rig.chat("hello").await;
    assert!(reply.header("x-strata-decision").contains("queue=0.50 decode=0.50 latency=0.50"), "{reply:?}");
}

#[tokio::test]
async fn a_shared_prefix_does_not_pile_everything_onto_one_replica() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    for engine in [&a, &b] {
        engine.does(Does::Held);
    }
    let rig = std::sync::Arc::new(Rig::before(&[&a, &b], quick()).await);
    let system = "the same beginning ".repeat(100);
    let streams: Vec<_> = (0..40)
        .map(|n| {
            let (rig, text) = (std::sync::Arc::clone(&rig), format!("{system} {n}"));
            tokio::spawn(async move { rig.stream(&text).await.rest().await.len() })
        })
        .collect();
    eventually("all are under way", || a.open() + b.open() == 40).await;
    assert!(a.open() >= 8 && b.open() >= 8, "{} and {}", a.open(), b.open());
    for engine in [&a, &b] {
        engine.inner.ended.store(true, std::sync::atomic::Ordering::SeqCst);
        engine.let_go(1000);
    }
    for stream in streams {
        stream.await.unwrap();
    }
}
