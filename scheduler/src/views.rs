//! The replicas of a model as they are at one moment, looked at once for all that look for a place among
//! them.

use std::sync::Arc;
use std::time::Duration;

use crate::choose::{Tried, Wanted, ask};
use crate::journal::Row;
use crate::pick::{Ask, Candidate, Parts, Patience, Standing, admit, table};
use crate::registry::Pool;
use crate::replica::{Lease, Replica, View};
use crate::scheduler::Scheduler;

/// Replicas, and how they stood.
pub(crate) struct Views<'s> {
    scheduler: &'s Scheduler,
    pub(crate) replicas: Arc<Vec<Arc<Replica>>>,
    at_a_glance: Vec<View>,
    now: Duration,
    stale: Duration,
}

impl<'s> Views<'s> {
    pub(crate) fn of(scheduler: &'s Scheduler, replicas: Arc<Vec<Arc<Replica>>>) -> Self {
        let (now, stale) = (scheduler.now(), scheduler.options.stale_after());
        let at_a_glance = replicas.iter().map(|replica| replica.glance(now, stale)).collect();
        Self { scheduler, replicas, at_a_glance, now, stale }
    }

    /// Looks at one again. Returns whether it can take less than before.
    pub(crate) fn again(&mut self, at: usize) -> bool {
        let view = self.replicas[at].glance(self.scheduler.now(), self.stale);
        let before = std::mem::replace(&mut self.at_a_glance[at], view);
        let same = |view: &View| (view.ready, view.epoch, view.standing.gate);
        same(&before) != same(&view) || view.load.in_flight > before.load.in_flight
    }

    /// They as a request chooses from them.
    pub(crate) fn candidates(&self, wanted: &Wanted, tried: &Tried) -> Vec<Candidate<'_>> {
        let found = self.scheduler.registry.blocks.find(&wanted.prefix.blocks);
        let mut candidates = self.plain();
        for ((candidate, view), replica) in candidates.iter_mut().zip(&self.at_a_glance).zip(&*self.replicas)
        {
            candidate.cached = replica.cached(view, &wanted.prefix, &found, self.now);
            let lacks = (wanted.bytes as f64 / view.bytes_per_token - candidate.cached.worth).max(0.0);
            let ahead = view.load.waiting_tokens + lacks;
            candidate.forecast = view.learnt.forecast(ahead, view.load.running.unwrap_or(0.0) + 1.0);
            candidate.adapter = wanted.wishes.adapter.as_deref().map(|adapter| replica.fit(adapter));
            candidate.eligible &= !tried.excludes(replica, view.epoch);
            candidate.eligible &= wanted.subset.as_ref().is_none_or(|subset| subset.has(replica));
        }
        self.admit(&mut candidates);
        candidates
    }

    /// They, as they stand in a choice.
    pub(crate) fn rows(&self, ask: &Ask, candidates: &[Candidate<'_>]) -> Box<[Row]> {
        let row =
            |((candidate, replica), (parts, open)): ((&Candidate<'_>, &Arc<Replica>), (Parts, bool))| Row {
                endpoint: Arc::clone(replica.endpoint()),
                eligible: candidate.eligible,
                open,
                parts,
                load: candidate.load,
                cached: candidate.cached,
                forecast: candidate.forecast,
            };
        candidates.iter().zip(&*self.replicas).zip(table(ask, candidates)).map(row).collect()
    }

    /// Whether any can take a request, whichever that is.
    pub(crate) fn has_room(&self) -> bool {
        let mut candidates = self.plain();
        self.admit(&mut candidates);
        candidates.iter().any(Candidate::is_open)
    }

    fn plain(&self) -> Vec<Candidate<'_>> {
        self.replicas.iter().zip(&self.at_a_glance).map(|(replica, view)| replica.candidate(view)).collect()
    }

    fn admit(&self, candidates: &mut [Candidate<'_>]) {
        let standings: Vec<Standing> = self.at_a_glance.iter().map(|view| view.standing).collect();
        admit(candidates, &standings, self.scheduler.options.slow_start);
    }
}

/// Where a request may go next that was sent to the replica of this lease, if that fails it: so many at most,
/// the best first, of the same track.
pub(crate) fn next_best(
    scheduler: &Scheduler,
    pool: &Pool,
    wanted: &Wanted,
    first: &Lease,
    count: usize,
) -> Vec<Arc<Replica>> {
    if count == 0 {
        return Vec::new();
    }
    let views = Views::of(scheduler, pool.replicas.load_full());
    let mut candidates = views.candidates(wanted, &Tried::default());
    let track = first.decision.track;
    for (candidate, replica) in candidates.iter_mut().zip(&*views.replicas) {
        let other = !Arc::ptr_eq(replica, &first.replica);
        candidate.eligible &= other && track.is_none_or(|track| replica.track() == track);
    }
    let weights = pool.rules.load().weights;
    let asked = ask(scheduler, pool, wanted, Patience::default());
    let scored = table(&asked, &candidates).zip(&*views.replicas);
    let mut open: Vec<(f64, &Arc<Replica>)> = scored
        .filter(|((_, open), _)| *open)
        .map(|((parts, _), replica)| (parts.score(&weights), replica))
        .collect();
    open.sort_by(|a, b| b.0.total_cmp(&a.0));
    open.into_iter().take(count).map(|(_, replica)| Arc::clone(replica)).collect()
}
