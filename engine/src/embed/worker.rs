//! The thread that runs batch after batch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::batch::{self, Budget};
use super::handle::{Cancelled, EmbedError};
use crate::backend::vectors::{TextInput, VectorBackend};
use crate::telemetry::Metrics;

/// One text that waits for its vector.
pub(super) struct Job {
    pub(super) input: TextInput,
    pub(super) reply: oneshot::Sender<Result<Vec<f32>, EmbedError>>,
    pub(super) cancelled: Arc<Cancelled>,
    pub(super) arrived: Instant,
}

pub(super) struct Worker {
    pub(super) model: Box<dyn VectorBackend>,
    pub(super) jobs: mpsc::UnboundedReceiver<Job>,
    pub(super) queued: Arc<AtomicUsize>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) budget: Budget,
}

impl Worker {
    /// Runs until nobody can send any more.
    pub(super) fn run(mut self) {
        let mut waiting: VecDeque<Job> = VecDeque::new();
        loop {
            if waiting.is_empty() {
                let Some(job) = self.jobs.blocking_recv() else { return };
                waiting.push_back(job);
            }
            while let Ok(job) = self.jobs.try_recv() {
                waiting.push_back(job);
            }
            // Who has left costs no forward pass.
            waiting.retain(|job| {
                let keep = !job.cancelled.is_set() && !job.reply.is_closed();
                if !keep {
                    self.leaves_the_queue(job);
                    self.metrics.count_finished("abort");
                }
                keep
            });
            let lengths = waiting.iter().map(|job| job.input.tokens.len()).collect();
            let count = batch::take(&lengths, self.budget);
            if count > 0 {
                self.step(waiting.drain(..count).collect());
            }
        }
    }

    fn leaves_the_queue(&self, job: &Job) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
        self.metrics.waiting.dec();
        self.metrics.waiting_tokens.dec_by(job.input.tokens.len() as i64);
    }

    fn step(&mut self, jobs: Vec<Job>) {
        let began = Instant::now();
        for job in &jobs {
            self.leaves_the_queue(job);
            self.metrics.queue.observe(began.duration_since(job.arrived).as_secs_f64());
        }
        self.metrics.running.set(jobs.len() as i64);
        let (inputs, replies): (Vec<_>, Vec<_>) =
            jobs.into_iter().map(|job| (job.input, (job.reply, job.arrived))).unzip();
        let tokens: usize = inputs.iter().map(|input| input.tokens.len()).sum();
        let outcome = self.model.run(&inputs);
        self.metrics.running.set(0);
        self.metrics.iteration_tokens.observe(tokens as f64);
        match outcome {
            Ok(vectors) => {
                let now = Instant::now();
                let each = inputs.iter().zip(replies).zip(vectors);
                for ((input, (reply, arrived)), vector) in each {
                    let len = input.tokens.len();
                    self.metrics.prompt_tokens.inc_by(len as u64);
                    self.metrics.request_prompt_tokens.observe(len as f64);
                    self.metrics.e2e.observe(now.duration_since(arrived).as_secs_f64());
                    let left = reply.send(Ok(vector)).is_err();
                    self.metrics.count_finished(if left { "abort" } else { "stop" });
                }
            }
            Err(error) => {
                tracing::error!(%error, "a batch of texts failed");
                for (reply, _) in replies {
                    let _ = reply.send(Err(EmbedError::Failed(error.to_string())));
                    self.metrics.count_finished("error");
                }
            }
        }
    }
}
