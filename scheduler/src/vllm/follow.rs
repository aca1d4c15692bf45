//! Follows one vLLM: its batches, and the prompts that it is sent.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use strata_wire::replicas::KvEvents;

use super::ask::{Refused, ask};
use super::batch::{self, Event};
use super::ledger::{Ledger, Told};
use super::notes::{Note, Notes};
use super::order::{Order, Step};
use super::prompt::{self, Sent, Tokenised};
use super::sockets::{Broken, Live, Packed, Replay};
use crate::follow::sweep;
use crate::index::{BlockIndex, Lane};
use crate::replica::Replica;
use crate::scheduler::Scheduler;

/// Between two tries to connect, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// What a replica that broke off had told counts for so long.
const REMEMBERED: Duration = Duration::from_secs(15);
/// When a replica is asked whether anything was missed that nothing followed: soon after it was connected to,
/// for it may have published before it knew of that, and from then on.
const CHECK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Before a replica that has no `/tokenize` is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Tokenised prompts that wait for the first block to tell how blocks are cut.
const MOST_WAITING: usize = 64;

type Asking = Pin<Box<dyn Future<Output = Result<Option<Tokenised>, Refused>> + Send>>;

/// What is known of one vLLM. It outlives a connection.
#[derive(Debug)]
pub struct Following {
    ledger: Ledger,
    order: Order,
    lane: Lane,
    waiting: VecDeque<Arc<Tokenised>>,
    /// No prompt is asked for before.
    ask_at: Duration,
    /// Whether it has been said what is wrong.
    complained: bool,
}

impl Following {
    /// Nothing is known.
    pub fn new(index: &BlockIndex) -> Self {
        Self {
            ledger: Ledger::default(),
            order: Order::default(),
            lane: index.open(),
            waiting: VecDeque::new(),
            ask_at: Duration::ZERO,
            complained: false,
        }
    }
}

/// Follows a vLLM until the task is dropped.
pub async fn follow(
    scheduler: &Scheduler,
    replica: &Replica,
    notes: &Notes,
    events: &KvEvents,
    following: &mut Following,
) {
    let (mut pause, mut heard) = (AGAIN.0, scheduler.now());
    let mut follower = Follower { scheduler, replica, notes, events, following };
    loop {
        let began = scheduler.now();
        let Err(why) = follower.listen(&mut heard).await;
        tracing::debug!(replica = replica.name(), %why, "a replica's KV events broke off");
        scheduler.metrics.events_ended("broken");
        if scheduler.now().saturating_sub(heard) > REMEMBERED {
            replica.told(None);
        }
        if heard.saturating_sub(began) > AGAIN.1 {
            pause = AGAIN.0;
        }
        let jitter = 0.5 + (scheduler.random() % 1024) as f64 / 1024.0;
        tokio::time::sleep(pause.mul_f64(jitter)).await;
        pause = (pause * 2).min(AGAIN.1);
    }
}

struct Follower<'a> {
    scheduler: &'a Scheduler,
    replica: &'a Replica,
    notes: &'a Notes,
    events: &'a KvEvents,
    following: &'a mut Following,
}

/// Nothing: it goes on until it breaks.
enum Never {}

