//! The engine as the server sees it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use strata_trace::Tracer;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::adapters::LoadedAdapters;
use super::blocks::BlockKeeper;
use super::drive::{Command, Driver, Submission};
use super::generation::{Generation, GenerationRequest};
use super::operate::Reopen;
use super::speculate::Speculation;
use super::watch::Watch;
use crate::backend::{BLOCK_TOKENS, Backend};
use crate::block::BlockHash;
use crate::events::{Claim, EventLog, KvPublisher};
use crate::grammar::Grammars;
use crate::lora::Adapters;
use crate::step::{Planner, StepLimits};
use crate::telemetry::{Fixed, Metrics, SampleShare};
use crate::template::ChatTemplate;
use crate::tier::Tiers;
use crate::tokenizer::Tokenizer;
use crate::transfer::{Transfer, TransferParams};

/// Bytes of text that are tokenised at the same time, in one request or in many.
pub const MAX_TEXT_BYTES: usize = 4 * 1024 * 1024;

/// What an engine is made of.
pub struct EngineParts {
    /// Runs the steps.
    pub backend: Box<dyn Backend>,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// Messages to prompts; a base model has none.
    pub template: Option<ChatTemplate>,
    /// What the model is called.
    pub card: ModelCard,
    /// Where blocks go that the KV cache has no room for.
    pub tiers: Tiers,
    /// How blocks come from and go to other engines.
    pub transfer: Option<Arc<Transfer>>,
    /// How tokens are guessed, if they are.
    pub speculation: Option<Speculation>,
    /// Opens the model again after a sleep without weights; without it there is none.
    pub reopen: Option<Reopen>,
    /// The adapters that requests may run with, if any may.
    pub adapters: Option<Adapters>,
}

/// What `GET /v1/models` says of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCard {
    /// The name that requests ask for.
    pub name: String,
    /// Seconds since 1970 when it began to be served.
    pub created: i64,
    /// Tokens that the chat template can add to a request's bytes.
    pub template_overhead: u64,
}

/// The engine's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// What a step holds at most.
    pub step: StepLimits,
    /// Longest context served; `None` takes the model's, cut to what the KV cache holds.
    pub max_model_len: Option<usize>,
    /// Whether prefixes are reused.
    pub prefix_cache: bool,
    /// Sequences that may wait; more are refused with 503.
    pub max_waiting: usize,
    /// How long a step may take before the engine is held to hang; a second for each of its tokens, if
    /// that is more.
    pub step_timeout: Duration,
}

/// Why an engine cannot start with these limits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// Some decodes would never fit into a step.
    #[error(
        "step_tokens is {tokens} and max_sequences is {sequences}: a step must have room for one token of every \
         sequence; raise step_tokens or lower max_sequences"
    )]
    StepTooSmall {
        /// The token budget.
        tokens: usize,
        /// The sequences.
        sequences: usize,
    },
    /// A limit is zero.
    #[error("{name} must be at least 1")]
    Zero {
        /// Which.
        name: &'static str,
    },
    /// The context is longer than the model's.
    #[error("max_model_len is {asked} and the model's longest context is {model}; lower it")]
    BeyondModel {
        /// What was asked for.
        asked: usize,
        /// What the model can do.
        model: usize,
    },
    /// The cache cannot hold one sequence of the context.
    #[error(
        "max_model_len is {asked} and the KV cache of {blocks} blocks holds {tokens} tokens; enlarge kv_cache or \
         lower max_model_len"
    )]
    BeyondCache {
        /// What was asked for.
        asked: usize,
        /// Blocks there are.
        blocks: usize,
        /// Tokens that they hold.
        tokens: usize,
    },
    /// The system gave no thread.
    #[error("cannot start the engine's thread: {0}")]
    Thread(String),
    /// The device refuses an adapter.
    #[error("the adapter `{name}` cannot be used: {message}")]
    Adapter {
        /// Its name.
        name: String,
        /// What the device said.
        message: String,
    },
}

