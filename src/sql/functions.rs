//! pg_catalog functions and relations that every login may use, and which of them are read-only.

use super::catalog::FunctionKind;

/// What pg_catalog's function `name` may do, all its overloads taken together; `None`: not listed.
pub fn builtin_function(_name: &str) -> Option<FunctionKind> {
    None
}

/// Whether a relation of pg_catalog or information_schema serves every login.
pub fn is_system_relation_allowed(schema: &str, name: &str) -> bool {
    schema == "pg_catalog" && matches!(name, "pg_class" | "pg_attribute" | "pg_type")
}
