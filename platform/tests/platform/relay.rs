//! What is passed on unchanged.

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;
use strata_hop::Body;
use strata_platform::UpstreamKind;
use tokio::sync::mpsc;

use crate::support::*;

#[tokio::test]
async fn bodies_pass_byte_for_byte_and_headers_by_the_table() {
    let world = World::of(UpstreamKind::Gateway).await;
    let odd = "{ \"b\":1.50 , \"a\" : [\"\\u00e9\"] , \"b\":2}";
    let headers = [
        ("authorization", "Bearer ann"),
        ("x-request-id", "mine-1"),
        ("traceparent", "00-1-1-01"),
        ("cookie", "c=1"),
        ("x-strata-cache-scope", "forged"),
        ("x-gateway-inference-objective", "forged"),
        ("baggage", "b"),
        ("x-forwarded-for", "1.2.3.4"),
        ("content-type", "application/json"),
    ];
    let raw = "{\"object\":  \"odd spacing\"}";
    for path in ["/v1/chat/completions?x=1", "/v1/completions", "/v1/embeddings"] {
        world.script([Reply::Whole(
            StatusCode::OK,
            vec![("content-type", "application/json"), ("server", "s")],
            raw.to_owned(),
        )]);
        let answer = world.send("POST", path, &headers, odd).await;
        assert_eq!((answer.status.as_u16(), answer.headers.get("server")), (200, None));
        assert_eq!(answer.headers["x-request-id"], "mine-1");
        assert_eq!(answer.bytes().await, raw);
    }
    for seen in world.seen() {
        assert_eq!(seen.body, odd);
        let mut names: Vec<_> = seen.headers.keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "authorization",
                "content-length",
                "content-type",
                "host",
                "traceparent",
                "x-request-id",
                "x-strata-hop-token"
            ]
        );
        assert_eq!(seen.headers["x-request-id"], "mine-1");
    }
    assert_eq!(world.seen()[0].path, "/v1/chat/completions?x=1");
}

#[tokio::test]
async fn a_stream_passes_as_it_comes() {
    let world = World::new().await;
    let (send, receive) = mpsc::unbounded_channel();
    world.script([Reply::Held(receive)]);
    send.send(Ok(Bytes::from_static(b"data: 0\n\n"))).unwrap();
    let mut answer = world.send("POST", "/v1/chat/completions", &[], "{\"stream\":true}").await;
    assert_eq!(answer.headers["x-strata-decision"], "replica-1", "this client is on this machine");
    assert!(!answer.headers.contains_key("x-strata-cache-scope"));
    assert_eq!(answer.headers["x-request-id"], "minted-below");
    assert_eq!(answer.chunk().await.unwrap(), "data: 0\n\n");
    for k in 1..20 {
        send.send(Ok(Bytes::from(format!("data: {k}\n\n")))).unwrap();
        assert_eq!(answer.chunk().await.unwrap(), format!("data: {k}\n\n"));
    }
    drop(answer);
    tokio::time::timeout(LONG, send.closed()).await.expect("the next layer is let go");
}

#[tokio::test]
async fn refusals_pass_with_their_headers() {
    let world = World::new().await;
    let body = json!({"error": {"message": "slow down", "type": "rate_limit_error", "param": null, "code": "rate_limit_exceeded"}});
    let refusal = || {
        let headers = vec![
            ("retry-after", "7"),
            ("x-ratelimit-remaining-tokens", "0"),
            ("content-type", "application/json"),
        ];
        Reply::Whole(StatusCode::TOO_MANY_REQUESTS, headers, body.to_string())
    };
    for (path, request) in [
        ("/v1/chat/completions", json!({})),
        ("/v1/responses", json!({"model": "m", "input": "1"})),
        ("/v1/responses", json!({"model": "m", "input": "1", "stream": true})),
    ] {
        world.script([refusal()]);
        let answer = world.send("POST", path, &[], request.to_string()).await;
        assert_eq!(answer.headers["retry-after"], "7");
        assert_eq!(answer.headers["x-ratelimit-remaining-tokens"], "0");
        let (status, got) = answer.json().await;
        assert_eq!((status.as_u16(), &got), (429, &body), "{path}");
    }
}

#[tokio::test]
async fn models_keys_and_usage_pass_to_a_gateway() {
    let world = World::of(UpstreamKind::Gateway).await;
    for (method, path) in [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/org/name"),
        ("GET", "/v1/keys"),
        ("POST", "/v1/keys"),
        ("DELETE", "/v1/keys/key_1"),
        ("GET", "/v1/organization/usage/completions?start_time=1"),
    ] {
        world.script([Reply::Whole(StatusCode::OK, vec![], "{}".to_owned())]);
        assert_eq!(world.send(method, path, &[], Body::empty()).await.status, 200, "{method} {path}");
        let seen = world.seen().pop().unwrap();
        assert_eq!((seen.method.as_str(), seen.path.as_str()), (method, path));
    }
    for path in ["/internal/v1/whoami", "/v1/organization/costs", "/sleep", "/v1/models/"] {
        let (status, body) = world.get(path).await;
        assert_eq!(status, 404, "{path}");
        assert_eq!(body["error"]["type"], "invalid_request_error");
    }
}

#[tokio::test]
async fn a_strangers_large_body_is_not_read() {
    let world = World::of(UpstreamKind::Gateway).await;
    let (_never, held) = mpsc::unbounded_channel::<Result<Bytes, std::io::Error>>();
    let body = Body::from_stream(tokio_stream::wrappers::UnboundedReceiverStream::new(held));
    let answer = world.send("POST", "/v1/chat/completions", &[("authorization", "Bearer bad")], body).await;
    assert_eq!((answer.status.as_u16(), world.asked_who()), (401, 1));
    assert!(world.seen().is_empty());

    world.script([Reply::Whole(StatusCode::OK, vec![], "{}".to_owned())]);
    let large = "x".repeat(90_000);
    let answer =
        world.send("POST", "/v1/chat/completions", &[("authorization", "Bearer ann")], large.clone()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(world.seen()[0].body, large);
}

#[tokio::test]
async fn every_answer_has_a_request_id() {
    let world = World::new().await;
    for (given, kept) in [("good-id_1", true), ("bad id", false), ("{\"x\"}", false)] {
        let answer = world.send("GET", "/v1/responses/none", &[("x-request-id", given)], Body::empty()).await;
        let id = answer.headers["x-request-id"].to_str().unwrap();
        assert_eq!(id == given, kept, "{given} {id}");
        assert!(kept || id.len() == 36);
    }
    assert!(world.send("GET", "/nowhere", &[], Body::empty()).await.headers.contains_key("x-request-id"));
    assert!(world.send("GET", "/health", &[], Body::empty()).await.headers.contains_key("x-request-id"));
}

#[tokio::test]
async fn ready_means_that_the_next_layer_answers() {
    let world = World::new().await;
    assert_eq!(world.send("GET", "/ready", &[], Body::empty()).await.status, 200);
    assert_eq!(world.get("/version").await.1["component"], "platform");
    let folder = tempfile::tempdir().unwrap();
    let options =
        strata_platform::PlatformOptions::new("http://127.0.0.1:1", UpstreamKind::Gateway, folder.path());
    let app = strata_platform::App::open(options).unwrap();
    let request = http::Request::get("/ready").body(Body::empty()).unwrap();
    let response = tower::ServiceExt::oneshot(strata_platform::router(app), request).await.unwrap();
    assert_eq!(response.status(), 503);
}
