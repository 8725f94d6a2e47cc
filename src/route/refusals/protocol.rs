//! The connection itself: ended, broken by the client, or by pgward.

use crate::route::Refusal;
use crate::wire::sqlstate;

/// pgward drains, or the console killed the client.
pub fn drained() -> Refusal {
    Refusal::fatal(sqlstate::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
}

/// The client broke the protocol; `what` never repeats its bytes.
pub fn protocol_violation(what: &str) -> Refusal {
    Refusal::fatal(sqlstate::PROTOCOL_VIOLATION, what)
}

/// A bug of pgward.
pub fn internal() -> Refusal {
    Refusal::fatal(sqlstate::INTERNAL_ERROR, "internal error of pgward")
        .with_hint("Its log says more.")
}
