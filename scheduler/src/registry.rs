//! The models and their replicas, as they are listed now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use strata_wire::models::Model;
use strata_wire::replicas::{
    Affinity, Endpoint, Endpoints, ModelEndpoints, Objectives, Policy, ReplicaReport,
};
use tokio::sync::{Notify, watch};

use crate::answers::Answers;
use crate::choose::Waiting;
use crate::demand::Asked;
use crate::index::BlockIndex;
use crate::pick::{Split, Weights};
use crate::queue::Queue;
use crate::replica::Replica;

/// How the replicas of a model are chosen from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// How its scores count.
    pub weights: Weights,
    /// How a replica is picked. As the scheduler was started when absent.
    pub policy: Option<Policy>,
    /// What its requests aim at. As the scheduler was started where absent.
    pub objectives: Objectives,
    /// Percent of the requests for the canary.
    pub canary_percent: Option<u8>,
    /// What leans its requests toward some replicas.
    pub affinity: Affinity,
}

/// One model: its replicas, and the requests that wait for one of them.
#[derive(Debug)]
pub struct Pool {
    /// The name that requests ask for.
    pub name: String,
    /// Where it runs: the replicas that answer its requests.
    pub replicas: ArcSwap<Vec<Arc<Replica>>>,
    /// Those that compute prompts for them and get no request of their own.
    pub prefill: ArcSwap<Vec<Arc<Replica>>>,
    /// How they are chosen from.
    pub rules: ArcSwap<Rules>,
    /// Since when there has been a replica, as a time since the scheduler's start; `None` while there is
    /// none: the model is asleep, or its first replica starts.
    pub awake: watch::Sender<Option<Duration>>,
    /// Requests that wait for a replica.
    queue: Mutex<Queue<Waiting>>,
    /// Held by the one of them that looks for places for all.
    pub gate: tokio::sync::Mutex<()>,
    /// Tells that one when another has come.
    pub arrived: Notify,
    /// Whether those that wait do so because all replicas are full, and not because none is ready.
    pub was_full: AtomicBool,
    /// Requests that wait.
    pub held: AtomicUsize,
    /// How its requests were split over tracks. Held while a replica is chosen and the choice is
    /// booked, so that two requests do not both see the same free place.
    pub choosing: Mutex<Split>,
    /// Set when the model is no longer listed.
    pub gone: AtomicBool,
    /// What is asked of it.
    pub asked: Asked,
    /// How long its answers are.
    pub answers: Answers,
    /// What a replica last said of the model, for when none is there.
    told: ArcSwapOption<Model>,
    created: i64,
}

impl Pool {
    fn new(name: &str, created: i64, asked: Asked) -> Self {
        Self {
            name: name.to_owned(),
            replicas: ArcSwap::default(),
            prefill: ArcSwap::default(),
            rules: ArcSwap::default(),
            awake: watch::Sender::new(None),
            queue: Mutex::default(),
            gate: tokio::sync::Mutex::new(()),
            arrived: Notify::new(),
            was_full: AtomicBool::new(false),
            held: AtomicUsize::new(0),
            choosing: Mutex::default(),
            gone: AtomicBool::new(false),
            asked,
            answers: Answers::default(),
            told: ArcSwapOption::empty(),
            created,
        }
    }

    /// The model as `GET /v1/models` shows it: what its replicas say, or said last, under the name by
    /// which requests ask for it.
    fn model(&self) -> Model {
        let replicas = self.replicas.load();
        let said = replicas.iter().flat_map(|r| r.models()).find(|m| m.id == self.name);
        if let Some(model) = &said {
            self.told.store(Some(Arc::new(model.clone())));
        }
        said.or_else(|| self.told.load().as_deref().cloned())
            .unwrap_or_else(|| Model::new(&self.name, self.created))
    }

    /// Requests that wait for a replica.
    pub fn queue(&self) -> MutexGuard<'_, Queue<Waiting>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has no replica.
    pub fn is_asleep(&self) -> bool {
        self.awake.borrow().is_none()
    }

    /// Whether its replicas serve it as an adapter of another model.
    pub fn is_adapter(&self) -> bool {
        let replicas = self.replicas.load();
        // The first that says so knows.
        replicas.iter().find_map(|replica| replica.serves_adapter(&self.name)).unwrap_or(false)
    }

