//! From options to a running server.

use std::net::SocketAddr;

use strata_hop::Bound;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::options::{PlatformError, PlatformOptions, UpstreamKind};
use crate::router::router;

/// A platform that is bound to its address and not yet served.
pub struct Platform {
    app: App,
    bound: Bound,
}

impl Platform {
    /// Checks the options, binds the address and opens the database.
    pub async fn bind(options: PlatformOptions) -> Result<Self, PlatformError> {
        options.base()?;
        let bound = Bound::bind(&options.listen).await?;
        let open_to_all = !bound.addr().ip().to_canonical().is_loopback();
        if open_to_all && options.upstream_kind == UpstreamKind::Ungoverned {
            if !options.insecure_no_auth {
                return Err(PlatformError::Unprotected { addr: bound.addr() });
            }
            tracing::warn!(addr = %bound.addr(), "listening beyond this machine, and nothing checks who calls");
        }
        Ok(Self { app: App::open(options)?, bound })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.bound.addr()
    }

    /// Serves until `shutdown`, and then finishes what has begun.
    pub async fn serve(self, shutdown: CancellationToken) {
        let options = &self.app.options;
        tracing::info!(
            listen = %self.bound.addr(),
            upstream = %self.app.base,
            upstream_kind = ?options.upstream_kind,
            state = %options.state.display(),
            hop_token = options.hop_token.is_some(),
            mtls = ?options.mtls,
            insecure_no_auth = options.insecure_no_auth,
            max_body_bytes = options.max_body_bytes,
            drain_grace_s = options.drain_grace.as_secs(),
            tools = %self.app.tools.kinds(),
            "platform listens"
        );
        let grace = options.drain_grace;
        self.bound.serve(router(self.app), shutdown, grace).await;
        tracing::info!("platform stopped");
    }
}

/// Serves these options until `shutdown`.
pub async fn run(options: PlatformOptions, shutdown: CancellationToken) -> Result<(), PlatformError> {
    Platform::bind(options).await?.serve(shutdown).await;
    Ok(())
}
