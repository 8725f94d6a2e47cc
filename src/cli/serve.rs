//! `pgward serve`: hands the configuration's path to `proxy`, which does everything else.

use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration file; it names the shard map and the users file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub(super) fn run(args: &Args) -> ExitCode {
    crate::proxy::serve(&args.config)
}
