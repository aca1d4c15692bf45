//! The engine's thread: takes commands, plans a step, runs it, hands out the tokens; again.

mod execute;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use strata_wire::engine_events::Load;
use tokio::sync::{mpsc, oneshot};

use super::adapters::LoadedAdapters;
use super::blocks::BlockKeeper;
use super::choice::{Choice, Place};
use super::generation::{Blame, Event, Failure, GenerationRequest};
use super::operate::{Hold, Operation, Reopen};
use super::score::PromptScore;
use super::speculate::Speculation;
use super::trace::RequestTrace;
use super::watch::Watch;
use crate::backend::{Backend, Logits};
use crate::block::BlockHash;
use crate::events::{Claim, KvFeed};
use crate::lora::AdapterId;
use crate::sampling::Sampler;
use crate::step::{NewSequence, Plan, Planner, SequenceId};
use crate::telemetry::{Metrics, Residency, SampleShare};
use crate::tier::TierEvent;
use crate::tokenizer::Tokenizer;

/// What the engine's thread is told.
#[derive(Debug)]
pub(super) enum Command {
    Submit(Box<Submission>),
    /// Publish the KV cache's changes from now on.
    Feed(KvFeed),
    /// Follow this share of the blocks from now on.
    Follow(SampleShare),
    /// A block that another engine has computed.
    Receive(BlockHash, Bytes),
    /// What a text is known by to a router, and the names of its tokens' blocks.
    Claim(Vec<Claim>, Vec<BlockHash>),
    /// A lower tier has something to say.
    Tier(TierEvent),
    /// Nobody listens to this request any more.
    Abandon(u64),
    Abort {
        id: String,
        reply: oneshot::Sender<bool>,
    },
    WhenIdle(oneshot::Sender<()>),
    Operate(Operation),
}

#[derive(Debug)]
pub(super) struct Submission {
    pub(super) key: u64,
    pub(super) request: GenerationRequest,
    pub(super) events: mpsc::UnboundedSender<Event>,
    pub(super) arrived: Instant,
}

/// A request with answers in the making.
pub(super) struct Open {
    id: String,
    events: mpsc::UnboundedSender<Event>,
    sequences: Vec<SequenceId>,
    /// Blocks that the request was announced to use.
    claimed: Vec<BlockHash>,
    /// Whether its prompt's blocks are kept for another engine.
    keeps: bool,
    n: usize,
    /// The adapter that it runs with.
    adapter: Option<AdapterId>,
    trace: Option<RequestTrace>,
}

pub(super) struct Driver {
    pub(super) backend: Box<dyn Backend>,
    pub(super) planner: Planner,
    commands: mpsc::UnboundedReceiver<Command>,
    tokenizer: Arc<Tokenizer>,
    pub(super) blocks: BlockKeeper,
    pub(super) metrics: Arc<Metrics>,
    pub(super) watch: Arc<Watch>,
    pub(super) hold: Hold,
    /// Opens the model again after a deep sleep.
    pub(super) reopen: Option<Reopen>,
    /// Sequences that were submitted and have not been admitted.
    queued: Arc<AtomicUsize>,
    pub(super) requests: HashMap<u64, Open>,
    choices: HashMap<SequenceId, Choice>,
    when_idle: Vec<oneshot::Sender<()>>,
    prefill_rate: f64,
    /// The step that is run; kept for its buffers.
    plan: Plan,
    /// Whether nothing can run until something is told.
    stands: bool,
    pub(super) speculation: Option<Speculation>,
    pub(super) adapters: LoadedAdapters,
    /// The tokens chosen for one sequence; kept for its buffer.
    chosen: Vec<u32>,
    /// What the last step returned; kept for its buffer.
    logits: Logits,
    residency: Option<Residency>,
}

