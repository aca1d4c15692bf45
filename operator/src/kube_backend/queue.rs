//! The schedule, shared by those who point at items and by the workers.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::backoff;
use super::key::Item;
use super::schedule::{Lane, Outcome, Schedule};

#[derive(Debug, Default)]
pub(super) struct Queue {
    schedule: Mutex<Schedule>,
    changed: Notify,
}

/// How full a queue is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Depth {
    pub(super) waiting: usize,
    pub(super) running: usize,
    pub(super) failing: usize,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn poke(&self, item: Item, lane: Lane) {
        self.lock().poke(item, lane, Instant::now());
        self.changed.notify_one();
    }

    /// Starts nothing for a while: the API server asked for it.
    pub(super) fn pause(&self, wait: Duration) {
        self.lock().pause(Instant::now() + wait);
    }

    /// The next item, when there is one, with the time that it has waited.
    pub(super) async fn next(&self) -> (Item, Duration) {
        loop {
            let wake_at = {
                let mut schedule = self.lock();
                if let Some(next) = schedule.next(Instant::now()) {
                    // There may be more, for another worker.
                    self.changed.notify_one();
                    return next;
                }
                schedule.wake_at()
            };
            let changed = self.changed.notified();
            match wake_at {
                Some(at) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(at.into()) => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    /// Takes an item back. Returns its failures in a row.
    pub(super) fn finish(&self, item: &Item, outcome: Outcome) -> u32 {
        let failures = self.lock().finish(item, outcome, backoff::chance(), Instant::now());
        self.changed.notify_one();
        failures
    }

    /// Forgets what waits.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    pub(super) fn depth(&self) -> Depth {
        let schedule = self.lock();
        Depth { waiting: schedule.depth(), running: schedule.running(), failing: schedule.failing() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn workers_share_what_comes_and_wake_for_deadlines() {
        let queue = Arc::new(Queue::default());
        let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..3 {
            let (queue, sender) = (queue.clone(), sender.clone());
            tokio::spawn(async move {
                loop {
                    let (item, _) = queue.next().await;
                    queue.finish(&item, Outcome::Done(None));
                    sender.send(item).unwrap();
                }
            });
        }
        tokio::task::yield_now().await;
        for n in 0..50 {
            queue.poke(Item::Namespace(n.to_string()), Lane::Bulk);
        }
        let mut all = Vec::new();
        for _ in 0..50 {
            all.push(seen.recv().await.unwrap());
        }
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 50);
    }
}
