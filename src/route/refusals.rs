//! Every error and warning that pgward itself sends: SQLSTATE, message, detail, hint.
//!
//! One constructor each, so that their words are in one place and in one golden file
//! (`tests/golden/refusals.txt`, which the README shows). They take names that the client or the map knows,
//! never SQL text, never a value, never another hospital's id. Used by `decide` and by the session,
//! login and console; rooms below those have errors of their own, which the session turns into
//! these. Wording follows Postgres's error style guide; where Postgres has the same error, its words.

use super::Refusal;
use crate::shard_map::ShardId;
use crate::wire::backend::Routine;
use crate::wire::sqlstate;

// Finding the hospital.

/// A sharded relation without its key.
pub fn missing_hospital(relation: &str, column: &str) -> Refusal {
    Refusal::error(
        sqlstate::MISSING_HOSPITAL,
        format!("sharded table \"{relation}\" needs its hospital"),
    )
    .with_detail(format!("No equality on \"{column}\" with a hospital applies to every row of it."))
    .with_hint(format!("Add {column} = '...' for \"{relation}\"."))
}

/// As [`missing_hospital`], where a session's hospital or a hint would do.
pub fn missing_hospital_or_session(relation: &str, column: &str) -> Refusal {
    missing_hospital(relation, column).with_hint(format!(
        "Add {column} = '...' for \"{relation}\", or SET pgward.hospital_id, or add the comment \
         /* hospital_id='...' */."
    ))
}

/// A key that is NULL beside others in a statement that writes.
pub fn null_hospital(relation: &str, column: &str) -> Refusal {
    Refusal::error(
        sqlstate::MISSING_HOSPITAL,
        format!("NULL is no hospital for sharded table \"{relation}\""),
    )
    .with_hint(format!("Give each row its \"{column}\"."))
}

/// What each shard does or answers for itself, with no hospital to say which shard.
pub fn per_shard_needs_hospital(what: &str) -> Refusal {
    Refusal::error(sqlstate::MISSING_HOSPITAL, format!("{what} needs a hospital"))
        .with_detail("Each shard has its own.")
        .with_hint("SET pgward.hospital_id, or add the comment /* hospital_id='...' */.")
}

/// Above READ COMMITTED, before the transaction has a hospital.
pub fn snapshot_needs_hospital() -> Refusal {
    Refusal::error(
        sqlstate::MISSING_HOSPITAL,
        "a transaction above READ COMMITTED needs its hospital before its first statement",
    )
    .with_detail("A statement that names no hospital would not see the transaction's snapshot.")
    .with_hint("SET pgward.hospital_id before BEGIN, or begin with a statement that has its key.")
}

/// Something with an effect, in a transaction that has no hospital yet.
pub fn effect_needs_hospital(why: &str) -> Refusal {
    Refusal::error(
        sqlstate::MISSING_HOSPITAL,
        format!("{why} needs a hospital, because this transaction is on no shard yet"),
    )
    .with_hint("SET pgward.hospital_id, or begin with a statement that has its key.")
}

/// The hospital is not in the map's directory.
pub fn unknown_hospital() -> Refusal {
    Refusal::error(sqlstate::UNKNOWN_HOSPITAL, "the hospital is not in the shard map")
        .with_hint("Check the id, or add the hospital to the shard map.")
}

/// The statement's keys name more than one hospital.
pub fn two_hospitals() -> Refusal {
    Refusal::error(
        sqlstate::MORE_THAN_ONE_HOSPITAL,
        "a statement must belong to one hospital, and this one names more",
    )
    .with_hint("Run one statement for each hospital.")
}

/// The hint names another hospital than the statement, or hints differ.
pub fn hint_differs() -> Refusal {
    Refusal::error(
        sqlstate::MORE_THAN_ONE_HOSPITAL,
        "the comment's hospital_id and the statement name more than one hospital",
    )
    .with_hint("Make them equal, or leave the comment out.")
}

/// The open transaction belongs to another hospital.
pub fn other_hospital_in_transaction() -> Refusal {
    Refusal::error(sqlstate::MORE_THAN_ONE_HOSPITAL, "this transaction belongs to another hospital")
        .with_hint("Use one transaction for each hospital.")
}