/// Why a request was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// It is about to stop.
    #[error("this replica is draining and takes no new request; send it to another, or again shortly")]
    Draining,
    /// Its memory was given back.
    #[error("this replica sleeps and takes no new request; send it to another, or wake it by POST /wake_up")]
    Asleep,
    /// Too much waits already.
    #[error("{waiting} sequences wait already and the limit is {limit}; try again shortly")]
    Full {
        /// Sequences that wait.
        waiting: usize,
        /// How many may.
        limit: usize,
    },
    /// One request asks for more answers than may wait.
    #[error("the request asks for {choices} answers (prompts × n) and at most {limit} are taken; send fewer")]
    TooMany {
        /// Answers asked for.
        choices: usize,
        /// How many are taken.
        limit: usize,
    },
    /// A token that the model does not have; it would fail a whole step.
    #[error("the prompt has the token id {token} and the model has ids below {vocab}")]
    TokenOutOfRange {
        /// The id.
        token: u32,
        /// The size of the model's vocabulary.
        vocab: usize,
    },
    /// The engine's thread is gone.
    #[error("the engine has stopped")]
    Stopped,
}

/// A running engine. Dropping the last handle stops it after what it is working on.
pub struct Engine {
    commands: mpsc::UnboundedSender<Command>,
    next_key: AtomicU64,
    draining: AtomicBool,
    queued: Arc<std::sync::atomic::AtomicUsize>,
    metrics: Arc<Metrics>,
    events: Arc<EventLog>,
    tracer: OnceLock<Tracer>,
    transfer: Option<Arc<Transfer>>,
    watch: Arc<Watch>,
    adapters: Option<Adapters>,
    description: serde_json::Value,
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    grammars: Arc<Grammars>,
    card: ModelCard,
    vocab: usize,
    max_model_len: usize,
    max_waiting: usize,
    /// A permit for each byte of text that may be tokenised now.
    text_room: Arc<Semaphore>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("card", &self.card).finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the engine's thread.
    pub fn start(parts: EngineParts, config: EngineConfig) -> Result<Arc<Self>, StartError> {
        let info = parts.backend.info().clone();
        let StepLimits { tokens, sequences } = config.step;
        for (name, value) in [
            ("max_sequences", sequences),
            ("step_tokens", tokens),
            ("kv_cache", info.total_blocks),
            ("max_waiting", config.max_waiting),
        ] {
            if value == 0 {
                return Err(StartError::Zero { name });
            }
        }
        if tokens < sequences {
            return Err(StartError::StepTooSmall { tokens, sequences });
        }
        let max_model_len = context(config.max_model_len, info.max_model_len, info.total_blocks)?;
        let fixed = Fixed {
            max_sequences: sequences,
            total_blocks: info.total_blocks,
            block_tokens: BLOCK_TOKENS,
            max_loras: parts.adapters.as_ref().map(Adapters::at_once),
        };
        let metrics = Arc::new(Metrics::new(&parts.card.name, fixed));
        let events = Arc::new(EventLog::new(uuid::Uuid::now_v7().to_string()));
        let tokenizer = Arc::new(parts.tokenizer);
        let grammars = Arc::new(Grammars::new(tokenizer.clone(), info.vocab));
        let watch = Arc::new(Watch::new(Instant::now(), config.step_timeout));
        let description = describe(&parts.card, &info, &config, max_model_len);
        let (commands, receiver) = mpsc::unbounded_channel();
        let mut tiers = parts.tiers;
        if let Some(disk) = &mut tiers.disk {
            // Weak: the engine ends with its last handle, whatever the disk still does.
            let told = commands.downgrade();
            let tell = move |event| {
                if let Some(commands) = told.upgrade() {
                    let _ = commands.send(Command::Tier(event));
                }
            };
            disk.start(tell).map_err(|e| StartError::Thread(e.to_string()))?;
        }
        let queued = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let mut backend = parts.backend;
        let mut loaded = LoadedAdapters::default();
        for adapter in parts.adapters.iter().flat_map(Adapters::all) {
            loaded.load(&adapter, backend.as_mut()).map_err(|error| {
                let (name, message) = (adapter.key.name.to_string(), error.to_string());
                StartError::Adapter { name, message }
            })?;
        }
        let mut driver = Driver::new(
            backend,
            Planner::new(config.step, info.total_blocks, config.prefix_cache),
            receiver,
            tokenizer.clone(),
            (metrics.clone(), watch.clone()),
            BlockKeeper::new(events.clone(), tiers, parts.transfer.as_ref().map(|t| t.kept().clone())),
            queued.clone(),
        );
        driver.speculate(parts.speculation.map(|speculation| speculation.within(max_model_len)));
        driver.reopen_by(parts.reopen);
        driver.adapt(loaded, parts.adapters.as_ref().map_or(usize::MAX, Adapters::at_once));
        std::thread::Builder::new()
            .name("engine".into())
            // It walks grammars, which recurse.
            .stack_size(64 * 1024 * 1024)
            .spawn(move || driver.run())
            .map_err(|e| StartError::Thread(e.to_string()))?;
        Ok(Arc::new(Self {
            commands,
            next_key: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            queued,
            metrics,
            events,
            tracer: OnceLock::new(),
            transfer: parts.transfer,
            watch,
            adapters: parts.adapters,
            description,
            tokenizer,
            template: parts.template,
            grammars,
            card: parts.card,
            vocab: info.vocab,
            max_model_len,
            max_waiting: config.max_waiting,
            text_room: Arc::new(Semaphore::new(MAX_TEXT_BYTES)),
        }))
    }

