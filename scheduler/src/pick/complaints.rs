//! What users of other routers complained of, as far as one choice or one index shows it. Each test is named
//! after one complaint; `docs/reference/complaints.md` lists them.

use proptest::prelude::*;
use strata_wire::engine_events::{Medium, Stored};
use strata_wire::prefix::{BlockHash, of_body};

use super::*;
use crate::index::BlockIndex;
use crate::scheduler::mix;

/// A prompt of 2,000 tokens at 4 bytes each, for which nothing is waited.
const ASK: Ask = Ask {
    blocks: 31,
    bytes: 8000,
    aims: Objectives { first_token: 1.0, inter_token: 0.1 },
    patience: Patience { for_holder: false, for_room: false },
    lean: Lean::NONE,
};

/// A replica of 16 sequences that reads 1,000 tokens a second.
fn gauges(running: f64, waiting: f64, waiting_tokens: f64) -> Gauges {
    Gauges {
        running: Some(running),
        waiting: Some(waiting),
        waiting_tokens: Some(waiting_tokens),
        max_sequences: Some(16.0),
        prefill_rate: Some(1000.0),
        ..Gauges::default()
    }
}

fn candidate(gauges: &Gauges, own: Own, cached_blocks: usize) -> Candidate<'static> {
    Candidate {
        name: "m",
        track: Track::Stable,
        eligible: true,
        load: Load::estimate(Some(gauges), own),
        cached: Cached::guessed(cached_blocks, 4.0),
        bytes_per_token: 4.0,
        forecast: Forecast::default(),
        seed: 0,
        adapter: None,
    }
}

