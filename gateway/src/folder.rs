//! Follows a folder of manifests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use strata_kinds::manifest::{self, Folder, Problem, fingerprint};

use crate::directory::Directory;
use crate::follow::{self, pause};
use crate::gateway::{Gateway, Inner};
use crate::manifests::Manifests;
use crate::options::GatewayError;

/// Pause between two looks at the folder.
const FOLDER_EVERY: Duration = Duration::from_millis(200);

/// Reads the folder for the first time. What is wrong with who may call, or how much, is an error: a
/// limit that was silently left out would be no limit. A broken model is its operator's business.
pub(crate) fn first(path: &Path) -> Result<(Folder, Directory), GatewayError> {
    let folder = manifest::load(path);
    let (models, mut fatal): (Vec<&Problem>, Vec<&Problem>) =
        folder.problems.iter().partition(|p| p.object.as_ref().is_some_and(|o| o.kind == "ModelDeployment"));
    for problem in models {
        tracing::warn!(%problem, "left a manifest out");
    }
    let (directory, problems) = Directory::new(&Manifests::of_folder(&folder));
    let problems = problems.into_iter().map(|p| p.to_string());
    let problems: Vec<String> = fatal.drain(..).map(ToString::to_string).chain(problems).collect();
    if problems.is_empty() {
        Ok((folder, directory))
    } else {
        Err(GatewayError::Manifests { folder: path.to_owned(), problems })
    }
}

/// Starts to follow the folder, of which this was read last.
pub(crate) fn spawn(gateway: &Gateway, path: PathBuf, last: Folder) {
    let seen = fingerprint(&path);
    gateway.0.tasks.spawn(follow(gateway.0.clone(), path, last, seen));
}

async fn follow(inner: Arc<Inner>, path: PathBuf, mut last: Folder, mut seen: u64) {
    while pause(&inner, FOLDER_EVERY).await {
        let (work, at, before) = (inner.clone(), path.clone(), last);
        let looked = tokio::task::spawn_blocking(move || {
            let now = fingerprint(&at);
            if now == seen {
                return (now, before);
            }
            match reload(&work, &at, &before) {
                Reloaded::TakenOver(folder) => (now, folder),
                // What cannot be used is not tried again; what could not be written down is.
                Reloaded::Unusable => (now, before),
                Reloaded::TryAgain => (seen, before),
            }
        });
        match looked.await {
            Ok(looked) => (seen, last) = looked,
            Err(error) => {
                tracing::error!(%error, "the folder is not followed any more");
                return;
            }
        }
    }
}

enum Reloaded {
    TakenOver(Folder),
    Unusable,
    TryAgain,
}

/// Takes an edit over: whole, or not at all. Objects that the edit broke stay as they were.
fn reload(inner: &Inner, path: &Path, last: &Folder) -> Reloaded {
    let folder = manifest::keep_last_good(last, manifest::load(path));
    for problem in &folder.problems {
        inner.metrics.config_rejected.inc();
        tracing::error!(%problem, "a manifest is broken; its last good state stays in force");
    }
    let (directory, problems) = Directory::new(&Manifests::of_folder(&folder));
    if !problems.is_empty() {
        inner.metrics.config_rejected.inc();
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        tracing::error!(
            problems = problems.join("; "),
            "an edit cannot be used; the last good state stays in force"
        );
        return Reloaded::Unusable;
    }
    let taken_over = match follow::judge_by(inner, Arc::new(directory)) {
        Ok(true) => Ok(()),
        Ok(false) => follow::count(inner),
        Err(error) => Err(error),
    };
    match taken_over {
        Ok(()) => {
            let (tenants, models, rules) = inner.directory.load().sizes();
            tracing::info!(tenants, models, rules, "took over edited manifests");
            Reloaded::TakenOver(folder)
        }
        Err(error) => {
            tracing::error!(%error, "could not take over edited manifests; they are tried again");
            Reloaded::TryAgain
        }
    }
}
