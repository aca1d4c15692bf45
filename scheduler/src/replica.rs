//! One engine replica: whether it can take requests, how loaded it is, and what it probably holds.

mod lease;
mod view;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use strata_wire::engine_events;
use strata_wire::models::Model;
use strata_wire::prefix::{BlockHash, Prefix};
use strata_wire::replicas::{Endpoint, ReplicaState, Role, Track};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::adapters::{Adapters, Shown};
use crate::index::{Found, Lane};
use crate::pick::{
    Breaker, Cached, Candidate, Decision, Fit, Forecast, Gate, Learnt, Load, Own, PrefixIndex, Standing,
    affinity,
};
use crate::telemetry::{Reading, Trend};
use crate::vllm::{Note, Notes};
use view::Holds;

pub use lease::{Lease, Verdict};
pub use view::View;

/// Scrapes that may fail in a row before a replica is unready. A refused connection does not wait for
/// the second.
const FAILED_SCRAPES: u32 = 3;
/// A request that was sent so short a time before a replica told its load may be missing in it: it is read,
/// and the load is told when it has changed, 20 ms apart.
const UNSEEN: Duration = Duration::from_millis(50);
/// A prompt that a replica has begun to answer and does not tell of after this time is not kept there.
const UNTOLD: Duration = Duration::from_secs(1);

/// Load that is older says nothing of what a request that is sent now waits for.
const LOAD_STANDS: Duration = Duration::from_secs(2);

/// A replica, shared by the models that it serves and the requests that it runs.
#[derive(Debug)]
pub struct Replica {
    endpoint: Arc<Endpoint>,
    /// Its name as a number.
    seed: u64,
    /// Its adapters, once it has shown that it serves any.
    adapters: OnceLock<Mutex<Adapters>>,
    inner: Mutex<Inner>,
    requests: AtomicU64,
    /// Asks the scraper to look at once.
    pub wake: Notify,
    /// Told when it becomes ready.
    ready: Notify,
    /// Told when it no longer says anything.
    frozen: Notify,
    /// Cancelled when the replica is no longer listed.
    pub stop: CancellationToken,
    /// For the one who follows its KV events, where it publishes them as vLLM does.
    notes: Option<Notes>,
}

#[derive(Debug)]
struct Inner {
    /// Why it gets no traffic; `None` when it does.
    unready: Option<String>,
    failed_scrapes: u32,
    /// Counts how often it became ready.
    epoch: u64,
    own: Own,
    /// What of the requests under way does not count among those that run, for their answers are short.
    brief: f64,
    own_at_scrape: Own,
    learnt: Learnt,
    trend: Trend,
    index: PrefixIndex,
    /// What it tells that it holds; `None` while it tells nothing.
    lane: Option<Lane>,
    /// Whether prompts that were sent there count beside what it tells: it cannot tell of all.
    guesses: bool,
    /// Prompts that were sent there and that it has not told of.
    pledges: VecDeque<Pledge>,
    next_request: u64,
    models: Vec<Model>,
    /// What came of its requests.
    breaker: Breaker,
    /// Which process of it this is, and since when it has been ready.
    process: u64,
    ready_since: Duration,
}

/// A prompt that a replica computes.
#[derive(Debug)]
struct Pledge {
    id: u64,
    first: Option<BlockHash>,
    chain: Arc<[BlockHash]>,
    /// When it was sent.
    at: Duration,
    /// Tokens of it that were to be computed then.
    tokens: f64,
    /// Until when it counts, once its answer has begun.
    until: Option<Duration>,
}

impl Inner {
    fn load(&self, now: Duration, stale: Duration) -> Load {
        let load = Load::estimate(self.trend.gauges(self.own_at_scrape, now, stale).as_ref(), self.own);
        Load { brief: self.brief, ..load }
    }

    /// How many of these blocks are being computed there.
    fn coming(&self, chain: &[BlockHash], now: Duration) -> usize {
        let same = |pledge: &Pledge| {
            // Most share nothing, which is seen here without a look at the chain.
            if chain.first() != pledge.first.as_ref() {
                return 0;
            }
            let both = chain.len().min(pledge.chain.len());
            // A block's hash tells all before it.
            let (mut low, mut high) = (0, both);
            while low < high {
                let middle = (low + high).div_ceil(2);
                if chain[middle - 1] == pledge.chain[middle - 1] {
                    low = middle;
                } else {
                    high = middle - 1;
                }
            }
            low
        };
        let counts = |pledge: &&Pledge| pledge.until.is_none_or(|until| now < until);
        self.pledges.iter().filter(counts).map(same).max().unwrap_or(0)
    }

