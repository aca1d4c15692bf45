//! What crosses from the gateway to the layer below, and what comes back.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod common;

use axum::response::IntoResponse;
use common::{TENANT, World, answer, question, read};
use http::StatusCode;
use serde_json::{Value, json};
use strata_gateway::Role;
use strata_hop::Body;
use strata_wire::hops::Hop;

#[tokio::test]
async fn only_the_table_crosses() {
    let world = World::new(TENANT).await;
    let key = world.key("acme", Role::Member).await;
    let request = http::Request::post(format!("{}/v1/chat/completions", world.url))
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json")
        .header("accept", "*/*")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .header("cookie", "session=1")
        .header("x-api-key", "other")
        .header("openai-organization", "org")
        .header("x-request-id", "theirs")
        .header("x-session-id", "theirs")
        .header("x-forwarded-for", "10.0.0.9")
        .header("x-gateway-inference-fairness-id", "forged")
        .header("x-gateway-inference-objective", "priority-1000")
        .header("x-strata-cache-scope", "forged")
        .header("x-strata-request-id", "forged")
        .header("x-strata-hop-token", "forged")
        .header("x-strata-deadline-ms", "1")
        .header("baggage", "user=me")
        .body(Body::from(
            json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "user": "u", "metadata": {"a": "b"},
                   "safety_identifier": "s", "cache_salt": "forged", "kv_transfer_params": {"host": "evil"}, "priority": -9})
            .to_string(),
        ))
        .unwrap();
    let answered = read(world.send_request(request).await).await;
    assert_eq!(answered.status, StatusCode::OK);
    let seen = world.mock.last();
    let hop = Hop::GatewayToScheduler;
    for name in seen.headers.keys() {
        assert!(hop.allows(name.as_str()), "{name} must not cross");
    }
    let value = |name: &str| seen.headers[name].to_str().unwrap().to_owned();
    for name in hop.added() {
        assert!(seen.headers.contains_key(*name), "{name} must cross");
        assert_ne!(value(name), "forged");
    }
    assert_eq!(value("x-gateway-inference-objective"), "priority-0");
    assert_eq!(value("x-strata-hop-token"), "hop-secret");
    assert_eq!(value("traceparent").len(), 55);
    assert_eq!(value("x-strata-request-id"), answered.header("x-request-id"));
    assert!(value("x-strata-deadline-ms").parse::<u64>().unwrap() > 1_700_000);
    let all = format!("{:?}{:?}", seen.headers, seen.body);
    let secret = key.split_once('_').unwrap().1;
    for word in ["acme", "gold", secret, "theirs", "10.0.0.9"] {
        assert!(!all.contains(word), "{word} crossed");
    }
    let body: Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!(
        body,
        json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1024})
    );
}

#[tokio::test]
async fn the_cache_scope_is_the_tenants_own_unless_it_shares() {
    let tenants = ["private", "one", "two"].map(|name| {
        let sharing = if name == "private" { "Private" } else { "Shared" };
        format!(
            "apiVersion: strata.dev/v1alpha1\nkind: Tenant\nmetadata: {{name: {name}}}\nspec: {{models: [\"*\"], cacheSharing: {sharing}}}\n"
        )
    });
    let world = World::new(&tenants.join("---\n")).await;
    let mut scopes = Vec::new();
    for name in ["private", "one", "two"] {
        let key = world.key(name, Role::Member).await;
        world.chat(&key, &question(1)).await;
        let headers = world.mock.last().headers;
        scopes.push((
            headers["x-strata-cache-scope"].clone(),
            headers["x-gateway-inference-fairness-id"].clone(),
        ));
    }
    assert_eq!(scopes[1].0, scopes[2].0);
    assert_ne!(scopes[0].0, scopes[1].0);
    assert_ne!(scopes[1].1, scopes[2].1, "fairness stays apart");
}

#[tokio::test]
async fn internal_headers_do_not_come_back() {
    let world = World::new(TENANT).await;
    let key = world.key("acme", Role::Member).await;
    world.mock.script(|_| {
        let mut response = answer(1, 1);
        for (name, value) in [
            ("x-strata-decision", "because"),
            ("x-strata-cache-scope", "s"),
            ("x-ratelimit-limit-requests", "7"),
            ("set-cookie", "a=b"),
            ("server", "engine"),
            ("x-request-id", "engine-1"),
        ] {
            response.headers_mut().insert(name, http::HeaderValue::from_static(value));
        }
        response
    });
    let answered = world.chat(&key, &question(1)).await;
    let mut names: Vec<&str> = answered.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    // The peer is on loopback, so it may see why the replica was picked.
    assert_eq!(names, ["content-length", "content-type", "date", "x-request-id", "x-strata-decision"]);
    assert_ne!(answered.header("x-request-id"), "engine-1");
}

#[tokio::test]
async fn bytes_pass_unread_and_errors_pass_through() {
    let world = World::new(TENANT).await;
    let key = world.key("acme", Role::Member).await;
    let body: &[u8] = b" {\"messages\":[{\"role\":\"user\",\"content\":\"\xff\xfe \\u0041\"}] , \"max_tokens\" : 3,\"user\":\"u\",\"model\":\"m\" }";
    let answered = world.ask(http::Method::POST, "/v1/chat/completions", &key, body.to_vec()).await;
    assert_eq!(answered.status, StatusCode::OK);
    assert_eq!(
        world.mock.last().body,
        &b" {\"messages\":[{\"role\":\"user\",\"content\":\"\xff\xfe \\u0041\"}] , \"max_tokens\" : 3,\"model\":\"m\" }"[..]
    );
    world.mock.script(|_| {
        (StatusCode::BAD_REQUEST, axum::Json(json!({"error": {"message": "too long", "type": "invalid_request_error", "param": null, "code": "context_length_exceeded"}}))).into_response()
    });
    let refused = world.chat(&key, &question(3)).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (StatusCode::BAD_REQUEST, "context_length_exceeded")
    );

    for (bad, status) in [
        ("{\"model\":", StatusCode::BAD_REQUEST),
        ("{\"model\":\"m\",\"max_tokens\":-1}", StatusCode::BAD_REQUEST),
        ("{\"model\":\"m\",\"model\":\"big\"}", StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(world.ask(http::Method::POST, "/v1/chat/completions", &key, bad).await.status, status);
    }
    let large = vec![b' '; 50 * 1024 * 1024];
    let mut request =
        http::Request::post(format!("{}/v1/chat/completions", world.url)).body(Body::from(large)).unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    let refused = read(world.send_request(request).await).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large")
    );
}
