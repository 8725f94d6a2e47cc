//! Subcommands of the `pgward` binary; each offline one is a few lines over a pure room.

use std::process::ExitCode;

/// Parses the command line and runs it. Exit codes: 0 yes, 1 a finding or refusal, 2 wrong use.
pub fn run() -> ExitCode {
    ExitCode::from(2)
}
