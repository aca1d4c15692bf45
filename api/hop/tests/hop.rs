//! The listener and the client against each other.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::{get, post};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use strata_hop::{
    Above, Bound, Fault, HopToken, ListenError, SendError, Upstream, caller, fault, forward, spool,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

async fn start(router: Router) -> (String, CancellationToken, tokio::task::JoinHandle<()>) {
    let bound = Bound::bind("127.0.0.1:0").await.unwrap();
    let (url, stop) = (bound.url(), CancellationToken::new());
    let task = tokio::spawn(bound.serve(router, stop.clone(), Duration::from_secs(5)));
    (url, stop, task)
}

fn get_request(url: &str) -> Request<Body> {
    Request::get(url).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn a_stream_that_has_begun_is_finished_after_shutdown() {
    let (send, receive) = mpsc::unbounded_channel::<Result<Bytes, std::io::Error>>();
    let receive = std::sync::Arc::new(std::sync::Mutex::new(Some(receive)));
    let router = Router::new().route(
        "/",
        get(move || {
            let receive = receive.lock().unwrap().take().unwrap();
            async move {
                Body::from_stream(futures::stream::unfold(receive, |mut r| async move {
                    r.recv().await.map(|item| (item, r))
                }))
            }
        }),
    );
    let (url, stop, task) = start(router).await;
    let response = Upstream::new().send(get_request(&url), Duration::from_secs(5)).await.unwrap();
    let mut chunks = std::pin::pin!(forward::chunks(response.into_body(), Duration::from_secs(5)));
    send.send(Ok(Bytes::from_static(b"one"))).unwrap();
    assert_eq!(chunks.next().await.unwrap().unwrap(), "one");
    stop.cancel();
    send.send(Ok(Bytes::from_static(b"two"))).unwrap();
    drop(send);
    assert_eq!(chunks.next().await.unwrap().unwrap(), "two");
    assert!(chunks.next().await.is_none());
    task.await.unwrap();
    let refused = Upstream::new().send(get_request(&url), Duration::from_secs(5)).await;
    assert!(matches!(refused, Err(SendError::Connect { .. })), "{refused:?}");
}

#[tokio::test]
async fn silence_ends_a_stream_and_a_request() {
    let router = Router::new().route("/never", get(|| async { std::future::pending::<()>().await })).route(
        "/stall",
        get(|| async { Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>()) }),
    );
    let (url, _stop, _task) = start(router).await;
    let client = Upstream::new();
    let late = client.send(get_request(&format!("{url}/never")), Duration::from_millis(50)).await;
    assert!(matches!(late, Err(SendError::Timeout { .. })));
    let response = client.send(get_request(&format!("{url}/stall")), Duration::from_secs(5)).await.unwrap();
    let mut chunks = std::pin::pin!(forward::chunks(response.into_body(), Duration::from_millis(50)));
    let error = chunks.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn an_address_in_use_is_said_so() {
    let first = Bound::bind("127.0.0.1:0").await.unwrap();
    let second = Bound::bind(&first.addr().to_string()).await;
    assert!(matches!(second, Err(ListenError::InUse { .. })));
}

#[tokio::test]
async fn the_token_guards_all_but_health() {
    let token = HopToken::new("secret").unwrap();
    let router = fault::with_openai_fallbacks(
        Router::new().route("/health", get(|| async { "ok" })).route("/x", get(|| async { "x" })),
    )
    .layer(axum::middleware::from_fn_with_state(Above::new(Some(token.clone()), None, &[]), caller::require));
    let (url, _stop, _task) = start(router).await;
    let client = Upstream::new();
    let status = async |path: &str, with: Option<&HopToken>| {
        let mut request = get_request(&format!("{url}{path}"));
        if let Some(token) = with {
            token.attach(request.headers_mut());
        }
        client.send(request, Duration::from_secs(5)).await.unwrap().status()
    };
    assert_eq!(status("/health", None).await, StatusCode::OK);
    assert_eq!(status("/x", None).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status("/x", HopToken::new("secreT").as_ref()).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status("/x", Some(&token)).await, StatusCode::OK);
    assert_eq!(status("/none", Some(&token)).await, StatusCode::NOT_FOUND);
    assert_eq!(format!("{token:?}"), "HopToken(redacted)");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_with_or_without_its_length() {
    let router = Router::new().route(
        "/",
        post(|request: axum::extract::Request| async {
            spool::read(request.into_body(), 1000).await.map(|b| b.len().to_string())
        }),
    );
    let (url, _stop, _task) = start(router).await;
    let client = Upstream::new();
    let post = async |body: Body| {
        let request = Request::post(&url).body(body).unwrap();
        client.send(request, Duration::from_secs(5)).await.unwrap().status()
    };
    assert_eq!(post(Body::from(vec![0; 1000])).await, StatusCode::OK);
    assert_eq!(post(Body::from(vec![0; 1001])).await, StatusCode::PAYLOAD_TOO_LARGE);
    let chunked = futures::stream::iter((0..11).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![0; 100]))));
    assert_eq!(post(Body::from_stream(chunked)).await, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_connection_whose_body_was_left_is_said_to_close() {
    let router = Router::new().route("/left", post(|| async { "early" })).route(
        "/read",
        post(|request: axum::extract::Request| async {
            spool::read(request.into_body(), 1000).await.map(|b| b.len().to_string())
        }),
    );
    let (url, _stop, _task) = start(fault::with_openai_fallbacks(router)).await;
    let client = Upstream::new();
    let closes = async |path: &str, body: &'static str| {
        let request = Request::post(format!("{url}{path}")).body(Body::from(body)).unwrap();
        let response = client.send(request, Duration::from_secs(5)).await.unwrap();
        response.headers().get("connection").is_some_and(|v| v == "close")
    };
    for (path, body, expected) in
        [("/left", "body", true), ("/none", "body", true), ("/left", "", false), ("/read", "body", false)]
    {
        assert_eq!(closes(path, body).await, expected, "{path} {body}");
    }
}