/// The session keeps a server that is of no use for this hospital.
pub fn pinned_elsewhere() -> Refusal {
    unsupported(
        "another hospital while the session keeps a server for this one",
        "End what keeps it (SHOW CLIENTS names it: LISTEN, an advisory lock, ...), or use another connection.",
    )
}

/// The login may not reach the hospital; says nothing about whether it exists.
pub fn login_may_not_reach() -> Refusal {
    Refusal::error(
        sqlstate::INSUFFICIENT_PRIVILEGE,
        "permission denied: this login may not reach that hospital",
    )
    .with_hint("The users file says which hospitals a login may reach.")
}

/// The session is bound to another hospital.
pub fn session_may_not_reach() -> Refusal {
    Refusal::error(
        sqlstate::INSUFFICIENT_PRIVILEGE,
        "permission denied: this session is bound to another hospital",
    )
    .with_hint("RESET pgward.hospital_id, or set it to the hospital of the statement.")
}

/// `where_` (a parameter, a literal, the comment, a setting) is no uuid.
pub fn not_a_uuid(where_: &str) -> Refusal {
    Refusal::error(
        sqlstate::INVALID_TEXT_REPRESENTATION,
        format!("invalid input syntax for type uuid: {where_}"),
    )
    .with_detail("It is read as a hospital's id.")
}

/// A key's parameter that the request does not have.
pub fn no_parameter(n: u16) -> Refusal {
    Refusal::error(sqlstate::UNDEFINED_PARAMETER, format!("there is no parameter ${n}"))
}

/// A format code other than text (0) and binary (1).
pub fn bad_format_code(code: i16) -> Refusal {
    Refusal::error(sqlstate::INVALID_PARAMETER_VALUE, format!("unsupported format code: {code}"))
}

// What may be run.

/// A table that is neither sharded nor declared.
pub fn undeclared_table(name: &str) -> Refusal {
    Refusal::error(
        sqlstate::UNDECLARED_TABLE,
        format!("table \"{name}\" is not declared in the shard map"),
    )
    .with_detail("It has no hospital key, so it might hold anything.")
    .with_hint(
        "If it is the same on every shard, add it to `reference` in the shard map; if it is sharded, \
         give it the key column or name its key in `key.tables`.",
    )
}

/// Not classified, or not supported yet.
pub fn unsupported(what: &str, hint: &str) -> Refusal {
    let refusal = Refusal::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        format!("{what} is not supported by pgward"),
    );
    if hint.is_empty() { refusal } else { refusal.with_hint(hint) }
}

/// Reads data that no hospital key guards.
pub fn reads_unkeyed(what: &str, hint: &str) -> Refusal {
    let refusal = Refusal::error(
        sqlstate::INSUFFICIENT_PRIVILEGE,
        format!("permission denied: {what} is guarded by no hospital key"),
    );
    if hint.is_empty() {
        refusal.with_hint("It needs a login with `cross_hospital`, or `[guard] mode = \"route\"`.")
    } else {
        refusal.with_hint(hint)
    }
}

/// A login that may cross hospitals asks for many shards at once; `part` says what asks.
pub fn scatter_not_yet(part: &str) -> Refusal {
    Refusal::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "pgward can't run a statement over several hospitals yet",
    )
    .with_detail(format!("{part}."))
    .with_hint("Run it once for each hospital.")
}

/// A reference table must stay the same on every shard.
pub fn reference_write(what: &str, hint: &str) -> Refusal {
    unsupported(what, hint).with_detail("It would change one shard's copy only.")
}

/// The grammar rejects the text; the parser's own words.
pub fn syntax(message: &str, position: Option<u32>) -> Refusal {
    let refusal = Refusal::error(sqlstate::SYNTAX_ERROR, message);
    match position {
        Some(position) => refusal.with_position(position),
        None => refusal,
    }
}

/// The text nests too deep to be analysed.
pub fn too_complex() -> Refusal {
    Refusal::error(sqlstate::STATEMENT_TOO_COMPLEX, "statement is too complex")
        .with_hint("It nests deeper than pgward analyses.")
}

/// A client_encoding whose texts can't be analysed.
pub fn unsupported_encoding(name: &str) -> Refusal {
    Refusal::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        format!("client_encoding \"{name}\" is not supported by pgward"),
    )
    .with_hint("Use UTF8.")
}