    /// Accepts a request. Its events come as the engine produces them.
    pub fn submit(&self, request: GenerationRequest) -> Result<Generation, SubmitError> {
        if self.is_draining() {
            return Err(SubmitError::Draining);
        }
        if self.condition().is_asleep() {
            return Err(SubmitError::Asleep);
        }
        let choices = request.prompts.len() * request.n;
        let limit = self.max_waiting;
        self.admits(choices)?;
        let vocab = self.vocab;
        if let Some(&token) = request.prompts.iter().flatten().find(|t| **t as usize >= vocab) {
            return Err(SubmitError::TokenOutOfRange { token, vocab });
        }
        let waiting = self.queued.load(Ordering::Relaxed);
        if waiting + choices > limit {
            return Err(SubmitError::Full { waiting, limit });
        }
        let key = self.next_key.fetch_add(1, Ordering::Relaxed);
        let (sender, events) = mpsc::unbounded_channel();
        self.queued.fetch_add(choices, Ordering::Relaxed);
        // Seen at once, not only after the step that runs now.
        self.metrics.waiting.inc_by(choices as i64);
        let tokens: usize = request.prompts.iter().map(Vec::len).sum();
        self.metrics.waiting_tokens.inc_by((tokens * request.n) as i64);
        self.events.load(|load| {
            load.waiting += choices as u64;
            load.waiting_tokens += (tokens * request.n) as u64;
        });
        let submission = Submission { key, request, events: sender, arrived: std::time::Instant::now() };
        self.commands.send(Command::Submit(Box::new(submission))).map_err(|_| SubmitError::Stopped)?;
        Ok(Generation { key, open: choices, events, commands: self.commands.clone() })
    }

    /// An error when one request can never ask for so many answers.
    pub fn admits(&self, choices: usize) -> Result<(), SubmitError> {
        let limit = self.max_waiting;
        if choices > limit { Err(SubmitError::TooMany { choices, limit }) } else { Ok(()) }
    }

    /// Ends the request of this minted id; `false` when none runs under it. Its stream ends with the
    /// usage so far.
    pub async fn abort(&self, id: &str) -> bool {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(Command::Abort { id: id.to_owned(), reply });
        sent.is_ok() && answer.await.unwrap_or(false)
    }

