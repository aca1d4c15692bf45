//! The binary `strata`: one subcommand a component, and `up` for all of it without a cluster. It is
//! thin: it reads arguments, calls the libraries, and prints.

mod args;
mod command;
mod output;
#[cfg(test)]
mod reference;
mod state;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    match command::run(args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::error(&failure);
            output::exit_code(&failure)
        }
    }
}
