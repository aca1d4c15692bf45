//! What is counted.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod common;

use axum::response::IntoResponse;
use bytes::Bytes;
use common::{
    DONE, TENANT, World, answer, chunk, eventually, last_chunk, policy, question, stream, streaming,
};
use futures::StreamExt;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use strata_gateway::Role;
use strata_hop::{Body, forward};
use tokio::sync::mpsc;

type Piece = Result<Bytes, std::io::Error>;

/// A stream that says what the test sends, when it sends it.
fn held(world: &World) -> mpsc::Sender<Piece> {
    let (send, receive) = mpsc::channel::<Piece>(1);
    let mut receive = Some(receive);
    world.mock.script(move |_| match receive.take() {
        Some(receive) => streaming(Body::from_stream(futures::stream::unfold(receive, |mut r| async move {
            r.recv().await.map(|piece| (piece, r))
        }))),
        None => answer(1, 1),
    });
    send
}

fn streamed(max_tokens: u64) -> Value {
    let mut body = question(max_tokens);
    body["stream"] = json!(true);
    body
}

#[tokio::test]
async fn a_whole_answer_is_metered_as_the_engine_says() {
    let world = World::new(TENANT).await;
    let key = world.key("acme", Role::Member).await;
    world.mock.script(|_| answer(11, 7));
    let answered = world.chat(&key, &question(20)).await;
    let rows = world.rows(1).await;
    let row = &rows[0];
    assert_eq!((row.prompt_tokens, row.cached_tokens, row.completion_tokens), (11, 4, 7));
    assert_eq!((row.estimated, row.status, row.requests), (false, 200, 1));
    assert_eq!(
        (row.tenant.as_str(), row.model.as_str(), row.endpoint.as_str()),
        ("acme", "m", "chat.completions")
    );
    assert_eq!(row.request_id, answered.header("x-request-id"));
    let decisions = world.ledger().decisions().unwrap();
    assert!(decisions.contains(&("allow".to_owned(), "ok".to_owned(), 1)), "{decisions:?}");
}

#[tokio::test]
async fn maas_1473_a_stream_whose_client_asks_for_no_usage_is_metered_all_the_same() {
    let world = World::new(TENANT).await;
    let key = world.key("acme", Role::Member).await;
    world.mock.script(|seen| {
        let body: Value = serde_json::from_slice(&seen.body).unwrap();
        assert_eq!(body["stream_options"], json!({"include_usage": true, "continuous_usage_stats": true}));
        stream(vec![chunk("a", Some((9, 1))), chunk("b", Some((9, 2))), last_chunk(9, 2), DONE])
    });
    let plain = world.chat(&key, &streamed(20)).await;
    assert_eq!(
        plain.body,
        [chunk("a", None), chunk("b", None), DONE].concat(),
        "as if it had not been asked for"
    );
    assert_eq!(plain.header("content-type"), "text/event-stream; charset=utf-8");

    let mut asking = streamed(20);
    asking["stream_options"] = json!({"include_usage": true});
    let told = String::from_utf8(world.chat(&key, &asking).await.body.to_vec()).unwrap();
    assert_eq!(told.matches("\"usage\":null").count(), 2);
    assert_eq!(told.matches("\"total_tokens\":11").count(), 1);
    for row in world.rows(2).await {
        assert_eq!((row.prompt_tokens, row.completion_tokens, row.estimated), (9, 2, false));
        assert!(row.ttft_ms.is_some());
    }
}

#[tokio::test]
async fn a_stream_without_usage_is_counted_by_its_chunks() {
    let world = World::new(TENANT).await;
    let key = world.key("acme", Role::Member).await;
    world.mock.script(|_| stream(vec![chunk("a", None), chunk("b", None), chunk("c", None), DONE]));
    world.chat(&key, &streamed(20)).await;
    let rows = world.rows(1).await;
    assert_eq!((rows[0].completion_tokens, rows[0].estimated), (3, true));
    assert!(rows[0].prompt_tokens > 0);
}

