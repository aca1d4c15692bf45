//! What users of other routers complained of that takes several schedulers, or time, to show. Each test is
//! named after one complaint; `docs/reference/complaints.md` lists them.

use crate::policy::Policy;
use crate::random::Random;
use crate::replica::Cost;
use crate::simulation::{Outcome, run};
use crate::workload::{Groups, Workload, conversations};

const COST: Cost = Cost { step: 0.018, decode: 0.000_15, prefill: 15_928.0, budget: 8192, sequences: 256 };

fn behind(schedulers: usize, policy: Policy, workload: &Workload) -> Outcome {
    run(workload, policy, COST, schedulers, 1)
}

/// Seconds until the first token, for all but one of a hundred.
fn p99(outcome: &Outcome) -> f64 {
    outcome.ttft[outcome.ttft.len() * 99 / 100]
}

/// A router that keeps what it knows of caches to itself finds the next turn's beginning only where the one
/// before came to the same router: here the share that is lost is what our own guess loses, which hears
/// nothing.
#[test]
fn smg_2394_eight_schedulers_find_as_much_cached_as_one() {
    let arrivals = conversations(150, 6, (1000, 200.0, 150.0), (20.0, 3.0), &mut Random(1));
    let chats = Workload::new("chats", (8, 307_328), arrivals);
    let one = behind(1, Policy::Precise, &chats);
    let eight = behind(8, Policy::Precise, &chats);
    let deaf = behind(8, Policy::Approximate, &chats);
    assert!(eight.hit >= 0.97 * one.hit, "{} of {}", eight.hit, one.hit);
    assert!(deaf.hit < 0.9 * one.hit, "the workload tells nothing: {} of {}", deaf.hit, one.hit);
}

/// Sixteen routers see the same metrics, and until these change each of them that goes by them alone sends
/// its next request to the same replica. Ours do better than those, and at the end of the distribution
/// better than chance; what one scheduler that sees everything does they do not reach.
#[test]
fn dynamo_589_sixteen_schedulers_do_not_herd() {
    let kinds = Groups { count: 10_000, prompts: 1, shared: 0, own: 1200, output: 100 };
    let mut mean = [(0.0, 0.0); 3];
    for seed in 1..=4 {
        let unique = Workload::new("unique", (8, 307_328), kinds.at_rate(60.0, 10.0, &mut Random(seed)));
        for (policy, (median, most)) in
            [Policy::Precise, Policy::Metrics, Policy::Random].into_iter().zip(&mut mean)
        {
            let outcome = behind(16, policy, &unique);
            *median += outcome.ttft[outcome.ttft.len() / 2] / 4.0;
            *most += p99(&outcome) / 4.0;
        }
    }
    let [ours, herd, chance] = mean;
    assert!(ours.0 < 0.85 * herd.0 && ours.1 < 0.9 * herd.1, "{ours:?}, by metrics alone {herd:?}");
    assert!(ours.1 < 0.9 * chance.1, "{ours:?}, by chance {chance:?}");
}

/// Ten kinds of requests of 8,500 tokens, 8,000 of them shared, ten a second at four replicas. A router that
/// goes by the prefix alone, as rendezvous hashing does, gives one replica twice what the mean gets.
#[test]
fn aibrix_842_shared_prompts_are_found_without_a_hot_spot() {
    let kinds = Groups { count: 10, prompts: 1000, shared: 8000, own: 500, output: 128 };
    let ten = Workload::new("ten kinds", (4, 307_328), kinds.at_rate(10.0, 30.0, &mut Random(1)));
    let by_load = behind(1, Policy::LeastLoaded, &ten);
    let by_prefix = behind(1, Policy::PrefixHash, &ten);
    for policy in [Policy::Approximate, Policy::Precise] {
        let ours = behind(1, policy, &ten);
        assert!(ours.imbalance < 1.5, "{policy}: {}, {} by prefix", ours.imbalance, by_prefix.imbalance);
        assert!(p99(&ours) < 0.5 * p99(&by_prefix), "{policy}: {} s of {}", p99(&ours), p99(&by_prefix));
        assert!(ours.hit > by_load.hit + 0.03, "{policy}: {} of {}", ours.hit, by_load.hit);
    }
}
