//! The rows of the ledger. None holds text of a request or a response.

use rusqlite::{Connection, Row, params};

/// One call that is in flight, with what was reserved for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRow {
    /// The minted id.
    pub request_id: String,
    /// Milliseconds since 1970 when it was admitted.
    pub at: i64,
    /// The tenant's name.
    pub tenant: String,
    /// The key's public id.
    pub key_id: String,
    /// An opaque hash of the tenant's user, if the request named one.
    pub user_hash: Option<String>,
    /// The model.
    pub model: String,
    /// `chat.completions`, `completions` or `embeddings`.
    pub endpoint: String,
    /// Prompt tokens reserved.
    pub input: u64,
    /// Output tokens reserved.
    pub output: u64,
}

/// What one call used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRow {
    /// The minted id; a second row with it is dropped.
    pub request_id: String,
    /// Milliseconds since 1970 when it was admitted: the window and the period that it is charged to.
    pub at: i64,
    /// The tenant's name.
    pub tenant: String,
    /// The key's public id.
    pub key_id: String,
    /// An opaque hash of the tenant's user, if the request named one.
    pub user_hash: Option<String>,
    /// The model.
    pub model: String,
    /// `chat.completions`, `completions` or `embeddings`.
    pub endpoint: String,
    /// 1, or 0 for a call that failed through no fault of the caller and counts nowhere.
    pub requests: u64,
    /// Prompt tokens, cached ones included.
    pub prompt_tokens: u64,
    /// Prompt tokens that came from the cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// Whether the counts are not the engine's own.
    pub estimated: bool,
    /// The HTTP status that the client got; 499 when it left before one, 0 when the gateway died.
    pub status: u16,
    /// Milliseconds until the first event of a stream.
    pub ttft_ms: Option<u64>,
    /// Milliseconds from admission to the end.
    pub duration_ms: u64,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The request went on.
    Allow,
    /// It was refused.
    Deny,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    /// Milliseconds since 1970.
    pub at: i64,
    /// The minted id.
    pub request_id: String,
    /// The tenant's name, once it is known.
    pub tenant: Option<String>,
    /// The key's public id, once it is known.
    pub key_id: Option<String>,
    /// Allowed or denied.
    pub decision: Decision,
    /// A stable code: `ok`, `invalid_api_key`, `model_not_found`, `rate_limit_exceeded` and so on.
    pub reason: &'static str,
    /// The policy that decided.
    pub policy: Option<String>,
}

/// SQLite's integers are signed.
fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A count as it was written; none is negative.
pub(super) fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

impl OpenRow {
    pub(super) fn insert(&self, c: &Connection) -> rusqlite::Result<()> {
        c.prepare_cached("INSERT INTO open_requests VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?.execute(
            params![
                self.request_id,
                self.at,
                self.tenant,
                self.key_id,
                self.user_hash,
                self.model,
                self.endpoint,
                number(self.input),
                number(self.output)
            ],
        )?;
        Ok(())
    }

    /// The usage of a call whose end nobody saw: what was reserved, marked as estimated.
    pub fn as_estimated(&self) -> UsageRow {
        UsageRow {
            request_id: self.request_id.clone(),
            at: self.at,
            tenant: self.tenant.clone(),
            key_id: self.key_id.clone(),
            user_hash: self.user_hash.clone(),
            model: self.model.clone(),
            endpoint: self.endpoint.clone(),
            requests: 1,
            prompt_tokens: self.input,
            cached_tokens: 0,
            completion_tokens: self.output,
            estimated: true,
            status: 0,
            ttft_ms: None,
            duration_ms: 0,
        }
    }
}

impl UsageRow {
    /// Appends the usage and closes the call, unless it was closed before.
    pub(super) fn insert(&self, c: &Connection) -> rusqlite::Result<()> {
        c.prepare_cached(
            "INSERT INTO usage (request_id, at, tenant, key_id, user_hash, model, endpoint, requests, \
             prompt_tokens, cached_tokens, completion_tokens, estimated, status, ttft_ms, duration_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) \
             ON CONFLICT (request_id) DO NOTHING",
        )?
        .execute(params![
            self.request_id,
            self.at,
            self.tenant,
            self.key_id,
            self.user_hash,
            self.model,
            self.endpoint,
            number(self.requests),
            number(self.prompt_tokens),
            number(self.cached_tokens),
            number(self.completion_tokens),
            self.estimated,
            self.status,
            self.ttft_ms.map(number),
            number(self.duration_ms)
        ])?;
        c.prepare_cached("DELETE FROM open_requests WHERE request_id = ?1")?.execute([&self.request_id])?;
        Ok(())
    }
}

impl AuditRow {
    pub(super) fn insert(&self, c: &Connection) -> rusqlite::Result<()> {
        let decision = match self.decision {
            Decision::Allow => "allow",
            Decision::Deny => "deny",
        };
        c.prepare_cached(
            "INSERT INTO audit (at, request_id, tenant, key_id, decision, reason, policy) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            self.at,
            self.request_id,
            self.tenant,
            self.key_id,
            decision,
            self.reason,
            self.policy
        ])?;
        Ok(())
    }
}
