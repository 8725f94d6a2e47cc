//! Temporary tables: what makes, changes and drops them.
//!
//! The catalog has none of them, since each session has its own. Whether a name that the catalog has
//! not heard of is one, the session says: here it is a problem of kind [`ProblemKind::Unknown`]. A name
//! that the catalog knows is never taken for one, nor is any where the search_path says when
//! temporary tables are looked at.

use pg_raw_parse::Node;
use pg_raw_parse::nodes::{self, ConstrType, ObjectType, OnCommitAction};

use super::expr::At;
use super::session::SHARD_SESSION;
use super::{Walk, utility};
use crate::sql::{Effect, Error, Pin, ProblemKind, Temporary};

impl<'a> Walk<'a> {
    /// CREATE TABLE: a temporary one of columns of its own, or like those of a table.
    pub(super) fn create_table(
        &mut self,
        made: &'a nodes::CreateStmt,
        at: At<'_, 'a>,
    ) -> Result<&'static str, Error> {
        let is_plain = made.inh_relations().is_empty()
            && made.partbound().is_none()
            && made.partspec().is_none()
            && made.of_typename().is_none();
        let temporary = self.new_temporary(made.relation(), made.oncommit);
        let Some(temporary) = temporary.filter(|_| is_plain) else {
            return Ok(self.utility(Node::CreateStmt(made)));
        };
        for element in made.table_elts().iter() {
            match element {
                Node::ColumnDef(column) => {
                    for constraint in column.constraints().iter() {
                        self.constraint(constraint, at)?;
                    }
                }
                Node::TableLikeClause(like) => {
                    if let Some(table) = like.relation() {
                        self.resolve(table);
                    }
                }
                constraint => self.constraint(constraint, at)?,
            }
        }
        self.makes(temporary, "CREATE TABLE");
        Ok("CREATE TABLE")
    }

    /// Its expressions are read: they run with each row that is written.
    fn constraint(&mut self, node: Node<'a>, at: At<'_, 'a>) -> Result<(), Error> {
        let Node::Constraint(constraint) = node else {
            self.unsupported("this part of CREATE TABLE", SHARD_SESSION);
            return Ok(());
        };
        match constraint.contype {
            ConstrType::CONSTR_EXCLUSION | ConstrType::CONSTR_FOREIGN => {
                self.unsupported("this constraint of a temporary table", "Leave it out.");
            }
            _ => drop(self.expr(constraint.raw_expr(), at)?),
        }
        Ok(())
    }

    /// CREATE TABLE AS: a temporary one of a query's rows.
    pub(super) fn create_table_as(
        &mut self,
        made: &'a nodes::CreateTableAsStmt,
        at: At<'_, 'a>,
    ) -> Result<&'static str, Error> {
        if let Node::ExecuteStmt(execute) = made.query() {
            self.writes("CREATE TABLE AS");
            self.execute(execute, at)?;
        }
        let into = made.into().filter(|_| made.objtype == ObjectType::OBJECT_TABLE);
        let temporary = into.and_then(|into| self.new_temporary(into.rel(), into.on_commit));
        match (made.query(), temporary) {
            (query @ Node::SelectStmt(_), Some(temporary)) => {
                self.query(query, at)?;
                self.makes(temporary, "CREATE TABLE AS");
                Ok("CREATE TABLE AS")
            }
            _ => Ok(self.utility(Node::CreateTableAsStmt(made))),
        }
    }

    /// SELECT INTO makes a table.
    pub(super) fn into(&mut self, select: &nodes::SelectStmt) {
        let Some(into) = select.into_clause() else { return };
        if let Some(temporary) = self.new_temporary(into.rel(), into.on_commit) {
            return self.makes(temporary, "SELECT INTO");
        }
        self.writes("SELECT INTO");
        self.found.effect = match into.rel().is_some_and(utility::is_in_pg_temp) {
            true => Effect::Pin(Pin::TempTable),
            false => Effect::Ddl,
        };
        self.unsupported("SELECT INTO", SHARD_SESSION);
    }

    /// DROP TABLE, CREATE INDEX, TRUNCATE and ANALYZE of temporary tables; `None`: it is something
    /// else. What a CREATE INDEX computes is read.
    pub(super) fn change_temporary(
        &mut self,
        node: Node<'a>,
        at: At<'_, 'a>,
    ) -> Result<Option<&'static str>, Error> {
        let names = match node {
            Node::DropStmt(drop) if drop.remove_type == ObjectType::OBJECT_TABLE => {
                drop.objects().iter().map(name_in_list).collect::<Option<Vec<_>>>()
            }
            Node::IndexStmt(index) if !index.concurrent => {
                index.relation().map(|of| vec![name(of)])
            }
            Node::TruncateStmt(truncate) => truncate.relations().iter().map(range_name).collect(),
            Node::VacuumStmt(vacuum) if !vacuum.is_vacuumcmd => {
                vacuum.rels().iter().map(|of| of.relation().map(name)).collect()
            }
            _ => None,
        };
        let is_unheard = |of: &(Option<&str>, &str)| self.is_unheard(of.0, of.1);
        let names = names.filter(|names| !names.is_empty() && names.iter().all(is_unheard));
        let Some(names) = names.filter(|_| !self.found.is_deferred) else { return Ok(None) };
        let (command, is_ddl) = utility::command(node);
        if let Node::IndexStmt(index) = node {
            for element in index.index_params() {
                self.expr(element.expr(), at)?;
            }
            self.expr(index.where_clause(), at)?;
        }
        for (_, name) in &names {
            self.problem(ProblemKind::Unknown, *name, SHARD_SESSION);
        }
        self.found.unknown_names = true;
        self.writes(command);
        if is_ddl {
            self.found.effect = Effect::Ddl;
        }
        if let Node::DropStmt(_) = node {
            let names = names.iter().map(|(_, name)| (*name).to_owned()).collect();
            self.found.temporary = Some(Box::new(Temporary::Drops(names)));
        }
        Ok(Some(command))
    }

    fn makes(&mut self, temporary: Temporary, command: &'static str) {
        self.writes(command);
        self.found.effect = Effect::Pin(Pin::TempTable);
        self.found.temporary = Some(Box::new(temporary));
    }

    /// The temporary table that a statement is about to make, if nothing else has its name.
    fn new_temporary(
        &self,
        table: Option<&nodes::RangeVar>,
        on_commit: OnCommitAction::Type,
    ) -> Option<Temporary> {
        let table = table.filter(|table| utility::is_in_pg_temp(table))?;
        let (schema, name) = name(table);
        let is_new = !self.found.is_deferred && self.is_unheard(schema, name);
        is_new.then(|| Temporary::Makes {
            name: name.to_owned(),
            ends_with_transaction: on_commit == OnCommitAction::ONCOMMIT_DROP,
        })
    }

    /// No relation of the catalog is meant: it may be a temporary one.
    pub(super) fn is_unheard(&self, schema: Option<&str>, name: &str) -> bool {
        let path: Vec<&str> = self.search_path.iter().map(String::as_str).collect();
        let is_first = !path.iter().any(|schema| schema.starts_with("pg_temp"));
        is_first
            && matches!(schema, None | Some("pg_temp"))
            && self.catalog.resolve(None, name, &path).is_none()
    }
}

fn name(table: &nodes::RangeVar) -> (Option<&str>, &str) {
    (table.schemaname(), table.relname().unwrap_or_default())
}

fn range_name(node: Node<'_>) -> Option<(Option<&str>, &str)> {
    match node {
        Node::RangeVar(table) => Some(name(table)),
        _ => None,
    }
}

/// A name as DROP has it.
fn name_in_list(node: Node<'_>) -> Option<(Option<&str>, &str)> {
    let Node::NodeList(parts) = node else { return None };
    match parts.iter().map(|part: Node<'_>| part.as_str()).collect::<Option<Vec<_>>>()?[..] {
        [name] => Some((None, name)),
        [schema, name] => Some((Some(schema), name)),
        _ => None,
    }
}
