//! Transaction control without a server that would say it: in Postgres's own words.

use super::warning;
use crate::route::Refusal;
use crate::wire::sqlstate;

/// BEGIN where `pool_mode` is `statement`.
pub fn no_blocks() -> Refusal {
    Refusal::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "transaction blocks not allowed in statement pooling mode",
    )
    .with_hint("Use a login with pool_mode = \"transaction\".")
}

/// A statement in a failed transaction.
pub fn in_failed_transaction() -> Refusal {
    Refusal::error(
        sqlstate::IN_FAILED_SQL_TRANSACTION,
        "current transaction is aborted, commands ignored until end of transaction block",
    )
}

/// BEGIN in a transaction.
pub fn already_in_transaction() -> Refusal {
    warning(sqlstate::ACTIVE_SQL_TRANSACTION, "there is already a transaction in progress")
}

/// COMMIT or ROLLBACK outside a transaction.
pub fn no_transaction() -> Refusal {
    warning(sqlstate::NO_ACTIVE_SQL_TRANSACTION, "there is no transaction in progress")
}

/// SET LOCAL, SET TRANSACTION or SET CONSTRAINTS outside a transaction.
pub fn no_transaction_for(command: &str) -> Refusal {
    warning(
        sqlstate::NO_ACTIVE_SQL_TRANSACTION,
        format!("{command} can only be used in transaction blocks"),
    )
}

/// SAVEPOINT, RELEASE, ROLLBACK TO or AND CHAIN outside a transaction.
pub fn transaction_required(command: &str) -> Refusal {
    Refusal::error(
        sqlstate::NO_ACTIVE_SQL_TRANSACTION,
        format!("{command} can only be used in transaction blocks"),
    )
}

/// A savepoint that does not exist.
pub fn no_savepoint(name: &str) -> Refusal {
    Refusal::error(sqlstate::INVALID_SAVEPOINT, format!("savepoint \"{name}\" does not exist"))
}

/// A transaction that has queued `most` statements and has no hospital yet.
pub fn too_many_before_hospital(most: usize) -> Refusal {
    Refusal::error(
        sqlstate::PROGRAM_LIMIT_EXCEEDED,
        format!("more than {most} statements before the first one with a hospital"),
    )
    .with_hint("name the hospital earlier in the transaction")
}

/// DISCARD ALL in a block, or in a query string with other statements, which is one too.
pub fn discard_in_transaction() -> Refusal {
    Refusal::error(
        sqlstate::ACTIVE_SQL_TRANSACTION,
        "DISCARD ALL cannot run inside a transaction block",
    )
}
