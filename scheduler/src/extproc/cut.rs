//! A body in the pieces that a proxy takes. Pure.

use bytes::Bytes;

use super::answer::{change, unchanged};
use super::proto::{Mutation, PartResponse};

/// Largest piece of a body in full duplex: Envoy asks for 64 KiB at most.
pub(crate) const PIECE: usize = 64 * 1024;

/// Whether a body is another than the one that was sent. One that is left as it was is the same memory.
pub(crate) fn is_new(body: &Bytes, sent: &Bytes) -> bool {
    (body.as_ptr(), body.len()) != (sent.as_ptr(), sent.len())
}

/// A body in pieces of a size that the proxy takes; at least one.
pub(crate) fn pieces(mut body: Bytes) -> Vec<Bytes> {
    let mut cut = Vec::with_capacity(body.len() / PIECE + 1);
    while body.len() > PIECE {
        cut.push(body.split_to(PIECE));
    }
    cut.push(body);
    cut
}

/// The answer to each of the pieces in which a body was sent: with `body` in place of all of them.
pub(crate) fn exchanged(body: &Bytes, sent: &Bytes, pieces: &[usize]) -> impl Iterator<Item = PartResponse> {
    let (new, last) = (is_new(body, sent), pieces.len().saturating_sub(1));
    let mut left = body.clone();
    pieces.iter().enumerate().map(move |(at, length)| {
        if !new {
            return unchanged();
        }
        let cut = if at == last { left.len() } else { left.len().min(*length) };
        let bytes = left.split_to(cut);
        let mutation = if bytes.is_empty() { Mutation::Clear(true) } else { Mutation::Body(bytes) };
        change(None, Some(mutation))
    })
}
