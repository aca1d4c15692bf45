//! What replicas tell of their caches and their load, and what becomes of it.

use std::time::Duration;

use serde_json::json;
use strata_scheduler::SchedulerOptions;
use strata_scheduler::pick::Cached;
use strata_wire::engine_events::{BlockChanges, EngineEvent, Load, Medium, Removed, Snapshot, Stored};
use strata_wire::prefix::{self, BlockHash, Prefix};

use crate::support::{Does, Engine, Reply, Rig, eventually, quick};

/// Looks at metrics once: then only what is told counts.
fn seldom() -> SchedulerOptions {
    SchedulerOptions { scrape_interval: Duration::from_secs(60), ..quick() }
}

fn chain(text: &str) -> Vec<BlockHash> {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": text}]}).to_string();
    prefix::of_body("", body.as_bytes()).unwrap().blocks
}

fn stored(chain: &[BlockHash], medium: Medium) -> Vec<Stored> {
    let one = |(i, hash): (usize, &BlockHash)| Stored { hash: *hash, tokens: 50 * (i as u32 + 1), medium };
    chain.iter().enumerate().map(one).collect()
}

fn snapshot(stored: Vec<Stored>) -> EngineEvent {
    EngineEvent::Snapshot(Snapshot { engine: "run".into(), sequence: 4, first: true, last: true, stored })
}

fn removed(sequence: u64, chain: &[BlockHash]) -> EngineEvent {
    let one = |hash: &BlockHash| Removed { hash: *hash, medium: Medium::Device };
    let removed = chain.iter().map(one).collect();
    EngineEvent::Blocks(BlockChanges { sequence, removed, ..BlockChanges::default() })
}

/// `cached_tokens=N` of a reply's decision, and the replica.
fn told(reply: &Reply) -> (Option<u32>, String) {
    let decision = reply.header("x-strata-decision");
    let tokens = decision.split([' ', ';']).find_map(|part| part.strip_prefix("cached_tokens="));
    (tokens.map(|tokens| tokens.parse().unwrap()), reply.header("x-strata-replica").to_owned())
}

/// Before two engines, when so many of them are known to tell.
async fn before(engines: [&Engine; 2], telling: usize) -> Rig {
    let rig = Rig::before(&engines, seldom()).await;
    let known = || rig.scheduler.registry.replicas().iter().filter(|replica| replica.tells()).count();
    eventually("replicas tell what they hold", || known() == telling).await;
    rig
}

async fn holds(rig: &Rig, entries: usize) {
    eventually("what was told is taken in", || rig.scheduler.registry.blocks.entries() == entries).await;
}

#[tokio::test]
async fn a_replica_is_believed_in_what_it_tells() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let text = "x".repeat(20 * 256);
    let chain = chain(&text);
    a.tells(vec![snapshot(Vec::new())]);
    b.tells(vec![snapshot(stored(&chain[..12], Medium::Device))]);
    let rig = before([&a, &b], 2).await;
    let name = b.url().replace("http://", "");
    assert_eq!(told(&rig.chat(&text).await), (Some(600), name.clone()));
    // Sent there or not: it says that it is gone.
    b.adds(removed(5, &chain[3..12]));
    holds(&rig, 3).await;
    let replica = rig.scheduler.registry.replicas().into_iter().find(|r| r.name() == name).unwrap();
    let prefix = Prefix { blocks: chain, ..Prefix::default() };
    let found = rig.scheduler.registry.blocks.find(&prefix.blocks);
    // When it would have told of what was sent there.
    let later = rig.scheduler.now() + Duration::from_secs(2);
    let has = replica.view(&prefix, &found, later, Duration::from_secs(60)).cached;
    assert_eq!(has, Cached::told([150, 0, 0]));
    assert!(rig.metric("strata_scheduler_telling_replicas{name=\"m\"}").await > 1.5);
    assert!((rig.metric("strata_scheduler_told_blocks").await - 3.0).abs() < 0.5);
}

#[tokio::test]
async fn a_prompt_counts_where_it_is_being_computed() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    a.tells(vec![snapshot(Vec::new())]);
    b.tells(vec![snapshot(Vec::new())]);
    let rig = before([&a, &b], 2).await;
    a.does(Does::Held);
    b.does(Does::Held);
    let text = "y".repeat(20 * 256);
    let first = rig.stream(&text);
    let second = async {
        eventually("the first is under way", || a.open() + b.open() == 1).await;
        rig.stream(&text).await
    };
    let let_go = async {
        eventually("both are under way", || a.open() + b.open() == 2).await;
        let together = a.open() == 2 || b.open() == 2;
        a.let_go(10);
        b.let_go(10);
        together
    };
    let (_, second, together) = tokio::join!(first, second, let_go);
    assert!(together, "{:?}", second.headers);
}

#[tokio::test]
async fn a_missing_message_is_noticed_and_everything_told_anew() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let chain = chain(&"z".repeat(3000));
    a.tells(vec![snapshot(stored(&chain, Medium::Device))]);
    let rig = before([&a, &b], 1).await;
    holds(&rig, chain.len()).await;
    a.adds(removed(7, &chain[1..2]));
    eventually("it asks again", || a.followed().len() > 1).await;
    assert_eq!(a.followed()[..2], ["", ""], "for everything");
    assert!(rig.metric("strata_scheduler_event_streams_ended_total{reason=\"out_of_order\"}").await > 0.5);
    // Its script is the same again and again: it is told anew and anew, and nothing piles up.
    a.tells(vec![snapshot(stored(&chain[..2], Medium::Device))]);
    let name = a.url().replace("http://", "");
    let replica = rig.scheduler.registry.replicas().into_iter().find(|r| r.name() == name).unwrap();
    eventually("the new one counts", || replica.indexed_blocks() == 2).await;
}

#[tokio::test]
async fn a_stream_that_breaks_goes_on_where_it_was() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    let chain = chain(&"z".repeat(3000));
    a.tells(vec![snapshot(stored(&chain, Medium::Device)), removed(5, &chain[9..])]);
    let rig = before([&a, &b], 1).await;
    holds(&rig, 9).await;
    a.tells(vec![removed(6, &chain[4..9])]);
    holds(&rig, 4).await;
    assert_eq!(a.followed(), ["", "engine=run&after=5"]);
    let broken = "strata_scheduler_event_streams_ended_total{reason=\"broken\"}";
    assert!((rig.metric(broken).await - 1.0).abs() < 0.5);
}

#[tokio::test]
async fn a_load_that_is_told_counts_at_once() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    a.tells(vec![snapshot(Vec::new())]);
    b.tells(vec![snapshot(Vec::new())]);
    let rig = before([&a, &b], 2).await;
    let busy = Load { running: 16, waiting: 9, waiting_tokens: 900, free_blocks: 1, total_blocks: 4 };
    a.adds(EngineEvent::Load(busy));
    let state = || rig.states("m").into_iter().find(|s| a.url().ends_with(&s.name)).unwrap();
    eventually("its load is known", || state().waiting > 8.5).await;
    assert!((state().kv_usage - 0.75).abs() < 1e-9);
    for _ in 0..5 {
        assert_eq!(told(&rig.chat("hello").await).1, b.url().replace("http://", ""));
    }
}
