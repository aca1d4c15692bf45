//! One engine as a process: options in, requests served, until it is told to stop.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::middleware::from_fn_with_state;
use strata_hop::{Above, Bound, ListenError};
use strata_trace::{ConfigError, Exporter};
use tokio_util::sync::CancellationToken;

use crate::assemble::{assemble_loaded, check, local_path};
use crate::backend::BackendError;
use crate::embed::{self, Embedder};
use crate::events::{KvPublisher, PublishError};
use crate::model::load::{LoadError, load};
use crate::options::EngineOptions;
use crate::runtime::{Engine, ModelCard, StartError};
use crate::serve;
use crate::template::TemplateError;
use crate::tier::DiskError;
use crate::tokenizer::TokenizerError;

/// Why an engine cannot run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model's address is not one that can be opened.
    #[error("the model `{uri}` cannot be opened: {problem}; give file:// and an absolute path, or a path")]
    ModelUri {
        /// What was given.
        uri: String,
        /// What about it.
        problem: String,
    },
    /// The name that requests are to ask for is none.
    #[error("served_model_name is empty: give the name that requests ask for, or leave it out")]
    ServedName,
    /// The model cannot do what it is opened for.
    #[error("task: {0}")]
    Task(String),
    /// The checkpoint cannot be opened.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is no tokenizer for it.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Its chat template is unusable.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The device refuses.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The KV cache's size makes no sense.
    #[error("kv_cache: {0}")]
    KvCache(String),
    /// The KV cache's disk tier cannot be had.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Block events cannot be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Spans cannot be exported.
    #[error(transparent)]
    Traces(#[from] ConfigError),
    /// Tokens cannot be guessed in this way.
    #[error("speculative: {0}")]
    Speculative(String),
    /// Adapters cannot be served in this way.
    #[error("lora: {0}")]
    Lora(String),
    /// The limits do not fit together.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The address cannot be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A defect ended the engine's thread.
    #[error("the engine's thread ended by itself; the log says why")]
    Stopped,
}

/// The most of the grace that is kept for telling the clients of open answers that these are cut.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long the last spans may take when the engine ends.
const LAST_SPANS: Duration = Duration::from_secs(5);

/// Runs an engine until `shutdown`: then it takes no new request, finishes those it has, at most
/// `options.drain_grace` long, and returns. What is not finished a moment before that is aborted, so that
/// its client is told.
pub async fn run(options: EngineOptions, shutdown: CancellationToken) -> Result<(), EngineError> {
    // A port in use should not cost the time that a large model takes to open.
    let bound = Bound::bind(&options.listen).await?.secured(options.mtls.clone());
    run_on(bound, options, shutdown).await
}

/// The same on an address that is bound already; `options.listen` is not read.
pub async fn run_on(
    bound: Bound,
    options: EngineOptions,
    shutdown: CancellationToken,
) -> Result<(), EngineError> {
    tracing::info!(?options, "engine starts");
    let drain_grace = options.drain_grace;
    let above = Above::new(options.hop_token.clone(), options.mtls.as_ref(), serve::CALLERS);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    let publisher = match options.kv_events_config.as_ref().filter(|config| config.publishes()) {
        Some(config) => Some(KvPublisher::bind(config).await?),
        None => None,
    };
    let exporter = options.traces.clone().map(Exporter::start).transpose()?;
    let engine =
        tokio::task::spawn_blocking(move || Served::assemble(&options, now)).await.map_err(|error| {
            tracing::error!(%error, "the model could not be opened");
            EngineError::Stopped
        })??;
    if let Some(publisher) = publisher {
        engine.publish(publisher);
    }
    if let Some(exporter) = &exporter {
        engine.trace(exporter);
    }
    tracing::info!(
        url = bound.url(),
        model = engine.card().name,
        max_model_len = engine.max_model_len(),
        "engine ready"
    );
    let stop = shutdown.child_token();
    let over = CancellationToken::new();
    let router = engine.router(above).layer(from_fn_with_state(stop.clone(), serve::end_uploads));
    let server = async {
        bound.serve(router, stop.clone(), drain_grace).await;
        over.cancel();
    };
    let watched = async {
        tokio::select! {
            () = engine.stopped() => {
                stop.cancel();
                Err(EngineError::Stopped)
            }
            () = shutdown.cancelled() => {
                engine.drain();
                tracing::info!("engine drains");
                let last_words = async {
                    tokio::time::sleep(drain_grace.saturating_sub(LAST_WORDS.min(drain_grace / 10))).await;
                    engine.abort_all().await;
                };
                tokio::select! {
                    () = over.cancelled() => {}
                    () = last_words => {}
                }
                Ok(())
            }
        }
    };
    let ((), outcome) = tokio::join!(server, watched);
    if let Some(exporter) = exporter {
        engine.idle(LAST_SPANS).await;
        exporter.close(LAST_SPANS).await;
    }
    tracing::info!("engine stopped");
    outcome
}

