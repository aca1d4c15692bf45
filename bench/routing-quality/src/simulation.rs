//! Time, and what happens in it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use strata_scheduler::pick::{Brought, Cached, Decision, Parts, Patience, Why};
use strata_scheduler::queue::{Offer, Rank};
use strata_scheduler::replica::{Lease, Replica};
use strata_scheduler::telemetry::Reading;
use strata_wire::defaults::QUEUE_TIMEOUT;
use strata_wire::engine_events::BlockChanges;
use strata_wire::prefix::Prefix;

use crate::policy::{Choice, Policy};
use crate::random::Random;
use crate::replica::{Cost, Engine};
use crate::scheduler::Scheduler;
use crate::workload::{BLOCK_TOKENS, Workload};

/// Metrics older than this do not count.
pub(crate) const STALE: Duration = Duration::from_secs(1);
/// Between two looks at a replica's metrics.
const SCRAPE: f64 = 0.05;
/// From a change at a replica until the scheduler has it.
const TOLD_AFTER: f64 = 0.01;

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Of the prompts' tokens, those that caches had.
    pub(crate) hit: f64,
    /// Seconds to the first token, sorted.
    pub(crate) ttft: Vec<f64>,
    /// Generated tokens a second, until the last request ended.
    pub(crate) rate: f64,
    /// The busiest replica's prompt tokens to the mean.
    pub(crate) imbalance: f64,
    /// The share of requests of whose prompt the cache had what the scheduler thought, within a block.
    pub(crate) predicted: f64,
}

#[derive(Debug)]
enum Happens {
    Arrives(usize),
    Steps(usize),
    Tells(usize, BlockChanges),
    Scrape,
}

/// Orders by time, then by number.
struct At(f64, u64, Happens);

impl PartialEq for At {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for At {}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

struct Simulation<'a> {
    workload: &'a Workload,
    policy: Policy,
    cost: Cost,
    queue: BinaryHeap<Reverse<At>>,
    number: u64,
    random: Random,
    schedulers: Vec<Scheduler>,
    engines: Vec<Engine>,
    stepping: Vec<bool>,
    leases: Vec<Option<Lease>>,
    arrived: Vec<f64>,
    outcome: Outcome,
    open: usize,
    generated: usize,
    last: f64,
}

/// Runs a workload under a policy, behind so many schedulers: each request comes to one of them by chance.
pub(crate) fn run(workload: &Workload, policy: Policy, cost: Cost, schedulers: usize, seed: u64) -> Outcome {
    let scheduler = |_| Scheduler::new(workload.replicas, policy.is_told());
    let mut simulation = Simulation {
        workload,
        policy,
        cost,
        queue: BinaryHeap::new(),
        number: 0,
        random: Random(seed),
        schedulers: (0..schedulers.max(1)).map(scheduler).collect(),
        engines: (0..workload.replicas).map(|_| Engine::new(cost, workload.cache_tokens)).collect(),
        stepping: vec![false; workload.replicas],
        leases: (0..workload.arrivals.len()).map(|_| None).collect(),
        arrived: vec![0.0; workload.arrivals.len()],
        outcome: Outcome::default(),
        open: workload.arrivals.len(),
        generated: 0,
        last: 0.0,
    };
    simulation.run();
    simulation.finish()
}

