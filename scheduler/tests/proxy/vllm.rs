//! What replicas publish as vLLM does, and what becomes of it.

use std::time::Duration;

use serde_json::json;
use strata_scheduler::SchedulerOptions;
use strata_wire::prefix;
use strata_wire::replicas::{Endpoint, Endpoints, KvEvents, ModelEndpoints};

use crate::support::engine::rendered;
use crate::support::publisher::{SIZE, cleared, removed, stored};
use crate::support::{EndpointsFile, Engine, Publisher, Rig, eventually, quick};

/// Before engines that publish at these addresses, when all are followed.
async fn before(engines: &[(&Engine, KvEvents)]) -> (Rig, EndpointsFile) {
    let file = EndpointsFile::new();
    let replica = |(engine, events): &(&Engine, KvEvents)| {
        let kv_events = Some(events.clone());
        Endpoint { kv_events, ..Endpoint::new(engine.name(), engine.url()) }
    };
    let model =
        ModelEndpoints { replicas: engines.iter().map(replica).collect(), ..ModelEndpoints::default() };
    file.write(&Endpoints { models: [("m".to_owned(), model)].into() });
    // Scrapes tell of restarts by other means.
    let options = SchedulerOptions {
        endpoints: Some(file.path()),
        scrape_interval: Duration::from_secs(60),
        ..quick()
    };
    let rig = Rig::start(options).await;
    rig.ready("m", engines.len()).await;
    let telling = || rig.scheduler.registry.replicas().iter().filter(|replica| replica.tells()).count();
    eventually("all are followed", || telling() == engines.len()).await;
    (rig, file)
}

/// A chat whose prompt has so many byte blocks, as the engine renders it, and how many tokens of it lie in
/// whole token blocks before the end of each.
fn chat(letter: char, blocks: usize) -> (String, String, Vec<u32>) {
    let text = letter.to_string().repeat(blocks * 256);
    let body = json!({"model": "m", "messages": [{"role": "user", "content": text}]});
    let chain = prefix::of_body("", body.to_string().as_bytes()).unwrap().blocks;
    // `user` and a separator before the text; `<|user|>` when it is rendered.
    let tokens = |block: usize| ((block * 256 - 5 + 8) / SIZE * SIZE) as u32;
    (text, rendered(&body), (1..=chain.len()).map(tokens).collect())
}

fn blocks_of(prompt: &str) -> usize {
    prompt.len() / SIZE
}

/// What a replica has of a text, by what it tells and what was sent there, once an answer is long past.
fn has(rig: &Rig, name: &str, text: &str) -> f64 {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": text}]});
    let prefix = prefix::of_body("", body.to_string().as_bytes()).unwrap();
    let replica = rig.scheduler.registry.replicas().into_iter().find(|r| r.name() == name).unwrap();
    let found = rig.scheduler.registry.blocks.find(&prefix.blocks);
    let later = rig.scheduler.now() + Duration::from_secs(3);
    replica.view(&prefix, &found, later, Duration::from_secs(600)).cached.tokens
}

async fn will_have(rig: &Rig, name: &str, text: &str, tokens: u32) {
    let what = format!("{name} has {tokens} tokens of {}", &text[..1]);
    eventually(&what, || (has(rig, name, text) - f64::from(tokens)).abs() < 0.5).await;
}

