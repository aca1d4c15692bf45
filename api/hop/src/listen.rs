//! A listener with limits for slow clients, that finishes what it has begun before it stops.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::response::IntoResponse;
use bytes::Bytes;
use http::{HeaderValue, header};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use strata_wire::defaults;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::head;
use crate::threads::Threads;
use crate::tls::{self, Mtls, PeerIdentity, Refused, Sparse};

/// Streams that are open on one HTTP/2 connection at a time.
const HTTP2_STREAMS: u32 = 1024;
/// Bytes that a client may send on an HTTP/2 stream before they are read, and on all of a connection.
const HTTP2_WINDOW: u32 = 1024 * 1024;
const HTTP2_CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// Who is at the other end of the connection; an extension of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

impl Peer {
    /// Whether the client is on this machine.
    pub fn is_loopback(self) -> bool {
        self.0.ip().to_canonical().is_loopback()
    }
}

/// How far a request's body has come; an extension of every request.
#[derive(Clone, Debug)]
pub struct Upload(Arc<AtomicBool>);

impl Upload {
    /// Whether the body has been read to its end.
    pub fn is_whole(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a listener could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody listens there already.
    #[error("{addr} is in use by another process; stop it, or choose another address with --listen")]
    InUse {
        /// The address.
        addr: String,
    },
    /// The address cannot be used.
    #[error("cannot listen on {addr}: {source}")]
    Failed {
        /// The address.
        addr: String,
        /// What the system said.
        source: io::Error,
    },
}

/// An address that is bound and not yet served.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    addr: SocketAddr,
    mtls: Option<Mtls>,
    handshake: Duration,
    threads: usize,
    speaks: Speaks,
}

/// Which HTTP a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Http1,
    Http2,
}

impl Speaks {
    /// Its name in a TLS handshake.
    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }
}

impl Bound {
    /// Binds `addr`, such as `127.0.0.1:8080`; port 0 takes a free one.
    pub async fn bind(addr: &str) -> Result<Self, ListenError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::InUse { addr: addr.to_owned() },
            _ => ListenError::Failed { addr: addr.to_owned(), source },
        };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let speaks = Speaks::Http1;
        Ok(Self { listener, addr, mtls: None, handshake: defaults::HANDSHAKE_TIMEOUT, threads: 0, speaks })
    }

    /// The same speaking TLS alone, where this process has certificates. Clients are asked for theirs,
    /// and each request carries [`PeerIdentity`] if one was shown.
    #[must_use]
    pub fn secured(self, mtls: Option<Mtls>) -> Self {
        Self { mtls, ..self }
    }

    /// The same speaking HTTP/2 alone, as gRPC wants it.
    #[must_use]
    pub fn over_http2(self) -> Self {
        Self { speaks: Speaks::Http2, ..self }
    }

    /// The same where a TLS handshake may take this long.
    #[must_use]
    pub fn handshake_within(self, limit: Duration) -> Self {
        Self { handshake: limit, ..self }
    }

    /// The same where so many threads do nothing else than to serve connections, each its own ones from
    /// their first byte to their last: nothing of a request is handed from thread to thread. For
    /// handlers that only pass on; one that computes for long holds up the others of its thread. With 0
    /// connections are served by the runtime that is there.
    #[must_use]
    pub fn on_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        let scheme = if self.mtls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.addr)
    }

    /// Serves until `shutdown`, then takes no new connection and gives the open requests `grace` to
    /// finish.
    pub async fn serve(self, router: Router, shutdown: CancellationToken, grace: Duration) {
        let graceful = GracefulShutdown::new();
        let http = Http::new(self.speaks);
        let complaints = Arc::new(Sparse::default());
        let mut threads = Threads::start(self.threads);
        loop {
            let (stream, peer) = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of descriptors, or a connection that was reset while it waited: the
                        // listener itself is sound.
                        tracing::warn!(%error, "could not accept a connection");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                },
            };
            let _ = stream.set_nodelay(true);
            let connection =
                Served { http: http.clone(), router: router.clone(), watcher: graceful.watcher(), peer };
            let Some(mtls) = self.mtls.clone() else {
                threads.spawn(stream, |stream| connection.run(stream, None));
                continue;
            };
            let (shutdown, limit, complaints) = (shutdown.clone(), self.handshake, complaints.clone());
            let alpn = self.speaks.alpn();
            threads.spawn(stream, move |stream| async move {
                let shaken = tokio::select! {
                    () = shutdown.cancelled() => return,
                    shaken = tls::accept(&mtls, stream, peer, limit, alpn) => shaken,
                };
                match shaken {
                    Ok((stream, identity)) => connection.run(stream, identity).await,
                    Err(refused @ (Refused::Left(_) | Refused::Handshake(_))) => {
                        tracing::debug!(%peer, why = %refused, "connection refused");
                    }
                    Err(refused) => {
                        if let Some(unsaid) = complaints.may_speak() {
                            tracing::warn!(%peer, why = %refused, unsaid, "connection refused");
                        }
                    }
                }
            });
        }
        drop(self.listener);
        if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
            tracing::warn!(grace_s = grace.as_secs(), "stopped before all requests had finished");
        }
    }
}

