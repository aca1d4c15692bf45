//! Measures the engine in this process, without HTTP.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use futures::future::join_all;
use serde_json::{Value, json};
use strata_engine::runtime::{Engine, Event, GenerationRequest, OutputRules, SubmitError};
use strata_engine::sampling::SamplingParams;
use strata_engine::tokenizer::{Tokenizer, TokenizerError};
use strata_engine::{EngineError, EngineOptions, assemble};

use crate::dataset::{self, Prompt, Request, Uniform, Vocabulary};
use crate::summary::percentile;

/// Percentiles of a batch's time that are told, as vLLM does.
const PERCENTILES: [u32; 6] = [10, 25, 50, 75, 90, 99];

/// How answers are generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Generating {
    /// Answers to each prompt.
    pub n: usize,
    /// 0 takes the likeliest token each time.
    pub temperature: f32,
    /// Seed of the sampling.
    pub seed: u64,
}

/// Why there was no run.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The engine cannot start.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It does not take the request.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// A prompt has no tokens.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Prompt and output are longer than the context.
    #[error(
        "prompt {number} has {prompt} tokens and {output} are to be generated, and the context holds {context}; \
         ask for fewer, or raise --max-model-len"
    )]
    TooLong {
        /// Which prompt.
        number: usize,
        /// Its tokens.
        prompt: usize,
        /// The tokens to generate.
        output: usize,
        /// The context.
        context: usize,
    },
    /// A prompt is empty.
    #[error("prompt {number} is empty; give at least one token")]
    Empty {
        /// Which prompt.
        number: usize,
    },
    /// A request failed after it was accepted.
    #[error("request {number} failed: {message}")]
    Failed {
        /// Which prompt.
        number: usize,
        /// What the engine said.
        message: String,
    },
}

/// All prompts at once, as fast as they go.
#[derive(Clone, Debug, PartialEq)]
pub struct Throughput {
    /// Seconds for all.
    pub elapsed_time: f64,
    /// Prompts.
    pub num_requests: usize,
    /// Tokens of prompts.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub output_tokens: usize,
}

impl Throughput {
    fn rate(&self, count: usize) -> f64 {
        count as f64 / self.elapsed_time
    }

    /// One line for people.
    pub fn text(&self) -> String {
        let (all, output) = (self.prompt_tokens + self.output_tokens, self.output_tokens);
        format!(
            "Throughput: {:.2} requests/s, {:.2} total tokens/s, {:.2} output tokens/s\nTotal num prompt tokens: {}\n\
             Total num output tokens: {output}\n",
            self.rate(self.num_requests),
            self.rate(all),
            self.rate(output),
            self.prompt_tokens,
        )
    }

    /// The members that `vllm bench throughput` writes, and the output's.
    pub fn json(&self) -> Value {
        let all = self.prompt_tokens + self.output_tokens;
        json!({
            "elapsed_time": self.elapsed_time,
            "num_requests": self.num_requests,
            "total_num_tokens": all,
            "requests_per_second": self.rate(self.num_requests),
            "tokens_per_second": self.rate(all),
            "total_output_tokens": self.output_tokens,
            "output_tokens_per_second": self.rate(self.output_tokens),
        })
    }
}

/// The time of one batch, over and over.
#[derive(Clone, Debug, PartialEq)]
pub struct Latency {
    /// Seconds of each.
    pub latencies: Vec<f64>,
}

impl Latency {
    fn average(&self) -> f64 {
        self.latencies.iter().sum::<f64>() / self.latencies.len().max(1) as f64
    }

    fn percentiles(&self) -> Vec<(u32, f64)> {
        let mut sorted = self.latencies.clone();
        sorted.sort_by(f64::total_cmp);
        PERCENTILES.map(|p| (p, percentile(&sorted, f64::from(p)))).into()
    }

    /// Some lines for people.
    pub fn text(&self) -> String {
        let mut text = format!("Avg latency: {} seconds\n", self.average());
        for (p, seconds) in self.percentiles() {
            let _ = writeln!(text, "{p}% percentile latency: {seconds} seconds");
        }
        text
    }

    /// The members that `vllm bench latency` writes.
    pub fn json(&self) -> Value {
        let percentiles: serde_json::Map<_, _> =
            self.percentiles().into_iter().map(|(p, seconds)| (p.to_string(), seconds.into())).collect();
        json!({"avg_latency": self.average(), "latencies": self.latencies, "percentiles": percentiles})
    }
}

/// The engine that is measured, in this process.
#[derive(Debug)]
pub struct Offline {
    engine: Arc<Engine>,
    generating: Generating,
}

