//! Connections that the requests move themselves, and threads that serve their own connections.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Extension;
use axum::routing::{get, post};
use bytes::Bytes;
use futures::StreamExt;
use http::Request;
use http_body_util::BodyExt;
use strata_hop::listen::Peer;
use strata_hop::{Bound, SendError, Upstream, forward};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);

/// Who called, and on which threads that was answered.
#[derive(Clone, Default)]
struct Seen {
    peers: Arc<Mutex<Vec<u16>>>,
    threads: Arc<Mutex<BTreeSet<String>>>,
}

impl Seen {
    fn connections(&self) -> usize {
        self.peers.lock().unwrap().iter().collect::<BTreeSet<_>>().len()
    }
}

async fn start(threads: usize) -> (String, CancellationToken, Seen, tokio::task::JoinHandle<()>) {
    let seen = Seen::default();
    let noted = seen.clone();
    let echo = move |Extension(peer): Extension<Peer>, body: Bytes| async move {
        noted.peers.lock().unwrap().push(peer.0.port());
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        noted.threads.lock().unwrap().insert(name);
        body
    };
    let endless = || async {
        let tick = futures::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Some((Ok::<_, Infallible>(Bytes::from_static(b"tick ")), ()))
        });
        Body::from_stream(tick)
    };
    let router = Router::new().route("/", post(echo)).route("/endless", get(endless));
    let bound = Bound::bind("127.0.0.1:0").await.unwrap().on_threads(threads);
    let (url, stop) = (bound.url(), CancellationToken::new());
    let task = tokio::spawn(bound.serve(router, stop.clone(), PATIENCE));
    (url, stop, seen, task)
}

fn posted(url: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(format!("{url}/")).body(body.into()).unwrap()
}

async fn echoed(client: &Upstream, url: &str, body: Bytes) -> Bytes {
    let response = client.ask(posted(url, body), PATIENCE).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap().to_bytes()
}

#[tokio::test]
async fn a_connection_is_used_again_when_its_answer_was_read() {
    let (url, _stop, seen, _task) = start(0).await;
    let client = Upstream::new();
    for size in [0, 5, 200_000, 1_500_000] {
        let body = Bytes::from(vec![b'x'; size]);
        assert_eq!(echoed(&client, &url, body.clone()).await, body, "{size} bytes");
    }
    assert_eq!(seen.connections(), 1);
    assert_eq!(seen.peers.lock().unwrap().len(), 4);
    // Two at once need two.
    let both = tokio::join!(
        echoed(&client, &url, Bytes::from(vec![b'a'; 500_000])),
        echoed(&client, &url, Bytes::from(vec![b'b'; 500_000]))
    );
    assert!(both.0.iter().all(|b| *b == b'a') && both.1.iter().all(|b| *b == b'b'));
    assert_eq!(seen.connections(), 2);
}

#[tokio::test]
async fn an_answer_that_nobody_reads_to_its_end_closes_its_connection() {
    let (url, stop, _seen, task) = start(0).await;
    let client = Upstream::new();
    let request = Request::get(format!("{url}/endless")).body(Body::empty()).unwrap();
    let response = client.ask(request, PATIENCE).await.unwrap();
    let mut chunks = Box::pin(forward::chunks(response.into_body(), PATIENCE));
    for _ in 0..3 {
        assert!(chunks.next().await.unwrap().unwrap().starts_with(b"tick "));
    }
    drop(chunks);
    // Else the server would wait for the end of what has none.
    stop.cancel();
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_is_not_used() {
    let (url, stop, _seen, task) = start(0).await;
    let client = Upstream::new();
    assert_eq!(echoed(&client, &url, Bytes::from_static(b"one")).await, "one");
    stop.cancel();
    task.await.unwrap();
    let refused = client.ask(posted(&url, "two"), PATIENCE).await;
    assert!(matches!(refused, Err(SendError::Connect { .. })), "{refused:?}");

    let address = url.trim_start_matches("http://").to_owned();
    let bound = Bound::bind(&address).await.unwrap();
    let router = Router::new().route("/", post(|| async { "again" }));
    tokio::spawn(bound.serve(router, CancellationToken::new(), PATIENCE));
    assert_eq!(echoed(&client, &url, Bytes::from_static(b"three")).await, "again");
}

#[tokio::test]
async fn silence_and_bad_addresses_are_told_apart() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client = Upstream::new();
    let late = client.ask(posted(&url, "x"), Duration::from_millis(50)).await;
    assert!(matches!(late, Err(SendError::Timeout { .. })), "{late:?}");
    let closes = tokio::spawn(async move {
        // The connection of the request before this one waits here, too.
        loop {
            drop(listener.accept().await.unwrap());
        }
    });
    let broken = client.ask(posted(&url, "x"), PATIENCE).await;
    assert!(matches!(broken, Err(SendError::Broken { .. })), "{broken:?}");
    closes.abort();
    let nowhere = client.ask(Request::get("/relative").body(Body::empty()).unwrap(), PATIENCE).await;
    assert!(matches!(nowhere, Err(SendError::Connect { .. })), "{nowhere:?}");
}

#[tokio::test]
async fn threads_serve_their_own_connections_until_the_server_stops() {
    let (url, stop, seen, task) = start(2).await;
    for number in 0..6 {
        let body = Bytes::from(format!("{number}"));
        // Each by a client of its own, and so on a connection of its own.
        assert_eq!(echoed(&Upstream::new(), &url, body.clone()).await, body);
    }
    let names: Vec<String> = seen.threads.lock().unwrap().iter().cloned().collect();
    assert_eq!(names, ["connections-0", "connections-1"]);
    let client = Upstream::new();
    let request = Request::get(format!("{url}/endless")).body(Body::empty()).unwrap();
    let open = client.ask(request, PATIENCE).await.unwrap();
    stop.cancel();
    let mut chunks = Box::pin(forward::chunks(open.into_body(), PATIENCE));
    let until = Instant::now() + Duration::from_millis(50);
    while Instant::now() < until {
        assert!(chunks.next().await.unwrap().is_ok(), "what has begun is finished");
    }
    assert!(!task.is_finished());
    drop(chunks);
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
}
