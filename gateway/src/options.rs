//! How a gateway is started, and why it could not be.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use strata_hop::{HopToken, ListenError, Mtls};

use crate::ledger::LedgerError;

/// How a gateway is started.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// Where the manifests are, and what is below.
    pub source: Source,
    /// Where to listen, such as `127.0.0.1:8081`.
    pub listen: String,
    /// The ledger's file, with counters, usage, audit and run-time keys; made when it is not there.
    pub state: PathBuf,
    /// Where the layer above is answered by mutual TLS, such as `0.0.0.0:8443`. Needs `mtls`.
    pub internal_listen: Option<String>,
    /// By which the layer below knows this one.
    pub hop_token: Option<HopToken>,
    /// The certificates of this process, which take the token's place.
    pub mtls: Option<Mtls>,
    /// How long open requests may go on after a stop.
    pub grace: Duration,
    /// The tenant to which objects belong that were made while there was no gateway.
    pub adopt_local: Option<String>,
}

/// Where the manifests are, and what is below.
#[derive(Clone, Debug)]
pub enum Source {
    /// A folder, and one upstream for all models.
    Folder {
        /// The layer below, such as `http://127.0.0.1:9000`; a `/v1` at its end is left out.
        upstream: String,
        /// The folder of manifests.
        folder: PathBuf,
    },
    /// A Kubernetes API server, and the schedulers that it knows.
    Kubernetes(Cluster),
}

/// What is read of a Kubernetes cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// How to reach it; `None` goes by the environment: a kubeconfig, or the pod's own account.
    pub kubeconfig: Option<PathBuf>,
    /// The gateway's own namespace: Tenants, QuotaPolicies and the keys' Secrets are read there only.
    pub namespace: String,
    /// The namespaces whose models are served; all when empty.
    pub model_namespaces: Vec<String>,
    /// Longest wait for one page of a list, and for a watch to begin.
    pub answer_within: Duration,
}

impl Cluster {
    /// The wait for an answer that suits an API server under load.
    pub const ANSWER_WITHIN: Duration = Duration::from_secs(30);
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder { upstream, folder } => {
                write!(f, "folder {}, upstream {upstream}", folder.display())
            }
            Self::Kubernetes(cluster) => {
                let models = match cluster.model_namespaces.as_slice() {
                    [] => "all namespaces".to_owned(),
                    some => some.join(", "),
                };
                write!(f, "Kubernetes, tenants in {}, models in {models}", cluster.namespace)
            }
        }
    }
}

/// Why a gateway could not be started.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The upstream's address makes no sense.
    #[error("the upstream {0:?} is no http or https URL; write one such as http://127.0.0.1:9000")]
    Upstream(String),
    /// There is nothing to speak TLS with.
    #[error(
        "the internal listener needs certificates: name their folder in {}, or leave out --internal-listen",
        strata_hop::tls::DIR_ENV
    )]
    InternalWithoutCertificates,
    /// The manifests are wrong.
    #[error("the manifests in {} cannot be used:\n  {}", folder.display(), problems.join("\n  "))]
    Manifests {
        /// The folder.
        folder: PathBuf,
        /// What is wrong, one entry a problem.
        problems: Vec<String>,
    },
    /// The cluster cannot be reached by what is configured.
    #[error("cannot tell how to reach the Kubernetes API server: {0}")]
    Cluster(String),
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// The base URL of an upstream, without a path.
pub(crate) fn base(upstream: &str) -> Result<String, GatewayError> {
    let wrong = || GatewayError::Upstream(upstream.to_owned());
    let trimmed = upstream.trim_end_matches('/');
    let trimmed = trimmed.strip_suffix("/v1").unwrap_or(trimmed);
    let uri: http::Uri = trimmed.parse().map_err(|_| wrong())?;
    let bare = uri.path().len() <= 1 && uri.query().is_none();
    match (uri.scheme_str(), uri.authority()) {
        (Some(scheme @ ("http" | "https")), Some(authority)) if bare => Ok(format!("{scheme}://{authority}")),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_a_plain_http_address() {
        for good in
            ["http://127.0.0.1:1", "http://127.0.0.1:1/", "http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1/"]
        {
            assert_eq!(base(good).unwrap(), "http://127.0.0.1:1");
        }
        for bad in ["", "127.0.0.1:1", "https://x/y", "http://x/y", "ftp://x"] {
            assert!(base(bad).is_err(), "{bad}");
        }
    }
}
