//! The engine of a model that reads texts, as the server sees it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::batch::Budget;
use super::worker::{Job, Worker};
use crate::backend::vectors::{TextInput, VectorBackend, VectorInfo};
use crate::runtime::{MAX_TEXT_BYTES, ModelCard, StartError};
use crate::telemetry::{Fixed, Metrics};
use crate::tokenizer::Tokenizer;

/// What the engine is made of.
pub struct EmbedderParts {
    /// Runs the batches.
    pub model: Box<dyn VectorBackend>,
    /// Text to tokens.
    pub tokenizer: Tokenizer,
    /// What the model is called.
    pub card: ModelCard,
}

/// The engine's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbedConfig {
    /// Tokens of one text.
    pub max_len: usize,
    /// Tokens of one batch, unless a single text has more.
    pub batch_tokens: usize,
    /// Texts of one batch.
    pub max_sequences: usize,
    /// Texts that may wait; more are refused with 503.
    pub max_waiting: usize,
}

/// Why there are no vectors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// It is about to stop.
    #[error("this replica is draining and takes no new request; send it to another, or again shortly")]
    Draining,
    /// Too much waits already.
    #[error("{waiting} texts wait already and the limit is {limit}; try again shortly")]
    Full {
        /// Texts that wait.
        waiting: usize,
        /// How many may.
        limit: usize,
    },
    /// One request has more texts than may wait.
    #[error("the request has {texts} texts and at most {limit} are taken; send fewer")]
    TooMany {
        /// Texts in the request.
        texts: usize,
        /// How many are taken.
        limit: usize,
    },
    /// A text that the model cannot take.
    #[error("text {index} {problem}")]
    Input {
        /// Which of the request's texts.
        index: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// Somebody ended the request by its id.
    #[error("the request was aborted")]
    Aborted,
    /// The device failed.
    #[error("{0}")]
    Failed(String),
    /// The engine's thread is gone.
    #[error("the engine has stopped")]
    Stopped,
}

/// Whether anybody still waits for a request.
#[derive(Debug, Default)]
pub struct Cancelled(AtomicBool);

impl Cancelled {
    /// Nobody does.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether nobody does.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A running engine. Dropping the last handle stops it after what it is working on.
pub struct Embedder {
    jobs: mpsc::UnboundedSender<Job>,
    queued: Arc<AtomicUsize>,
    draining: AtomicBool,
    open: Arc<Mutex<HashMap<String, Weak<Cancelled>>>>,
    metrics: Arc<Metrics>,
    tokenizer: Arc<Tokenizer>,
    card: ModelCard,
    info: VectorInfo,
    config: EmbedConfig,
    text_room: Arc<Semaphore>,
}

impl std::fmt::Debug for Embedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedder").field("card", &self.card).finish_non_exhaustive()
    }
}

impl Embedder {
    /// Starts the engine's thread.
    pub fn start(parts: EmbedderParts, config: EmbedConfig) -> Result<Arc<Self>, StartError> {
        for (name, value) in [
            ("max_model_len", config.max_len),
            ("step_tokens", config.batch_tokens),
            ("max_sequences", config.max_sequences),
            ("max_waiting", config.max_waiting),
        ] {
            if value == 0 {
                return Err(StartError::Zero { name });
            }
        }
        let info = parts.model.info().clone();
        if config.max_len > info.max_tokens {
            return Err(StartError::BeyondModel { asked: config.max_len, model: info.max_tokens });
        }
        let fixed =
            Fixed { max_sequences: config.max_sequences, total_blocks: 0, block_tokens: 0, max_loras: None };
        let metrics = Arc::new(Metrics::new(&parts.card.name, fixed));
        let (jobs, receiver) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let worker = Worker {
            model: parts.model,
            jobs: receiver,
            queued: queued.clone(),
            metrics: metrics.clone(),
            budget: Budget { tokens: config.batch_tokens, texts: config.max_sequences },
        };
        std::thread::Builder::new()
            .name("embedder".into())
            .spawn(move || worker.run())
            .map_err(|e| StartError::Thread(e.to_string()))?;
        Ok(Arc::new(Self {
            jobs,
            queued,
            draining: AtomicBool::new(false),
            open: Arc::default(),
            metrics,
            tokenizer: Arc::new(parts.tokenizer),
            card: parts.card,
            info,
            config,
            text_room: Arc::new(Semaphore::new(MAX_TEXT_BYTES)),
        }))
    }

