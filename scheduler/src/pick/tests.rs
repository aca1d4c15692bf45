use proptest::prelude::*;
use strata_wire::defaults::BLOCK_BYTES;

use super::load::{ASSUMED_MAX_SEQUENCES, SATURATED_WAITING};
use super::*;

const BLOCKS: usize = 10;
const ASK: Ask = Ask {
    blocks: BLOCKS,
    bytes: BLOCKS * BLOCK_BYTES,
    aims: Objectives { first_token: 1.0, inter_token: 0.1 },
    patience: Patience { for_holder: false, for_room: false },
    lean: Lean::NONE,
};

fn maybe(range: std::ops::Range<f64>) -> impl Strategy<Value = Option<f64>> {
    prop::option::weighted(0.8, range)
}

fn any_load() -> impl Strategy<Value = Load> {
    let gauges =
        (maybe(0.0..100.0), maybe(0.0..20.0), maybe(0.0..9000.0), maybe(1.0..100.0), maybe(-1.0..9000.0));
    let inter_token = prop_oneof![
        Just(InterToken::Missing),
        Just(InterToken::Idle),
        (0.0..1.0f64).prop_map(InterToken::Seconds)
    ];
    (gauges, inter_token, 0u64..300, 0u64..50, prop::bool::weighted(0.9)).prop_map(
        |(
            (running, waiting, waiting_tokens, max_sequences, prefill_rate),
            inter_token,
            flying,
            since,
            fresh,
        )| {
            let own = Own { in_flight: flying, pending: flying / 2, pending_tokens: flying as f64 * 20.0 };
            let gauges = Gauges {
                running,
                waiting,
                waiting_tokens,
                max_sequences,
                kv_usage: None,
                prefill_rate,
                inter_token,
                own,
            };
            let now = Own { in_flight: flying + since, pending: flying / 2 + since, ..own };
            Load::estimate(fresh.then_some(&gauges), now)
        },
    )
}

fn any_candidates() -> impl Strategy<Value = Vec<Candidate<'static>>> {
    prop::collection::vec((any_load(), 0..=BLOCKS, prop::bool::weighted(0.8), 1.0..8.0f64), 0..6).prop_map(
        |all| {
            all.into_iter()
                .map(|(load, cached_blocks, eligible, bytes_per_token)| Candidate {
                    name: "m",
                    track: Track::Stable,
                    eligible,
                    load,
                    cached: Cached::guessed(cached_blocks, bytes_per_token),
                    bytes_per_token,
                    forecast: Forecast::default(),
                    seed: 0,
                    adapter: None,
                })
                .collect()
        },
    )
}

fn idle(name: &str, cached_blocks: usize) -> Candidate<'_> {
    let load = Load {
        running: Some(0.0),
        waiting: Some(0.0),
        waiting_tokens_known: true,
        max_sequences: Some(16.0),
        prefill_rate: Some(1000.0),
        ..Load::default()
    };
    let cached = Cached::guessed(cached_blocks, 4.0);
    let forecast = Forecast::default();
    Candidate {
        name,
        track: Track::Stable,
        eligible: true,
        load,
        cached,
        bytes_per_token: 4.0,
        forecast,
        seed: affinity::number(&[name.as_bytes()]),
        adapter: None,
    }
}

fn place(outcome: &Outcome) -> Option<usize> {
    match outcome {
        Outcome::Picked(place, _) => Some(*place),
        _ => None,
    }
}

