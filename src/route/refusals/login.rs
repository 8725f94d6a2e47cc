//! Who does not get in, all of them FATAL.

use crate::route::Refusal;
use crate::wire::sqlstate;

/// The database is not one that the map shards.
pub fn unknown_database(name: &str) -> Refusal {
    Refusal::fatal(sqlstate::INVALID_CATALOG_NAME, format!("database \"{name}\" does not exist"))
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

/// A switch of `options` that pgward does not take; Postgres repeats it, too.
pub fn bad_switch(word: &str) -> Refusal {
    Refusal::fatal(
        sqlstate::SYNTAX_ERROR,
        format!("invalid command-line argument for server process: {word}"),
    )
    .with_hint("pgward takes -c name=value and --name=value.")
}

/// A switch of `options` that sets nothing.
pub fn switch_without_value(switch: &str) -> Refusal {
    Refusal::fatal(sqlstate::SYNTAX_ERROR, format!("{switch} requires a value"))
}

/// `replication` is neither `database` nor a boolean; Postgres repeats it, too.
pub fn bad_replication(value: &str) -> Refusal {
    Refusal::fatal(
        sqlstate::INVALID_PARAMETER_VALUE,
        format!("invalid value for parameter \"replication\": \"{value}\""),
    )
    .with_hint("Valid values are: \"false\", 0, \"true\", 1, \"database\".")
}

/// A connection without TLS where clients must have it.
pub fn tls_required() -> Refusal {
    Refusal::fatal(sqlstate::INVALID_AUTHORIZATION, "SSL required")
}

/// A message of the proof is not what SCRAM has there; `what` names the part.
pub fn malformed_scram(what: &str) -> Refusal {
    Refusal::fatal(sqlstate::PROTOCOL_VIOLATION, "malformed SCRAM message").with_detail(what)
}

/// The start names a hospital that the login may not reach, or that does not exist.
pub fn start_may_not_reach() -> Refusal {
    Refusal::fatal(sqlstate::INSUFFICIENT_PRIVILEGE, "this login may not reach that hospital")
}

/// `pgward.hospital_id` of the start is no uuid.
pub fn start_not_a_uuid() -> Refusal {
    Refusal::fatal(sqlstate::INVALID_TEXT_REPRESENTATION, "pgward.hospital_id is not a uuid")
}

/// A start that names a shard and a hospital: the session would be bound to both.
pub fn shard_and_hospital() -> Refusal {
    Refusal::fatal(
        sqlstate::INVALID_PARAMETER_VALUE,
        "pgward.shard and pgward.hospital_id exclude each other",
    )
}

/// `options=-c pgward.shard=N` without the right.
pub fn no_shard_access() -> Refusal {
    Refusal::fatal(
        sqlstate::INSUFFICIENT_PRIVILEGE,
        "this login may not address a shard (pgward.shard)",
    )
}

/// `options=-c pgward.shard=N` with an N that is no number.
pub fn shard_not_a_number() -> Refusal {
    Refusal::fatal(sqlstate::INVALID_PARAMETER_VALUE, "pgward.shard is not the number of a shard")
}

/// `options=-c pgward.shard=N` with an N that the map does not have.
pub fn unknown_shard() -> Refusal {
    Refusal::fatal(sqlstate::INVALID_PARAMETER_VALUE, "pgward.shard names no shard of the map")
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

/// A replication connection to the console.
pub fn replication_of_console() -> Refusal {
    Refusal::fatal(sqlstate::FEATURE_NOT_SUPPORTED, "the console has nothing to replicate")
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

/// Over `max_db_client_connections` or `max_user_client_connections`, as `key` says.
pub fn too_many_clients_of(key: &str) -> Refusal {
    Refusal::fatal(sqlstate::TOO_MANY_CONNECTIONS, format!("client connections exceeded ({key})"))
        .with_hint(format!("Raise {key}, or use fewer connections."))
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

/// `client_login_timeout` went by while no server answered.
pub fn login_timeout_no_server() -> Refusal {
    Refusal::fatal(sqlstate::CANNOT_CONNECT_NOW, "client_login_timeout (server down)")
        .with_hint("Try again later.")
}
