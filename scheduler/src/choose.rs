//! Finds a replica for a request, and holds the request while there is none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use strata_hop::Fault;
use strata_wire::defaults;
use strata_wire::prefix::Prefix;
use strata_wire::replicas::Track;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::class::Class;
use crate::journal::Table;
use crate::peers::share;
use crate::pick::{Ask, Decision, Objectives, Outcome, Patience, Policy, Split, pick};
use crate::queue::{Offer, Rank, patience};
use crate::refusal::{Refused, past_deadline, unknown_model};
use crate::registry::Pool;
use crate::replica::{Lease, Replica};
use crate::scheduler::Scheduler;
use crate::subset::Subset;
use crate::views::Views;
use crate::wishes::Wishes;

/// Between two looks for places for those that wait.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// The same, in times of what a look took.
const LOOK_PART: u32 = 4;
/// Requests beyond the bound that are let in until the next look for places: there may be one for them that
/// none of those that wait wants.
const GUESTS: usize = 64;
/// Choices that are made anew for one request, because others were sent there meanwhile.
const LOOKS: usize = 3;

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
    /// Its priority and flow.
    pub class: Class,
    /// The only replicas that may take it; all of the model's when absent.
    pub subset: Option<Arc<Subset>>,
    /// Where it would like to go.
    pub wishes: Wishes,
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

    pub(crate) fn excludes(&self, replica: &Arc<Replica>, epoch: u64) -> bool {
        self.0.iter().any(|(tried, then)| Arc::ptr_eq(tried, replica) && *then == epoch)
    }
}

/// A request in the queue of its model.
#[derive(Debug)]
pub struct Waiting {
    wanted: Wanted,
    tried: Tried,
    /// Where it is told what became of it; nobody listens when it has left.
    to: oneshot::Sender<Result<Lease, Refused>>,
}

/// Places a request: at once when a replica can take it and no other request waits, else when it is its
/// turn. Refuses it when too many wait that have more right to, or it has waited too long. While the model
/// has no replica at all, it may wait for one to be woken, and its patience with busy ones begins when one
/// is there.
pub async fn choose(
    scheduler: &Scheduler,
    pool: &Arc<Pool>,
    wanted: &Wanted,
    tried: &Tried,
) -> Result<Lease, Fault> {
    let (options, class) = (&scheduler.options, wanted.class);
    // A request that already failed somewhere has waited its turn before.
    let failed_before = tried.times() > 0;
    let patience = patience(Duration::ZERO, options.queue_timeout, 0, true);
    let in_turn = failed_before || pool.held.load(Ordering::Acquire) == 0;
    if in_turn && let Ok(lease) = place_at_once(scheduler, pool, wanted, tried, patience) {
        return Ok(lease);
    }
    let refused = |why: Refused| {
        scheduler.metrics.refused(&pool.name, why.reason());
        why.fault(pool, class.priority, scheduler.now())
    };
    let sheddable = class.is_sheddable() && !failed_before;
    let others_wait =
        || pool.queue().before(0) > 0 && !Views::of(scheduler, pool.replicas.load_full()).has_room();
    if sheddable && !pool.is_asleep() && others_wait() {
        return Err(refused(Refused::Shed));
    }
    let (arrived, arrived_at) = (Instant::now(), scheduler.now());
    let (to, told) = oneshot::channel();
    let waiting = Waiting { wanted: wanted.clone(), tried: tried.clone(), to };
    let mut ticket = Ticket::take(scheduler, pool, waiting, failed_before, arrived_at);
    bound(scheduler, pool, GUESTS);
    pool.arrived.notify_one();
    let gone = look_for_all(scheduler, pool);
    tokio::pin!(gone, told);
    let mut awake = pool.awake.subscribe();
    let waited = loop {
        let patience = match *awake.borrow_and_update() {
            Some(since) => {
                let busy = if sheddable { options.shed_after } else { options.queue_timeout };
                since.saturating_sub(arrived_at) + busy
            }
            None => options.wake_timeout,
        };
        let until = (arrived + patience).min(wanted.deadline);
        tokio::select! {
            biased;
            told = &mut told => break told.ok(),
            () = &mut gone => {
                ticket.outcome = "EvictedOther";
                return Err(unknown_model(&pool.name));
            }
            Ok(()) = awake.changed() => {}
            // Told in this very moment, perhaps by itself.
            () = tokio::time::sleep_until(until) => break told.try_recv().ok(),
        }
    };
    ticket.outcome = match &waited {
        Some(Ok(_)) => "Dispatched",
        Some(Err(_)) => "RejectedCapacity",
        None => "EvictedTTL",
    };
    match waited {
        Some(Ok(mut lease)) => {
            lease.held = Some(arrived.elapsed());
            Ok(lease)
        }
        Some(Err(why)) => Err(refused(why)),
        None if Instant::now() >= wanted.deadline && !pool.is_asleep() => Err(past_deadline()),
        None if sheddable && !pool.is_asleep() => Err(refused(Refused::Shed)),
        None => Err(refused(Refused::TooLong)),
    }
}