impl Offline {
    /// Opens the model.
    pub fn open(options: EngineOptions, generating: Generating) -> Result<Self, OfflineError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        // Here nobody is to be told to come again.
        let options = EngineOptions { max_waiting: 1 << 30, ..options };
        Ok(Self { engine: assemble(&options, now)?, generating })
    }

    /// Its tokenizer, for prompts of its tokens.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        self.engine.tokenizer()
    }

    /// Generates all at once.
    pub async fn throughput(&self, requests: &[Request]) -> Result<Throughput, OfflineError> {
        let prompts = self.prompts(requests)?;
        let prompt_tokens = prompts.iter().map(|(prompt, _)| prompt.len()).sum();
        let begin = Instant::now();
        let output_tokens = self.generate(prompts).await?;
        let elapsed_time = begin.elapsed().as_secs_f64();
        Ok(Throughput { elapsed_time, num_requests: requests.len(), prompt_tokens, output_tokens })
    }

    /// Times batches of `size` prompts after `warmups` that do not count, each of prompts of its own.
    pub async fn latency(
        &self,
        size: usize,
        input_len: usize,
        output_len: usize,
        warmups: usize,
        iterations: usize,
    ) -> Result<Latency, OfflineError> {
        let vocabulary = Vocabulary::Tokens(self.tokenizer().clone());
        let shape = Uniform { count: size, prefix_len: 0, input_len, output_len, range_ratio: 0.0 };
        let mut latencies = Vec::with_capacity(iterations);
        for i in 0..warmups + iterations {
            // New prompts each time, or the prefix cache would have them.
            let seed = self.generating.seed.wrapping_add(i as u64);
            let prompts = self.prompts(&dataset::uniform(shape, &vocabulary, seed))?;
            let begin = Instant::now();
            self.generate(prompts).await?;
            if i >= warmups {
                latencies.push(begin.elapsed().as_secs_f64());
            }
        }
        Ok(Latency { latencies })
    }

    fn prompts(&self, requests: &[Request]) -> Result<Vec<(Vec<u32>, usize)>, OfflineError> {
        let context = self.engine.max_model_len();
        let tokens = |(number, request): (usize, &Request)| {
            let prompt = match &request.prompt {
                Prompt::Tokens(tokens) => tokens.clone(),
                Prompt::Text(text) => self.tokenizer().encode(text, true)?,
            };
            match prompt.len() {
                0 => Err(OfflineError::Empty { number }),
                len if len + request.output_len > context => {
                    let output = request.output_len;
                    Err(OfflineError::TooLong { number, prompt: len, output, context })
                }
                _ => Ok((prompt, request.output_len)),
            }
        };
        requests.iter().enumerate().map(tokens).collect()
    }

    /// Generates answers to their full length; the tokens of all.
    async fn generate(&self, prompts: Vec<(Vec<u32>, usize)>) -> Result<usize, OfflineError> {
        let mut open = Vec::with_capacity(prompts.len());
        for (number, (prompt, max_tokens)) in prompts.into_iter().enumerate() {
            let request = GenerationRequest {
                id: format!("bench-{number}"),
                prompts: vec![prompt],
                n: self.generating.n,
                sampling: SamplingParams {
                    temperature: self.generating.temperature,
                    seed: self.generating.seed.wrapping_add(number as u64),
                    ..SamplingParams::default()
                },
                rules: OutputRules { max_tokens, ignore_eos: true, ..OutputRules::default() },
                structure: None,
                claims: Vec::new(),
                keeps: false,
                cache_salt: None,
                priority: 0,
                adapter: None,
                span: None,
            };
            open.push(self.engine.submit(request)?);
        }
        let answers = open.into_iter().enumerate().map(async |(number, mut generation)| {
            let mut tokens = 0;
            while let Some(event) = generation.next().await {
                match event {
                    Event::Piece(piece) => tokens += usize::from(piece.token.is_some()),
                    Event::Failed(failure) => {
                        return Err(OfflineError::Failed { number, message: failure.to_string() });
                    }
                    Event::Admitted { .. } | Event::Scored { .. } => {}
                }
            }
            Ok(tokens)
        });
        join_all(answers).await.into_iter().sum()
    }
}

/// The tokenizer of a model, for prompts of its tokens.
pub fn tokenizer(model: &str) -> Result<Arc<Tokenizer>, EngineError> {
    let path = strata_engine::local_path(model)?;
    let loaded = strata_engine::model::load::load(&path)?;
    Ok(Arc::new(Tokenizer::build(&loaded.tokenizer_source, &loaded.special)?))
}