/// The one that is picked, whatever chance says.
fn picked(candidates: &[Candidate<'_>]) -> usize {
    let at = |random| match pick(Policy::Prefix, &ASK, candidates, &Weights::default(), random, random) {
        Outcome::Picked(at, _) => at,
        other => panic!("{other:?}"),
    };
    let first = at(0);
    assert!((1..32).all(|random| at(random) == first), "chance decides");
    first
}

/// Blocks of a prompt that nobody has asked before.
fn unique(number: u64, blocks: u64) -> Vec<BlockHash> {
    (0..blocks).map(|block| BlockHash(mix((number + 1) << 20 | block))).collect()
}

/// A replica tells that it has stored this chain.
fn stored(chain: &[BlockHash]) -> Vec<Stored> {
    let one = |(at, hash): (usize, &BlockHash)| Stored {
        hash: *hash,
        tokens: 64 * (at as u32 + 1),
        medium: Medium::Device,
    };
    chain.iter().enumerate().map(one).collect()
}

/// Three prompts: one was sent to the first replica, one to the second, and now the second's with the
/// first's behind it. A router that looks its blocks up one by one finds as many at the first.
#[test]
fn aibrix_917_only_the_same_beginning_counts_as_cached() {
    let chain = |text: String| {
        let body = serde_json::json!({"model": "m", "prompt": text}).to_string();
        of_body("", body.as_bytes()).expect("a prompt").blocks
    };
    let (good, bad) = ("What a good day! ".repeat(256), "Not a bad day today! ".repeat(256));
    let (mut first, mut second) = (PrefixIndex::default(), PrefixIndex::default());
    first.record(&chain(good.clone()));
    second.record(&chain(bad.clone()));
    let asked = chain(bad.clone() + &good);
    assert_eq!((first.matched(&asked), second.matched(&asked)), (0, bad.len() / 256));
    let idle = gauges(0.0, 0.0, 0.0);
    let both = [&first, &second].map(|index| candidate(&idle, Own::default(), index.matched(&asked)));
    assert_eq!(picked(&both), 1);
}

/// The trie of a router that forgets nothing would have 400,000 nodes here.
#[test]
fn production_stack_687_an_index_of_ever_new_prompts_is_bounded() {
    let mut index = PrefixIndex::default();
    for number in 0..20_000 {
        index.record(&unique(number, 20));
    }
    assert_eq!(index.len(), index::DEFAULT_CAPACITY);
    assert_eq!(index.matched(&unique(19_999, 20)), 20, "the newest is known");
    assert_eq!(index.matched(&unique(0, 20)), 0, "the oldest is forgotten");
    // Whatever a replica says of its cache.
    index.set_capacity(usize::MAX);
    assert_eq!(index.capacity(), index::MAX_CAPACITY);
}

/// A replica that is asked one-off prompts alone has the smallest tree and the longest queue. A router that
/// evens out its trees sends it everything that nobody has cached.
#[test]
fn sglang_14305_what_nobody_has_cached_goes_by_load() {
    let (mut small, mut large) = (PrefixIndex::default(), PrefixIndex::default());
    small.record(&unique(0, 4));
    for number in 1..1000 {
        large.record(&unique(number, 30));
    }
    let asked = unique(5000, 31);
    let (busy, idle) = (gauges(16.0, 4.0, 8000.0), gauges(0.0, 0.0, 0.0));
    let both = [
        candidate(&busy, Own::default(), small.matched(&asked)),
        candidate(&idle, Own::default(), large.matched(&asked)),
    ];
    assert_eq!(picked(&both), 1);
}

/// The same as it goes on: requests that never end, while the metrics stay those of the beginning. The one
/// that is behind gets nothing until the others are as far behind.
#[test]
fn sglang_14532_a_hot_replica_does_not_draw_ever_more() {
    let looks = [gauges(16.0, 4.0, 8000.0), gauges(0.0, 0.0, 0.0), gauges(2.0, 0.0, 0.0)];
    let mut own = [Own::default(); 3];
    for request in 0..40u64 {
        let candidates: Vec<_> = looks.iter().zip(own).map(|(g, own)| candidate(g, own, 0)).collect();
        let Outcome::Picked(at, _) =
            pick(Policy::Prefix, &ASK, &candidates, &Weights::default(), request, request)
        else {
            panic!("there is room for 40");
        };
        own[at].in_flight += 1;
        own[at].pending += 1;
        own[at].pending_tokens += 2000.0;
        assert!(request >= 20 || own[0].in_flight == 0, "the hot one got request {request}: {own:?}");
    }
    assert!(own[1].in_flight.abs_diff(own[2].in_flight) <= 3, "{own:?}");
    assert!(own[0].in_flight + 12 < own[1].in_flight + own[2].in_flight, "{own:?}");
}

/// One replica of three is far behind, and has the prompt. A router that falls back to the shortest queue
/// takes the idle one, and has the prompt computed a third time.
#[test]
fn sglang_32195_an_imbalance_leaves_a_cached_prompt_with_those_who_have_it() {
    let (hot, some, idle) = (gauges(16.0, 7.0, 20_000.0), gauges(3.0, 0.0, 0.0), gauges(0.0, 0.0, 0.0));
    let own = Own::default();
    let three = [candidate(&hot, own, 31), candidate(&some, own, 31), candidate(&idle, own, 0)];
    assert_eq!(picked(&three), 1);
    // Where only the one that is far behind has it, it is computed anew.
    let three = [candidate(&hot, own, 31), candidate(&some, own, 0), candidate(&idle, own, 0)];
    assert_eq!(picked(&three), 2);
}

proptest! {
    /// Several routers wrote what they knew themselves over what the replica said, which then looked idle
    /// to each. Here the replica's word counts, however little of it is this scheduler's own.
    #[test]
    fn dynamo_7753_what_a_replica_says_of_itself_is_not_written_over(
        running in 0u32..200,
        waiting in 0u32..50,
        sent in 0u64..20,
    ) {
        let own = Own { in_flight: sent, pending: sent / 2, pending_tokens: 100.0 * sent as f64 };
        let said = Gauges { own, ..gauges(f64::from(running), f64::from(waiting), 0.0) };
        let load = Load::estimate(Some(&said), own);
        let known = load.running.unwrap_or(0.0) + load.waiting.unwrap_or(0.0);
        prop_assert!(known >= f64::from(running + waiting), "{load:?}");
        prop_assert!(waiting < 8 || load.is_saturated(), "{load:?}");
    }
}

/// One long prompt stays, and replicas come and go that had it as far as one block or another and went on
/// by themselves. A tree that is split at each such block and never put together again grows with every one.
#[test]
fn dynamo_10774_an_index_shrinks_when_replicas_go() {
    let index = BlockIndex::default();
    let base = unique(0, 1024);
    let stays = index.open();
    index.store(&stays, &stored(&base));
    let mut most = 0;
    for number in 0..600u64 {
        let shared = (number as usize * 7 + 1) % base.len();
        let comes = index.open();
        index.store(&comes, &stored(&[&base[..shared], &unique(number + 1, 31)].concat()));
        drop(comes);
        if index.is_littered() {
            index.sweep();
        }
        most = most.max(index.entries());
    }
    // 320,000 were stored.
    assert!(most < 80_000, "{most} entries");
    assert_eq!(index.find(&base).blocks(&stays), base.len());
    assert!(index.open().number() < 600, "numbers come back");
}

/// A hundred replicas that hold all but the end of a prompt of 100,000 tokens, and of one of 1,000: a choice
/// that walks along the prompt for each replica looks up a hundred times as many blocks for the longer.
#[test]
fn llm_d_router_1290_a_choice_among_a_hundred_costs_little_more_for_a_long_prompt() {
    let looks = |blocks: u64| {
        let chain = unique(0, blocks);
        let held = &chain[..chain.len() - 1];
        let mut indexes: Vec<_> = (0..100).map(|_| PrefixIndex::default()).collect();
        for index in &mut indexes {
            index.record(held);
        }
        let told = BlockIndex::default();
        let lanes: Vec<_> = (0..100).map(|_| told.open()).collect();
        for lane in &lanes {
            told.store(lane, &stored(held));
        }
        let ask = Ask { blocks: chain.len(), bytes: 256 * chain.len(), ..ASK };
        let idle = gauges(0.0, 0.0, 0.0);
        let chosen = |of: &mut dyn FnMut() -> Vec<usize>| {
            index::LOOKS.set(0);
            let candidates: Vec<_> =
                of().into_iter().map(|had| candidate(&idle, Own::default(), had)).collect();
            let outcome = pick(Policy::Prefix, &ask, &candidates, &Weights::default(), 0, 0);
            assert!(matches!(outcome, Outcome::Picked(_, decision) if decision.cached_blocks == held.len()));
            index::LOOKS.get()
        };
        let guessed = chosen(&mut || indexes.iter().map(|index| index.matched(&chain)).collect());
        let known = chosen(&mut || {
            let found = told.find(&chain);
            lanes.iter().map(|lane| found.blocks(lane)).collect()
        });
        (guessed, known)
    };
    let ((guessed, known), (long_guessed, long_known)) = (looks(16), looks(1600));
    assert!(guessed >= 400 && long_guessed <= 100 * 12, "{long_guessed} for each of a hundred, {guessed}");
    // Of those that tell, each block is looked up once for all.
    assert!(known > 0 && long_known <= 2 * 1600, "{long_known} for all of them, {known}");
}
