//! What the parts of a running scheduler share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use strata_hop::{Component, Upstream};
use strata_trace::Tracer;
use strata_wire::replicas::{Endpoint, Endpoints, ModelEndpoints};
use tokio_util::sync::CancellationToken;

use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::options::{SchedulerError, SchedulerOptions, base_url};
use crate::order::Order;
use crate::peers::Peers;
use crate::pick::RetryBudget;
use crate::registry::Registry;
use crate::replica::Replica;
use crate::watch::{self, Cluster};
use crate::{ask_peers, endpoints, scrape};

/// A running scheduler. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Scheduler(Arc<Shared>);

/// The shared state of a [`Scheduler`].
#[derive(Debug)]
pub struct Shared {
    /// How it was started.
    pub options: SchedulerOptions,
    /// Models and replicas.
    pub registry: Registry,
    /// The way to the replicas.
    pub upstream: Upstream,
    /// What it counts.
    pub metrics: Metrics,
    /// Its latest choices.
    pub journal: Journal,
    /// How requests are ordered.
    pub(crate) order: Order,
    /// Cancelled when the scheduler stops watching replicas.
    pub stop: CancellationToken,
    /// Whether the lists of models and replicas have been read whole.
    discovered: AtomicBool,
    /// Whether it is about to stop.
    leaving: AtomicBool,
    budget: Mutex<RetryBudget>,
    /// Replicas that take no requests. Held while a list is made and taken over, so that an older one
    /// never replaces a newer.
    listing: Mutex<BTreeSet<Endpoint>>,
    /// Other schedulers of the same replicas.
    peers: Mutex<Peers>,
    /// Priorities that requests may name.
    pub(crate) priorities: ArcSwap<BTreeMap<String, i32>>,
    started: Instant,
    random: AtomicU64,
    /// What begins spans, where requests are traced.
    tracer: OnceLock<Tracer>,
}

impl std::ops::Deref for Scheduler {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Scheduler {
    /// Starts watching the replicas, until `stop`.
    pub async fn start(options: SchedulerOptions, stop: CancellationToken) -> Result<Self, SchedulerError> {
        let urls = options.check()?;
        let cluster = match &options.kubernetes {
            Some(which) => Some(Cluster::find(which).await?),
            None => None,
        };
        let budget = RetryBudget::new(f64::from(options.retry_burst));
        let scheduler = Self(Arc::new(Shared {
            registry: Registry::default(),
            upstream: Upstream::to(options.mtls.as_ref(), &[Component::Engine]),
            metrics: Metrics::new(),
            journal: Journal::default(),
            order: Order::default(),
            stop,
            discovered: AtomicBool::new(cluster.is_none()),
            leaving: AtomicBool::new(false),
            budget: Mutex::new(budget),
            listing: Mutex::default(),
            peers: Mutex::default(),
            priorities: ArcSwap::default(),
            started: Instant::now(),
            random: AtomicU64::new(uuid::Uuid::new_v4().as_u64_pair().0),
            tracer: OnceLock::new(),
            options,
        }));
        let peers: Vec<String> =
            scheduler.options.peers.iter().filter_map(|url| base_url(url).ok()).collect();
        if !peers.is_empty() {
            ask_peers::follow(&scheduler, peers);
        }
        if let Some(cluster) = cluster {
            watch::follow(&scheduler, cluster);
        } else if scheduler.learns() {
            scheduler.list(&Endpoints::default(), &named(&scheduler.options, &urls));
        } else {
            endpoints::follow(&scheduler);
        }
        Ok(scheduler)
    }

    /// It, for a handler that takes it as axum's state.
    pub(crate) fn state(&self) -> axum::extract::State<Self> {
        axum::extract::State(self.clone())
    }

    /// Takes over a list of models and replicas, and watches the replicas that are new in it.
    pub fn list(&self, wanted: &Endpoints, unlisted: &[Endpoint]) {
        for replica in self.registry.apply(wanted, unlisted, unix_seconds(), self.now()) {
            scrape::watch(self.clone(), replica);
        }
    }

    /// A replica told which models it serves. Where nobody else says so, this is the list.
    pub fn learnt(&self, replica: &Arc<Replica>, models: Vec<strata_wire::models::Model>) {
        if !replica.serves(models) || !self.learns() {
            return;
        }
        let resting = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<Endpoint> =
            self.registry.replicas().iter().map(|r| Endpoint::clone(r.endpoint())).collect();
        self.list_as_told(&all, &resting);
    }