impl Simulation<'_> {
    fn at(&mut self, time: f64, happens: Happens) {
        self.number += 1;
        self.queue.push(Reverse(At(time, self.number, happens)));
    }

    fn run(&mut self) {
        self.scrape(0.0);
        self.at(SCRAPE, Happens::Scrape);
        let workload = self.workload;
        for first in &workload.first {
            self.at(workload.arrivals[*first].at, Happens::Arrives(*first));
        }
        while self.open > 0
            && let Some(Reverse(At(now, _, happens))) = self.queue.pop()
        {
            match happens {
                Happens::Arrives(request) => {
                    self.arrived[request] = now;
                    let at = match self.schedulers.len() {
                        1 => 0,
                        many => self.random.below(many),
                    };
                    self.schedulers[at].held.push(request, Rank::default(), time(now));
                    self.place(at, now);
                }
                Happens::Steps(replica) => self.stepped(replica, now),
                Happens::Tells(replica, changes) => {
                    for scheduler in &mut self.schedulers {
                        scheduler.changed(replica, changes.clone());
                    }
                }
                Happens::Scrape => {
                    self.scrape(now);
                    self.place_all(now);
                    self.at(now + SCRAPE, Happens::Scrape);
                }
            }
        }
    }

    fn scrape(&self, now: f64) {
        for (at, engine) in self.engines.iter().enumerate() {
            let load = engine.load(&self.workload.arrivals);
            let reading = Reading {
                running: Some(load.running as f64),
                waiting: Some(load.waiting as f64),
                waiting_tokens: Some(load.waiting_tokens as f64),
                kv_usage: Some(1.0 - load.free_blocks as f64 / load.total_blocks as f64),
                max_sequences: Some(self.cost.sequences as f64),
                prefill_rate: Some(self.cost.prefill),
                cache_tokens: Some((load.total_blocks as usize * BLOCK_TOKENS) as f64),
                prompt_tokens: Some(engine.prompt_tokens as f64 + 1.0),
                started: Some(1.0),
                ..Reading::default()
            };
            for scheduler in &self.schedulers {
                scheduler.looks(at, reading, time(now));
            }
        }
    }

    /// Every scheduler looks for places, another one first each time.
    fn place_all(&mut self, now: f64) {
        let count = self.schedulers.len();
        for turn in 0..count {
            self.place((self.number as usize + turn) % count, now);
        }
    }

    /// A scheduler places those that wait, in order, as far as there is room.
    fn place(&mut self, by: usize, now: f64) {
        let mut queue = std::mem::take(&mut self.schedulers[by].held);
        let mut placed = Vec::new();
        let place = |request: &usize, patience| self.try_place(by, *request, patience, now);
        queue.offer((time(now), QUEUE_TIMEOUT), place, |_, at| placed.push(at));
        self.schedulers[by].held = queue;
        for at in placed {
            self.step(at, now);
        }
    }

    fn try_place(&mut self, by: usize, request: usize, patience: Patience, now: f64) -> Offer<usize> {
        let arrival = &self.workload.arrivals[request];
        let bytes = arrival.prompt * 4;
        let prefix = Prefix { blocks: arrival.chain.clone(), bytes, opening: None };
        let scheduler = &mut self.schedulers[by];
        let choice = Choice {
            replicas: &scheduler.replicas,
            index: &scheduler.index,
            prefix: &prefix,
            now: time(now),
            patience,
            turn: scheduler.turn,
            random: self.random.bits(),
        };
        let Some((at, cached)) = self.policy.choose(&choice) else {
            let room = |replica: &Arc<Replica>| {
                let view = replica.glance(time(now), STALE);
                view.ready && !view.load.is_saturated()
            };
            return if scheduler.replicas.iter().any(room) { Offer::Waits } else { Offer::NoRoom };
        };
        scheduler.turn += 1;
        let decision = decision(cached, prefix.blocks.len());
        let lease = scheduler.replicas[at].lease(decision, &prefix, bytes, &scheduler.changed, time(now));
        self.leases[request] = Some(lease);
        self.engines[at].add(request);
        Offer::Placed(at)
    }

    fn step(&mut self, at: usize, now: f64) {
        if !self.stepping[at] && !self.engines[at].is_idle() {
            self.stepping[at] = true;
            let takes = self.engines[at].begin(&self.workload.arrivals);
            self.at(now + takes, Happens::Steps(at));
        }
    }

    fn stepped(&mut self, at: usize, now: f64) {
        self.stepping[at] = false;
        let stepped = self.engines[at].end(&self.workload.arrivals);
        for request in stepped.begun {
            self.outcome.ttft.push(now - self.arrived[request]);
            if let Some(lease) = &mut self.leases[request] {
                lease.begun(Some(time(now)));
            }
        }
        for (request, had) in stepped.admitted {
            let thought = self.leases[request].as_ref().map_or(0.0, |lease| lease.decision.cached.tokens);
            let right = (thought - had as f64).abs() <= BLOCK_TOKENS as f64;
            self.outcome.predicted += f64::from(u8::from(right));
        }
        for request in stepped.ended {
            self.leases[request] = None;
            self.open -= 1;
            self.generated += self.workload.arrivals[request].output;
            self.last = now;
            if let Some(next) = self.workload.arrivals[request].then {
                self.at(now + self.workload.arrivals[next].at, Happens::Arrives(next));
            }
        }
        if self.policy.is_told() && stepped.changes != BlockChanges::default() {
            self.at(now + TOLD_AFTER, Happens::Tells(at, stepped.changes));
        }
        self.place_all(now);
        self.step(at, now);
    }

    fn finish(mut self) -> Outcome {
        let total = |of: fn(&Engine) -> usize| self.engines.iter().map(of).sum::<usize>() as f64;
        let asked = total(|engine| engine.prompt_tokens);
        self.outcome.hit = total(|engine| engine.had) / asked;
        let most = self.engines.iter().map(|engine| engine.prompt_tokens).max().unwrap_or(0);
        self.outcome.imbalance = most as f64 * self.engines.len() as f64 / asked;
        self.outcome.predicted /= self.workload.arrivals.len() as f64;
        self.outcome.rate = self.generated as f64 / self.last;
        self.outcome.ttft.sort_by(f64::total_cmp);
        self.outcome
    }
}

fn time(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn decision(cached: Cached, blocks: usize) -> Decision {
    Decision {
        replica: String::new(),
        track: None,
        score: 0.0,
        parts: Parts::default(),
        cached_blocks: 0,
        cached,
        blocks,
        candidates: 0,
        why: Why::Tie,
        prompt: None,
        brought: Brought::default(),
    }
}
