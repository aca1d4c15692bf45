//! The way to the next layer.

use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use strata_wire::{ErrorKind, defaults};

use crate::{Body, Fault};

/// A pooled HTTP client. Cloning shares the pool.
#[derive(Clone, Debug)]
pub struct Upstream {
    client: Client<HttpConnector, Body>,
}

/// Why a request got no response. Nothing of a response has been seen in any of these cases, so a
/// caller that kept the body may send the request elsewhere.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Nobody listens there.
    #[error("cannot connect to {to}: {message}")]
    Connect {
        /// The authority that was called.
        to: String,
        /// What the system said.
        message: String,
    },
    /// No first byte in time.
    #[error("{to} did not answer within {} s", limit.as_secs())]
    Timeout {
        /// The authority that was called.
        to: String,
        /// The limit.
        limit: Duration,
    },
    /// The connection broke before a response came.
    #[error("{to} closed the connection without an answer: {message}")]
    Broken {
        /// The authority that was called.
        to: String,
        /// What went wrong.
        message: String,
    },
}

impl SendError {
    /// The response that the caller's caller gets.
    pub fn fault(&self, layer: &str) -> Fault {
        match self {
            Self::Timeout { limit, .. } => {
                Fault::new(ErrorKind::Timeout, format!("{layer} did not answer within {} s", limit.as_secs()))
            }
            Self::Connect { .. } => {
                Fault::new(ErrorKind::Overloaded, format!("{layer} cannot be reached; try again shortly"))
                    .retry_after(Duration::from_secs(1))
            }
            Self::Broken { .. } => {
                Fault::new(ErrorKind::BadGateway, format!("{layer} broke off before it answered; try again"))
            }
        }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self::new()
    }
}

impl Upstream {
    /// A client with an empty pool.
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(defaults::CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector);
        Self { client }
    }

    /// Sends a request whose URI is absolute, and waits at most `first_byte` for the response's head.
    pub async fn send(
        &self,
        request: Request<Body>,
        first_byte: Duration,
    ) -> Result<Response<Incoming>, SendError> {
        let to = request.uri().authority().map_or_else(|| request.uri().to_string(), ToString::to_string);
        match tokio::time::timeout(first_byte, self.client.request(request)).await {
            Err(_) => Err(SendError::Timeout { to, limit: first_byte }),
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let message = root_cause(&error);
                Err(if error.is_connect() {
                    SendError::Connect { to, message }
                } else {
                    SendError::Broken { to, message }
                })
            }
        }
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
