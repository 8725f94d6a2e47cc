//! The lists of pg_catalog's functions and relations against a real server's catalog.

use pgward::sql::{FunctionKind, functions};

use crate::support::shards;

fn names(sql: &str) -> Vec<String> {
    let rows = shards().primary.psql("postgres", sql).expect("rows of the catalog");
    let names: Vec<String> = rows.lines().map(|name| name.trim().to_owned()).collect();
    assert!(!names.is_empty(), "{sql}");
    names
}

#[test]
fn no_function_that_counts_as_read_has_a_volatile_overload() {
    let volatile = names(
        "SELECT DISTINCT proname FROM pg_proc
         WHERE provolatile = 'v' AND pronamespace = 'pg_catalog'::regnamespace",
    );
    for name in volatile {
        assert_ne!(functions::builtin_function(&name), Some(FunctionKind::BuiltinRead), "{name}");
    }
}

#[test]
fn what_drivers_and_applications_call_is_listed() {
    let immutable = names(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace
         GROUP BY proname HAVING bool_and(provolatile = 'i' AND prokind = 'f'
             AND NOT 'internal'::regtype = ANY (proargtypes) AND NOT 'cstring'::regtype = ANY (proargtypes)
             AND prorettype NOT IN (SELECT oid FROM pg_type WHERE typtype = 'p' AND typname NOT LIKE 'any%'
                                    AND typname NOT IN ('record', 'void')))",
    );
    let unlisted: Vec<&String> =
        immutable.iter().filter(|name| functions::builtin_function(name).is_none()).collect();
    assert!(unlisted.len() < 20, "of {}: {unlisted:?}", immutable.len());
}

#[test]
fn allowed_system_relations_exist() {
    let relations = names(
        "SELECT relname FROM pg_class
         WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v')",
    );
    let is_allowed =
        |name: &&String| functions::is_system_relation_allowed("pg_catalog", name.as_str());
    let allowed = relations.iter().filter(is_allowed).count();
    assert!(allowed > 60, "{allowed} of {}", relations.len());
    for name in relations.iter().filter(|name| name.starts_with("pg_stat")) {
        assert!(!is_allowed(&name) || name == "pg_statistic_ext", "{name}");
    }
}
