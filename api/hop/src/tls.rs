//! Mutual TLS between the layers of a cluster.
//!
//! Each component holds a certificate that names it ([`Identity`]), made by Strata's own authority. Both
//! ends of a hop check the other's: [`Credentials`] are the three files it takes, [`Mtls`] follows them
//! as they change, and listeners and clients are made from that. On a host there is none of it: there
//! the run's token says who calls ([`crate::token`]).

mod accept;
pub mod certificate;
mod connect;
pub mod credentials;
pub mod identity;
mod reload;
mod sparse;
mod verify;

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};

pub use certificate::{Certificate, CertificateProblem};
pub use credentials::{Credentials, CredentialsError, Files};
pub use identity::{Component, Identity, Mismatch, NoComponent};
pub use reload::Mtls;
pub(crate) use reload::now;

pub(crate) use accept::{Refused, accept};
pub(crate) use connect::{Connector, Stream};
pub(crate) use sparse::Sparse;
pub(crate) use verify::{Callee, reason};

/// The environment variable that names the folder of `tls.crt`, `tls.key` and `ca.crt`.
pub const DIR_ENV: &str = "STRATA_HOP_DIR";
/// The environment variable that narrows who may call: components, separated by commas.
pub const CALLERS_ENV: &str = "STRATA_HOP_CALLERS";

/// The one protocol of a hop.
const ALPN: &[u8] = b"http/1.1";
/// Peers whose sessions a client remembers, so that the next connection is cheaper.
const SESSIONS: usize = 1024;

/// Who the other end of a connection has proven to be; an extension of every request that came over
/// one whose client showed a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity(pub Certificate);

/// Why a process has no use of the certificates it was given.
#[derive(Debug, thiserror::Error)]
pub enum MtlsError {
    /// They cannot be used.
    #[error("the certificates in {place} cannot be used: {source}")]
    Credentials {
        /// Where they are.
        place: String,
        /// Why not.
        source: CredentialsError,
    },
    /// They are another component's.
    #[error("the certificate in {place} is of {found}, and this is {}", wanted.with_article())]
    Component {
        /// Where it is.
        place: String,
        /// Whose it is.
        found: Identity,
        /// Who this is.
        wanted: Component,
    },
    /// They became another's.
    #[error("the certificate in {place} is now of {found}, and this is {own}")]
    Another {
        /// Where it is.
        place: String,
        /// Whose it is.
        found: Identity,
        /// Who this is.
        own: Identity,
    },
    /// The list of callers names something else.
    #[error("{CALLERS_ENV}: {0}")]
    Callers(#[from] NoComponent),
    /// The thread that follows the files could not be started.
    #[error("the certificates cannot be followed: {0}")]
    Thread(std::io::Error),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn server_config(credentials: &Credentials) -> Result<ServerConfig, CredentialsError> {
    let provider = provider();
    let webpki = WebPkiClientVerifier::builder_with_provider(credentials.roots.clone(), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| CredentialsError::Authority(rustls::Error::General(error.to_string())))?;
    let judge = verify::ClientJudge { webpki, complaints: Sparse::default() };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(CredentialsError::Key)?
        .with_client_cert_verifier(Arc::new(judge))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.key.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = rustls::server::ServerSessionMemoryCache::new(4 * SESSIONS);
    Ok(config)
}

fn client_config(credentials: &Credentials, callee: &Callee) -> Result<ClientConfig, rustls::Error> {
    let provider = provider();
    let judge = verify::ServerJudge {
        roots: credentials.roots.clone(),
        callee: callee.clone(),
        provider: provider.clone(),
    };
    // What rustls calls dangerous is to bring a verifier of one's own; this one has webpki judge the chain.
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(judge))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.key.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::in_memory_sessions(SESSIONS);
    Ok(config)
}
