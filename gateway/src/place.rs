//! Where requests go: the endpoints of one place's schedulers, and which of them to try first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Response;
use hyper::body::Incoming;
use strata_hop::{Body, SendError, Upstream};
use tokio::time::Instant;

use crate::catalog::Catalog;
use crate::clock::Clock;

/// How long an endpoint that could not be reached is tried last.
const SHUNNED_MS: i64 = 2_000;

/// One scheduler, or whatever else serves models.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Its base URL, without a path.
    base: String,
    in_flight: AtomicUsize,
    /// Until when it is tried last, in milliseconds since 1970.
    shunned_until: AtomicI64,
}

/// Counts a request in flight until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Endpoint>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Endpoints that serve the same models.
#[derive(Debug)]
pub(crate) struct Pool {
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    turn: AtomicUsize,
    clock: Clock,
}

/// The order in which to try endpoints of these loads: those that were just out of reach last, then by
/// requests in flight; among equals the turn decides, so that they share the load.
fn order(loads: &[(bool, usize)], turn: usize) -> Vec<usize> {
    let n = loads.len().max(1);
    let mut order: Vec<usize> = (0..loads.len()).map(|i| (i + turn) % n).collect();
    order.sort_by_key(|i| loads[*i]);
    order
}

impl Pool {
    /// A pool of these base URLs.
    pub(crate) fn new(bases: impl IntoIterator<Item = String>, clock: Clock) -> Self {
        // Gateways that start together must not all begin with the same scheduler.
        let mut byte = [0];
        let turn = getrandom::fill(&mut byte).map_or(0, |()| usize::from(byte[0]));
        let pool = Self { endpoints: ArcSwap::default(), turn: AtomicUsize::new(turn), clock };
        pool.set(&bases.into_iter().collect());
        pool
    }

    /// Replaces the endpoints. One that stays keeps its count.
    pub(crate) fn set(&self, bases: &BTreeSet<String>) {
        let before = self.endpoints.load();
        let endpoint = |base: &String| {
            before.iter().find(|e| e.base == *base).cloned().unwrap_or_else(|| {
                Arc::new(Endpoint {
                    base: base.clone(),
                    in_flight: AtomicUsize::new(0),
                    shunned_until: AtomicI64::new(i64::MIN),
                })
            })
        };
        self.endpoints.store(Arc::new(bases.iter().map(endpoint).collect()));
    }

    /// Whether nothing can be tried.
    pub(crate) fn is_empty(&self) -> bool {
        self.endpoints.load().is_empty()
    }

    fn in_order(&self) -> Vec<Arc<Endpoint>> {
        let endpoints = self.endpoints.load();
        let now = self.clock.now_ms();
        let loads: Vec<(bool, usize)> = endpoints
            .iter()
            .map(|e| (now < e.shunned_until.load(Ordering::Relaxed), e.in_flight.load(Ordering::Relaxed)))
            .collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        order(&loads, turn).into_iter().map(|i| endpoints[i].clone()).collect()
    }

