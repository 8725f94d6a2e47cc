//! Every error, warning and notice that pgward itself sends: SQLSTATE, message, detail, hint.
//!
//! One constructor each, a file for each subject, so that their words are in one place and in one golden
//! file (`tests/golden/refusals.txt`, whose codes the README explains). They take names that the client or
//! the map knows, never SQL text, never a value of a row, never another hospital's id. Used by `decide` and
//! by the pools, the session, its login and the console; rooms below have errors of their own, which those
//! turn into these. Wording follows Postgres's error style guide; where Postgres or PgBouncer has the
//! same error, its words.
//!
//! Why here, though logins and the console are no routing, and not in a room of their own: every room that
//! talks to clients may import this one, and most that it has to say is why a statement has no route.

mod console;
mod hospital;
mod login;
mod protocol;
mod servers;
mod settings;
mod statements;
mod transactions;

pub use console::*;
pub use hospital::*;
pub use login::*;
pub use protocol::*;
pub use servers::*;
pub use settings::*;
pub use statements::*;
pub use transactions::*;

use super::Refusal;

fn warning(code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { severity: "WARNING", ..Refusal::error(code, message) }
}

fn notice(code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { severity: "NOTICE", ..Refusal::error(code, message) }
}
