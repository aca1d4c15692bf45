//! What the parts of a running scheduler share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use strata_hop::{Component, Upstream};
use strata_wire::replicas::{Endpoint, Endpoints, ModelEndpoints};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::options::{SchedulerError, SchedulerOptions};
use crate::pick::RetryBudget;
use crate::registry::Registry;
use crate::replica::Replica;
use crate::{endpoints, scrape};

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
    /// Cancelled when the scheduler stops watching replicas.
    pub stop: CancellationToken,
    budget: Mutex<RetryBudget>,
    /// Held while a list is made and taken over, so that an older one never replaces a newer.
    listing: Mutex<()>,
    started: Instant,
    random: AtomicU64,
}

impl std::ops::Deref for Scheduler {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Scheduler {
    /// Starts watching the replicas, until `stop`. Must be called within a tokio runtime.
    pub fn start(options: SchedulerOptions, stop: CancellationToken) -> Result<Self, SchedulerError> {
        let urls = options.check()?;
        let budget = RetryBudget::new(f64::from(options.retry_burst));
        let scheduler = Self(Arc::new(Shared {
            registry: Registry::default(),
            upstream: Upstream::to(options.mtls.as_ref(), &[Component::Engine]),
            metrics: Metrics::new(),
            stop,
            budget: Mutex::new(budget),
            listing: Mutex::new(()),
            started: Instant::now(),
            random: AtomicU64::new(uuid::Uuid::new_v4().as_u64_pair().0),
            options,
        }));
        if urls.is_empty() {
            endpoints::follow(&scheduler);
        } else {
            scheduler.list(&Endpoints::default(), &named(&urls));
        }
        Ok(scheduler)
    }

    /// Takes over a list of models and replicas, and watches the replicas that are new in it.
    pub fn list(&self, wanted: &Endpoints, unlisted: &[Endpoint]) {
        for replica in self.registry.apply(wanted, unlisted, unix_seconds(), self.now()) {
            scrape::watch(self.clone(), replica);
        }
    }

    /// A replica told which models it serves. With replicas from the command line, this is the list.
    pub fn learnt(&self, replica: &Arc<Replica>, models: Vec<strata_wire::models::Model>) {
        if !replica.serves(models) || self.options.endpoints.is_some() {
            return;
        }
        let _listing = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = Endpoints::default();
        let replicas = self.registry.replicas();
        for replica in &replicas {
            for model in replica.models() {
                let entry = wanted.models.entry(model.id).or_insert_with(ModelEndpoints::default);
                entry.replicas.push(replica.endpoint().clone());
            }
        }
        let all: Vec<Endpoint> = replicas.iter().map(|r| r.endpoint().clone()).collect();
        self.list(&wanted, &all);
    }

    /// Whether a replica has not told yet which models it serves, so that an unknown model may only be
    /// unknown yet.
    pub fn is_learning(&self) -> bool {
        self.options.endpoints.is_none() && self.registry.replicas().iter().any(|r| r.models().is_empty())
    }
}

impl Shared {
    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The next random number (splitmix64): good enough to break ties.
    pub fn random(&self) -> u64 {
        let mut z = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The retries that are left.
    pub fn budget(&self) -> MutexGuard<'_, RetryBudget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replicas from the command line are named by their address.
fn named(urls: &[String]) -> Vec<Endpoint> {
    let name = |url: &String| url.split_once("://").map_or(url.as_str(), |(_, rest)| rest).to_owned();
    urls.iter().map(|url| Endpoint::new(name(url), url.clone())).collect()
}

/// Seconds since 1970.
pub fn unix_seconds() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