    /// Sends what `request` makes for a base URL to the endpoint with the fewest requests in flight. One
    /// that cannot be connected to, or is not trusted, has seen nothing, so the next is tried, all within `limit`.
    pub(crate) async fn send(
        &self,
        upstream: &Upstream,
        limit: Duration,
        mut request: impl FnMut(&str) -> Result<http::Request<Body>, http::Error>,
    ) -> Result<(Response<Incoming>, InFlight), SendError> {
        let deadline = Instant::now() + limit;
        let mut failure = None;
        for endpoint in self.in_order() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let request = request(&endpoint.base)
                .map_err(|e| SendError::Broken { to: endpoint.base.clone(), message: e.to_string() })?;
            endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
            let in_flight = InFlight(endpoint.clone());
            match upstream.send(request, left).await {
                Ok(response) => {
                    endpoint.shunned_until.store(i64::MIN, Ordering::Relaxed);
                    return Ok((response, in_flight));
                }
                Err(error @ (SendError::Connect { .. } | SendError::Untrusted { .. })) => {
                    let until = self.clock.now_ms().saturating_add(SHUNNED_MS);
                    endpoint.shunned_until.store(until, Ordering::Relaxed);
                    if matches!(error, SendError::Untrusted { .. }) {
                        tracing::warn!(%error, "trying another endpoint if there is one");
                    } else {
                        tracing::debug!(%error, "trying another endpoint if there is one");
                    }
                    failure = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(|| SendError::Connect {
            to: "the scheduler".to_owned(),
            message: "it has no ready endpoint".to_owned(),
        }))
    }
}

/// Endpoints and the models that they list.
#[derive(Debug)]
pub(crate) struct Place {
    /// The endpoints.
    pub(crate) pool: Arc<Pool>,
    /// What they list.
    pub(crate) catalog: Arc<Catalog>,
    /// The way there: to schedulers of this place's namespace, where each proves who it is.
    pub(crate) upstream: Upstream,
}

/// Every place that serves models.
#[derive(Debug)]
pub(crate) enum Places {
    /// One upstream for all models, whether a manifest declares them or not.
    One(Arc<Place>),
    /// The schedulers of each namespace, for the models declared there.
    ByNamespace(Mutex<BTreeMap<Arc<str>, Arc<Place>>>),
}

impl Places {
    /// The place of a namespace, made by `make` when there is none yet.
    pub(crate) fn of(&self, namespace: &Arc<str>, make: impl FnOnce() -> Place) -> Arc<Place> {
        match self {
            Self::One(place) => place.clone(),
            Self::ByNamespace(places) => {
                let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
                places.entry(namespace.clone()).or_insert_with(|| Arc::new(make())).clone()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use strata_hop::Bound;
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn the_least_loaded_is_first_and_equals_take_turns() {
        assert_eq!(order(&[(false, 3), (false, 1), (false, 2)], 7), [1, 2, 0]);
        assert_eq!(order(&[(false, 0), (false, 0), (false, 0)], 0), [0, 1, 2]);
        assert_eq!(order(&[(false, 0), (false, 0), (false, 0)], 1), [1, 2, 0]);
        assert_eq!(order(&[(true, 0), (false, 9)], 0), [1, 0], "one out of reach is a last resort");
        assert_eq!(order(&[], 3), Vec::<usize>::new());
    }

    #[tokio::test]
    async fn one_that_cannot_be_reached_costs_one_attempt() {
        let gone = Bound::bind("127.0.0.1:0").await.unwrap().url();
        let bound = Bound::bind("127.0.0.1:0").await.unwrap();
        let good = bound.url();
        let stop = CancellationToken::new();
        let router = axum::Router::new().fallback(|| async { "hi" });
        tokio::spawn(bound.serve(router, stop.clone(), Duration::ZERO));
        let pool = Pool::new([gone.clone(), good.clone()], Clock::manual(0));
        let upstream = Upstream::new();
        let mut tried = Vec::new();
        let limit = Duration::from_secs(10);
        for _ in 0..8 {
            let sent = pool.send(&upstream, limit, |base| {
                tried.push(base.to_owned());
                http::Request::get(format!("{base}/")).body(Body::empty())
            });
            let (response, held) = sent.await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(held.0.in_flight.load(Ordering::Relaxed), 1);
        }
        assert!(tried.iter().filter(|base| **base == gone).count() <= 1, "{tried:?}");
        for endpoint in pool.endpoints.load().iter() {
            assert_eq!(endpoint.in_flight.load(Ordering::Relaxed), 0);
        }
        pool.set(&BTreeSet::from([gone]));
        let request = |base: &str| http::Request::get(format!("{base}/")).body(Body::empty());
        let refused = pool.send(&upstream, limit, request).await.unwrap_err();
        assert!(matches!(refused, SendError::Connect { .. }), "{refused}");
        pool.set(&BTreeSet::new());
        assert!(pool.is_empty());
        assert!(pool.send(&upstream, limit, request).await.is_err());
        stop.cancel();
    }

    #[tokio::test]
    async fn one_deadline_holds_for_all_attempts() {
        let bound = Bound::bind("127.0.0.1:0").await.unwrap();
        let slow = bound.url();
        let stop = CancellationToken::new();
        let router = axum::Router::new().fallback(std::future::pending::<()>);
        tokio::spawn(bound.serve(router, stop.clone(), Duration::ZERO));
        let pool = Pool::new([slow], Clock::System);
        let (began, upstream) = (Instant::now(), Upstream::new());
        let sent = pool.send(&upstream, Duration::from_millis(100), |base| {
            http::Request::get(format!("{base}/")).body(Body::empty())
        });
        assert!(matches!(sent.await.unwrap_err(), SendError::Timeout { .. }));
        assert!(began.elapsed() < Duration::from_secs(5));
        stop.cancel();
    }
}