    /// Takes no new request from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.events.close();
    }

    /// Whether new requests are refused.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Waits until nothing runs and nothing waits.
    pub async fn idle(&self) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::WhenIdle(reply)).is_ok() {
            let _ = answer.await;
        }
    }

    /// Waits until the engine's thread is gone, which it is only after a defect.
    pub async fn stopped(&self) {
        self.commands.closed().await;
    }

    /// Whether the engine's thread runs.
    pub fn is_alive(&self) -> bool {
        !self.commands.is_closed()
    }

    /// Tells the engine's thread something; `false` when it is gone.
    pub(super) fn tell(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }

    pub(super) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// What runs here, and within which limits.
    pub fn description(&self) -> &serde_json::Value {
        &self.description
    }

    /// The metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What is said of its cache and its load while it runs.
    pub fn events(&self) -> &Arc<EventLog> {
        &self.events
    }

    /// How blocks come from and go to other engines, if they do.
    pub fn transfer(&self) -> Option<&Arc<Transfer>> {
        self.transfer.as_ref()
    }

    /// Fetches what another engine has computed of a prompt, for the request that is submitted next.
    /// What does not come is computed.
    pub async fn fetch(&self, params: &TransferParams) {
        let Some(transfer) = &self.transfer else { return };
        let take = |hash, bytes| {
            // An engine that has stopped needs no blocks.
            let _ = self.commands.send(Command::Receive(hash, bytes));
        };
        let from = params.remote_host.as_deref().unwrap_or_default();
        match transfer.fetch(params, take).await {
            Ok(blocks) => tracing::debug!(blocks, from, "blocks were fetched"),
            Err(why) => tracing::info!(%why, from, "a prompt's blocks could not be fetched; it is computed"),
        }
    }

    /// Publishes the KV cache's changes, from now on, on a task of the current runtime.
    pub fn publish(&self, publisher: KvPublisher) {
        // An engine that has stopped changes nothing.
        let _ = self.commands.send(Command::Feed(publisher.start()));
    }

    /// Tells those who follow the events what a text is known by, whose tokens' full blocks have these
    /// names: of those blocks that are cached now.
    pub fn claim(&self, claims: Vec<Claim>, names: Vec<BlockHash>) {
        // Of an engine that has stopped there is nothing to tell.
        let _ = self.commands.send(Command::Claim(claims, names));
    }

    /// The adapters that requests may run with, if any may.
    pub fn adapters(&self) -> Option<&Adapters> {
        self.adapters.as_ref()
    }

    /// Measures how long this share of the KV cache's blocks is of use, from now on.
    pub fn follow_blocks(&self, share: SampleShare) {
        // An engine that has stopped uses none.
        let _ = self.commands.send(Command::Follow(share));
    }

    /// Records spans of requests from now on. Only the first tracer counts.
    pub fn trace(&self, tracer: Tracer) {
        self.metrics.traces.follow(self.tracer.get_or_init(|| tracer));
    }

    /// What records spans of requests, if anything does.
    pub fn tracer(&self) -> Option<&Tracer> {
        self.tracer.get()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// A permit for each byte of text that may be tokenised now, [`MAX_TEXT_BYTES`] in all.
    pub fn text_room(&self) -> &Arc<Semaphore> {
        &self.text_room
    }

    /// The chat template, if the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// What answers may be made to be.
    pub fn grammars(&self) -> &Arc<Grammars> {
        &self.grammars
    }

    /// What the model is called.
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// Tokens of prompt and output together.
    pub fn max_model_len(&self) -> usize {
        self.max_model_len
    }
}

fn describe(
    card: &ModelCard,
    info: &crate::backend::BackendInfo,
    config: &EngineConfig,
    max_model_len: usize,
) -> serde_json::Value {
    serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": card.name,
        "max_model_len": max_model_len,
        "vocab_size": info.vocab,
        "backend": info.name,
        "device": info.device,
        "kv_cache": {
            "block_size": BLOCK_TOKENS,
            "blocks": info.total_blocks,
            "bytes": info.total_blocks * info.block_bytes,
        },
        "max_sequences": config.step.sequences,
        "step_tokens": config.step.tokens,
        "max_waiting": config.max_waiting,
        "enable_prefix_cache": config.prefix_cache,
        "step_timeout_seconds": config.step_timeout.as_secs_f64(),
    })
}

/// The context that is served. A sequence of it must fit into the cache alone, or it could never run.
fn context(asked: Option<usize>, model: usize, blocks: usize) -> Result<usize, StartError> {
    let tokens = blocks * BLOCK_TOKENS;
    match asked {
        Some(0) => Err(StartError::Zero { name: "max_model_len" }),
        Some(asked) if asked > model => Err(StartError::BeyondModel { asked, model }),
        Some(asked) if asked > tokens => Err(StartError::BeyondCache { asked, blocks, tokens }),
        Some(asked) => Ok(asked),
        None => Ok(model.min(tokens)),
    }
}
