//! How each side of a connection judges the other's certificate. The chain is webpki's to judge; the
//! name is ours: peers are called by a pod's address, which changes, so the identity counts instead.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};

use super::certificate::Certificate;
use super::identity::{Component, Mismatch};
use super::sparse::Sparse;

/// Whom a client means to call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Callee {
    /// Any of these.
    pub(crate) components: Arc<[Component]>,
    /// In this namespace, where it is known.
    pub(crate) namespace: Option<Arc<str>>,
}

impl Callee {
    /// Whether this certificate is of whom is called.
    pub(crate) fn check(&self, certificate: &Certificate) -> Result<(), Mismatch> {
        certificate.identity.check(&self.components, self.namespace.as_deref())
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// A client's judge of the server.
#[derive(Debug)]
pub(crate) struct ServerJudge {
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) callee: Callee,
    pub(crate) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ServerJudge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _address: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        let certificate = Certificate::parse(end_entity).map_err(other)?;
        self.callee.check(&certificate).map_err(other)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A server's judge of its clients: a certificate need not be shown, but one that is must hold and name
/// somebody. Who of those may call is decided for each request, where the refusal can say why.
#[derive(Debug)]
pub(crate) struct ClientJudge {
    pub(crate) webpki: Arc<dyn ClientCertVerifier>,
    pub(crate) complaints: Sparse,
}

impl ClientCertVerifier for ClientJudge {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let certificate = Certificate::parse(end_entity);
        let verdict = self
            .webpki
            .verify_client_cert(end_entity, intermediates, now)
            .and_then(|verified| certificate.as_ref().map(|_| verified).map_err(|e| other(*e)));
        if let Err(error) = &verdict
            && let Some(unsaid) = self.complaints.may_speak()
        {
            let claims = match &certificate {
                Ok(certificate) => certificate.identity.to_string(),
                Err(problem) => problem.to_string(),
            };
            // The connection's span says from where.
            tracing::warn!(claims, why = reason(error), unsaid, "refused a caller's certificate");
        }
        verdict
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Why the two ends do not trust each other, in words for whoever runs them.
pub(crate) fn reason(error: &Error) -> String {
    use rustls::AlertDescription as Alert;
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(own))) => own.to_string(),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate is signed by no authority in ca.crt".to_owned()
        }
        Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
            format!("its certificate expired {} s ago", time.as_secs().saturating_sub(not_after.as_secs()))
        }
        Error::InvalidCertificate(CertificateError::Expired) => "its certificate has expired".to_owned(),
        Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
            let seconds = not_before.as_secs().saturating_sub(time.as_secs());
            format!("its certificate begins to hold in {seconds} s; is the clock right?")
        }
        Error::AlertReceived(Alert::UnknownCA) => {
            "it knows no authority that signed this certificate".to_owned()
        }
        Error::AlertReceived(Alert::CertificateExpired) => "it finds this certificate expired".to_owned(),
        Error::AlertReceived(alert) => format!("it ended the handshake with the alert {alert:?}"),
        Error::InvalidMessage(_) => "what it speaks is not TLS".to_owned(),
        error => error.to_string(),
    }
}
