//! The scheduler's choice by itself: no network, one thread. A thousand replicas tell of ten million
//! blocks; requests of which they hold much, a part, or nothing are placed among them, by the
//! scheduler's own code.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use strata_scheduler::index::{BlockIndex, Lane};
use strata_scheduler::pick::{
    Ask, Candidate, Decision, Lean, Objectives, Outcome, Own, Patience, Policy, Weights, pick,
};
use strata_scheduler::replica::{Lease, Replica};
use strata_scheduler::scheduler::mix;
use strata_scheduler::telemetry::Reading;
use strata_wire::engine_events::{Medium, Removed, Stored};
use strata_wire::prefix::{self, BlockHash, Prefix};
use strata_wire::replicas::Endpoint;
use strata_wire::toplevel::TopLevel;
use tokio::sync::Notify;

use crate::percentile::percentile;
use crate::prompt::{LEAST_BYTES, Prompts};

/// Blocks that the conversations of a group begin with.
const SHARED: u64 = 64;
/// Groups of conversations.
const GROUPS: u64 = 200;
/// Blocks of a conversation, those of its group included.
const CONVERSATION: u64 = 192;
/// Changes that one message of an engine brings.
const MESSAGE: usize = 128;
/// Tokens of a block.
const TOKENS: u32 = 64;
/// Bytes of a block.
const BYTES: usize = strata_wire::defaults::BLOCK_BYTES;
/// Requests under way at each replica.
const UNDER_WAY: usize = 4;
/// Metrics older than this do not count.
const STALE: Duration = Duration::from_secs(3600);

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Replicas.
    pub replicas: usize,
    /// Blocks in the index, each as often as replicas hold it.
    pub blocks: usize,
    /// Blocks of a request's prompt.
    pub prompt: usize,
    /// Requests to place.
    pub decisions: usize,
    /// Whether replicas tell what they hold; else it is guessed by what was sent there.
    pub told: bool,
}

/// What it took.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Costs {
    /// Replicas.
    pub replicas: usize,
    /// Entries of the index.
    pub entries: usize,
    /// Microseconds to place a request: the look-up, the choice and its booking.
    pub decision_us: Spread,
    /// Microseconds of the look-up in the index alone.
    pub find_us: Spread,
    /// Tokens that the chosen replica had, of 100 of a prompt.
    pub hit_percent: f64,
    /// Entries stored a second.
    pub stores_per_second: f64,
    /// Entries removed a second.
    pub removals_per_second: f64,
    /// Blocks looked up a second.
    pub lookups_per_second: f64,
    /// Megabytes of memory for a million entries.
    pub mb_per_million: f64,
    /// Microseconds to read bodies of these sizes.
    pub reading: Vec<Reads>,
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Spread {
    /// The median.
    pub p50: f64,
    /// 99 of 100 took less.
    pub p99: f64,
    /// 999 of 1000 took less.
    pub p999: f64,
}

impl Spread {
    fn of(nanos: &mut [u64]) -> Self {
        let [p50, p99, p999] =
            [50.0, 99.0, 99.9].map(|percent| percentile(nanos, percent).unwrap_or(0) as f64 / 1000.0);
        Self { p50, p99, p999 }
    }
}

/// What it takes to read a request's body, before anything is chosen.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Reads {
    /// Bytes of the body.
    pub bytes: usize,
    /// Microseconds to find its members.
    pub scan_us: f64,
    /// Microseconds to find its prompt and hash it in blocks.
    pub prefix_us: f64,
}

/// What a replica has told, and the books of what it was sent.
struct Fleet {
    index: BlockIndex,
    replicas: Vec<Arc<Replica>>,
    lanes: Vec<Lane>,
    changed: Arc<Notify>,
    /// Held so that the requests are under way.
    leases: Vec<Lease>,
}

/// Measures it.
pub fn measure(size: &Size) -> anyhow::Result<Costs> {
    anyhow::ensure!(size.replicas > 0 && size.prompt > 0 && size.decisions > 0, "nothing to measure");
    let before = resident_bytes()?;
    let mut fleet = fleet(size);
    let began = Instant::now();
    let (mut told, mut conversations) = (0, 0);
    while fleet.entries(size.told) < size.blocks {
        for (at, replica) in fleet.replicas.iter().enumerate() {
            let chain = chain(at as u64, conversations, CONVERSATION);
            told += chain.len();
            if size.told {
                let stored = stored(&chain);
                stored.chunks(MESSAGE).for_each(|message| fleet.index.store(&fleet.lanes[at], message));
            } else {
                drop(fleet.lease(replica, &prefix_of(&chain), Duration::ZERO));
            }
        }
        conversations += 1;
    }
    let stores = told as f64 / began.elapsed().as_secs_f64();
    let grown = resident_bytes()?.saturating_sub(before) as f64;
    let entries = fleet.entries(size.told);
    fleet.make_busy();

    let mut costs = Costs {
        replicas: size.replicas,
        entries,
        stores_per_second: stores,
        mb_per_million: grown / entries.max(1) as f64,
        ..Costs::default()
    };
    decide(&mut fleet, size, conversations, &mut costs)?;
    if size.told {
        remove(&fleet, conversations, &mut costs);
    }
    costs.reading = [4096, 65_536, 1 << 20].into_iter().map(reading).collect::<anyhow::Result<_>>()?;
    Ok(costs)
}

