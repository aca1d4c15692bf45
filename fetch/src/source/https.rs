//! One file by its URL.

use http::{HeaderMap, StatusCode, header};

use super::{Guard, Listing, RemoteFile};
use crate::checksum::Checksum;
use crate::client::{Ask, Http, Peer, host_of};
use crate::credentials::Credentials;
use crate::error::FetchError;
use crate::name;

pub(super) async fn list(
    http: &Http,
    url: &str,
    file: &str,
    sha256: Option<&str>,
    credentials: &Credentials,
) -> Result<Listing, FetchError> {
    let ask = Ask::get(url, Peer::Https, credentials.https()?, file)?;
    let path = name::checked(&host_of(&ask.url), file)?;
    // The first byte, and not HEAD: a signed link often allows GET alone.
    let probe = ask.clone().with(header::RANGE, "bytes=0-0")?;
    let answer = http.opened(&probe, &[StatusCode::RANGE_NOT_SATISFIABLE]).await?;
    let headers = answer.headers();
    let size = match answer.status() {
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => total(headers),
        // It knows no ranges, so its size is of no use before the file comes.
        _ => None,
    };
    let tag = validator(headers);
    let checksum = sha256.map(|hex| Checksum::Sha256(hex.to_owned()));
    let identity = match (&checksum, &tag) {
        (Some(checksum), _) => Some(format!("{}:{}", checksum.algorithm(), checksum.hex())),
        (None, Some(tag)) => Some(format!("tag:{tag}")),
        (None, None) => None,
    };
    let guard = tag.map_or(Guard::Nothing, Guard::IfRange);
    let files = vec![RemoteFile { path, ask, size, identity, guard, checksum, unpack: None }];
    Ok(Listing { revision: None, files })
}

/// The length of the whole file, from `Content-Range: bytes 0-0/123` or `bytes */0`.
fn total(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    value.trim().strip_prefix("bytes ")?.rsplit_once('/')?.1.trim().parse().ok()
}

/// What changes when the file changes: a strong tag, else the date.
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    text(header::ETAG).filter(|tag| tag.starts_with('"')).or_else(|| text(header::LAST_MODIFIED))
}
