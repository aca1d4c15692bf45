//! What an operator asks of a running engine: pause, sleep, forget the cache. Carried out by the
//! engine's thread between two steps.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::drive::Driver;
use super::watch::Condition;
use crate::backend::{Backend, BackendError, BackendInfo, Logits, StepBatch};
use crate::lora::{Adapter, AdapterId, LoraWeights};

/// What becomes of open requests when the engine pauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseMode {
    /// They end with what they have.
    Abort,
    /// Those that run are finished; those that wait go on waiting.
    Wait,
    /// They stand still and go on later.
    Keep,
}

/// How much an engine that sleeps gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SleepLevel {
    /// The memory of the KV cache.
    Cache,
    /// That and the weights, which are opened again on waking.
    Weights,
}

/// Opens the model again: blocking, for the engine's thread.
pub type Reopen = Box<dyn Fn() -> Result<Box<dyn Backend>, String> + Send>;

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Operation {
    /// Replied to when no request runs.
    Pause {
        mode: PauseMode,
        reply: oneshot::Sender<()>,
    },
    Resume(oneshot::Sender<()>),
    Sleep {
        level: SleepLevel,
        reply: oneshot::Sender<Result<(), String>>,
    },
    Wake(oneshot::Sender<Result<(), String>>),
    ForgetCache(oneshot::Sender<()>),
    AbortAll(oneshot::Sender<usize>),
    LoadAdapter {
        adapter: Arc<Adapter>,
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// New requests no longer run with it.
    RetireAdapter {
        adapter: AdapterId,
        reply: oneshot::Sender<()>,
    },
}

/// Whether steps are run.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// No step is run.
    pub(super) frozen: bool,
    /// Nothing is admitted; what runs is finished.
    pub(super) admitting_none: bool,
    /// Who waits until nothing runs.
    when_quiet: Vec<oneshot::Sender<()>>,
}

impl Driver {
    pub(super) fn operate(&mut self, operation: Operation) {
        match operation {
            Operation::Pause { mode, reply } => self.pause(mode, reply),
            Operation::Resume(reply) => {
                if !self.watch.condition().is_asleep() {
                    self.resume();
                }
                let _ = reply.send(());
            }
            Operation::Sleep { level, reply } => {
                let _ = reply.send(self.sleep(level));
            }
            Operation::Wake(reply) => {
                let _ = reply.send(self.wake());
            }
            Operation::ForgetCache(reply) => {
                self.forget_cache();
                let _ = reply.send(());
            }
            Operation::AbortAll(reply) => {
                let _ = reply.send(self.abort_all());
            }
            Operation::LoadAdapter { adapter, reply } => {
                let loaded = self.adapters.load(&adapter, self.backend.as_mut());
                let _ = reply.send(loaded.map_err(|e| e.to_string()));
            }
            Operation::RetireAdapter { adapter, reply } => {
                self.adapters.retire(adapter, self.backend.as_mut());
                self.blocks.log().change(|directory, told| directory.retire(adapter, told));
                let _ = reply.send(());
            }
        }
    }

    /// Whether there is a step to run now.
    pub(super) fn may_step(&self) -> bool {
        !self.planner.is_idle()
            && !self.hold.frozen
            && (!self.hold.admitting_none || self.planner.state().running > 0)
    }

    /// Tells those who wait for it that nothing runs any more.
    pub(super) fn tell_quiet(&mut self) {
        if self.hold.admitting_none && self.planner.state().running == 0 {
            for waiter in self.hold.when_quiet.drain(..) {
                let _ = waiter.send(());
            }
        }
    }

    fn pause(&mut self, mode: PauseMode, reply: oneshot::Sender<()>) {
        if self.watch.condition() == Condition::Awake {
            self.watch.set(Condition::Paused);
        }
        match mode {
            PauseMode::Wait if !self.hold.frozen => {
                self.hold.admitting_none = true;
                self.planner.hold(true);
                self.hold.when_quiet.push(reply);
                return;
            }
            PauseMode::Abort => {
                self.abort_all();
                self.hold.frozen = true;
            }
            PauseMode::Keep | PauseMode::Wait => self.hold.frozen = true,
        }
        let _ = reply.send(());
    }