impl Follower<'_> {
    async fn listen(&mut self, heard: &mut Duration) -> Result<Never, Broken> {
        let mut live = Live::connect(&self.events.publish).await?;
        self.catch_up().await;
        self.replica.told_in_part(self.following.lane.clone());
        *heard = self.scheduler.now();
        tracing::info!(
            replica = self.replica.name(),
            whole = self.following.order.is_whole(),
            "a replica's KV events are followed"
        );
        let mut asking: Option<(Sent, Asking)> = None;
        let mut check = Box::pin(tokio::time::sleep(CHECK.0));
        loop {
            let idle = asking.is_none();
            let answer = async {
                match &mut asking {
                    Some((_, asking)) => asking.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                packed = live.next() => {
                    let packed = packed?;
                    *heard = self.scheduler.now();
                    self.happened(&packed).await;
                }
                answer = answer => {
                    if let Some((sent, _)) = asking.take() {
                        self.answered(&sent, answer);
                    }
                }
                () = &mut check => {
                    self.check().await;
                    check.as_mut().reset(tokio::time::Instant::now() + CHECK.1);
                }
                note = self.notes.next(), if idle => asking = self.noted(note),
            }
            sweep(self.scheduler);
        }
    }

    /// Takes what was missed; where that cannot be known, begins anew.
    async fn catch_up(&mut self) {
        let anew = match &self.events.replay {
            None => self.following.order.has_begun(),
            Some(endpoint) => match self.replay(endpoint).await {
                Ok(()) => false,
                Err(why) => {
                    self.complain(
                        "a replica replays nothing of its KV events; what was missed is not known",
                        &why,
                    );
                    true
                }
            },
        };
        if anew {
            self.following.order.lost();
            self.anew(false);
        }
    }

    /// Takes what was missed, if anything was.
    async fn check(&mut self) {
        let Some(endpoint) = &self.events.replay else { return };
        if let Err(why) = self.replay(endpoint).await {
            tracing::debug!(replica = self.replica.name(), %why, "a replica replays nothing");
        }
        self.replica.told_in_part(self.following.lane.clone());
    }

    /// Takes what has happened since the last batch that is known.
    async fn replay(&mut self, endpoint: &str) -> Result<(), Broken> {
        let mut replay = Replay::ask(endpoint, self.following.order.from()).await?;
        let mut batches = 0;
        while let Some(packed) = replay.next().await? {
            let begun = self.following.order.has_begun();
            let step = self.following.order.replayed(batches == 0, packed.mark);
            self.step(step, begun, &packed);
            batches += 1;
        }
        if self.following.order.replay_ended(batches) {
            self.anew(true);
        }
        Ok(())
    }

    async fn happened(&mut self, packed: &Packed) {
        let can_replay = self.events.replay.is_some();
        let begun = self.following.order.has_begun();
        let mut step = self.following.order.live(packed.mark, can_replay);
        if step == Step::Missing {
            tracing::info!(
                replica = self.replica.name(),
                number = packed.mark.number,
                "a replica's KV events have a gap"
            );
            self.scheduler.metrics.events_ended("gap");
            self.catch_up().await;
            step = self.following.order.live(packed.mark, false);
        }
        self.step(step, begun, packed);
        self.replica.told_in_part(self.following.lane.clone());
    }

    /// Does as a batch's order says. Whether anything was known before it, `begun` tells.
    fn step(&mut self, step: Step, begun: bool, packed: &Packed) {
        match step {
            Step::Skip | Step::Missing => return,
            Step::Anew if begun => self.anew(self.following.order.is_whole()),
            Step::Anew | Step::Take => {}
        }
        match batch::read(&packed.bytes) {
            Ok(batch) => {
                if batch.unknown > 0 {
                    tracing::debug!(
                        replica = self.replica.name(),
                        events = batch.unknown,
                        "KV events of an unknown kind are passed over"
                    );
                }
                self.take(&batch.events);
            }
            Err(why) => {
                self.scheduler.metrics.events_ended("malformed");
                self.complain(
                    "a batch of a replica's KV events cannot be read; what it holds is not known",
                    &why,
                );
                self.anew(false);
                self.following.order.unreadable();
            }
        }
    }

    /// Says once what is wrong.
    fn complain(&mut self, what: &str, why: &dyn std::fmt::Display) {
        if !std::mem::replace(&mut self.following.complained, true) {
            tracing::warn!(replica = self.replica.name(), %why, "{what}");
        }
    }

    /// Nothing that was told counts, nor what was sent there, if it has restarted.
    fn anew(&mut self, restarted: bool) {
        tracing::info!(replica = self.replica.name(), restarted, "a replica's KV events are taken up anew");
        self.scheduler.metrics.events_ended("out_of_order");
        self.following.ledger.begin_anew(&mut |_| {});
        self.following.lane = self.scheduler.registry.blocks.open();
        if restarted {
            self.replica.forget_guesses();
        }
    }

    fn take(&mut self, events: &[Event]) {
        let mut unplaced = 0;
        for event in events {
            if *event == Event::Cleared {
                self.following.ledger.take(event, &mut |_| {});
                self.following.lane = self.scheduler.registry.blocks.open();
                self.replica.forget_guesses();
                continue;
            }
            let Following { ledger, lane, .. } = &mut *self.following;
            let mut gone = Vec::new();
            unplaced += ledger.take(event, &mut |told| {
                tell(&self.scheduler.registry.blocks, lane, told);
                if let Told::Removed(removed) = told {
                    gone.push(removed.hash);
                }
            });
            if !gone.is_empty() {
                self.replica.forget_guess(&gone);
            }
        }
        if unplaced > 0 {
            tracing::debug!(
                replica = self.replica.name(),
                blocks = unplaced,
                "blocks follow none that is known"
            );
        }
        if self.following.ledger.can_learn() {
            while let Some(prompt) = self.following.waiting.pop_front() {
                self.learn(&prompt);
            }
        }
    }

    /// What is to be asked because of a note.
    fn noted(&mut self, note: Note) -> Option<(Sent, Asking)> {
        let sent = match note {
            Note::Tokenised(prompt) => {
                self.learn_soon(prompt);
                return None;
            }
            Note::Sent(sent) => sent,
        };
        if self.following.ledger.knows(&sent.chain) {
            self.counted(&sent.chain);
            self.scheduler.metrics.tokenised("known");
            return None;
        }
        if self.scheduler.now() < self.following.ask_at {
            self.scheduler.metrics.tokenised("unavailable");
            return None;
        }
        let Some(question) = prompt::question(&sent) else {
            self.scheduler.metrics.tokenised("not_text");
            return None;
        };
        let adapter = self.replica.models().iter().any(|m| m.id == sent.model && m.parent.is_some());
        let adapter = adapter.then(|| sent.model.clone());
        let (scheduler, url) = (self.scheduler.clone(), format!("{}/tokenize", self.replica.url()));
        let asked = sent.clone();
        let asking = async move { ask(&scheduler, url, question, asked, adapter).await };
        Some((sent, Box::pin(asking)))
    }

    fn answered(&mut self, sent: &Sent, answer: Result<Option<Tokenised>, Refused>) {
        let outcome = match answer {
            Ok(Some(prompt)) => {
                let prompt = Arc::new(prompt);
                self.pass_on(sent, &prompt);
                self.learn_soon(prompt);
                "learnt"
            }
            Ok(None) => "untold",
            Err(Refused::NoRoute) => {
                self.complain(
                    "a replica has no /tokenize; what it holds is guessed by what is sent there",
                    &404,
                );
                self.following.ask_at = self.scheduler.now() + ASK_AGAIN;
                "unavailable"
            }
            Err(Refused::Failed(why)) => {
                tracing::debug!(replica = self.replica.name(), %why, "a prompt's tokens could not be had");
                "failed"
            }
        };
        self.scheduler.metrics.tokenised(outcome);
    }

    /// Replicas of the same revision tokenise alike.
    fn pass_on(&self, sent: &Sent, prompt: &Arc<Tokenised>) {
        let Some(pool) = self.scheduler.registry.pool(&sent.model) else { return };
        let (replicas, prefill) = (pool.replicas.load(), pool.prefill.load());
        let alike = |other: &&Arc<Replica>| {
            !std::ptr::eq(&raw const ***other, self.replica) && other.track() == self.replica.track()
        };
        for other in replicas.iter().chain(prefill.iter()).filter(alike) {
            other.note(Note::Tokenised(Arc::clone(prompt)));
        }
    }

    fn learn_soon(&mut self, prompt: Arc<Tokenised>) {
        if self.following.ledger.can_learn() {
            return self.learn(&prompt);
        }
        if self.following.waiting.len() == MOST_WAITING {
            self.following.waiting.pop_front();
        }
        self.following.waiting.push_back(prompt);
    }

    fn learn(&mut self, prompt: &Tokenised) {
        let Following { ledger, lane, .. } = &mut *self.following;
        ledger.learn(prompt, &mut |told| tell(&self.scheduler.registry.blocks, lane, told));
        self.counted(&prompt.chain());
    }

    /// From now on these blocks count by what is told; but where not all is known, what was routed counts
    /// too.
    fn counted(&self, chain: &[strata_wire::prefix::BlockHash]) {
        if self.following.order.is_whole() {
            self.replica.forget_guess(chain);
        }
    }
}

fn tell(index: &BlockIndex, lane: &Lane, told: Told) {
    match told {
        Told::Stored(stored) => index.store(lane, &[stored]),
        Told::Removed(removed) => index.remove(lane, &[removed]),
    }
}
