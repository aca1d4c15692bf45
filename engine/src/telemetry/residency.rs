//! How long blocks of the KV cache are of use, of a sample of them: what tells whether a larger cache, or
//! a tier below it, would bring anything. Names and meaning are vLLM's (`--kv-cache-metrics`).

use std::collections::{HashMap, VecDeque};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use strata_wire::metrics::engine as names;

use crate::block::Touch;

/// Uses of a block that are remembered, so that one that is used all the time does not outweigh others.
const KEPT: usize = 4;
/// Seconds, from one millisecond to half an hour.
const SECONDS: [f64; 20] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0,
    300.0, 600.0, 1800.0,
];

/// The share of blocks that are followed: above 0 and at most 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleShare(f64);

impl SampleShare {
    /// The share itself.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl Default for SampleShare {
    fn default() -> Self {
        Self(0.01)
    }
}

impl TryFrom<f64> for SampleShare {
    type Error = String;

    fn try_from(share: f64) -> Result<Self, String> {
        if share > 0.0 && share <= 1.0 {
            Ok(Self(share))
        } else {
            Err(format!("must be above 0 and at most 1, and it is {share}"))
        }
    }
}

impl FromStr for SampleShare {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<f64>().map_err(|_| format!("must be a number, and it is `{text}`"))?.try_into()
    }
}

impl std::fmt::Display for SampleShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The histograms; not there where no block is followed.
#[derive(Debug)]
pub struct ResidencyMetrics(Arc<OnceLock<Times>>);

#[derive(Clone, Debug)]
struct Times {
    lifetime: Histogram,
    idle: Histogram,
    gap: Histogram,
}

#[derive(Debug)]
struct Shown(Arc<OnceLock<Times>>);

impl ResidencyMetrics {
    pub(super) fn new(r: &mut Registry) -> Self {
        let times = Arc::default();
        r.register_collector(Box::new(Shown(Arc::clone(&times))));
        Self(times)
    }

    /// Follows this share of the blocks from now on.
    pub fn follow(&self, share: SampleShare) -> Residency {
        let made = || Histogram::new(SECONDS);
        let times = self.0.get_or_init(|| Times { lifetime: made(), idle: made(), gap: made() });
        Residency { share: share.0, seen: 0, lives: HashMap::new(), times: times.clone() }
    }
}

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(times) = self.0.get() else { return Ok(()) };
        for (name, help, histogram) in [
            (
                names::BLOCK_LIFETIME,
                "Time from a block's allocation to its eviction, sampled",
                &times.lifetime,
            ),
            (names::BLOCK_IDLE, "Time from a block's last use to its eviction, sampled", &times.idle),
            (names::BLOCK_REUSE_GAP, "Time between two uses of a block, sampled", &times.gap),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, histogram.metric_type())?;
            histogram.encode(metric)?;
        }
        Ok(())
    }
}

/// Follows some of the blocks.
#[derive(Debug)]
pub struct Residency {
    share: f64,
    /// Blocks taken so far.
    seen: u64,
    lives: HashMap<u32, Life>,
    times: Times,
}

#[derive(Debug)]
struct Life {
    born: Instant,
    /// The last uses after that.
    uses: VecDeque<Instant>,
}

impl Residency {
    /// Takes note of what became of blocks.
    pub fn note(&mut self, touches: &[Touch], now: Instant) {
        for touch in touches {
            match *touch {
                Touch::Taken(block) => {
                    self.seen += 1;
                    if self.picks() {
                        self.lives.insert(block, Life { born: now, uses: VecDeque::new() });
                    } else {
                        self.lives.remove(&block);
                    }
                }
                Touch::Reused(block) => {
                    if let Some(life) = self.lives.get_mut(&block) {
                        if life.uses.len() == KEPT {
                            life.uses.pop_front();
                        }
                        life.uses.push_back(now);
                    }
                }
                Touch::Evicted(block) => {
                    if let Some(life) = self.lives.remove(&block) {
                        self.end(&life, now);
                    }
                }
            }
        }
    }

    fn end(&self, life: &Life, now: Instant) {
        let last = life.uses.back().copied().unwrap_or(life.born);
        self.times.lifetime.observe((now - life.born).as_secs_f64());
        self.times.idle.observe((now - last).as_secs_f64());
        for (before, after) in life.uses.iter().zip(life.uses.iter().skip(1)) {
            self.times.gap.observe((*after - *before).as_secs_f64());
        }
    }

    /// Whether the block that was just taken is one of the sample: by its number's hash (the finaliser of
    /// SplitMix64), so that no pattern of use falls in with the choice.
    fn picks(&self) -> bool {
        let mut mixed = self.seen.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) as f64) < self.share * u64::MAX as f64
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rendered(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn a_blocks_life_is_told_when_it_ends() {
        let mut registry = Registry::default();
        let metrics = ResidencyMetrics::new(&mut registry);
        assert_eq!(rendered(&registry), "# EOF\n", "nothing unless it is asked for");
        let mut residency = metrics.follow("1".parse().unwrap());
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        residency.note(&[Touch::Taken(3), Touch::Taken(4)], begin);
        // Of six uses the last four count: 30, 40, 50, 60.
        for seconds in [1, 20, 30, 40, 50, 60] {
            residency.note(&[Touch::Reused(3)], at(seconds));
        }
        residency.note(&[Touch::Evicted(3), Touch::Taken(3), Touch::Evicted(9)], at(65));
        let text = rendered(&registry);
        let line = |name: &str| {
            let name = format!("vllm:kv_block_{name} ");
            text.lines().find_map(|l| l.strip_prefix(&name)).unwrap().to_owned()
        };
        assert_eq!([line("lifetime_seconds_sum"), line("lifetime_seconds_count")], ["65.0", "1"]);
        assert_eq!([line("idle_before_evict_seconds_sum"), line("reuse_gap_seconds_sum")], ["5.0", "30.0"]);
        assert_eq!(line("reuse_gap_seconds_count"), "3");
    }

    #[test]
    fn a_share_of_the_blocks_is_followed() {
        let metrics = ResidencyMetrics::new(&mut Registry::default());
        let mut residency = metrics.follow(0.1.try_into().unwrap());
        let taken: Vec<Touch> = (0..10_000).map(Touch::Taken).collect();
        residency.note(&taken, Instant::now());
        assert!((850..1150).contains(&residency.lives.len()), "{}", residency.lives.len());
        residency.note(&taken, Instant::now());
        assert!(residency.lives.len() < 1150, "a block that is taken again is another");
        for wrong in ["0", "1.5", "NaN", "x"] {
            assert!(wrong.parse::<SampleShare>().is_err(), "{wrong}");
        }
    }
}
