//! Clients that are slow, silent, many, or speak something else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use strata_hop::{Component, Upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

use crate::pki::Authority;
use crate::{PATIENCE, Server, keep_log, logged, open, until};

const CALLERS: &[Component] = &[Component::Scheduler];

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_cut() {
    keep_log();
    let authority = Authority::new("ca");
    let mount = authority.mount("slow", "engine");
    let engine = open(mount.path(), Component::Engine);
    let server = Server::with_handshake(&engine, CALLERS, Router::new(), Duration::from_millis(600)).await;
    // The first byte of a handshake, or nothing at all, or a hello that trickles.
    for bytes in [&b"\x16"[..], b"", b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        let peer = stream.local_addr().unwrap();
        stream.write_all(bytes).await.unwrap();
        let began = Instant::now();
        let mut rest = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap();
        assert!(read.is_ok_and(|n| n == 0) || rest.is_empty());
        let took = began.elapsed();
        assert!((Duration::from_millis(300)..Duration::from_secs(5)).contains(&took), "{took:?}");
        let line = [&format!("peer={peer}"), "took longer than 600 ms", "connection refused"];
        logged(&line).await;
        // One such line a second.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
async fn plain_http_gets_an_answer_that_it_understands_and_is_closed() {
    keep_log();
    let authority = Authority::new("ca");
    let mount = authority.mount("plain", "engine");
    let server = Server::start(&open(mount.path(), Component::Engine), CALLERS).await;
    let began = Instant::now();
    let url = format!("http://{}/health", server.addr);
    let request = http::Request::get(url).body(strata_hop::Body::empty()).unwrap();
    let response = Upstream::new().send(request, PATIENCE).await.unwrap();
    assert_eq!(response.status(), 400);
    let body = strata_hop::forward::collect(response.into_body(), PATIENCE, 1000).await.unwrap();
    assert!(String::from_utf8_lossy(&body).contains("begin the URL with https://"), "{body:?}");
    assert!(began.elapsed() < Duration::from_secs(3));
    logged(&["WARN", "connection refused", "it speaks plain HTTP, and here TLS is spoken"]).await;
}

#[tokio::test]
async fn other_protocols_are_closed() {
    let authority = Authority::new("ca");
    let mount = authority.mount("models", "engine");
    let server = Server::start(&open(mount.path(), Component::Engine), CALLERS).await;
    for bytes in [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], &[0x16, 3, 1, 0, 4, 9, 9, 9, 9], &[0xff; 64]] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        // A reset says it as well as an end.
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.len() < 400, "{rest:?}");
    }
}

/// How many connections of which both ends are here fit in this process's limit on descriptors.
fn connections() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let soft = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .and_then(|line| line.split_whitespace().nth(3)?.parse::<usize>().ok())
        .unwrap_or(1024);
    (soft.saturating_sub(200) / 2).min(1000)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_at_once() {
    let wanted = connections();
    println!("{wanted} connections");
    let authority = Authority::new("ca");
    let (below, above) = (authority.mount("models", "engine"), authority.mount("models", "scheduler"));
    let (engine, scheduler) =
        (open(below.path(), Component::Engine), open(above.path(), Component::Scheduler));
    let all_here = Arc::new(Barrier::new(wanted));
    let here = Arc::new(AtomicUsize::new(0));
    let arrived = here.clone();
    let meet = move || {
        let all_here = all_here.clone();
        here.fetch_add(1, Ordering::Relaxed);
        async move {
            all_here.wait().await;
            "met"
        }
    };
    let server = Arc::new(Server::with(&engine, CALLERS, Router::new().route("/meet", get(meet))).await);
    let client = Upstream::to(Some(&scheduler), &[Component::Engine]);
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..wanted {
        // Handshakes compete for the cores, and each has its limit: not all begin at once.
        until("those before", || (arrived.load(Ordering::Relaxed) + 50 > n).then_some(())).await;
        let (server, client) = (server.clone(), client.clone());
        calls.spawn(async move { server.get(&client, "/meet").await });
    }
    while let Some(done) = calls.join_next().await {
        assert_eq!(done.unwrap().unwrap().1, "met");
    }
}
