//! Takes a request's body whole, within limits on its size, on the client's silence, and on the time in
//! all: a client that sends a byte now and then holds what came so far.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use strata_wire::{ErrorKind, defaults};
use tokio::time::Instant;

use crate::{Body, Fault};

/// Room that is made at once for a body of which the first bytes have come.
const MOST_RESERVED: usize = 1024 * 1024;

/// Reads a body of at most `limit` bytes.
pub async fn read(body: Body, limit: usize) -> Result<Bytes, Fault> {
    read_within(body, limit, defaults::IDLE_TIMEOUT, defaults::BODY_READ_TIMEOUT).await
}

async fn read_within(body: Body, limit: usize, idle: Duration, total: Duration) -> Result<Bytes, Fault> {
    let too_large = || {
        Fault::new(
            ErrorKind::TooLarge,
            format!("the request's body is larger than the limit of {} MiB", limit / (1024 * 1024)),
        )
    };
    if let Some(size) = http_body::Body::size_hint(&body).exact()
        && size > limit as u64
    {
        return Err(too_large());
    }
    let mut body = body;
    let said = http_body::Body::size_hint(&body).exact().unwrap_or_default() as usize;
    let mut whole = BytesMut::new();
    let deadline = Instant::now() + total;
    loop {
        let patience = deadline.min(Instant::now() + idle);
        match tokio::time::timeout_at(patience, body.frame()).await {
            Err(_) => {
                let what = if patience == deadline {
                    format!("the body took longer than {} s", total.as_secs())
                } else {
                    format!("no more of the body came for {} s", idle.as_secs())
                };
                return Err(Fault::new(ErrorKind::RequestTimeout, what));
            }
            Ok(None) => return Ok(whole.freeze()),
            Ok(Some(Err(error))) => {
                return Err(Fault::invalid(format!("the request's body broke off: {error}")));
            }
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    if whole.len() + data.len() > limit {
                        return Err(too_large());
                    }
                    if whole.is_empty() {
                        if http_body::Body::is_end_stream(&body) {
                            return Ok(data);
                        }
                        // What a client only says that it will send takes no room before it comes.
                        whole.reserve(said.min(MOST_RESERVED).max(data.len()));
                    }
                    whole.extend_from_slice(&data);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    async fn trickle(every: Duration, idle: Duration, total: Duration) -> String {
        let bytes = futures::stream::unfold((), move |()| async move {
            tokio::time::sleep(every).await;
            Some((Ok::<_, Infallible>(Bytes::from_static(b"x")), ()))
        });
        let reading = read_within(Body::from_stream(bytes), 1 << 20, idle, total);
        let fault = tokio::time::timeout(Duration::from_secs(30), reading).await.unwrap().unwrap_err();
        assert_eq!(fault.kind, ErrorKind::RequestTimeout);
        fault.body.error.message
    }

    #[tokio::test]
    async fn a_client_that_trickles_is_not_waited_for_without_end() {
        let (soon, late) = (Duration::from_millis(1), Duration::from_secs(3600));
        let message = trickle(soon, late, Duration::from_millis(50)).await;
        assert!(message.starts_with("the body took longer than"), "{message}");
        let message = trickle(late, Duration::from_millis(50), late).await;
        assert!(message.starts_with("no more of the body came for"), "{message}");
    }
}
