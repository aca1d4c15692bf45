//! Measures a server over HTTP.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::Random;
use crate::arrival::Arrival;
use crate::client::{Api, Client, Target, TargetError};
use crate::dataset::{Prompt, Request};
use crate::summary::{Completed, Goodput, Outcome, Summary};

/// How a server is measured.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The server.
    pub target: Target,
    /// When requests are sent.
    pub arrival: Arrival,
    /// Requests at once; those beyond wait here, which counts for none of their times.
    pub max_concurrency: Option<usize>,
    /// Requests that are sent before and not counted; each is the first prompt again.
    pub warmups: usize,
    /// How long to wait for the server to answer at all.
    pub ready_within: Duration,
    /// Before the number of each request, in `x-request-id`.
    pub request_id_prefix: String,
    /// The percentiles to compute, in [0, 100].
    pub percentiles: Vec<f64>,
    /// Limits by which a request counts as good.
    pub goodput: Goodput,
    /// Names of adapters, of which each request asks for one by chance; for the model itself where there
    /// are none.
    pub adapters: Vec<String>,
    /// Seed of the arrivals, and of the choice among adapters.
    pub seed: u64,
}

/// A finished run.
#[derive(Clone, Debug)]
pub struct Run {
    /// The API, by vLLM's name for it.
    pub backend: &'static str,
    /// The model that was asked for.
    pub model: String,
    /// When requests were sent.
    pub arrival: Arrival,
    /// Requests at once.
    pub max_concurrency: Option<usize>,
    /// What became of each request, in the order of the prompts.
    pub outcomes: Vec<Outcome>,
    /// The figures.
    pub summary: Summary,
}

/// Why there was no run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The server cannot be measured.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A request before the run failed, and so would those of the run.
    #[error("a warm-up request failed: {0}")]
    Warmup(String),
}

/// Sends the requests and waits for all. A request that fails is an outcome, not an error.
pub async fn run(options: ServeOptions, requests: Vec<Request>) -> Result<Run, ServeError> {
    let api = options.target.api;
    if api == Api::Chat && requests.iter().any(|r| matches!(r.prompt, Prompt::Tokens(_))) {
        return Err(TargetError::TokensToChat.into());
    }
    let client = Arc::new(Client::connect(options.target, options.ready_within).await?);
    if let Some(first) = requests.first() {
        for i in 0..options.warmups {
            let id = format!("{}warmup-{i}", options.request_id_prefix);
            client.send(first, None, &id, Instant::now()).await.map_err(ServeError::Warmup)?;
        }
    }
    let mut random = Random::new(options.seed);
    let times = options.arrival.times(requests.len(), &mut random);
    let mut adapter = || match options.adapters.len() {
        0 => None,
        count => Some(options.adapters[random.below(count)].clone()),
    };
    let places = options.max_concurrency.map(|n| Arc::new(Semaphore::new(n)));
    let begin = Instant::now();
    let mut open = JoinSet::new();
    for (number, (request, at)) in requests.into_iter().zip(times).enumerate() {
        tokio::time::sleep_until((begin + at).into()).await;
        let (client, places, adapter) = (client.clone(), places.clone(), adapter());
        let id = format!("{}{number}", options.request_id_prefix);
        open.spawn(async move {
            let arrived = Instant::now();
            let _place = match &places {
                Some(places) => places.acquire().await.ok(),
                None => None,
            };
            let sent = Instant::now();
            let start = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
            let result = client.send(&request, adapter.as_deref(), &id, sent).await.map(|seen| Completed {
                ttft: seen.first,
                latency: seen.last,
                itl: seen.gaps,
                prompt_tokens: seen.usage.prompt_tokens,
                cached_tokens: seen.usage.cached_tokens(),
                output_tokens: seen.usage.completion_tokens,
            });
            (number, Outcome { start, queued: sent - arrived, result })
        });
    }
    let mut outcomes = open.join_all().await;
    let duration = begin.elapsed();
    outcomes.sort_by_key(|(number, _)| *number);
    let outcomes: Vec<Outcome> = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
    Ok(Run {
        backend: match api {
            Api::Completions => "openai",
            Api::Chat => "openai-chat",
        },
        model: client.model().to_owned(),
        arrival: options.arrival,
        max_concurrency: options.max_concurrency,
        summary: Summary::of(&outcomes, duration, &options.percentiles, &options.goodput),
        outcomes,
    })
}
