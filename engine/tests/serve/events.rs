//! What an engine tells a router: the byte blocks of prompts that it has cached, and its load.

use std::collections::HashMap;

use axum::Router;
use serde_json::{Value, json};
use strata_engine::runtime::EngineConfig;
use strata_engine::serve::router;
use strata_hop::{Above, HopToken};
use strata_wire::engine_events::{EngineEvent, Medium, Snapshot};
use strata_wire::prefix::{self, BlockHash};

use crate::backend::FakeBackend;
use crate::client::{Answer, DEADLINE, get, post, send, streamed_text};
use crate::support::{blocks_of, config, engine};

/// A router's view of one engine, as the stream tells it.
pub(crate) struct Follower {
    stream: Answer,
    engine: String,
    sequence: u64,
    stored: HashMap<BlockHash, u32>,
    snapshots: usize,
    loads: usize,
}

impl Follower {
    pub(crate) async fn new(router: &Router, query: &str) -> Self {
        let stream = get(router, &format!("/internal/v1/events{query}")).await;
        assert_eq!(stream.status, 200);
        let (engine, stored) = (String::new(), HashMap::new());
        Self { stream, engine, sequence: 0, stored, snapshots: 0, loads: 0 }
    }

    async fn next(&mut self) -> bool {
        let Some(event) = self.stream.event().await else { return false };
        match serde_json::from_str(&event.data).unwrap() {
            EngineEvent::Snapshot(Snapshot { engine, sequence, first, stored, .. }) => {
                if first {
                    self.stored.clear();
                    self.snapshots += 1;
                }
                (self.engine, self.sequence) = (engine, sequence);
                self.stored.extend(stored.iter().map(|s| (s.hash, s.tokens)));
            }
            EngineEvent::Blocks(changes) => {
                assert_eq!(changes.sequence, self.sequence + 1, "none is lost");
                self.sequence = changes.sequence;
                assert!(changes.stored.iter().all(|s| s.medium == Medium::Device));
                self.stored.extend(changes.stored.iter().map(|s| (s.hash, s.tokens)));
                self.stored.retain(|hash, _| !changes.removed.iter().any(|r| r.hash == *hash));
            }
            EngineEvent::Load(load) => {
                assert!(load.free_blocks <= load.total_blocks && load.total_blocks > 0 || self.loads == 0);
                self.loads += 1;
            }
        }
        true
    }

    /// Reads on until something is so.
    pub(crate) async fn until(&mut self, mut so: impl FnMut(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !so(self) {
            assert!(tokio::time::Instant::now() < deadline, "it was not told in time");
            assert!(self.next().await, "the stream ended");
        }
    }

    /// What the engine has of this body, as a router finds it: the deepest of its blocks that is stored.
    pub(crate) fn cached(&self, body: &Value) -> u32 {
        let prefix = prefix::of_body("", body.to_string().as_bytes()).unwrap();
        prefix.blocks.iter().rev().find_map(|hash| self.stored.get(hash).copied()).unwrap_or(0)
    }
}

fn chat(system: &str, user: &str) -> Value {
    json!({"model": "test-model", "temperature": 0, "max_tokens": 8, "messages": [
        {"role": "system", "content": system}, {"role": "user", "content": user}]})
}

fn cached_tokens(answer: &Value) -> u32 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() as u32
}

#[tokio::test]
async fn a_router_knows_what_a_request_will_find() {
    let engine = engine(FakeBackend::new(64), config());
    let router = router(engine.clone(), Above::default());
    let mut follower = Follower::new(&router, "").await;
    let system = "You are a careful helper of people who know their way. ".repeat(10);
    let (first, second) = (chat(&system, "What is it?"), chat(&system, "Where is it?"));
    assert_eq!(follower.cached(&first), 0);
    assert_eq!(cached_tokens(&post(&router, "/v1/chat/completions", &first).await.json().await), 0);
    follower.until(|f| f.cached(&second) > 500).await;
    let told = follower.cached(&second);
    let found = cached_tokens(&post(&router, "/v1/chat/completions", &second).await.json().await);
    // Two blocks of 256 bytes are shared; the engine shares down to 16 tokens, here of one byte each.
    assert!(told <= found && told + 256 + 16 > found && told > 400, "told {told}, found {found}");
    assert_eq!(follower.cached(&chat(&"x".repeat(600), "What is it?")), 0);

    // Other prompts push it out, and the router hears of it.
    for n in 0..3 {
        post(&router, "/v1/chat/completions", &chat(&n.to_string().repeat(600), "?")).await.json().await;
    }
    follower.until(|f| f.cached(&first) == 0).await;
    assert_eq!(cached_tokens(&post(&router, "/v1/chat/completions", &first).await.json().await), 0);
    assert!(follower.snapshots == 1 && follower.loads > 0);

    // Who comes back with what it has seen goes on from there; who is of another run starts anew.
    let place = format!("?engine={}&after={}", follower.engine, follower.sequence);
    let mut resumed = Follower { stored: follower.stored.clone(), ..Follower::new(&router, &place).await };
    (resumed.engine, resumed.sequence) = (follower.engine.clone(), follower.sequence);
    let mut fresh = Follower::new(&router, "?engine=another&after=1").await;
    fresh.until(|f| f.snapshots > 0 && f.cached(&first) > 0).await;
    resumed.until(|f| f.sequence >= fresh.sequence).await;
    assert_eq!((resumed.snapshots, &resumed.stored), (0, &fresh.stored));

    // A replica that takes no more requests ends its streams.
    engine.drain();
    while follower.next().await {}
}