    /// These are all replicas. What they serve they say themselves, and those that rest take no requests.
    pub fn members(&self, serving: &[Endpoint], resting: &[Endpoint]) {
        let mut rest = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        *rest = resting.iter().cloned().collect();
        self.list_as_told(&[serving, resting].concat(), &rest);
    }

    fn list_as_told(&self, all: &[Endpoint], resting: &BTreeSet<Endpoint>) {
        let mut wanted = Endpoints::default();
        let serves = |endpoint: &Endpoint| all.contains(endpoint) && !resting.contains(endpoint);
        for replica in self.registry.replicas().iter().filter(|replica| serves(replica.endpoint())) {
            for model in replica.models() {
                let entry = wanted.models.entry(model.id).or_insert_with(ModelEndpoints::default);
                entry.replicas.push(Endpoint::clone(replica.endpoint()));
            }
        }
        self.list(&wanted, all);
    }

    /// Whether an unknown model may only be unknown yet: a replica has not told which models it serves,
    /// or rests, or there is none; or the cluster's models have not been read.
    pub fn is_learning(&self) -> bool {
        let untold = || {
            let replicas = self.registry.replicas();
            let rests = !self.listing.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
            rests || replicas.is_empty() || replicas.iter().any(|r| r.models().is_empty())
        };
        !self.is_discovered() || (self.learns() && untold())
    }
}

impl Shared {
    /// Whether replicas are asked which models they serve, for nobody else says so.
    pub fn learns(&self) -> bool {
        let has_pool = self.options.kubernetes.as_ref().is_some_and(|which| which.inference_pool.is_some());
        has_pool || !self.options.replicas.is_empty()
    }

    /// Whether the cluster's models and pods have been read whole, where there is a cluster.
    pub fn is_discovered(&self) -> bool {
        self.discovered.load(Ordering::Acquire)
    }

    /// They have.
    pub fn discovered(&self) {
        if !self.discovered.swap(true, Ordering::AcqRel) {
            tracing::info!("models and pods are known");
        }
    }

    /// Whether it is about to stop.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// It is about to stop: `GET /ready` says so.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The next random number (splitmix64): good enough to break ties.
    pub fn random(&self) -> u64 {
        mix(self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed))
    }

    /// The same from 0 to 1.
    pub fn chance(&self) -> f64 {
        (self.random() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// These other schedulers are there. One that is new counts when what waits has gone.
    pub(crate) fn beside(&self, others: impl IntoIterator<Item = String>) {
        let (now, settles) = (self.now(), self.options.queue_timeout);
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.see(others, now, settles) {
            let schedulers = peers.live(now + settles);
            tracing::info!(schedulers, "the bounds of what waits are divided by this many schedulers");
        }
    }

    /// How many schedulers share the bounds of what waits, this one among them.
    pub(crate) fn live(&self) -> usize {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).live(self.now())
    }

    /// Takes over the priorities that requests may name.
    pub(crate) fn name_priorities(&self, named: BTreeMap<String, i32>) {
        self.priorities.store(Arc::new(named));
    }

    /// Records spans of requests from now on. Only the first tracer counts.
    pub fn trace(&self, tracer: Tracer) {
        self.metrics.follow_spans(self.tracer.get_or_init(|| tracer));
    }

    /// What begins spans, where requests are traced.
    pub(crate) fn tracer(&self) -> Option<&Tracer> {
        self.tracer.get()
    }

    /// The retries that are left.
    pub fn budget(&self) -> MutexGuard<'_, RetryBudget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All bits of the result depend on all of `z`: the last step of splitmix64.
pub fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Replicas from the command line are named by their address.
fn named(options: &SchedulerOptions, urls: &[String]) -> Vec<Endpoint> {
    let name = |url: &String| url.split_once("://").map_or(url.as_str(), |(_, rest)| rest).to_owned();
    let replica = |url: &String| Endpoint {
        kv_events: options.kv_events(url),
        ..Endpoint::new(name(url), url.clone())
    };
    urls.iter().map(replica).collect()
}

/// Milliseconds since 1970.
pub fn unix_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Seconds since 1970.
pub fn unix_seconds() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
