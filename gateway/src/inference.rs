//! An inference request up to the moment when it is forwarded: authenticate, spool, read, authorize,
//! reserve.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue};
use strata_hop::{Fault, forward, spool};
use strata_wire::hops::Hop;
use strata_wire::{ErrorKind, defaults, headers};
use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

use crate::accounts;
use crate::ask::{Ask, Endpoint};
use crate::call::{Call, Outgoing};
use crate::gateway::Inner;
use crate::ledger::{Decision, Entry};
use crate::quota::{Admitted, Amounts, Refusal, Subject, Why};
use crate::refuse;
use crate::session::Session;

/// Answers an inference request.
pub(crate) async fn answer(inner: Arc<Inner>, endpoint: Endpoint, request: Request) -> Response {
    let id = Uuid::now_v7();
    let mut response = match begin(inner, endpoint, id, request).await {
        Ok(response) => response,
        Err(fault) => fault.into_response(),
    };
    if let Ok(value) = HeaderValue::try_from(id.to_string()) {
        response.headers_mut().insert(HeaderName::from_static(headers::REQUEST_ID), value);
    }
    response
}

async fn begin(inner: Arc<Inner>, endpoint: Endpoint, id: Uuid, request: Request) -> Result<Response, Fault> {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    let session = inner.session(id, &parts.headers, &parts.extensions).await?;
    let body = spool::read(body, defaults::MAX_BODY_BYTES).await?;
    let ask = Ask::read(endpoint, body)?;
    let (place, facts) = session.require_model(&inner, &ask.model).await?;
    let reserved = ask.bound(&facts)?;
    let forwarded = ask.forwarded(&facts)?;
    let subject = accounts::subject(
        &session.tenant,
        &session.caller.key,
        &ask.model,
        ask.user.as_deref(),
        &inner.opaque,
    );
    let outgoing = Outgoing { headers: upstream_headers(&inner, &session, &parts.headers), body: forwarded };

    let admitted = reserve(&inner, &session, &subject, reserved, started).await?;
    // From here on nothing is awaited until the call has a task of its own: whatever happens to this
    // client, the task settles what was reserved.
    if !admitted.matched {
        inner.metrics.unmatched.inc();
    }
    let reason = if admitted.would_refuse.is_empty() { "ok" } else { "ok_over_trial_limit" };
    inner.metrics.would_refuse.inc_by(admitted.would_refuse.len() as u64);
    let policy = admitted.would_refuse.first().map(|p| &**p);
    let audit = inner.audit_row(id, Some(&session.caller), Decision::Allow, reason, policy);
    let call = Call {
        id,
        at: inner.clock.now_ms(),
        started,
        endpoint,
        subject,
        reserved,
        wants_usage: ask.wants_usage,
        wants_continuous: ask.wants_continuous,
        explain: session.may_explain,
        limits: refuse::rate_limit_headers(&admitted.standing),
        place,
        inner: inner.clone(),
    };
    let (head, response) = oneshot::channel();
    inner.tasks.spawn(call.run(outgoing, audit, head));
    response.await.unwrap_or_else(|_| Err(Fault::new(ErrorKind::Internal, "the request was lost; try again")))
}

/// Reserves; where the limit in the way says so, waits for its window for a short time.
async fn reserve(
    inner: &Inner,
    session: &Session,
    subject: &Subject,
    amounts: Amounts,
    started: Instant,
) -> Result<Admitted, Fault> {
    let deadline = started + defaults::WINDOW_WAIT;
    loop {
        let refusal: Box<Refusal> = match inner.accounts.reserve(session.id.as_u128(), subject, amounts) {
            Ok(admitted) => return Ok(admitted),
            Err(refusal) => refusal,
        };
        if let (Why::Window(ms), true) = (refusal.why, refusal.may_wait) {
            let until = Instant::now() + Duration::from_millis(u64::try_from(ms).unwrap_or(0).max(1));
            if until <= deadline {
                tokio::time::sleep_until(until).await;
                continue;
            }
        }
        let row = inner.audit_row(
            session.id,
            Some(&session.caller),
            Decision::Deny,
            refuse::reason(&refusal),
            Some(&refusal.policy),
        );
        if let Err(error) = inner.writer.write(Entry::Audit(row)).await {
            tracing::error!(%error, "could not write the audit");
        }
        return Err(refuse::over_limit(&refusal));
    }
}

/// Exactly what the table of hops allows: who calls is opaque from here on.
fn upstream_headers(inner: &Inner, session: &Session, received: &HeaderMap) -> HeaderMap {
    let mut out = forward::request_headers(received, Hop::GatewayToScheduler);
    let tenant = &session.tenant;
    for (name, value) in [
        (headers::FAIRNESS_ID, inner.opaque.fairness(&tenant.name)),
        (headers::OBJECTIVE, format!("priority-{}", tenant.priority)),
        (headers::CACHE_SCOPE, inner.opaque.cache_scope(&tenant.name, tenant.shares_cache)),
        (headers::MINTED_ID, session.id.to_string()),
    ] {
        if let Ok(value) = HeaderValue::try_from(value) {
            out.insert(HeaderName::from_static(name), value);
        }
    }
    let said = received.get(headers::SESSION_ID).and_then(|value| value.to_str().ok());
    let session_id = said.filter(|id| !id.is_empty()).map(|id| inner.opaque.session(&tenant.name, id));
    if let Some(value) = session_id.and_then(|id| HeaderValue::try_from(id).ok()) {
        out.insert(HeaderName::from_static(headers::SESSION_ID), value);
    }
    if let Some(token) = &inner.hop_token {
        token.attach(&mut out);
    }
    out
}
