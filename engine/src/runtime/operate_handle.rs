//! The same from the server's side.

use std::time::Instant;

use tokio::sync::oneshot;

use super::drive::Command;
use super::handle::Engine;
use super::operate::{Operation, PauseMode, SleepLevel};
use super::watch::Condition;

/// Why an engine is not worth keeping.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unwell {
    /// Its thread is gone.
    #[error("the engine has stopped; the process must be restarted")]
    Stopped,
    /// A step does not end.
    #[error("a step has been overdue for {0} s; the process must be restarted")]
    Hangs(u64),
}

impl Engine {
    /// Whether it gets on.
    pub fn health(&self, now: Instant) -> Result<(), Unwell> {
        if !self.is_alive() {
            return Err(Unwell::Stopped);
        }
        self.watch().overdue(now).map_or(Ok(()), |late| Err(Unwell::Hangs(late.as_secs())))
    }

    /// What it does with requests.
    pub fn condition(&self) -> Condition {
        self.watch().condition()
    }

    /// Runs nothing from now on; returns when nothing runs. New requests wait.
    pub async fn pause(&self, mode: PauseMode) {
        self.ask(|reply| Operation::Pause { mode, reply }).await;
    }

    /// Goes on.
    pub async fn resume(&self) {
        self.ask(Operation::Resume).await;
    }

    /// Ends all requests and gives memory back.
    pub async fn sleep(&self, level: SleepLevel) -> Result<(), String> {
        self.ask(|reply| Operation::Sleep { level, reply }).await.unwrap_or_else(|| Err(stopped()))
    }

    /// Takes the memory back and goes on.
    pub async fn wake(&self) -> Result<(), String> {
        self.ask(Operation::Wake).await.unwrap_or_else(|| Err(stopped()))
    }

    /// Forgets all cached prefixes; running requests keep what they use.
    pub async fn forget_cache(&self) {
        self.ask(Operation::ForgetCache).await;
    }

    /// Ends all requests; returns how many there were.
    pub async fn abort_all(&self) -> usize {
        self.ask(Operation::AbortAll).await.unwrap_or(0)
    }

    async fn ask<T>(&self, operation: impl FnOnce(oneshot::Sender<T>) -> Operation) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Operate(operation(reply))).then_some(())?;
        answer.await.ok()
    }
}

fn stopped() -> String {
    Unwell::Stopped.to_string()
}
