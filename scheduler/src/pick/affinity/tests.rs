use proptest::prelude::*;
use strata_wire::prefix::{BlockHash, Opening};

use super::*;
use crate::pick::{
    Ask, Cached, Candidate, Forecast, Load, Objectives, Outcome, Patience, Policy, Weights, Why, pick,
};
use strata_wire::replicas::Track;

const ASK: Ask = Ask {
    blocks: 10,
    bytes: 2560,
    aims: Objectives { first_token: 1.0, inter_token: 0.1 },
    patience: Patience { for_holder: false, for_room: false },
    lean: Lean::NONE,
};

const NAMES: [&str; 8] = ["m-0", "m-1", "m-2", "m-3", "m-4", "m-5", "m-6", "m-7"];

fn idle(name: &'static str) -> Candidate<'static> {
    Candidate {
        name,
        track: Track::Stable,
        eligible: true,
        load: Load {
            running: Some(0.0),
            waiting: Some(0.0),
            waiting_tokens_known: true,
            max_sequences: Some(16.0),
            prefill_rate: Some(1000.0),
            ..Load::default()
        },
        cached: Cached::default(),
        bytes_per_token: 4.0,
        forecast: Forecast::default(),
        seed: number(&[name.as_bytes()]),
        adapter: None,
    }
}

fn fleet(count: usize) -> Vec<Candidate<'static>> {
    NAMES[..count].iter().map(|name| idle(name)).collect()
}

fn of_session(key: u64) -> Ask {
    Ask { lean: Lean { session: Some(key), ..Lean::NONE }, ..ASK }
}

fn asks(key: u64) -> Ask {
    let homes = Homes { unknown: Some(key), known: Some(key) };
    Ask { lean: Lean { homes, ..Lean::NONE }, ..ASK }
}

