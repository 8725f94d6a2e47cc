//! Names of the statements that belong to migrations and upkeep.

use pg_raw_parse::Node;
use pg_raw_parse::nodes::{self, ObjectType};

/// The command tag's first words; whether it changes what the catalog says.
pub(super) fn command(node: Node<'_>) -> (&'static str, bool) {
    match node {
        Node::CreateStmt(_) => ("CREATE TABLE", true),
        Node::CreateTableAsStmt(made) => match made.objtype {
            ObjectType::OBJECT_MATVIEW => ("CREATE MATERIALIZED VIEW", true),
            _ => ("CREATE TABLE AS", true),
        },
        Node::IndexStmt(_) => ("CREATE INDEX", true),
        Node::ViewStmt(_) => ("CREATE VIEW", true),
        Node::CreateSchemaStmt(_) => ("CREATE SCHEMA", true),
        Node::CreateSeqStmt(_) => ("CREATE SEQUENCE", true),
        Node::CreateFunctionStmt(_) => ("CREATE FUNCTION", true),
        Node::CreateExtensionStmt(_) => ("CREATE EXTENSION", true),
        Node::CreateTrigStmt(_) => ("CREATE TRIGGER", true),
        Node::CreatePolicyStmt(_) => ("CREATE POLICY", true),
        Node::CreateRoleStmt(_) => ("CREATE ROLE", true),
        Node::CreateEnumStmt(_)
        | Node::CompositeTypeStmt(_)
        | Node::CreateRangeStmt(_)
        | Node::CreateDomainStmt(_)
        | Node::DefineStmt(_) => ("CREATE TYPE", true),
        Node::CreatedbStmt(_) => ("CREATE DATABASE", true),
        Node::AlterTableStmt(_) => ("ALTER TABLE", true),
        Node::AlterRoleStmt(_) | Node::AlterRoleSetStmt(_) => ("ALTER ROLE", true),
        Node::AlterSystemStmt(_) => ("ALTER SYSTEM", false),
        Node::RenameStmt(_)
        | Node::AlterObjectSchemaStmt(_)
        | Node::AlterOwnerStmt(_)
        | Node::AlterSeqStmt(_)
        | Node::AlterFunctionStmt(_)
        | Node::AlterDomainStmt(_)
        | Node::AlterEnumStmt(_)
        | Node::AlterTypeStmt(_) => ("ALTER", true),
        Node::DropStmt(_)
        | Node::DropOwnedStmt(_)
        | Node::DropdbStmt(_)
        | Node::DropRoleStmt(_) => ("DROP", true),
        Node::CommentStmt(_) => ("COMMENT", true),
        Node::SecLabelStmt(_) => ("SECURITY LABEL", true),
        Node::GrantStmt(grant) => (if grant.is_grant { "GRANT" } else { "REVOKE" }, true),
        Node::GrantRoleStmt(grant) => (if grant.is_grant { "GRANT" } else { "REVOKE" }, true),
        Node::RuleStmt(_) => ("CREATE RULE", true),
        Node::RefreshMatViewStmt(_) => ("REFRESH MATERIALIZED VIEW", false),
        Node::VacuumStmt(vacuum) => (if vacuum.is_vacuumcmd { "VACUUM" } else { "ANALYZE" }, false),
        Node::TruncateStmt(_) => ("TRUNCATE TABLE", false),
        Node::ReindexStmt(_) => ("REINDEX", false),
        Node::ClusterStmt(_) => ("CLUSTER", false),
        Node::CheckPointStmt(_) => ("CHECKPOINT", false),
        _ => ("this statement", true),
    }
}

/// Whether it makes something that is gone with the server's session.
pub(super) fn is_temporary(node: Node<'_>) -> bool {
    let relation: Option<&nodes::RangeVar> = match node {
        Node::CreateStmt(made) => made.relation(),
        Node::CreateTableAsStmt(made) => made.into().and_then(nodes::IntoClause::rel),
        Node::ViewStmt(made) => made.view(),
        Node::CreateSeqStmt(made) => made.sequence(),
        _ => None,
    };
    relation.is_some_and(is_in_pg_temp)
}

/// Whether a table that is made under this name is a temporary one.
pub(super) fn is_in_pg_temp(relation: &nodes::RangeVar) -> bool {
    i32::from(relation.relpersistence) == i32::from(b't')
        || relation.schemaname() == Some("pg_temp")
}