/// Text that is not valid in its encoding.
pub fn invalid_text(encoding: &str) -> Refusal {
    Refusal::error(
        sqlstate::CHARACTER_NOT_IN_REPERTOIRE,
        format!("invalid byte sequence for encoding \"{encoding}\""),
    )
}

/// standard_conforming_strings = off changes where literals end.
pub fn nonstandard_strings() -> Refusal {
    Refusal::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "standard_conforming_strings = off is not supported by pgward",
    )
    .with_hint("Write backslash escapes as E'...'.")
}

/// A search_path that could replace `=` on uuid.
pub fn unsafe_search_path() -> Refusal {
    Refusal::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "a search_path with a schema before pg_catalog is not supported here by pgward",
    )
    .with_detail("The database has an operator = on uuid outside pg_catalog.")
    .with_hint("Leave pg_catalog out of search_path: it is searched first.")
}

/// A user type whose OID is not the same on every shard.
pub fn differing_type(name: &str) -> Refusal {
    Refusal::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        format!("type \"{name}\" has not the same OID on every shard"),
    )
    .with_hint("SET pgward.hospital_id first, or cast it to text.")
}

/// Another shard while a server is held for the whole session.
pub fn other_shard_in_session() -> Refusal {
    Refusal::error(sqlstate::FEATURE_NOT_SUPPORTED, "this session holds a server of another shard")
        .with_hint("Connect again for another hospital.")
}

// Login.

/// The database is not one that the map shards.
pub fn unknown_database(name: &str) -> Refusal {
    Refusal::fatal(sqlstate::INVALID_CATALOG_NAME, format!("database \"{name}\" does not exist"))
        .with_hint("pgward serves the database that its shard map names.")
}

/// Wrong password or unknown user: the same words for both.
pub fn login_failed(user: &str) -> Refusal {
    Refusal::fatal(
        sqlstate::INVALID_PASSWORD,
        format!("password authentication failed for user \"{user}\""),
    )
}

/// The rules for logins, or the client's certificate, let it not even prove itself: in Postgres's
/// words, which `auth` has.
pub fn no_login(words: String) -> Refusal {
    Refusal::fatal(sqlstate::INVALID_AUTHORIZATION, words)
}

/// `auth_query` can't be asked now, and who is not in the users file is nobody meanwhile.
pub fn no_lookup() -> Refusal {
    Refusal::fatal(sqlstate::CANNOT_CONNECT_NOW, "the user can't be looked up now")
        .with_hint("Try again; users of pgward's own users file can log in meanwhile.")
}

/// The start has no user.
pub fn no_user_name() -> Refusal {
    Refusal::fatal(
        sqlstate::INVALID_AUTHORIZATION,
        "no PostgreSQL user name specified in startup packet",
    )
}

/// `options=-c pgward.shard=N` without the right.
pub fn no_shard_access() -> Refusal {
    Refusal::fatal(
        sqlstate::INVALID_AUTHORIZATION,
        "this login may not open shard-addressed sessions",
    )
    .with_hint("The users file grants it with `shard_access`.")
}

/// `options=-c pgward.shard=N` with an N that the map does not have.
pub fn unknown_shard() -> Refusal {
    Refusal::fatal(sqlstate::INVALID_PARAMETER_VALUE, "pgward.shard names no shard of the map")
}

/// The login took longer than `client_login_timeout`.
pub fn login_timeout() -> Refusal {
    Refusal::fatal(sqlstate::PROTOCOL_VIOLATION, "client_login_timeout: login took too long")
}

/// A replication connection, which carries the rows of every hospital, of a login that may not have
/// those.
pub fn no_replication() -> Refusal {
    Refusal::fatal(
        sqlstate::INSUFFICIENT_PRIVILEGE,
        "this login may not open replication connections",
    )
    .with_detail("A replication connection carries the rows of every hospital of a shard.")
    .with_hint(
        "The users file grants it with `shard_access`; then name the shard: \
         options=-c pgward.shard=N.",
    )
}

/// A replication connection that does not say of which shard.
pub fn replication_of_no_shard() -> Refusal {
    Refusal::fatal(sqlstate::FEATURE_NOT_SUPPORTED, "a replication connection is to one shard")
        .with_hint("Name the shard: options=-c pgward.shard=N.")
}

