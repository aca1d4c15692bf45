//! One engine replica: whether it can take requests, how loaded it is, and what it probably holds.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use strata_wire::engine_events;
use strata_wire::models::Model;
use strata_wire::prefix::{BlockHash, Prefix};
use strata_wire::replicas::{Endpoint, ReplicaState, Role, Track};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::index::{Found, Lane};
use crate::pick::{Cached, Candidate, Decision, Load, Own, PrefixIndex};
use crate::telemetry::{Reading, Trend};

/// Scrapes that may fail in a row before a replica is unready. A refused connection does not wait for
/// the second.
const FAILED_SCRAPES: u32 = 3;
/// A request that was sent so short a time before a replica told its load may be missing in it: it is read,
/// and the load is told when it has changed, 20 ms apart.
const UNSEEN: Duration = Duration::from_millis(50);
/// A prompt that a replica has begun to answer and does not tell of after this time is not kept there.
const UNTOLD: Duration = Duration::from_secs(1);

/// A replica, shared by the models that it serves and the requests that it runs.
#[derive(Debug)]
pub struct Replica {
    endpoint: Endpoint,
    inner: Mutex<Inner>,
    requests: AtomicU64,
    /// Asks the scraper to look at once.
    pub wake: Notify,
    /// Told when it becomes ready.
    ready: Notify,
    /// Cancelled when the replica is no longer listed.
    pub stop: CancellationToken,
}

#[derive(Debug)]
struct Inner {
    /// Why it gets no traffic; `None` when it does.
    unready: Option<String>,
    failed_scrapes: u32,
    /// Counts how often it became ready.
    epoch: u64,
    own: Own,
    own_at_scrape: Own,
    trend: Trend,
    index: PrefixIndex,
    /// What it tells that it holds; `None` while it tells nothing.
    lane: Option<Lane>,
    /// Prompts that were sent there and that it has not told of.
    pledges: VecDeque<Pledge>,
    next_request: u64,
    models: Vec<Model>,
}

