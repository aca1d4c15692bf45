//! The host backend: the rendered pod templates of a folder of manifests as local processes.
//!
//! [`run`] is all of it. It starts each component as a process of its own on loopback, restarts what
//! dies, follows edits of the folder, drains a replica before it stops it, and stops everything that
//! it started. State lives in one folder: see [`status`] for what other commands may read there.

mod backoff;
mod child;
mod container;
mod drain;
mod events;
mod guard;
mod init;
mod lock;
mod logs;
mod pod;
mod ports;
mod probe;
mod registry;
mod replace;
mod spawner;
pub mod status;
mod supervisor;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use strata_kinds::manifest::Folder;
use strata_wire::defaults;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;

pub use guard::die_with_parent;

use crate::Mode;

/// Called with each new content of the folder, before it is acted on: in a mode with a gateway, before
/// the gateway first starts. It may block. An error is told as a problem and stops nothing.
pub type SnapshotHook = Arc<dyn Fn(&Folder) -> Result<(), String> + Send + Sync>;

/// What the host backend is told.
#[derive(Clone)]
pub struct HostOptions {
    /// The folder of manifests.
    pub folder: PathBuf,
    /// Where the platform listens, such as `127.0.0.1:8080`; port 0 takes a free one.
    pub listen: String,
    /// The state folder; made when it does not exist.
    pub state: PathBuf,
    /// Which layers run. When absent: enterprise if the folder has a Tenant at the start, else
    /// production.
    pub mode: Option<Mode>,
    /// The binary that containers whose command is `strata` run.
    pub binary: PathBuf,
    /// Listen beyond this machine although nothing checks who calls.
    pub insecure_no_auth: bool,
    /// How long a process may take to finish its streams after SIGTERM.
    pub drain_grace: Duration,
    /// Called with each new content of the folder.
    pub on_snapshot: SnapshotHook,
    /// Cancelled to stop at once, without waiting for streams: a second Ctrl-C.
    pub kill: CancellationToken,
}

impl HostOptions {
    /// The defaults for a folder, a state folder and a binary.
    pub fn new(folder: impl Into<PathBuf>, state: impl Into<PathBuf>, binary: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            listen: defaults::UP_LISTEN.to_owned(),
            state: state.into(),
            mode: None,
            binary: binary.into(),
            insecure_no_auth: false,
            // The components end by themselves after the grace; what still runs then is stuck.
            drain_grace: defaults::DRAIN_GRACE + Duration::from_secs(5),
            on_snapshot: Arc::new(|_| Ok(())),
            kill: CancellationToken::new(),
        }
    }
}

/// What happens, in sentences for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// Something went on as wanted.
    Progress(String),
    /// Every ModelDeployment is Ready and every layer serves: told once.
    Ready {
        /// The base URL for clients, such as `http://127.0.0.1:8080/v1`.
        url: String,
    },
    /// Something is wrong; what runs goes on.
    Problem(String),
}

/// Why nothing runs.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The folder's content cannot be run.
    #[error("{}", .0.join("\n"))]
    Manifests(Vec<String>),
    /// Another `strata up` has the state folder.
    #[error("`strata up` already runs on {state} (pid {pid}); stop it, or use another folder with --state")]
    AlreadyRunning {
        /// The state folder.
        state: String,
        /// The other process, as far as it is known.
        pid: String,
    },
    /// The listen address cannot be had.
    #[error("{0}")]
    Listen(String),
    /// Nothing would check who calls.
    #[error(
        "mode {mode} has no gateway, so that anybody who reaches {listen} could use the models: listen on 127.0.0.1, \
         add a Tenant for mode enterprise, or pass --insecure-no-auth"
    )]
    Unguarded {
        /// The mode.
        mode: Mode,
        /// The address.
        listen: String,
    },
    /// A file of the state folder cannot be written, or something else of the system failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Runs a folder until `shutdown`. Returns once every process that it started has ended.
pub async fn run(
    options: HostOptions,
    events: UnboundedSender<HostEvent>,
    shutdown: CancellationToken,
) -> Result<(), HostError> {
    supervisor::run(options, events, shutdown).await
}
