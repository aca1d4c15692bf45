//! Where a model's files are, as a URI, and the path at which an engine finds them.
//!
//! One grammar for the operator, which renders the engine's `--model`, and for `strata fetch`, which
//! puts the files there. The rule on `spec.model.uri` in the schema accepts the same URIs.

mod grammar;
mod path;

use std::fmt;

pub use path::{ModelPath, model_path};

/// A parsed model URI together with its revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ModelUri {
    /// `hf://OWNER/NAME[/FILE][@REVISION]`: a repository of the Hugging Face Hub, or one file of it.
    Hf {
        /// User or organisation.
        owner: String,
        /// Name of the repository.
        name: String,
        /// One file, relative to the repository; `None` for the files that an engine needs.
        file: Option<String>,
        /// Branch, tag or commit; `main` when neither the URI nor the revision names one.
        revision: String,
    },
    /// `oci://REGISTRY/NAME[:TAG][@DIGEST]`: an artifact or image in a registry.
    Oci {
        /// Host, with its port where it has one.
        registry: String,
        /// Name of the repository.
        name: String,
        /// Which of its versions.
        reference: OciReference,
    },
    /// `s3://BUCKET/PATH`: an object, or all objects under a prefix.
    S3 {
        /// The bucket.
        bucket: String,
        /// Key or prefix, without a slash at either end.
        path: String,
    },
    /// `https://HOST/PATH[?QUERY][#sha256=DIGEST]`: one file.
    Https {
        /// The URL that is requested, without the fragment.
        url: String,
        /// The last segment of the path, with characters other than letters, digits, `.`, `_`, `+` and
        /// `-` replaced by `_`.
        file: String,
        /// The SHA-256 that the file must have, in lower-case hexadecimal.
        sha256: Option<String>,
    },
    /// `pvc://CLAIM[/PATH]`: a file or folder in a PersistentVolumeClaim.
    Pvc {
        /// The claim.
        claim: String,
        /// Relative to the volume, without a slash at either end; empty for the volume itself.
        path: String,
    },
    /// `file://PATH` or an absolute path; `~/` is the home folder on a host.
    File {
        /// Begins with `/` or `~/`.
        path: String,
    },
}

/// Which version of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OciReference {
    /// A name that may move.
    Tag(String),
    /// `sha256:` and 64 hexadecimal digits.
    Digest(String),
}

/// How an engine gets at the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModelSource {
    /// `strata fetch` brings them first.
    Fetched,
    /// A volume that is mounted.
    Claim,
    /// They are there already.
    Local,
}

/// Whether `http://` passes for `https://`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainHttp {
    /// It is refused.
    Refused,
    /// It is taken: the caller was told to, or decides by the host.
    Accepted,
}

/// Why a URI, or its revision, is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelUriError {
    /// No scheme, or one that is not known.
    #[error(
        "`{uri}` must be file://PATH, an absolute path, hf://OWNER/NAME, oci://REGISTRY/NAME:TAG, \
         s3://BUCKET/PATH, pvc://CLAIM/PATH or https://HOST/PATH"
    )]
    UnknownScheme {
        /// The URI.
        uri: String,
    },
    /// The scheme's form is not kept.
    #[error("`{uri}` must have the form {form}: {problem}")]
    Malformed {
        /// The URI.
        uri: String,
        /// The form.
        form: &'static str,
        /// The part that breaks it.
        problem: String,
    },
    /// A segment of the path is `.` or `..`.
    #[error("`{uri}` has a `.` or `..` in its path: write the path without it")]
    DotSegment {
        /// The URI.
        uri: String,
    },
    /// `http://` without leave.
    #[error("`{uri}` is not encrypted: use https://")]
    PlainHttp {
        /// The URI.
        uri: String,
    },
    /// `https://user:password@host`.
    #[error("a password or token must not stand in a URI, which everybody may read: put it in a Secret")]
    Credentials,
    /// A revision where there is none.
    #[error("{scheme}:// has no revisions: remove the revision `{revision}`, or use another path for each")]
    NoRevisions {
        /// The scheme.
        scheme: &'static str,
        /// What was asked for.
        revision: String,
    },
    /// A revision that cannot be one.
    #[error("`{revision}` is no revision of {scheme}://: it must be {form}")]
    BadRevision {
        /// The scheme.
        scheme: &'static str,
        /// What was asked for.
        revision: String,
        /// What it must be.
        form: &'static str,
    },
    /// Both the URI and the revision name one, and not the same.
    #[error("the URI names the revision `{in_uri}` and the revision is `{revision}`: remove one of them")]
    TwoRevisions {
        /// The one in the URI.
        in_uri: String,
        /// The other.
        revision: String,
    },
}

impl ModelUri {
    /// Parses a URI and the revision that stands beside it. `http://` is refused.
    pub fn parse(uri: &str, revision: Option<&str>) -> Result<Self, ModelUriError> {
        Self::parse_with(uri, revision, PlainHttp::Refused)
    }

    /// Parses a URI, where the caller decides on `http://`.
    pub fn parse_with(uri: &str, revision: Option<&str>, http: PlainHttp) -> Result<Self, ModelUriError> {
        grammar::parse(uri, revision, http)
    }

    /// How an engine gets at the files.
    pub fn source(&self) -> ModelSource {
        match self {
            Self::Hf { .. } | Self::Oci { .. } | Self::S3 { .. } | Self::Https { .. } => ModelSource::Fetched,
            Self::Pvc { .. } => ModelSource::Claim,
            Self::File { .. } => ModelSource::Local,
        }
    }

    /// The scheme, without `://`.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Hf { .. } => "hf",
            Self::Oci { .. } => "oci",
            Self::S3 { .. } => "s3",
            Self::Https { .. } => "https",
            Self::Pvc { .. } => "pvc",
            Self::File { .. } => "file",
        }
    }
}

/// The canonical form: two URIs are of the same files exactly when theirs are equal.
impl fmt::Display for ModelUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hf { owner, name, file, revision } => {
                write!(f, "hf://{owner}/{name}")?;
                if let Some(file) = file {
                    write!(f, "/{file}")?;
                }
                write!(f, "@{revision}")
            }
            Self::Oci { registry, name, reference: OciReference::Tag(tag) } => {
                write!(f, "oci://{registry}/{name}:{tag}")
            }
            Self::Oci { registry, name, reference: OciReference::Digest(digest) } => {
                write!(f, "oci://{registry}/{name}@{digest}")
            }
            Self::S3 { bucket, path } => write!(f, "s3://{bucket}/{path}"),
            Self::Https { url, sha256, .. } => {
                f.write_str(url)?;
                sha256.as_ref().map_or(Ok(()), |digest| write!(f, "#sha256={digest}"))
            }
            Self::Pvc { claim, path } if path.is_empty() => write!(f, "pvc://{claim}"),
            Self::Pvc { claim, path } => write!(f, "pvc://{claim}/{path}"),
            Self::File { path } => write!(f, "file://{path}"),
        }
    }
}

#[cfg(test)]
mod tests;
