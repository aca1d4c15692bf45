//! Block events as vLLM sends them: what is told when, and to a peer that comes late and goes away.

use std::time::Duration;

use http::Request;
use serde_json::json;
use strata_engine::events::{KvEventsConfig, KvPublisher};
use strata_engine::run_on;
use strata_engine::{EngineOptions, assemble, serve};
use strata_hop::{Above, Bound, Upstream};
use tokio_util::sync::CancellationToken;
use zeromq::{Socket, SocketRecv, SubSocket};

use crate::client::{DEADLINE, post, send, until};
use crate::process::{model, options};

/// Who takes the events: it is connected to.
async fn subscriber(address: &str) -> (SubSocket, String) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let mut socket = SubSocket::new();
        // The address of one that has just gone may be taken for a moment.
        match socket.bind(address).await {
            Ok(endpoint) => {
                socket.subscribe("").await.unwrap();
                return (socket, endpoint.to_string());
            }
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{address}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn config(endpoint: String) -> KvEventsConfig {
    KvEventsConfig { enable_kv_cache_events: true, endpoint, ..KvEventsConfig::default() }
}

/// The next batch, as text with all that is none left out; `None` when there is none for a while.
async fn batch(socket: &mut SubSocket, wait: Duration) -> Option<String> {
    let message = tokio::time::timeout(wait, socket.recv()).await.ok()?.unwrap();
    Some(String::from_utf8_lossy(message.get(2).unwrap()).into_owned())
}

#[tokio::test]
async fn what_is_forgotten_and_whose_a_block_is_are_told() {
    let (mut socket, endpoint) = subscriber("tcp://127.0.0.1:0").await;
    let folder = model();
    let engine = assemble(&options(folder.path()), 0).unwrap();
    engine.publish(KvPublisher::bind(&config(endpoint)).await.unwrap());
    let router = serve::router(engine.clone(), Above::default());
    let command =
        async |path: &str| assert_eq!(send(&router, "POST", path, &[], "").await.status, 200, "{path}");
    // Until it is connected, nothing arrives.
    let mut first = None;
    until(async || {
        command("/reset_prefix_cache").await;
        first = batch(&mut socket, Duration::from_millis(100)).await;
        first.is_some()
    })
    .await;
    assert!(first.unwrap().contains("AllBlocksCleared"));
    while batch(&mut socket, Duration::from_millis(100)).await.is_some() {}

    let ask =
        json!({"model": "small", "prompt": "x".repeat(60), "max_tokens": 1, "cache_salt": "scope-of-a"});
    post(&router, "/v1/completions", &ask).await.json().await;
    let stored = batch(&mut socket, DEADLINE).await.unwrap();
    assert!(stored.contains("BlockStored") && stored.contains("kv_cache_spec_kind"), "{stored}");
    assert_eq!(stored.matches("scope-of-a").count(), 1, "of the first block alone: {stored}");
    for path in ["/reset_prefix_cache", "/sleep?level=1", "/wake_up"] {
        command(path).await;
        let told = batch(&mut socket, DEADLINE).await.unwrap();
        assert!(told.contains("AllBlocksCleared") && !told.contains("BlockRemoved"), "{path}: {told}");
    }
}

#[tokio::test]
async fn a_peer_that_comes_late_and_goes_away_holds_nothing_up() {
    // A port where nobody listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let endpoint = format!("tcp://127.0.0.1:{port}");
    let folder = model();
    let bound = Bound::bind("127.0.0.1:0").await.unwrap();
    let (url, shutdown) = (bound.url(), CancellationToken::new());
    let kv_events_config = Some(config(endpoint.clone()));
    let options = EngineOptions { kv_events_config, ..options(folder.path()) };
    let engine = tokio::spawn(run_on(bound, options, shutdown.clone()));
    let upstream = Upstream::new();
    let mut asked = 0;
    let mut ask = async || {
        asked += 1;
        let body = json!({"model": "small", "prompt": format!("{asked:x<60}"), "max_tokens": 1});
        let request = Request::post(format!("{url}/v1/completions")).body(body.to_string().into()).unwrap();
        assert_eq!(upstream.send(request, DEADLINE).await.unwrap().status(), 200);
    };
    ask().await;
    for _ in 0..2 {
        let (mut socket, _) = subscriber(&endpoint).await;
        until(async || {
            ask().await;
            batch(&mut socket, Duration::from_millis(100))
                .await
                .is_some_and(|told| told.contains("BlockStored"))
        })
        .await;
        drop(socket);
        ask().await;
    }
    shutdown.cancel();
    tokio::time::timeout(DEADLINE, engine).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn an_endpoint_that_is_none_is_refused_at_once() {
    for endpoint in ["tcp://127.0.0.1", "ipc:///tmp/x", "127.0.0.1:5557", "tcp://*:99999"] {
        let error = KvPublisher::bind(&config(endpoint.into())).await.unwrap_err().to_string();
        assert!(error.contains(&format!("`endpoint` is `{endpoint}`")), "{error}");
    }
}
