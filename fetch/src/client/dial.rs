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

pub(super) fn connector(stall: Duration) -> Result<HttpsConnector<Dialer>, FetchError> {
    let mut direct = HttpConnector::new();
    direct.enforce_http(false);
    direct.set_nodelay(true);
    direct.set_connect_timeout(Some(stall.min(CONNECT)));
    let dialer = Dialer { direct, proxies: Arc::new(Matcher::from_env()) };
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions of TLS")
        .with_root_certificates(roots()?)
        .with_no_client_auth();
    Ok(HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(dialer))
}

/// The system's certificate authorities, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`; where the
/// system has none, as in a small image, Mozilla's.
fn roots() -> Result<RootCertStore, FetchError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        for name in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
            if std::env::var_os(name).is_some_and(|value| !value.is_empty()) {
                let why = found.errors.first().map(|e| format!(": {e}")).unwrap_or_default();
                let problem = format!("names no certificate that can be read{why}");
                return Err(FetchError::Setting { name: name.to_owned(), problem });
            }
        }
        roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
    }
    Ok(roots)
}

/// What TLS has against the server's certificate, when that is why a request failed.
pub(super) fn certificate_problem(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // An I/O error carries the TLS error within, not as its source.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = error
            .downcast_ref::<rustls::Error>()
            .or_else(|| inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()));
        if let Some(rustls::Error::InvalidCertificate(problem)) = tls {
            return Some(problem.to_string());
        }
        cause = error.source();
    }
    None
}
