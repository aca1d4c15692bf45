//! How large a request's head may be.

use http::Request;
use strata_wire::{ErrorKind, defaults};

use crate::Fault;

/// What a line of the head takes beside its texts: `: ` and its end.
const LINE: usize = 4;
/// The same for its first line: two spaces, the version, its end.
const FIRST_LINE: usize = 12;

/// Refuses a request whose head has more bytes than [`defaults::MAX_HEADER_BYTES`].
pub(crate) fn check<B>(request: &Request<B>) -> Result<(), Fault> {
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + LINE);
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let bytes = request.method().as_str().len() + target + FIRST_LINE + fields.sum::<usize>();
    if bytes <= defaults::MAX_HEADER_BYTES {
        return Ok(());
    }
    let message = format!(
        "the request's head, its path and header fields, has {bytes} bytes and at most {} are taken; shorten it",
        defaults::MAX_HEADER_BYTES
    );
    Err(Fault::new(ErrorKind::HeadTooLarge, message))
}