#[tokio::test]
async fn streaming_is_streaming() {
    let world = World::new(TENANT).await;
    let key = world.key("acme", Role::Member).await;
    let engine = held(&world);
    let sending = world.send(Method::POST, "/v1/chat/completions", &key, streamed(20).to_string());
    let (response, first) = tokio::join!(sending, engine.send(Ok(chunk("0", Some((5, 1))))));
    first.unwrap();
    let mut pieces = std::pin::pin!(forward::chunks(response.into_body(), common::PATIENCE));
    assert_eq!(pieces.next().await.unwrap().unwrap(), chunk("0", None));
    for k in 1..5 {
        // Piece k is read while the engine has not sent piece k + 1.
        engine.send(Ok(chunk(&k.to_string(), Some((5, k + 1))))).await.unwrap();
        assert_eq!(pieces.next().await.unwrap().unwrap(), chunk(&k.to_string(), None));
    }
    assert!(world.ledger().rows_after(0, 0).unwrap().is_empty(), "nothing is settled yet");
    engine.send(Ok(DONE)).await.unwrap();
    assert_eq!(pieces.next().await.unwrap().unwrap(), DONE);
    let written = world.ledger().rows_after(0, 0).unwrap();
    assert_eq!(written[0].1.completion_tokens, 5, "the usage is written before the last byte is sent");
}

