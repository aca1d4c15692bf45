//! A component's certificate, its key, and the authorities that it trusts: three PEM files.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;

use super::certificate::{Certificate, CertificateProblem};

/// File of the certificate.
pub const CERTIFICATE: &str = "tls.crt";
/// File of its private key.
pub const KEY: &str = "tls.key";
/// File of the authorities; more than one while they change.
pub const AUTHORITIES: &str = "ca.crt";

/// What the three files hold.
#[derive(Clone, PartialEq, Eq)]
pub struct Files {
    /// `tls.crt`: the certificate, and the ones between it and the authority if there are any.
    pub certificate: Vec<u8>,
    /// `tls.key`.
    pub key: Vec<u8>,
    /// `ca.crt`.
    pub authorities: Vec<u8>,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Files(redacted)")
    }
}

/// Why files cannot be used as credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file is missing or unreadable.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds no PEM of the right kind.
    #[error("{file} holds no {wanted} in PEM")]
    Pem {
        /// The file's name.
        file: &'static str,
        /// What it should hold.
        wanted: &'static str,
    },
    /// The certificate says nothing usable.
    #[error("{CERTIFICATE} cannot be used: {0}")]
    Certificate(#[from] CertificateProblem),
    /// The key is of an unknown kind, or of another certificate.
    #[error("{KEY} is not the key of {CERTIFICATE}: {0}")]
    Key(rustls::Error),
    /// An authority cannot be used as one.
    #[error("{AUTHORITIES} holds a certificate that is no authority: {0}")]
    Authority(rustls::Error),
    /// Its time is over, or has not come.
    #[error("{CERTIFICATE} of {identity} does not hold now: {why}")]
    Time {
        /// The holder.
        identity: String,
        /// Since when not, or when it will.
        why: String,
    },
    /// None of the authorities signed it.
    #[error("{CERTIFICATE} of {identity} is signed by none of the authorities in {AUTHORITIES}: {source}")]
    NotSigned {
        /// The holder.
        identity: String,
        /// What webpki said.
        source: rustls::Error,
    },
}

impl Files {
    /// Reads the three files of a folder. Kubernetes replaces all files of a mounted Secret at once, by
    /// changing where one link in the path leads: all three are read from where it leads now.
    pub fn read(folder: &Path) -> Result<Self, CredentialsError> {
        let at = std::fs::canonicalize(folder.join(CERTIFICATE))
            .ok()
            .and_then(|path| path.parent().map(Path::to_owned))
            .filter(|parent| [KEY, AUTHORITIES].iter().all(|name| parent.join(name).exists()))
            .unwrap_or_else(|| folder.to_owned());
        let read = |name: &str| {
            std::fs::read(at.join(name))
                .map_err(|source| CredentialsError::Read { path: folder.join(name), source })
        };
        Ok(Self { certificate: read(CERTIFICATE)?, key: read(KEY)?, authorities: read(AUTHORITIES)? })
    }
}

/// Credentials that fit together: the key is the certificate's, and one of the authorities signed it.
#[derive(Clone)]
pub struct Credentials {
    /// What the certificate says.
    pub certificate: Certificate,
    /// Authorities whose word is taken for a peer's identity.
    pub roots: Arc<RootCertStore>,
    pub(crate) key: Arc<CertifiedKey>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("certificate", &self.certificate)
            .field("authorities", &self.roots.len())
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads and checks what the files hold, at `now` seconds since 1970.
    pub fn parse(files: &Files, now: i64) -> Result<Self, CredentialsError> {
        let provider = ring::default_provider();
        let chain = certificates(&files.certificate);
        let leaf = chain.first().ok_or(CredentialsError::Pem { file: CERTIFICATE, wanted: "certificate" })?;
        let certificate = Certificate::parse(leaf)?;
        let key = PrivateKeyDer::from_pem_slice(&files.key)
            .map_err(|_| CredentialsError::Pem { file: KEY, wanted: "private key" })?;
        let signing = provider.key_provider.load_private_key(key).map_err(CredentialsError::Key)?;
        let key = CertifiedKey::new(chain.clone(), signing);
        key.keys_match().map_err(CredentialsError::Key)?;

        let mut roots = RootCertStore::empty();
        for authority in certificates(&files.authorities) {
            roots.add(authority).map_err(CredentialsError::Authority)?;
        }
        if roots.is_empty() {
            return Err(CredentialsError::Pem { file: AUTHORITIES, wanted: "certificate" });
        }
        let identity = certificate.identity.to_string();
        if now > certificate.not_after {
            let why = format!("it expired {} s ago", now - certificate.not_after);
            return Err(CredentialsError::Time { identity, why });
        }
        if now < certificate.not_before {
            let why = format!("it begins to hold in {} s; is the clock right?", certificate.not_before - now);
            return Err(CredentialsError::Time { identity, why });
        }
        is_signed(&chain, &roots, now).map_err(|source| CredentialsError::NotSigned { identity, source })?;
        Ok(Self { certificate, roots: Arc::new(roots), key: Arc::new(key) })
    }
}

/// Whether a private key in PEM is that of the first certificate in another PEM.
pub fn fits(certificate: &[u8], key: &[u8]) -> bool {
    let Ok(key) = PrivateKeyDer::from_pem_slice(key) else { return false };
    let Ok(key) = ring::default_provider().key_provider.load_private_key(key) else { return false };
    let chain = certificates(certificate);
    !chain.is_empty() && CertifiedKey::new(chain, key).keys_match().is_ok()
}

/// The certificates of a PEM text; those that cannot be read are left out.
pub fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect()
}

/// Whether one of `roots` signed the first certificate of `chain`, and both hold at `now`.
pub fn is_signed(chain: &[CertificateDer<'_>], roots: &RootCertStore, now: i64) -> Result<(), rustls::Error> {
    let Some((leaf, between)) = chain.split_first() else {
        return Err(rustls::Error::NoCertificatesPresented);
    };
    verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(leaf)?,
        roots,
        between,
        at(now),
        ring::default_provider().signature_verification_algorithms.all,
    )
}

/// Whether this one authority, in DER, signed the first certificate of `chain`, and it holds at `now`.
pub fn signed_by(chain: &[CertificateDer<'_>], authority: &[u8], now: i64) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(authority)).is_ok() && is_signed(chain, &roots, now).is_ok()
}

fn at(now: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or(0)))
}
