//! The thread that starts all processes. The system ties a process that asked for it to the *thread*
//! that started it, so that this one must live as long as they do.

use std::io;
use std::process::{Child, Command};
use std::sync::mpsc;

use tokio::sync::oneshot;

type Request = (Command, oneshot::Sender<io::Result<Child>>);

/// Starts processes.
#[derive(Clone, Debug)]
pub(super) struct Spawner {
    requests: mpsc::Sender<Request>,
}

impl Spawner {
    /// Starts the thread. It ends when the last clone is dropped.
    pub(super) fn start() -> io::Result<Self> {
        let (requests, inbox) = mpsc::channel::<Request>();
        std::thread::Builder::new().name("spawner".to_owned()).spawn(move || {
            for (mut command, reply) in inbox {
                if let Err(Ok(mut unwanted)) = reply.send(command.spawn()) {
                    let _ = unwanted.kill();
                    let _ = unwanted.wait();
                }
            }
        })?;
        Ok(Self { requests })
    }

    /// Starts a process.
    pub(super) async fn spawn(&self, command: Command) -> io::Result<Child> {
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts processes is gone");
        self.requests.send((command, reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}
