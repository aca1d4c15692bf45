//! A new revision that gets a share of the requests.

use serde_json::json;
use strata_scheduler::SchedulerOptions;
use strata_wire::replicas::{Endpoints, ModelEndpoints, Policy, Track};

use crate::support::{EndpointsFile, Engine, Rig, eventually, listed, quick};

fn split(stable: &[&Engine], canary: &[&Engine], percent: u8) -> ModelEndpoints {
    let mut model = listed(stable);
    let mut on_canary = listed(canary).replicas;
    for replica in &mut on_canary {
        replica.track = Track::Canary;
    }
    model.replicas.extend(on_canary);
    ModelEndpoints { canary_percent: Some(percent), ..model }
}

async fn splitting(file: &EndpointsFile, model: ModelEndpoints) -> Rig {
    let replicas = model.replicas.len();
    file.write(&Endpoints { models: [("m".to_owned(), model)].into() });
    let rig = Rig::start(SchedulerOptions { endpoints: Some(file.path()), ..quick() }).await;
    eventually("the file is read", || rig.states("m").len() == replicas).await;
    rig.ready("m", replicas).await;
    rig
}

/// Asks with a conversation, whose turns are the user's and the assistant's in turn. Returns where it
/// went.
async fn turn(rig: &Rig, conversation: &str, turns: usize) -> String {
    let mut messages = vec![json!({"role": "system", "content": "s".repeat(2000)})];
    for n in 0..turns {
        messages.push(json!({"role": "user", "content": format!("{conversation}: question {n}")}));
        messages.push(json!({"role": "assistant", "content": format!("answer {n}")}));
    }
    messages.pop();
    let body = json!({"model": "m", "messages": messages}).to_string();
    let reply = rig.send(rig.request("/v1/chat/completions", body)).await;
    assert_eq!(reply.status, 200);
    reply.header("x-strata-replica").to_owned()
}

#[tokio::test]
async fn a_share_of_the_conversations_goes_to_the_canary_and_each_stays_where_it_began() {
    let file = EndpointsFile::new();
    let (a, b, c) = (Engine::start("m-a"), Engine::start("m-b"), Engine::start("m-canary"));
    let rig = splitting(&file, split(&[&a, &b], &[&c], 25)).await;
    let mut began = Vec::new();
    for n in 0..120 {
        began.push(turn(&rig, &format!("conversation {n}"), 1).await == "m-canary");
    }
    let share = began.iter().filter(|canary| **canary).count();
    assert!((19..=41).contains(&share), "{share} of 120 at 25%, although all have one system prompt");
    for (n, canary) in began.iter().enumerate() {
        let again = turn(&rig, &format!("conversation {n}"), 3).await == "m-canary";
        assert_eq!(again, *canary, "conversation {n} stays");
    }
    let counted =
        rig.metric("strata_scheduler_track_requests_total{model_name=\"m\",track=\"canary\"}").await;
    assert!((counted - 2.0 * share as f64).abs() < 1e-9);
    assert_eq!(a.got().len() + b.got().len(), 240 - 2 * share);
}

#[tokio::test]
async fn one_prompt_again_and_again_is_split_too() {
    let file = EndpointsFile::new();
    let (a, c) = (Engine::start("m-a"), Engine::start("m-canary"));
    let rig = splitting(&file, split(&[&a], &[&c], 20)).await;
    for _ in 0..200 {
        rig.chat("hello").await;
    }
    let canary = c.got().len();
    assert!((27..=53).contains(&canary), "{canary} of 200 at 20%");
    let decision = rig.chat("hello").await.header("x-strata-decision").to_owned();
    assert!(decision.contains(" track="), "{decision}");
}

#[tokio::test]
async fn a_track_without_a_replica_gives_its_share_to_the_other() {
    let file = EndpointsFile::new();
    let (mut a, mut c) = (Engine::start("m-a"), Engine::start("m-canary"));
    let rig = splitting(&file, split(&[&a], &[&c], 50)).await;
    c.kill();
    rig.ready("m", 1).await;
    for n in 0..20 {
        assert_eq!(turn(&rig, &format!("{n}"), 1).await, "m-a");
    }
    c.restart();
    rig.ready("m", 2).await;
    a.kill();
    // At once, before a scrape has seen it: a request that its track fails goes to the other.
    for n in 0..20 {
        assert_eq!(turn(&rig, &format!("{n}"), 1).await, "m-canary");
    }
    a.restart();
    rig.ready("m", 2).await;
    // A canary that is full holds nobody back.
    c.load(|load| load.waiting = 50.0);
    eventually("it is full", || rig.states("m").iter().any(|s| s.waiting > 40.0)).await;
    for n in 0..20 {
        assert_eq!(turn(&rig, &format!("{n}"), 1).await, "m-a");
    }
}

#[tokio::test]
async fn shares_change_without_a_restart_and_turns_are_taken_within_a_track() {
    let file = EndpointsFile::new();
    let (a, c, d) = (Engine::start("m-a"), Engine::start("m-canary-c"), Engine::start("m-canary-d"));
    let rig = splitting(&file, split(&[&a], &[&c, &d], 0)).await;
    for n in 0..10 {
        assert_eq!(turn(&rig, &format!("{n}"), 1).await, "m-a");
    }
    let all = ModelEndpoints { policy: Some(Policy::RoundRobin), ..split(&[&a], &[&c, &d], 100) };
    file.write(&Endpoints { models: [("m".to_owned(), all)].into() });
    let pool = rig.scheduler.registry.pool("m").unwrap();
    eventually("the share is read", || pool.rules.load().canary_percent == Some(100)).await;
    // Promoted: the few replicas that tried the revision do not take everything.
    let before = a.got().len();
    for n in 0..9 {
        turn(&rig, &format!("{n}"), 1).await;
    }
    assert_eq!((a.got().len() - before, c.got().len(), d.got().len()), (3, 3, 3));
    let half = ModelEndpoints { policy: Some(Policy::RoundRobin), ..split(&[&a], &[&c, &d], 50) };
    file.write(&Endpoints { models: [("m".to_owned(), half)].into() });
    eventually("the share is read", || pool.rules.load().canary_percent == Some(50)).await;
    for _ in 0..40 {
        rig.send(rig.request("/v1/embeddings", r#"{"model":"m","input":"x"}"#)).await;
    }
    assert_eq!((c.got().len(), d.got().len()), (13, 13), "both of the canary's replicas take turns");
}
