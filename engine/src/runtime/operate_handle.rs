//! The same from the server's side.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::drive::Command;
use super::handle::Engine;
use super::operate::{Operation, PauseMode, SleepLevel};
use super::watch::Condition;
use crate::lora::{AdapterId, Adapters, Refusal};

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

    /// Serves the adapter in a folder under a name: requests may ask for it from the moment on at which
    /// this returns. Those that run with one that had the name finish with that.
    pub async fn load_adapter(
        self: &Arc<Self>,
        name: String,
        path: PathBuf,
        in_place: bool,
        now: i64,
    ) -> Result<(), Refusal> {
        // On a task of its own: who asks may leave, and what was begun is brought to its end.
        let engine = self.clone();
        let loading = tokio::spawn(async move {
            let adapters = engine.changeable()?;
            let _turn = adapters.turn().await?;
            let device = |name: &str, message: String| Refusal::Device { name: name.to_owned(), message };
            let (reader, of) = (engine.clone(), name.clone());
            let read = move || reader.changeable()?.requested(&of, &path, in_place, now);
            let adapter = tokio::task::spawn_blocking(read)
                .await
                .map_err(|_| device(&name, "the adapter's reader panicked; this is a defect".into()))??;
            let adapter = Arc::new(adapter);
            let loading = adapter.clone();
            let loaded = engine.ask(|reply| Operation::LoadAdapter { adapter: loading, reply }).await;
            loaded.unwrap_or_else(|| Err(stopped())).map_err(|message| device(&name, message))?;
            if let Some(before) = adapters.serve(adapter) {
                engine.retire(before.key.id).await;
            }
            tracing::info!(name, "an adapter is served");
            Ok(())
        });
        let defect = |_| Refusal::Device { name: String::new(), message: "loading panicked".into() };
        loading.await.map_err(defect)?
    }

    /// Serves an adapter no longer. Requests that run with it are finished.
    pub async fn unload_adapter(&self, name: &str) -> Result<(), Refusal> {
        let adapters = self.changeable()?;
        let _turn = adapters.turn().await?;
        let adapter = adapters.remove(name)?;
        self.retire(adapter.key.id).await;
        tracing::info!(name, "an adapter is served no longer");
        Ok(())
    }

    fn changeable(&self) -> Result<&Adapters, Refusal> {
        self.adapters().ok_or(Refusal::Off)
    }

    async fn retire(&self, adapter: AdapterId) {
        self.ask(|reply| Operation::RetireAdapter { adapter, reply }).await;
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