fn decide(fleet: &mut Fleet, size: &Size, conversations: u64, costs: &mut Costs) -> anyhow::Result<()> {
    let (mut took, mut found_in) = (Vec::new(), Vec::new());
    let (mut had, mut asked) = (0.0, 0.0);
    let mut looked_up = 0u64;
    for turn in 0..size.decisions as u64 {
        let random = mix(turn + 1);
        // Two of three go on with a conversation that a replica has, one begins another of its group.
        let number = if turn % 3 == 2 { u64::MAX - turn } else { (random >> 20) % conversations.max(1) };
        let prefix = prefix_of(&chain(random % size.replicas as u64, number, size.prompt as u64));
        let began = Instant::now();
        let found = fleet.index.find(&prefix.blocks);
        let looked = began.elapsed();
        let now = Duration::from_millis(turn);
        let candidates: Vec<Candidate<'_>> = fleet
            .replicas
            .iter()
            .map(|replica| replica.candidate(&replica.view(&prefix, &found, now, STALE)))
            .collect();
        let ask = Ask {
            blocks: prefix.blocks.len(),
            bytes: prefix.bytes,
            aims: Objectives { first_token: 1.0, inter_token: 0.1 },
            patience: Patience::default(),
            lean: Lean::NONE,
        };
        let picked = pick(Policy::Prefix, &ask, &candidates, &Weights::default(), turn, random);
        let Outcome::Picked(at, decision) = picked else {
            anyhow::bail!("no replica took request {turn}");
        };
        had += decision.cached.tokens;
        let mut lease = fleet.lease_as(&fleet.replicas[at], decision, &prefix, now);
        took.push(began.elapsed().as_nanos() as u64);
        found_in.push(looked.as_nanos() as u64);
        asked += (prefix.blocks.len() * TOKENS as usize) as f64;
        looked_up += prefix.blocks.len() as u64;
        lease.begun(Some(now));
    }
    costs.lookups_per_second = looked_up as f64 * 1e9 / found_in.iter().sum::<u64>().max(1) as f64;
    costs.decision_us = Spread::of(&mut took);
    costs.find_us = Spread::of(&mut found_in);
    costs.hit_percent = 100.0 * had / asked;
    Ok(())
}

/// Takes from each replica what it holds of its own conversations, in another order than it came.
fn remove(fleet: &Fleet, conversations: u64, costs: &mut Costs) {
    let before = fleet.index.entries();
    let mut spent = Duration::ZERO;
    for number in 0..conversations {
        for (at, lane) in fleet.lanes.iter().enumerate() {
            let chain = chain(at as u64, number, CONVERSATION);
            let gone: Vec<_> = chain[SHARED as usize..]
                .iter()
                .map(|hash| Removed { hash: *hash, medium: Medium::Device })
                .collect();
            let began = Instant::now();
            gone.chunks(MESSAGE).for_each(|message| fleet.index.remove(lane, message));
            spent += began.elapsed();
        }
    }
    costs.removals_per_second = (before - fleet.index.entries()) as f64 / spent.as_secs_f64().max(1e-9);
}

fn fleet(size: &Size) -> Fleet {
    let index = BlockIndex::default();
    let (mut replicas, mut lanes) = (Vec::new(), Vec::new());
    for at in 0..size.replicas {
        let replica = Replica::new(Endpoint::new(format!("m-{at}"), format!("http://127.0.0.1:{at}/")));
        let reading = Reading {
            running: Some((at % 16) as f64),
            waiting: Some(0.0),
            waiting_tokens: Some(0.0),
            kv_usage: Some(0.2),
            max_sequences: Some(256.0),
            prefill_rate: Some(8000.0),
            prompt_tokens: Some(1.0),
            cache_tokens: Some(1e9),
            inter_token: Some((1.0, 50.0)),
            ..Reading::default()
        };
        replica.scraped(reading, Own::default(), Duration::ZERO);
        let lane = index.open();
        if size.told {
            replica.told(Some(lane.clone()));
        }
        replicas.push(Arc::new(replica));
        lanes.push(lane);
    }
    Fleet { index, replicas, lanes, changed: Arc::default(), leases: Vec::new() }
}

