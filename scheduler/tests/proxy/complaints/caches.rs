//! What a scheduler knows of caches, when there are several schedulers, when one starts anew, and when
//! prompts are long.

use serde_json::json;
use strata_scheduler::SchedulerOptions;
use strata_wire::engine_events::{BlockChanges, EngineEvent, Medium, Snapshot, Stored};
use strata_wire::prefix;

use super::name;
use crate::support::{Engine, Reply, Rig, eventually, quick};

/// The first turn of one of several conversations, and the same with so many more words.
fn text(conversation: usize, more: usize) -> String {
    format!("conversation {conversation} {}", "and a word ".repeat(300 + more))
}

fn stored(text: &str) -> Vec<Stored> {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": text}]}).to_string();
    let blocks = prefix::of_body("", body.as_bytes()).unwrap().blocks;
    let one = |(at, hash)| Stored { hash, tokens: 64 * (at as u32 + 1), medium: Medium::Device };
    blocks.into_iter().enumerate().map(one).collect()
}

fn snapshot(stored: Vec<Stored>) -> EngineEvent {
    EngineEvent::Snapshot(Snapshot { engine: "run".into(), sequence: 0, first: true, last: true, stored })
}

/// Engines that tell what they hold, which is nothing yet.
fn telling() -> [Engine; 3] {
    let engines = ["m-0", "m-1", "m-2"].map(Engine::start);
    for engine in &engines {
        engine.tells(vec![snapshot(Vec::new())]);
    }
    engines
}

/// A scheduler that has heard so many blocks.
async fn before(engines: &[Engine; 3], blocks: usize) -> Rig {
    let rig = Rig::before(&[&engines[0], &engines[1], &engines[2]], quick()).await;
    let told = || rig.scheduler.registry.replicas().iter().filter(|replica| replica.tells()).count();
    eventually("replicas tell what they hold", || told() == 3).await;
    heard(&rig, blocks).await;
    rig
}

async fn heard(rig: &Rig, blocks: usize) {
    eventually("it has heard all", || rig.scheduler.registry.blocks.entries() == blocks).await;
}

/// `cached_tokens=N` of a reply's decision.
fn cached(reply: &Reply) -> usize {
    let decision = reply.header("x-strata-decision");
    let tokens = decision.split([' ', ';']).find_map(|part| part.strip_prefix("cached_tokens="));
    tokens.expect(decision).parse().unwrap()
}

/// The first turns of three conversations, at this scheduler. Each replica tells of what it was asked;
/// returns which has which conversation, and how many blocks all have.
async fn first_turns(rig: &Rig, engines: &[Engine; 3]) -> (Vec<String>, usize) {
    let (mut places, mut blocks, mut told) = (Vec::new(), 0, [0; 3]);
    for conversation in 0..3 {
        let reply = rig.chat(&text(conversation, 0)).await;
        assert_eq!(reply.status, 200);
        let place = reply.header("x-strata-replica").to_owned();
        let at = engines.iter().position(|engine| name(engine) == place).unwrap();
        told[at] += 1;
        let stored = stored(&text(conversation, 0));
        blocks += stored.len();
        engines[at].adds(EngineEvent::Blocks(BlockChanges {
            sequence: told[at],
            stored,
            ..BlockChanges::default()
        }));
        places.push(place);
    }
    (places, blocks)
}

/// The next turns, at this scheduler: each goes where the conversation is.
async fn follow(rig: &Rig, places: &[String], more: usize) {
    for (conversation, place) in places.iter().enumerate() {
        let reply = rig.chat(&text(conversation, more)).await;
        assert_eq!((reply.status.as_u16(), reply.header("x-strata-replica")), (200, place.as_str()));
        assert!(cached(&reply) >= 12 * 64, "{reply:?}");
    }
}

/// Two schedulers share the replicas, and the turns of a conversation come to the one and to the other.
#[tokio::test]
async fn aibrix_917_a_turn_that_comes_to_another_scheduler_finds_its_cache() {
    let engines = telling();
    let (one, other) = (before(&engines, 0).await, before(&engines, 0).await);
    let (places, blocks) = first_turns(&one, &engines).await;
    heard(&other, blocks).await;
    follow(&other, &places, 50).await;
    heard(&one, blocks).await;
    follow(&one, &places, 100).await;
}

/// The scheduler that has sent everything goes away; the one that is left knows as much.
#[tokio::test]
async fn llm_d_router_1348_the_scheduler_that_is_left_knows_every_cache() {
    let engines = telling();
    let (goes, stays) = (before(&engines, 0).await, before(&engines, 0).await);
    let (places, blocks) = first_turns(&goes, &engines).await;
    drop(goes);
    heard(&stays, blocks).await;
    follow(&stays, &places, 50).await;
}

/// A rolling update: the new scheduler has sent nothing yet, and asks nobody but the replicas.
#[tokio::test]
async fn llm_d_router_2024_a_scheduler_that_has_just_started_knows_every_cache() {
    let engines = telling();
    let old = before(&engines, 0).await;
    let (places, blocks) = first_turns(&old, &engines).await;
    drop(old);
    let new = before(&engines, blocks).await;
    follow(&new, &places, 50).await;
}

/// Two prompts of 100,000 tokens whose last twentieth differs. A router that looks at so many blocks of a
/// prompt and no further would see a quarter of it.
#[tokio::test]
async fn llm_d_router_1287_a_long_prompt_is_matched_to_its_end() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], SchedulerOptions::default()).await;
    let (shared, own) = ("s".repeat(380_000), 20_000);
    let blocks = async |end: &str| {
        let reply = rig.chat(&format!("{shared}{}", end.repeat(own))).await;
        assert_eq!(reply.status, 200);
        let decision = reply.header("x-strata-decision").to_owned();
        let part = decision.split([' ', ';']).find_map(|part| part.strip_prefix("cached_blocks=")).unwrap();
        let (cached, all) = part.split_once('/').unwrap();
        (cached.parse::<usize>().unwrap(), all.parse::<usize>().unwrap())
    };
    assert_eq!(blocks("a").await, (0, 400_000 / 256));
    assert_eq!(blocks("b").await, (380_000 / 256, 400_000 / 256));
    assert_eq!(blocks("a").await, (400_000 / 256, 400_000 / 256));
}

/// Numbers, escapes and spaces that no encoder would write again as they are, in a prompt of 220 KB.
#[tokio::test]
async fn llm_d_router_1109_a_long_prompt_is_passed_on_as_it_came() {
    let engine = Engine::start("m-0");
    let rig = Rig::before(&[&engine], quick()).await;
    let text = r"caf\u00e9 \/ \ud83d\ude00 ".repeat(8000);
    let body = format!("{{ \"z\" : 1.50e+1 ,\"model\":\"m\",\n\"prompt\" :\"{text}\", \"a\":[ 1 ,2 ] }}");
    assert!(body.len() > 200_000);
    assert_eq!(rig.send(rig.request("/v1/completions", body.clone())).await.status, 200);
    assert!(engine.got()[0].body == body.as_bytes(), "it was encoded anew");
}