impl Driver {
    pub(super) fn new(
        backend: Box<dyn Backend>,
        planner: Planner,
        commands: mpsc::UnboundedReceiver<Command>,
        tokenizer: Arc<Tokenizer>,
        (metrics, watch): (Arc<Metrics>, Arc<Watch>),
        blocks: BlockKeeper,
        queued: Arc<AtomicUsize>,
    ) -> Self {
        Self {
            backend,
            planner,
            commands,
            tokenizer,
            metrics,
            stands: false,
            blocks,
            watch,
            hold: Hold::default(),
            reopen: None,
            queued,
            requests: HashMap::new(),
            choices: HashMap::new(),
            when_idle: Vec::new(),
            prefill_rate: 0.0,
            plan: Plan::default(),
            speculation: None,
            adapters: LoadedAdapters::default(),
            chosen: Vec::new(),
            logits: Logits::default(),
            residency: None,
        }
    }

    /// Guesses tokens from now on.
    pub(super) fn speculate(&mut self, speculation: Option<Speculation>) {
        self.speculation = speculation;
    }

    /// Runs requests with these adapters, which the backend has.
    pub(super) fn adapt(&mut self, adapters: LoadedAdapters, at_once: usize) {
        self.planner.limit_adapters(at_once);
        self.adapters = adapters;
    }

    /// Opens the model again by this after a deep sleep.
    pub(super) fn reopen_by(&mut self, reopen: Option<Reopen>) {
        self.reopen = reopen;
    }

