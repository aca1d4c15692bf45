//! A response on its way back. It passes as it comes, piece by piece and no faster than the client
//! reads; event streams pass in whole events, so that one that breaks can be ended with an error that
//! every SDK understands.

use std::future::Future;
use std::io;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use strata_hop::Body;
use strata_wire::{ErrorBody, ErrorKind, sse};
use tokio::time::Instant;

use crate::prediction::Tail;

/// A response's chunks as they come from an engine.
pub type Chunks = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Longest event that is kept back until it is whole.
const MAX_EVENT: usize = 1024 * 1024;

/// Most of an answer that is kept so that it can be gone on with.
const MAX_KEPT: usize = 4 * 1024 * 1024;

/// What a request holds until the last of its response has passed, or its client has left.
pub trait Guard: Send + 'static {
    /// The response breaks off; `by_replica` where that says something of the replica.
    fn broke(&mut self, by_replica: bool);

    /// It has ended as it should, with this for its end.
    fn over(&mut self, tail: &Tail);

    /// Whether its events are kept for [`Guard::go_on`].
    fn keeps(&self) -> bool;

    /// What follows in the place of a response that broke off after these events; `None` when it ends here.
    fn go_on(&mut self, events: &[Bytes]) -> impl Future<Output = Option<Chunks>> + Send;
}

/// What the stream of one response is made of.
pub struct Passage<G> {
    /// The chunk that has already come.
    pub first: Option<Bytes>,
    /// Those that follow.
    pub rest: Chunks,
    /// Whether they are server-sent events.
    pub events: bool,
    /// When the response must have ended.
    pub deadline: Instant,
    /// What the request holds, dropped with the last chunk or when the client leaves.
    pub guard: G,
}

/// The body that the client gets.
pub fn body<G: Guard>(passage: Passage<G>) -> Body {
    let Passage { first, rest, events, deadline, guard } = passage;
    let state = State {
        first,
        rest,
        whole: events.then(WholeEvents::default),
        deadline,
        kept: (events && guard.keeps()).then(Kept::default),
        guard: Some(guard),
        tail: Tail::default(),
        ended: false,
    };
    Body::from_stream(futures::stream::unfold(state, |mut state| async move {
        let item = state.next().await?;
        Some((item, state))
    }))
}

struct State<G> {
    first: Option<Bytes>,
    rest: Chunks,
    whole: Option<WholeEvents>,
    deadline: Instant,
    guard: Option<G>,
    tail: Tail,
    kept: Option<Kept>,
    ended: bool,
}

/// The events that have passed.
#[derive(Debug, Default)]
struct Kept {
    events: Vec<Bytes>,
    bytes: usize,
}

impl<G: Guard> State<G> {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if self.ended {
                return None;
            }
            let mut late = false;
            let next = if let Some(first) = self.first.take() {
                Some(Ok(first))
            } else {
                let next = tokio::time::timeout_at(self.deadline, self.rest.next()).await;
                late = next.is_err();
                let passed = || io::Error::new(io::ErrorKind::TimedOut, "the request's deadline passed");
                next.unwrap_or_else(|_| Some(Err(passed())))
            };
            match (next, &mut self.whole) {
                (Some(Ok(chunk)), None) => {
                    self.tail.push(&chunk);
                    return Some(Ok(chunk));
                }
                (Some(Ok(chunk)), Some(whole)) => {
                    let chunk = whole.take(chunk);
                    if !chunk.is_empty() {
                        self.tail.push(&chunk);
                        self.keep(&chunk);
                        return Some(Ok(chunk));
                    }
                }
                (None, whole) => {
                    let rest = whole.as_mut().map(WholeEvents::rest).unwrap_or_default();
                    self.tail.push(&rest);
                    if let Some(guard) = &mut self.guard {
                        guard.over(&self.tail);
                    }
                    self.end();
                    return (!rest.is_empty()).then_some(Ok(rest));
                }
                (Some(Err(error)), whole) => {
                    let events = whole.is_some();
                    if let (false, Some(kept), Some(guard)) = (late, &self.kept, &mut self.guard)
                        && let Some(rest) = guard.go_on(&kept.events).await
                    {
                        // The half of an event that was kept is part of what comes again.
                        self.rest = rest;
                        self.whole = Some(WholeEvents::default());
                        continue;
                    }
                    if let Some(guard) = &mut self.guard {
                        guard.broke(!late);
                    }
                    self.end();
                    tracing::warn!(%error, "a response broke off after it had begun");
                    return Some(if events { Ok(error_event(&error)) } else { Err(error) });
                }
            }
        }
    }

    fn keep(&mut self, event: &Bytes) {
        if let Some(kept) = &mut self.kept {
            kept.events.push(event.clone());
            kept.bytes += event.len();
            if kept.bytes > MAX_KEPT {
                self.kept = None;
            }
        }
    }

    fn end(&mut self) {
        self.ended = true;
        self.guard = None;
    }
}