/// How connections are spoken with.
#[derive(Clone)]
enum Http {
    One(hyper::server::conn::http1::Builder),
    Two(hyper::server::conn::http2::Builder<TokioExecutor>),
}

impl Http {
    fn new(speaks: Speaks) -> Self {
        match speaks {
            Speaks::Http1 => {
                let mut http = hyper::server::conn::http1::Builder::new();
                // What it buffers bounds a head by what one read happens to bring: the rest of the bound is
                // `head::check`. With room for more than a head may have, a refusal can say why; what is
                // larger still gets the library's own, which is bare.
                http.timer(TokioTimer::new())
                    .header_read_timeout(defaults::HEADER_READ_TIMEOUT)
                    .max_buf_size(2 * defaults::MAX_HEADER_BYTES);
                Self::One(http)
            }
            Speaks::Http2 => {
                let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                http.timer(TokioTimer::new())
                    .max_header_list_size(defaults::MAX_HEADER_BYTES as u32)
                    .max_concurrent_streams(HTTP2_STREAMS)
                    .initial_stream_window_size(HTTP2_WINDOW)
                    .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
                    .keep_alive_interval(defaults::HEADER_READ_TIMEOUT)
                    .keep_alive_timeout(defaults::HEADER_READ_TIMEOUT);
                Self::Two(http)
            }
        }
    }
}

/// One connection and what answers its requests.
struct Served {
    http: Http,
    router: Router,
    watcher: Watcher,
    peer: SocketAddr,
}

impl Served {
    async fn run<S>(self, stream: S, identity: Option<PeerIdentity>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Self { http, router, watcher, peer } = self;
        let closes = matches!(http, Http::One(_));
        let service = hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            if let Some(identity) = &identity {
                request.extensions_mut().insert(identity.clone());
            }
            let router = router.clone();
            async move {
                let (mut request, upload) = watched(request);
                request.extensions_mut().insert(upload.clone());
                let mut response = match head::check(&request) {
                    Ok(()) => router.oneshot(request).await.unwrap_or_else(|never| match never {}),
                    Err(fault) => fault.into_response(),
                };
                if closes && !upload.is_whole() {
                    // The rest of it stands in the way of the next request: the connection ends
                    // here, and the client is told, so that it sends the next on another.
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        });
        let stream = TokioIo::new(stream);
        let ended = match http {
            Http::One(http) => watcher.watch(http.serve_connection(stream, service)).await,
            Http::Two(http) => watcher.watch(http.serve_connection(stream, service)).await,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, %peer, "connection ended");
        }
    }
}

/// A request's body that notes when it has been read to its end.
struct Watched {
    body: Incoming,
    is_read: Arc<AtomicBool>,
}

fn watched(request: http::Request<Incoming>) -> (http::Request<axum::body::Body>, Upload) {
    let is_read = Arc::new(AtomicBool::new(http_body::Body::is_end_stream(request.body())));
    let noted = is_read.clone();
    (request.map(|body| axum::body::Body::new(Watched { body, is_read })), Upload(noted))
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.is_read.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