#[test]
fn a_fault_rounds_its_retry_up() {
    use axum::response::IntoResponse;
    let fault = Fault::new(strata_wire::ErrorKind::RateLimitExceeded, "full")
        .retry_after(Duration::from_millis(1200));
    let response = fault.into_response();
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "2");
}

#[test]
fn headers_pass_by_the_table_only() {
    let mut received = HeaderMap::new();
    for (name, value) in [
        ("authorization", "Bearer k"),
        ("cookie", "c"),
        ("traceparent", "t"),
        ("x-strata-cache-scope", "forged"),
    ] {
        received.insert(name, HeaderValue::from_static(value));
    }
    let passed = forward::request_headers(&received, strata_wire::hops::Hop::GatewayToScheduler);
    assert_eq!(passed.keys().map(http::HeaderName::as_str).collect::<Vec<_>>(), ["traceparent"]);
}

/// What a listener answers to a head with a field of so many bytes: the status line, and the body.
async fn answer_to_head(url: &str, bytes: usize) -> (String, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(url.trim_start_matches("http://")).await.unwrap();
    let head =
        format!("GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\nx-large: {}\r\n\r\n", "x".repeat(bytes));
    let (mut reads, mut writes) = stream.split();
    let mut answer = Vec::new();
    // One that is refused early may be cut off while it is still being sent.
    let (_, _) = tokio::join!(writes.write_all(head.as_bytes()), reads.read_to_end(&mut answer));
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

#[tokio::test]
async fn a_head_is_bounded_and_the_refusal_says_so() {
    let (url, _stop, _task) = start(Router::new().route("/", get(|| async { "taken" }))).await;
    let (status, body) = answer_to_head(&url, 65_000).await;
    assert_eq!((status.as_str(), body.as_str()), ("HTTP/1.1 200 OK", "taken"));
    for bytes in [65_536, 80_000, 120_000] {
        let (status, body) = answer_to_head(&url, bytes).await;
        assert!(status.starts_with("HTTP/1.1 431"), "{bytes}: {status}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert_eq!(body["error"]["code"], "request_header_fields_too_large");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains("at most 65536"), "{message}");
    }
    for bytes in [200_000, 300_000, 1_000_000] {
        let (status, _) = answer_to_head(&url, bytes).await;
        // The connection of one that is far too large may be reset before its refusal is read.
        assert!(status.is_empty() || status.starts_with("HTTP/1.1 431"), "{bytes}: {status}");
    }
}