/// The last event of a stream that broke.
fn error_event(error: &io::Error) -> Bytes {
    let body = if error.kind() == io::ErrorKind::TimedOut {
        ErrorBody::new(
            ErrorKind::Timeout,
            "the answer stopped for too long and was ended; what came so far is not whole",
        )
    } else {
        ErrorBody::new(
            ErrorKind::BadGateway,
            "the replica broke off in mid-answer; what came so far is not whole; send the request again",
        )
    };
    sse::data(&String::from_utf8_lossy(&body.to_bytes()))
}

/// Cuts a stream of bytes after its last whole event, and keeps the rest until the event is whole. A
/// chunk that ends with an event, as they nearly always do, is passed without a copy.
#[derive(Debug, Default)]
struct WholeEvents {
    kept: BytesMut,
}

impl WholeEvents {
    fn take(&mut self, chunk: Bytes) -> Bytes {
        if self.kept.is_empty() && ends_event(&chunk) {
            return chunk;
        }
        // A boundary may begin in what is kept: look again from its last three bytes on.
        let from = self.kept.len().saturating_sub(3);
        self.kept.extend_from_slice(&chunk);
        match last_boundary(&self.kept[from..]) {
            Some(end) => self.kept.split_to(from + end).freeze(),
            None if self.kept.len() > MAX_EVENT => self.kept.split().freeze(),
            None => Bytes::new(),
        }
    }

    fn rest(&mut self) -> Bytes {
        self.kept.split().freeze()
    }
}

fn ends_event(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\n\n") || bytes.ends_with(b"\n\r\n")
}

/// Just behind the last blank line.
fn last_boundary(bytes: &[u8]) -> Option<usize> {
    (2..=bytes.len()).rev().find(|&end| ends_event(&bytes[..end]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However a stream is cut into chunks: only whole events pass, nothing is lost and nothing is
        /// changed.
        #[test]
        fn passes_whole_events_only(
            events in prop::collection::vec(("[a-z:{}]{0,12}", any::<bool>()), 0..8),
            tail in "[a-z]{0,5}",
            cuts in prop::collection::vec(1usize..9, 1..60),
        ) {
            let mut text = String::new();
            for (data, crlf) in &events {
                text.extend(["data: ", data, if *crlf { "\r\n\r\n" } else { "\n\n" }]);
            }
            text += &tail;
            let (mut whole, mut out, mut at) = (WholeEvents::default(), BytesMut::new(), 0);
            for cut in cuts.iter().cycle() {
                if at == text.len() {
                    break;
                }
                let end = (at + cut).min(text.len());
                let passed = whole.take(Bytes::copy_from_slice(&text.as_bytes()[at..end]));
                prop_assert!(passed.is_empty() || ends_event(&passed), "{:?}", passed);
                out.extend_from_slice(&passed);
                at = end;
            }
            let passed = out.len();
            prop_assert_eq!(text.len() - passed, tail.len());
            out.extend_from_slice(&whole.rest());
            prop_assert_eq!(&out[..], text.as_bytes());
        }
    }

    #[test]
    fn an_event_without_end_is_not_kept_for_ever() {
        let mut whole = WholeEvents::default();
        let chunk = Bytes::from(vec![b'x'; 300 * 1024]);
        let passed: usize = (0..20).map(|_| whole.take(chunk.clone()).len()).sum();
        assert!(passed > 0 && whole.kept.len() <= MAX_EVENT + chunk.len());
    }
}
