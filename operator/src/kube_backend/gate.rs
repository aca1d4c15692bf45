//! Who may write: the leader, while it is one.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The permission to write to the API server. It is looked at at the moment of every write, and runs
/// out by itself: a process that was stopped for a while and wakes up as a leader of the past finds it
/// shut.
#[derive(Debug)]
pub(super) struct Gate {
    term: Mutex<Option<Term>>,
    leads: watch::Sender<bool>,
}

#[derive(Clone, Debug)]
struct Term {
    /// `None` where nobody else can lead.
    until: Option<Instant>,
    over: CancellationToken,
}

impl Gate {
    /// Shut.
    pub(super) fn new() -> Self {
        Self { term: Mutex::new(None), leads: watch::Sender::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Term>> {
        self.term.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens it, or keeps it open, until a time.
    pub(super) fn open(&self, until: Option<Instant>) {
        let mut term = self.lock();
        match term.as_mut() {
            Some(term) => term.until = until,
            None => *term = Some(Term { until, over: CancellationToken::new() }),
        }
        drop(term);
        self.leads.send_if_modified(|leads| !std::mem::replace(leads, true));
    }

    /// Shuts it, and stops every write that is on its way.
    pub(super) fn shut(&self) {
        if let Some(term) = self.lock().take() {
            term.over.cancel();
        }
        self.leads.send_if_modified(|leads| std::mem::replace(leads, false));
    }

    /// The permission, while there is one: cancelled when it ends.
    pub(super) fn pass(&self, now: Instant) -> Option<CancellationToken> {
        let term = self.lock();
        let term = term.as_ref()?;
        term.until.is_none_or(|until| now < until).then(|| term.over.clone())
    }

    /// Changes when this process begins or ceases to lead.
    pub(super) fn leads(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_term_runs_out_by_itself() {
        let (gate, now) = (Gate::new(), Instant::now());
        assert!(gate.pass(now).is_none());
        gate.open(Some(now + Duration::from_secs(10)));
        let pass = gate.pass(now).unwrap();
        assert!(gate.pass(now + Duration::from_secs(10)).is_none(), "nobody renewed it");
        gate.open(Some(now + Duration::from_secs(12)));
        assert!(gate.pass(now + Duration::from_secs(10)).is_some());
        assert!(!pass.is_cancelled());
        gate.shut();
        assert!(pass.is_cancelled() && gate.pass(now).is_none());
        gate.open(None);
        assert!(gate.pass(now + Duration::from_secs(1_000_000)).is_some());
    }
}
