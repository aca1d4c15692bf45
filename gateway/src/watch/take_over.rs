//! From what was read to what is in force.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::lock;
use crate::directory::{Directory, Told};
use crate::follow::{self, pause};
use crate::gateway::Inner;
use crate::ledger::LedgerError;

/// How long a change waits for others, to be taken over with them.
const COALESCE: Duration = Duration::from_millis(20);
/// Pause after the ledger did not take a change.
const AGAIN: Duration = Duration::from_secs(1);

/// Takes changes over as they come, once everything was listed.
pub(super) async fn changes(inner: Arc<Inner>) {
    let Some(watched) = &inner.watched else { return };
    loop {
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = watched.changed.notified() => {}
        }
        if !watched.is_complete() {
            continue;
        }
        if !pause(&inner, COALESCE).await {
            return;
        }
        let work = inner.clone();
        match tokio::task::spawn_blocking(move || rebuild(&work)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "could not take over a change; it is tried again");
                if !pause(&inner, AGAIN).await {
                    return;
                }
                watched.changed.notify_one();
            }
            Err(error) => tracing::error!(%error, "could not take over a change"),
        }
    }
}

/// Makes a state of everything that was read, and puts it in force as far as its counters go.
fn rebuild(inner: &Inner) -> Result<(), LedgerError> {
    let Some(watched) = &inner.watched else { return Ok(()) };
    let directory = {
        let seen = lock(&watched.seen);
        let (mut directory, problems) = Directory::new(&seen.manifests());
        directory.objects = seen.objects(&problems);
        directory
    };
    {
        let mut told = lock(&watched.told);
        warn_of_new(inner, "Tenant", &directory.objects.tenants, &told.tenants);
        warn_of_new(inner, "QuotaPolicy", &directory.objects.policies, &told.policies);
        *told = directory.objects.clone();
    }
    if follow::judge_by(inner, Arc::new(directory))? {
        watched.is_in_force(inner);
    } else {
        watched.uncounted.notify_one();
    }
    Ok(())
}

/// Makes counters, beside the changes that go on coming.
pub(super) async fn counters(inner: Arc<Inner>) {
    let Some(watched) = &inner.watched else { return };
    loop {
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = watched.uncounted.notified() => {}
        }
        let work = inner.clone();
        match tokio::task::spawn_blocking(move || follow::count(&work)).await {
            Ok(Ok(())) => watched.is_in_force(&inner),
            Ok(Err(error)) => {
                tracing::error!(%error, "could not make the counters for a change; it is tried again");
                if !pause(&inner, AGAIN).await {
                    return;
                }
                watched.uncounted.notify_one();
            }
            Err(error) => tracing::error!(%error, "could not make the counters for a change"),
        }
    }
}

fn warn_of_new(inner: &Inner, kind: &str, now: &[Told], before: &[Told]) {
    let known: BTreeMap<&str, &Told> = before.iter().map(|k| (k.name.as_str(), k)).collect();
    for object in now {
        let told = known.get(object.name.as_str()).map(|k| k.problems.as_slice()).unwrap_or_default();
        for problem in object.problems.iter().filter(|p| !told.contains(p)) {
            inner.metrics.config_rejected.inc();
            tracing::warn!(
                kind,
                object = object.name,
                problem,
                in_force = object.in_force,
                "an object does not take full effect"
            );
        }
    }
}