/// A request's place in the queue, which it leaves when this is dropped.
struct Ticket<'a> {
    scheduler: &'a Scheduler,
    pool: &'a Pool,
    number: u64,
    bytes: usize,
    priority: i32,
    since: Instant,
    /// What becomes of it, by the Gateway API Inference Extension's names.
    outcome: &'static str,
}

impl<'a> Ticket<'a> {
    fn take(scheduler: &'a Scheduler, pool: &'a Pool, waiting: Waiting, first: bool, now: Duration) -> Self {
        let Wanted { class, bytes: prompt, body_bytes: bytes, .. } = waiting.wanted;
        let most = class.is_sheddable().then_some(scheduler.options.shed_after);
        let rank = Rank { class, cost: Rank::cost(prompt), bytes, most, first };
        let mut queue = pool.queue();
        let number = queue.push(waiting, rank, now);
        pool.held.store(queue.len(), Ordering::Release);
        scheduler.registry.held_bytes.fetch_add(bytes, Ordering::AcqRel);
        let (priority, since) = (class.priority, Instant::now());
        Self { scheduler, pool, number, bytes, priority, since, outcome: "EvictedContextCancelled" }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut queue = self.pool.queue();
        if queue.remove(self.number).is_some() {
            self.scheduler.registry.held_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        }
        self.pool.held.store(queue.len(), Ordering::Release);
        drop(queue);
        self.scheduler.metrics.queued(&self.pool.name, self.priority, self.outcome, self.since.elapsed());
    }
}

/// Refuses those that have the least right to wait, as long as more wait than may, beside so many guests.
fn bound(scheduler: &Scheduler, pool: &Pool, guests: usize) {
    let (options, live) = (&scheduler.options, scheduler.live());
    let most = share(options.queue_per_replica * pool.replicas.load().len().max(1), live, 1) + guests;
    // Room for the largest body there can be.
    let bytes = |all| share(all, live, defaults::MAX_BODY_BYTES);
    let (most_bytes, most_bytes_all) = (bytes(options.queue_bytes), bytes(options.queue_bytes_all));
    let of_all = &scheduler.registry.held_bytes;
    let mut refused = Vec::new();
    let mut queue = pool.queue();
    while queue.len() > most || queue.bytes() > most_bytes || of_all.load(Ordering::Acquire) > most_bytes_all
    {
        let Some((waiting, newest)) = queue.evict() else { break };
        of_all.fetch_sub(waiting.wanted.body_bytes, Ordering::AcqRel);
        refused.push((waiting.to, if newest { Refused::Full } else { Refused::Displaced }));
    }
    pool.held.store(queue.len(), Ordering::Release);
    drop(queue);
    for (to, why) in refused {
        let _ = to.send(Err(why));
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
        bound(scheduler, pool, 0);
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
    let mut views = Views::of(scheduler, pool.replicas.load_full());
    let mut room = None;
    let place = |waiting: &Waiting, patience| {
        if waiting.to.is_closed() {
            return Offer::Waits;
        }
        match place(scheduler, pool, &mut views, &waiting.wanted, &waiting.tried, patience) {
            Ok(lease) => {
                room = None;
                Offer::Placed(lease)
            }
            Err(no_room) => {
                pool.was_full.store(no_room == NoRoom::Full, Ordering::Relaxed);
                if *room.get_or_insert_with(|| views.has_room()) { Offer::Waits } else { Offer::NoRoom }
            }
        }
    };
    let mut placed = Vec::new();
    let mut queue = pool.queue();
    queue.offer(times, place, |waiting, lease| {
        scheduler.registry.held_bytes.fetch_sub(waiting.wanted.body_bytes, Ordering::AcqRel);
        placed.push((waiting.to, lease));
    });
    pool.held.store(queue.len(), Ordering::Release);
    drop(queue);
    // Out of the lock: a lease that nobody takes ends here.
    for (to, lease) in placed {
        let _ = to.send(Ok(lease));
    }
}

/// Why no replica can take a request now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// Each has all that it can take.
    Full,
    /// None is ready.
    NoneReady,
}

impl NoRoom {
    /// Why, in one word.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::NoneReady => "none_ready",
        }
    }
}