/// What one process serves.
enum Served {
    Text(Arc<Engine>),
    Vectors(Arc<Embedder>),
}

impl Served {
    fn assemble(options: &EngineOptions, now: i64) -> Result<Self, EngineError> {
        let path = local_path(&options.model)?;
        check(options)?;
        if let Some(encoder) = embed::assemble(options, &path, now)? {
            return Ok(Self::Vectors(encoder));
        }
        let model = load(&path)?;
        match embed::reads(options.task, &model).map_err(EngineError::Task)? {
            Some(output) => embed::assemble_decoder(options, &path, model, output, now).map(Self::Vectors),
            None => assemble_loaded(options, &path, model, now).map(Self::Text),
        }
    }

    fn card(&self) -> &ModelCard {
        match self {
            Self::Text(engine) => engine.card(),
            Self::Vectors(embedder) => embedder.card(),
        }
    }

    fn max_model_len(&self) -> usize {
        match self {
            Self::Text(engine) => engine.max_model_len(),
            Self::Vectors(embedder) => embedder.max_len(),
        }
    }

    /// A model that reads keeps no blocks, so there is nothing of it to publish.
    fn publish(&self, publisher: KvPublisher) {
        match self {
            Self::Text(engine) => {
                tracing::warn!("block events are published, with the token ids of all prompts");
                engine.publish(publisher);
            }
            Self::Vectors(_) => {
                tracing::warn!("a model that embeds keeps no blocks; no block events are published");
            }
        }
    }

    /// An encoder's requests have no spans yet.
    fn trace(&self, exporter: &Exporter) {
        match self {
            Self::Text(engine) => engine.trace(exporter.tracer().clone()),
            Self::Vectors(_) => tracing::warn!("an encoder's requests are not traced; no spans are exported"),
        }
    }

    /// Waits until what clients have left is over, at most this long.
    async fn idle(&self, limit: Duration) {
        if let Self::Text(engine) = self {
            // What goes on longer has no span.
            let _ = tokio::time::timeout(limit, engine.idle()).await;
        }
    }

    fn router(&self, above: Above) -> axum::Router {
        match self {
            Self::Text(engine) => serve::router(engine.clone(), above),
            Self::Vectors(embedder) => serve::embed::router(embedder.clone(), above),
        }
    }

    async fn stopped(&self) {
        match self {
            Self::Text(engine) => engine.stopped().await,
            Self::Vectors(embedder) => embedder.stopped().await,
        }
    }

    fn drain(&self) {
        match self {
            Self::Text(engine) => engine.drain(),
            Self::Vectors(embedder) => embedder.drain(),
        }
    }

    /// Ends all open requests with what they have.
    async fn abort_all(&self) {
        let aborted = match self {
            Self::Text(engine) => engine.abort_all().await,
            Self::Vectors(embedder) => embedder.abort_all(),
        };
        if aborted > 0 {
            tracing::warn!(aborted, "requests were ended because the time to drain is over");
        }
    }
}
