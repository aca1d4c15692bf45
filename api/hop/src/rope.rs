//! A body in parts, sent as it lies.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use strata_wire::rope::Rope;

use crate::Body;

/// A body that sends these parts, with their length.
pub fn body(rope: &Rope) -> Body {
    let parts: VecDeque<Bytes> = rope.parts().cloned().collect();
    Body::new(Parts { left: rope.len() as u64, parts })
}

struct Parts {
    parts: VecDeque<Bytes>,
    left: u64,
}

impl http_body::Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = self.parts.pop_front();
        self.left -= part.as_ref().map_or(0, |part| part.len() as u64);
        Poll::Ready(part.map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn parts_are_sent_in_order_with_their_length() {
        let rope: Rope = ["one, ", "two, ", "", "three"].into_iter().map(Bytes::from).collect();
        let body = body(&rope);
        assert_eq!(http_body::Body::size_hint(&body).exact(), Some(15));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "one, two, three");
        assert!(http_body::Body::is_end_stream(&super::body(&std::iter::empty().collect())));
    }
}
