//! Answers that break off after their first words and go on at another replica.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use strata_scheduler::SchedulerOptions;

use crate::support::{Does, Engine, Rig, eventually, quick};

/// Two engines of Strata's own, the first of which is chosen and breaks off after two words.
async fn pair(continuation: bool) -> (Engine, Engine, Rig, String) {
    let (a, b) = (Engine::start("m-0"), Engine::start("m-1"));
    for engine in [&a, &b] {
        engine.tokenises().inner.ours.store(true, Ordering::SeqCst);
    }
    let rig = Rig::before(&[&a, &b], SchedulerOptions { continuation, ..quick() }).await;
    let prompt = "long ".repeat(1000);
    b.load(|load| load.waiting = 1.0);
    eventually("the second is busier", || rig.states("m").iter().any(|s| s.waiting > 0.0)).await;
    let reply = rig.chat(&prompt).await;
    assert_eq!(reply.header("x-strata-replica"), a.url().trim_start_matches("http://"));
    a.does(Does::Break(2));
    (a, b, rig, prompt)
}

/// The words of a stream, and its last event.
fn words(events: &[String]) -> (String, String) {
    let word = |event: &String| {
        let chunk: Value = serde_json::from_str(event).ok()?;
        chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
    };
    (events.iter().filter_map(word).collect(), events.last().unwrap().clone())
}

async fn outcome(rig: &Rig, outcome: &str) -> f64 {
    let name = "strata_scheduler_continuations_total{model_name=\"m\",outcome=";
    rig.metric(&format!("{name}\"{outcome}\"}}")).await
}

#[tokio::test]
async fn the_client_sees_one_answer() {
    let (a, b, rig, prompt) = pair(true).await;
    b.says_cached(900, 1300);
    let (text, last) = words(&rig.stream(&prompt).await.rest().await);
    assert_eq!((text.as_str(), last.as_str()), ("01012", "[DONE]"));
    assert!((outcome(&rig, "continued").await - 1.0).abs() < 1e-9);
    assert_eq!((a.got().len(), b.got().len()), (2, 1));
    let asked: Value = serde_json::from_slice(&b.got()[0].body).unwrap();
    assert_eq!(asked["messages"][1], json!({"role": "assistant", "content": "01"}));
    assert_eq!(
        (&asked["continue_final_message"], &asked["add_generation_prompt"]),
        (&json!(true), &json!(false))
    );
    eventually("the books are closed", || rig.states("m").iter().all(|state| state.in_flight == 0)).await;
    let text = String::from_utf8(rig.get("/metrics").await.body.to_vec()).unwrap();
    assert!(!text.contains("broken_responses_total{"), "it did not break off");
}

#[tokio::test]
async fn its_usage_is_one() {
    let (_a, b, rig, prompt) = pair(true).await;
    b.says_cached(900, 1300);
    let events = rig.stream(&prompt).await.rest().await;
    let usage: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    // The prompt is a token for each character, as the engines count.
    let prompt = "<|user|><|assistant|>".len() + prompt.len();
    assert_eq!(
        usage["usage"],
        json!({
            "prompt_tokens": prompt, "completion_tokens": 3, "total_tokens": prompt + 3,
            "prompt_tokens_details": {"cached_tokens": 900},
        })
    );
}

#[tokio::test]
async fn what_cannot_be_exact_ends_as_before() {
    let (a, b, rig, prompt) = pair(true).await;
    let ask = async |more: Value| {
        let mut body =
            json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": prompt}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let request = rig.request("/v1/chat/completions", body.to_string());
        words(&rig.open(request).await.rest().await)
    };
    for more in [json!({"n": 2}), json!({"seed": 1}), json!({"logprobs": true})] {
        let (text, last) = ask(more).await;
        assert_eq!(text, "01");
        assert!(last.contains("upstream_failed"), "{last}");
    }
    assert!((outcome(&rig, "not_exact").await - 3.0).abs() < 1e-9);
    assert!((rig.metric("strata_scheduler_broken_responses_total").await - 3.0).abs() < 1e-9);
    // Nor where the second would read the words otherwise.
    b.inner.ours.store(false, Ordering::SeqCst);
    eventually("the second is somebody else's", || {
        let replicas = rig.scheduler.registry.replicas();
        replicas.iter().any(|replica| replica.models().iter().any(|model| model.owned_by != "strata"))
    })
    .await;
    let (text, last) = ask(json!({})).await;
    assert_eq!(text, "01");
    assert!(last.contains("upstream_failed"), "{last}");
    assert!(b.got().is_empty() && a.got().len() == 5);
}

#[tokio::test]
async fn it_is_off_until_it_is_asked_for() {
    let (_a, b, rig, prompt) = pair(false).await;
    let (text, last) = words(&rig.stream(&prompt).await.rest().await);
    assert_eq!(text, "01");
    assert!(last.contains("upstream_failed"), "{last}");
    assert!(b.got().is_empty());
}

#[tokio::test]
async fn a_second_that_breaks_too_is_gone_on_with() {
    let (_a, b, rig, prompt) = pair(true).await;
    b.does(Does::Break(1));
    let (text, last) = words(&rig.stream(&prompt).await.rest().await);
    assert_eq!(text, "010", "the second's words are the client's, too");
    assert!(last.contains("upstream_failed"), "no third is there: {last}");
    assert!((outcome(&rig, "no_retry").await - 1.0).abs() < 1e-9);
}
