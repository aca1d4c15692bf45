//! The way to the next layer.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use strata_wire::ErrorKind;

use crate::line::{Answer, LineError, Lines, MOST_IDLE};
use crate::tls::{self, Callee, Component, Connector, Mismatch, Mtls};
use crate::{Body, Fault};

/// A pooled HTTP client. Cloning shares the pool.
///
/// The URL's scheme decides how it speaks: `http` is plain; `https` is mutual TLS with the component
/// that this client was made for, and an error on a client without certificates.
#[derive(Clone, Debug)]
pub struct Upstream {
    plain: Pool,
    lines: Lines,
    secure: Option<Arc<Secure>>,
    namespace: Option<Arc<str>>,
}

type Pool = Client<Connector, Body>;

/// The TLS side of a client: one pool for each namespace that is called, made anew when this
/// component's certificates change. What runs on an old one goes on to its end.
#[derive(Debug)]
struct Secure {
    mtls: Mtls,
    components: Arc<[Component]>,
    pools: Mutex<Pools>,
}

#[derive(Debug, Default)]
struct Pools {
    generation: u64,
    by_namespace: HashMap<Option<Arc<str>>, Pool>,
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
    /// One end does not accept the other's certificate.
    #[error("{to} and this component do not trust each other: {message}")]
    Untrusted {
        /// The authority that was called.
        to: String,
        /// Who refuses whom, and why.
        message: String,
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
            Self::Untrusted { .. } => Fault::new(
                ErrorKind::BadGateway,
                format!(
                    "{layer} and the layer before it do not accept each other's certificates; nothing is \
                     wrong with the request: tell whoever runs Strata, whose logs say why"
                ),
            ),
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
    /// A client with an empty pool that speaks plain HTTP alone.
    pub fn new() -> Self {
        Self {
            plain: pool(Connector::plain()),
            lines: Lines::new(Connector::plain()),
            secure: None,
            namespace: None,
        }
    }

    /// The same that calls these components by mutual TLS too, where this process has certificates.
    pub fn to(mtls: Option<&Mtls>, components: &[Component]) -> Self {
        let secure = mtls.map(|mtls| {
            Arc::new(Secure { mtls: mtls.clone(), components: components.into(), pools: Mutex::default() })
        });
        Self { secure, ..Self::new() }
    }

    /// The same for callees of this namespace alone. Without it a callee may be of any, but for those
    /// that stand where this component does: a scheduler calls engines of its own namespace.
    #[must_use]
    pub fn within(&self, namespace: &str) -> Self {
        Self { namespace: Some(Arc::from(namespace)), ..self.clone() }
    }

    /// Whether it can call by mutual TLS.
    pub fn is_secured(&self) -> bool {
        self.secure.is_some()
    }

    /// Sends a request whose URI is absolute, and waits at most `first_byte` for the response's head.
    pub async fn send(
        &self,
        request: Request<Body>,
        first_byte: Duration,
    ) -> Result<Response<Incoming>, SendError> {
        let to = request.uri().authority().map_or_else(|| request.uri().to_string(), ToString::to_string);
        let pool = match &self.secure {
            Some(secure) if request.uri().scheme_str() == Some("https") => secure
                .pool(self.namespace.as_ref())
                .map_err(|error| SendError::Untrusted { to: to.clone(), message: error.to_string() })?,
            _ => self.plain.clone(),
        };
        match tokio::time::timeout(first_byte, pool.request(request)).await {
            Err(_) => Err(SendError::Timeout { to, limit: first_byte }),
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(failed(to, &error, error.is_connect())),
        }
    }

    /// The same for what is asked most often: whoever waits for the answer reads it from the connection
    /// itself, and no other task is woken for it. By mutual TLS it is as with [`Upstream::send`].
    pub async fn ask(
        &self,
        request: Request<Body>,
        first_byte: Duration,
    ) -> Result<Response<Answer>, SendError> {
        if self.secure.is_some() && request.uri().scheme_str() == Some("https") {
            return Ok(self.send(request, first_byte).await?.map(Answer::from));
        }
        let to = request.uri().authority().cloned();
        let to = || to.as_ref().map_or_else(|| "the next layer".to_owned(), ToString::to_string);
        match tokio::time::timeout(first_byte, self.lines.send(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(LineError::Connect(error))) => Err(failed(to(), &*error, true)),
            Ok(Err(LineError::Broken(error))) => Err(failed(to(), &error, false)),
            Err(_) => Err(SendError::Timeout { to: to(), limit: first_byte }),
        }
    }
}

fn failed(to: String, error: &(dyn std::error::Error + 'static), is_connect: bool) -> SendError {
    if let Some(message) = distrust(error) {
        SendError::Untrusted { to, message }
    } else if is_connect {
        SendError::Connect { to, message: root_cause(error) }
    } else {
        SendError::Broken { to, message: root_cause(error) }
    }
}

fn pool(connector: Connector) -> Pool {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(MOST_IDLE)
        .build(connector)
}

impl Secure {
    fn pool(&self, namespace: Option<&Arc<str>>) -> Result<Pool, rustls::Error> {
        let current = self.mtls.current();
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if pools.generation != current.generation {
            *pools = Pools { generation: current.generation, ..Pools::default() };
        }
        let namespace = namespace.cloned();
        if let Some(pool) = pools.by_namespace.get(&namespace) {
            return Ok(pool.clone());
        }
        let own = &current.credentials.certificate.identity;
        let usual = self.components.first().and_then(|callee| own.namespace_of(*callee)).map(Arc::from);
        let callee = Callee { components: self.components.clone(), namespace: namespace.clone().or(usual) };
        let made = pool(Connector::secured(&current.credentials, callee)?);
        pools.by_namespace.insert(namespace, made.clone());
        Ok(made)
    }
}

/// Why the two ends do not trust each other, if that is what went wrong.
fn distrust(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(mismatch) = error.downcast_ref::<Mismatch>() {
            return Some(mismatch.to_string());
        }
        // An I/O error hides what it wraps from `source`.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = wrapped.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(tls) = tls.or_else(|| error.downcast_ref::<rustls::Error>()) {
            return Some(tls::reason(tls));
        }
        cause = error.source();
    }
    None
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