/// A replication connection with `pgward.hospital_id`.
pub fn replication_of_hospital() -> Refusal {
    Refusal::fatal(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "a replication connection can't be of one hospital",
    )
    .with_detail("It carries the rows of every hospital of a shard.")
    .with_hint("Leave pgward.hospital_id out.")
}

/// A protocol other than 3.
pub fn unsupported_protocol(major: u16, minor: u16) -> Refusal {
    Refusal::fatal(
        sqlstate::FEATURE_NOT_SUPPORTED,
        format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2"),
    )
}

/// Over `max_client_conn`.
pub fn too_many_clients() -> Refusal {
    Refusal::fatal(sqlstate::TOO_MANY_CONNECTIONS, "no more connections allowed (max_client_conn)")
        .with_hint("Raise max_client_conn, or use fewer connections.")
}

/// Over `max_logins` or `max_logins_per_address`.
pub fn too_many_logins() -> Refusal {
    Refusal::fatal(sqlstate::TOO_MANY_CONNECTIONS, "too many logins at once (max_logins)")
        .with_hint("Raise max_logins or max_logins_per_address, or log in more slowly.")
}

/// A login at `peer_address`.
pub fn cancels_only() -> Refusal {
    Refusal::fatal(sqlstate::FEATURE_NOT_SUPPORTED, "only cancel requests are taken here")
        .with_hint("This is a peer_address of pgward; clients connect to its listen_port.")
}

/// Over `max_db_client_connections` or `max_user_client_connections`, as `key` says.
pub fn too_many_clients_of(key: &str) -> Refusal {
    Refusal::fatal(sqlstate::TOO_MANY_CONNECTIONS, format!("client connections exceeded ({key})"))
        .with_hint(format!("Raise {key}, or use fewer connections."))
}

// Settings.

/// A setting's value that can't be used; the value is not repeated.
pub fn bad_setting(name: &str) -> Refusal {
    Refusal::error(
        sqlstate::INVALID_PARAMETER_VALUE,
        format!("invalid value for parameter \"{name}\""),
    )
}

/// A `pgward.` setting that does not exist.
pub fn unknown_setting(name: &str) -> Refusal {
    Refusal::error(
        sqlstate::UNDEFINED_OBJECT,
        format!("unrecognized configuration parameter \"{name}\""),
    )
}

/// A setting that only the start of a session may give.
pub fn setting_at_start_only(name: &str) -> Refusal {
    Refusal::error(
        sqlstate::CANT_CHANGE_RUNTIME_PARAM,
        format!("parameter \"{name}\" cannot be set after connection start"),
    )
}

/// set_config whose value pgward must know, but which is computed.
pub fn computed_setting(name: &str) -> Refusal {
    Refusal::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        format!("parameter \"{name}\" can't be set to a computed value through pgward"),
    )
    .with_hint("Give the value as a literal or a parameter.")
}

// Servers and waiting.

/// No host of the shard accepts writes.
pub fn no_primary(shard: ShardId) -> Refusal {
    Refusal::error(sqlstate::CANNOT_CONNECT_NOW, format!("shard {shard} has no primary now"))
        .with_hint("Try again later; other shards are not affected.")
}

/// No connection to the shard could be made.
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
pub fn too_many_waiting(shard: ShardId) -> Refusal {
    Refusal::error(
        sqlstate::TOO_MANY_CONNECTIONS,
        format!("too many requests wait for shard {shard} already"),
    )
    .with_hint("Try again later.")
}

/// Over `query_wait_timeout`; the connection stays.
pub fn query_wait_timeout() -> Refusal {
    Refusal::error(sqlstate::QUERY_CANCELED, "query_wait_timeout: no server became free in time")
        .with_detail("The statement was not run.")
        .with_hint("Try again later.")
}

/// `query_wait_notify`: the client waits for a server.
pub fn queued() -> Refusal {
    Refusal {
        severity: "NOTICE",
        ..Refusal::error(
            sqlstate::SUCCESSFUL_COMPLETION,
            "no server connection is free, the client is being queued",
        )
    }
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

/// BEGIN where `pool_mode` is `statement`.
pub fn no_blocks() -> Refusal {
    Refusal::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "transaction blocks not allowed in statement pooling mode",
    )
    .with_hint("Use a login with pool_mode = \"transaction\".")
}

