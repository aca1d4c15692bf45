//! One running process and everything that it started.

use std::io;
use std::process::{Command, ExitStatus};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::sync::watch;

use super::spawner::Spawner;

/// A process in a group of its own.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    end: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Starts a command whose process group is its own.
    pub(super) async fn start(spawner: &Spawner, command: Command) -> io::Result<Self> {
        let mut child = spawner.spawn(command).await?;
        let pid = child.id();
        let (told, end) = watch::channel(None);
        std::thread::Builder::new().name(format!("wait-{pid}")).spawn(move || {
            let status = child.wait().unwrap_or_default();
            told.send_replace(Some(status));
        })?;
        Ok(Self { pid, end })
    }

    /// Its id.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self) -> ExitStatus {
        match self.end.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or_default(),
            Err(_) => ExitStatus::default(),
        }
    }

    /// Signals it and all that it started.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = killpg(Pid::from_raw(self.pid as i32), signal);
    }
}

impl Drop for Process {
    /// Nothing of the group stays behind, not even what the process itself left.
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}
