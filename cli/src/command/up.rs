//! `strata up`: the host backend, with a person in front of it.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use kube::ResourceExt;
use strata_gateway::keys::{KeyStore, Role};
use strata_hop::process;
use strata_kinds::manifest::Folder;
use strata_operator::host::{self, HostEvent, HostOptions};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio_util::sync::CancellationToken;

use crate::args;
use crate::state;

pub(super) fn run(args: args::Up) -> anyhow::Result<()> {
    process::init_logs();
    let state = args.state.folder()?;
    make_private(&state)?;
    let binary = std::env::current_exe().context("cannot find the strata binary itself")?;
    let kill = CancellationToken::new();
    let options = HostOptions {
        listen: args.listen,
        mode: args.mode.map(Into::into),
        insecure_no_auth: args.insecure_no_auth,
        on_snapshot: {
            let state = state.clone();
            Arc::new(move |folder| give_keys(&state, folder).map_err(|failure| format!("{failure:#}")))
        },
        kill: kill.clone(),
        ..HostOptions::new(args.folder, state, binary)
    };
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let shutdown = process::shutdown_on_signal()?;
        stop_at_once_when_asked_again(shutdown.clone(), kill);
        let (sender, events) = mpsc::unbounded_channel();
        let (result, ()) = tokio::join!(host::run(options, sender, shutdown), tell(events));
        Ok(result?)
    })
}

/// A second Ctrl-C does not wait for streams.
fn stop_at_once_when_asked_again(first: CancellationToken, kill: CancellationToken) {
    tokio::spawn(async move {
        first.cancelled().await;
        let _ = writeln!(std::io::stderr(), "up: stopping, streams may finish; Ctrl-C again stops at once");
        if let Ok(again) = process::shutdown_on_signal() {
            again.cancelled().await;
            kill.cancel();
        }
    });
}

/// The ready line goes to stdout, for scripts; all else to stderr. A closed stream stops nothing.
async fn tell(mut events: UnboundedReceiver<HostEvent>) {
    while let Some(event) = events.recv().await {
        let _ = match event {
            HostEvent::Progress(text) => writeln!(std::io::stderr(), "up: {text}"),
            HostEvent::Problem(text) => writeln!(std::io::stderr(), "up: problem: {text}"),
            HostEvent::Ready { url } => {
                let mut out = std::io::stdout();
                writeln!(out, "ready {url}").and_then(|()| out.flush())
            }
        };
    }
}

/// Gives each tenant that has no key one, in STATE/keys/TENANT, readable by its owner alone.
fn give_keys(state: &Path, folder: &Folder) -> anyhow::Result<()> {
    let without: Vec<String> =
        folder.tenants.iter().filter(|t| t.spec.api_keys.is_empty()).map(ResourceExt::name_any).collect();
    if without.is_empty() {
        return Ok(());
    }
    let store = KeyStore::open(&state::ledger(state))?;
    let keys = state.join("keys");
    make_private(&keys)?;
    for tenant in without {
        if store.has_keys(&tenant)? {
            continue;
        }
        let (key, info) = store.create(&tenant, "first", Role::Admin, None)?;
        if let Err(error) = write_private(&keys.join(&tenant), &key) {
            store.revoke(&info.id)?;
            return Err(error.context(format!("tenant `{tenant}` has no key")));
        }
    }
    Ok(())
}

fn make_private(folder: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))
}

/// Replaces a file whole, so that nobody reads half a key.
fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let part: PathBuf = path.with_extension("part");
    match fs::remove_file(&part) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot write {}", path.display()));
        }
        _ => {}
    }
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        writeln!(file, "{text}")?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use strata_kinds::manifest::from_texts;

    use super::*;

    fn tenants(names: &[&str]) -> Folder {
        let texts = names.iter().map(|name| {
            let text = format!(
                "apiVersion: strata.dev/v1alpha1\nkind: Tenant\nmetadata: {{name: {name}}}\nspec: {{models: []}}\n"
            );
            (format!("{name}.yaml"), text)
        });
        let folder = from_texts(texts.collect());
        assert_eq!(folder.problems, []);
        folder
    }

    #[test]
    fn each_tenant_gets_one_key_once_and_its_owner_alone_reads_it() {
        let state = tempfile::tempdir().unwrap();
        give_keys(state.path(), &tenants(&["acme"])).unwrap();
        give_keys(state.path(), &tenants(&["acme", "other"])).unwrap();
        let store = KeyStore::open(&state::ledger(state.path())).unwrap();
        assert_eq!(store.list(None).unwrap().len(), 2);
        let path = state.path().join("keys/acme");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let key = fs::read_to_string(path).unwrap();
        let id = &store.list(Some("acme")).unwrap()[0].id;
        assert!(key.starts_with("sk-strata-") && key.contains(id.as_str()), "{id}");
    }

    #[test]
    fn a_key_that_cannot_be_written_does_not_stay_valid() {
        let state = tempfile::tempdir().unwrap();
        fs::create_dir_all(state.path().join("keys/acme/not-a-file")).unwrap();
        let failure = give_keys(state.path(), &tenants(&["acme"])).unwrap_err();
        assert!(format!("{failure:#}").contains("acme"), "{failure:#}");
        let store = KeyStore::open(&state::ledger(state.path())).unwrap();
        assert!(!store.has_keys("acme").unwrap());
    }
}
