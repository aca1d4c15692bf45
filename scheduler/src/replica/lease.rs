//! A request under way at a replica, by the books.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::{Replica, UNTOLD};
use crate::journal::Table;
use crate::pick::Decision;

/// What a request says of the replica that it was sent to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// It answered.
    Worked,
    /// It answered with an error of its own, too late, or not to the end. With a number from 0 to 1, by
    /// chance.
    Failed(f64),
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
    pub(super) tokens: f64,
    /// What it does not count for among the sequences that run.
    pub(super) brief: f64,
    pub(super) spared: f64,
    pub(super) id: u64,
    pub(super) bytes: usize,
    pub(super) pending: bool,
    /// Whether its replica's breaker waits for what comes of it.
    pub(super) probe: AtomicBool,
    /// Whether it was counted there as answered.
    pub(super) worked: AtomicBool,
    pub(super) process: u64,
    pub(super) sent: Duration,
    /// Prompt tokens that its replica had to compute before its first token.
    pub(super) ahead: f64,
    /// When the choice was made, and how long it took; `None` of a prefill replica.
    pub chosen: Option<(std::time::Instant, Duration)>,
    /// How long the request was held until then, where it was.
    pub held: Option<Duration>,
    /// What the choice was made from, until it is noted.
    pub table: Option<Table>,
    pub(super) changed: Arc<Notify>,
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

    /// What came of it, for the replica's breaker. Returns whether the breaker opened by it. What was sent
    /// to a process that is gone says nothing of the one that is there.
    pub fn says(&self, verdict: Verdict, now: Duration) -> bool {
        let probe = self.probe.swap(false, Ordering::Relaxed);
        let mut inner = self.replica.lock();
        if inner.process != self.process {
            return false;
        }
        match verdict {
            Verdict::Worked => {
                self.worked.store(true, Ordering::Relaxed);
                inner.breaker.worked(probe, now);
                false
            }
            Verdict::Failed(chance) if self.worked.load(Ordering::Relaxed) => {
                inner.breaker.broke(now, chance)
            }
            Verdict::Failed(chance) => inner.breaker.failed(probe, now, chance),
        }
    }

    /// Its first token has come: what that took is learnt.
    pub fn first_token(&self, now: Duration) {
        // Of a prompt that was computed elsewhere it says nothing.
        if self.spared > 0.0 {
            return;
        }
        let seconds = now.saturating_sub(self.sent).as_secs_f64();
        let mut inner = self.replica.lock();
        if inner.process == self.process {
            inner.learnt.first_token.observe(self.ahead, seconds);
        }
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
        let mut inner = self.replica.lock();
        inner.own.in_flight -= 1;
        inner.brief = if inner.own.in_flight == 0 { 0.0 } else { (inner.brief - self.brief).max(0.0) };
        if *self.probe.get_mut() && inner.process == self.process {
            inner.breaker.left(true, self.sent);
        }
        drop(inner);
        self.changed.notify_waiters();
    }
}
