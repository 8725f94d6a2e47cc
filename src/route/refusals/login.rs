//! Who does not get in, all of them FATAL.

use crate::route::Refusal;
use crate::wire::sqlstate;

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
