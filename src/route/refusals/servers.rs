//! Servers that are not there, or were lost, and what lasts too long.

use super::notice;
use crate::route::Refusal;
use crate::shard_map::ShardId;
use crate::wire::sqlstate;

/// No host of the shard accepts writes.
pub fn no_primary(shard: ShardId) -> Refusal {
    Refusal::error(sqlstate::CANNOT_CONNECT_NOW, format!("shard {shard} has no primary"))
        .with_hint("try again; other shards are served meanwhile")
}

/// Connecting to a host of the shard, or login there, failed; `why` names neither.
pub fn could_not_connect(shard: ShardId, why: &str) -> Refusal {
    Refusal::error(sqlstate::CANNOT_CONNECT_NOW, format!("could not connect to shard {shard}"))
        .with_detail(why)
        .with_hint("try again; other shards are served meanwhile")
}

/// As [`could_not_connect`], of a replication connection that the server lets nobody have.
pub fn no_replication_there(shard: ShardId, why: &str) -> Refusal {
    could_not_connect(shard, why)
        .with_hint("The server's pg_hba.conf needs a line for replication by the server user.")
}

/// The shard is no longer in the map.
pub fn shard_not_in_map(shard: ShardId) -> Refusal {
    Refusal::error(
        sqlstate::INVALID_PARAMETER_VALUE,
        format!("shard {shard} is not in the shard map"),
    )
}

/// What the shard has is not known now, or its server failed before a statement went out.
pub fn no_server(shard: ShardId) -> Refusal {
    Refusal::error(sqlstate::CANNOT_CONNECT_NOW, format!("shard {shard} can't be reached now"))
        .with_hint("Try again later; other shards are not affected.")
}

/// No shard has answered yet.
pub fn not_ready() -> Refusal {
    Refusal::error(sqlstate::CANNOT_CONNECT_NOW, "pgward is starting up: no shard has answered yet")
        .with_hint("Try again later.")
}

/// Over `max_waiting`.
pub fn too_many_waiting() -> Refusal {
    Refusal::error(sqlstate::TOO_MANY_CONNECTIONS, "too many requests wait for a server connection")
        .with_hint("try again later, or raise max_waiting")
}

/// Over `query_wait_timeout`; the connection stays.
pub fn query_wait_timeout() -> Refusal {
    Refusal::error(
        sqlstate::QUERY_CANCELED,
        "query_wait_timeout: no server connection became free in time",
    )
    .with_hint("try again, or raise default_pool_size or query_wait_timeout")
}

/// `query_wait_notify`: the client waits for a server.
pub fn queued() -> Refusal {
    notice(
        sqlstate::SUCCESSFUL_COMPLETION,
        "no server connection is free, the client is being queued",
    )
}

/// The client's CancelRequest met a statement that waited.
pub fn cancelled() -> Refusal {
    Refusal::error(sqlstate::QUERY_CANCELED, "canceling statement due to user request")
        .with_detail("The statement was not run.")
}

/// Over `query_timeout`: the request was cancelled, and the connection stays.
pub fn query_timeout() -> Refusal {
    Refusal::error(sqlstate::QUERY_CANCELED, "query timeout")
        .with_detail("The statement ran for longer than query_timeout, and was cancelled.")
}

/// Over `transaction_timeout`.
pub fn transaction_timeout() -> Refusal {
    Refusal::fatal(sqlstate::TRANSACTION_TIMEOUT, "transaction timeout")
        .with_detail("The transaction lasted longer than transaction_timeout, and is rolled back.")
}

/// Over `idle_transaction_timeout`.
pub fn idle_transaction_timeout() -> Refusal {
    Refusal::fatal(sqlstate::IDLE_IN_TRANSACTION_TIMEOUT, "idle transaction timeout").with_detail(
        "The client was idle in a transaction for longer than idle_transaction_timeout; the \
         transaction is rolled back.",
    )
}

/// Over `client_idle_timeout`.
pub fn client_idle_timeout() -> Refusal {
    Refusal::fatal(sqlstate::IDLE_SESSION_TIMEOUT, "client_idle_timeout")
        .with_detail("The client was idle for longer than client_idle_timeout.")
}

/// The server was lost in a transaction before COMMIT.
pub fn server_lost_in_transaction(shard: ShardId) -> Refusal {
    Refusal::error(
        sqlstate::SERIALIZATION_FAILURE,
        format!("the server of shard {shard} was lost in a transaction"),
    )
    .with_detail("Nothing of the transaction is stored.")
    .with_hint("Roll back and run the transaction again.")
}

/// ROLLBACK TO in a transaction whose server was lost.
pub fn lost_savepoint() -> Refusal {
    Refusal::error(
        sqlstate::SERIALIZATION_FAILURE,
        "the savepoint was lost with the server of the transaction",
    )
    .with_detail("Nothing of the transaction is stored.")
    .with_hint("Roll back and run the transaction again.")
}

/// AND CHAIN behind a transaction whose server was lost.
pub fn lost_chain() -> Refusal {
    Refusal::error(
        sqlstate::SERIALIZATION_FAILURE,
        "no transaction can be chained to one that was lost with its server",
    )
    .with_detail("Nothing of the transaction is stored.")
    .with_hint("Roll back without AND CHAIN and run the transaction again.")
}

/// The server was lost while it answered a read outside a transaction.
pub fn server_lost_reading(shard: ShardId) -> Refusal {
    Refusal::error(
        sqlstate::SERIALIZATION_FAILURE,
        format!("the server of shard {shard} was lost while it answered"),
    )
    .with_detail("The statement only reads; rows that came before this error may not be all.")
    .with_hint("Run it again.")
}

/// The server was lost and nobody knows what became of the statement.
pub fn outcome_unknown(shard: ShardId) -> Refusal {
    Refusal::error(
        sqlstate::TRANSACTION_RESOLUTION_UNKNOWN,
        format!("the server of shard {shard} was lost before it answered"),
    )
    .with_detail("The statement may or may not have taken effect.")
    .with_hint("Look before you run it again.")
}

/// The client's own pinned server died, and with it the client's state.
pub fn pinned_server_lost(shard: ShardId) -> Refusal {
    Refusal::fatal(
        sqlstate::ADMIN_SHUTDOWN,
        format!("the server of shard {shard} that held this session's state was lost"),
    )
    .with_hint("Connect again.")
}