    /// Whether there are ready replicas: then those that wait do so because these are full.
    pub fn is_full(&self) -> bool {
        self.replicas.load().iter().any(|replica| replica.is_ready())
    }

    /// Whether they were full when a request last looked for a place.
    pub fn was_full(&self) -> bool {
        self.was_full.load(Ordering::Relaxed)
    }

    /// Takes over which replicas it has, and how they are chosen from.
    fn update(&self, listed: &ModelEndpoints, all: Vec<Arc<Replica>>, is_new: bool, now: Duration) {
        let (replicas, prefill): (Vec<_>, Vec<_>) = all.into_iter().partition(|r| r.role().is_decode());
        self.prefill.store(Arc::new(prefill));
        if replicas.is_empty() {
            // What they said of the model is all that is known of it until one comes back.
            self.model();
        }
        let awake = !replicas.is_empty();
        self.replicas.store(Arc::new(replicas));
        self.awake.send_if_modified(|since| {
            let changes = since.is_some() != awake;
            if changes {
                *since = awake.then_some(now);
            }
            changes
        });
        let (weights, refused) = Weights::with(&listed.weights);
        let rules = Rules {
            weights,
            policy: listed.policy,
            objectives: listed.objectives,
            canary_percent: listed.canary_percent,
            affinity: listed.affinity.clone(),
        };
        if is_new || **self.rules.load() != rules {
            for weight in refused {
                tracing::warn!(model = %self.name, %weight, "ignored a weight: names are prefix, queue, decode, latency, session and adapter, values 0 to 1000");
            }
            self.choosing.lock().unwrap_or_else(PoisonError::into_inner).set(rules.canary_percent);
            self.rules.store(Arc::new(rules));
        }
    }
}

/// All models and replicas.
#[derive(Debug, Default)]
pub struct Registry {
    pools: ArcSwap<BTreeMap<String, Arc<Pool>>>,
    replicas: Mutex<BTreeMap<Endpoint, Arc<Replica>>>,
    /// Which replica holds which blocks, as far as they tell.
    pub blocks: BlockIndex,
    /// Bytes of the bodies of all requests that wait.
    pub held_bytes: AtomicUsize,
    /// Told whenever a waiting request might now find a place.
    pub changed: Arc<Notify>,
}

impl Registry {
    /// Makes the lists as `wanted` says; `unlisted` are replicas to watch whose models are not known
    /// yet. A replica that stays keeps its state. Returns the replicas that are new, for the caller to
    /// watch; those that are gone are told to stop, and finish what they stream. `date` is in seconds
    /// since 1970, `now` is the time since the scheduler's start.
    pub fn apply(
        &self,
        wanted: &Endpoints,
        unlisted: &[Endpoint],
        date: i64,
        now: Duration,
    ) -> Vec<Arc<Replica>> {
        let mut replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        let listed: BTreeSet<&Endpoint> =
            wanted.models.values().flat_map(|m| &m.replicas).chain(unlisted).collect();
        let mut new = Vec::new();
        for endpoint in &listed {
            replicas.entry((*endpoint).clone()).or_insert_with(|| {
                let replica = Arc::new(Replica::new((*endpoint).clone()));
                new.push(Arc::clone(&replica));
                replica
            });
        }
        replicas.retain(|endpoint, replica| {
            let stays = listed.contains(endpoint);
            if !stays {
                tracing::info!(replica = %endpoint.name, "replica is no longer listed");
                replica.stop.cancel();
            }
            stays
        });

        let before = self.pools.load_full();
        let mut pools = BTreeMap::new();
        for (name, model) in &wanted.models {
            let pool = before.get(name).cloned().unwrap_or_else(|| {
                tracing::info!(model = %name, "model is listed");
                Arc::new(Pool::new(name, date, Asked::new(now)))
            });
            let unique: BTreeSet<&Endpoint> = model.replicas.iter().collect();
            let of_model = unique.into_iter().filter_map(|e| replicas.get(e).cloned()).collect();
            pool.update(model, of_model, !before.contains_key(name), now);
            pools.insert(name.clone(), pool);
        }
        for (name, pool) in before.iter().filter(|(name, _)| !pools.contains_key(*name)) {
            tracing::info!(model = %name, "model is no longer listed");
            pool.gone.store(true, Ordering::Release);
            pool.replicas.store(Arc::default());
            pool.prefill.store(Arc::default());
        }
        self.pools.store(Arc::new(pools));
        drop(replicas);
        self.changed.notify_waiters();
        new
    }

