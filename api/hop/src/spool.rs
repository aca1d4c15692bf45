//! Takes a request's body whole, within a limit on its size and on the client's silence.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use strata_wire::{ErrorKind, defaults};

use crate::{Body, Fault};

/// Reads a body of at most `limit` bytes.
pub async fn read(body: Body, limit: usize) -> Result<Bytes, Fault> {
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
    let mut whole = BytesMut::new();
    loop {
        match tokio::time::timeout(defaults::IDLE_TIMEOUT, body.frame()).await {
            Err(_) => {
                return Err(Fault::new(
                    ErrorKind::RequestTimeout,
                    format!("no more of the body came for {} s", defaults::IDLE_TIMEOUT.as_secs()),
                ));
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
                    whole.extend_from_slice(&data);
                }
            }
        }
    }
}
