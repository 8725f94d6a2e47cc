//! Facts of a schema file: what `CREATE TABLE` and its kin would make on a shard.
//!
//! For `pgward route --schema`, tests and benchmarks, which have no shard to ask. Reads CREATE TABLE
//! (also PARTITION OF, INHERITS, LIKE), CREATE VIEW, CREATE MATERIALIZED VIEW, CREATE FUNCTION and ALTER TABLE
//! ADD or DROP COLUMN, as pg_dump or a migration writes them; passes over everything else. Names without a
//! schema are taken to be in `public`. With `analyze` the only file that names the parser.

use std::collections::HashSet;

use pg_raw_parse::list::NodeList;
use pg_raw_parse::nodes::{AlterTableStmt, ColumnDef, CreateStmt, RangeVar, TypeName};
use pg_raw_parse::raw::AlterTableType;
use pg_raw_parse::{Node, walk};

use super::{Error, FunctionFact, RelationFact, ShardFacts};

/// Reads `text`, a list of SQL statements, as one shard's facts.
pub fn schema_facts(text: &str) -> Result<ShardFacts, Error> {
    let parsed = pg_raw_parse::parse(text)
        .map_err(|error| Error::Syntax { message: error.to_string(), position: None })?;
    let mut facts = ShardFacts::default();
    for statement in parsed.stmts() {
        match statement {
            Node::CreateStmt(create) => add_table(create, &mut facts),
            Node::AlterTableStmt(alter) => alter_table(alter, &mut facts),
            Node::ViewStmt(view) => add_view(view.view(), view.query(), 'v', &mut facts),
            Node::CreateTableAsStmt(create) => {
                let name = create.into().and_then(|into| into.rel());
                add_view(name, create.query(), 'm', &mut facts);
            }
            Node::CreateFunctionStmt(create) => {
                if let Some((schema, name)) = qualified(create.funcname()) {
                    facts.functions.push(FunctionFact { schema, name });
                }
            }
            _ => {}
        }
    }
    Ok(facts)
}

fn add_table(create: &CreateStmt, facts: &mut ShardFacts) {
    let Some((schema, name)) = create.relation().and_then(of_range) else { return };
    let mut columns: Vec<(String, String)> = Vec::new();
    let mut add = |column: (String, String)| {
        if columns.iter().all(|(name, _)| *name != column.0) {
            columns.push(column);
        }
    };
    for parent in create.inh_relations() {
        if let Node::RangeVar(parent) = parent {
            columns_of(parent, facts).into_iter().for_each(&mut add);
        }
    }
    for element in create.table_elts() {
        match element {
            Node::ColumnDef(column) => add(column_fact(column)),
            Node::TableLikeClause(like) => {
                if let Some(source) = like.relation() {
                    columns_of(source, facts).into_iter().for_each(&mut add);
                }
            }
            _ => {}
        }
    }
    let kind = if create.partspec().is_some() { 'p' } else { 'r' };
    push(facts, RelationFact { schema, name, kind, columns, ..empty() });
}

fn alter_table(alter: &AlterTableStmt, facts: &mut ShardFacts) {
    let Some((schema, name)) = alter.relation().and_then(of_range) else { return };
    let Some(table) = find(facts, &schema, &name) else { return };
    for command in alter.cmds() {
        let Node::AlterTableCmd(command) = command else { continue };
        match (command.subtype, command.def(), command.name()) {
            (AlterTableType::AT_AddColumn, Node::ColumnDef(column), _) => {
                table.columns.push(column_fact(column));
            }
            (AlterTableType::AT_DropColumn, _, Some(name)) => {
                table.columns.retain(|(column, _)| column != name);
            }
            _ => {}
        }
    }
}

/// A view and the relations and user functions that its query names. Columns stay unknown.
fn add_view(view: Option<&RangeVar>, query: Node<'_>, kind: char, facts: &mut ShardFacts) {
    let Some((schema, name)) = view.and_then(of_range) else { return };
    let mut reads = Vec::new();
    let mut queries = HashSet::new();
    walk::walk(query, |node| match node {
        Node::RangeVar(range) => reads.extend(of_range(range)),
        Node::CommonTableExpr(query) => {
            queries.extend(query.ctename().map(|name| ("public".to_owned(), name.to_owned())));
        }
        Node::FuncCall(call) => {
            let function = qualified(call.funcname()).filter(|(schema, name)| {
                facts.functions.iter().any(|known| (&known.schema, &known.name) == (schema, name))
            });
            reads.extend(function.map(|(schema, name)| (schema, format!("{name}()"))));
        }
        _ => {}
    });
    // A table that has the name of a WITH query somewhere else in the view is lost here, and found by
    // the shards' own catalogs, which know one from the other.
    reads.retain(|read| !queries.contains(read));
    push(facts, RelationFact { schema, name, kind, reads, ..empty() });
}

fn columns_of(range: &RangeVar, facts: &mut ShardFacts) -> Vec<(String, String)> {
    of_range(range)
        .and_then(|(schema, name)| find(facts, &schema, &name))
        .map(|table| table.columns.clone())
        .unwrap_or_default()
}