    /// The model of this name.
    pub fn pool(&self, model: &str) -> Option<Arc<Pool>> {
        self.pools.load().get(model).cloned()
    }

    /// All models.
    pub fn pools(&self) -> Arc<BTreeMap<String, Arc<Pool>>> {
        self.pools.load_full()
    }

    /// All replicas.
    pub fn replicas(&self) -> Vec<Arc<Replica>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The models for `GET /v1/models`: all that may be asked, those that sleep too.
    pub fn models(&self) -> Vec<Model> {
        self.pools.load().values().map(|pool| pool.model()).collect()
    }

    /// What `GET /replicas` returns. `now` is the time since the scheduler's start.
    pub fn report(&self, now: Duration) -> ReplicaReport {
        let mut report = ReplicaReport::default();
        for (name, pool) in self.pools.load().iter() {
            let (replicas, prefill) = (pool.replicas.load(), pool.prefill.load());
            let states = replicas.iter().chain(prefill.iter()).map(|replica| replica.state(now)).collect();
            report.models.insert(name.clone(), states);
            let held = pool.held.load(Ordering::Acquire);
            report.demand.insert(name.clone(), pool.asked.demand(held, now));
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use strata_wire::replicas::{ModelEndpoints, Role};

    use super::*;

    fn endpoint(n: usize) -> Endpoint {
        Endpoint::new(format!("m-{n}"), format!("http://127.0.0.1:{}", 4000 + n))
    }

    fn wanted(replicas: &[usize]) -> Endpoints {
        let model = ModelEndpoints {
            replicas: replicas.iter().copied().map(endpoint).collect(),
            weights: BTreeMap::from([("prefix".to_owned(), 70.0)]),
            ..ModelEndpoints::default()
        };
        Endpoints { models: BTreeMap::from([("m".to_owned(), model)]) }
    }

    #[test]
    fn replicas_that_compute_prompts_are_told_of_and_wake_nothing() {
        let registry = Registry::default();
        let mut list = wanted(&[0, 1]);
        for endpoint in &mut list.models.get_mut("m").unwrap().replicas {
            endpoint.role = Role::Prefill;
        }
        assert_eq!(registry.apply(&list, &[], 7, Duration::ZERO).len(), 2, "they are watched");
        let pool = registry.pool("m").unwrap();
        assert!(pool.is_asleep() && pool.replicas.load().is_empty());
        assert_eq!(pool.prefill.load().len(), 2);
        let report = registry.report(Duration::ZERO);
        assert!(report.models["m"].iter().all(|state| state.role == Role::Prefill));
        assert_eq!(report.models["m"].len(), 2);
    }

    #[test]
    fn replicas_that_stay_keep_their_state() {
        let registry = Registry::default();
        assert_eq!(registry.apply(&wanted(&[0]), &[], 7, Duration::ZERO).len(), 1);
        let pool = registry.pool("m").unwrap();
        assert!((pool.rules.load().weights.hit - 70.0).abs() < 1e-9);
        let first = Arc::clone(&pool.replicas.load()[0]);
        let names = |added: Vec<Arc<Replica>>| added.iter().map(|r| r.name().to_owned()).collect::<Vec<_>>();
        assert_eq!(names(registry.apply(&wanted(&[2, 0, 1, 1]), &[], 8, Duration::ZERO)), ["m-1", "m-2"]);
        assert_eq!(pool.replicas.load().len(), 3);
        assert!(Arc::ptr_eq(&pool.replicas.load()[0], &first));
        assert!(registry.apply(&wanted(&[1]), &[], 9, Duration::ZERO).is_empty());
        assert!(first.stop.is_cancelled());
        assert_eq!(registry.models()[0].created, 7);
        registry.apply(&Endpoints::default(), &[], 9, Duration::ZERO);
        assert!(registry.pool("m").is_none() && registry.models().is_empty());
        assert!(pool.gone.load(Ordering::Acquire));
    }
}
