//! `pgward route`: in the making.

use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args) -> ExitCode {
    eprintln!("pgward route: not available yet");
    ExitCode::from(2)
}
