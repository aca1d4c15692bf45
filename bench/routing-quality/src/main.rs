//! Routing policies side by side on published workloads, in simulated time.
//!
//! The choice is the scheduler's own code (`pick`, `Replica`, the block index, fed by events); the
//! replicas are simulated (`replica`). A simulated win says how policies compare on such replicas, and
//! nothing of real ones: README.md has what it leaves out.

#[cfg(test)]
mod complaints;
mod policy;
mod random;
mod replica;
mod scheduler;
#[cfg(test)]
mod several;
mod simulation;
mod workload;

use clap::Parser;

use policy::{ALL, Policy};
use random::Random;
use replica::Cost;
use simulation::{Outcome, run};
use workload::{Groups, Workload, conversations, zipf};

/// Replays workloads through routing policies.
#[derive(Debug, Parser)]
struct Args {
    /// Seconds of arrivals.
    #[arg(long, default_value_t = 120.0)]
    seconds: f64,
    /// Seeds; every figure is the mean over them.
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Only workloads whose name has this in it.
    #[arg(long, default_value = "")]
    only: String,
    /// Schedulers that share the replicas. None knows what the others send.
    #[arg(long, default_value_t = 1)]
    schedulers: usize,
    /// Seconds of a step.
    #[arg(long, default_value_t = 0.018)]
    step: f64,
    /// Seconds of a step for each sequence that decodes.
    #[arg(long, default_value_t = 0.000_15)]
    decode: f64,
    /// Prompt tokens a second.
    #[arg(long, default_value_t = 15_928.0)]
    prefill: f64,
}

fn workloads(seconds: f64, random: &mut Random) -> Vec<Workload> {
    let eight = (8, 307_328);
    let groups = |count, prompts, shared, own, output| Groups { count, prompts, shared, own, output };
    let ladder = groups(150, 5, 6000, 1200, 1000);
    let mut all = Vec::new();
    for rate in [10.0, 20.0, 30.0, 40.0] {
        let arrivals = ladder.at_rate(rate, seconds, random);
        all.push(Workload::new(format!("ladder, {rate}/s"), eight, arrivals));
    }
    let four = groups(83, 3, 8000, 1000, 1000).at_rate(12.0, seconds, random);
    all.push(Workload::new("4 pods, 83 groups, 12/s", (4, 461_376), four));
    for rate in [15.0, 30.0] {
        let tails = zipf(200, (4000, 2000, 300), rate, seconds, random);
        all.push(Workload::new(format!("Zipf, unique tails, {rate}/s"), eight, tails));
    }
    let few = groups(6, 1000, 1000, 30, 1000).at_rate(20.0, seconds, random);
    all.push(Workload::new("6 groups, short, 20/s", eight, few));
    let long = groups(150, 5, 1000, 6200, 1000).at_rate(15.0, seconds, random);
    all.push(Workload::new("little shared, 15/s", eight, long));
    let chats = conversations(400, 8, (1000, 200.0, 250.0), (seconds / 2.0, 5.0), random);
    all.push(Workload::new("400 conversations", eight, chats));
    let agents = conversations(40, 30, (3000, 900.0, 300.0), (seconds / 4.0, 1.0), random);
    all.push(Workload::new("40 coding agents", eight, agents));
    all
}

fn mean(outcomes: &[Outcome], of: impl Fn(&Outcome) -> f64) -> f64 {
    outcomes.iter().map(of).sum::<f64>() / outcomes.len() as f64
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1));
    sorted.get(at - 1).copied().unwrap_or(f64::NAN)
}

fn main() {
    let args = Args::parse();
    let cost =
        Cost { step: args.step, decode: args.decode, prefill: args.prefill, budget: 8192, sequences: 256 };
    println!(
        "| workload | policy | hit | of attainable | TTFT p50, s | p90 | p99 | tok/s | imbalance | predicted |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let names: Vec<String> = workloads(1.0, &mut Random(0)).into_iter().map(|w| w.name).collect();
    for (i, name) in names.iter().enumerate().filter(|(_, name)| name.contains(&args.only)) {
        for policy in ALL {
            let mut outcomes = Vec::new();
            let mut attainable = 0.0;
            for seed in 0..args.seeds {
                let workload = workloads(args.seconds, &mut Random(seed)).swap_remove(i);
                attainable += workload.attainable() / args.seeds as f64;
                outcomes.push(run(&workload, policy, cost, args.schedulers, seed));
            }
            row(name, policy, &outcomes, attainable);
        }
    }
}

fn row(name: &str, policy: Policy, outcomes: &[Outcome], attainable: f64) {
    let hit = mean(outcomes, |o| o.hit);
    let ttft = |share| mean(outcomes, |o| quantile(&o.ttft, share));
    println!(
        "| {name} | {policy} | {hit:.2} | {:.0}% | {:.2} | {:.2} | {:.2} | {:.0} | {:.2} | {} |",
        100.0 * hit / attainable.max(1e-9),
        ttft(0.5),
        ttft(0.9),
        ttft(0.99),
        mean(outcomes, |o| o.rate),
        mean(outcomes, |o| o.imbalance),
        // Only ours think anything of caches.
        if matches!(policy, Policy::Approximate | Policy::Precise) {
            format!("{:.1}%", 100.0 * mean(outcomes, |o| o.predicted))
        } else {
            String::new()
        },
    );
}
