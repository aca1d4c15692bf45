//! Asks a replica how it tokenises a prompt.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use strata_hop::{Body, forward};

use super::prompt::{self, Sent, Tokenised};
use crate::scheduler::Scheduler;

/// Longest time that `/tokenize` may take.
const TOKENISE: Duration = Duration::from_secs(10);
/// Largest answer of it: about 25 bytes a token.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Why a prompt's tokens are not known.
pub enum Refused {
    /// There is no such route.
    NoRoute,
    /// Something else.
    Failed(String),
}

/// Asks a replica for a prompt's tokens.
pub async fn ask(
    scheduler: &Scheduler,
    url: String,
    question: Vec<u8>,
    sent: Sent,
    adapter: Option<String>,
) -> Result<Option<Tokenised>, Refused> {
    let failed = |error: String| Refused::Failed(error);
    let request = Request::post(url).header(header::CONTENT_TYPE, "application/json");
    let mut request = request.body(Body::from(Bytes::from(question))).map_err(|e| failed(e.to_string()))?;
    if let Some(token) = &scheduler.options.hop_token {
        token.attach(request.headers_mut());
    }
    let response = scheduler.upstream.send(request, TOKENISE).await.map_err(|e| failed(e.to_string()))?;
    match response.status() {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
            return Err(Refused::NoRoute);
        }
        status if !status.is_success() => return Err(failed(format!("it answered {}", status.as_u16()))),
        _ => {}
    }
    let body = forward::collect(response.into_body(), TOKENISE, MAX_ANSWER);
    let body = tokio::time::timeout(TOKENISE, body).await.map_err(|e| failed(e.to_string()))?;
    let body = body.map_err(|e| failed(e.to_string()))?;
    // Long prompts take milliseconds.
    let laid = tokio::task::spawn_blocking(move || prompt::laid(&sent, adapter, &body));
    laid.await.map_err(|e| failed(e.to_string()))
}
