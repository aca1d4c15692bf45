//! The client's side of a connection, plain or TLS by the URL's scheme.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use strata_wire::defaults;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::Service;

use super::certificate::Certificate;
use super::reload::now;
use super::{Callee, Credentials, DIR_ENV, client_config};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Makes connections for one kind of callee.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    tcp: HttpConnector,
    tls: Option<Tls>,
}

#[derive(Clone, Debug)]
struct Tls {
    config: Arc<ClientConfig>,
    callee: Callee,
}

impl Connector {
    /// Plain connections alone.
    pub(crate) fn plain() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(defaults::CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        Self { tcp, tls: None }
    }

    /// TLS too, shown these credentials, to this callee alone.
    pub(crate) fn secured(credentials: &Credentials, callee: Callee) -> Result<Self, rustls::Error> {
        let config = Arc::new(client_config(credentials, &callee)?);
        Ok(Self { tls: Some(Tls { config, callee }), ..Self::plain() })
    }
}

/// Why a connection could not be secured.
#[derive(Debug, thiserror::Error)]
enum Unsecured {
    #[error("https needs this component's certificates: {DIR_ENV} names no folder")]
    NoCredentials,
    #[error("the TLS handshake took longer than {} s", defaults::HANDSHAKE_TIMEOUT.as_secs())]
    Slow,
    #[error("it showed no certificate that holds")]
    NoCertificate,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tls = match (uri.scheme_str(), self.tls.clone()) {
            (Some("https"), None) => return Box::pin(async { Err(Unsecured::NoCredentials.into()) }),
            (Some("https"), tls) => tls,
            _ => None,
        };
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let connecting = self.tcp.call(uri);
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            let Some(tls) = tls else { return Ok(TokioIo::new(Stream::Plain(stream))) };
            let name = ServerName::try_from(host)?;
            let shaking = TlsConnector::from(tls.config).connect(name, stream);
            let stream = tokio::time::timeout(defaults::HANDSHAKE_TIMEOUT, shaking)
                .await
                .map_err(|_| Unsecured::Slow)??;
            // A resumed session is not judged by rustls again, and the first may be hours old.
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let certificate = shown.and_then(|leaf| Certificate::parse(leaf).ok());
            let certificate = certificate.filter(|c| now() <= c.not_after).ok_or(Unsecured::NoCertificate)?;
            tls.callee.check(&certificate)?;
            Ok(TokioIo::new(Stream::Tls(Box::new(stream))))
        })
    }
}

/// A connection of either kind.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

macro_rules! either {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream.get_mut() {
            Self::Plain($inner) => $call,
            Self::Tls($inner) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, inner => Pin::new(inner).poll_read(context, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, inner => Pin::new(inner).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, inner => Pin::new(inner).poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(inner) => inner.is_write_vectored(),
            Self::Tls(inner) => inner.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, inner => Pin::new(inner).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, inner => Pin::new(inner).poll_shutdown(context))
    }
}