proptest! {
    /// An unready or saturated replica is never picked, and a request is held only when none can
    /// take it.
    #[test]
    fn only_open_replicas(candidates in any_candidates(), policy in 0..6usize, turn: u64, random: u64) {
        let policy = Policy::ALL[policy];
        let outcome = pick(policy, &ASK, &candidates, &Weights::default(), turn, random);
        match &outcome {
            Outcome::Picked(place, decision) => {
                let chosen = &candidates[*place];
                prop_assert!(chosen.eligible && !chosen.load.is_saturated());
                let p = decision.parts;
                for part in [p.hit, p.queue, p.decode, p.latency] {
                    prop_assert!((0.0..=1.0).contains(&part), "{:?}", p);
                }
                prop_assert!((-45.0..=50.0).contains(&decision.score));
            }
            Outcome::Saturated => {
                prop_assert!(candidates.iter().any(|c| c.eligible));
                prop_assert!(candidates.iter().all(|c| !c.eligible || c.load.is_saturated()));
            }
            Outcome::NoneReady => prop_assert!(candidates.iter().all(|c| !c.eligible)),
        }
        prop_assert_eq!(outcome, pick(policy, &ASK, &candidates, &Weights::default(), turn, random));
    }

    /// No candidate scores better than the one picked.
    #[test]
    fn the_best_score_wins(candidates in any_candidates(), random: u64) {
        let weights = Weights::default();
        if let Outcome::Picked(_, decision) = pick(Policy::Prefix, &ASK, &candidates, &weights, 0, random) {
            let idle = sibling_inter_token(&candidates);
            for c in candidates.iter().filter(|c| c.eligible && !c.load.is_saturated()) {
                let parts = score::parts(&ASK, &c.cached, c.bytes_per_token, &c.load, idle);
                prop_assert!(parts.score(&weights) <= decision.score + 1e-6);
            }
        }
    }

    /// All else equal, the replica that holds more of the prompt is picked.
    #[test]
    fn a_longer_prefix_wins(mut load in any_load(), cached in prop::collection::vec(0..=BLOCKS, 2..5), random: u64) {
        load.in_flight %= 8;
        load.waiting = load.waiting.map(|waiting| waiting % SATURATED_WAITING);
        let candidates: Vec<_> =
            cached.iter().map(|c| Candidate { load, ..idle("m", *c) }).collect();
        let outcome = pick(Policy::Prefix, &ASK, &candidates, &Weights::default(), 0, random);
        let chosen = place(&outcome).expect("none is saturated");
        let most = Cached::guessed(*cached.iter().max().unwrap(), 4.0);
        prop_assert_eq!(candidates[chosen].cached, most);
    }

    /// Requests that all share one prefix and never end: the replica that holds it takes some, then
    /// the others get theirs, and none gets more than it can queue.
    #[test]
    fn a_hot_replica_is_not_piled_onto(replicas in 2usize..5, requests in 1usize..160, random: u64) {
        let mut own = vec![Own::default(); replicas];
        let mut cached = vec![0; replicas];
        cached[0] = BLOCKS - 1;
        let gauges = Gauges {
            running: Some(0.0),
            waiting: Some(0.0),
            waiting_tokens: Some(0.0),
            max_sequences: Some(16.0),
            prefill_rate: Some(1000.0),
            ..Gauges::default()
        };
        for n in 0..requests {
            let candidates: Vec<_> = (0..replicas)
                .map(|i| Candidate { load: Load::estimate(Some(&gauges), own[i]), ..idle("m", cached[i]) })
                .collect();
            let outcome = pick(Policy::Prefix, &ASK, &candidates, &Weights::default(), n as u64, random);
            let Some(i) = place(&outcome) else {
                prop_assert!(own.iter().all(|o| o.in_flight as f64 >= 16.0 + SATURATED_WAITING));
                break;
            };
            let uncached = ASK.bytes as f64 / 4.0 - Cached::guessed(cached[i], 4.0).tokens;
            own[i].in_flight += 1;
            own[i].pending += 1;
            own[i].pending_tokens += uncached;
            cached[i] = BLOCKS;
        }
        let most = own.iter().map(|o| o.in_flight).max().unwrap();
        prop_assert!(most as f64 <= 16.0 + SATURATED_WAITING);
        if requests > 24 {
            prop_assert!(own.iter().filter(|o| o.in_flight > 0).count() > 1);
        }
    }
}

#[test]
fn ties_go_to_the_fewest_in_flight_and_then_to_chance() {
    let mut candidates = [idle("a", 0), idle("b", 0), idle("c", 0)];
    candidates[0].load.in_flight = 1;
    let at = |random| place(&pick(Policy::Prefix, &ASK, &candidates, &Weights::default(), 0, random));
    assert_eq!((at(0), at(1), at(2)), (Some(1), Some(2), Some(1)));
}

