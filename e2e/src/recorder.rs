//! A proxy between two layers that changes nothing and remembers everything.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use strata_hop::{Bound, Upstream};
use tokio_util::sync::CancellationToken;

/// One request and its answer, as they crossed.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Method and path.
    pub what: String,
    /// The request's headers.
    pub headers: HeaderMap,
    /// The request's body.
    pub body: Bytes,
    /// The answer's headers.
    pub answer_headers: HeaderMap,
    /// The answer's body.
    pub answer: Bytes,
}

/// A recorder at one boundary.
#[derive(Clone, Debug)]
pub struct Recorder {
    /// Where the layer above sends its requests.
    pub url: String,
    seen: Arc<Mutex<Vec<Exchange>>>,
    upstream: String,
    client: Upstream,
}

impl Recorder {
    /// Stands before `upstream`, until the runtime ends.
    pub async fn start(upstream: &str) -> Self {
        let bound = Bound::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let recorder = Self {
            url: bound.url(),
            seen: Arc::default(),
            upstream: upstream.to_owned(),
            client: Upstream::new(),
        };
        let router = Router::new().fallback(pass).with_state(recorder.clone());
        tokio::spawn(bound.serve(router, CancellationToken::new(), Duration::ZERO));
        recorder
    }

    /// What has crossed so far whose method and path hold `part`.
    pub fn exchanges(&self, part: &str) -> Vec<Exchange> {
        let seen = self.seen.lock().expect("no holder of the lock panics");
        seen.iter().filter(|e| e.what.contains(part)).cloned().collect()
    }
}

async fn pass(State(recorder): State<Recorder>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    let mut forward =
        http::Request::builder().method(&parts.method).uri(format!("{}{path}", recorder.upstream));
    for (name, value) in parts
        .headers
        .iter()
        .filter(|(name, _)| !["host", "content-length", "transfer-encoding"].contains(&name.as_str()))
    {
        forward = forward.header(name, value);
    }
    let forward = forward.body(Body::from(body.clone())).expect("what was received can be sent");
    let Ok(answer) = recorder.client.send(forward, Duration::from_secs(120)).await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let (answer_parts, answer) = answer.into_parts();
    let Ok(answer) = answer.collect().await.map(http_body_util::Collected::to_bytes) else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    recorder.seen.lock().expect("no holder of the lock panics").push(Exchange {
        what: format!("{} {path}", parts.method),
        headers: parts.headers,
        body,
        answer_headers: answer_parts.headers.clone(),
        answer: answer.clone(),
    });
    let mut response = Response::new(Body::from(answer));
    *response.status_mut() = answer_parts.status;
    for (name, value) in answer_parts
        .headers
        .iter()
        .filter(|(name, _)| !["content-length", "transfer-encoding"].contains(&name.as_str()))
    {
        response.headers_mut().append(name, value.clone());
    }
    response
}