    /// Runs until all handles are gone.
    pub(super) fn run(mut self) {
        loop {
            self.tell_quiet();
            if !self.may_step() {
                self.stands = true;
                self.publish();
                if self.planner.is_idle() {
                    for waiter in self.when_idle.drain(..) {
                        let _ = waiter.send(());
                    }
                }
            }
            if std::mem::take(&mut self.stands) {
                match self.commands.blocking_recv() {
                    Some(command) => self.take(command),
                    None => return,
                }
            }
            while let Ok(command) = self.commands.try_recv() {
                self.take(command);
            }
            if self.may_step() {
                self.watch.begin(1, Instant::now());
                self.step();
                self.watch.end();
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.submit(*submission),
            Command::Feed(feed) => self.blocks.feed(feed),
            Command::Follow(share) => {
                self.planner.watch_blocks();
                self.residency = Some(self.metrics.residency.follow(share));
            }
            Command::Receive(hash, bytes) => self.blocks.receive(hash, &bytes, &mut self.planner),
            Command::Claim(claims, names) => self.blocks.claim(&claims, &names),
            Command::Tier(event) => self.blocks.take(event, &mut self.planner, self.backend.as_mut()),
            Command::Abandon(key) => self.end(key, "abort"),
            Command::Abort { id, reply } => {
                let keys: Vec<u64> =
                    self.requests.iter().filter(|(_, r)| r.id == id).map(|(k, _)| *k).collect();
                for key in &keys {
                    self.abort(*key);
                }
                let _ = reply.send(!keys.is_empty());
            }
            Command::WhenIdle(waiter) => self.when_idle.push(waiter),
            Command::Operate(operation) => self.operate(operation),
        }
    }

    fn submit(&mut self, submission: Submission) {
        let Submission { key, request, events, arrived } = submission;
        let special = self.tokenizer.special();
        let own: &[u32] = if request.rules.ignore_eos { &[] } else { &special.eos };
        let ends: Arc<[u32]> = own.iter().chain(&request.rules.stop_token_ids).copied().collect();
        let rules = Arc::new(request.rules);
        let structure = request.structure;
        self.metrics.request_n.observe(request.n as f64);
        self.metrics.request_max_tokens.observe(rules.max_tokens as f64);
        let mut open = Open {
            id: request.id,
            events,
            sequences: Vec::new(),
            claimed: Vec::new(),
            keeps: request.keeps,
            n: request.n,
            adapter: None,
            trace: request.span.map(|span| RequestTrace::new(span, request.prompts.len() * request.n)),
        };
        let mut refused: Option<String> = None;
        // Of an adapter that was unloaded since the request was read, nothing is told: its name is free.
        let told = match &request.adapter {
            None => true,
            Some(adapter) => match self.adapters.enter(adapter, self.backend.as_mut()) {
                Ok(serves) => {
                    open.adapter = Some(adapter.key.id);
                    serves
                }
                Err(error) => {
                    refused = Some(error.to_string());
                    false
                }
            },
        };
        let adapter = request.adapter.as_ref().map(|adapter| &adapter.key);
        for (at, prompt) in request.prompts.into_iter().enumerate() {
            for i in 0..request.n {
                let new = NewSequence {
                    tokens: prompt.clone(),
                    priority: request.priority,
                    cache_salt: request.cache_salt.clone(),
                    scored: i == 0 && request.sampling.prompt_logprobs.is_some(),
                    adapter: adapter.cloned(),
                };
                let scored = new.scored;
                let place = Place { key, index: at * request.n + i, prompt_tokens: prompt.len(), arrived };
                // Answers to one prompt differ by their series; equal prompts of one request repeat.
                let sampler = Sampler::new(request.sampling.clone(), i, &prompt);
                match self.planner.add(new) {
                    Ok(id) => {
                        if i == 0 {
                            let claims = if at == 0 && told { request.claims.as_slice() } else { &[] };
                            let entered = self.blocks.enter(&mut self.planner, id, claims, open.adapter);
                            open.claimed.extend(entered);
                        }
                        let (rules, ends) = (rules.clone(), ends.clone());
                        let mut choice = Choice::new(place, sampler, rules, ends, structure.as_ref());
                        let top = request.sampling.prompt_logprobs.filter(|_| scored);
                        choice.score = top.map(|top| PromptScore::new(&prompt, top));
                        self.choices.insert(id, choice);
                        open.sequences.push(id);
                    }
                    Err(error) => {
                        self.queued.fetch_sub(1, Ordering::Relaxed);
                        refused = Some(error.to_string());
                    }
                }
            }
        }
        self.requests.insert(key, open);
        if let Some(error) = refused {
            self.fail(key, &error);
        }
    }

    /// What every end of a request comes to.
    fn leave(&mut self, open: &Open) {
        // What its last step has computed is not told yet, and would be nobody's then.
        if !open.claimed.is_empty() {
            self.blocks.follow(&mut self.planner, self.backend.as_ref());
        }
        self.blocks.leave(&open.claimed);
        if let Some(adapter) = open.adapter {
            self.adapters.leave(adapter, self.backend.as_mut());
        }
    }

    /// Ends a request's open answers with what they have so far.
    pub(super) fn abort(&mut self, key: u64) {
        let Some(open) = self.requests.get(&key) else { return };
        for id in &open.sequences {
            if let Some(choice) = self.choices.get_mut(id) {
                let _ = open.events.send(Event::Piece(choice.abort()));
            }
        }
        self.end(key, "abort");
    }

    fn fail(&mut self, key: u64, message: &str) {
        self.fail_by(key, Blame::Engine, message);
    }

    fn fail_by(&mut self, key: u64, blame: Blame, message: &str) {
        if let Some(open) = self.requests.get(&key) {
            let events = open.events.clone();
            self.end(key, "error");
            let _ = events.send(Event::Failed(Failure { message: message.into(), blame }));
        }
    }

    /// Forgets a request and gives its blocks back.
    fn end(&mut self, key: u64, reason: &'static str) {
        let Some(mut open) = self.requests.remove(&key) else { return };
        for id in std::mem::take(&mut open.sequences) {
            if let Some(choice) = self.choices.remove(&id) {
                if let Some(trace) = &mut open.trace {
                    trace.note(&choice, open.n, reason);
                }
                self.finish(id, &choice, reason);
            }
        }
        self.leave(&open);
        if let Some(trace) = open.trace {
            trace.end();
        }
    }

    /// What every end of a sequence comes to.
    fn finish(&mut self, id: SequenceId, choice: &Choice, reason: &'static str) {
        self.planner.remove(id);
        if let Some(speculation) = &mut self.speculation {
            speculation.forget(id);
        }
        if choice.times.scheduled.is_none() {
            self.queued.fetch_sub(1, Ordering::Relaxed);
        }
        let (m, t) = (&self.metrics, &choice.times);
        m.count_finished(reason);
        m.request_prompt_tokens.observe(choice.prompt_tokens as f64);
        m.request_generation_tokens.observe(choice.generated as f64);
        let last = t.last_token.unwrap_or_else(Instant::now);
        m.e2e.observe((last - t.arrived).as_secs_f64());
        if let Some(scheduled) = t.scheduled {
            m.inference.observe(last.saturating_duration_since(scheduled).as_secs_f64());
        }
        if let Some(first) = t.first_token {
            let decode = (last - first).as_secs_f64();
            m.decode.observe(decode);
            if choice.generated > 1 {
                m.tpot.observe(decode / (choice.generated - 1) as f64);
            }
        }
    }

    fn step(&mut self) {
        let mut plan = std::mem::take(&mut self.plan);
        if let Some(speculation) = &mut self.speculation {
            speculation.propose(&mut self.planner, &self.choices);
        }
        self.planner.plan_into(&mut plan);
        if let Some(residency) = &mut self.residency {
            residency.note(&self.planner.take_touches(), Instant::now());
        }
        let awaits = self.planner.is_loading();
        self.blocks.follow(&mut self.planner, self.backend.as_ref());
        self.blocks.begin(&plan.loads, &mut self.planner);
        let brings = self.blocks.bring(&mut self.planner, self.backend.as_mut());
        if plan.parts.is_empty() && awaits {
            self.note_plan(&plan, Instant::now());
            self.publish();
            self.stands = !brings && !self.planner.has_arrived();
            self.plan = plan;
            return;
        }
        self.run_plan(&plan);
        self.plan = plan;
    }

    fn note_plan(&mut self, plan: &Plan, now: Instant) {
        let m = &self.metrics;
        m.preemptions.inc_by(plan.preempted.len() as u64);
        if !plan.batch.tokens.is_empty() {
            m.iteration_tokens.observe(plan.batch.tokens.len() as f64);
        }
        for admission in plan.admitted.iter().filter(|a| a.first) {
            let Some(choice) = self.choices.get_mut(&admission.id) else { continue };
            choice.times.scheduled = Some(now);
            self.queued.fetch_sub(1, Ordering::Relaxed);
            m.queue.observe((now - choice.times.arrived).as_secs_f64());
            m.prefix_queries.inc_by(choice.prompt_tokens as u64);
            let local = admission.cached_tokens - admission.loaded_tokens;
            m.prefix_hits.inc_by(local as u64);
            if self.blocks.has_below() {
                m.external.count(choice.prompt_tokens - local, admission.loaded_tokens);
            }
            m.prompt_tokens.inc_by(choice.prompt_tokens as u64);
            m.prompt_tokens_cached.inc_by(admission.cached_tokens as u64);
            if let Some(open) = self.requests.get(&choice.key)
                && choice.index % open.n == 0
            {
                let prompt = choice.index / open.n;
                let _ = open.events.send(Event::Admitted { prompt, cached_tokens: admission.cached_tokens });
            }
        }
    }

    /// Keeps the rate at which prompts are computed, over steps that are mostly prompt.
    fn note_prefill(&mut self, plan: &Plan, seconds: f64) {
        let prompt: usize = plan.parts.iter().filter(|p| p.tokens > 1).map(|p| p.tokens).sum();
        if prompt * 2 > plan.batch.tokens.len() && seconds > 0.0 {
            let rate = plan.batch.tokens.len() as f64 / seconds;
            self.prefill_rate =
                if self.prefill_rate == 0.0 { rate } else { 0.8 * self.prefill_rate + 0.2 * rate };
            self.metrics.prefill_rate.set(self.prefill_rate);
        }
    }

    /// Sets the gauges. Between two calls only submissions change them.
    fn publish(&self) {
        let state = self.planner.state();
        let waiting_tokens = state.waiting_tokens + state.unread_tokens;
        let m = &self.metrics;
        m.running.set(state.running as i64);
        m.waiting.set(state.waiting as i64);
        m.waiting_tokens.set(waiting_tokens as i64);
        m.kv_usage.set(1.0 - state.free_blocks as f64 / state.total_blocks as f64);
        if let Some(lora) = &m.lora {
            lora.set(&self.planner.adapters());
        }
        self.blocks.log().load(|load| {
            *load = Load {
                running: state.running as u64,
                waiting: state.waiting as u64,
                waiting_tokens: waiting_tokens as u64,
                free_blocks: state.free_blocks as u64,
                total_blocks: state.total_blocks as u64,
            }
        });
    }
}
