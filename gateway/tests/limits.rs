//! How much is let through.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{TENANT, World, answer, eventually, policy, question};
use http::StatusCode;
use serde_json::{Value, json};
use strata_gateway::{Clock, Role};

fn requests(limit: u64, window: &str) -> Value {
    json!({"limits": [{"resource": "Requests", "limit": limit, "window": window}]})
}

fn with(policies: &[(&str, Value)]) -> String {
    policies.iter().fold(TENANT.to_owned(), |text, (name, spec)| text + &policy(name, spec))
}

#[tokio::test]
async fn a_full_window_is_a_429_whose_retry_after_is_true() {
    let world = World::new(&with(&[("rpm", requests(2, "1m"))])).await;
    let key = world.key("acme", Role::Member).await;
    let first = world.chat(&key, &question(1)).await;
    assert_eq!(first.header("x-ratelimit-limit-requests"), "2");
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "1");
    assert!(first.header("x-ratelimit-reset-requests").starts_with("1m"));
    world.clock.advance(10_000);
    world.chat(&key, &question(1)).await;
    let refused = world.chat(&key, &question(1)).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded")
    );
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), "0");
    let wait: i64 = refused.header("retry-after").parse().unwrap();
    assert!((50..=51).contains(&wait), "{wait}");
    world.clock.advance((wait - 2) * 1000);
    assert_eq!(world.chat(&key, &question(1)).await.status, StatusCode::TOO_MANY_REQUESTS);
    world.clock.advance(2000);
    assert_eq!(world.chat(&key, &question(1)).await.status, StatusCode::OK);
    let models = world.get("/v1/models", &key).await;
    assert_eq!(models.status, StatusCode::OK, "MaaS#370: the list of models is not limited");
}

