//! Several schedulers that hear nothing of what others send, by what they send themselves: with the prompts of
//! which nothing is known hashed, and left to chance.

use crate::policy::Policy;
use crate::random::Random;
use crate::replica::Cost;
use crate::simulation::{Outcome, run};
use crate::workload::{Groups, Workload};

const COST: Cost = Cost { step: 0.018, decode: 0.000_15, prefill: 15_928.0, budget: 8192, sequences: 256 };

fn behind(schedulers: usize, policy: Policy, workload: &Workload) -> Outcome {
    run(workload, policy, COST, schedulers, 1)
}

fn p99(outcome: &Outcome) -> f64 {
    outcome.ttft[outcome.ttft.len() * 99 / 100]
}

/// Groups of prompts that begin alike: each scheduler meets each group, and by chance sends it elsewhere.
#[test]
fn what_begins_alike_is_computed_in_one_place() {
    let groups = Groups { count: 60, prompts: 5, shared: 4000, own: 300, output: 60 };
    let arrivals = groups.at_rate(12.0, 40.0, &mut Random(1));
    let workload = Workload::new("groups", (8, 307_328), arrivals);
    let hashed = behind(6, Policy::Approximate, &workload);
    let chance = behind(6, Policy::Unhashed, &workload);
    let attainable = workload.attainable();
    println!("hit {:.3} hashed, {:.3} by chance, {attainable:.3} attainable", hashed.hit, chance.hit);
    println!("p99 {:.3} s hashed, {:.3} s by chance", p99(&hashed), p99(&chance));
    println!("imbalance {:.2} hashed, {:.2} by chance", hashed.imbalance, chance.imbalance);
    assert!(hashed.hit > chance.hit + 0.1 * attainable, "{} and {}", hashed.hit, chance.hit);
    assert!(hashed.imbalance < 1.6, "{}", hashed.imbalance);
}

/// Prompts that share nothing: hashing them crowds no replica.
#[test]
fn prompts_that_share_nothing_are_spread_as_by_chance() {
    let kinds = Groups { count: 10_000, prompts: 1, shared: 0, own: 1200, output: 100 };
    let mut mean = [0.0; 2];
    for seed in 1..=3 {
        let unique = Workload::new("unique", (8, 307_328), kinds.at_rate(60.0, 10.0, &mut Random(seed)));
        for (policy, most) in [Policy::Approximate, Policy::Unhashed].into_iter().zip(&mut mean) {
            *most += p99(&behind(4, policy, &unique)) / 3.0;
        }
    }
    println!("p99 {:.3} s hashed, {:.3} s by chance", mean[0], mean[1]);
    assert!(mean[0] < 1.15 * mean[1], "{mean:?}");
}
