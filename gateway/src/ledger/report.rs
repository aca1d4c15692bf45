//! Reads the ledger: rows to rebuild counters from, and sums to report.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, Row, params};

use super::rows::{UsageRow, count};
use super::{LedgerError, database};

/// A reader of the ledger; another process may be writing to it.
#[derive(Debug)]
pub struct Ledger {
    connection: Mutex<Connection>,
}

/// What was used by one tenant with one model on one day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageSum {
    /// The day in UTC, `2026-11-23`.
    pub day: String,
    /// The tenant's name.
    pub tenant: String,
    /// The model.
    pub model: String,
    /// Requests that count.
    pub requests: u64,
    /// Prompt tokens, cached ones included.
    pub prompt_tokens: u64,
    /// Prompt tokens that came from the cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// Requests whose counts are estimated.
    pub estimated: u64,
}

/// What was used in one bucket of time by one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketSum {
    /// Which bucket, from 0.
    pub bucket: u64,
    /// The model, if grouped by it.
    pub model: Option<String>,
    /// The key, if grouped by it.
    pub key: Option<String>,
    /// Requests that count.
    pub requests: u64,
    /// Prompt tokens, cached ones included.
    pub prompt_tokens: u64,
    /// Prompt tokens that came from the cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
}

/// Which usage to sum into buckets.
#[derive(Clone, Debug)]
pub struct BucketQuery {
    /// The tenant.
    pub tenant: String,
    /// Milliseconds since 1970 where the first bucket begins.
    pub start: i64,
    /// Milliseconds since 1970 where the last bucket ends.
    pub end: i64,
    /// Milliseconds of a bucket.
    pub width: i64,
    /// Whether each model has a sum of its own.
    pub by_model: bool,
    /// Whether each key has a sum of its own.
    pub by_key: bool,
    /// Only these models; all when empty.
    pub models: Vec<String>,
    /// Only these keys; all when empty.
    pub keys: Vec<String>,
}

impl Ledger {
    /// Opens the ledger at `path`, making it when it is not there.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        Ok(Self { connection: Mutex::new(database::open(path)?) })
    }

    fn read<T>(&self, f: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, LedgerError> {
        Ok(f(&self.connection.lock().unwrap_or_else(PoisonError::into_inner))?)
    }

    /// The secret that opaque ids are made with.
    pub fn identity_secret(&self) -> Result<[u8; 32], LedgerError> {
        database::identity_secret(&mut self.connection.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Usage from `since` (milliseconds since 1970) to before `until` by tenant, model and day of UTC,
    /// of one tenant or of all.
    pub fn usage_by(
        &self,
        tenant: Option<&str>,
        since: i64,
        until: i64,
    ) -> Result<Vec<UsageSum>, LedgerError> {
        self.read(|c| {
            c.prepare(
                "SELECT date(at / 1000, 'unixepoch') AS day, tenant, model, sum(requests), \
                 sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens), sum(estimated) \
                 FROM usage WHERE at >= ?1 AND at < ?2 AND (?3 IS NULL OR tenant = ?3) \
                 GROUP BY day, tenant, model ORDER BY day, tenant, model",
            )?
            .query_map(params![since, until, tenant], |row| {
                Ok(UsageSum {
                    day: row.get(0)?,
                    tenant: row.get(1)?,
                    model: row.get(2)?,
                    requests: count(row, 3)?,
                    prompt_tokens: count(row, 4)?,
                    cached_tokens: count(row, 5)?,
                    completion_tokens: count(row, 6)?,
                    estimated: count(row, 7)?,
                })
            })?
            .collect()
        })
    }

    /// Usage of chat and completions in buckets of time, in their order.
    pub fn buckets(&self, query: &BucketQuery) -> Result<Vec<BucketSum>, LedgerError> {
        let list = |names: &[String]| {
            (!names.is_empty()).then(|| serde_json::Value::from(names.to_vec()).to_string())
        };
        self.read(|c| {
            c.prepare(
                "SELECT (at - ?2) / ?4 AS bucket, iif(?5, model, NULL) AS m, iif(?6, key_id, NULL) AS k, \
                 sum(requests), sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens) \
                 FROM usage WHERE tenant = ?1 AND at >= ?2 AND at < ?3 \
                 AND endpoint IN ('chat.completions', 'completions') \
                 AND (?7 IS NULL OR model IN (SELECT value FROM json_each(?7))) \
                 AND (?8 IS NULL OR key_id IN (SELECT value FROM json_each(?8))) \
                 GROUP BY bucket, m, k ORDER BY bucket, m, k",
            )?
            .query_map(
                params![
                    query.tenant,
                    query.start,
                    query.end,
                    query.width,
                    query.by_model,
                    query.by_key,
                    list(&query.models),
                    list(&query.keys)
                ],
                |row| {
                    Ok(BucketSum {
                        bucket: count(row, 0)?,
                        model: row.get(1)?,
                        key: row.get(2)?,
                        requests: count(row, 3)?,
                        prompt_tokens: count(row, 4)?,
                        cached_tokens: count(row, 5)?,
                        completion_tokens: count(row, 6)?,
                    })
                },
            )?
            .collect()
        })
    }

    /// Rows after the row number `after` that were admitted at `since` or later, with their numbers,
    /// in the order in which they were written.
    pub fn rows_after(&self, after: i64, since: i64) -> Result<Vec<(i64, UsageRow)>, LedgerError> {
        self.read(|c| {
            c.prepare_cached(
                "SELECT id, request_id, at, tenant, key_id, user_hash, model, endpoint, requests, \
                 prompt_tokens, cached_tokens, completion_tokens, estimated, status, ttft_ms, duration_ms \
                 FROM usage WHERE id > ?1 AND at >= ?2 ORDER BY id",
            )?
            .query_map(params![after, since], |row| Ok((row.get(0)?, usage_row(row)?)))?
            .collect()
        })
    }

    /// Whether a call is in the ledger.
    pub fn has(&self, request_id: &str) -> Result<bool, LedgerError> {
        self.read(|c| {
            c.prepare_cached("SELECT EXISTS(SELECT 1 FROM usage WHERE request_id = ?1)")?
                .query_row([request_id], |row| row.get(0))
        })
    }

    /// How many decisions were written, by decision and reason.
    pub fn decisions(&self) -> Result<Vec<(String, String, u64)>, LedgerError> {
        self.read(|c| {
            c.prepare("SELECT decision, reason, count(*) FROM audit GROUP BY 1, 2 ORDER BY 1, 2")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?, count(row, 2)?)))?
                .collect()
        })
    }
}

fn usage_row(row: &Row<'_>) -> rusqlite::Result<UsageRow> {
    Ok(UsageRow {
        request_id: row.get(1)?,
        at: row.get(2)?,
        tenant: row.get(3)?,
        key_id: row.get(4)?,
        user_hash: row.get(5)?,
        model: row.get(6)?,
        endpoint: row.get(7)?,
        requests: count(row, 8)?,
        prompt_tokens: count(row, 9)?,
        cached_tokens: count(row, 10)?,
        completion_tokens: count(row, 11)?,
        estimated: row.get(12)?,
        status: row.get(13)?,
        ttft_ms: row.get::<_, Option<i64>>(14)?.map(i64::unsigned_abs),
        duration_ms: count(row, 15)?,
    })
}