/// `client_login_timeout` went by while no server answered.
pub fn login_timeout_no_server() -> Refusal {
    Refusal::fatal(sqlstate::CANNOT_CONNECT_NOW, "client_login_timeout (server down)")
        .with_hint("Try again later.")
}

/// The client's CancelRequest met a statement that waited.
pub fn cancelled() -> Refusal {
    Refusal::error(sqlstate::QUERY_CANCELED, "canceling statement due to user request")
        .with_detail("The statement was not run.")
}

/// pgward drains, or the console killed the client.
pub fn drained() -> Refusal {
    Refusal::fatal(sqlstate::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
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

// Transactions and statements.

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

/// SAVEPOINT, RELEASE or ROLLBACK TO outside a transaction.
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

/// COPY FROM STDIN into a sharded table, and nobody says which hospital its rows are of.
pub fn copy_needs_hospital(relation: &str) -> Refusal {
    Refusal::error(
        sqlstate::MISSING_HOSPITAL,
        format!("COPY into sharded table \"{relation}\" needs its hospital"),
    )
    .with_hint("SET pgward.hospital_id, or add the comment /* hospital_id='...' */.")
}

/// A row of a COPY is of another hospital.
pub fn foreign_row() -> Refusal {
    Refusal::error(
        sqlstate::MORE_THAN_ONE_HOSPITAL,
        "a row of this COPY belongs to another hospital",
    )
    .with_detail("No row of it was kept.")
    .with_hint("Copy the rows of one hospital at a time.")
}

/// A row of a COPY can't be read well enough to see its hospital.
pub fn unreadable_row() -> Refusal {
    Refusal::error("22P04", "a row of this COPY does not show its hospital")
        .with_detail("No row of it was kept.")
        .with_hint("Give each row all columns, its hospital as a plain uuid.")
}

/// DDL has changed what a prepared statement answers: Postgres's own words.
pub fn stale_statement() -> Refusal {
    Refusal::error("0A000", "cached plan must not change result type")
        .with_routine(Routine::RevalidateCachedQuery)
}

/// DISCARD ALL in a block, or in a query string with other statements, which is one too.
pub fn discard_in_transaction() -> Refusal {
    Refusal::error(
        sqlstate::ACTIVE_SQL_TRANSACTION,
        "DISCARD ALL cannot run inside a transaction block",
    )
}

/// A prepared statement of that name exists.
pub fn duplicate_statement(name: &str) -> Refusal {
    Refusal::error(
        sqlstate::DUPLICATE_PREPARED_STATEMENT,
        format!("prepared statement \"{name}\" already exists"),
    )
}

/// No prepared statement of that name.
pub fn no_statement(name: &str) -> Refusal {
    let message = match name {
        "" => "unnamed prepared statement does not exist".to_owned(),
        _ => format!("prepared statement \"{name}\" does not exist"),
    };
    Refusal::error(sqlstate::INVALID_SQL_STATEMENT_NAME, message)
}

/// No portal of that name.
pub fn no_portal(name: &str) -> Refusal {
    Refusal::error(sqlstate::INVALID_CURSOR_NAME, format!("portal \"{name}\" does not exist"))
}

/// Over `max_client_statements`.
pub fn too_many_statements() -> Refusal {
    Refusal::error(sqlstate::PROGRAM_LIMIT_EXCEEDED, "too many prepared statements")
        .with_hint("DEALLOCATE some, or raise max_client_statements.")
}

/// Over `client_statement_bytes_max`.
pub fn too_large_statements() -> Refusal {
    Refusal::error(
        sqlstate::CONFIGURATION_LIMIT_EXCEEDED,
        "the prepared statements of this connection are too large together",
    )
    .with_hint("DEALLOCATE some, or raise client_statement_bytes_max.")
}

/// Over `batch_bytes_max` before any Bind said where it goes.
pub fn batch_too_large() -> Refusal {
    Refusal::error(
        sqlstate::PROGRAM_LIMIT_EXCEEDED,
        "the batch is too large to be held until its shard is known",
    )
    .with_hint("Send Sync sooner, or raise batch_bytes_max.")
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

// Console.

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

fn warning(code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { severity: "WARNING", ..Refusal::error(code, message) }
}
