//! Where the binary keeps what outlives it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use crate::output::NotRunning;

/// The state folder, shared by every command that speaks of a running or past `strata up`.
#[derive(Args, Clone, Debug)]
pub(crate) struct StateArgs {
    /// Folder for keys, the usage ledger, stored responses and logs [default: the user's state folder]
    #[arg(long, value_name = "FOLDER", env = "STRATA_STATE")]
    state: Option<PathBuf>,
}

impl StateArgs {
    /// The folder given, else `$XDG_STATE_HOME/strata`, else `~/.local/state/strata`.
    pub(crate) fn folder(&self) -> anyhow::Result<PathBuf> {
        if let Some(folder) = &self.state {
            return Ok(folder.clone());
        }
        if let Some(base) = std::env::var_os("XDG_STATE_HOME").filter(|v| !v.is_empty()) {
            return Ok(PathBuf::from(base).join("strata"));
        }
        let home = std::env::var_os("HOME")
            .filter(|v| !v.is_empty())
            .context("no home folder is known; say where to keep state with --state FOLDER")?;
        Ok(PathBuf::from(home).join(".local/state/strata"))
    }
}

/// The gateway's ledger in a state folder: usage, audit, run-time keys.
pub(crate) fn ledger(state: &Path) -> PathBuf {
    state.join("ledger.sqlite")
}

/// The same, and an error when there is none.
pub(crate) fn existing_ledger(state: &Path) -> anyhow::Result<PathBuf> {
    let path = ledger(state);
    if path.exists() {
        return Ok(path);
    }
    Err(NotRunning(format!(
        "there is no ledger at {}: nothing has run on this state folder, or it is another one (--state)",
        path.display()
    ))
    .into())
}
