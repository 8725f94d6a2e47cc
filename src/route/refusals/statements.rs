//! What may be run, and what has been prepared to run.

use crate::route::Refusal;
use crate::wire::backend::Routine;
use crate::wire::sqlstate;

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

/// A text that is not valid in UTF8, the client's encoding.
pub fn not_utf8() -> Refusal {
    Refusal::error(sqlstate::CHARACTER_NOT_IN_REPERTOIRE, "statement text is not valid UTF-8")
        .with_hint("use client_encoding UTF8")
}

/// A text that is none in the client's encoding, another than UTF8, or that only a server can read.
pub fn unreadable_text() -> Refusal {
    Refusal::error(
        sqlstate::CHARACTER_NOT_IN_REPERTOIRE,
        "statement text is not readable in client_encoding",
    )
    .with_hint("use client_encoding UTF8")
}

/// DDL has changed what a prepared statement answers: Postgres's own words.
pub fn stale_statement() -> Refusal {
    Refusal::error(sqlstate::FEATURE_NOT_SUPPORTED, "cached plan must not change result type")
        .with_routine(Routine::RevalidateCachedQuery)
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
