//! One kind's changes, for ever: lists, watches, and begins again after whatever goes wrong.

use std::pin::Pin;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt};

use super::object::Readable;
use crate::discovery::Change;
use crate::scheduler::Scheduler;

/// The pause after the first failure; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause. An API server that restarts is soon back, and meanwhile pods that are deleted are
/// still routed to.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Failures this long ago are forgotten.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// After so many failures in a row a watch is not resumed but begun with a new list: where it was may
/// be a place that the server does not know (it was restored from a backup).
const GIVE_UP_RESUMING: u32 = 5;

/// The changes of the objects of one kind. Never ends.
pub(super) fn changes<K: Readable>(
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    missing_pause: Duration,
    scheduler: Scheduler,
) -> impl Stream<Item = Change<K::Plain>> + Send {
    let following = Following {
        api,
        config,
        missing_pause,
        scheduler,
        events: None,
        failures: Failures::default(),
        is_missing: false,
    };
    futures::stream::unfold(following, |mut following| async move {
        let change = following.next().await;
        Some((change, following))
    })
}

type Events<K> = Pin<Box<dyn Stream<Item = watcher::Result<Event<DeserializeGuard<K>>>> + Send>>;

struct Following<K: Readable> {
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    /// How long a kind that may be missing is not asked for again.
    missing_pause: Duration,
    scheduler: Scheduler,
    /// The list and watch under way; `None` to begin with a new list.
    events: Option<Events<K>>,
    failures: Failures,
    /// Whether the cluster has been found to lack the kind, which has been said.
    is_missing: bool,
}

impl<K: Readable> Following<K> {
    async fn next(&mut self) -> Change<K::Plain> {
        loop {
            let events = self
                .events
                .get_or_insert_with(|| Box::pin(watcher::watcher(self.api.clone(), self.config.clone())));
            match events.next().await {
                Some(Ok(event)) => {
                    // That a list begins says nothing of whether the server answers.
                    if !matches!(event, Event::Init) && self.failures.end() {
                        tracing::info!(kind = K::KIND, "the Kubernetes API answers again");
                    }
                    if !matches!(event, Event::Init) && std::mem::take(&mut self.is_missing) {
                        tracing::info!(kind = K::KIND, "the cluster has this kind now");
                    }
                    return self.read(event);
                }
                Some(Err(error)) if K::OPTIONAL && is_missing(&error) => {
                    if !std::mem::replace(&mut self.is_missing, true) {
                        tracing::info!(
                            kind = K::KIND,
                            why = %reason(&error),
                            "the cluster lacks this kind, or does not let it be read; it is done without"
                        );
                    }
                    self.events = None;
                    tokio::time::sleep(self.missing_pause).await;
                }
                Some(Err(error)) => self.failed(&error).await,
                None => self.events = None,
            }
        }
    }

    async fn failed(&mut self, error: &watcher::Error) {
        self.scheduler.metrics.watch_failed(K::KIND);
        let in_a_row = self.failures.add(Instant::now());
        let pause = pause(in_a_row, self.scheduler.random());
        if in_a_row == 1 || in_a_row.is_power_of_two() {
            tracing::warn!(
                kind = K::KIND,
                error = %reason(error),
                in_a_row,
                "cannot read from the Kubernetes API; the last state stays in force"
            );
        }
        if is_expired(error) || in_a_row.is_multiple_of(GIVE_UP_RESUMING) {
            self.events = None;
        }
        tokio::time::sleep(pause).await;
    }

    fn read(&self, event: Event<DeserializeGuard<K>>) -> Change<K::Plain> {
        match event {
            Event::Init => Change::Begin,
            Event::InitDone => Change::Whole,
            Event::Delete(object) => Change::Gone(object.name_any()),
            Event::InitApply(object) => self.object(object, Change::Listed, Change::ListedMalformed),
            Event::Apply(object) => self.object(object, Change::Set, Change::Malformed),
        }
    }

    fn object<C>(
        &self,
        object: DeserializeGuard<K>,
        good: impl FnOnce(String, K::Plain) -> C,
        malformed: impl FnOnce(String) -> C,
    ) -> C {
        let name = object.name_any();
        match object.0 {
            Ok(object) => good(name, object.plain()),
            Err(invalid) => {
                self.scheduler.metrics.malformed(K::KIND);
                tracing::warn!(
                    kind = K::KIND,
                    name,
                    error = %invalid.error,
                    "cannot read this object; its last good state stays in force, and others are not concerned"
                );
                malformed(name)
            }
        }
    }
}

/// Failures in a row.
#[derive(Debug, Default)]
struct Failures {
    in_a_row: u32,
    last: Option<Instant>,
}

impl Failures {
    /// Another one, `now`. Returns how many there are.
    fn add(&mut self, now: Instant) -> u32 {
        if self.last.is_some_and(|last| now.duration_since(last) > FORGOTTEN) {
            self.in_a_row = 0;
        }
        self.last = Some(now);
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.in_a_row
    }

    /// No more. Returns whether there were any.
    fn end(&mut self) -> bool {
        std::mem::take(self).in_a_row > 0
    }
}

/// How long to wait after so many failures in a row: doubling, and spread by `random` over the half
/// below and above, so that not all schedulers of a cluster come back at once.
fn pause(in_a_row: u32, random: u64) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << in_a_row.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
    let spread = 0.5 + (random >> 11) as f64 / (1u64 << 53) as f64;
    doubled.mul_f64(spread).min(LONGEST_PAUSE)
}

/// Whether the place from which to watch is no longer known to the server, so that only a new list
/// helps. As an event of a watch the watcher sees to it itself; as the answer to one it does not.
fn is_expired(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 410,
        _ => false,
    }
}

/// Whether the kind is not there, or may not be read.
fn is_missing(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => [403, 404].contains(&status.code),
        _ => false,
    }
}

/// The innermost cause, which is what one can act on; with what to do where that is known.
fn reason(error: &watcher::Error) -> String {
    let (watcher::Error::InitialListFailed(cause)
    | watcher::Error::WatchStartFailed(cause)
    | watcher::Error::WatchFailed(cause)) = error
    else {
        return error.to_string();
    };
    match cause {
        kube::Error::Api(status) if status.code == 404 => {
            format!("{status}; install the definitions with the chart strata-crds")
        }
        kube::Error::Api(status) if status.code == 403 => {
            format!("{status}; the scheduler's Role must allow list and watch")
        }
        other => {
            let mut cause: &dyn std::error::Error = other;
            while let Some(next) = cause.source() {
                cause = next;
            }
            format!("{error}: {cause}")
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pauses_grow_and_are_bounded(in_a_row in 1u32..10_000, random: u64) {
            let pause = pause(in_a_row, random);
            prop_assert!(pause >= FIRST_PAUSE / 2 && pause <= LONGEST_PAUSE);
            if in_a_row > 8 {
                prop_assert!(pause >= LONGEST_PAUSE / 2);
            }
        }
    }

    #[test]
    fn failures_are_forgotten() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        assert!(!failures.end());
        assert_eq!((failures.add(start), failures.add(start)), (1, 2));
        assert_eq!(failures.add(start + FORGOTTEN * 2), 1);
        assert!(failures.end() && !failures.end());
    }
}
