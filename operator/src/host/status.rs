//! What other commands may read in the state folder.
//!
//! - `status.json` ([`StackStatus`]): replaced atomically at each change, gone when nothing runs.
//! - `hop-token`: the run's token (mode 0600), by which `strata status` may ask the layers.
//! - `endpoints.json`: the replicas, for the scheduler.
//! - `logs/POD.log`: what each process wrote.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strata_hop::HopToken;

use super::lock;
use crate::Mode;
use crate::plan::ObjectStatus;
use crate::workload::Component;

/// What runs on a state folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StackStatus {
    /// The process of `strata up`.
    pub pid: u32,
    /// Which layers run.
    pub mode: Mode,
    /// Where the top layer listens.
    pub listen: String,
    /// The base URL for clients.
    pub url: String,
    /// Whether every ModelDeployment is Ready and every layer serves.
    pub ready: bool,
    /// The folder of manifests.
    pub folder: PathBuf,
    /// Every process, top layer first.
    pub layers: Vec<LayerStatus>,
    /// Every object.
    pub objects: Vec<ObjectStatus>,
    /// What is wrong with the folder now.
    pub problems: Vec<String>,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerStatus {
    /// Its layer.
    pub component: Component,
    /// Its name: the pod's.
    pub name: String,
    /// The name that requests ask for, of an engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Its base URL, without `/v1`.
    pub url: String,
    /// Its process, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Whether it serves.
    pub ready: bool,
    /// What it is doing.
    pub phase: Phase,
    /// How often it was started again.
    pub restarts: u32,
    /// Hash of its template.
    pub revision: String,
    /// Why it ended last, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It runs and does not serve yet.
    Starting,
    /// It runs.
    Running,
    /// It ended, and is started again after a while.
    BackingOff,
    /// It gets no more requests and finishes those that it has.
    Draining,
    /// It has ended for good.
    Stopped,
}

impl StackStatus {
    /// The process's scheduler, if the mode has one.
    pub fn scheduler(&self) -> Option<&LayerStatus> {
        self.layers.iter().find(|l| l.component == Component::Scheduler)
    }
}

/// The status of what runs on a state folder. `None` when nothing does: what a killed run left behind
/// is not believed.
pub fn read(state: &Path) -> std::io::Result<Option<StackStatus>> {
    if !lock::is_held(state) {
        return Ok(None);
    }
    match std::fs::read(file(state)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(std::io::Error::other),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The token of the run on a state folder, to ask its layers.
pub fn hop_token(state: &Path) -> Option<HopToken> {
    HopToken::new(std::fs::read_to_string(token_file(state)).ok()?.trim())
}

/// `STATE/status.json`.
pub fn file(state: &Path) -> PathBuf {
    state.join("status.json")
}

pub(super) fn token_file(state: &Path) -> PathBuf {
    state.join("hop-token")
}

pub(super) fn endpoints_file(state: &Path) -> PathBuf {
    state.join("endpoints.json")
}

/// `STATE/logs/POD.log`.
pub fn log_file(state: &Path, pod: &str) -> PathBuf {
    state.join("logs").join(format!("{pod}.log"))
}