/// A prompt that a replica computes.
#[derive(Debug)]
struct Pledge {
    id: u64,
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
        Load::estimate(self.trend.gauges(self.own_at_scrape, now, stale).as_ref(), self.own)
    }

    /// How many of these blocks are being computed there.
    fn coming(&self, chain: &[BlockHash], now: Duration) -> usize {
        let same = |pledge: &Pledge| {
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
                let coming = self.coming(&prefix.blocks, now);
                Cached::told(found.tokens(lane)).with_coming(coming, found.blocks(lane), bytes_per_token)
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

/// A replica at the moment of a choice.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Whether it may get requests.
    pub ready: bool,
    /// How often it has become ready.
    pub epoch: u64,
    /// How loaded it is.
    pub load: Load,
    /// What it has of the prompt.
    pub cached: Cached,
    /// Bytes of canonical text to one token.
    pub bytes_per_token: f64,
    /// Share of its KV blocks in use, if known.
    pub kv_usage: Option<f64>,
}

impl Replica {
    /// A replica that is not ready until its first scrape succeeds.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            inner: Mutex::new(Inner {
                unready: Some("it has not answered yet".to_owned()),
                failed_scrapes: 0,
                epoch: 0,
                own: Own::default(),
                own_at_scrape: Own::default(),
                trend: Trend::default(),
                index: PrefixIndex::default(),
                lane: None,
                pledges: VecDeque::new(),
                next_request: 0,
                models: Vec::new(),
            }),
            requests: AtomicU64::new(0),
            wake: Notify::new(),
            ready: Notify::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Its name and address.
    pub fn endpoint(&self) -> &Endpoint {
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
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it stands now, for a prompt of this prefix, of which `found` tells who holds what. Metrics older
    /// than `stale` do not count.
    pub fn view(&self, prefix: &Prefix, found: &Found, now: Duration, stale: Duration) -> View {
        let inner = self.lock();
        View {
            ready: inner.unready.is_none(),
            epoch: inner.epoch,
            load: inner.load(now, stale),
            cached: inner.cached(prefix, found, now),
            bytes_per_token: inner.trend.bytes_per_token(),
            kv_usage: inner.trend.reading(now, stale).and_then(|reading| reading.kv_usage),
        }
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
        }
    }

    /// Whether it can take a request now.
    pub fn has_room(&self, now: Duration, stale: Duration) -> bool {
        let inner = self.lock();
        inner.unready.is_none() && !inner.load(now, stale).is_saturated()
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
        }
        inner.lane = lane;
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
        inner.own.in_flight += 1;
        inner.own.pending += 1;
        inner.own.pending_tokens += tokens;
        inner.index.record(&prefix.blocks);
        inner.pledges.retain(|pledge| pledge.until.is_none_or(|until| now < until));
        let id = inner.next_request;
        inner.next_request += 1;
        if inner.lane.is_some() {
            let chain = prefix.blocks.as_slice().into();
            inner.pledges.push_back(Pledge { id, chain, at: now, tokens, until: None });
        }
        Lease {
            replica: Arc::clone(self),
            epoch: inner.epoch,
            decision,
            tokens,
            spared: 0.0,
            id,
            bytes: prefix.bytes,
            pending: true,
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
            inner.index.clear();
        }
        if let Some(blocks) = inner.trend.cache_blocks()
            && blocks != inner.index.capacity()
        {
            inner.index.set_capacity(blocks);
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
        let reason = match failure {
            ScrapeFailure::Certain(reason) => reason,
            ScrapeFailure::Passing(reason) if inner.failed_scrapes >= FAILED_SCRAPES => reason,
            ScrapeFailure::Passing(_) => return false,
        };
        inner.unready.replace(reason).is_none()
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
    pub fn state(&self) -> ReplicaState {
        let inner = self.lock();
        let reading = inner.trend.last().copied().unwrap_or_default();
        ReplicaState {
            name: self.endpoint.name.clone(),
            url: self.endpoint.url.clone(),
            track: self.endpoint.track,
            role: self.endpoint.role,
            ready: inner.unready.is_none(),
            reason: inner.unready.clone(),
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

/// A request under way at a replica. Dropping it ends the request in the books and lets requests that
/// wait for room look again.
#[derive(Debug)]
pub struct Lease {
    /// Where.
    pub replica: Arc<Replica>,
    /// The replica's epoch when the request was sent.
    pub epoch: u64,
    /// Why there.
    pub decision: Decision,
    /// Tokens of its prompt that wait here, and that wait elsewhere instead.
    tokens: f64,
    spared: f64,
    id: u64,
    bytes: usize,
    pending: bool,
    changed: Arc<Notify>,
}

impl Lease {
    /// Its prompt is computed elsewhere: nothing of it waits here.
    pub fn spare(&mut self) {
        let tokens = std::mem::take(&mut self.tokens);
        let mut inner = self.replica.lock();
        inner.own.pending_tokens = (inner.own.pending_tokens - tokens).max(0.0);
        self.spared += tokens;
    }

    /// Its prompt is computed here after all.
    pub fn burden(&mut self) {
        let tokens = std::mem::take(&mut self.spared);
        self.replica.lock().own.pending_tokens += tokens;
        self.tokens += tokens;
    }

    /// Its response has begun. `answered` is when, if the prompt was processed and not refused.
    pub fn begun(&mut self, answered: Option<Duration>) {
        if std::mem::take(&mut self.pending) {
            let mut inner = self.replica.lock();
            inner.own.pending -= 1;
            inner.own.pending_tokens = (inner.own.pending_tokens - self.tokens).max(0.0);
            let pledge = inner.pledges.iter().position(|pledge| pledge.id == self.id);
            if let Some(now) = answered {
                inner.trend.answered(self.bytes);
                if let Some(at) = pledge {
                    inner.pledges[at].until = Some(now + UNTOLD);
                }
            } else if let Some(at) = pledge {
                inner.pledges.remove(at);
            }
            drop(inner);
            self.changed.notify_waiters();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.begun(None);
        self.replica.lock().own.in_flight -= 1;
        self.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use strata_wire::prefix::BlockHash;

    use super::*;
    use crate::pick::{Parts, Why};

    const STALE: Duration = Duration::from_secs(1);

    fn replica() -> Arc<Replica> {
        Arc::new(Replica::new(Endpoint::new("m-0", "http://127.0.0.1:1/")))
    }

    fn prefix(blocks: u64) -> Prefix {
        Prefix { blocks: (0..blocks).map(BlockHash).collect(), bytes: blocks as usize * 256, opening: None }
    }

    fn decision() -> Decision {
        Decision {
            replica: "m-0".into(),
            track: None,
            score: 0.0,
            parts: Parts { hit: 0.0, queue: 0.0, decode: 0.0, latency: 0.0 },
            cached: Cached::default(),
            cached_blocks: 0,
            blocks: 4,
            candidates: 1,
            why: Why::OnlyOne,
            prompt: None,
        }
    }

    fn reading(prompt_tokens: f64) -> Reading {
        Reading { prompt_tokens: Some(prompt_tokens), ..Reading::default() }
    }

    #[test]
    fn readiness_goes_and_comes_by_scrapes() {
        let r = replica();
        assert!(!r.is_ready());
        assert!(r.scraped(reading(1.0), Own::default(), Duration::ZERO));
        assert!(r.is_ready() && !r.scraped(reading(1.0), Own::default(), Duration::ZERO));
        assert!(!r.scrape_failed(ScrapeFailure::Passing("slow".into())));
        assert!(!r.scrape_failed(ScrapeFailure::Passing("slow".into())));
        assert!(r.is_ready(), "two slow scrapes are no failure");
        assert!(r.scrape_failed(ScrapeFailure::Passing("slow".into())));
        assert_eq!(r.state().reason.as_deref(), Some("slow"));
        assert!(r.scraped(reading(1.0), Own::default(), Duration::ZERO));
        assert!(r.scrape_failed(ScrapeFailure::Certain("refused".into())));
        assert!(!r.is_ready());
    }

    #[test]
    fn a_request_that_fails_late_does_not_unready_the_replica_that_came_back() {
        let r = replica();
        r.scraped(reading(1.0), Own::default(), Duration::ZERO);
        let epoch = r.epoch();
        assert!(r.failed("it broke off", epoch));
        r.scraped(reading(1.0), Own::default(), Duration::ZERO);
        assert!(!r.failed("it broke off", epoch) && r.is_ready());
    }

    #[test]
    fn the_index_survives_a_slow_moment_and_no_restart() {
        let (r, changed) = (replica(), Arc::new(Notify::new()));
        r.scraped(reading(10.0), Own::default(), Duration::ZERO);
        drop(r.lease(decision(), &prefix(4), 1024, &changed, Duration::ZERO));
        let has = r.view(&prefix(6), &Found::default(), Duration::ZERO, STALE).cached;
        assert_eq!(has, Cached::guessed(4, 4.0));
        r.scrape_failed(ScrapeFailure::Certain("refused".into()));
        r.scraped(reading(11.0), Own::default(), Duration::ZERO);
        assert_eq!(r.indexed_blocks(), 4, "counters that grew prove that it is the same process");
        r.scraped(reading(2.0), Own::default(), Duration::ZERO);
        assert_eq!(r.indexed_blocks(), 0, "counters that fell prove that it is another");
        drop(r.lease(decision(), &prefix(4), 1024, &changed, Duration::ZERO));
        r.scrape_failed(ScrapeFailure::Certain("refused".into()));
        r.scraped(Reading::default(), Own::default(), Duration::ZERO);
        assert_eq!(r.indexed_blocks(), 0, "without proof it is another");
    }

    #[test]
    fn a_lease_keeps_the_books() {
        let (r, changed) = (replica(), Arc::new(Notify::new()));
        r.scraped(reading(10.0), Own::default(), Duration::ZERO);
        let mut a = r.lease(decision(), &prefix(4), 1024, &changed, Duration::ZERO);
        let b = r.lease(decision(), &prefix(4), 1024, &changed, Duration::ZERO);
        assert_eq!(r.own(), Own { in_flight: 2, pending: 2, pending_tokens: 512.0 });
        a.spare();
        assert_eq!(r.own(), Own { in_flight: 2, pending: 2, pending_tokens: 256.0 });
        a.burden();
        a.begun(Some(Duration::ZERO));
        a.begun(Some(Duration::ZERO));
        assert_eq!(r.own(), Own { in_flight: 2, pending: 1, pending_tokens: 256.0 });
        drop(b);
        drop(a);
        assert_eq!(r.own(), Own::default());
        assert_eq!((r.state().in_flight, r.state().requests), (0, 2));
    }

    #[test]
    fn the_index_is_as_large_as_the_cache() {
        let (r, changed) = (replica(), Arc::new(Notify::new()));
        // 10 blocks of 64 tokens of 4 bytes are 10 blocks of 256 bytes.
        let small = Reading { cache_tokens: Some(640.0), ..reading(1.0) };
        r.scraped(small, Own::default(), Duration::ZERO);
        drop(r.lease(decision(), &prefix(100), 25_600, &changed, Duration::ZERO));
        assert_eq!(r.indexed_blocks(), 10);
    }
}