#[tokio::test]
async fn a_spent_budget_is_insufficient_quota_until_the_next_month() {
    let world =
        World::new(&with(&[("budget", json!({"budget": {"tokens": 1000, "period": "Month"}}))])).await;
    let key = world.key("acme", Role::Member).await;
    world.mock.script(|_| answer(100, 800));
    assert_eq!(world.chat(&key, &question(800)).await.status, StatusCode::OK);
    let refused = world.chat(&key, &question(100)).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (StatusCode::TOO_MANY_REQUESTS, "insufficient_quota")
    );
    assert_eq!(refused.json()["error"]["type"], "insufficient_quota");
    assert_eq!(refused.header("x-should-retry"), "false");
    let wait: i64 = refused.header("retry-after").parse().unwrap();
    world.clock.advance((wait - 1) * 1000);
    assert_eq!(world.chat(&key, &question(100)).await.code(), "insufficient_quota");
    world.clock.advance(1000);
    assert_eq!(world.chat(&key, &question(100)).await.status, StatusCode::OK);
    let huge = world.chat(&key, &question(5000)).await;
    assert_eq!((huge.code().as_str(), huge.header("retry-after")), ("insufficient_quota", ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn litellm_34732_budget_overshoot_under_concurrency() {
    let body = question(8);
    // What the gateway reserves: the body, the template and the output.
    let reserved = body.to_string().len() as u64 + 10 + 8;
    let budget = reserved * 10 + 3;
    let world =
        World::new(&with(&[("budget", json!({"budget": {"tokens": budget, "period": "Month"}}))])).await;
    let key = world.key("acme", Role::Member).await;
    // An engine that uses every token that was reserved.
    world.mock.script(move |_| answer(reserved - 8, 8));
    let world = Arc::new(world);
    let clients: Vec<_> = (0..64)
        .map(|_| {
            let (world, key, body) = (world.clone(), key.clone(), body.clone());
            tokio::spawn(async move { world.chat(&key, &body).await.status })
        })
        .collect();
    let mut admitted = 0;
    for client in clients {
        match client.await.unwrap() {
            StatusCode::OK => admitted += 1,
            status => assert_eq!(status, StatusCode::TOO_MANY_REQUESTS),
        }
    }
    assert_eq!(admitted, 10, "as many as fit: none over, none under");
    let used: u64 = world.rows(10).await.iter().map(|r| r.prompt_tokens + r.completion_tokens).sum();
    assert!(used <= budget, "{used} of {budget}");
}

#[tokio::test]
async fn limitador_reset_on_restart_counters_are_remembered() {
    let policies =
        [("budget", json!({"budget": {"tokens": 1000, "period": "Month"}})), ("rpm", requests(3, "1m"))];
    let mut world = World::new(&with(&policies)).await;
    let key = world.key("acme", Role::Member).await;
    world.mock.script(|_| answer(300, 300));
    world.chat(&key, &question(600)).await;
    world.restart().await;
    let second = world.chat(&key, &question(1)).await;
    assert_eq!(second.header("x-ratelimit-remaining-requests"), "1");
    let refused = world.chat(&key, &question(400)).await;
    assert_eq!(refused.code(), "insufficient_quota");
}

#[tokio::test]
async fn shenyu_6649_counters_survive_edits_of_their_policy() {
    let world = World::new(&with(&[("rpm", requests(2, "1m"))])).await;
    let key = world.key("acme", Role::Member).await;
    for _ in 0..2 {
        assert_eq!(world.chat(&key, &question(1)).await.status, StatusCode::OK);
    }
    assert_eq!(world.chat(&key, &question(1)).await.status, StatusCode::TOO_MANY_REQUESTS);
    world.edit(&with(&[("rpm", requests(4, "1m"))]));
    eventually("the limit is raised", async || world.chat(&key, &question(1)).await.status == StatusCode::OK)
        .await;
    let again = world.chat(&key, &question(1)).await;
    assert_eq!(again.header("x-ratelimit-remaining-requests"), "0", "what was used before still counts");
    // Another window is another counter, and it too knows what was used.
    world.edit(&with(&[("rpm", requests(4, "1h"))]));
    eventually("the window is longer", async || {
        world.chat(&key, &question(1)).await.header("retry-after").parse::<u64>().is_ok_and(|s| s > 3000)
    })
    .await;
}

#[tokio::test]
async fn limits_of_keys_and_of_tenants_both_hold() {
    let per_key = json!({"limits": [{"resource": "Requests", "limit": 2, "window": "1m", "per": "Key"}]});
    let world = World::new(&with(&[("key", per_key), ("tenant", requests(3, "1m"))])).await;
    let (one, two) = (world.key("acme", Role::Member).await, world.key("acme", Role::Member).await);
    let status = async |key: &str| world.chat(key, &question(1)).await.status;
    assert_eq!([status(&one).await, status(&one).await], [StatusCode::OK; 2]);
    let refused = world.chat(&one, &question(1)).await;
    assert!(refused.json()["error"]["message"].as_str().unwrap().contains("policy key"));
    assert_eq!(status(&two).await, StatusCode::OK);
    let refused = world.chat(&two, &question(1)).await;
    assert!(refused.json()["error"]["message"].as_str().unwrap().contains("policy tenant"));
}

#[tokio::test]
async fn users_of_a_tenant_have_their_own_limits() {
    let per_user = json!({"limits": [{"resource": "Requests", "limit": 1, "window": "1m", "per": "User"}]});
    let world = World::new(&with(&[("user", per_user)])).await;
    let key = world.key("acme", Role::Member).await;
    let ask = async |user: &str| {
        let mut body = question(1);
        body["user"] = json!(user);
        world.chat(&key, &body).await.status
    };
    assert_eq!(ask("ann").await, StatusCode::OK);
    assert_eq!(ask("ann").await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(ask("bob").await, StatusCode::OK);
    let rows = world.rows(2).await;
    assert!(
        rows.iter().all(|r| r.user_hash.as_ref().is_some_and(|h| !h.contains("ann") && !h.contains("bob")))
    );
}

#[tokio::test]
async fn a_request_may_wait_for_its_window() {
    let wait = json!({"limits": [{"resource": "Requests", "limit": 1, "window": "1s", "onExceed": "Wait"}]});
    let world = World::with(&with(&[("wait", wait)]), Clock::System).await;
    let key = world.key("acme", Role::Member).await;
    let started = Instant::now();
    assert_eq!(world.chat(&key, &question(1)).await.status, StatusCode::OK);
    assert_eq!(world.chat(&key, &question(1)).await.status, StatusCode::OK);
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_limit_on_trial_refuses_nothing_and_is_reported() {
    let trial = json!({"limits": [{"resource": "Requests", "limit": 1, "window": "1m", "enforce": false}]});
    let world = World::new(&with(&[("trial", trial)])).await;
    let key = world.key("acme", Role::Member).await;
    for _ in 0..3 {
        assert_eq!(world.chat(&key, &question(1)).await.status, StatusCode::OK);
    }
    let metrics = String::from_utf8(world.get("/metrics", "").await.body.to_vec()).unwrap();
    assert!(metrics.contains("strata_gateway_requests_would_refuse_total 2"), "{metrics}");
}

#[tokio::test]
async fn higress_4067_a_request_that_no_policy_counts_is_visible() {
    let world = World::new(TENANT).await;
    let key = world.key("acme", Role::Member).await;
    world.chat(&key, &question(1)).await;
    let metrics = String::from_utf8(world.get("/metrics", "").await.body.to_vec()).unwrap();
    assert!(metrics.contains("strata_gateway_requests_unmatched_total 1"), "{metrics}");
    for secret in ["acme", key.as_str(), key.split(['-', '_']).nth(2).unwrap()] {
        assert!(!metrics.contains(secret));
    }
}

#[tokio::test]
async fn litellm_21312_a_request_that_fails_by_its_own_fault_counts() {
    use axum::response::IntoResponse;
    let world = World::new(&with(&[("rpm", requests(2, "1m"))])).await;
    let key = world.key("acme", Role::Member).await;
    world.mock.script(|_| StatusCode::SERVICE_UNAVAILABLE.into_response());
    assert_eq!(world.chat(&key, &question(1)).await.status, StatusCode::SERVICE_UNAVAILABLE);
    world.mock.script(|_| StatusCode::BAD_REQUEST.into_response());
    let failed = world.chat(&key, &question(1)).await;
    assert_eq!(failed.status, StatusCode::BAD_REQUEST);
    world.mock.script(|_| answer(1, 1));
    let last = world.chat(&key, &question(1)).await;
    assert_eq!(last.header("x-ratelimit-remaining-requests"), "0", "the 503 was given back, the 400 was not");
}

#[tokio::test]
async fn requests_in_flight_are_limited() {
    let world = World::new(&with(&[("few", json!({"concurrency": {"requests": 1}}))])).await;
    let key = world.key("acme", Role::Member).await;
    let (send, receive) = tokio::sync::mpsc::channel::<Result<bytes::Bytes, std::io::Error>>(1);
    let mut receive = Some(receive);
    world.mock.script(move |_| match receive.take() {
        Some(receive) => common::streaming(strata_hop::Body::from_stream(futures::stream::unfold(
            receive,
            |mut r| async move { r.recv().await.map(|piece| (piece, r)) },
        ))),
        None => answer(1, 1),
    });
    let mut body = question(5);
    body["stream"] = json!(true);
    let held = world.send(http::Method::POST, "/v1/chat/completions", &key, body.to_string()).await;
    let refused = world.chat(&key, &question(5)).await;
    assert_eq!((refused.status, refused.header("retry-after")), (StatusCode::TOO_MANY_REQUESTS, "1"));
    send.send(Ok(common::DONE)).await.unwrap();
    drop(send);
    common::read(held).await;
    assert_eq!(world.chat(&key, &question(5)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn what_is_in_flight_stays_reserved_through_an_edit() {
    let output =
        |limit: u64| json!({"limits": [{"resource": "OutputTokens", "limit": limit, "window": "1m"}]});
    let world = World::new(&with(&[("out", output(1000))])).await;
    let key = world.key("acme", Role::Member).await;
    let (send, receive) = tokio::sync::mpsc::channel::<Result<bytes::Bytes, std::io::Error>>(1);
    let mut receive = Some(receive);
    world.mock.script(move |_| match receive.take() {
        Some(receive) => common::streaming(strata_hop::Body::from_stream(futures::stream::unfold(
            receive,
            |mut r| async move { r.recv().await.map(|piece| (piece, r)) },
        ))),
        None => answer(1, 0),
    });
    let mut body = question(600);
    body["stream"] = json!(true);
    let held = world.send(http::Method::POST, "/v1/chat/completions", &key, body.to_string()).await;
    world.edit(&with(&[("out", output(2000))]));
    let remaining =
        async || world.chat(&key, &question(1)).await.header("x-ratelimit-remaining-tokens").to_owned();
    eventually("the limit is raised", async || {
        world.chat(&key, &question(1)).await.header("x-ratelimit-limit-tokens") == "2000"
    })
    .await;
    assert_eq!(remaining().await, "1399", "the stream's 600 and this request's 1 are reserved");
    send.send(Ok(common::last_chunk(5, 40))).await.unwrap();
    send.send(Ok(common::DONE)).await.unwrap();
    drop(send);
    common::read(held).await;
    assert_eq!(remaining().await, "1959", "the stream is settled under the new policy");
}