    /// Accepts a request of this minted id. Dropping what is returned takes it back.
    pub fn submit(&self, id: String, inputs: Vec<TextInput>) -> Result<Pending, EmbedError> {
        if self.is_draining() {
            return Err(EmbedError::Draining);
        }
        let (texts, limit) = (inputs.len(), self.config.max_waiting);
        if texts > limit {
            return Err(EmbedError::TooMany { texts, limit });
        }
        for (index, input) in inputs.iter().enumerate() {
            self.check(input).map_err(|problem| EmbedError::Input { index, problem })?;
        }
        let waiting = self.queued.load(Ordering::Relaxed);
        if waiting + texts > limit {
            return Err(EmbedError::Full { waiting, limit });
        }
        self.queued.fetch_add(texts, Ordering::Relaxed);
        self.metrics.waiting.inc_by(texts as i64);
        let cancelled = Arc::new(Cancelled::default());
        self.open().insert(id.clone(), Arc::downgrade(&cancelled));
        let mut pending =
            Pending { id, cancelled, open: self.open.clone(), replies: Vec::with_capacity(texts) };
        for input in inputs {
            self.metrics.waiting_tokens.inc_by(input.tokens.len() as i64);
            let (reply, answer) = oneshot::channel();
            let cancelled = pending.cancelled.clone();
            let job = Job { input, reply, cancelled, arrived: Instant::now() };
            self.jobs.send(job).map_err(|_| EmbedError::Stopped)?;
            pending.replies.push(answer);
        }
        Ok(pending)
    }

    fn check(&self, input: &TextInput) -> Result<(), String> {
        let (len, most, vocab) = (input.tokens.len(), self.config.max_len, self.info.vocab);
        if len == 0 {
            return Err("has no tokens".to_owned());
        }
        if len > most {
            return Err(format!("has {len} tokens and this model takes at most {most}"));
        }
        match input.tokens.iter().find(|token| **token as usize >= vocab) {
            Some(token) => Err(format!("has the token id {token} and the model has ids below {vocab}")),
            None => Ok(()),
        }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<String, Weak<Cancelled>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the request of this minted id; `false` when none runs under it.
    pub fn abort(&self, id: &str) -> bool {
        let cancelled = self.open().get(id).and_then(Weak::upgrade);
        cancelled.inspect(|cancelled| cancelled.set()).is_some()
    }

    /// Ends all requests; returns how many.
    pub fn abort_all(&self) -> usize {
        self.open().values().filter_map(Weak::upgrade).inspect(|cancelled| cancelled.set()).count()
    }

    /// Takes no new request from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether new requests are refused.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Waits until the engine's thread is gone, which it is only after a defect.
    pub async fn stopped(&self) {
        self.jobs.closed().await;
    }

    /// Whether the engine's thread runs.
    pub fn is_alive(&self) -> bool {
        !self.jobs.is_closed()
    }

    /// The metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// A permit for each byte of text that may be tokenised now, [`MAX_TEXT_BYTES`] in all.
    pub fn text_room(&self) -> &Arc<Semaphore> {
        &self.text_room
    }

    /// What the model is called.
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// What the model is.
    pub fn info(&self) -> &VectorInfo {
        &self.info
    }

    /// Tokens of one text.
    pub fn max_len(&self) -> usize {
        self.config.max_len
    }
}

/// A request that is worked on.
#[derive(Debug)]
pub struct Pending {
    id: String,
    cancelled: Arc<Cancelled>,
    open: Arc<Mutex<HashMap<String, Weak<Cancelled>>>>,
    replies: Vec<oneshot::Receiver<Result<Vec<f32>, EmbedError>>>,
}

impl Pending {
    /// The vectors, in the order of the texts.
    pub async fn wait(mut self) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut vectors = Vec::with_capacity(self.replies.len());
        for reply in std::mem::take(&mut self.replies) {
            vectors.push(match reply.await {
                Ok(outcome) => outcome?,
                Err(_) if self.cancelled.is_set() => return Err(EmbedError::Aborted),
                Err(_) => return Err(EmbedError::Stopped),
            });
        }
        Ok(vectors)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.cancelled.set();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Another request may have come under the same id.
        if open.get(&self.id).is_some_and(|other| other.as_ptr() == Arc::as_ptr(&self.cancelled)) {
            open.remove(&self.id);
        }
    }
}
