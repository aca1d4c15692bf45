//! Requests that the platform passes on as they are: the model API, and a gateway's keys and usage.

use axum::body::HttpBody;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use strata_hop::{Body, Fault, Peer, forward, spool};
use strata_wire::{ErrorKind, defaults};

use crate::app::App;
use crate::identity;
use crate::options::UpstreamKind;
use crate::refusal::Refusal;

/// Whether the caller may see why a replica was picked: it sits on this machine.
pub(crate) fn explains(request: &Request) -> bool {
    request.extensions().get::<Peer>().is_some_and(|peer| peer.is_loopback())
}

/// The headers that a request to the next layer starts from.
pub(crate) fn headers_for_upstream(app: &App, received: &HeaderMap) -> HeaderMap {
    let mut headers = forward::request_headers(received, app.options.upstream_kind.hop());
    if let Some(token) = &app.options.hop_token {
        token.attach(&mut headers);
    }
    headers
}

/// Largest body that is read before it is known who sends it.
const STRANGERS_BODY: u64 = 64 * 1024;

/// Passes a request on, and the answer back byte for byte as it comes.
pub(crate) async fn pass(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let explain = explains(&request);
    let (parts, body) = request.into_parts();
    if body.size_hint().upper().is_none_or(|size| size > STRANGERS_BODY) {
        identity::owner(&app, &parts.headers, explain).await?;
    }
    let body = spool::read(body, app.options.max_body_bytes).await?;
    let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let mut onward = http::Request::builder()
        .method(parts.method)
        .uri(format!("{}{path}", app.base))
        .body(Body::from(body))
        .map_err(|e| Fault::invalid(format!("this path cannot be passed on: {e}")))?;
    *onward.headers_mut() = headers_for_upstream(&app, &parts.headers);
    let response = app
        .client
        .send(onward, defaults::FIRST_BYTE_ABOVE_TIMEOUT)
        .await
        .map_err(|error| error.fault(app.options.upstream_kind.layer()))?;
    let (head, body) = response.into_parts();
    let headers = forward::response_headers(&head.headers, explain);
    Ok((head.status, headers, forward::body(body, defaults::IDLE_TIMEOUT)).into_response())
}

/// The same for what only a gateway has.
pub(crate) async fn pass_to_gateway(state: State<App>, request: Request) -> Result<Response, Refusal> {
    if state.options.upstream_kind == UpstreamKind::Ungoverned {
        return Err(Fault::new(
            ErrorKind::NotFound,
            format!("{} needs a gateway, and this platform runs without one", request.uri().path()),
        )
        .into());
    }
    pass(state, request).await
}