fn column_fact(column: &ColumnDef) -> (String, String) {
    let name = column.colname().unwrap_or_default().to_owned();
    (name, column.type_name().map(type_name).unwrap_or_default())
}

/// Near enough to format_type: what matters is whether it is exactly `uuid`.
fn type_name(of: &TypeName) -> String {
    let names: Vec<&str> = of.names().iter().filter_map(|name| name.sval()).collect();
    let mut text = match names.as_slice() {
        ["pg_catalog", name] => (*name).to_owned(),
        names => names.join("."),
    };
    if !of.array_bounds().is_empty() {
        text.push_str("[]");
    }
    text
}

/// Schema and name of a list of one to three parts; the database is left out.
fn qualified(names: &NodeList) -> Option<(String, String)> {
    let names: Vec<&str> = names.iter().filter_map(Node::as_str).collect();
    match names.as_slice() {
        [name] => Some(("public".to_owned(), (*name).to_owned())),
        [.., schema, name] => Some(((*schema).to_owned(), (*name).to_owned())),
        [] => None,
    }
}

fn of_range(range: &RangeVar) -> Option<(String, String)> {
    let name = range.relname()?.to_owned();
    Some((range.schemaname().unwrap_or("public").to_owned(), name))
}

fn find<'a>(facts: &'a mut ShardFacts, schema: &str, name: &str) -> Option<&'a mut RelationFact> {
    facts.relations.iter_mut().find(|fact| fact.schema == schema && fact.name == name)
}

/// CREATE ... IF NOT EXISTS and CREATE OR REPLACE: the last one stays.
fn push(facts: &mut ShardFacts, fact: RelationFact) {
    match find(facts, &fact.schema, &fact.name) {
        Some(known) => *known = fact,
        None => facts.relations.push(fact),
    }
}

fn empty() -> RelationFact {
    RelationFact {
        schema: String::new(),
        name: String::new(),
        kind: 'r',
        columns: Vec::new(),
        reads: Vec::new(),
        is_rls_forced: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(text: &str) -> Vec<String> {
        let facts = schema_facts(text).unwrap();
        let relations = facts.relations.iter().map(|fact| {
            let columns: Vec<_> =
                fact.columns.iter().map(|(name, of)| format!("{name} {of}")).collect();
            let reads: Vec<_> = fact.reads.iter().map(|(s, n)| format!("<{s}.{n}")).collect();
            let (schema, name) = (&fact.schema, &fact.name);
            format!("{} {schema}.{name} {}", fact.kind, [columns, reads].concat().join(", "))
        });
        let functions =
            facts.functions.iter().map(|fact| format!("f {}.{}", fact.schema, fact.name));
        relations.chain(functions).map(|line| line.trim_end().to_owned()).collect()
    }

    #[test]
    fn statements_become_facts() {
        for (text, want) in [
            (
                "CREATE TABLE t (hospital_id uuid NOT NULL, x text[])",
                &["r public.t hospital_id uuid, x text[]"][..],
            ),
            ("create table App.T (id pg_catalog.uuid, primary key (id))", &["r app.t id uuid"]),
            (
                "CREATE TABLE t (a int); ALTER TABLE t ADD COLUMN b uuid, DROP a; DROP INDEX i",
                &["r public.t b uuid"],
            ),
            (
                "CREATE TABLE t (a uuid) PARTITION BY HASH (a); CREATE TABLE t0 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
                &["p public.t a uuid", "r public.t0 a uuid"],
            ),
            (
                "CREATE TABLE a (x uuid); CREATE TABLE b (LIKE a, y text); CREATE TABLE c (z text) INHERITS (a)",
                &["r public.a x uuid", "r public.b x uuid, y text", "r public.c x uuid, z text"],
            ),
            (
                "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'select 1'; CREATE VIEW v AS WITH w AS (SELECT * FROM s.t) SELECT f(), lower('x') FROM w",
                &["v public.v <s.t, <public.f()", "f public.f"],
            ),
            ("CREATE MATERIALIZED VIEW m AS SELECT * FROM t", &["m public.m <public.t"]),
            ("", &[]),
        ] {
            let got = describe(text);
            let sorted = |mut lines: Vec<String>| {
                lines.iter_mut().for_each(|line| {
                    if let Some((head, reads)) = line.split_once(" <") {
                        let mut reads: Vec<_> = reads.split(", <").collect();
                        reads.sort_unstable();
                        *line = format!("{head} <{}", reads.join(", <"));
                    }
                });
                lines
            };
            let want = want.iter().map(|line| (*line).to_owned()).collect();
            assert_eq!(sorted(got), sorted(want), "{text}");
        }
        assert!(matches!(schema_facts("CREATE TABEL"), Err(Error::Syntax { .. })));
        assert!(matches!(schema_facts("SELECT '\0'"), Err(Error::Syntax { .. })));
    }
}
