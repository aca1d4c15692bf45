//! Keys and certificates: the one part of the authority that draws random numbers.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use sha2::{Digest, Sha256};
use strata_hop::tls::{Files, Identity};

use super::Schedule;
use super::record::Record;

/// Why no certificate could be made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The library refused.
    #[error("could not make a certificate: {0}")]
    Library(#[from] rcgen::Error),
    /// The authority has no key.
    #[error("the authority {0} has no key to sign with")]
    NoKey(String),
}

/// A new authority that holds from a little before `now`.
pub fn authority(schedule: &Schedule, now: i64) -> Result<Record, IssueError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = authority_params(&key);
    hold(&mut params, now.saturating_sub(schedule.skew), now.saturating_add(schedule.authority));
    let certificate = params.self_signed(&key)?;
    Record::new(&certificate.pem(), Some(&key.serialize_pem()))
        .ok_or(IssueError::Library(rcgen::Error::CouldNotParseCertificate))
}

/// Named by its key, so that its name can be told from the key alone and no two are alike.
fn authority_params(key: &KeyPair) -> CertificateParams {
    let hash = Sha256::digest(key.public_key_raw());
    let name = hash[..8].iter().fold("strata authority ".to_owned(), |text, b| text + &format!("{b:02x}"));
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A key and a certificate for this identity, signed by `signer`, no longer good than the signer is.
/// `bundle` are the authorities that its holder is to trust.
pub fn leaf(
    identity: &Identity,
    signer: &Record,
    bundle: &str,
    schedule: &Schedule,
    now: i64,
) -> Result<Files, IssueError> {
    let signer_key = signer.key.as_ref().ok_or_else(|| IssueError::NoKey(signer.id.clone()))?;
    let signer_key = KeyPair::from_pem(signer_key)?;
    let issuer = Issuer::new(authority_params(&signer_key), signer_key);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, identity.component().name());
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let ends = now.saturating_add(schedule.leaf).min(signer.not_after);
    hold(&mut params, now.saturating_sub(schedule.skew), ends);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Files {
        certificate: certificate.pem().into_bytes(),
        key: key.serialize_pem().into_bytes(),
        authorities: bundle.as_bytes().to_vec(),
    })
}

/// The last moment that a certificate can name: the end of the year 9999.
pub(super) const LAST: i64 = 253_402_300_799;

/// Sets from when to when a certificate holds, in seconds since 1970.
fn hold(params: &mut CertificateParams, from: i64, to: i64) {
    let since_1970 = |seconds: i64| Duration::from_secs(seconds.clamp(0, LAST) as u64);
    let start = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = start + since_1970(from);
    params.not_after = start + since_1970(to);
}
