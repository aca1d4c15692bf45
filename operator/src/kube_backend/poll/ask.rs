//! One question, one answer.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, header};
use serde::de::DeserializeOwned;
use strata_hop::tls::{Component, Mtls};
use strata_hop::{Body, HopToken, Upstream, forward};
use strata_wire::download;
use strata_wire::governance::STATUS_PATH;

use crate::kube_backend::key::Key;
use crate::render::PORT;

/// For the whole of an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// An answer may be so large.
const LARGEST: usize = 16 * 1024 * 1024;

/// Where a gateway speaks to other layers by mutual TLS; its other port is for clients.
const GATEWAY_TLS_PORT: i32 = 8443;

/// Who is asked what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Question {
    /// Which replicas does it route to?
    Scheduler { pod: Key, ip: String },
    /// How far is it?
    Download { pod: Key, ip: String },
    /// Which tenants and policies are in force?
    Gateway { pod: Key, ip: String },
}

impl Question {
    /// As metrics name it.
    pub(super) fn target(&self) -> &'static str {
        match self {
            Self::Scheduler { .. } => "scheduler",
            Self::Download { .. } => "download",
            Self::Gateway { .. } => "gateway",
        }
    }

    /// Whether it is asked of the container that fetches a model, and not of a layer.
    pub(super) fn is_download(&self) -> bool {
        matches!(self, Self::Download { .. })
    }

    fn pod(&self) -> &Key {
        match self {
            Self::Scheduler { pod, .. } | Self::Download { pod, .. } | Self::Gateway { pod, .. } => pod,
        }
    }

    fn url(&self, tls: bool) -> String {
        // A download has no secret to tell, and its container has no certificate.
        let (ip, port, path, tls) = match self {
            Self::Scheduler { ip, .. } => (ip, PORT, "/replicas", tls),
            Self::Download { ip, .. } => (ip, PORT, download::PATH, false),
            Self::Gateway { ip, .. } => (ip, if tls { GATEWAY_TLS_PORT } else { PORT }, STATUS_PATH, tls),
        };
        let scheme = if tls { "https" } else { "http" };
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
        format!("{scheme}://{host}:{port}{path}")
    }
}

/// What came of a question: the body, or why there is none.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) question: Question,
    pub(super) body: Result<Vec<u8>, String>,
}

/// Asks over HTTP.
#[derive(Debug)]
pub(super) struct Asker {
    upstream: Upstream,
}

impl Asker {
    pub(super) fn new(mtls: Option<&Mtls>) -> Self {
        Self { upstream: Upstream::to(mtls, &[Component::Scheduler, Component::Gateway]) }
    }

    pub(super) async fn ask(self: Arc<Self>, question: Question, token: Option<HopToken>) -> Answer {
        let body = match tokio::time::timeout(PATIENCE, self.get(&question, token)).await {
            Ok(body) => body,
            Err(_) => Err("no answer within 2 s".to_owned()),
        };
        Answer { question, body }
    }

    async fn get(&self, question: &Question, token: Option<HopToken>) -> Result<Vec<u8>, String> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(question.url(self.upstream.is_secured()))
            .header(header::ACCEPT, "application/json");
        let mut request = request.body(Body::empty()).map_err(|e| e.to_string())?;
        if let Some(token) = token {
            token.attach(request.headers_mut());
        }
        let upstream = self.upstream.within(&question.pod().namespace);
        let response = upstream.send(request, PATIENCE).await.map_err(|e| e.to_string())?;
        if !response.status().is_success() {
            return Err(format!("it answered {}", response.status()));
        }
        let body = forward::collect(response.into_body(), PATIENCE, LARGEST).await;
        body.map(|b| b.to_vec()).map_err(|e| e.to_string())
    }
}

/// Reads a JSON answer.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|e| format!("its answer cannot be read: {e}"))
}
