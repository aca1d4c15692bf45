//! The workers: take an item, reconcile it, give it back, while this process leads.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use super::gate::Gate;
use super::metrics::Metrics;
use super::schedule::{Lane, Outcome};
use super::shell::{Failure, Shell};
use super::watch::Filling;

/// Items that are reconciled at once.
pub(super) const WORKERS: usize = 16;

/// One worker.
pub(super) struct Worker {
    pub(super) shell: Arc<Shell>,
    pub(super) gate: Arc<Gate>,
    pub(super) metrics: Arc<Metrics>,
}

impl Worker {
    /// Works until `shutdown`; what has begun is finished.
    pub(super) async fn run(&self, shutdown: &CancellationToken) {
        let mut leads = self.gate.leads();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                led = leads.wait_for(|leads| *leads) => if led.is_err() { return },
            }
            let next = tokio::select! {
                () = shutdown.cancelled() => return,
                _ = leads.changed() => continue,
                next = self.shell.queue.next() => next,
            };
            let (item, waited) = next;
            let kind = item.kind();
            self.metrics.waited(kind, waited);
            let begun = Instant::now();
            // An item that hits a fault of ours must stop only itself: it is told, and tried ever more seldom.
            let result = AssertUnwindSafe(self.shell.reconcile(&item)).catch_unwind().await;
            let result = result.unwrap_or_else(|_| {
                Err(Failure::Refused {
                    what: "a fault of the operator".to_owned(),
                    message: "it panicked; the log above says where".to_owned(),
                    again: None,
                })
            });
            let took = begun.elapsed();
            let (outcome, word) = match &result {
                Ok(again) => (Outcome::Done(*again), "ok"),
                Err(Failure::NotLeader) => (Outcome::Done(None), "not_leader"),
                Err(Failure::Refused { again, .. }) => (Outcome::Failed(*again), "failed"),
            };
            self.metrics.reconciled(kind, word, took);
            let failures = self.shell.queue.finish(&item, outcome);
            if let Err(Failure::Refused { what, message, .. }) = result {
                tracing::warn!(kind, object = %item, failures, what, message, "could not be reconciled; tried again later");
            } else {
                let took_ms = took.as_millis() as u64;
                tracing::debug!(kind, object = %item, result = word, took_ms, "reconciled");
            }
        }
    }
}

/// Whenever this process begins to lead, all is looked at: another may have led meanwhile.
pub(super) async fn begin_terms(shell: &Shell, gate: &Gate, filling: &Filling) {
    let mut leads = gate.leads();
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        filling.full().await;
        shell.applier.forget_all();
        shell.queue.clear();
        shell.poke_all(Lane::Bulk);
        if leads.wait_for(|leads| !*leads).await.is_err() {
            return;
        }
    }
}

/// Waits until no worker writes any more, at most `patience`.
pub(super) async fn idle(shell: &Shell, patience: Duration) {
    let end = Instant::now() + patience;
    while shell.queue.depth().running > 0 && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
