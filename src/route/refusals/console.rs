//! The console.

use crate::route::Refusal;
use crate::wire::sqlstate;

/// A console command that this user may not run.
pub fn console_denied() -> Refusal {
    Refusal::error(
        sqlstate::INSUFFICIENT_PRIVILEGE,
        "permission denied: this user may not run that console command",
    )
    .with_hint("`[admin]` in the configuration lists admin_users and stats_users.")
}

/// A console command that does not exist.
pub fn unknown_console_command() -> Refusal {
    Refusal::error(sqlstate::SYNTAX_ERROR, "unknown console command").with_hint("Use SHOW HELP.")
}
