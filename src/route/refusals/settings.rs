//! Settings that pgward must know, or can't let pass.

use super::notice;
use crate::route::Refusal;
use crate::wire::sqlstate;

/// A client_encoding whose texts can't be analysed.
pub fn unsupported_encoding(name: &str) -> Refusal {
    Refusal::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        format!("client_encoding \"{name}\" is not supported by pgward"),
    )
    .with_hint("Use UTF8.")
}

/// standard_conforming_strings = off changes where literals end.
pub fn nonstandard_strings() -> Refusal {
    Refusal::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "standard_conforming_strings = off is not supported by pgward",
    )
    .with_hint("Write backslash escapes as E'...'.")
}

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

/// An application_name that is cut, as Postgres cuts and says it.
pub fn name_cut(name: &str, cut: &str) -> Refusal {
    notice(sqlstate::NAME_TOO_LONG, format!("identifier \"{name}\" will be truncated to \"{cut}\""))
}

/// set_config whose value pgward must know, but which is computed.
pub fn computed_setting(name: &str) -> Refusal {
    Refusal::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        format!("parameter \"{name}\" can't be set to a computed value through pgward"),
    )
    .with_hint("Give the value as a literal or a parameter.")
}
