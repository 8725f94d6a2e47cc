//! SQLSTATEs that pgward itself sends (manual: "PostgreSQL Error Codes"), and its own class PW.

/// A sharded relation without a hospital key.
pub const MISSING_HOSPITAL: &str = "PW001";
/// The hospital is not in the shard map's directory.
pub const UNKNOWN_HOSPITAL: &str = "PW002";
/// More than one hospital in a statement or transaction.
pub const MORE_THAN_ONE_HOSPITAL: &str = "PW003";
/// A table that the shard map does not declare and that has no key column.
pub const UNDECLARED_TABLE: &str = "PW004";
/// This login or session may not reach that hospital, function or command.
pub const INSUFFICIENT_PRIVILEGE: &str = "42501";
/// Text that is not a uuid.
pub const INVALID_TEXT_REPRESENTATION: &str = "22P02";
/// A row of a COPY that can't be read.
pub const BAD_COPY_FILE_FORMAT: &str = "22P04";
/// A parameter value that can't be used.
pub const INVALID_PARAMETER_VALUE: &str = "22023";
/// Not supported (yet) by pgward.
pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
/// The parser rejected the text.
pub const SYNTAX_ERROR: &str = "42601";
/// A name was cut.
pub const NAME_TOO_LONG: &str = "42622";
/// The text nests too deep.
pub const STATEMENT_TOO_COMPLEX: &str = "54001";
/// The database is not one that the map shards.
pub const INVALID_CATALOG_NAME: &str = "3D000";
/// Wrong password or unknown user.
pub const INVALID_PASSWORD: &str = "28P01";
/// The login was refused for another reason.
pub const INVALID_AUTHORIZATION: &str = "28000";
/// Too many clients or held requests.
pub const TOO_MANY_CONNECTIONS: &str = "53300";
/// configuration_limit_exceeded
pub const CONFIGURATION_LIMIT_EXCEEDED: &str = "53400";
/// The shard has no primary, or pgward is not ready.
pub const CANNOT_CONNECT_NOW: &str = "57P03";
/// Cancelled by the client, or timed out waiting for a server.
pub const QUERY_CANCELED: &str = "57014";
/// Idle for too long in a transaction.
pub const IDLE_IN_TRANSACTION_TIMEOUT: &str = "25P03";
/// The transaction lasted too long.
pub const TRANSACTION_TIMEOUT: &str = "25P04";
/// Idle for too long outside a transaction.
pub const IDLE_SESSION_TIMEOUT: &str = "57P05";
/// pgward is draining.
pub const ADMIN_SHUTDOWN: &str = "57P01";
/// The peer broke the protocol.
pub const PROTOCOL_VIOLATION: &str = "08P01";
/// The server was lost in a transaction, before COMMIT: nothing of it is stored.
pub const SERIALIZATION_FAILURE: &str = "40001";
/// The server was lost and nobody knows whether the statement took effect.
pub const TRANSACTION_RESOLUTION_UNKNOWN: &str = "08007";
/// The transaction failed earlier; only its end is accepted.
pub const IN_FAILED_SQL_TRANSACTION: &str = "25P02";
/// BEGIN inside a transaction (a warning).
pub const ACTIVE_SQL_TRANSACTION: &str = "25001";
/// COMMIT or SAVEPOINT outside a transaction.
pub const NO_ACTIVE_SQL_TRANSACTION: &str = "25P01";
/// A write reached a read-only server.
pub const READ_ONLY_SQL_TRANSACTION: &str = "25006";
/// The prepared statement does not exist.
pub const INVALID_SQL_STATEMENT_NAME: &str = "26000";
/// A prepared statement of that name exists.
pub const DUPLICATE_PREPARED_STATEMENT: &str = "42P05";
/// The cursor or portal does not exist.
pub const INVALID_CURSOR_NAME: &str = "34000";
/// No such savepoint.
pub const INVALID_SAVEPOINT: &str = "3B001";
/// An unknown setting.
pub const UNDEFINED_OBJECT: &str = "42704";
/// The files of the configuration have problems.
pub const CONFIG_FILE_ERROR: &str = "F0000";
/// Everything went well.
pub const SUCCESSFUL_COMPLETION: &str = "00000";
/// A bug of pgward; the connection is closed.
pub const INTERNAL_ERROR: &str = "XX000";
/// A `$n` that the request does not have.
pub const UNDEFINED_PARAMETER: &str = "42P02";
/// Bytes that are not valid in the client's encoding.
pub const CHARACTER_NOT_IN_REPERTOIRE: &str = "22021";
/// A setting that can't be changed now.
pub const CANT_CHANGE_RUNTIME_PARAM: &str = "55P02";
/// A limit of pgward's configuration.
pub const PROGRAM_LIMIT_EXCEEDED: &str = "54000";