    fn resume(&mut self) {
        self.planner.hold(false);
        self.hold = Hold::default();
        self.watch.set(Condition::Awake);
        self.metrics.sleep.set(Condition::Awake);
    }

    fn abort_all(&mut self) -> usize {
        let keys: Vec<u64> = self.requests.keys().copied().collect();
        for key in &keys {
            self.abort(*key);
        }
        keys.len()
    }

    /// The tiers below take what they want of the blocks before those are gone.
    fn forget_cache(&mut self) {
        self.planner.forget_cache();
        self.blocks.follow(&mut self.planner, self.backend.as_ref());
    }

    /// Ends all requests and gives memory back.
    fn sleep(&mut self, level: SleepLevel) -> Result<(), String> {
        let condition = match level {
            SleepLevel::Cache => Condition::AsleepWithWeights,
            SleepLevel::Weights => Condition::AsleepWithout,
        };
        let now = self.watch.condition();
        if now == condition || now == Condition::AsleepWithout {
            return Ok(());
        }
        if level == SleepLevel::Weights && self.reopen.is_none() {
            return Err("this engine cannot open its weights again; sleep at level 1".into());
        }
        self.watch.set(condition);
        self.abort_all();
        self.hold.frozen = true;
        self.forget_cache();
        self.backend.release_cache();
        if let Some(speculation) = &mut self.speculation {
            speculation.sleep();
        }
        if level == SleepLevel::Weights {
            let info = self.backend.info().clone();
            self.backend = Box::new(Asleep(info));
        }
        self.metrics.sleep.set(condition);
        tracing::info!(?level, "engine sleeps");
        Ok(())
    }

    /// Takes the memory back and goes on.
    fn wake(&mut self) -> Result<(), String> {
        match self.watch.condition() {
            Condition::Awake | Condition::Paused => return Ok(()),
            Condition::AsleepWithWeights => self.backend.restore_cache().map_err(|e| e.to_string())?,
            Condition::AsleepWithout => {
                let Some(reopen) = &self.reopen else { return Err("there is nothing to open".into()) };
                let mut backend = reopen()?;
                let (was, is) = (self.backend.info(), backend.info());
                if (was.vocab, was.total_blocks) != (is.vocab, is.total_blocks) {
                    return Err("the model's files have changed; restart the engine".into());
                }
                self.adapters.load_all(backend.as_mut()).map_err(|e| e.to_string())?;
                self.backend = backend;
            }
        }
        if let Some(speculation) = &mut self.speculation {
            speculation.wake().map_err(|e| e.to_string())?;
        }
        // Said again: who follows the blocks may have come since it fell asleep.
        self.forget_cache();
        self.resume();
        tracing::info!("engine is awake");
        Ok(())
    }
}

/// Stands where the backend was, so that its memory is free.
struct Asleep(BackendInfo);

impl Backend for Asleep {
    fn info(&self) -> &BackendInfo {
        &self.0
    }

    fn forward_into(&mut self, _: &StepBatch, _: &mut Logits) -> Result<(), BackendError> {
        Err(BackendError::Device { backend: self.0.name, message: "it sleeps".into() })
    }

    fn layout(&self) -> String {
        String::new()
    }

    fn export_block(&self, _: u32, _: &mut Vec<u8>) {}

    fn import_block(&mut self, _: u32, _: &[u8]) -> Result<(), BackendError> {
        Err(BackendError::Device { backend: self.0.name, message: "it sleeps".into() })
    }

    /// It has them all again on waking.
    fn load_adapter(&mut self, _: AdapterId, _: &LoraWeights) -> Result<(), BackendError> {
        Ok(())
    }

    fn matrix_products(&self) -> u64 {
        0
    }
}
