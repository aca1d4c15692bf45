//! Finds a replica for a request, and holds the request while there is none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use strata_hop::Fault;
use strata_wire::ErrorKind;
use strata_wire::prefix::Prefix;
use tokio::time::Instant;

use crate::pick::{Ask, Candidate, Outcome, pick};
use crate::registry::Pool;
use crate::replica::{Lease, Replica};
use crate::scheduler::Scheduler;

/// When a client should try again after there was no room.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What of a request decides where it goes.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its prompt's prefix.
    pub prefix: Prefix,
    /// Bytes of its prompt, or of its body where the prompt is not text.
    pub bytes: usize,
    /// Bytes of its body, which is kept while it waits.
    pub body_bytes: usize,
    /// When it must have ended.
    pub deadline: Instant,
}

/// The replicas that already failed a request. One that has since been away and come back may be tried
/// again.
#[derive(Debug, Default)]
pub struct Tried(Vec<(Arc<Replica>, u64)>);

impl Tried {
    /// This lease's replica failed the request.
    pub fn push(&mut self, lease: &Lease) {
        self.0.push((Arc::clone(&lease.replica), lease.epoch));
    }

    /// How often the request failed.
    pub fn times(&self) -> usize {
        self.0.len()
    }

    fn excludes(&self, replica: &Arc<Replica>, epoch: u64) -> bool {
        self.0.iter().any(|(tried, then)| Arc::ptr_eq(tried, replica) && *then == epoch)
    }
}

/// Places a request: at once when a replica can take it and no other request waits, else when it is its
/// turn. Refuses it when too many wait, or it has waited too long.
pub async fn choose(
    scheduler: &Scheduler,
    pool: &Arc<Pool>,
    wanted: &Wanted,
    tried: &Tried,
) -> Result<Lease, Fault> {
    // A request that already failed somewhere has waited its turn before.
    let in_turn = tried.times() > 0 || pool.held.load(Ordering::Acquire) == 0;
    if in_turn && let Ok(lease) = place(scheduler, pool, wanted, tried) {
        return Ok(lease);
    }
    let arrived = Instant::now();
    let _held = Held::enter(scheduler, pool, wanted.body_bytes, tried.times() > 0)?;
    let until = (arrived + scheduler.options.queue_timeout).min(wanted.deadline);
    let mut full = false;
    let waited = tokio::time::timeout_at(until, async {
        let _head = pool.gate.lock().await;
        loop {
            let changed = scheduler.registry.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if pool.gone.load(Ordering::Acquire) {
                return Err(unknown_model(&pool.name));
            }
            match place(scheduler, pool, wanted, tried) {
                Ok(lease) => return Ok(lease),
                Err(NoRoom::Full) => full = true,
                Err(NoRoom::NoneReady) => full = false,
            }
            changed.await;
        }
    })
    .await;
    scheduler.metrics.queued(&pool.name, arrived.elapsed());
    match waited {
        Ok(placed) => placed,
        Err(_) if Instant::now() >= wanted.deadline => Err(past_deadline()),
        // Whoever waits behind others does not see the replicas himself.
        Err(_) if full || is_full(pool) => Err(all_full(&pool.name, "waited too long")),
        Err(_) => Err(none_ready(&pool.name)),
    }
}

enum NoRoom {
    Full,
    NoneReady,
}

/// Chooses among the replicas as they are now, and books the choice.
fn place(scheduler: &Scheduler, pool: &Pool, wanted: &Wanted, tried: &Tried) -> Result<Lease, NoRoom> {
    let began = std::time::Instant::now();
    let ask = Ask {
        blocks: wanted.prefix.blocks.len(),
        bytes: wanted.bytes,
        inter_token_objective: scheduler.options.inter_token_objective.as_secs_f64(),
    };
    let _choosing = pool.choosing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let replicas = pool.replicas.load();
    let (now, stale) = (scheduler.now(), scheduler.options.stale_after());
    let candidates: Vec<Candidate<'_>> = replicas
        .iter()
        .map(|replica| {
            let view = replica.view(&wanted.prefix, now, stale);
            Candidate {
                name: replica.name(),
                eligible: view.ready && !tried.excludes(replica, view.epoch),
                load: view.load,
                cached_blocks: view.cached_blocks,
                bytes_per_token: view.bytes_per_token,
            }
        })
        .collect();
    let turn = pool.turn.load(Ordering::Relaxed);
    let weights = **pool.weights.load();
    match pick(scheduler.options.policy, &ask, &candidates, &weights, turn, scheduler.random()) {
        Outcome::Picked(at, decision) => {
            pool.turn.fetch_add(1, Ordering::Relaxed);
            scheduler.metrics.picked(began.elapsed(), &decision);
            Ok(replicas[at].lease(decision, &wanted.prefix, wanted.bytes, &scheduler.registry.changed))
        }
        Outcome::Saturated => Err(NoRoom::Full),
        Outcome::NoneReady => Err(NoRoom::NoneReady),
    }
}

/// A place among the requests that wait.
struct Held<'a> {
    pool: &'a Pool,
    bytes: usize,
}

impl<'a> Held<'a> {
    /// Takes a place, while there is one. A request that a replica has failed always finds one: it was
    /// let in before, and there are no more of these than the replica had.
    fn enter(
        scheduler: &Scheduler,
        pool: &'a Pool,
        bytes: usize,
        failed_before: bool,
    ) -> Result<Self, Fault> {
        let options = &scheduler.options;
        let most = options.queue_per_replica * pool.replicas.load().len().max(1);
        let take = |count: &AtomicUsize, add: usize, most: usize| {
            let fits = |held: usize| (failed_before || held + add <= most).then_some(held + add);
            count.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok()
        };
        if take(&pool.held, 1, most) {
            if take(&pool.held_bytes, bytes, options.queue_bytes) {
                return Ok(Self { pool, bytes });
            }
            pool.held.fetch_sub(1, Ordering::AcqRel);
        }
        Err(if is_full(pool) {
            all_full(&pool.name, "too many requests wait")
        } else {
            none_ready(&pool.name)
        })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.pool.held.fetch_sub(1, Ordering::AcqRel);
        self.pool.held_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Whether there are ready replicas: then those that wait do so because these are full.
fn is_full(pool: &Pool) -> bool {
    pool.replicas.load().iter().any(|replica| replica.is_ready())
}

/// 429: there are replicas, and each has all that it can take. Told apart from a tenant's own rate
/// limit by its code.
fn all_full(model: &str, what: &str) -> Fault {
    let message = format!("every replica of `{model}` is busy and {what}; try again shortly");
    let mut fault = Fault::new(ErrorKind::RateLimitExceeded, message).retry_after(RETRY_AFTER);
    fault.body.error.code = Some("capacity_exceeded".to_owned());
    fault
}

/// 503: there is no replica that could take it.
fn none_ready(model: &str) -> Fault {
    Fault::new(ErrorKind::Overloaded, format!("no replica of `{model}` is ready; try again shortly"))
        .retry_after(RETRY_AFTER)
}

/// 504: the time that the request was given is over.
pub fn past_deadline() -> Fault {
    Fault::new(ErrorKind::Timeout, "the request's deadline passed before an answer began")
}

/// 404: nobody serves it.
pub fn unknown_model(model: &str) -> Fault {
    let shown: String = model.chars().take(200).collect();
    Fault::new(
        ErrorKind::ModelNotFound,
        format!("the model `{shown}` does not exist; GET /v1/models lists those that do"),
    )
    .param("model")
}
