//! Which hospital a statement is for, whether it may reach it, and whose the rows of a COPY are.

use super::unsupported;
use crate::route::Refusal;
use crate::wire::sqlstate;

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

/// COPY FROM STDIN into a sharded table, and nobody says which hospital its rows are of.
pub fn copy_needs_hospital(relation: &str) -> Refusal {
    Refusal::error(
        sqlstate::MISSING_HOSPITAL,
        format!("COPY into sharded table \"{relation}\" needs its hospital"),
    )
    .with_hint("SET pgward.hospital_id, or add the comment /* hospital_id='...' */.")
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
        "End what keeps it (SHOW CLIENTS names it: LISTEN, an advisory lock, ...), or use another \
         connection.",
    )
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
    Refusal::error(sqlstate::BAD_COPY_FILE_FORMAT, "a row of this COPY does not show its hospital")
        .with_detail("No row of it was kept.")
        .with_hint("Give each row all columns, its hospital as a plain uuid.")
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
