//! (in the making)

use std::path::Path;
use std::process::ExitCode;

/// Serves until drained.
pub fn serve(_config: &Path) -> ExitCode {
    eprintln!("pgward serve: not available yet");
    ExitCode::from(2)
}
