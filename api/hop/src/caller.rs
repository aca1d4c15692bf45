//! The one place that answers: is this caller the layer above? By the run's token on a host, by the
//! identity of its certificate on a cluster.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{Extensions, HeaderMap};
use strata_wire::ErrorKind;

use crate::tls::identity::{self, Component, Identity, Mismatch};
use crate::tls::{Mtls, PeerIdentity, Sparse, now};
use crate::{Fault, HopToken};

/// Paths that anybody may ask: the kubelet and Prometheus have neither token nor certificate.
const OPEN: [&str; 5] = ["/health", "/ready", "/version", "/ping", "/metrics"];

/// Who may call a layer, and by what it knows them. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Above(Arc<Proof>);

#[derive(Debug, Default)]
enum Proof {
    /// Nobody proves anything.
    #[default]
    None,
    Token(HopToken),
    Certificate {
        own: Identity,
        callers: Vec<Component>,
        complaints: Sparse,
    },
}

/// Why a caller is not the layer above.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAbove {
    /// It does not know the run's token.
    #[error("it shows another token than this layer holds, or none")]
    Token,
    /// It showed no certificate.
    #[error("it shows no certificate")]
    NoCertificate,
    /// It is somebody else.
    #[error(transparent)]
    Identity(#[from] Mismatch),
    /// Its certificate held when the connection began, and no longer does.
    #[error("the certificate of {0} expired while its connection was open")]
    Expired(Identity),
}

impl Above {
    /// Callers that are one of `callers` by certificate, where this process has one; else those that
    /// know the token; else everybody.
    pub fn new(token: Option<HopToken>, mtls: Option<&Mtls>, callers: &[Component]) -> Self {
        Self(Arc::new(match (mtls, token) {
            (Some(mtls), _) => Proof::Certificate {
                own: mtls.identity(),
                callers: mtls.narrowed(callers),
                complaints: Sparse::default(),
            },
            (None, Some(token)) => Proof::Token(token),
            (None, None) => Proof::None,
        }))
    }

    /// Whether callers have to prove anything.
    pub fn is_asked(&self) -> bool {
        !matches!(*self.0, Proof::None)
    }

    /// Whether callers have to show a certificate.
    pub fn by_certificate(&self) -> bool {
        matches!(*self.0, Proof::Certificate { .. })
    }

    /// Whether the sender of a request with these extensions and headers has proven to be the layer
    /// above. Nobody has where nothing is asked.
    pub fn knows(&self, extensions: &Extensions, headers: &HeaderMap) -> bool {
        self.is_asked() && self.check(extensions, headers).is_ok()
    }

    /// Why the sender of such a request may not call. Everybody may where nothing is asked.
    pub fn check(&self, extensions: &Extensions, headers: &HeaderMap) -> Result<(), NotAbove> {
        match &*self.0 {
            Proof::None => Ok(()),
            Proof::Token(token) if token.matches(headers) => Ok(()),
            Proof::Token(_) => Err(NotAbove::Token),
            Proof::Certificate { own, callers, .. } => {
                let Some(PeerIdentity(shown)) = extensions.get() else {
                    return Err(NotAbove::NoCertificate);
                };
                if now() > shown.not_after {
                    return Err(NotAbove::Expired(shown.identity.clone()));
                }
                Ok(shown.identity.may_call(own, callers)?)
            }
        }
    }

    /// The answer to somebody who may not call. The log is told who and why.
    pub fn refuse(&self, request: &Request, why: &NotAbove) -> Fault {
        let mut message = "this layer answers only the layer above it; send requests to the entrance that \
                           `strata status` shows"
            .to_owned();
        if let Proof::Certificate { own, callers, complaints } = &*self.0 {
            message = format!(
                "{own} answers only {}, by certificate; {why}. Send requests to the gateway or the platform",
                identity::list(callers)
            );
            if let Some(unsaid) = complaints.may_speak() {
                let peer = request.extensions().get::<crate::Peer>().map(|peer| peer.0.to_string());
                let path = request.uri().path();
                tracing::warn!(peer, path, %why, unsaid, "refused a caller");
            }
        }
        Fault::new(ErrorKind::InvalidApiKey, message)
    }
}

/// Middleware: refuses callers that are not the layer above, but for health, version, readiness and
/// metrics. Use it as `axum::middleware::from_fn_with_state(above, caller::require)`.
pub async fn require(State(above): State<Above>, request: Request, next: Next) -> Response {
    if !OPEN.contains(&request.uri().path())
        && let Err(why) = above.check(request.extensions(), request.headers())
    {
        return above.refuse(&request, &why).into_response();
    }
    next.run(request).await
}

/// Middleware for entrances: refuses callers without the certificate of the layer above on paths under
/// `/internal/`. On a host those are guarded by what they ask for.
pub async fn require_inside(State(above): State<Above>, request: Request, next: Next) -> Response {
    if above.by_certificate()
        && request.uri().path().starts_with("/internal/")
        && let Err(why) = above.check(request.extensions(), request.headers())
    {
        return above.refuse(&request, &why).into_response();
    }
    next.run(request).await
}