async fn learnt(rig: &Rig, engine: &Engine, times: usize) {
    eventually("it is asked for the tokens", || engine.tokenised() == times).await;
    let replica = rig.scheduler.registry.replicas().into_iter().find(|r| r.name() == engine.name());
    assert!(replica.is_some_and(|replica| replica.tells()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_believed_in_what_it_publishes() {
    let engine = Engine::start("m-0");
    engine.tokenises();
    let mut publisher = Publisher::start(100).await;
    let (rig, _file) = before(&[(&engine, publisher.addresses())]).await;
    let (text, prompt, tokens) = chat('x', 12);
    publisher.publish(vec![stored(&prompt, 0..blocks_of(&prompt))]).await;
    rig.chat(&text).await;
    learnt(&rig, &engine, 1).await;
    will_have(&rig, "m-0", &text, tokens[11]).await;
    let reply = rig.chat(&text).await;
    let said = format!(" cached_tokens={} ", tokens[11]).replace(" ;", ";");
    assert!(reply.header("x-strata-decision").replace(';', " ").contains(&said), "{:?}", reply.headers);
    // Another prompt that begins alike is known as far as it does, before it is sent.
    let (longer, ..) = chat('x', 20);
    will_have(&rig, "m-0", &longer, tokens[11]).await;
    // Sent there or not: what it tells to be gone is gone.
    let kept = tokens[3] as usize / SIZE;
    publisher.publish(vec![removed(&prompt, kept..blocks_of(&prompt))]).await;
    will_have(&rig, "m-0", &text, tokens[3]).await;
    publisher.publish(vec![stored(&prompt, kept..blocks_of(&prompt))]).await;
    will_have(&rig, "m-0", &text, tokens[11]).await;
    publisher.publish(vec![cleared()]).await;
    will_have(&rig, "m-0", &text, 0).await;
    assert_eq!(engine.tokenised(), 1, "once for each prompt that is new");
    let outcome =
        |outcome: &str| format!("strata_scheduler_tokenised_prompts_total{{outcome=\"{outcome}\"}}");
    assert!((rig.metric(&outcome("learnt")).await - 1.0).abs() < 0.1);
    assert!((rig.metric(&outcome("known")).await - 1.0).abs() < 0.1);
    assert!((rig.metric("strata_scheduler_telling_replicas{name=\"m\"}").await - 1.0).abs() < 0.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missed_is_replayed() {
    let engine = Engine::start("m-0");
    engine.tokenises();
    let mut publisher = Publisher::start(100).await;
    let (text, prompt, tokens) = chat('y', 8);
    // Before anybody listens.
    publisher.lose(vec![stored(&prompt, 0..40)]);
    publisher.lose(vec![stored(&prompt, 40..60)]);
    let (rig, _file) = before(&[(&engine, publisher.addresses())]).await;
    rig.chat(&text).await;
    let tokens_at = |blocks: usize| *tokens.iter().rfind(|t| **t as usize <= blocks * SIZE).unwrap();
    will_have(&rig, "m-0", &text, tokens_at(60)).await;
    let before = publisher.replays();
    publisher.lose(vec![removed(&prompt, 20..60)]);
    publisher.lose(vec![stored(&prompt, 20..30)]);
    publisher.publish(vec![stored(&prompt, 30..64)]).await;
    will_have(&rig, "m-0", &text, tokens_at(64)).await;
    assert_eq!(publisher.replays(), before + 1);
    publisher.publish(vec![removed(&prompt, 17..64)]).await;
    will_have(&rig, "m-0", &text, tokens_at(17)).await;
    assert!(
        (rig.metric("strata_scheduler_event_streams_ended_total{reason=\"gap\"}").await - 1.0).abs() < 0.1
    );
}

/// Then what was told is forgotten, and what was sent there counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_replayed_is_not_known() {
    let engine = Engine::start("m-0");
    engine.tokenises();
    let mut publisher = Publisher::start(1).await;
    let (rig, _file) = before(&[(&engine, publisher.addresses())]).await;
    let ((old, old_prompt, told), (new, new_prompt, _)) = (chat('o', 6), chat('n', 6));
    publisher.publish(vec![stored(&old_prompt, 0..blocks_of(&old_prompt))]).await;
    rig.chat(&old).await;
    will_have(&rig, "m-0", &old, told[5]).await;
    publisher.lose(vec![removed(&old_prompt, 9..blocks_of(&old_prompt))]);
    publisher.publish(vec![stored(&new_prompt, 0..20)]).await;
    will_have(&rig, "m-0", &old, 0).await;
    rig.chat(&new).await;
    learnt(&rig, &engine, 2).await;
    // It was sent there, and may have been there before: so much of it is told, the rest is guessed.
    eventually("it is guessed", || has(&rig, "m-0", &new) > 20.0 * SIZE as f64).await;
    assert!(rig.metric("strata_scheduler_event_streams_ended_total{reason=\"out_of_order\"}").await > 0.5);
    publisher.publish(vec![cleared()]).await;
    will_have(&rig, "m-0", &new, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_leaves_nothing() {
    let engine = Engine::start("m-0");
    engine.tokenises();
    let mut publisher = Publisher::start(100).await;
    let (rig, _file) = before(&[(&engine, publisher.addresses())]).await;
    let (text, prompt, tokens) = chat('z', 6);
    let whole = blocks_of(&prompt);
    publisher.publish(vec![stored(&prompt, 0..whole)]).await;
    rig.chat(&text).await;
    will_have(&rig, "m-0", &text, tokens[5]).await;
    let mut publisher = publisher.restart().await;
    // As many batches as before and more, so that no number tells.
    let (_, other, _) = chat('w', 6);
    publisher.lose(vec![stored(&other, 0..4)]);
    publisher.publish(vec![stored(&other, 4..8)]).await;
    will_have(&rig, "m-0", &text, 0).await;
    publisher.publish(vec![stored(&prompt, 0..whole)]).await;
    will_have(&rig, "m-0", &text, tokens[5]).await;
    assert_eq!(engine.tokenised(), 1, "what the prompt told stays true");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_passed_over() {
    let engine = Engine::start("m-0");
    engine.tokenises();
    let mut publisher = Publisher::start(100).await;
    let (rig, _file) = before(&[(&engine, publisher.addresses())]).await;
    let (text, prompt, tokens) = chat('v', 6);
    publisher.publish(vec![stored(&prompt, 0..blocks_of(&prompt))]).await;
    rig.chat(&text).await;
    will_have(&rig, "m-0", &text, tokens[5]).await;
    publisher.publish_bytes(b"\xc1 no batch").await;
    will_have(&rig, "m-0", &text, 0).await;
    publisher.publish(vec![stored(&prompt, 0..blocks_of(&prompt))]).await;
    will_have(&rig, "m-0", &text, tokens[5]).await;
    assert!(
        (rig.metric("strata_scheduler_event_streams_ended_total{reason=\"malformed\"}").await - 1.0).abs()
            < 0.1
    );
}

/// Two replicas of a model tokenise alike: what one has told of a prompt counts for the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_is_asked_for_once_for_all_replicas() {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    a.tokenises();
    b.tokenises();
    let (mut at_a, mut at_b) = (Publisher::start(100).await, Publisher::start(100).await);
    let (rig, _file) = before(&[(&a, at_a.addresses()), (&b, at_b.addresses())]).await;
    let (text, prompt, tokens) = chat('u', 6);
    // Another scheduler has sent it there.
    at_a.publish(vec![stored(&prompt, 0..64)]).await;
    at_b.publish(vec![stored(&prompt, 0..64)]).await;
    rig.chat(&text).await;
    let told = *tokens.iter().rfind(|t| **t as usize <= 64 * SIZE).unwrap();
    will_have(&rig, "m-0", &text, told).await;
    will_have(&rig, "m-1", &text, told).await;
    assert_eq!(a.tokenised() + b.tokenised(), 1);
}

/// An engine that publishes and cannot be asked for tokens: what was sent there counts, until it tells that
/// everything is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_tokens_what_was_sent_counts() {
    let engine = Engine::start("m-0");
    let mut publisher = Publisher::start(100).await;
    let (rig, _file) = before(&[(&engine, publisher.addresses())]).await;
    let (text, prompt, _) = chat('t', 6);
    publisher.publish(vec![stored(&prompt, 0..blocks_of(&prompt))]).await;
    rig.chat(&text).await;
    let untold = "strata_scheduler_tokenised_prompts_total{outcome=\"untold\"}";
    // It answers something else there.
    eventually("it was asked", || engine.got().iter().any(|got| got.path == "/tokenize")).await;
    assert!(has(&rig, "m-0", &text) > 6.0 * 256.0 / 10.0);
    publisher.publish(vec![cleared()]).await;
    will_have(&rig, "m-0", &text, 0).await;
    assert!((rig.metric(untold).await - 1.0).abs() < 0.1);
}
