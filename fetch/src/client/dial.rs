//! Connections: directly or through the proxy of the environment, and encrypted.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower::Service;

use crate::error::FetchError;

/// The longest that a connection may take to be made, where the stall time-out is longer.
const CONNECT: Duration = Duration::from_secs(10);

type Failure = Box<dyn Error + Send + Sync>;

/// Opens TCP connections; https ones through `HTTPS_PROXY` where that is set and `NO_PROXY` does not
/// name the host.
#[derive(Clone)]
pub(super) struct Dialer {
    direct: HttpConnector,
    proxies: Arc<Matcher>,
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<TcpStream>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let proxy = (to.scheme_str() == Some("https")).then(|| self.proxies.intercept(&to)).flatten();
        match proxy {
            None => {
                let connecting = self.direct.call(to);
                Box::pin(async move { Ok(connecting.await?) })
            }
            Some(proxy) => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), self.direct.clone());
                if let Some(auth) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                let connecting = tunnel.call(to);
                Box::pin(async move { connecting.await.map_err(|e| format!("the proxy: {e}").into()) })
            }
        }
    }
}

/// `authorities` are trusted beside those of the system, as PEM.
pub(super) fn connector(
    stall: Duration,
    authorities: Option<&str>,
) -> Result<HttpsConnector<Dialer>, FetchError> {
    let mut direct = HttpConnector::new();
    direct.enforce_http(false);
    direct.set_nodelay(true);
    direct.set_connect_timeout(Some(stall.min(CONNECT)));
    let dialer = Dialer { direct, proxies: Arc::new(Matcher::from_env()) };
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions of TLS")
        .with_root_certificates(roots(authorities)?)
        .with_no_client_auth();
    Ok(HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(dialer))
}

/// The system's certificate authorities, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`; where the
/// system has none, as in a small image, Mozilla's.
fn roots(authorities: Option<&str>) -> Result<RootCertStore, FetchError> {
    let mut roots = RootCertStore::empty();
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let unreadable = |name: &str, errors: &[rustls_native_certs::Error]| {
        let why = errors.first().map(|e| format!(": {e}")).unwrap_or_default();
        let problem = format!("names no certificate that can be read{why}");
        FetchError::Setting { name: name.to_owned(), problem }
    };
    if let Some(file) = set("SSL_CERT_FILE") {
        let found = rustls_native_certs::load_certs_from_paths(Some(file.as_ref()), None);
        if found.certs.is_empty() {
            return Err(unreadable("SSL_CERT_FILE", &found.errors));
        }
    }
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        if set("SSL_CERT_DIR").is_some() {
            return Err(unreadable("SSL_CERT_DIR", &found.errors));
        }
        roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
    }
    if let Some(pem) = authorities {
        let mut added = 0;
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            added += usize::from(certificate.is_ok_and(|c| roots.add(c).is_ok()));
        }
        if added == 0 {
            let problem = "has no certificate that can be read: it must be PEM".to_owned();
            return Err(FetchError::Setting { name: "CA_CERTIFICATES".to_owned(), problem });
        }
    }
    Ok(roots)
}

/// What TLS has against the server's certificate, when that is why a request failed.
pub(super) fn certificate_problem(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(rustls::Error::InvalidCertificate(problem)) = error.downcast_ref::<rustls::Error>() {
        return Some(problem.to_string());
    }
    // An I/O error has what it carries within, and that one's source as its own.
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let inner = inner.map(|inner| inner as &(dyn Error + 'static));
    inner.and_then(certificate_problem).or_else(|| error.source().and_then(certificate_problem))
}
