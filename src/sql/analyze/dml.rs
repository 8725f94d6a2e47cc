//! INSERT, UPDATE and DELETE: the rows they touch, and the key that an INSERT gives each row.

use pg_raw_parse::Node;
use pg_raw_parse::nodes::{self, OnConflictAction};

use super::expr::{At, Term, has_star};
use super::facts::{Fact, PlaceId};
use super::from::{Table, columns_of, display_name};
use super::query::{Arm, Selected, Value};
use super::scope::{Columns, Item, Scope};
use super::session::SHARD_SESSION;
use super::{Use, UseKeys, Walk};
use crate::sql::{Error, KeySource, ProblemKind, Relation, RelationKind};

impl<'a> Walk<'a> {
    pub(super) fn update(
        &mut self,
        update: &'a nodes::UpdateStmt,
        at: At<'_, 'a>,
    ) -> Result<Selected<'a>, Error> {
        self.writes("UPDATE");
        self.with(update.with_clause(), at, |walk, at| {
            let level = walk.facts.place(None);
            let (table, target) = walk.target(update.relation(), level)?;
            if let Some(key) = table.key()
                && update.target_list().iter().any(|set| set.name() == Some(key))
            {
                walk.refuse_key_change(key);
            }
            let mut items = walk.items_of(update.from_clause(), level, at)?;
            items.insert(0, target);
            let scope = Scope { items: &items, outer: at.scope };
            let inside = At { scope: Some(&scope), env: at.env, place: level };
            walk.condition(update.where_clause(), inside)?;
            for set in update.target_list() {
                walk.expr(set.into(), inside)?;
            }
            walk.returning(update.returning_clause(), inside)
        })
    }

    pub(super) fn delete(
        &mut self,
        delete: &'a nodes::DeleteStmt,
        at: At<'_, 'a>,
    ) -> Result<Selected<'a>, Error> {
        self.writes("DELETE");
        self.with(delete.with_clause(), at, |walk, at| {
            let level = walk.facts.place(None);
            let (_, target) = walk.target(delete.relation(), level)?;
            let mut items = walk.items_of(delete.using_clause(), level, at)?;
            items.insert(0, target);
            let scope = Scope { items: &items, outer: at.scope };
            let inside = At { scope: Some(&scope), env: at.env, place: level };
            walk.condition(delete.where_clause(), inside)?;
            walk.returning(delete.returning_clause(), inside)
        })
    }

    pub(super) fn insert(
        &mut self,
        insert: &'a nodes::InsertStmt,
        at: At<'_, 'a>,
    ) -> Result<Selected<'a>, Error> {
        self.writes("INSERT");
        self.with(insert.with_clause(), at, |walk, at| {
            let Some(into) = insert.relation() else { return Ok(Selected::default()) };
            let level = walk.facts.place(None);
            let relation = walk.written(into);
            let key = match relation.map(|relation| &relation.kind) {
                Some(RelationKind::Sharded { key }) => Some(key.as_str()),
                _ => None,
            };
            let index = match (relation, key) {
                (Some(relation), Some(key)) => key_index(insert, relation, key),
                _ => None,
            };
            for column in insert.cols() {
                // `tags[(SELECT ...)]`
                walk.expr(column, At { place: level, ..at })?;
            }
            let keys = walk.inserted_keys(insert, index, at)?;
            let columns = match (relation, key) {
                (Some(relation), Some(key)) => {
                    walk.uses.push(Use {
                        relation: display_name(relation),
                        column: key.to_owned(),
                        keys: UseKeys::Known(keys.clone()),
                    });
                    // All rows at hand, inserted or in conflict with one, are of these hospitals.
                    let node = walk.facts.node(level);
                    if !keys.is_empty() {
                        walk.facts.add(level, [Fact::Is(node, keys)]);
                    }
                    columns_of(relation, Some((key, node)))
                }
                (Some(relation), None) => columns_of(relation, None),
                (None, _) => Columns::unknown(),
            };
            let name = into.alias().map_or(into.relname(), |alias| alias.aliasname());
            let target = Item {
                name,
                schema: relation.filter(|_| into.alias().is_none()).map(|of| of.schema.as_str()),
                columns,
                is_bare: true,
            };
            walk.on_conflict(insert.on_conflict_clause(), key, &target, level, at)?;
            let items = [target];
            let scope = Scope { items: &items, outer: at.scope };
            let inside = At { scope: Some(&scope), env: at.env, place: level };
            walk.returning(insert.returning_clause(), inside)
        })
    }

    /// The keys of all rows to be inserted; empty unless each row has one.
    fn inserted_keys(
        &mut self,
        insert: &'a nodes::InsertStmt,
        index: Option<usize>,
        at: At<'_, 'a>,
    ) -> Result<Vec<KeySource>, Error> {
        let mut all = Some(Vec::new());
        let mut add = |keys: Vec<KeySource>| match (keys.is_empty(), &mut all) {
            (false, Some(all)) => all.extend(keys),
            _ => all = None,
        };
        match insert.select_stmt() {
            Node::SelectStmt(select) if is_rows(select) => {
                for row in select.values_lists().iter() {
                    let mut keys = Vec::new();
                    let Node::NodeList(row) = row else { continue };
                    let index = index.filter(|_| !has_star(row));
                    for (column, value) in row.iter().enumerate() {
                        let term = self.expr(value, at)?;
                        if let (Term::Const(value), true) = (term, Some(column) == index) {
                            keys.extend(self.key(value));
                        }
                    }
                    add(keys);
                }
            }
            query @ Node::SelectStmt(_) => {
                for arm in self.query(query, at)?.arms {
                    let column = index.and_then(|index| arm.columns.get(index));
                    let value = column.filter(|_| !arm.is_open).map(|column| column.value);
                    add(self.keys_of(value.unwrap_or(Value::Other))?);
                }
            }
            // DEFAULT VALUES
            _ => add(Vec::new()),
        }
        Ok(all.unwrap_or_default())
    }

    /// ON CONFLICT DO UPDATE changes a row that is there: it must be of the same hospital.
    fn on_conflict(
        &mut self,
        clause: Option<&'a nodes::OnConflictClause>,
        key: Option<&str>,
        target: &Item<'a>,
        level: PlaceId,
        at: At<'_, 'a>,
    ) -> Result<(), Error> {
        let Some(clause) = clause else { return Ok(()) };
        let excluded = Item { name: Some("excluded"), schema: None, ..target.clone() };
        let items = [target.clone(), excluded];
        let scope = Scope { items: &items, outer: at.scope };
        let inside = At { scope: Some(&scope), env: at.env, place: level };
        let mut names_key = false;
        if let Some(infer) = clause.infer() {
            for element in infer.index_elems().iter() {
                let Node::IndexElem(element) = element else { continue };
                names_key |= key.is_some() && element.name() == key;
                self.expr(element.expr(), inside)?;
            }
            self.expr(infer.where_clause(), inside)?;
        }
        for set in clause.target_list() {
            self.expr(set.into(), inside)?;
        }
        self.expr(clause.where_clause(), inside)?;
        let Some(key) = key else { return Ok(()) };
        if clause.target_list().iter().any(|set| set.name() == Some(key)) {
            self.refuse_key_change(key);
        }
        if clause.action == OnConflictAction::ONCONFLICT_UPDATE && !names_key {
            self.unsupported(
                "ON CONFLICT DO UPDATE without the key",
                "Name the key column in the conflict target: ON CONFLICT (hospital_id, ...).",
            );
        }
        Ok(())
    }

    fn refuse_key_change(&mut self, key: &str) {
        self.unsupported(
            format!("changing \"{key}\""),
            "A row can't move to another hospital. Delete it and insert it there.",
        );
    }

    /// The relation that UPDATE or DELETE changes, as a table of the level.
    fn target(
        &mut self,
        target: Option<&'a nodes::RangeVar>,
        level: PlaceId,
    ) -> Result<(Table<'a>, Item<'a>), Error> {
        let Some(target) = target else { return Err(Error::TooComplex) };
        let table = self.table(target, level)?;
        self.may_write(table.relation);
        let mut columns = table.columns.clone();
        let (name, schema) = match target.alias() {
            Some(alias) => {
                let names: Vec<_> = alias.colnames().iter().map(Node::as_str).collect();
                columns.rename(&names);
                (alias.aliasname(), None)
            }
            None => (target.relname(), table.relation.map(|of| of.schema.as_str())),
        };
        Ok((table, Item { name, schema, columns, is_bare: true }))
    }

    pub(super) fn written(&mut self, into: &'a nodes::RangeVar) -> Option<&'a Relation> {
        let relation = self.resolve(into);
        self.may_write(relation);
        relation
    }

    fn may_write(&mut self, relation: Option<&Relation>) {
        let Some(relation) = relation else { return };
        match relation.kind {
            RelationKind::Reference => {
                let subject = format!("writing the reference table \"{}\"", display_name(relation));
                self.problem(ProblemKind::ReferenceWrite, subject, SHARD_SESSION);
            }
            RelationKind::SystemAllowed | RelationKind::SystemUnkeyed => {
                self.unsupported("writing a system catalog", SHARD_SESSION);
            }
            RelationKind::Sharded { .. }
            | RelationKind::Undeclared
            | RelationKind::Unsupported(_) => {}
        }
    }

    /// What RETURNING puts out. The rows are written whatever becomes of it.
    fn returning(
        &mut self,
        clause: Option<&'a nodes::ReturningClause>,
        at: At<'_, 'a>,
    ) -> Result<Selected<'a>, Error> {
        let Some(clause) = clause else { return Ok(Selected::default()) };
        let targets = clause.exprs().iter().filter_map(|target| match target {
            Node::ResTarget(target) => Some(target),
            _ => None,
        });
        let (columns, is_open) = self.targets(targets, at)?;
        let arm =
            Arm { level: at.place, columns, is_open, is_transparent: false, is_filtered: false };
        Ok(Selected { arms: vec![arm], has_outer_aggregate: false })
    }
}

/// Whether the source of an INSERT is plain rows.
fn is_rows(select: &nodes::SelectStmt) -> bool {
    !select.values_lists().is_empty()
        && select.with_clause().is_none()
        && select.sort_clause().is_empty()
        && select.locking_clause().is_empty()
        && matches!(select.limit_count(), Node::None)
        && matches!(select.limit_offset(), Node::None)
}

/// Which column of the source is the key.
fn key_index(insert: &nodes::InsertStmt, relation: &Relation, key: &str) -> Option<usize> {
    let columns = insert.cols();
    if columns.is_empty() {
        return relation.columns.iter().position(|column| column == key);
    }
    columns.iter().position(|column| match column {
        Node::ResTarget(column) => column.name() == Some(key) && column.indirection().is_empty(),
        _ => false,
    })
}
