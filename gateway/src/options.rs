//! How a gateway is started, and why it could not be.

use std::path::PathBuf;
use std::time::Duration;

use strata_hop::{HopToken, ListenError};

use crate::ledger::LedgerError;

/// How a gateway is started.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// The layer below, such as `http://127.0.0.1:9000`; a `/v1` at its end is left out.
    pub upstream: String,
    /// The folder of manifests.
    pub folder: PathBuf,
    /// Where to listen, such as `127.0.0.1:8081`.
    pub listen: String,
    /// The ledger's file, with counters, usage, audit and run-time keys; made when it is not there.
    pub state: PathBuf,
    /// By which the layer below knows this one.
    pub hop_token: Option<HopToken>,
    /// How long open requests may go on after a stop.
    pub grace: Duration,
}

/// Why a gateway could not be started.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The upstream's address makes no sense.
    #[error("the upstream {0:?} is no http URL; write one such as http://127.0.0.1:9000")]
    Upstream(String),
    /// The manifests are wrong.
    #[error("the manifests in {} cannot be used:\n  {}", folder.display(), problems.join("\n  "))]
    Manifests {
        /// The folder.
        folder: PathBuf,
        /// What is wrong, one entry a problem.
        problems: Vec<String>,
    },
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
    let plain = uri.scheme_str() == Some("http") && uri.path().len() <= 1 && uri.query().is_none();
    match uri.authority() {
        Some(authority) if plain => Ok(format!("http://{authority}")),
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
        for bad in ["", "127.0.0.1:1", "https://x", "http://x/y", "ftp://x"] {
            assert!(base(bad).is_err(), "{bad}");
        }
    }
}
