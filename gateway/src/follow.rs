//! Takes a new state over, and follows the run-time keys.
//!
//! Where limits change, the counters are made again from the ledger, which takes time. What a new state
//! takes away it takes away before that, even while counters are still being made for the one before;
//! what it grants it grants after, so that nobody new comes in before their limits count.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::directory::Directory;
use crate::gateway::{Gateway, Inner};
use crate::keys::KeyRing;
use crate::ledger::LedgerError;

/// Pause between two looks at the version of the keys: with reading them, well within the second in
/// which a revocation must hold.
const KEYS_EVERY: Duration = Duration::from_millis(100);

/// The states on the way to being in force.
#[derive(Debug)]
pub(crate) struct Pending {
    /// The newest.
    wanted: ArcSwap<Directory>,
    /// The one for which the counters were made.
    counted: ArcSwap<Directory>,
    /// Held while counters are made.
    counting: Mutex<()>,
}

impl Pending {
    /// Nothing: this one is in force.
    pub(crate) fn none(in_force: &Arc<Directory>) -> Self {
        Self {
            wanted: ArcSwap::new(in_force.clone()),
            counted: ArcSwap::new(in_force.clone()),
            counting: Mutex::new(()),
        }
    }
}

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

/// Judges requests by `directory` from here on, as far as that needs no new counters, and returns whether
/// all of it is in force. If not, [`count`] is to be called.
pub(crate) fn judge_by(inner: &Inner, directory: Arc<Directory>) -> Result<bool, LedgerError> {
    let _one_at_a_time = inner.replacing.lock().unwrap_or_else(PoisonError::into_inner);
    let ring = KeyRing::new(inner.keys.stored()?, &directory.keys);
    inner.ring.store(Arc::new(ring));
    inner.pending.wanted.store(directory);
    Ok(put_in_force(inner))
}

/// Puts the newest state in force as far as the counters go, under `inner.replacing`.
fn put_in_force(inner: &Inner) -> bool {
    let (wanted, counted) = (inner.pending.wanted.load_full(), inner.pending.counted.load_full());
    let whole = wanted.counts_like(&counted);
    let in_force = if whole { wanted } else { Arc::new(wanted.without_newcomers(&counted)) };
    inner.directory.store(in_force);
    whole
}

/// Makes the counters for the newest state, until all of it is in force.
pub(crate) fn count(inner: &Inner) -> Result<(), LedgerError> {
    let _one_at_a_time = inner.pending.counting.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let wanted = inner.pending.wanted.load_full();
        inner.accounts.apply(&wanted)?;
        let _one_at_a_time = inner.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        inner.pending.counted.store(wanted);
        if put_in_force(inner) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use strata_kinds::manifest;

    use super::*;
    use crate::clock::Clock;
    use crate::keys::KeyHash;
    use crate::manifests::Manifests;
    use crate::options::{GatewayOptions, Source};

    const TENANT: &str = "apiVersion: strata.dev/v1alpha1\nkind: Tenant\nmetadata: {name: acme}\n\
        spec: {models: [\"*\"], apiKeys: [{name: a, secretRef: {name: s}}]}\n---\n";
    const POLICY: &str = "apiVersion: strata.dev/v1alpha1\nkind: QuotaPolicy\nmetadata: {name: p}\n\
        spec: {concurrency: {requests: 3}}\n---\n";

    fn directory(manifests: &str) -> Arc<Directory> {
        let folder = manifest::from_texts(vec![("a.yaml".to_owned(), manifests.to_owned())]);
        assert_eq!(folder.problems, []);
        Arc::new(Directory::new(&Manifests::of_folder(&folder)).0)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_taken_away_does_not_wait_for_counters() {
        let hash = KeyHash::of("k", "x").to_text();
        let secret = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\nstringData: {{id: k, hash: \"{hash}\"}}\n---\n"
        );
        let newcomer = TENANT.replace("acme", "newcomer").replace("name: s}", "name: t}");
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("a.yaml"), format!("{TENANT}{secret}")).unwrap();
        let options = GatewayOptions {
            source: Source::Folder {
                upstream: "http://127.0.0.1:9".to_owned(),
                folder: temp.path().to_owned(),
            },
            listen: String::new(),
            internal_listen: None,
            state: temp.path().join("state/l.db"),
            hop_token: None,
            mtls: None,
            grace: Duration::ZERO,
            adopt_local: None,
        };
        let gateway = Gateway::start(&options, Clock::System).await.unwrap();
        let inner = gateway.0.clone();
        let works = || inner.ring.load().authenticate("sk-strata-k_x", 0).is_ok();
        let known = |name: &str| inner.directory.load().tenant(name).is_some();
        assert!(works() && known("acme"));

        let held = inner.accounts.hold();
        let grown = directory(&format!("{TENANT}{secret}{POLICY}{newcomer}"));
        assert!(!judge_by(&inner, grown).unwrap(), "it needs counters");
        let worker = inner.clone();
        let counting = std::thread::spawn(move || count(&worker));
        assert!(works() && known("acme") && !known("newcomer"));
        // Meanwhile the key is revoked, and then its tenant is deleted.
        judge_by(&inner, directory(&format!("{TENANT}{POLICY}{newcomer}"))).unwrap();
        assert!(!works() && known("acme"));
        judge_by(&inner, directory(&format!("{POLICY}{newcomer}"))).unwrap();
        assert!(!known("acme") && !known("newcomer"));
        drop(held);
        counting.join().unwrap().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !known("newcomer") {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        assert!(!known("acme") && inner.directory.load().sizes().2 == 1);
        gateway.stop().await;
    }
}
