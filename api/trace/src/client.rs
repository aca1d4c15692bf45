//! One call of a collector.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::config::{ConfigError, TraceConfig};
use crate::protobuf;

/// Longest answer that is looked at.
const MAX_ANSWER: usize = 64 * 1024;
/// A connection is not held longer than this without use.
const IDLE: Duration = Duration::from_secs(30);

/// A pooled client of one collector.
#[derive(Clone, Debug)]
pub(crate) struct Collector {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    config: Arc<TraceConfig>,
}

/// What became of a call that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What went wrong.
    pub(crate) message: String,
    /// Whether it may go well later, and after how long at the earliest.
    pub(crate) again: Option<Duration>,
}

impl Collector {
    pub(crate) fn new(config: Arc<TraceConfig>) -> Result<Self, ConfigError> {
        let mut direct = HttpConnector::new();
        direct.enforce_http(false);
        direct.set_nodelay(true);
        direct.set_connect_timeout(Some(config.timeout));
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions of TLS")
            .with_root_certificates(roots(&config)?)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(direct);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector);
        Ok(Self { client, config })
    }

    /// Sends a batch. Returns how many of it the collector says that it does not want.
    pub(crate) async fn send(&self, body: Bytes) -> Result<u64, Refusal> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        request.uri_mut().clone_from(&self.config.endpoint);
        let headers = request.headers_mut();
        headers.extend(self.config.headers.iter().cloned());
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/x-protobuf"));
        let limit = self.config.timeout;
        let again = Some(Duration::ZERO);
        let call = async {
            let response = self
                .client
                .request(request)
                .await
                .map_err(|error| Refusal { message: root_cause(&error), again })?;
            let status = response.status();
            let wait =
                response.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
            // Read to its end, so that the connection can be used again.
            let answer = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            if status.is_success() {
                return Ok(answer.map_or(0, |whole| protobuf::rejected(&whole.to_bytes())));
            }
            // Those that OTLP names; the others would be the same next time.
            let may_pass = matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS
                    | StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT
            );
            let again = may_pass.then(|| Duration::from_secs(wait.unwrap_or(0)));
            Err(Refusal { message: format!("it answers {status}"), again })
        };
        tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
            Err(Refusal { message: format!("no answer within {} ms", limit.as_millis()), again })
        })
    }
}

/// Whom to trust behind `https`: the authorities of the named file, or the system's.
fn roots(config: &TraceConfig) -> Result<RootCertStore, ConfigError> {
    let mut roots = RootCertStore::empty();
    if config.endpoint.scheme_str() != Some("https") {
        return Ok(roots);
    }
    let wrong = |problem| ConfigError { name: "OTEL_EXPORTER_OTLP_CERTIFICATE".to_owned(), problem };
    if let Some(path) = &config.certificate {
        let pem =
            std::fs::read(path).map_err(|e| wrong(format!("{} cannot be read: {e}", path.display())))?;
        for certificate in CertificateDer::pem_slice_iter(&pem).flatten() {
            // Those that cannot be used are missed below, if there is no other.
            let _ = roots.add(certificate);
        }
        if roots.is_empty() {
            return Err(wrong(format!(
                "{} has no certificate that can be read; it must be PEM",
                path.display()
            )));
        }
        return Ok(roots);
    }
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(wrong(
            "the system trusts no certificate authority; name a PEM file of the collector's".into(),
        ));
    }
    Ok(roots)
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