#[tokio::test]
async fn who_joins_late_learns_of_a_prompt_when_it_is_asked_again() {
    let router = router(engine(FakeBackend::new(64), config()), Above::default());
    let system = "You are a careful helper of people who know their way. ".repeat(10);
    let (first, second) = (chat(&system, "What is it?"), chat(&system, "Where is it?"));
    post(&router, "/v1/chat/completions", &first).await.json().await;
    let mut late = Follower::new(&router, "").await;
    late.until(|f| f.snapshots == 1).await;
    assert_eq!(late.cached(&first), 0, "nobody had wanted to know");
    let found = cached_tokens(&post(&router, "/v1/chat/completions", &second).await.json().await);
    late.until(|f| f.cached(&second) > 400).await;
    assert!(found > 400 && late.cached(&first) <= found, "of blocks that were there all the time");
}

#[tokio::test]
async fn the_next_turn_of_a_conversation_is_known_as_far_as_it_was_answered() {
    let router = router(engine(FakeBackend::new(blocks_of(4096)), config()), Above::default());
    let mut follower = Follower::new(&router, "").await;
    for stream in [false, true] {
        let system = format!("You answer {}. ", if stream { "in pieces" } else { "at once" });
        let mut ask = chat(&system.repeat(20), "What is it?");
        ask["max_tokens"] = json!(500);
        ask["stream"] = json!(stream);
        let answer = post(&router, "/v1/chat/completions", &ask).await;
        let text = if stream {
            streamed_text(&answer.events().await)
        } else {
            answer.json().await["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
        };
        assert_eq!(text.len(), 500);
        let messages = ask["messages"].as_array_mut().unwrap();
        messages.push(json!({"role": "assistant", "content": text}));
        messages.push(json!({"role": "user", "content": "And then?"}));
        ask["stream"] = json!(false);
        // All but what is left of a block of bytes, each a token here.
        follower.until(|f| f.cached(&ask) > 300 + 500 - 256).await;
        let told = follower.cached(&ask);
        let found = cached_tokens(&post(&router, "/v1/chat/completions", &ask).await.json().await);
        assert!(told <= found && found - told <= 256, "{told} of {found}");
    }
}

#[tokio::test]
async fn what_the_step_that_ends_an_answer_has_computed_is_told() {
    let limits =
        EngineConfig { step: strata_engine::step::StepLimits { tokens: 512, sequences: 16 }, ..config() };
    let ends = FakeBackend::says(blocks_of(1024), Vec::new());
    for (backend, max_tokens) in [(FakeBackend::new(blocks_of(1024)), 1), (ends, 8)] {
        let router = router(engine(backend, limits), Above::default());
        let mut follower = Follower::new(&router, "").await;
        let mut ask = chat(&"s".repeat(300), "What is it?");
        ask["max_tokens"] = json!(max_tokens);
        let answer = post(&router, "/v1/chat/completions", &ask).await.json().await;
        assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() <= 1, "{answer}");
        follower.until(|f| f.cached(&ask) > 150).await;
        let prompt = json!({"model": "test-model", "prompt": "p".repeat(300), "max_tokens": max_tokens, "temperature": 0});
        post(&router, "/v1/completions", &prompt).await.json().await;
        follower.until(|f| f.cached(&prompt) > 150).await;
    }
}

#[tokio::test]
async fn prompts_as_text_are_told_and_a_busy_engine_too() {
    let (backend, gate) = FakeBackend::new(blocks_of(1024)).gated();
    let limits =
        EngineConfig { step: strata_engine::step::StepLimits { tokens: 64, sequences: 1 }, ..config() };
    let engine = engine(backend, limits);
    let router = router(engine.clone(), Above::default());
    let mut stream = get(&router, "/internal/v1/events").await;
    let ask = json!({"model": "test-model", "prompt": "p".repeat(300), "max_tokens": 2, "temperature": 0});
    let asked: Vec<_> = (0..2)
        .map(|_| {
            let (router, ask) = (router.clone(), ask.clone());
            tokio::spawn(async move { post(&router, "/v1/completions", &ask).await.json().await })
        })
        .collect();
    // The engine stands in its first step, and says what waits all the same.
    loop {
        if let EngineEvent::Load(load) = serde_json::from_str(&stream.event().await.unwrap().data).unwrap()
            && (load.running, load.waiting) == (1, 1)
        {
            // All of the one, and of the other all but the token whose logits are wanted.
            assert_eq!(load.waiting_tokens, 599);
            break;
        }
    }
    drop(gate);
    for asked in asked {
        asked.await.unwrap();
    }
    let hash = prefix::of_body("", ask.to_string().as_bytes()).unwrap().blocks[0];
    let mut follower = Follower::new(&router, "").await;
    follower.until(|f| f.stored.get(&hash) == Some(&256)).await;
}

#[tokio::test]
async fn the_stream_is_for_the_layer_above() {
    let above = Above::new(HopToken::new("secret"), None, strata_engine::serve::CALLERS);
    let router = router(engine(FakeBackend::new(8), config()), above);
    assert_eq!(get(&router, "/internal/v1/events").await.status, 401);
    let token = [("x-strata-hop-token", "secret")];
    let path = "/internal/v1/events";
    assert_eq!(send(&router, "GET", path, &token, axum::body::Body::empty()).await.status, 200);
    for query in ["?after=1", "?engine=e", "?after=x&engine=e", "?since=1"] {
        let answer = send(&router, "GET", &format!("{path}{query}"), &token, axum::body::Body::empty()).await;
        assert_eq!(answer.status, 400, "{query}");
    }
}
