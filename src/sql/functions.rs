//! pg_catalog functions and relations that every login may use, and which of them are read-only.
//!
//! `functions.txt` lists functions by name, all overloads taken together, from pg_proc of PostgreSQL 15
//! (a few are newer). `read`: no overload is volatile and none writes, reads tables or files, or tells
//! of other sessions. `aggregate`: the same, aggregates and window functions. `write`: harmless, but
//! volatile. `shard`: an effect or an answer of its own on each shard. `lock`: session-level
//! advisory locks. `setting`: set_config. `unkeyed`: reads or does what no key guards. What is not
//! listed is refused as a user function. Called by `catalog` and `analyze`.

use std::cmp::Ordering;

use super::catalog::FunctionKind;

/// `name class` lines, sorted by name; a test keeps them so.
const FUNCTIONS: &str = include_str!("functions.txt");

/// A class of `functions.txt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listed {
    Read,
    Aggregate,
    Write,
    Shard,
    Lock,
    Setting,
    Unkeyed,
}

/// What pg_catalog's function `name` may do, all its overloads taken together; `None`: not listed.
pub fn builtin_function(name: &str) -> Option<FunctionKind> {
    Some(match listed(name)? {
        Listed::Read | Listed::Aggregate => FunctionKind::BuiltinRead,
        Listed::Write => FunctionKind::BuiltinWrite("volatile"),
        Listed::Setting => FunctionKind::BuiltinWrite("changes a setting"),
        Listed::Shard | Listed::Lock => FunctionKind::PerShard,
        Listed::Unkeyed => FunctionKind::Unkeyed,
    })
}

/// The class of pg_catalog's function `name`.
pub(super) fn listed(name: &str) -> Option<Listed> {
    // What sessions do: it grows with each version.
    if name.starts_with("pg_stat_") {
        return Some(Listed::Unkeyed);
    }
    let class = class_of(name)?;
    Some(match class {
        "read" => Listed::Read,
        "aggregate" => Listed::Aggregate,
        "write" => Listed::Write,
        "shard" => Listed::Shard,
        "lock" => Listed::Lock,
        "setting" => Listed::Setting,
        _ => Listed::Unkeyed,
    })
}

/// Binary search over the lines.
fn class_of(name: &str) -> Option<&'static str> {
    let mut rest = FUNCTIONS;
    while !rest.is_empty() {
        let start = rest.get(..rest.len() / 2)?.rfind('\n').map_or(0, |newline| newline + 1);
        let (line, tail) = rest.get(start..)?.split_once('\n')?;
        let (listed, class) = line.split_once(' ')?;
        rest = match name.cmp(listed) {
            Ordering::Equal => return Some(class),
            Ordering::Less => rest.get(..start)?,
            Ordering::Greater => tail,
        };
    }
    None
}

/// Whether a relation of pg_catalog or information_schema serves every login. Not those that show
/// values of rows (statistics), secrets, sessions, or counters of one shard.
pub fn is_system_relation_allowed(schema: &str, name: &str) -> bool {
    match schema {
        // Its options may be passwords.
        "information_schema" => name != "user_mapping_options",
        "pg_catalog" => matches!(
            name,
            "pg_aggregate"
                | "pg_am"
                | "pg_amop"
                | "pg_amproc"
                | "pg_attrdef"
                | "pg_attribute"
                | "pg_auth_members"
                | "pg_available_extension_versions"
                | "pg_available_extensions"
                | "pg_cast"
                | "pg_class"
                | "pg_collation"
                | "pg_constraint"
                | "pg_conversion"
                | "pg_database"
                | "pg_db_role_setting"
                | "pg_default_acl"
                | "pg_depend"
                | "pg_description"
                | "pg_enum"
                | "pg_event_trigger"
                | "pg_extension"
                | "pg_foreign_data_wrapper"
                | "pg_foreign_server"
                | "pg_foreign_table"
                | "pg_group"
                | "pg_index"
                | "pg_indexes"
                | "pg_inherits"
                | "pg_init_privs"
                | "pg_language"
                | "pg_matviews"
                | "pg_namespace"
                | "pg_opclass"
                | "pg_operator"
                | "pg_opfamily"
                | "pg_parameter_acl"
                | "pg_partitioned_table"
                | "pg_policies"
                | "pg_policy"
                | "pg_proc"
                | "pg_publication"
                | "pg_publication_namespace"
                | "pg_publication_rel"
                | "pg_publication_tables"
                | "pg_range"
                | "pg_rewrite"
                | "pg_roles"
                | "pg_rules"
                | "pg_seclabel"
                | "pg_seclabels"
                | "pg_sequence"
                | "pg_settings"
                | "pg_shdepend"
                | "pg_shdescription"
                | "pg_shseclabel"
                | "pg_statistic_ext"
                | "pg_tables"
                | "pg_tablespace"
                | "pg_timezone_abbrevs"
                | "pg_timezone_names"
                | "pg_transform"
                | "pg_trigger"
                | "pg_ts_config"
                | "pg_ts_config_map"
                | "pg_ts_dict"
                | "pg_ts_parser"
                | "pg_ts_template"
                | "pg_type"
                | "pg_user"
                | "pg_views"
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_and_each_line_is_found() {
        let names: Vec<&str> =
            FUNCTIONS.lines().map(|line| line.split(' ').next().unwrap()).collect();
        assert!(names.is_sorted_by(|a, b| a < b));
        for line in FUNCTIONS.lines() {
            let (name, class) = line.split_once(' ').unwrap();
            assert_eq!(class_of(name), Some(class), "{name}");
        }
        assert_eq!(class_of(""), None);
        assert_eq!(class_of("zzz"), None);
        assert_eq!(class_of("lowe"), None);
    }

    #[test]
    fn classes_are_as_the_design_says() {
        let check = |names: &[&str], want: Option<Listed>| {
            for name in names {
                assert_eq!(listed(name), want, "{name}");
            }
        };
        check(&["lower", "now", "to_char", "uuid_eq", "format_type"], Some(Listed::Read));
        check(&["count", "row_number", "jsonb_agg"], Some(Listed::Aggregate));
        check(&["random", "pg_sleep", "gen_random_uuid"], Some(Listed::Write));
        check(&["nextval", "pg_notify", "pg_current_xact_id", "currval"], Some(Listed::Shard));
        check(&["pg_advisory_lock"], Some(Listed::Lock));
        check(&["set_config"], Some(Listed::Setting));
        let unkeyed = [
            "table_to_xml",
            "query_to_xml",
            "pg_read_file",
            "pg_ls_dir",
            "lo_get",
            "ts_stat",
            "ts_rewrite",
            "pg_mcv_list_items",
            "pg_terminate_backend",
            "pg_export_snapshot",
            "pg_stat_get_activity",
            "pg_switch_wal",
            "pg_lock_status",
        ];
        check(&unkeyed, Some(Listed::Unkeyed));
        check(&["dblink", "my_function", "regclassin"], None);
    }

    #[test]
    fn system_relations_that_show_values_are_not_allowed() {
        for name in ["pg_stats", "pg_statistic", "pg_stat_activity", "pg_locks", "pg_authid"] {
            assert!(!is_system_relation_allowed("pg_catalog", name), "{name}");
        }
        assert!(is_system_relation_allowed("pg_catalog", "pg_class"));
        assert!(is_system_relation_allowed("information_schema", "tables"));
    }
}
