//! A tenant's own affairs: its keys, and who it is to the layer above.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use bytes::Bytes;
use http::{Extensions, HeaderMap};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use strata_hop::{Fault, spool};
use strata_wire::ErrorKind;
use strata_wire::identity::{LOCAL_OWNER, WhoAmI};
use uuid::Uuid;

use crate::gateway::Inner;
use crate::keys::{KeyInfo, Role};
use crate::ledger::{Decision, LedgerError};
use crate::session::Session;

/// Largest body of these endpoints.
const MAX_BODY: usize = 64 * 1024;
/// Longest name of a key, in characters.
const MAX_NAME: usize = 128;
/// Longest time that a rotated secret goes on working: 30 days.
const MAX_OVERLAP_S: i64 = 30 * 86_400;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewKey {
    name: String,
    #[serde(default)]
    role: Option<String>,
    #[serde(default)]
    expires_at: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotate {
    #[serde(default)]
    overlap_seconds: i64,
}

fn shown(key: &KeyInfo) -> Value {
    json!({
        "object": "api_key",
        "id": key.id,
        "name": key.name,
        "role": key.role.name(),
        "created_at": key.created,
        "expires_at": key.expires,
        "revoked_at": key.revoked,
    })
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Fault> {
    serde_json::from_slice(body).map_err(|error| Fault::invalid(format!("the body cannot be used: {error}")))
}

fn no_key(id: &str) -> Fault {
    let shown: String = id.chars().take(64).collect();
    Fault::new(ErrorKind::NotFound, format!("No working API key has the id `{shown}`."))
}

/// Work on the key store, away from the threads that serve.
async fn store<T: Send + 'static>(
    inner: &Arc<Inner>,
    work: impl FnOnce(&Inner) -> Result<T, LedgerError> + Send + 'static,
) -> Result<T, Fault> {
    let inner = inner.clone();
    let done = tokio::task::spawn_blocking(move || work(&inner)).await;
    let failed = || Fault::new(ErrorKind::Internal, "the keys cannot be read or written just now");
    match done {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            tracing::error!(%error, "the key store failed");
            Err(failed())
        }
        Err(_) => Err(failed()),
    }
}

async fn admin(inner: &Arc<Inner>, headers: &HeaderMap, extensions: &Extensions) -> Result<Session, Fault> {
    let session = inner.session(Uuid::now_v7(), headers, extensions).await?;
    session.require_admin(inner)?;
    Ok(session)
}

/// `GET /internal/v1/whoami`: an opaque owner that outlives every key, the caller's roles, and the owners
/// whose objects are this one's from now on.
pub(crate) async fn whoami(State(inner): State<Arc<Inner>>, request: Request) -> Result<Json<WhoAmI>, Fault> {
    let session = inner.session(Uuid::now_v7(), request.headers(), request.extensions()).await?;
    let adopts = inner.adopt_local.as_deref() == Some(&*session.tenant.name);
    Ok(Json(WhoAmI {
        owner: inner.opaque.owner(&session.tenant.name),
        roles: vec![session.caller.role.name().to_owned()],
        adopts: if adopts { vec![LOCAL_OWNER.to_owned()] } else { Vec::new() },
    }))
}

/// `GET /v1/keys`
pub(crate) async fn list(State(inner): State<Arc<Inner>>, request: Request) -> Result<Json<Value>, Fault> {
    let session = admin(&inner, request.headers(), request.extensions()).await?;
    let tenant = session.tenant.name.clone();
    let keys = store(&inner, move |inner| inner.keys.list(Some(&tenant))).await?;
    Ok(Json(json!({"object": "list", "data": keys.iter().map(shown).collect::<Vec<_>>()})))
}

/// `POST /v1/keys`: the answer is the only place where the key is ever shown.
pub(crate) async fn create(State(inner): State<Arc<Inner>>, request: Request) -> Result<Json<Value>, Fault> {
    let session = admin(&inner, request.headers(), request.extensions()).await?;
    let new: NewKey = parse(&spool::read(request.into_body(), MAX_BODY).await?)?;
    let role = match new.role.as_deref() {
        None => Role::Member,
        Some(name) => Role::parse(name)
            .ok_or_else(|| Fault::invalid_param("role", "`role` must be `member` or `admin`"))?,
    };
    if new.name.trim().is_empty() || new.name.chars().count() > MAX_NAME {
        return Err(Fault::invalid_param("name", format!("`name` must have 1 to {MAX_NAME} characters")));
    }
    if new.expires_at.is_some_and(|at| at <= inner.clock.now_ms() / 1000) {
        return Err(Fault::invalid_param(
            "expires_at",
            "`expires_at` must be in the future, in seconds since 1970",
        ));
    }
    let tenant = session.tenant.name.clone();
    let (key, info) = store(&inner, move |inner| {
        let made = inner.keys.create(&tenant, new.name.trim(), role, new.expires_at)?;
        inner.reload_keys()?;
        Ok(made)
    })
    .await?;
    inner.audit(session.id, Some(&session.caller), Decision::Allow, "key_created", None);
    let mut body = shown(&info);
    body["key"] = Value::from(key);
    Ok(Json(body))
}

/// The key of this id, if it is the caller's tenant's and works.
async fn own(inner: &Arc<Inner>, session: &Session, id: &str) -> Result<KeyInfo, Fault> {
    let wanted = id.to_owned();
    let found = store(inner, move |inner| inner.keys.get(&wanted)).await?;
    found.filter(|key| *key.tenant == *session.tenant.name && key.revoked.is_none()).ok_or_else(|| no_key(id))
}

/// `DELETE /v1/keys/{id}`
pub(crate) async fn revoke(
    State(inner): State<Arc<Inner>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Value>, Fault> {
    let session = admin(&inner, request.headers(), request.extensions()).await?;
    let key = own(&inner, &session, &id).await?;
    let gone = store(&inner, move |inner| {
        let gone = inner.keys.revoke(&key.id)?;
        inner.reload_keys()?;
        Ok(gone)
    })
    .await?;
    if !gone {
        return Err(no_key(&id));
    }
    inner.audit(session.id, Some(&session.caller), Decision::Allow, "key_revoked", None);
    Ok(Json(json!({"object": "api_key.deleted", "id": id, "deleted": true})))
}

/// `POST /v1/keys/{id}/rotate`: a new secret; the one before works for `overlap_seconds` more.
pub(crate) async fn rotate(
    State(inner): State<Arc<Inner>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Value>, Fault> {
    let session = admin(&inner, request.headers(), request.extensions()).await?;
    let body = spool::read(request.into_body(), MAX_BODY).await?;
    let rotate: Rotate = if body.is_empty() { Rotate::default() } else { parse(&body)? };
    if !(0..=MAX_OVERLAP_S).contains(&rotate.overlap_seconds) {
        return Err(Fault::invalid_param(
            "overlap_seconds",
            format!("`overlap_seconds` must be 0 to {MAX_OVERLAP_S}"),
        ));
    }
    let key = own(&inner, &session, &id).await?;
    let (wanted, overlap) = (key.id.clone(), rotate.overlap_seconds);
    let rotated = store(&inner, move |inner| {
        let rotated = inner.keys.rotate(&wanted, overlap)?;
        inner.reload_keys()?;
        Ok(rotated)
    })
    .await?;
    let Some(text) = rotated else { return Err(no_key(&id)) };
    inner.audit(session.id, Some(&session.caller), Decision::Allow, "key_rotated", None);
    let mut body = shown(&key);
    body["key"] = Value::from(text);
    Ok(Json(body))
}
