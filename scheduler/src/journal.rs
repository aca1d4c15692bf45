//! The latest choices and what they were made by, for people who ask why.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use strata_wire::decisions::{Considered, Explained, Standing, Weights};
use strata_wire::replicas::{Endpoint, Policy};

use crate::pick::{self, Cached, Decision, Forecast, Load, Parts};

/// Choices that are kept.
const KEPT: usize = 256;
/// Of a choice among more replicas than these, the others are kept only now and then.
const FEW: usize = 64;
/// How often that is.
const NOW_AND_THEN: Duration = Duration::from_millis(100);

/// A replica as it stood in a choice.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name and address, shared: a choice costs no copy of it.
    pub endpoint: Arc<Endpoint>,
    /// Whether it was ready, of the right track, and had not failed the request.
    pub eligible: bool,
    /// Whether it could take the request.
    pub open: bool,
    /// Its scores.
    pub parts: Parts,
    /// Its load.
    pub load: Load,
    /// What it had of the prompt.
    pub cached: Cached,
    /// What it was expected to take.
    pub forecast: Forecast,
}

/// All that a choice was made from.
#[derive(Clone, Debug)]
pub struct Table {
    /// How one is picked.
    pub policy: Policy,
    /// How the scores count.
    pub weights: pick::Weights,
    /// The replicas; empty where they are not kept.
    pub rows: Box<[Row]>,
}

#[derive(Debug)]
struct Entry {
    at_ms: u64,
    request: Box<str>,
    model: Box<str>,
    held: Duration,
    decision: Decision,
    table: Table,
}

/// The latest choices.
#[derive(Debug, Default)]
pub struct Journal {
    entries: Mutex<VecDeque<Entry>>,
    /// When a table of many replicas was last kept.
    many: Mutex<Option<Duration>>,
}

/// Which choices to show.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// Those of this request.
    pub request: Option<String>,
    /// Those of this model.
    pub model: Option<String>,
    /// So many at most.
    pub last: Option<usize>,
}

impl Journal {
    /// Whether a choice among so many replicas keeps them all.
    pub fn wants(&self, replicas: usize, now: Duration) -> bool {
        if replicas <= FEW {
            return true;
        }
        let mut last = self.many.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| now.saturating_sub(last) >= NOW_AND_THEN);
        if due {
            *last = Some(now);
        }
        due
    }

    /// Notes a choice.
    pub fn note(
        &self,
        at_ms: u64,
        (request, model): (&str, &str),
        held: Duration,
        decision: &Decision,
        table: Table,
    ) {
        let decision = decision.clone();
        let entry = Entry { at_ms, request: request.into(), model: model.into(), held, decision, table };
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        // Dropped out of the lock.
        let _old = (entries.len() == KEPT).then(|| entries.pop_front());
        entries.push_back(entry);
        drop(entries);
    }

    /// The latest of these choices, the latest first.
    pub fn latest(&self, which: &Which) -> Vec<Explained> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |asked: &Option<String>, is: &str| asked.as_deref().is_none_or(|asked| asked == is);
        let wanted =
            |entry: &&Entry| same(&which.request, &entry.request) && same(&which.model, &entry.model);
        entries.iter().rev().filter(wanted).take(which.last.unwrap_or(KEPT)).map(explained).collect()
    }
}

fn explained(entry: &Entry) -> Explained {
    let Entry { at_ms, request, model, held, decision, table } = entry;
    let pick::Weights { hit: prefix, queue, decode, latency, session, adapter } = table.weights;
    let mut candidates: Vec<Considered> =
        table.rows.iter().map(|row| considered(row, decision, &table.weights)).collect();
    candidates.sort_by(|a, b| (a.standing as u8).cmp(&(b.standing as u8)).then(b.score.total_cmp(&a.score)));
    Explained {
        at_ms: *at_ms,
        request: request.to_string(),
        model: model.to_string(),
        held_ms: held.as_secs_f64() * 1e3,
        policy: table.policy,
        replica: decision.replica.clone(),
        why: decision.sentence(),
        blocks: decision.blocks,
        answer_tokens: decision.brought.answer.map(|answer| answer.tokens),
        weights: Weights { prefix, queue, decode, latency, session, adapter },
        candidates,
    }
}

fn considered(row: &Row, decision: &Decision, weights: &pick::Weights) -> Considered {
    let standing = match row {
        Row { endpoint, .. } if endpoint.name == decision.replica => Standing::Picked,
        Row { eligible: false, .. } => Standing::Out,
        Row { open: false, .. } => Standing::Full,
        Row { .. } => Standing::Open,
    };
    let ms = |expected: Option<pick::predict::Expected>| expected.map(|expected| expected.mean * 1e3);
    Considered {
        replica: row.endpoint.name.clone(),
        standing,
        score: row.parts.score(weights),
        hit: row.parts.hit,
        queue: row.parts.queue,
        decode: row.parts.decode,
        latency: row.parts.latency,
        session: decision.brought.session.then_some(row.parts.session),
        adapter: decision.brought.adapter.map(|_| row.parts.adapter),
        cached_tokens: row.cached.tokens,
        told: row.cached.told,
        in_flight: row.load.in_flight,
        running: row.load.running,
        waiting: row.load.waiting,
        waiting_tokens: row.load.waiting_tokens,
        first_token_ms: ms(row.forecast.first_token),
        inter_token_ms: ms(row.forecast.inter_token),
    }
}
