//! The workloads that others have published, as arrivals: when, and which blocks of which prompt.

use strata_scheduler::scheduler::mix;
use strata_wire::prefix::BlockHash;

use crate::random::Random;

/// Tokens in a block of 256 bytes, at four bytes a token: the grain of everything here.
pub(crate) const BLOCK_TOKENS: usize = 64;

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// Seconds since the beginning; of a later turn, since the answer to the one before.
    pub(crate) at: f64,
    /// The chain of its prompt's whole blocks.
    pub(crate) chain: Vec<BlockHash>,
    /// Tokens of the prompt.
    pub(crate) prompt: usize,
    /// Tokens that it generates.
    pub(crate) output: usize,
    /// The blocks that prompt and answer make together.
    pub(crate) whole: Vec<BlockHash>,
    /// The turn that follows it.
    pub(crate) then: Option<usize>,
}

/// Arrivals, of which those that are some other's next turn come after that.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) name: String,
    pub(crate) replicas: usize,
    /// Tokens that a replica's cache holds.
    pub(crate) cache_tokens: usize,
    pub(crate) arrivals: Vec<Arrival>,
    /// Which of them come by themselves, in order of time.
    pub(crate) first: Vec<usize>,
}

/// A text by its parts: each a length in tokens and a name that tells its content.
fn chain(parts: &[(usize, u64)]) -> Vec<BlockHash> {
    let (mut hash, mut blocks, mut fill) = (0u64, Vec::new(), 0);
    for &(tokens, name) in parts {
        let mut left = tokens;
        let mut at = 0u64;
        while left > 0 {
            let take = left.min(BLOCK_TOKENS - fill);
            hash = mix(hash ^ mix(name.wrapping_mul(0x1_0001).wrapping_add(at)) ^ take as u64);
            (fill, left, at) = (fill + take, left - take, at + 1);
            if fill == BLOCK_TOKENS {
                blocks.push(BlockHash(hash));
                fill = 0;
            }
        }
    }
    blocks
}

fn request(at: f64, parts: &[(usize, u64)], output: usize, id: u64) -> Arrival {
    let whole = [parts, &[(output, mix(id ^ 0xa5))]].concat();
    Arrival {
        at,
        chain: chain(parts),
        prompt: parts.iter().map(|(tokens, _)| tokens).sum(),
        output,
        whole: chain(&whole),
        then: None,
    }
}

/// What groups of prompts share, how many there are, and how long they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Groups {
    pub(crate) count: usize,
    pub(crate) prompts: usize,
    pub(crate) shared: usize,
    pub(crate) own: usize,
    pub(crate) output: usize,
}

impl Groups {
    /// Poisson arrivals, each prompt of each group once, in random order and over again while it lasts.
    pub(crate) fn at_rate(self, rate: f64, seconds: f64, random: &mut Random) -> Vec<Arrival> {
        let mut order: Vec<usize> = (0..self.count * self.prompts).collect();
        let (mut at, mut id, mut all) = (0.0, 0u64, Vec::new());
        'all: loop {
            for last in (1..order.len()).rev() {
                order.swap(last, random.below(last + 1));
            }
            for pair in &order {
                at += random.exponential(rate);
                if at >= seconds {
                    break 'all;
                }
                let group = (pair / self.prompts) as u64;
                let parts = [(self.shared, mix(group)), (self.own, mix(1 << 40 | *pair as u64 | id << 50))];
                all.push(request(at, &parts, self.output, id));
                id += 1;
            }
        }
        all
    }
}

/// Prompts whose beginning is one of `roots` by Zipf's law with exponent 1, and whose end is their own.
pub(crate) fn zipf(
    roots: usize,
    (shared, own, output): (usize, usize, usize),
    rate: f64,
    seconds: f64,
    random: &mut Random,
) -> Vec<Arrival> {
    let weights: Vec<f64> = (1..=roots).map(|rank| 1.0 / rank as f64).collect();
    let total: f64 = weights.iter().sum();
    let (mut at, mut id, mut all) = (0.0, 0u64, Vec::new());
    loop {
        at += random.exponential(rate);
        if at >= seconds {
            return all;
        }
        let mut left = random.unit() * total;
        let root = weights.iter().position(|w| {
            left -= w;
            left < 0.0
        });
        let root = root.unwrap_or(roots - 1) as u64;
        all.push(request(at, &[(shared, mix(root)), (own, mix(1 << 41 | id))], output, id));
        id += 1;
    }
}

/// Conversations that begin with a text that all share; what a user adds and what is answered is of
/// log-normal length, and the user thinks between two turns.
pub(crate) fn conversations(
    count: usize,
    turns: usize,
    (shared, adds, output): (usize, f64, f64),
    (starts_within, thinks): (f64, f64),
    random: &mut Random,
) -> Vec<Arrival> {
    let mut all = Vec::new();
    for conversation in 0..count as u64 {
        let mut parts = vec![(shared, mix(7))];
        for turn in 0..turns as u64 {
            let id = conversation << 20 | turn;
            let length =
                |median: f64, random: &mut Random| (random.lognormal(median, 0.8) as usize).clamp(8, 20_000);
            parts.push((length(adds, random), mix(1 << 42 | id)));
            let output = length(output, random).min(2000);
            let at = if turn == 0 { random.unit() * starts_within } else { random.exponential(1.0 / thinks) };
            let mut arrival = request(at, &parts, output, id);
            if turn + 1 < turns as u64 {
                arrival.then = Some(all.len() + 1);
            }
            parts.push((output, mix(id ^ 0xa5)));
            all.push(arrival);
        }
    }
    all
}

impl Workload {
    pub(crate) fn new(
        name: impl Into<String>,
        (replicas, cache_tokens): (usize, usize),
        arrivals: Vec<Arrival>,
    ) -> Self {
        let later: std::collections::HashSet<usize> = arrivals.iter().filter_map(|a| a.then).collect();
        let mut first: Vec<usize> = (0..arrivals.len()).filter(|i| !later.contains(i)).collect();
        first.sort_by(|a, b| arrivals[*a].at.total_cmp(&arrivals[*b].at));
        Self { name: name.into(), replicas, cache_tokens, arrivals, first }
    }

    /// The share of the prompts' tokens that one cache without bounds would have had, were each prompt
    /// there at once.
    pub(crate) fn attainable(&self) -> f64 {
        let (mut had, mut all) = (0, 0);
        let mut seen: std::collections::HashSet<BlockHash> = std::collections::HashSet::new();
        for arrival in &self.arrivals {
            had += BLOCK_TOKENS * arrival.chain.iter().take_while(|hash| seen.contains(*hash)).count();
            all += arrival.prompt;
            seen.extend(&arrival.whole);
        }
        had as f64 / all as f64
    }
}
