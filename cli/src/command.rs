//! One file a command.

mod bench;
mod explain;
mod fetch;
mod keys;
mod layers;
mod status;
mod up;
mod usage;

use crate::args::Command;

/// Runs a command to its end.
pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up(args) => up::run(args),
        Command::Status(args) => status::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Keys(args) => keys::run(args.action),
        Command::Usage(args) => usage::run(&args),
        Command::Crds => layers::crds(),
        Command::Engine(args) => layers::engine(*args),
        Command::Scheduler(args) => layers::scheduler(args),
        Command::Gateway(args) => layers::gateway(args),
        Command::Platform(args) => layers::platform(args),
        Command::Operator(args) => layers::operator(args),
        Command::Fetch(args) => fetch::run(args),
        Command::Bench(args) => bench::run(args.what),
    }
}
