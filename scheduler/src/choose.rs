//! Finds a replica for a request, and holds the request while there is none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use strata_hop::Fault;
use strata_wire::ErrorKind;
use strata_wire::prefix::Prefix;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::pick::{Ask, Candidate, Decision, Outcome, Patience, Policy, pick};
use crate::queue::{Offer, patience};
use crate::registry::Pool;
use crate::replica::{Lease, Replica};
use crate::scheduler::Scheduler;
use crate::subset::Subset;

/// When a client should try again after there was no room.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The same, after a model did not wake in time.
const RETRY_STARTING: Duration = Duration::from_secs(5);

/// Between two looks for places for those that wait.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// The same, in times of what a look took.
const LOOK_PART: u32 = 4;

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
    /// The only replicas that may take it; all of the model's when absent.
    pub subset: Option<Arc<Subset>>,
}

/// The replicas that already failed a request. One that has since been away and come back may be tried
/// again.
#[derive(Clone, Debug, Default)]
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

    /// Where it was sent last.
    fn last(&self) -> Option<&Replica> {
        self.0.last().map(|(replica, _)| &**replica)
    }

    fn excludes(&self, replica: &Arc<Replica>, epoch: u64) -> bool {
        self.0.iter().any(|(tried, then)| Arc::ptr_eq(tried, replica) && *then == epoch)
    }
}

/// A request in the queue of its model.
#[derive(Debug)]
pub struct Waiting {
    wanted: Wanted,
    tried: Tried,
    /// Where its place is told; nobody listens when it has left.
    to: oneshot::Sender<Lease>,
}

/// Places a request: at once when a replica can take it and no other request waits, else when it is its
/// turn. Refuses it when too many wait, or it has waited too long. While the model has no replica at
/// all, it may wait for one to be woken, and its patience with busy ones begins when one is there.
pub async fn choose(
    scheduler: &Scheduler,
    pool: &Arc<Pool>,
    wanted: &Wanted,
    tried: &Tried,
) -> Result<Lease, Fault> {
    // A request that already failed somewhere has waited its turn before.
    let failed_before = tried.times() > 0;
    let patience = patience(Duration::ZERO, scheduler.options.queue_timeout, 0, true);
    let in_turn = failed_before || pool.held.load(Ordering::Acquire) == 0;
    if in_turn && let Ok(lease) = place(scheduler, pool, wanted, tried, patience) {
        return Ok(lease);
    }
    let (arrived, arrived_at) = (Instant::now(), scheduler.now());
    let _held = Held::enter(scheduler, pool, wanted.body_bytes, failed_before)?;
    let (to, placed) = oneshot::channel();
    let waiting = Waiting { wanted: wanted.clone(), tried: tried.clone(), to };
    let ticket = pool.queue().push(waiting, failed_before, arrived_at);
    let _ticket = Ticket { pool, ticket };
    pool.arrived.notify_one();
    let gone = look_for_all(scheduler, pool);
    tokio::pin!(gone, placed);
    let mut awake = pool.awake.subscribe();
    let waited = loop {
        let options = &scheduler.options;
        let patience = match *awake.borrow_and_update() {
            Some(since) => since.saturating_sub(arrived_at) + options.queue_timeout,
            None => options.wake_timeout,
        };
        let until = (arrived + patience).min(wanted.deadline);
        tokio::select! {
            biased;
            lease = &mut placed => break lease.ok().map(Ok),
            () = &mut gone => break Some(Err(unknown_model(&pool.name))),
            Ok(()) = awake.changed() => {}
            // Placed in this very moment, perhaps by itself.
            () = tokio::time::sleep_until(until) => break placed.try_recv().ok().map(Ok),
        }
    };
    scheduler.metrics.queued(&pool.name, arrived.elapsed());
    match waited {
        Some(placed) => placed,
        None if pool.is_asleep() => Err(starting(&pool.name, "did not start in time")),
        None if Instant::now() >= wanted.deadline => Err(past_deadline()),
        None if pool.was_full.load(Ordering::Relaxed) || is_full(pool) => {
            Err(all_full(&pool.name, "waited too long"))
        }
        None => Err(none_ready(&pool.name)),
    }
}

