//! Why a model cannot be had, and what to do.

use std::io;
use std::path::{Path, PathBuf};

use strata_hop::ListenError;
use strata_wire::model_uri::ModelUriError;

use crate::progress::human;

/// Why a model cannot be had, and what to do. No variant carries a credential or the query of a URL.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URI or the revision is none.
    #[error(transparent)]
    Uri(#[from] ModelUriError),
    /// Nothing is fetched for this scheme.
    #[error("`{uri}` is not fetched: it is read where it is")]
    NotFetched {
        /// The URI.
        uri: String,
    },
    /// The server does not give it to us.
    #[error("{host} denies {what} ({reason}): {advice}")]
    Denied {
        /// The server.
        host: String,
        /// The file, repository or bucket.
        what: String,
        /// Status, and the server's own words.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// The server has no such thing.
    #[error("{host} has no {what} ({reason}): {advice}")]
    NotFound {
        /// The server.
        host: String,
        /// The file, repository or bucket.
        what: String,
        /// Status, and the server's own words.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// An answer that trying again does not change.
    #[error("{host} refuses {what}: {reason}")]
    Refused {
        /// The server.
        host: String,
        /// The file, repository or bucket.
        what: String,
        /// Status, and the server's own words.
        reason: String,
    },
    /// An answer that is not what the protocol says.
    #[error("{host} answers for {what} with {problem}")]
    Answer {
        /// The server.
        host: String,
        /// The file, repository or bucket.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Tried again until patience was at its end.
    #[error("gave up {what} from {host} after {attempts} attempts without progress: {last}")]
    GaveUp {
        /// The server.
        host: String,
        /// The file, repository or bucket.
        what: String,
        /// How often it was tried since bytes last came.
        attempts: u32,
        /// How the last attempt failed.
        last: String,
    },
    /// The bytes are not those that the source promised.
    #[error(
        "{file} from {host} has the {algorithm} {found} and not {wanted}: it was fetched twice and thrown \
         away; the file on the server, or a cache on the way, is damaged"
    )]
    Mismatch {
        /// The file.
        file: String,
        /// The server.
        host: String,
        /// Name of the checksum.
        algorithm: &'static str,
        /// What the source promised.
        wanted: String,
        /// What came.
        found: String,
    },
    /// The source changes faster than it can be fetched.
    #[error("{file} on {host} kept changing while it was fetched: fetch a revision that does not move")]
    Changing {
        /// The file.
        file: String,
        /// The server.
        host: String,
    },
    /// The disk is too small.
    #[error(
        "{} has {} free and {} are missing: make the volume larger, or free some of it",
        dir.display(), human(*free), human(*missing)
    )]
    NoSpace {
        /// The destination.
        dir: PathBuf,
        /// Bytes that still have to come.
        missing: u64,
        /// Bytes that fit.
        free: u64,
    },
    /// A name that would leave the destination.
    #[error("{host} names a file `{}`, which cannot be a file of a model: {problem}", name.escape_debug())]
    BadName {
        /// The server.
        host: String,
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// There is nothing that an engine could use.
    #[error("{uri} {problem}")]
    Unusable {
        /// The URI.
        uri: String,
        /// What is there, and what to do.
        problem: String,
    },
    /// A connection that anybody could read or change.
    #[error(
        "{host} is asked for without encryption: use https, or allow it with --allow-http or STRATA_ALLOW_HTTP=true"
    )]
    Insecure {
        /// The server.
        host: String,
    },
    /// The server cannot show who it is.
    #[error(
        "{host} shows a certificate that is not trusted ({problem}): name its authority's file in SSL_CERT_FILE, or put it in CA_CERTIFICATES"
    )]
    Certificate {
        /// The server.
        host: String,
        /// What TLS says.
        problem: String,
    },
    /// A setting of the environment cannot be used.
    #[error("the environment variable {name} {problem}")]
    Setting {
        /// Its name.
        name: String,
        /// What is wrong with it. Never its value.
        problem: String,
    },
    /// The file system says no.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The address of the progress cannot be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Told to stop. What was fetched stays.
    #[error("stopped before the model was complete; the next run goes on from here")]
    Stopped,
}

/// Says which path an I/O error is about.
pub(crate) fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FetchError + 'a {
    move |source| FetchError::Io { doing, path: path.to_owned(), source }
}