#[tokio::test]
async fn litellm_14457_a_client_that_leaves_pays_for_what_was_generated() {
    let world = World::new(&format!(
        "{TENANT}{}",
        policy("t", &json!({"limits": [{"resource": "OutputTokens", "limit": 1000, "window": "1h"}]}))
    ))
    .await;
    let key = world.key("acme", Role::Member).await;
    let engine = held(&world);
    let sending = world.send(Method::POST, "/v1/chat/completions", &key, streamed(500).to_string());
    let (response, first) = tokio::join!(sending, engine.send(Ok(chunk("a", Some((5, 1))))));
    first.unwrap();
    assert_eq!(response.headers()["x-ratelimit-remaining-tokens"], "500");
    {
        let mut pieces = std::pin::pin!(forward::chunks(response.into_body(), common::PATIENCE));
        pieces.next().await.unwrap().unwrap();
        engine.send(Ok(chunk("b", Some((5, 2))))).await.unwrap();
        pieces.next().await.unwrap().unwrap();
    }
    let gone = eventually("the upstream is let go", async || engine.is_closed()).await;
    assert!(gone < std::time::Duration::from_secs(1), "{gone:?}");
    let rows = world.rows(1).await;
    assert_eq!((rows[0].prompt_tokens, rows[0].completion_tokens, rows[0].status), (5, 2, 499));
    let next = world.chat(&key, &question(1)).await;
    assert_eq!(next.header("x-ratelimit-remaining-tokens"), "997", "the rest was given back");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_is_charged_what_was_reserved() {
    let world = World::new(TENANT).await;
    let key = world.key("acme", Role::Member).await;
    let asked = std::sync::Arc::new(tokio::sync::Notify::new());
    let heard = asked.clone();
    world.mock.script(move |_| {
        heard.notify_one();
        let never = futures::stream::pending::<Result<Bytes, std::io::Error>>();
        ([(http::header::CONTENT_TYPE, "application/json")], Body::from_stream(never)).into_response()
    });
    {
        let body = question(70).to_string();
        let mut asking = std::pin::pin!(world.send(Method::POST, "/v1/chat/completions", &key, body));
        tokio::select! {
            _ = &mut asking => panic!("there is no answer"),
            () = asked.notified() => {}
        }
    }
    let rows = world.rows(1).await;
    assert_eq!((rows[0].completion_tokens, rows[0].estimated, rows[0].status), (70, true, 499));
    let metrics = String::from_utf8(world.get("/metrics", "").await.body.to_vec()).unwrap();
    assert!(metrics.contains("strata_gateway_requests_in_flight 0"), "{metrics}");
}

#[tokio::test]
async fn an_upstream_that_does_not_know_this_gateway_is_no_fault_of_the_key() {
    let world = World::new(TENANT).await;
    let key = world.key("acme", Role::Member).await;
    world.mock.script(|_| StatusCode::UNAUTHORIZED.into_response());
    let answered = world.chat(&key, &question(1)).await;
    assert_eq!((answered.status, answered.code().as_str()), (StatusCode::BAD_GATEWAY, "upstream_failed"));
}

#[tokio::test]
async fn an_upstream_that_fails_costs_nothing() {
    let world = World::new(&format!(
        "{TENANT}{}",
        policy("b", &json!({"budget": {"tokens": 3000, "period": "Day"}}))
    ))
    .await;
    let key = world.key("acme", Role::Member).await;
    world.mock.script(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response());
    for _ in 0..5 {
        assert_eq!(world.chat(&key, &question(2500)).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
    for row in world.rows(5).await {
        assert_eq!((row.requests, row.prompt_tokens, row.completion_tokens, row.status), (0, 0, 0, 500));
    }
    world.mock.script(|_| answer(1, 1));
    assert_eq!(world.chat(&key, &question(2500)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_stream_that_breaks_says_so_and_is_charged_as_far_as_it_went() {
    let world = World::new(TENANT).await;
    let key = world.key("acme", Role::Member).await;
    let engine = held(&world);
    let sending = world.send(Method::POST, "/v1/chat/completions", &key, streamed(500).to_string());
    let (response, first) = tokio::join!(sending, engine.send(Ok(chunk("a", Some((5, 1))))));
    first.unwrap();
    engine.send(Err(std::io::Error::other("power cut"))).await.unwrap();
    let answered = common::read(response).await;
    let text = String::from_utf8(answered.body.to_vec()).unwrap();
    assert!(text.contains("\"code\":\"upstream_failed\"") && !text.contains("[DONE]"), "{text}");
    let rows = world.rows(1).await;
    assert_eq!((rows[0].prompt_tokens, rows[0].completion_tokens, rows[0].status), (5, 1, 502));

    // A layer further down broke off, and the one below has told the client already.
    world.mock.script(|_| {
        common::stream(vec![chunk("a", Some((5, 1))), common::event(&json!({"error": {"message": "gone"}}))])
    });
    let answered =
        common::read(world.send(Method::POST, "/v1/chat/completions", &key, streamed(500).to_string()).await)
            .await;
    let text = String::from_utf8(answered.body.to_vec()).unwrap();
    assert_eq!(text.matches("\"error\"").count(), 1, "{text}");
    assert_eq!(world.rows(2).await[1].status, 502);
}

#[tokio::test]
async fn every_inference_endpoint_is_metered() {
    let world = World::new(TENANT).await;
    let key = world.key("acme", Role::Member).await;
    world.post("/v1/completions", &key, &json!({"model": "m", "prompt": "x"})).await;
    assert!(String::from_utf8_lossy(&world.mock.last().body).contains("\"max_tokens\":16"));
    world.post("/v1/embeddings", &key, &json!({"model": "m", "input": ["x", "y"]})).await;
    assert_eq!(world.mock.last().body, json!({"model": "m", "input": ["x", "y"]}).to_string());
    let endpoints: Vec<String> = world.rows(2).await.into_iter().map(|r| r.endpoint).collect();
    assert_eq!(endpoints, ["completions", "embeddings"]);
}

#[tokio::test]
async fn usage_is_reported_to_admins_as_openai_does() {
    let other = TENANT.replace("acme", "zeta");
    let world = World::new(&format!("{TENANT}---{other}")).await;
    let (admin, member) = (world.key("acme", Role::Admin).await, world.key("acme", Role::Member).await);
    let stranger = world.key("zeta", Role::Admin).await;
    world.mock.script(|_| answer(10, 5));
    for _ in 0..2 {
        world.chat(&member, &question(20)).await;
    }
    world.clock.advance(60_000);
    let mut big = question(20);
    big["model"] = json!("big");
    world.chat(&admin, &big).await;
    world.rows(3).await;
    let start = common::midday() / 1000;
    let path = format!(
        "/v1/organization/usage/completions?start_time={start}&bucket_width=1m&limit=3&group_by[]=model&end_time={}",
        start + 120
    );
    assert_eq!(world.get(&path, &member).await.status, StatusCode::FORBIDDEN);
    let page = world.get(&path, &admin).await.json();
    let shown: Vec<(String, u64, u64)> = page["data"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|bucket| bucket["results"].as_array().unwrap())
        .map(|r| {
            (
                r["model"].as_str().unwrap().to_owned(),
                r["input_tokens"].as_u64().unwrap(),
                r["num_model_requests"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(shown, [("m".to_owned(), 20, 2), ("big".to_owned(), 10, 1)]);
    assert_eq!(page["data"][0]["start_time"], start);
    assert_eq!(page["has_more"], false);
    let foreign = world.get(&path, &stranger).await.json();
    assert!(foreign["data"].as_array().unwrap().iter().all(|b| b["results"] == json!([])));
    let bad = world.get("/v1/organization/usage/completions", &admin).await;
    assert_eq!(
        (bad.status, bad.json()["error"]["param"].as_str()),
        (StatusCode::BAD_REQUEST, Some("start_time"))
    );
    let sums = world.ledger().usage_by(Some("acme"), 0, i64::MAX).unwrap();
    assert_eq!(
        sums.iter().map(|s| (s.day.as_str(), s.model.as_str(), s.requests)).collect::<Vec<_>>(),
        [("2026-11-18", "big", 1), ("2026-11-18", "m", 2)]
    );
}