/// Takes a request out of the queue when it is dropped.
struct Ticket<'a> {
    pool: &'a Pool,
    ticket: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.pool.queue().remove(self.ticket);
    }
}

/// Looks for places for all that wait, whenever something changes: one of them does at a time. Ends when
/// the model is gone.
async fn look_for_all(scheduler: &Scheduler, pool: &Pool) {
    let _gate = pool.gate.lock().await;
    loop {
        let changed = scheduler.registry.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        if pool.gone.load(Ordering::Acquire) {
            return;
        }
        let began = Instant::now();
        offer(scheduler, pool);
        // Something always changes: looking takes a part of a core at most, and this request its turn.
        tokio::time::sleep(LOOK_PAUSE.max(began.elapsed() * LOOK_PART)).await;
        tokio::select! {
            () = changed => {}
            () = pool.arrived.notified() => {}
        }
    }
}

/// Gives those that wait what places there are.
fn offer(scheduler: &Scheduler, pool: &Pool) {
    let times = (scheduler.now(), scheduler.options.queue_timeout);
    let mut room = None;
    let place = |waiting: &Waiting, patience| {
        if waiting.to.is_closed() {
            return Offer::Waits;
        }
        match place(scheduler, pool, &waiting.wanted, &waiting.tried, patience) {
            Ok(lease) => {
                room = None;
                Offer::Placed(lease)
            }
            Err(no_room) => {
                pool.was_full.store(no_room == NoRoom::Full, Ordering::Relaxed);
                let room = *room.get_or_insert_with(|| has_room(scheduler, pool));
                if room { Offer::Waits } else { Offer::NoRoom }
            }
        }
    };
    let mut placed = Vec::new();
    pool.queue().offer(times, place, |waiting, lease| placed.push((waiting.to, lease)));
    // Out of the lock: a lease that nobody takes ends here.
    for (to, lease) in placed {
        let _ = to.send(lease);
    }
}

/// Whether any replica can take a request, whichever that is.
fn has_room(scheduler: &Scheduler, pool: &Pool) -> bool {
    let (now, stale) = (scheduler.now(), scheduler.options.stale_after());
    pool.replicas.load().iter().any(|replica| replica.has_room(now, stale))
}

/// Why no replica can take a request now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// Each has all that it can take.
    Full,
    /// None is ready.
    NoneReady,
}

/// Chooses among the replicas as they are now, and books the choice.
fn place(
    scheduler: &Scheduler,
    pool: &Pool,
    wanted: &Wanted,
    tried: &Tried,
    patience: Patience,
) -> Result<Lease, NoRoom> {
    let began = std::time::Instant::now();
    let ask = ask(scheduler, wanted, patience);
    let mut split = pool.choosing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let replicas = pool.replicas.load();
    let mut candidates = candidates(scheduler, &replicas, wanted, tried);
    let rules = pool.rules.load();
    let opening = wanted.prefix.opening;
    let retried = tried.last().map(Replica::track);
    // A request that failed is not split a second time.
    let track = split.choose(opening, &candidates).map(|track| retried.unwrap_or(track));
    if let Some(track) = track {
        for candidate in &mut candidates {
            candidate.eligible &= candidate.track == track;
        }
    }
    let policy = rules.policy.unwrap_or(scheduler.options.policy);
    match pick(policy, &ask, &candidates, &rules.weights, split.turn(track), scheduler.random()) {
        Outcome::Picked(at, mut decision) => {
            split.placed(track);
            if let Some(track) = track.filter(|_| retried.is_none()) {
                split.chosen(opening, track);
            }
            decision.track = rules.canary_percent.map(|_| replicas[at].track());
            scheduler.metrics.picked(&pool.name, began.elapsed(), &decision);
            Ok(lease(scheduler, &replicas[at], wanted, decision))
        }
        Outcome::Saturated => Err(NoRoom::Full),
        Outcome::NoneReady => Err(NoRoom::NoneReady),
    }
}

