//! Takes a new state over, and follows the run-time keys.

use std::sync::Arc;
use std::time::Duration;

use crate::directory::Directory;
use crate::gateway::{Gateway, Inner};
use crate::keys::KeyRing;
use crate::ledger::LedgerError;

/// Pause between two looks at the version of the keys: with reading them, well within the second in
/// which a revocation must hold.
const KEYS_EVERY: Duration = Duration::from_millis(100);

/// Starts to follow the run-time keys.
pub(crate) fn keys(gateway: &Gateway) {
    gateway.0.tasks.spawn(follow_keys(gateway.0.clone()));
}

/// Waits, unless the gateway stops: `false` then.
pub(crate) async fn pause(inner: &Inner, time: Duration) -> bool {
    tokio::select! {
        () = inner.stop.cancelled() => false,
        () = tokio::time::sleep(time) => true,
    }
}

async fn follow_keys(inner: Arc<Inner>) {
    while pause(&inner, KEYS_EVERY).await {
        let work = inner.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || work.refresh_keys()).await {
            tracing::error!(%error, "could not read the keys; those known stay in force");
        }
    }
}

/// Judges requests by `directory` from here on. The caller holds `inner.replacing`.
///
/// Where limits change, the counters are made again from the ledger, which takes time. What the new
/// state takes away it takes away before that; what it grants it grants after, so that nobody new comes
/// in before their limits count.
pub(crate) fn replace(inner: &Inner, directory: Directory) -> Result<(), LedgerError> {
    let ring = KeyRing::new(inner.keys.stored()?, &directory.keys);
    let current = inner.directory.load_full();
    inner.ring.store(Arc::new(ring));
    if !directory.counts_like(&current) {
        inner.directory.store(Arc::new(directory.without_newcomers(&current)));
        inner.accounts.apply(&directory)?;
    }
    inner.directory.store(Arc::new(directory));
    Ok(())
}