#[test]
fn round_robin_takes_turns_and_skips_the_full() {
    let mut candidates = [idle("a", BLOCKS), idle("b", 0), idle("c", 0)];
    let order = |candidates: &[Candidate<'_>]| {
        (0..4)
            .map(|t| place(&pick(Policy::RoundRobin, &ASK, candidates, &Weights::default(), t, 9)).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(order(&candidates), [0, 1, 2, 0]);
    candidates[1].load.waiting = Some(SATURATED_WAITING);
    assert_eq!(order(&candidates), [0, 2, 0, 2]);
}

/// How often each of three is picked: one that holds the prompt, one that is free, and one that is busy.
fn shares(policy: Policy) -> [u32; 3] {
    let mut candidates = [idle("holds it", BLOCKS), idle("free", 0), idle("busy", 0)];
    candidates[2].load.running = Some(16.0);
    let mut counts = [0; 3];
    for n in 0..4000u64 {
        let random = crate::scheduler::mix(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let outcome = pick(policy, &ASK, &candidates, &Weights::default(), n, random);
        counts[place(&outcome).unwrap()] += 1;
    }
    counts
}

#[test]
fn pickers_leave_more_or_less_to_chance() {
    assert_eq!(shares(Policy::Prefix), [4000, 0, 0]);
    assert_eq!(shares(Policy::LeastLoaded).map(|share| share > 1600), [true, true, false]);
    assert!(shares(Policy::Random).iter().all(|share| share.abs_diff(1333) < 200));
    // Of two of three, the best is among them twice in three times, and the worst never wins.
    let [best, middle, worst] = shares(Policy::PowerOfTwo);
    assert!(
        best.abs_diff(2667) < 200 && middle.abs_diff(1333) < 200 && worst == 0,
        "{best} {middle} {worst}"
    );
    let [best, middle, worst] = shares(Policy::WeightedRandom);
    assert!(best > 3200 && middle > worst && worst > 0, "{best} {middle} {worst}");
}

#[test]
fn chance_keeps_schedulers_from_herding() {
    // Four replicas that differ by a sequence each, as 400 schedulers see them between two looks.
    let mut candidates = [idle("a", 0), idle("b", 0), idle("c", 0), idle("d", 0)];
    for (running, candidate) in [3.0, 4.0, 5.0, 6.0].into_iter().zip(&mut candidates) {
        candidate.load.running = Some(running);
    }
    let busiest = |policy| {
        let mut counts = [0; 4];
        for scheduler in 0..400u64 {
            let random = crate::scheduler::mix(scheduler.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            counts[place(&pick(policy, &ASK, &candidates, &Weights::default(), 0, random)).unwrap()] += 1;
        }
        *counts.iter().max().unwrap()
    };
    assert_eq!(busiest(Policy::Prefix), 400);
    // Of the pairs of four half have the best in them.
    assert!(busiest(Policy::PowerOfTwo) < 250);
    assert!(busiest(Policy::WeightedRandom) < 160);
}

#[test]
fn a_picker_says_why() {
    let candidates = [idle("a", 0), idle("b", 0)];
    let why = |policy, of: &[Candidate<'_>]| match pick(policy, &ASK, of, &Weights::default(), 0, 7) {
        Outcome::Picked(_, decision) => decision.why,
        other => panic!("{other:?}"),
    };
    assert_eq!(why(Policy::PowerOfTwo, &candidates), Why::BetterOfTwo);
    assert_eq!(why(Policy::WeightedRandom, &candidates), Why::Chance);
    for policy in [Policy::PowerOfTwo, Policy::WeightedRandom, Policy::Random, Policy::LeastLoaded] {
        assert_eq!(why(policy, &candidates[..1]), Why::OnlyOne);
    }
}

#[test]
fn a_replica_at_rest_is_not_shunned_for_want_of_latency() {
    let mut candidates = [idle("worked", 0), idle("rested", 0)];
    candidates[0].load.inter_token = InterToken::Seconds(0.01);
    candidates[1].load.inter_token = InterToken::Idle;
    candidates[0].load.in_flight = 1;
    assert_eq!(place(&pick(Policy::Prefix, &ASK, &candidates, &Weights::default(), 0, 0)), Some(1));
}

#[test]
fn weights_change_the_choice() {
    let mut candidates = [idle("holds it", BLOCKS), idle("free", 0)];
    candidates[0].load.running = Some(16.0);
    let with = |weights| place(&pick(Policy::Prefix, &ASK, &candidates, &weights, 0, 0));
    assert_eq!(with(Weights::default()), Some(0));
    assert_eq!(with(Weights { hit: 5.0, ..Weights::default() }), Some(1));
}

#[test]
fn a_replica_that_does_not_say_its_size_is_still_bounded() {
    let mut candidate = idle("m", 0);
    candidate.load = Load::estimate(
        None,
        Own { in_flight: (ASSUMED_MAX_SEQUENCES + SATURATED_WAITING) as u64, ..Own::default() },
    );
    assert_eq!(pick(Policy::Prefix, &ASK, &[candidate], &Weights::default(), 0, 0), Outcome::Saturated);
}