/// Chooses among the replicas as they are now, and books the choice.
fn place_at_once(
    scheduler: &Scheduler,
    pool: &Pool,
    wanted: &Wanted,
    tried: &Tried,
    patience: Patience,
) -> Result<Lease, NoRoom> {
    let mut views = Views::of(scheduler, pool.replicas.load_full());
    place(scheduler, pool, &mut views, wanted, tried, patience)
}

/// Chooses among the replicas as they were when they were looked at, and books the choice.
fn place(
    scheduler: &Scheduler,
    pool: &Pool,
    views: &mut Views<'_>,
    wanted: &Wanted,
    tried: &Tried,
    patience: Patience,
) -> Result<Lease, NoRoom> {
    let began = std::time::Instant::now();
    let mut split = pool.choosing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // Others may have been sent to it since: then the choice is made anew.
    let mut looks = LOOKS;
    loop {
        let (at, decision, track, table) = decide(scheduler, pool, views, &split, wanted, tried, patience)?;
        if views.again(at) && looks > 0 {
            looks -= 1;
            continue;
        }
        split.placed(track);
        if let Some(track) = track.filter(|_| tried.last().is_none()) {
            split.chosen(wanted.prefix.opening, track);
        }
        let took = began.elapsed();
        scheduler.metrics.picked(&pool.name, took, &decision);
        let mut lease = lease(scheduler, &views.replicas[at], wanted, decision);
        lease.chosen = Some((began, took));
        lease.table = Some(table);
        views.again(at);
        return Ok(lease);
    }
}

/// The choice, and the track that it was made on.
fn decide(
    scheduler: &Scheduler,
    pool: &Pool,
    views: &Views<'_>,
    split: &Split,
    wanted: &Wanted,
    tried: &Tried,
    patience: Patience,
) -> Result<(usize, Decision, Option<Track>, Table), NoRoom> {
    let ask = ask(scheduler, pool, wanted, patience);
    let mut candidates = views.candidates(wanted, tried);
    let rules = pool.rules.load();
    let retried = tried.last().map(Replica::track);
    // A request that failed is not split a second time.
    let track = split.choose(wanted.prefix.opening, &candidates).map(|track| retried.unwrap_or(track));
    if let Some(track) = track {
        for candidate in &mut candidates {
            candidate.eligible &= candidate.track == track;
        }
    }
    let policy = rules.policy.unwrap_or(scheduler.options.policy);
    match pick(policy, &ask, &candidates, &rules.weights, split.turn(track), scheduler.random()) {
        Outcome::Picked(at, mut decision) => {
            decision.track = rules.canary_percent.map(|_| views.replicas[at].track());
            let rows = if scheduler.journal.wants(candidates.len(), scheduler.now()) {
                views.rows(&ask, &candidates)
            } else {
                Box::default()
            };
            Ok((at, decision, track, Table { policy, weights: rules.weights, rows }))
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
    let views = Views::of(scheduler, pool.prefill.load_full());
    let mut candidates = views.candidates(wanted, &Tried::default());
    for (candidate, replica) in candidates.iter_mut().zip(views.replicas.iter()) {
        candidate.eligible &= replica.can_hand_to(answers);
    }
    let weights = pool.rules.load().weights;
    let ask = ask(scheduler, pool, wanted, Patience::default());
    match pick(Policy::Prefix, &ask, &candidates, &weights, 0, scheduler.random()) {
        Outcome::Picked(at, decision) => Ok(lease(scheduler, &views.replicas[at], wanted, decision)),
        Outcome::Saturated => Err(NoRoom::Full),
        Outcome::NoneReady => Err(NoRoom::NoneReady),
    }
}

fn lease(scheduler: &Scheduler, replica: &Arc<Replica>, wanted: &Wanted, decision: Decision) -> Lease {
    if let Some(adapter) = &wanted.wishes.adapter {
        replica.loads(adapter);
    }
    replica.lease(decision, &wanted.prefix, wanted.bytes, &scheduler.registry.changed, scheduler.now())
}

pub(crate) fn ask(scheduler: &Scheduler, pool: &Pool, wanted: &Wanted, patience: Patience) -> Ask {
    let aims = pool.rules.load().objectives;
    let or = |ms: Option<u64>, otherwise: Duration| ms.map_or(otherwise, Duration::from_millis).as_secs_f64();
    Ask {
        blocks: wanted.prefix.blocks.len(),
        bytes: wanted.bytes,
        aims: Objectives {
            first_token: or(aims.ttft_ms, scheduler.options.first_token_objective),
            inter_token: or(aims.tpot_ms, scheduler.options.inter_token_objective),
        },
        patience,
        lean: wanted.wishes.lean(pool, &wanted.prefix),
    }
}
