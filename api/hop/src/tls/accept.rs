//! The server's side of a handshake.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use strata_wire::{ErrorBody, ErrorKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::Instrument;

use super::certificate::Certificate;
use super::reload::Mtls;
use super::{PeerIdentity, reason};

/// First byte of every TLS connection.
const HANDSHAKE: u8 = 0x16;
/// Longest time that a client who speaks plain HTTP may take to read why it is refused.
const FAREWELL: Duration = Duration::from_millis(500);

/// Why a connection was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// Somebody speaks plain HTTP.
    #[error("it speaks plain HTTP, and here TLS is spoken: its URL should begin with https://")]
    Plain,
    /// The handshake took too long.
    #[error("the TLS handshake took longer than {} ms", .0.as_millis())]
    Slow(Duration),
    /// The two ends do not come together. A certificate that is refused is logged where it is judged.
    #[error("the TLS handshake failed: {0}")]
    Handshake(String),
    /// It left: a health check of the port, or a scan.
    #[error("it left before the TLS handshake was done: {0}")]
    Left(io::Error),
}

/// Shakes hands within `limit`, to speak the protocol `alpn`. With the connection comes who the client has proven to be, if it showed
/// a certificate.
pub(crate) async fn accept(
    mtls: &Mtls,
    stream: TcpStream,
    peer: SocketAddr,
    limit: Duration,
    alpn: &'static [u8],
) -> Result<(TlsStream<TcpStream>, Option<PeerIdentity>), Refused> {
    let span = tracing::info_span!("handshake", %peer);
    let accepted = tokio::time::timeout(limit, shake_hands(mtls, stream, alpn)).instrument(span).await;
    accepted.unwrap_or(Err(Refused::Slow(limit)))
}

async fn shake_hands(
    mtls: &Mtls,
    stream: TcpStream,
    alpn: &'static [u8],
) -> Result<(TlsStream<TcpStream>, Option<PeerIdentity>), Refused> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Err(error) => return Err(Refused::Left(error)),
        Ok(0) => return Err(Refused::Left(io::ErrorKind::UnexpectedEof.into())),
        Ok(_) if first[0] != HANDSHAKE => {
            say_why(stream).await;
            return Err(Refused::Plain);
        }
        Ok(_) => {}
    }
    let mut config = mtls.current().server.clone();
    if config.alpn_protocols.iter().all(|offered| offered != alpn) {
        Arc::make_mut(&mut config).alpn_protocols = vec![alpn.to_vec()];
    }
    let acceptor = TlsAcceptor::from(config);
    let stream = acceptor.accept(stream).await.map_err(|error| {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(cause) => Refused::Handshake(reason(cause)),
            None => Refused::Left(error),
        }
    })?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let identity = shown.and_then(|leaf| Certificate::parse(leaf).ok()).map(PeerIdentity);
    Ok((stream, identity))
}

/// Answers in the language that was spoken, and waits shortly for the client to hear it.
async fn say_why(mut stream: TcpStream) {
    let body = ErrorBody::new(ErrorKind::InvalidRequest, "here TLS is spoken: begin the URL with https://")
        .to_bytes();
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let farewell = async {
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would take the answer back.
        let mut unread = [0; 4096];
        while stream.read(&mut unread).await? > 0 {}
        Ok::<(), io::Error>(())
    };
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
}
