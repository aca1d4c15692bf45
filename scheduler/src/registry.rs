//! The models and their replicas, as they are listed now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use strata_wire::models::Model;
use strata_wire::replicas::{Endpoint, Endpoints, ReplicaReport};
use tokio::sync::Notify;

use crate::demand::Asked;
use crate::pick::Weights;
use crate::replica::Replica;

/// One model: its replicas, and the requests that wait for one of them.
#[derive(Debug)]
pub struct Pool {
    /// The name that requests ask for.
    pub name: String,
    /// Where it runs.
    pub replicas: ArcSwap<Vec<Arc<Replica>>>,
    /// How its scores count.
    pub weights: ArcSwap<Weights>,
    /// Held by the request that is next to be placed; the others wait for it in the order they came.
    pub gate: tokio::sync::Mutex<()>,
    /// Requests that wait.
    pub held: AtomicUsize,
    /// Bytes of their bodies.
    pub held_bytes: AtomicUsize,
    /// Requests placed, for round robin.
    pub turn: AtomicU64,
    /// Held while a replica is chosen and the choice is booked, so that two requests do not both see
    /// the same free place.
    pub choosing: Mutex<()>,
    /// Set when the model is no longer listed.
    pub gone: AtomicBool,
    /// What is asked of it.
    pub asked: Asked,
    created: i64,
}

impl Pool {
    fn new(name: &str, created: i64, asked: Asked) -> Self {
        Self {
            name: name.to_owned(),
            replicas: ArcSwap::default(),
            weights: ArcSwap::default(),
            gate: tokio::sync::Mutex::new(()),
            held: AtomicUsize::new(0),
            held_bytes: AtomicUsize::new(0),
            turn: AtomicU64::new(0),
            choosing: Mutex::new(()),
            gone: AtomicBool::new(false),
            asked,
            created,
        }
    }

    /// The model as `GET /v1/models` shows it: what its replicas say, under the name by which requests
    /// ask for it.
    fn model(&self) -> Model {
        let replicas = self.replicas.load();
        let own = replicas.iter().flat_map(|r| r.models()).find(|m| m.id == self.name);
        own.unwrap_or_else(|| Model::new(&self.name, self.created))
    }
}

/// All models and replicas.
#[derive(Debug, Default)]
pub struct Registry {
    pools: ArcSwap<BTreeMap<String, Arc<Pool>>>,
    replicas: Mutex<BTreeMap<Endpoint, Arc<Replica>>>,
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
            pool.replicas.store(Arc::new(of_model));
            let (weights, refused) = Weights::with(&model.weights);
            if **pool.weights.load() != weights || before.get(name).is_none() {
                for weight in refused {
                    tracing::warn!(model = %name, %weight, "ignored a weight: names are prefix, queue, decode and latency, values 0 to 1000");
                }
                pool.weights.store(Arc::new(weights));
            }
            pools.insert(name.clone(), pool);
        }
        for (name, pool) in before.iter().filter(|(name, _)| !pools.contains_key(*name)) {
            tracing::info!(model = %name, "model is no longer listed");
            pool.gone.store(true, Ordering::Release);
            pool.replicas.store(Arc::default());
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

    /// The models for `GET /v1/models`: those with a replica.
    pub fn models(&self) -> Vec<Model> {
        let pools = self.pools.load();
        pools.values().filter(|p| !p.replicas.load().is_empty()).map(|p| p.model()).collect()
    }

    /// What `GET /replicas` returns. `now` is the time since the scheduler's start.
    pub fn report(&self, now: Duration) -> ReplicaReport {
        let mut report = ReplicaReport::default();
        for (name, pool) in self.pools.load().iter() {
            let states = pool.replicas.load().iter().map(|replica| replica.state()).collect();
            report.models.insert(name.clone(), states);
            let held = pool.held.load(Ordering::Acquire);
            report.demand.insert(name.clone(), pool.asked.demand(held, now));
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use strata_wire::replicas::ModelEndpoints;

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
    fn replicas_that_stay_keep_their_state() {
        let registry = Registry::default();
        assert_eq!(registry.apply(&wanted(&[0]), &[], 7, Duration::ZERO).len(), 1);
        let pool = registry.pool("m").unwrap();
        assert!((pool.weights.load().hit - 70.0).abs() < 1e-9);
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
