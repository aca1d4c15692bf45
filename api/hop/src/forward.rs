//! What a proxy does to a message on its way: headers by the table in [`strata_wire::hops`], and a
//! limit on the silence between two chunks.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::HeaderMap;
use http_body_util::BodyExt;
use strata_wire::hops::{self, Hop};

use crate::Body;

/// The request headers that the next layer gets of those received. What the layer adds itself it
/// inserts afterwards.
pub fn request_headers(received: &HeaderMap, hop: Hop) -> HeaderMap {
    received
        .iter()
        .filter(|(name, _)| hop.copies(name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// The response headers that go back. `explain` lets the routing decision through.
pub fn response_headers(received: &HeaderMap, explain: bool) -> HeaderMap {
    let framing = ["content-length", "date"];
    received
        .iter()
        .filter(|(name, _)| hops::returns(name.as_str(), explain) && !framing.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// An upstream's response as a stream of chunks that fails when it is silent for longer than `idle`.
pub fn chunks<B>(body: B, idle: Duration) -> impl Stream<Item = io::Result<Bytes>> + Send + use<B>
where
    B: http_body::Body<Data = Bytes, Error = hyper::Error> + Send + Unpin,
{
    futures::stream::unfold(Some(body), move |body| async move {
        let mut body = body?;
        loop {
            return match tokio::time::timeout(idle, body.frame()).await {
                Err(_) => Some((
                    Err(io::Error::new(io::ErrorKind::TimedOut, "the next layer fell silent in mid-stream")),
                    None,
                )),
                Ok(None) => None,
                Ok(Some(Err(error))) => Some((Err(io::Error::other(error)), None)),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Some((Ok(data), Some(body))),
                    Err(_trailers) => continue,
                },
            };
        }
    })
}

/// An upstream's body, passed on chunk by chunk.
pub fn body(body: hyper::body::Incoming, idle: Duration) -> Body {
    Body::from_stream(chunks(body, idle))
}

/// A whole upstream body of at most `limit` bytes.
pub async fn collect(body: hyper::body::Incoming, idle: Duration, limit: usize) -> io::Result<Bytes> {
    let mut stream = std::pin::pin!(chunks(body, idle));
    let mut whole = bytes::BytesMut::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        if whole.len() + chunk.len() > limit {
            return Err(io::Error::other(format!("the next layer's answer is larger than {limit} bytes")));
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}
