//! What the platform is told when it starts, and why it may refuse to.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use strata_hop::{Component, HopToken, ListenError, Mtls};
use strata_wire::defaults;
use strata_wire::hops::Hop;

/// What stands below the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamKind {
    /// A gateway, which knows whom a key belongs to. Callers' keys are passed on to it.
    Gateway,
    /// A scheduler or an engine. Keys end at the platform and everything belongs to the owner `local`.
    Ungoverned,
}

impl UpstreamKind {
    /// The boundary that a request to this upstream crosses.
    pub(crate) fn hop(self) -> Hop {
        match self {
            Self::Gateway => Hop::PlatformToGateway,
            Self::Ungoverned => Hop::PlatformToUngoverned,
        }
    }

    /// Which components may stand there.
    pub(crate) fn callees(self) -> &'static [Component] {
        match self {
            Self::Gateway => &[Component::Gateway],
            Self::Ungoverned => &[Component::Scheduler, Component::Engine],
        }
    }

    /// What errors call this upstream.
    pub(crate) fn layer(self) -> &'static str {
        match self {
            Self::Gateway => "the gateway",
            Self::Ungoverned => "the model server",
        }
    }
}

/// How a platform runs.
#[derive(Clone, Debug)]
pub struct PlatformOptions {
    /// Where to listen, such as `127.0.0.1:8080`; port 0 takes a free one.
    pub listen: String,
    /// The next layer's base URL without `/v1`, such as `http://127.0.0.1:8081`.
    pub upstream: String,
    /// What stands there.
    pub upstream_kind: UpstreamKind,
    /// The folder that holds the database; made, with mode 0700, when it is not there.
    pub state: PathBuf,
    /// The token that shows the next layer who calls it.
    pub hop_token: Option<HopToken>,
    /// The certificates of this process, for an upstream whose URL is https.
    pub mtls: Option<Mtls>,
    /// Listen beyond loopback although nothing checks who calls.
    pub insecure_no_auth: bool,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// Time that open requests get to finish after shutdown.
    pub drain_grace: Duration,
}

impl PlatformOptions {
    /// Options with Strata's defaults: on the default address, without a hop token.
    pub fn new(upstream: impl Into<String>, upstream_kind: UpstreamKind, state: impl Into<PathBuf>) -> Self {
        Self {
            listen: defaults::UP_LISTEN.to_owned(),
            upstream: upstream.into(),
            upstream_kind,
            state: state.into(),
            hop_token: None,
            mtls: None,
            insecure_no_auth: false,
            max_body_bytes: defaults::MAX_BODY_BYTES,
            drain_grace: defaults::DRAIN_GRACE,
        }
    }

    /// The upstream's base URL without a slash at its end.
    pub(crate) fn base(&self) -> Result<String, PlatformError> {
        let wrong = |why| PlatformError::Upstream { url: self.upstream.clone(), why };
        let uri: Uri = self.upstream.parse().map_err(|_| wrong("it is not a URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") if self.mtls.is_some() => {}
            Some("https") => {
                return Err(wrong("https needs certificates; name their folder in STRATA_HOP_DIR"));
            }
            _ => return Err(wrong("it must start with http:// or https://")),
        }
        match uri.path().trim_end_matches('/') {
            "" if uri.query().is_none() => {}
            "/v1" => return Err(wrong("leave out the /v1 at its end")),
            _ => return Err(wrong("it must be a host and a port, without a path or a query")),
        }
        let scheme = uri.scheme_str().unwrap_or("http");
        uri.authority().map(|a| format!("{scheme}://{a}")).ok_or_else(|| wrong("it names no host"))
    }
}

/// Why a platform cannot run.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// The upstream's URL cannot be used.
    #[error("the upstream `{url}` cannot be used: {why}")]
    Upstream {
        /// As given.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Nothing would check who calls from other machines.
    #[error(
        "refusing to listen on {addr}: without a gateway nothing checks who calls; \
         listen on 127.0.0.1, put a gateway below, or pass --insecure-no-auth"
    )]
    Unprotected {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// The state folder or its database cannot be used.
    #[error("the state in {} cannot be used: {why}", path.display())]
    State {
        /// The folder or file.
        path: PathBuf,
        /// What went wrong.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_a_host_and_a_port() {
        let base = |url: &str| PlatformOptions::new(url, UpstreamKind::Gateway, "s").base();
        assert_eq!(base("http://127.0.0.1:1/").unwrap(), "http://127.0.0.1:1");
        assert_eq!(base("http://scheduler.ns:80").unwrap(), "http://scheduler.ns:80");
        let errors = ["http://h/v1", "https://h", "h:80", "http://h/x?y", "no url"]
            .map(|url| base(url).unwrap_err().to_string())
            .join("\n");
        insta::assert_snapshot!(errors, @r"
        the upstream `http://h/v1` cannot be used: leave out the /v1 at its end
        the upstream `https://h` cannot be used: https needs certificates; name their folder in STRATA_HOP_DIR
        the upstream `h:80` cannot be used: it must start with http:// or https://
        the upstream `http://h/x?y` cannot be used: it must be a host and a port, without a path or a query
        the upstream `no url` cannot be used: it is not a URL
        ");
    }
}
