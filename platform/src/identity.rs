//! Whom an object belongs to. A gateway is asked; without one everything is `local`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::response::IntoResponse;
use http::{HeaderMap, Request, StatusCode, header};
use strata_hop::{Body, Fault, forward};
use strata_wire::identity::{LOCAL_OWNER, WhoAmI};
use strata_wire::{ErrorKind, defaults, headers};

use crate::app::App;
use crate::options::UpstreamKind;
use crate::refusal::Refusal;

/// Most answers of the gateway kept at a time.
const CACHE_ENTRIES: usize = 4096;
/// Largest answer of the gateway that is read, in bytes.
const ANSWER_BYTES: usize = 64 * 1024;

/// An opaque, stable owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Owner(Arc<str>);

impl Owner {
    pub(crate) fn new(id: &str) -> Self {
        Self(Arc::from(id))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The gateway's last answers, keyed by a hash of the key and never by the key.
#[derive(Default)]
pub(crate) struct Owners(Mutex<HashMap<blake3::Hash, (Instant, Owner)>>);

impl Owners {
    fn get(&self, key: &blake3::Hash, now: Instant) -> Option<Owner> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(key)
            .filter(|(at, _)| now.duration_since(*at) < defaults::WHOAMI_TTL)
            .map(|(_, o)| o.clone())
    }

    fn put(&self, key: blake3::Hash, owner: Owner, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CACHE_ENTRIES {
            known.retain(|_, (at, _)| now.duration_since(*at) < defaults::WHOAMI_TTL);
        }
        if known.len() >= CACHE_ENTRIES {
            known.clear();
        }
        known.insert(key, (now, owner));
    }
}

/// Makes the objects of earlier owners this one's, before it sees any. Once for each, as long as this
/// process lives: behind a gateway nothing new is made for an owner that is to be adopted.
async fn adopt(app: &App, owner: &Owner, earlier: &[String]) -> Result<(), Refusal> {
    for from in earlier.iter().filter(|from| !from.is_empty() && **from != *owner.0) {
        let pair = (Owner::new(from), owner.clone());
        if app.adopted.lock().unwrap_or_else(PoisonError::into_inner).contains(&pair) {
            continue;
        }
        let objects = app.store.adopt(&pair.0, owner).await?;
        if objects > 0 {
            tracing::info!(
                objects,
                from,
                "gave an earlier owner's objects to the one that the gateway names"
            );
        }
        app.adopted.lock().unwrap_or_else(PoisonError::into_inner).insert(pair);
    }
    Ok(())
}

/// The owner of what a request with these headers makes or asks for. A gateway's refusal is passed on
/// as it came.
pub(crate) async fn owner(app: &App, received: &HeaderMap, explain: bool) -> Result<Owner, Refusal> {
    if app.options.upstream_kind == UpstreamKind::Ungoverned {
        return Ok(Owner::new(LOCAL_OWNER));
    }
    let key = received.get(header::AUTHORIZATION).map(|v| blake3::hash(v.as_bytes()));
    if let Some(owner) = key.and_then(|key| app.owners.get(&key, Instant::now())) {
        return Ok(owner);
    }
    let mut request = Request::get(format!("{}/internal/v1/whoami", app.base))
        .body(Body::empty())
        .map_err(|e| Fault::new(ErrorKind::Internal, format!("no request could be made: {e}")))?;
    for name in [headers::AUTHORIZATION, headers::REQUEST_ID, headers::TRACEPARENT] {
        if let Some(value) = received.get(name) {
            request.headers_mut().insert(name, value.clone());
        }
    }
    if let Some(token) = &app.options.hop_token {
        token.attach(request.headers_mut());
    }
    let layer = app.options.upstream_kind.layer();
    let asked = Instant::now();
    let response =
        app.client.send(request, defaults::FIRST_BYTE_TIMEOUT).await.map_err(|error| error.fault(layer))?;
    let status = response.status();
    let (parts, body) = response.into_parts();
    if status != StatusCode::OK {
        let headers = forward::response_headers(&parts.headers, explain);
        return Err((status, headers, forward::body(body, defaults::IDLE_TIMEOUT)).into_response().into());
    }
    let bad =
        |why: String| Fault::new(ErrorKind::BadGateway, format!("{layer} did not say who calls: {why}"));
    let body = forward::collect(body, defaults::IDLE_TIMEOUT, ANSWER_BYTES)
        .await
        .map_err(|error| bad(error.to_string()))?;
    let answer: WhoAmI = serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))?;
    if answer.owner.is_empty() {
        return Err(bad("the owner is empty".to_owned()).into());
    }
    let owner = Owner::new(&answer.owner);
    adopt(app, &owner, &answer.adopts).await?;
    if let Some(key) = key {
        app.owners.put(key, owner.clone(), asked);
    }
    Ok(owner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn answers_are_forgotten_in_time_and_bounded() {
        let owners = Owners::default();
        let start = Instant::now();
        let key = |n: usize| blake3::hash(&n.to_le_bytes());
        owners.put(key(0), Owner::new("a"), start);
        assert_eq!(owners.get(&key(0), start), Some(Owner::new("a")));
        assert_eq!(owners.get(&key(1), start), None);
        assert_eq!(owners.get(&key(0), start + defaults::WHOAMI_TTL), None);
        for n in 0..3 * CACHE_ENTRIES {
            owners.put(key(n), Owner::new("b"), start + Duration::from_millis(1));
        }
        assert!(owners.0.lock().unwrap().len() <= CACHE_ENTRIES);
    }
}
