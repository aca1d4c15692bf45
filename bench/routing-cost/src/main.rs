//! The ends between which `run.py` puts routers, and the scheduler's choice by itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use strata_routing_cost::decide::{self, Size};
use strata_routing_cost::load::{self, Load};
use strata_routing_cost::replicas::{self, Pace, Seen};

#[derive(Debug, Parser)]
#[command(about = "What a router costs a request")]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Run engines that compute nothing, until standard input ends
    Replicas(Replicas),
    /// Send requests over connections that stay open, and print what it took as JSON
    Load(Sends),
    /// Measure the scheduler's choice and its index, and print them as JSON
    Decide(Decides),
}

#[derive(Debug, Args)]
struct Replicas {
    /// A port of the loopback interface for each replica; 0 takes a free one
    #[arg(long, value_delimiter = ',', required = true)]
    ports: Vec<u16>,
    /// Milliseconds before the first chunk of a stream
    #[arg(long, default_value_t = 20)]
    first_ms: u64,
    /// Milliseconds before each later chunk
    #[arg(long, default_value_t = 5)]
    think_ms: u64,
}

#[derive(Debug, Args)]
struct Sends {
    /// Where to; connections are spread over several
    #[arg(long, value_delimiter = ',', required = true)]
    to: Vec<SocketAddr>,
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Bytes of a body
    #[arg(long, default_value_t = 4096)]
    bytes: usize,
    /// Ask for streamed answers
    #[arg(long)]
    stream: bool,
    /// Groups of requests that share the first half of their bodies
    #[arg(long, default_value_t = 16)]
    groups: usize,
    /// Seconds before it counts
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Seconds that count
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Seconds after which an answer is an error
    #[arg(long, default_value_t = 30.0)]
    timeout: f64,
    /// Threads that send
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Where the numbers of requests begin: another one makes other prompts
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, Args)]
struct Decides {
    #[arg(long, default_value_t = 1000)]
    replicas: usize,
    /// Blocks in the index, each as often as replicas hold it
    #[arg(long, default_value_t = 10_000_000)]
    blocks: usize,
    /// Blocks of a prompt
    #[arg(long, default_value_t = 256)]
    prompt: usize,
    #[arg(long, default_value_t = 10_000)]
    decisions: usize,
    /// Replicas tell nothing: what they hold is guessed by what they were sent
    #[arg(long)]
    guessed: bool,
}

fn main() -> anyhow::Result<()> {
    match Command::parse().what {
        What::Replicas(args) => {
            let pace = Pace {
                first: Duration::from_millis(args.first_ms),
                think: Duration::from_millis(args.think_ms),
            };
            let seen = Arc::new(Seen::default());
            for address in replicas::start(&args.ports, pace, &seen)? {
                println!("{address}");
            }
            // Whoever started this holds the other end: a replica does not outlive it.
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
        }
        What::Load(args) => {
            let load = Load {
                to: args.to,
                connections: args.connections,
                bytes: args.bytes,
                stream: args.stream,
                groups: args.groups,
                warm_up: Duration::from_secs_f64(args.warm_up),
                measured: Duration::from_secs_f64(args.seconds),
                timeout: Duration::from_secs_f64(args.timeout),
                threads: args.threads,
                seed: args.seed,
            };
            // Whoever reads these lines looks then at what the router has used up.
            let summary = load::run(&load, || println!("begins"), || println!("ends"))?;
            println!("{}", serde_json::to_string(&summary)?);
        }
        What::Decide(args) => {
            let size = Size {
                replicas: args.replicas,
                blocks: args.blocks,
                prompt: args.prompt,
                decisions: args.decisions,
                told: !args.guessed,
            };
            println!("{}", serde_json::to_string_pretty(&decide::measure(&size)?)?);
        }
    }
    Ok(())
}
