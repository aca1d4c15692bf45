//! Who calls: the first thing that is decided about every request.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, HeaderMap, header};
use strata_hop::{Fault, Peer};
use uuid::Uuid;

use crate::ask::ModelFacts;
use crate::directory::{Directory, TenantEntry};
use crate::gateway::Inner;
use crate::keys::{self, Caller, Denied, Role};
use crate::ledger::{AuditRow, Decision, Entry};
use crate::metrics::DecisionLabels;
use crate::place::{Place, Places};
use crate::refuse;

/// An authenticated caller, and the state by which this request is judged to its end.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) id: Uuid,
    pub(crate) caller: Caller,
    pub(crate) tenant: Arc<TenantEntry>,
    pub(crate) directory: Arc<Directory>,
    /// Whether the caller may see why a replica was picked.
    pub(crate) may_explain: bool,
}

/// The key of the one `Authorization: Bearer` header. Of two, another proxy may have believed the other.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let value = value.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim()).filter(|key| !key.is_empty())
}

impl Inner {
    /// Authenticates a request, or says what the client gets.
    pub(crate) async fn session(
        self: &Arc<Self>,
        id: Uuid,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Result<Session, Fault> {
        if !self.has_state() {
            return Err(refuse::starting());
        }
        let peer = extensions.get::<Peer>().copied();
        let Some(key) = bearer(headers) else {
            self.audit(id, None, Decision::Deny, "missing_api_key", None);
            return Err(refuse::no_key());
        };
        let now = self.clock.now_ms();
        let directory = self.directory.load_full();
        let mut verdict = self.ring.load().authenticate(key, now / 1000);
        // A key that another process has just made works at once, not at the next look at the ledger.
        if verdict == Err(Denied::Unknown) && keys::is_well_formed(key) && self.look_for_new_keys().await {
            verdict = self.ring.load().authenticate(key, now / 1000);
        }
        let (fault, reason) = match verdict {
            Ok(caller) => match directory.tenant(&caller.tenant) {
                Some(tenant) => {
                    let may_explain = caller.role == Role::Admin || peer.is_some_and(Peer::is_loopback);
                    return Ok(Session { id, tenant: tenant.clone(), caller, directory, may_explain });
                }
                None => (refuse::bad_key(), "no_such_tenant"),
            },
            Err(Denied::Expired) => (refuse::expired_key(), "expired_api_key"),
            Err(Denied::Unknown) => (refuse::bad_key(), "invalid_api_key"),
        };
        self.audit(id, None, Decision::Deny, reason, None);
        let from = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip());
        let pause = self.guard.failed(from, now);
        if pause > Duration::ZERO {
            tokio::time::sleep(pause).await;
        }
        Err(fault)
    }

    /// Whether the run-time keys have changed since the ring was made; it is made again if so.
    async fn look_for_new_keys(self: &Arc<Self>) -> bool {
        let inner = self.clone();
        match tokio::task::spawn_blocking(move || inner.refresh_keys()).await {
            Ok(Ok(changed)) => changed,
            Ok(Err(error)) => {
                tracing::error!(%error, "could not read the keys; those known stay in force");
                false
            }
            Err(_) => false,
        }
    }

    /// The audit entry of a decision.
    pub(crate) fn audit_row(
        &self,
        id: Uuid,
        caller: Option<&Caller>,
        decision: Decision,
        reason: &'static str,
        policy: Option<&str>,
    ) -> AuditRow {
        let label = match decision {
            Decision::Allow => "allow",
            Decision::Deny => "deny",
        };
        self.metrics.decisions.get_or_create(&DecisionLabels { decision: label, reason }).inc();
        AuditRow {
            at: self.clock.now_ms(),
            request_id: id.to_string(),
            tenant: caller.map(|c| c.tenant.to_string()),
            key_id: caller.map(|c| c.key.to_string()),
            decision,
            reason,
            policy: policy.map(str::to_owned),
        }
    }

    /// Notes a decision, soon.
    pub(crate) fn audit(
        &self,
        id: Uuid,
        caller: Option<&Caller>,
        decision: Decision,
        reason: &'static str,
        policy: Option<&str>,
    ) {
        if !self.writer.offer(Entry::Audit(self.audit_row(id, caller, decision, reason, policy))) {
            self.metrics.audit_dropped.inc();
        }
    }
}

impl Session {
    /// An error unless the key is an admin's.
    pub(crate) fn require_admin(&self, inner: &Inner) -> Result<(), Fault> {
        if self.caller.role == Role::Admin {
            return Ok(());
        }
        inner.audit(self.id, Some(&self.caller), Decision::Deny, "permission_denied", None);
        Err(refuse::not_admin())
    }

    /// Where the model is served and what is known of it; an error unless the tenant may use it and there
    /// is such a model, the same one for both.
    pub(crate) async fn require_model(
        &self,
        inner: &Inner,
        model: &str,
    ) -> Result<(Arc<Place>, ModelFacts), Fault> {
        let permitted = self.directory.permits(&self.tenant, model);
        let declared = self.directory.model(model);
        let no_model = || {
            inner.audit(self.id, Some(&self.caller), Decision::Deny, "model_not_found", None);
            refuse::no_model(model)
        };
        let unavailable = || {
            inner.audit(self.id, Some(&self.caller), Decision::Deny, "upstream_unavailable", None);
        };
        match &inner.places {
            Places::One(place) => {
                // Looked up in any case, so that a model that is hidden takes the time of one that is not
                // there.
                let listing = place.catalog.listing_for(Some(model)).await;
                let facts = match listing {
                    Ok(listing) if permitted && (listing.serves(model) || declared.is_some()) => {
                        listing.facts(model)
                    }
                    Err(_) if permitted && declared.is_some() => ModelFacts::default(),
                    Err(fault) if permitted => {
                        unavailable();
                        return Err(fault);
                    }
                    Ok(_) | Err(_) => return Err(no_model()),
                };
                Ok((place.clone(), facts))
            }
            Places::ByNamespace(_) => {
                let entry = declared.filter(|_| permitted).ok_or_else(no_model)?;
                let place = inner.place(&entry.namespace);
                if place.pool.is_empty() {
                    unavailable();
                    return Err(refuse::no_scheduler(model));
                }
                let facts = place.catalog.facts(model).await;
                Ok((place, facts))
            }
        }
    }
}