    fn cached(&self, prefix: &Prefix, found: &Found, now: Duration) -> Cached {
        let bytes_per_token = self.trend.bytes_per_token();
        match &self.lane {
            Some(lane) => {
                let (mut coming, told) = (self.coming(&prefix.blocks, now), found.blocks(lane));
                if self.guesses {
                    coming = coming.max(self.index.matched_behind(&prefix.blocks, told));
                }
                Cached::told(found.tokens(lane)).with_coming(coming, told, bytes_per_token)
            }
            None => Cached::guessed(self.index.matched(&prefix.blocks), bytes_per_token),
        }
    }
}

/// Why a scrape came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScrapeFailure {
    /// Nobody listens, or the replica says itself that it cannot serve.
    Certain(String),
    /// It may only have been slow.
    Passing(String),
}

impl Replica {
    /// A replica that is not ready until its first scrape succeeds.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            notes: endpoint.kv_events.is_some().then(Notes::default),
            seed: affinity::number(&[endpoint.name.as_bytes()]),
            adapters: OnceLock::new(),
            endpoint: Arc::new(endpoint),
            inner: Mutex::new(Inner {
                unready: Some("it has not answered yet".to_owned()),
                failed_scrapes: 0,
                epoch: 0,
                own: Own::default(),
                brief: 0.0,
                own_at_scrape: Own::default(),
                learnt: Learnt::default(),
                trend: Trend::default(),
                index: PrefixIndex::default(),
                lane: None,
                guesses: false,
                pledges: VecDeque::new(),
                next_request: 0,
                models: Vec::new(),
                breaker: Breaker::default(),
                process: 0,
                ready_since: Duration::ZERO,
            }),
            requests: AtomicU64::new(0),
            wake: Notify::new(),
            ready: Notify::new(),
            frozen: Notify::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Its name and address.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.endpoint.name
    }

    /// Which revision it runs, while one is tried out.
    pub fn track(&self) -> Track {
        self.endpoint.track
    }

    /// What part of a request it does.
    pub fn role(&self) -> Role {
        self.endpoint.role
    }

    /// Whether the other can use what it makes of a prompt.
    pub fn can_hand_to(&self, other: &Self) -> bool {
        self.endpoint.handover == other.endpoint.handover
    }

    /// Its base URL, without a slash at the end.
    pub fn url(&self) -> &str {
        self.endpoint.url.trim_end_matches('/')
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// How it stands now, for a prompt of this prefix, of which `found` tells who holds what. Metrics older
    /// than `stale` do not count.
    pub fn view(&self, prefix: &Prefix, found: &Found, now: Duration, stale: Duration) -> View {
        let view = self.glance(now, stale);
        View { cached: self.cached(&view, prefix, found, now), ..view }
    }

    /// The same without what it has of a prompt.
    pub fn glance(&self, now: Duration, stale: Duration) -> View {
        let inner = self.lock();
        View {
            ready: inner.unready.is_none(),
            epoch: inner.epoch,
            load: inner.load(now, stale),
            cached: Cached::default(),
            bytes_per_token: inner.trend.bytes_per_token(),
            kv_usage: inner.trend.reading(now, stale).and_then(|reading| reading.kv_usage),
            standing: Standing {
                gate: inner.breaker.gate(now),
                ready_for: now.saturating_sub(inner.ready_since),
            },
            learnt: inner.learnt,
            holds: Holds::of(&inner),
        }
    }

    /// What it has of a prompt of this prefix, where `view` is how it stood a moment ago.
    pub fn cached(&self, view: &View, prefix: &Prefix, found: &Found, now: Duration) -> Cached {
        view.cached(prefix, found).unwrap_or_else(|| self.lock().cached(prefix, found, now))
    }

    /// It, as it is chosen from by this view of it.
    pub fn candidate(&self, view: &View) -> Candidate<'_> {
        Candidate {
            name: self.name(),
            track: self.track(),
            eligible: view.ready,
            load: view.load,
            cached: view.cached,
            bytes_per_token: view.bytes_per_token,
            forecast: Forecast::default(),
            seed: self.seed,
            adapter: None,
        }
    }

    /// It shows these adapters; `None` when it serves none.
    pub fn shows(&self, shown: Option<Shown>) {
        if let Some(shown) = shown {
            lock(self.adapters.get_or_init(Mutex::default)).show(shown);
        } else if let Some(adapters) = self.adapters.get() {
            lock(adapters).show(Shown::default());
        }
    }

    /// Whether what it serves by this name is an adapter. `None` when it does not say, or serves no adapters.
    pub fn serves_adapter(&self, name: &str) -> Option<bool> {
        self.adapters.get()?;
        self.lock().models.iter().find(|model| model.id == name).map(|model| model.parent.is_some())
    }

    /// How near an adapter is there.
    pub fn fit(&self, adapter: &str) -> Fit {
        self.adapters.get().map_or(Fit::Unknown, |adapters| lock(adapters).fit(adapter))
    }

    /// A request for an adapter is sent there.
    pub fn loads(&self, adapter: &str) {
        if let Some(adapters) = self.adapters.get() {
            lock(adapters).send(adapter);
        }
    }

    /// Whether it did not answer the last time that it was asked how it is.
    pub fn is_silent(&self) -> bool {
        self.lock().failed_scrapes > 0
    }

    /// Whether it may get requests.
    pub fn is_ready(&self) -> bool {
        self.lock().unready.is_none()
    }

    /// How often it has become ready: a request may come back to a replica that failed it only after
    /// the replica has been away and returned.
    pub fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    /// Requests that this scheduler has sent it.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Blocks that it tells of, or else those in its prefix index.
    pub fn indexed_blocks(&self) -> usize {
        let inner = self.lock();
        inner.lane.as_ref().map_or_else(|| inner.index.len(), Lane::entries)
    }

    /// Whether it tells what it holds.
    pub fn tells(&self) -> bool {
        self.lock().lane.is_some()
    }

    /// It has told what it holds, or tells nothing.
    pub fn told(&self, lane: Option<Lane>) {
        let mut inner = self.lock();
        if lane.is_none() {
            inner.pledges.clear();
        } else if inner.lane.is_none() {
            // What it tells takes the place of what was guessed.
            inner.index.clear();
        }
        inner.lane = lane;
        inner.guesses = false;
    }

    /// It has told what it holds, as far as it can: what was sent there counts beside it.
    pub fn told_in_part(&self, lane: Lane) {
        let mut inner = self.lock();
        inner.lane = Some(lane);
        inner.guesses = true;
    }

    /// These blocks count by what it tells alone.
    pub fn forget_guess(&self, blocks: &[BlockHash]) {
        self.lock().index.forget(blocks);
    }

    /// What was sent there no longer counts.
    pub fn forget_guesses(&self) {
        self.lock().index.clear();
    }

    /// What the one who follows its KV events is told on the side.
    pub fn notes(&self) -> Option<&Notes> {
        self.notes.as_ref()
    }

    /// Tells the one who follows its KV events, if somebody does. Returns how many notes were dropped.
    pub fn note(&self, note: Note) -> usize {
        match &self.notes {
            Some(notes) if self.lock().guesses => notes.push(note),
            _ => 0,
        }
    }

    /// It has told how busy it is.
    pub fn told_load(&self, load: engine_events::Load, now: Duration) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if inner.trend.told(&load, now) {
            let may_lack = |pledge: &&Pledge| pledge.until.is_none() && pledge.at + UNSEEN > now;
            let (mut unseen, mut tokens) = (0, 0.0);
            for pledge in inner.pledges.iter().filter(may_lack) {
                unseen += 1;
                tokens += pledge.tokens;
            }
            inner.own_at_scrape = Own {
                in_flight: inner.own.in_flight.saturating_sub(unseen),
                pending: inner.own.pending.saturating_sub(unseen),
                pending_tokens: (inner.own.pending_tokens - tokens).max(0.0),
            };
        }
    }

    /// Waits until it becomes ready anew.
    pub async fn became_ready(&self) {
        self.ready.notified().await;
    }

    /// Sends it a request, by the books. The request ends when the lease is dropped.
    pub fn lease(
        self: &Arc<Self>,
        decision: Decision,
        prefix: &Prefix,
        bytes: usize,
        changed: &Arc<Notify>,
        now: Duration,
    ) -> Lease {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.lock();
        let tokens = (bytes as f64 / inner.trend.bytes_per_token() - decision.cached.tokens).max(0.0);
        let ahead = inner.load(now, LOAD_STANDS).waiting_tokens + tokens;
        let brief = decision.brought.answer.map_or(0.0, |answer| 1.0 - answer.share);
        inner.own.in_flight += 1;
        inner.brief += brief;
        inner.own.pending += 1;
        inner.own.pending_tokens += tokens;
        // Of one whose events are understood prompt by prompt, what was sent counts until it is.
        if inner.lane.is_none() || self.notes.is_some() {
            inner.index.record(&prefix.blocks);
        }
        inner.pledges.retain(|pledge| pledge.until.is_none_or(|until| now < until));
        let (probe, process) = (inner.breaker.sent(now), inner.process);
        let id = inner.next_request;
        inner.next_request += 1;
        if inner.lane.is_some() {
            let (first, chain) = (prefix.blocks.first().copied(), prefix.blocks.as_slice().into());
            inner.pledges.push_back(Pledge { id, first, chain, at: now, tokens, until: None });
        }
        Lease {
            replica: Arc::clone(self),
            epoch: inner.epoch,
            decision,
            tokens,
            brief,
            spared: 0.0,
            ahead,
            chosen: None,
            held: None,
            table: None,
            id,
            bytes: prefix.bytes,
            pending: true,
            probe: AtomicBool::new(probe),
            worked: AtomicBool::new(false),
            process,
            sent: now,
            changed: Arc::clone(changed),
        }
    }

    /// What is under way, for [`Replica::scraped`]: taken before the metrics are asked for, so that a
    /// request is rather counted twice for a moment than not at all.
    pub fn own(&self) -> Own {
        self.lock().own
    }

    /// A scrape succeeded. Returns whether the replica became ready by it.
    pub fn scraped(&self, reading: Reading, own_then: Own, now: Duration) -> bool {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let returned = inner.unready.is_some();
        let same = inner.trend.proves_same_process(&reading);
        let restarted = inner.trend.observe(reading, now);
        if restarted || (returned && !same) {
            inner.learnt = Learnt::default();
            inner.index.clear();
            inner.breaker = Breaker::default();
            if let Some(adapters) = self.adapters.get() {
                lock(adapters).forget();
            }
            inner.process += 1;
            inner.ready_since = now;
        }
        if let Some(blocks) = inner.trend.cache_blocks()
            && blocks != inner.index.capacity()
        {
            inner.index.set_capacity(blocks);
        }
        if let (Some(mean), Some(running)) = (inner.trend.mean_between_tokens(), reading.running) {
            inner.learnt.inter_token.observe(running, mean);
        }
        inner.own_at_scrape = own_then;
        inner.failed_scrapes = 0;
        if returned || restarted {
            inner.epoch += 1;
        }
        inner.unready = None;
        if returned || restarted {
            self.ready.notify_one();
        }
        returned
    }

    /// A scrape failed. Returns whether the replica became unready by it.
    pub fn scrape_failed(&self, failure: ScrapeFailure) -> bool {
        let mut inner = self.lock();
        inner.failed_scrapes += 1;
        let frozen = matches!(failure, ScrapeFailure::Passing(_));
        let reason = match failure {
            ScrapeFailure::Certain(reason) => reason,
            ScrapeFailure::Passing(reason) if inner.failed_scrapes >= FAILED_SCRAPES => reason,
            ScrapeFailure::Passing(_) => return false,
        };
        let left = inner.unready.replace(reason).is_none();
        drop(inner);
        if left && frozen {
            self.frozen.notify_waiters();
        }
        left
    }

    /// Waits until it becomes unready because it no longer says anything: what waits for its first token there
    /// may wait for ever.
    pub async fn freezes(&self) {
        self.frozen.notified().await;
    }

    /// It failed a request in a way that says that it cannot serve. It returns when a scrape succeeds,
    /// which is tried at once. Returns whether the replica became unready by it; a request that was
    /// sent before the replica last became ready says nothing about it now.
    pub fn failed(&self, reason: &str, epoch: u64) -> bool {
        let mut inner = self.lock();
        if inner.epoch != epoch {
            return false;
        }
        self.wake.notify_one();
        inner.unready.replace(reason.to_owned()).is_none()
    }

    /// Whether it has ever been ready.
    pub fn was_ready(&self) -> bool {
        self.lock().epoch > 0
    }

    /// What its breaker lets through.
    pub fn gate(&self, now: Duration) -> Gate {
        self.lock().breaker.gate(now)
    }

    /// The models that it serves, once it has said so. Returns whether the list's names changed.
    pub fn serves(&self, models: Vec<Model>) -> bool {
        let mut inner = self.lock();
        let names = |list: &[Model]| list.iter().map(|m| m.id.clone()).collect::<Vec<_>>();
        let changed = names(&inner.models) != names(&models);
        inner.models = models;
        changed
    }

    /// The models that it said it serves.
    pub fn models(&self) -> Vec<Model> {
        self.lock().models.clone()
    }

    /// For `GET /replicas`.
    pub fn state(&self, now: Duration) -> ReplicaState {
        let inner = self.lock();
        let reading = inner.trend.last().copied().unwrap_or_default();
        ReplicaState {
            name: self.endpoint.name.clone(),
            url: self.endpoint.url.clone(),
            track: self.endpoint.track,
            role: self.endpoint.role,
            ready: inner.unready.is_none(),
            reason: inner.unready.clone(),
            broken: inner.breaker.gate(now) != Gate::Closed,
            in_flight: inner.own.in_flight,
            running: reading.running.unwrap_or(0.0),
            waiting: reading.waiting.unwrap_or(0.0),
            kv_usage: reading.kv_usage.unwrap_or(0.0),
            prefix_queries: reading.prefix_queries.unwrap_or(0.0),
            prefix_hits: reading.prefix_hits.unwrap_or(0.0),
            requests: self.requests(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