fn picked(policy: Policy, ask: &Ask, candidates: &[Candidate<'_>], random: u64) -> (usize, Why) {
    match pick(policy, ask, candidates, &Weights::default(), random, random) {
        Outcome::Picked(at, decision) => (at, decision.why),
        other => panic!("{other:?}"),
    }
}

fn name_of(ask: &Ask, candidates: &[Candidate<'_>], random: u64) -> String {
    candidates[picked(Policy::Prefix, ask, candidates, random).0].name.to_owned()
}

#[test]
fn a_session_goes_home_whatever_the_others_have() {
    let mut candidates = fleet(4);
    let home = picked(Policy::Prefix, &of_session(7), &candidates, 0).0;
    candidates[home].load.running = Some(16.0);
    candidates[home].load.waiting = Some(6.0);
    candidates[home].load.waiting_tokens = 9000.0;
    let other = (home + 1) % 4;
    candidates[other].cached = Cached::guessed(10, 4.0);
    for policy in
        [Policy::Prefix, Policy::WeightedRandom, Policy::PowerOfTwo, Policy::LeastLoaded, Policy::SloAware]
    {
        for random in 0..20 {
            assert_eq!(picked(policy, &of_session(7), &candidates, random), (home, Why::Session), "{policy}");
        }
    }
    assert_eq!(
        picked(Policy::Prefix, &ASK, &candidates, 0).0,
        other,
        "without one it goes where its prompt is"
    );
    // What it would wait for if it had no home.
    let patient = Ask { patience: Patience { for_holder: true, for_room: true }, ..of_session(7) };
    assert_eq!(picked(Policy::Prefix, &patient, &candidates, 0).0, home);
    let off = Weights { session: 0.0, ..Weights::default() };
    let Outcome::Picked(at, _) = pick(Policy::Prefix, &of_session(7), &candidates, &off, 0, 0) else {
        panic!()
    };
    assert_eq!(at, other);
}

#[test]
fn a_home_that_is_full_or_broken_is_none_until_it_is_back() {
    let mut candidates = fleet(4);
    let ask = of_session(7);
    let home = picked(Policy::Prefix, &ask, &candidates, 0).0;
    candidates[home].load.waiting = Some(8.0);
    let second = picked(Policy::Prefix, &ask, &candidates, 1).0;
    assert_ne!(second, home);
    assert!(
        (2..9).all(|random| picked(Policy::Prefix, &ask, &candidates, random).0 == second),
        "one, not any"
    );
    candidates[home] = Candidate { eligible: false, ..idle(NAMES[home]) };
    assert_eq!(picked(Policy::Prefix, &ask, &candidates, 3).0, second);
    candidates[home].eligible = true;
    assert_eq!(picked(Policy::Prefix, &ask, &candidates, 3).0, home);
}

#[test]
fn one_session_that_is_everybody_does_not_take_the_others_down() {
    let mut candidates = fleet(4);
    let mut got = [0u32; 4];
    for request in 0..96 {
        let Outcome::Picked(at, _) =
            pick(Policy::Prefix, &of_session(7), &candidates, &Weights::default(), request, request)
        else {
            panic!("there is room for 96: {got:?}")
        };
        got[at] += 1;
        let load = &mut candidates[at].load;
        load.in_flight += 1;
        load.running = Some((load.in_flight as f64).min(16.0));
        load.waiting = Some((load.in_flight as f64 - 16.0).max(0.0));
    }
    assert_eq!(got, [24; 4], "each is filled, and none beyond what it holds");
}

proptest! {
    /// Schedulers that list the replicas in another order agree, keys are spread, and only those of a replica
    /// that goes find another home.
    #[test]
    fn every_scheduler_finds_the_same_home(seed: u64, gone in 0usize..8, count in 2usize..=8) {
        let here = fleet(count);
        let there: Vec<_> = here.iter().rev().copied().collect();
        let left: Vec<_> = here.iter().copied().filter(|c| c.name != NAMES[gone]).collect();
        let mut by = [0u32; 8];
        for n in 0..400 {
            let key = mix(seed.wrapping_add(n));
            for ask in [of_session(key), asks(key)] {
                let home = name_of(&ask, &here, n);
                prop_assert_eq!(&home, &name_of(&ask, &there, n + 1));
                if home != NAMES[gone] {
                    prop_assert_eq!(&home, &name_of(&ask, &left, n));
                }
                by[NAMES.iter().position(|name| *name == home).unwrap()] += 1;
            }
        }
        let mean = 800 / count as u32;
        prop_assert!(by[..count].iter().all(|got| (mean / 2..mean * 2).contains(got)), "{:?}", by);
    }

    /// Prompts that all begin alike and never end: none of the replicas gets far before the others.
    #[test]
    fn a_home_is_not_crowded(key: u64, replicas in 2usize..=8, most in 1u32..=256, requests in 1usize..200) {
        let mut candidates = fleet(replicas);
        for candidate in &mut candidates {
            candidate.load.max_sequences = Some(f64::from(most));
        }
        for n in 0..requests {
            let at = picked(Policy::Prefix, &asks(key), &candidates, n as u64).0;
            let load = &mut candidates[at].load;
            load.in_flight += 1;
            load.running = Some((load.in_flight as f64).min(f64::from(most)));
            load.waiting = Some((load.in_flight as f64 - f64::from(most)).max(0.0));
            let got = candidates.iter().map(|c| c.load.in_flight);
            let (fewest, many) = (got.clone().min().unwrap() as f64, got.max().unwrap() as f64);
            prop_assert!(many <= fewest + SLACK * f64::from(most) + 1.0, "{} and {}", many, fewest);
            if candidates.iter().any(|c| c.load.is_saturated()) {
                break;
            }
        }
    }
}

#[test]
fn what_is_known_of_a_prompt_comes_before_where_it_belongs() {
    let mut candidates = fleet(3);
    let (home, why) = picked(Policy::Prefix, &asks(5), &candidates, 0);
    assert_eq!(why, Why::Home);
    let other = (home + 1) % 3;
    candidates[other].cached = Cached::guessed(8, 4.0);
    assert_eq!(picked(Policy::Prefix, &asks(5), &candidates, 0), (other, Why::MostCached));
    candidates[other].cached = Cached::default();
    candidates[home].load.running = Some(1.0);
    let (at, why) = picked(Policy::Prefix, &asks(5), &candidates, 0);
    assert!(at != home && why == Why::Home, "of sixteen one is more than a little");
    for candidate in &mut candidates {
        candidate.load.max_sequences = Some(256.0);
    }
    assert_eq!(picked(Policy::Prefix, &asks(5), &candidates, 0), (home, Why::Home));
    // Of a replica that tells, nothing need be guessed.
    let mut telling = fleet(3);
    telling[0].cached = Cached::told([0; 3]);
    let all = (0..64).map(|random| picked(Policy::Prefix, &asks(5), &telling, random).0);
    assert_eq!(all.collect::<std::collections::BTreeSet<_>>().len(), 3, "chance decides");
}

#[test]
fn prompts_that_begin_alike_belong_together_and_a_conversation_to_itself() {
    let chain = |own: u64, blocks: u64| -> Vec<BlockHash> {
        (0..blocks).map(|at| BlockHash(if at < 8 { at } else { own << 32 | at })).collect()
    };
    let opening = |hash, blocks| Some(Opening { hash, first: true, blocks });
    let prefix = |blocks: Vec<BlockHash>, opening| Prefix { bytes: 256 * blocks.len(), blocks, opening };
    let long = |own| Homes::of(&prefix(chain(own, 12), opening(own, 9)));
    assert_eq!(long(1).unknown, long(2).unknown, "the same instructions");
    assert_ne!(long(1).known, long(2).known, "two conversations");
    let short = |blocks| Homes::of(&prefix(chain(3, blocks), opening(77, 1)));
    assert_eq!((short(1), short(30)), (short(2), short(2)), "all turns");
    assert_eq!(Homes::of(&prefix(chain(1, 3), None)), Homes { unknown: Some(2), known: None });
    assert_eq!(Homes::of(&Prefix::default()), Homes::default());
}

#[test]
fn the_nearest_adapter_wins_among_equals_and_load_counts() {
    use Fit::{Coming, Loaded, NoRoom, Room, Unknown};
    let with = |fits: [Fit; 2]| {
        let mut candidates = fleet(2);
        for (candidate, fit) in candidates.iter_mut().zip(fits) {
            candidate.adapter = Some(fit);
        }
        candidates
    };
    for (better, worse) in [(Loaded, Room), (Room, Coming), (Coming, Unknown), (Unknown, NoRoom)] {
        assert_eq!(picked(Policy::Prefix, &ASK, &with([better, worse]), 0).0, 0, "{better} and {worse}");
        assert_eq!(picked(Policy::Prefix, &ASK, &with([worse, better]), 0).0, 1, "{better} and {worse}");
    }
    let mut busy = with([Loaded, Room]);
    busy[0].load.running = Some(8.0);
    assert_eq!(picked(Policy::Prefix, &ASK, &busy, 0).0, 1, "one that is half full beside an idle one");
    busy[1].adapter = Some(NoRoom);
    assert_eq!(picked(Policy::Prefix, &ASK, &busy, 0).0, 0, "it would wait for another adapter to go");
}

#[test]
fn ten_long_answers_are_fuller_than_ten_short_ones() {
    let usual = 800.0;
    let brief = |limit| 10.0 * (1.0 - Answer::expected(usual, limit).share);
    let mut candidates = fleet(2);
    for (candidate, limit) in candidates.iter_mut().zip([None, Some(16)]) {
        candidate.load.running = Some(10.0);
        candidate.load.in_flight = 10;
        candidate.load.brief = brief(limit);
    }
    for random in 0..8 {
        assert_eq!(picked(Policy::Prefix, &ASK, &candidates, random), (1, Why::LeastLoaded));
    }
    assert_eq!(Answer::expected(usual, Some(5000)), Answer { tokens: 800.0, share: 1.0 });
    assert_eq!(Answer::expected(usual, Some(8)), Answer { tokens: 8.0, share: LEAST_SHARE });
}

#[test]
fn numbers_are_the_same_in_every_build() {
    assert_eq!(number(&[b"m-0"]), 5_144_908_146_430_452_150);
    assert_ne!(number(&[b"a", b"bc"]), number(&[b"ab", b"c"]));
}