impl Fleet {
    fn entries(&self, told: bool) -> usize {
        if told { self.index.entries() } else { self.replicas.iter().map(|r| r.indexed_blocks()).sum() }
    }

    fn make_busy(&mut self) {
        for (at, replica) in self.replicas.iter().enumerate() {
            for number in 0..UNDER_WAY as u64 {
                let prefix = prefix_of(&chain(at as u64, number, CONVERSATION));
                self.leases.push(self.lease(replica, &prefix, Duration::ZERO));
            }
        }
        self.leases.iter_mut().for_each(|lease| lease.begun(Some(Duration::ZERO)));
    }

    fn lease(&self, replica: &Arc<Replica>, prefix: &Prefix, now: Duration) -> Lease {
        let ask = Ask {
            blocks: prefix.blocks.len(),
            bytes: prefix.bytes,
            aims: Objectives { first_token: 1.0, inter_token: 0.1 },
            patience: Patience::default(),
            lean: Lean::NONE,
        };
        let view = replica.view(prefix, &self.index.find(&[]), now, STALE);
        let candidates = [Candidate { eligible: true, ..replica.candidate(&view) }];
        let Outcome::Picked(_, decision) =
            pick(Policy::RoundRobin, &ask, &candidates, &Weights::default(), 0, 0)
        else {
            unreachable!("a replica that is ready and idle takes a request");
        };
        self.lease_as(replica, decision, prefix, now)
    }

    fn lease_as(&self, replica: &Arc<Replica>, decision: Decision, prefix: &Prefix, now: Duration) -> Lease {
        replica.lease(decision, prefix, prefix.bytes, &self.changed, now)
    }
}

/// A conversation that replica `at` had: its group's blocks, then its own.
fn chain(at: u64, number: u64, blocks: u64) -> Vec<BlockHash> {
    let group = mix(at.wrapping_mul(0x9e37_79b9) ^ number) % GROUPS;
    let own = mix(number ^ mix(at + 1));
    let hash = |i: u64| if i < SHARED { mix(group << 32 | i) } else { mix(own.wrapping_add(i)) };
    (0..blocks).map(|i| BlockHash(hash(i))).collect()
}

fn stored(chain: &[BlockHash]) -> Vec<Stored> {
    let one = |(i, hash): (usize, &BlockHash)| Stored {
        hash: *hash,
        tokens: TOKENS * (i as u32 + 1),
        medium: Medium::Device,
    };
    chain.iter().enumerate().map(one).collect()
}

fn prefix_of(chain: &[BlockHash]) -> Prefix {
    Prefix { blocks: chain.to_vec(), bytes: chain.len() * BYTES, opening: None }
}

/// What reading a body takes: the median of many.
fn reading(bytes: usize) -> anyhow::Result<Reads> {
    let mut prompts = Prompts::new(bytes.max(LEAST_BYTES), false, 1, (0, 1), 1);
    let times = (64 << 20) / bytes / 8;
    let (mut scans, mut prefixes) = (Vec::new(), Vec::new());
    for _ in 0..times.clamp(16, 2000) {
        let (_, body) = prompts.next_body();
        let began = Instant::now();
        let top = TopLevel::scan(&body).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        std::hint::black_box(&top);
        let scanned = began.elapsed();
        let prefix = prefix::of_body("", &body).context("a body without a prompt")?;
        std::hint::black_box(&prefix);
        scans.push(scanned.as_nanos() as u64);
        prefixes.push(began.elapsed().saturating_sub(scanned).as_nanos() as u64);
    }
    Ok(Reads { bytes, scan_us: Spread::of(&mut scans).p50, prefix_us: Spread::of(&mut prefixes).p50 })
}

fn resident_bytes() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").context("this needs Linux: /proc/self/statm")?;
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    Ok(pages.context("/proc/self/statm is of another form")? * 4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_one_is_placed_where_its_prompt_is() {
        for told in [true, false] {
            let size = Size { replicas: 20, blocks: 20 * 1280, prompt: 128, decisions: 60, told };
            let costs = measure(&size).unwrap();
            assert!(costs.entries > 10_000 && costs.decision_us.p50 > 0.0, "{costs:?}");
            // Two of three have been there, one finds its group's half where that is.
            assert!(costs.hit_percent > 70.0, "{costs:?}");
            assert_eq!(costs.removals_per_second > 0.0, told);
        }
    }
}
