//! The connection itself: ended, broken by the client, or by pgward.

use crate::route::Refusal;
use crate::wire::{self, sqlstate};

/// pgward drains, or the console killed the client.
pub fn drained() -> Refusal {
    Refusal::fatal(sqlstate::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
}

/// A session's client broke the protocol.
pub fn session_violation(error: &wire::Error) -> Refusal {
    Refusal::fatal(sqlstate::PROTOCOL_VIOLATION, format!("protocol violation: {error}"))
        .with_hint("check the client's driver; the connection is closed")
}

/// The client broke the protocol at its login or in a console; `what` never repeats its bytes.
pub fn protocol_violation(what: impl Into<String>) -> Refusal {
    Refusal::fatal(sqlstate::PROTOCOL_VIOLATION, what)
}

/// A bug of pgward.
pub fn internal() -> Refusal {
    Refusal::fatal(sqlstate::INTERNAL_ERROR, "internal error of pgward")
        .with_hint("Its log says more.")
}
