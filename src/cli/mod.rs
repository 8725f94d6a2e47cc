//! The command line: subcommands of the `pgward` binary and what their exit codes mean.
//!
//! The only room that names clap. Each subcommand is a file with its own `Args` and `run`; the
//! offline ones are a few lines over a pure room. Facts go to stdout, words about problems to
//! stderr; with `--json`, stdout has one JSON document and nothing else. Called by `main`.

mod check;
mod demo;
pub mod local;
mod locate;
mod mint;
mod route;
mod serve;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use crate::document::LoadError;
use crate::shard_map::{ShardMap, source};

use clap::{Parser, Subcommand};

/// One Postgres endpoint in front of many hospital shards.
#[derive(Debug, Parser)]
#[command(name = "pgward", version, about, propagate_version = true)]
#[command(after_help = "Exit code: 0 yes, 1 a finding or refusal, 2 wrong use.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve clients until SIGTERM.
    Serve(serve::Args),
    /// Check a configuration, its shard map and its users file.
    Check(check::Args),
    /// Say which shard each hospital is on.
    Locate(locate::Args),
    /// Make hospital ids that land in a region.
    Mint(mint::Args),
    /// Say where a statement would go, and why.
    Route(route::Args),
    /// Start a local system to try it out.
    Demo(demo::Args),
}

/// What a subcommand found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Yes, all well.
    Yes,
    /// A finding or refusal: printed.
    Finding,
    /// Wrong use: an argument names nothing that can be read. Printed.
    WrongUse,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Yes => 0,
            Outcome::Finding => 1,
            Outcome::WrongUse => 2,
        })
    }
}

/// Parses the command line and runs it. Exit codes: 0 yes, 1 a finding or refusal, 2 wrong use.
pub fn run() -> ExitCode {
    // clap exits by itself with 2 on wrong use and 0 on --help and --version.
    match Cli::parse().command {
        Command::Serve(args) => serve::run(&args),
        Command::Check(args) => check::run(&args).into(),
        Command::Locate(args) => locate::run(&args).into(),
        Command::Mint(args) => mint::run(&args).into(),
        Command::Route(args) => route::run(&args).into(),
        Command::Demo(args) => demo::run(args),
    }
}

/// The map in `path`, or its problems on stderr.
fn load_map(path: &Path) -> Result<ShardMap, Outcome> {
    source::load(path).map_err(|error| {
        eprintln!("{error}");
        match error {
            LoadError::Read { .. } => Outcome::WrongUse,
            LoadError::Problems(_) => Outcome::Finding,
        }
    })
}

/// Prints facts. A reader that has gone away (`| head`) is no error.
fn print(facts: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{facts}");
}
