//! Follows the folder of manifests and the run-time keys.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use strata_kinds::manifest::{self, Folder, Problem, fingerprint};

use crate::directory::Directory;
use crate::gateway::{Gateway, Inner};
use crate::keys::KeyRing;
use crate::ledger::LedgerError;
use crate::options::GatewayError;

/// Pause between two looks at the folder.
const FOLDER_EVERY: Duration = Duration::from_millis(200);
/// Pause between two looks at the version of the keys: with reading them, well within the second in
/// which a revocation must hold.
const KEYS_EVERY: Duration = Duration::from_millis(100);

/// Reads the folder for the first time. What is wrong with who may call, or how much, is an error: a
/// limit that was silently left out would be no limit. A broken model is its operator's business.
pub(crate) fn first(path: &Path) -> Result<(Folder, Directory), GatewayError> {
    let folder = manifest::load(path);
    let (models, mut fatal): (Vec<&Problem>, Vec<&Problem>) =
        folder.problems.iter().partition(|p| p.object.as_ref().is_some_and(|o| o.kind == "ModelDeployment"));
    for problem in models {
        tracing::warn!(%problem, "left a manifest out");
    }
    let (directory, problems) = Directory::new(&folder);
    let problems: Vec<String> = fatal.drain(..).map(ToString::to_string).chain(problems).collect();
    if problems.is_empty() {
        Ok((folder, directory))
    } else {
        Err(GatewayError::Manifests { folder: path.to_owned(), problems })
    }
}

/// Starts to follow both.
pub(crate) fn spawn(gateway: &Gateway) {
    let inner = gateway.0.clone();
    let seen = fingerprint(&inner.folder);
    gateway.0.tasks.spawn(follow_folder(inner, seen));
    let inner = gateway.0.clone();
    gateway.0.tasks.spawn(follow_keys(inner));
}

async fn pause(inner: &Inner, time: Duration) -> bool {
    tokio::select! {
        () = inner.stop.cancelled() => false,
        () = tokio::time::sleep(time) => true,
    }
}

async fn follow_folder(inner: Arc<Inner>, mut seen: u64) {
    while pause(&inner, FOLDER_EVERY).await {
        let work = inner.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let now = fingerprint(&work.folder);
            // What could not be written down is tried again; what cannot be used is not.
            if now == seen || reload_folder(&work) { now } else { seen }
        });
        if let Ok(now) = looked.await {
            seen = now;
        }
    }
}

/// Takes an edit over: whole, or not at all. Objects that the edit broke stay as they were. `false` when
/// the ledger failed, so that the same edit may go well later.
fn reload_folder(inner: &Inner) -> bool {
    let mut last = inner.replacing.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = manifest::keep_last_good(&last, manifest::load(&inner.folder));
    for problem in &folder.problems {
        inner.metrics.config_rejected.inc();
        tracing::error!(%problem, "a manifest is broken; its last good state stays in force");
    }
    let (directory, problems) = Directory::new(&folder);
    if !problems.is_empty() {
        inner.metrics.config_rejected.inc();
        tracing::error!(
            problems = problems.join("; "),
            "an edit cannot be used; the last good state stays in force"
        );
        return true;
    }
    match replace(inner, directory) {
        Ok(()) => {
            let (tenants, models, rules) = inner.directory.load().sizes();
            tracing::info!(tenants, models, rules, "took over edited manifests");
            *last = folder;
            true
        }
        Err(error) => {
            tracing::error!(%error, "could not take over edited manifests; the last good state stays in force");
            false
        }
    }
}

fn replace(inner: &Inner, directory: Directory) -> Result<(), LedgerError> {
    let ring = KeyRing::new(inner.keys.stored()?, &directory.keys);
    inner.accounts.apply(&directory)?;
    inner.directory.store(Arc::new(directory));
    inner.ring.store(Arc::new(ring));
    Ok(())
}

async fn follow_keys(inner: Arc<Inner>) {
    while pause(&inner, KEYS_EVERY).await {
        let work = inner.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || work.refresh_keys()).await {
            tracing::error!(%error, "could not read the keys; those known stay in force");
        }
    }
}
