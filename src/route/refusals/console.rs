//! The console.

use super::notice;
use crate::route::Refusal;
use crate::wire::sqlstate;

/// A login to the console by who is neither of its admins nor of those who may look.
pub fn console_denied() -> Refusal {
    Refusal::error(
        sqlstate::INSUFFICIENT_PRIVILEGE,
        "permission denied: this user may not run that console command",
    )
    .with_hint("`[admin]` in the configuration lists admin_users and stats_users.")
}

/// A command for admins, of a user who may only look.
pub fn console_needs_admin() -> Refusal {
    Refusal::error(sqlstate::INSUFFICIENT_PRIVILEGE, "admin access needed")
        .with_hint("[admin] admin_users lists who may")
}

/// A console command that does not exist, in PgBouncer's words.
pub fn unknown_console_command() -> Refusal {
    Refusal::error(sqlstate::SYNTAX_ERROR, "invalid command, use SHOW HELP;")
}

/// A command of PgBouncer's console that pgward's does not have yet.
pub fn console_not_yet(command: &str) -> Refusal {
    Refusal::error(sqlstate::FEATURE_NOT_SUPPORTED, format!("{command} is not supported yet"))
}

/// SHOW ROUTE without a statement, or with half a literal.
pub fn console_bad_arguments() -> Refusal {
    Refusal::error(sqlstate::SYNTAX_ERROR, "bad arguments")
        .with_hint("SHOW ROUTE '<sql>', with quotes in it doubled")
}

/// A command that is not UTF-8.
pub fn console_not_utf8() -> Refusal {
    Refusal::error(sqlstate::INVALID_TEXT_REPRESENTATION, "the text is not UTF-8")
}

/// What the protocol has and the console does not: `what`.
pub fn console_takes_no(what: &str) -> Refusal {
    Refusal::error(sqlstate::FEATURE_NOT_SUPPORTED, format!("the console takes no {what}"))
}

/// More names of `what` than a console keeps.
pub fn console_has_too_many(what: &str) -> Refusal {
    Refusal::error(sqlstate::PROGRAM_LIMIT_EXCEEDED, format!("too many {what} in a console"))
}

/// A prepared statement of that name exists. A console repeats no names.
pub fn console_duplicate_statement() -> Refusal {
    Refusal::error(sqlstate::DUPLICATE_PREPARED_STATEMENT, "prepared statement already exists")
}

/// No prepared statement of that name.
pub fn console_no_statement() -> Refusal {
    Refusal::error(sqlstate::INVALID_SQL_STATEMENT_NAME, "prepared statement does not exist")
}

/// No portal of that name.
pub fn console_no_portal() -> Refusal {
    Refusal::error(sqlstate::INVALID_CURSOR_NAME, "portal does not exist")
}

/// A Bind whose result formats are neither one for all columns nor one for each.
pub fn console_bad_formats() -> Refusal {
    Refusal::error(
        sqlstate::PROTOCOL_VIOLATION,
        "bind message has another number of result formats than columns",
    )
}

/// RELOAD took nothing; `why` has all problems of the files.
pub fn reload_failed(why: String) -> Refusal {
    Refusal::error(sqlstate::CONFIG_FILE_ERROR, "RELOAD failed, the old state is serving")
        .with_detail(why)
}

/// RELOAD took the files, and has something to say of them.
pub fn reload_said(what: String) -> Refusal {
    notice(sqlstate::SUCCESSFUL_COMPLETION, what)
}

/// SET in a console, which drivers say.
pub fn set_ignored() -> Refusal {
    notice(sqlstate::SUCCESSFUL_COMPLETION, "SET ignored")
}

/// SHOW HELP, answered as PgBouncer does.
pub fn console_usage(commands: String) -> Refusal {
    notice(sqlstate::SUCCESSFUL_COMPLETION, "Console usage").with_detail(commands)
}
