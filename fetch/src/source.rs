//! What there is to fetch, as each kind of source tells it.

mod choice;
mod hf;
mod https;
mod oci;
mod s3;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use strata_wire::model_uri::ModelUri;

use crate::checksum::Checksum;
use crate::client::{Ask, Http, host_of};
use crate::credentials::Credentials;
use crate::error::FetchError;
use crate::name;
use crate::unpack::Unpack;

/// Files of one model are not so many; a listing that goes on is a mistake in the path.
const MOST_FILES: usize = 20_000;

/// A file as its source tells of it.
#[derive(Clone, Debug)]
pub(crate) struct RemoteFile {
    /// Where it belongs in the model's folder; for an archive a name of its own.
    pub(crate) path: String,
    pub(crate) ask: Ask,
    /// Bytes; `None` when the server does not say, and then it sends no ranges either.
    pub(crate) size: Option<u64>,
    /// Files with the same identity have the same bytes. `None` when the source gives nothing to know
    /// them by, so that nothing can be resumed by another process.
    pub(crate) identity: Option<String>,
    pub(crate) guard: Guard,
    pub(crate) checksum: Option<Checksum>,
    /// It is an archive.
    pub(crate) unpack: Option<Unpack>,
}

/// How a request makes sure that it gets bytes of the same file as the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// What the URL names never changes.
    Nothing,
    /// `If-Match` with this tag.
    IfMatch(String),
    /// `If-Range` with this tag or date.
    IfRange(String),
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The commit or digest that the revision stands for now.
    pub(crate) revision: Option<String>,
    pub(crate) files: Vec<RemoteFile>,
}

/// Asks the source what there is.
pub(crate) async fn list(
    http: &Http,
    uri: &ModelUri,
    credentials: &Credentials,
    connections: usize,
) -> Result<Listing, FetchError> {
    let listing = match uri {
        ModelUri::Hf { .. } => hf::list(http, uri, credentials).await,
        ModelUri::Https { url, file, sha256 } => {
            https::list(http, url, file, sha256.as_deref(), credentials).await
        }
        ModelUri::S3 { bucket, path } => s3::list(http, uri, (bucket, path), credentials, connections).await,
        ModelUri::Oci { registry, name, reference } => {
            oci::list(http, uri, (registry, name, reference), credentials).await
        }
        ModelUri::Pvc { .. } | ModelUri::File { .. } => Err(FetchError::NotFetched { uri: uri.to_string() }),
    }?;
    let host = listing.files.first().map(|file| host_of(&file.ask.url)).unwrap_or_default();
    name::distinct(&host, listing.files.iter().map(|file| file.path.as_str()))?;
    Ok(listing)
}

/// What is shown of a URI: not the query, which may be a signature.
pub(crate) fn shown(uri: &ModelUri) -> String {
    uri.to_string().split(['?', '#']).next().unwrap_or_default().to_owned()
}

/// Letters, digits and `-._~` stay, as RFC 3986 and Amazon's signatures have it.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One part of a path, or a value of a query.
fn encoded(part: &str) -> String {
    utf8_percent_encode(part, PART).to_string()
}

/// A path, whose slashes stay.
fn encoded_path(path: &str) -> String {
    path.split('/').map(encoded).collect::<Vec<_>>().join("/")
}

/// All shards of the GGUF file of which this is the first (`name-00001-of-00003.gguf`), or the file.
fn shards(first: &str) -> Vec<String> {
    let numbered = first.strip_suffix(".gguf").and_then(|stem| {
        let (stem, count) = stem.rsplit_once("-of-")?;
        let stem = stem.strip_suffix("-00001")?;
        let is_count = count.len() == 5 && count.bytes().all(|b| b.is_ascii_digit());
        Some((stem, count, count.parse::<usize>().ok().filter(|n| is_count && (1..=1000).contains(n))?))
    });
    match numbered {
        Some((stem, count, shards)) => {
            (1..=shards).map(|number| format!("{stem}-{number:05}-of-{count}.gguf")).collect()
        }
        None => vec![first.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_of_a_gguf() {
        assert_eq!(shards("a/m-00001-of-00002.gguf"), ["a/m-00001-of-00002.gguf", "a/m-00002-of-00002.gguf"]);
        for whole in [
            "m.gguf",
            "m-00002-of-00002.gguf",
            "m-00001-of-2.gguf",
            "m-00001-of-99999.gguf",
            "m-00001-of-00000.gguf",
        ] {
            assert_eq!(shards(whole), [whole]);
        }
    }

    #[test]
    fn paths_are_encoded_as_signatures_want() {
        assert_eq!(encoded_path("a b/c+d=e~f.g@h"), "a%20b/c%2Bd%3De~f.g%40h");
        assert_eq!(encoded("refs/pr/1"), "refs%2Fpr%2F1");
    }
}