/// Chooses among the replicas that compute prompts for this one, by the same scores, and books the choice.
/// No request waits for one of them: the replica that answers can compute its prompt itself.
pub(crate) fn place_prompt(
    scheduler: &Scheduler,
    pool: &Pool,
    wanted: &Wanted,
    answers: &Replica,
) -> Result<Lease, NoRoom> {
    let _choosing = pool.choosing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let replicas = pool.prefill.load();
    let mut candidates = candidates(scheduler, &replicas, wanted, &Tried::default());
    for (candidate, replica) in candidates.iter_mut().zip(replicas.iter()) {
        candidate.eligible &= replica.can_hand_to(answers);
    }
    let weights = pool.rules.load().weights;
    let ask = ask(scheduler, wanted, Patience::default());
    match pick(Policy::Prefix, &ask, &candidates, &weights, 0, scheduler.random()) {
        Outcome::Picked(at, decision) => Ok(lease(scheduler, &replicas[at], wanted, decision)),
        Outcome::Saturated => Err(NoRoom::Full),
        Outcome::NoneReady => Err(NoRoom::NoneReady),
    }
}

fn lease(scheduler: &Scheduler, replica: &Arc<Replica>, wanted: &Wanted, decision: Decision) -> Lease {
    replica.lease(decision, &wanted.prefix, wanted.bytes, &scheduler.registry.changed, scheduler.now())
}

fn ask(scheduler: &Scheduler, wanted: &Wanted, patience: Patience) -> Ask {
    Ask {
        blocks: wanted.prefix.blocks.len(),
        bytes: wanted.bytes,
        inter_token_objective: scheduler.options.inter_token_objective.as_secs_f64(),
        patience,
    }
}

fn candidates<'a>(
    scheduler: &Scheduler,
    replicas: &'a [Arc<Replica>],
    wanted: &Wanted,
    tried: &Tried,
) -> Vec<Candidate<'a>> {
    let (now, stale) = (scheduler.now(), scheduler.options.stale_after());
    let found = scheduler.registry.blocks.find(&wanted.prefix.blocks);
    let candidate = |replica: &'a Arc<Replica>| {
        let view = replica.view(&wanted.prefix, &found, now, stale);
        let mut candidate = replica.candidate(&view);
        candidate.eligible &= !tried.excludes(replica, view.epoch);
        candidate.eligible &= wanted.subset.as_ref().is_none_or(|subset| subset.has(replica));
        candidate
    };
    replicas.iter().map(candidate).collect()
}

/// A place among the requests that wait.
struct Held<'a> {
    scheduler: &'a Scheduler,
    pool: &'a Pool,
    bytes: usize,
}

impl<'a> Held<'a> {
    /// Takes a place, while there is one. A request that a replica has failed always finds one: it was
    /// let in before, and there are no more of these than the replica had.
    fn enter(
        scheduler: &'a Scheduler,
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
        let give_back = |count: &AtomicUsize, taken: usize| count.fetch_sub(taken, Ordering::AcqRel);
        if take(&pool.held, 1, most) {
            if take(&pool.held_bytes, bytes, options.queue_bytes) {
                if take(&scheduler.registry.held_bytes, bytes, options.queue_bytes_all) {
                    return Ok(Self { scheduler, pool, bytes });
                }
                give_back(&pool.held_bytes, bytes);
            }
            give_back(&pool.held, 1);
        }
        Err(if pool.is_asleep() {
            starting(&pool.name, "has as many requests waiting for it as are held")
        } else if is_full(pool) {
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
        self.scheduler.registry.held_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
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

/// 503: nothing of it runs, and it may soon.
fn starting(model: &str, what: &str) -> Fault {
    let message =
        format!("the model `{model}` is asleep or starting and {what}; it is being woken, try again shortly");
    let mut fault = Fault::new(ErrorKind::Overloaded, message).retry_after(RETRY_STARTING);
    fault.body.error.code = Some("model_starting".to_owned());
    fault
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
