//! Real TLS on both ends: who is let in, who is not and is told why, and what happens as certificates
//! change.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod limits;
mod peers;
mod pki;
mod reload;
mod start;
mod trust;

use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request as Received;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use http::{Request, StatusCode};
use strata_hop::tls::PeerIdentity;
use strata_hop::{Above, Bound, Component, Mtls, SendError, Upstream, caller, fault, forward, spool};
use tokio_util::sync::CancellationToken;

pub const PATIENCE: Duration = Duration::from_secs(20);
/// How often certificates are looked at here.
pub const LOOK: Duration = Duration::from_millis(20);

pub fn open(folder: &Path, component: Component) -> Mtls {
    Mtls::open_as(folder, component, None, LOOK).unwrap()
}

/// A server that says who calls it.
pub struct Server {
    pub url: String,
    pub addr: std::net::SocketAddr,
    pub stop: CancellationToken,
    pub task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub async fn start(mtls: &Mtls, callers: &[Component]) -> Self {
        Self::with(mtls, callers, Router::new()).await
    }

    pub async fn with(mtls: &Mtls, callers: &[Component], more: Router) -> Self {
        Self::with_handshake(mtls, callers, more, PATIENCE).await
    }

    pub async fn with_handshake(mtls: &Mtls, callers: &[Component], more: Router, limit: Duration) -> Self {
        let bound = Bound::bind("127.0.0.1:0").await.unwrap().handshake_within(limit);
        Self::on(bound, mtls, callers, more)
    }

    /// One that speaks HTTP/2 alone.
    pub async fn over_http2(mtls: &Mtls, callers: &[Component]) -> Self {
        let bound = Bound::bind("127.0.0.1:0").await.unwrap().over_http2();
        Self::on(bound, mtls, callers, Router::new())
    }

    fn on(bound: Bound, mtls: &Mtls, callers: &[Component], more: Router) -> Self {
        let above = Above::new(None, Some(mtls), callers);
        let router = Router::new()
            .route(
                "/who",
                get(|request: Received| async move {
                    let peer = request.extensions().get::<PeerIdentity>();
                    peer.map_or("nobody".to_owned(), |p| p.0.identity.to_string())
                }),
            )
            .route("/health", get(|| async { "ok" }))
            .route("/metrics", get(|| async { "up 1" }))
            .route(
                "/count",
                post(|request: Received| async move {
                    spool::read(request.into_body(), 1 << 26).await.map(|body| body.len().to_string())
                }),
            )
            .merge(more);
        let router = fault::with_openai_fallbacks(router).layer(from_fn_with_state(above, caller::require));
        let bound = bound.secured(Some(mtls.clone()));
        let (url, addr, stop) = (bound.url(), bound.addr(), CancellationToken::new());
        let task = tokio::spawn(bound.serve(router, stop.clone(), Duration::from_secs(10)));
        Self { url, addr, stop, task }
    }

    pub async fn get(&self, client: &Upstream, path: &str) -> Result<(StatusCode, String), SendError> {
        let request = Request::get(format!("{}{path}", self.url)).body(Body::empty()).unwrap();
        let response = client.send(request, PATIENCE).await?;
        let status = response.status();
        let body = forward::collect(response.into_body(), PATIENCE, 1 << 20).await.unwrap();
        Ok((status, String::from_utf8(body.to_vec()).unwrap()))
    }
}

/// All that was logged in this process.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct ToLog;

impl Write for ToLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub fn keep_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let to_log = tracing_subscriber::fmt().with_ansi(false).with_writer(|| ToLog);
        to_log.with_max_level(tracing::Level::INFO).init();
    });
}

/// Waits until a line was logged that holds all of these, and returns it.
pub async fn logged(parts: &[&str]) -> String {
    let found = || {
        let log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&log);
        text.lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned)
    };
    until(&format!("a log line with {parts:?}"), found).await
}

pub async fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
