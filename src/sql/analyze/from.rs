//! FROM: relations, subqueries, functions and joins, and the place of each.
//!
//! An inner join's ON is a place that both sides are under; an outer join's only the nullable side, for
//! rows of the preserved side come out whatever it says; a full join's neither.

use pg_raw_parse::Node;
use pg_raw_parse::list::NodeList;
use pg_raw_parse::nodes::{self, JoinType};

use super::expr::At;
use super::facts::{Fact, NodeId, PlaceId};
use super::scope::{Column, Columns, Item, Scope};
use super::{RELATIONS_MAX, Use, UseKeys, Walk};
use crate::sql::{Error, ProblemKind, Relation, RelationKind};

/// What a FROM item brings.
struct Source<'a> {
    /// What can be named.
    items: Vec<Item<'a>>,
    /// What `*` shows, for a join around it.
    columns: Columns<'a>,
}

/// A relation as a statement uses it.
pub(super) struct Table<'a> {
    /// `None`: nobody has heard of it.
    pub(super) relation: Option<&'a Relation>,
    pub(super) columns: Columns<'a>,
}

impl<'a> Table<'a> {
    /// Its key column, if it is sharded.
    pub(super) fn key(&self) -> Option<&'a str> {
        match &self.relation?.kind {
            RelationKind::Sharded { key } => Some(key),
            _ => None,
        }
    }
}

impl<'a> Walk<'a> {
    /// All items of a FROM list, whose rows are at `place`.
    pub(super) fn items_of(
        &mut self,
        list: &'a NodeList,
        place: PlaceId,
        at: At<'_, 'a>,
    ) -> Result<Vec<Item<'a>>, Error> {
        let mut items = Vec::new();
        for node in list.iter() {
            let left = Scope { items: &items, outer: at.scope };
            let from = self.source(node, place, at, &left)?;
            items.extend(from.items);
        }
        Ok(items)
    }

    /// One item. `left` is what LATERAL sees.
    fn source(
        &mut self,
        node: Node<'a>,
        place: PlaceId,
        at: At<'_, 'a>,
        left: &Scope<'_, 'a>,
    ) -> Result<Source<'a>, Error> {
        self.deeper(2, |walk| match node {
            Node::RangeVar(table) => walk.table_source(table, place, at),
            Node::RangeSubselect(subquery) => {
                let scope = if subquery.lateral { Some(left) } else { at.scope };
                let selected = walk.query(subquery.subquery(), At { scope, place, ..at })?;
                let columns = walk.expose(&selected, place, true)?;
                Ok(Source::one(columns, subquery.alias(), None, None))
            }
            Node::RangeFunction(function) => {
                let inside = At { scope: Some(left), place, ..at };
                walk.function_source(function, inside)
            }
            Node::JoinExpr(join) => walk.join(join, place, at, left),
            Node::RangeTableSample(sample) => {
                walk.unsupported("TABLESAMPLE", "Filter the rows in another way.");
                let inside = At { scope: Some(left), place, ..at };
                walk.exprs(sample.args(), inside)?;
                walk.expr(sample.repeatable(), inside)?;
                walk.source(sample.relation(), place, at, left)
            }
            _ => {
                walk.unsupported("XMLTABLE or JSON_TABLE", "Use functions on json or xml values.");
                Ok(Source::unknown())
            }
        })
    }

    fn table_source(
        &mut self,
        table: &'a nodes::RangeVar,
        place: PlaceId,
        at: At<'_, 'a>,
    ) -> Result<Source<'a>, Error> {
        let name = table.relname().unwrap_or_default();
        if table.schemaname().is_none()
            && let Some(cte) = at.env.and_then(|env| env.find(name))
        {
            let columns = self.cte_reference(cte, place)?;
            return Ok(Source::one(columns, table.alias(), Some(name), None));
        }
        let Table { relation, columns } = self.table(table, place)?;
        let schema = relation.map(|relation| relation.schema.as_str());
        Ok(Source::one(columns, table.alias(), Some(name), schema))
    }

    /// A use of the common table expression `cte`. Rows that its only use leaves out do not matter.
    fn cte_reference(&mut self, cte: usize, place: PlaceId) -> Result<Columns<'a>, Error> {
        let Some(known) = self.ctes.get_mut(cte) else { return Ok(Columns::unknown()) };
        known.reference_count += 1;
        let is_only = known.reference_count == 1;
        let names = known.names.clone();
        let Some(selected) = known.selected.clone() else { return Ok(Columns::unknown()) };
        if !is_only {
            for arm in &selected.arms {
                self.facts.set_parent(arm.level, None);
            }
        }
        let mut columns = self.expose(&selected, place, is_only)?;
        columns.rename(&names);
        Ok(columns)
    }

    fn function_source(
        &mut self,
        function: &'a nodes::RangeFunction,
        at: At<'_, 'a>,
    ) -> Result<Source<'a>, Error> {
        for pair in function.functions().iter() {
            // The call, and the columns of `AS (a int)`.
            if let Node::NodeList(pair) = pair {
                self.expr(pair.first().unwrap_or(Node::None), at)?;
            }
        }
        Ok(Source::one(Columns::unknown(), function.alias(), None, None))
    }

    /// A relation by name: notes its use and what is wrong with it.
    pub(super) fn table(
        &mut self,
        table: &nodes::RangeVar,
        place: PlaceId,
    ) -> Result<Table<'a>, Error> {
        self.found.relation_count += 1;
        if self.found.relation_count > RELATIONS_MAX {
            return Err(Error::TooComplex);
        }
        let relation = self.resolve(table);
        let columns = match relation {
            Some(relation) => match &relation.kind {
                RelationKind::Sharded { key } => {
                    let node = self.facts.node(place);
                    self.uses.push(Use {
                        relation: display_name(relation),
                        column: key.clone(),
                        keys: UseKeys::Node(node),
                    });
                    columns_of(relation, Some((key, node)))
                }
                _ => columns_of(relation, None),
            },
            None => Columns::unknown(),
        };
        Ok(Table { relation, columns })
    }

    /// What a name means, and whether that may be used at all.
    pub(super) fn resolve(&mut self, table: &nodes::RangeVar) -> Option<&'a Relation> {
        let name = table.relname().unwrap_or_default();
        let path: Vec<&str> = self.search_path.iter().map(String::as_str).collect();
        let relation = self.catalog.resolve(table.schemaname(), name, &path);
        let Some(relation) = relation else {
            self.found.unknown_names = true;
            let kind = match self.is_unheard(table.schemaname(), name) {
                true => ProblemKind::Unknown,
                false => ProblemKind::Undeclared,
            };
            self.problem(kind, name, "");
            return None;
        };
        match &relation.kind {
            RelationKind::Sharded { .. }
            | RelationKind::Reference
            | RelationKind::SystemAllowed => {}
            RelationKind::Undeclared => {
                self.problem(ProblemKind::Undeclared, display_name(relation), "");
            }
            RelationKind::Unsupported(why) => {
                let subject = format!("\"{name}\" ({why})");
                self.unsupported(subject, "Name the tables with their keys.");
            }
            RelationKind::SystemUnkeyed => {
                self.problem(ProblemKind::ReadsUnkeyed, format!("\"{name}\""), "");
            }
        }
        Some(relation)
    }

    fn join(
        &mut self,
        join: &'a nodes::JoinExpr,
        place: PlaceId,
        at: At<'_, 'a>,
        left: &Scope<'_, 'a>,
    ) -> Result<Source<'a>, Error> {
        let on = self.facts.place(Some(place));
        let (left_place, right_place) = match join.jointype {
            JoinType::JOIN_INNER => (on, on),
            JoinType::JOIN_LEFT => (place, on),
            JoinType::JOIN_RIGHT => (on, place),
            _ => (place, place),
        };
        let lefts = self.source(join.larg(), left_place, at, left)?;
        let beside = Scope { items: &lefts.items, outer: Some(left) };
        let rights = self.source(join.rarg(), right_place, at, &beside)?;

        let shared = shared_columns(join, &lefts.columns, &rights.columns);
        let merged = self.merge(join.jointype, &shared, &lefts.columns, &rights.columns, on);
        let mut items = lefts.items;
        items.extend(rights.items);
        // ON sees the two sides and the levels outside, not what is left of the join.
        let scope = Scope { items: &items, outer: at.scope };
        self.condition(join.quals(), At { scope: Some(&scope), env: at.env, place: on })?;

        // NATURAL over sides whose columns are not all known: what is shared is not known either.
        let is_unclear = join.is_natural && (lefts.columns.is_open || rights.columns.is_open);
        let columns = match is_unclear {
            true => Columns::unknown(),
            false => joined_columns(&shared, &merged, &lefts.columns, &rights.columns),
        };
        if let Some(alias) = join.join_using_alias() {
            let columns = Columns { list: merged, is_open: false };
            items.push(Item { name: alias.aliasname(), schema: None, columns, is_bare: false });
        }
        match join.alias() {
            // The alias hides what is joined.
            Some(_) => Ok(Source::one(columns, join.alias(), None, None)),
            None => {
                items.iter_mut().for_each(|item| item.is_bare = false);
                let all = columns.clone();
                items.push(Item { name: None, schema: None, columns: all, is_bare: true });
                Ok(Source { items, columns })
            }
        }
    }

    /// Columns of USING and NATURAL: equal where rows match, and shown once.
    fn merge(
        &mut self,
        of: JoinType::Type,
        shared: &[&'a str],
        left: &Columns<'a>,
        right: &Columns<'a>,
        on: PlaceId,
    ) -> Vec<Column<'a>> {
        let mut merged = Vec::with_capacity(shared.len());
        for name in shared {
            let nodes: (Option<NodeId>, Option<NodeId>) = (left.node(name), right.node(name));
            if let (Some(a), Some(b)) = nodes {
                self.facts.add(on, [Fact::Same(a, b)]);
            }
            let node = match of {
                JoinType::JOIN_INNER => nodes.0.or(nodes.1),
                JoinType::JOIN_LEFT => nodes.0,
                JoinType::JOIN_RIGHT => nodes.1,
                // Either side's value.
                _ => None,
            };
            merged.push(Column { name: Some(name), node });
        }
        merged
    }
}

impl<'a> Source<'a> {
    fn one(
        mut columns: Columns<'a>,
        alias: Option<&'a nodes::Alias>,
        name: Option<&'a str>,
        schema: Option<&'a str>,
    ) -> Self {
        let (name, schema) = match alias {
            Some(alias) => {
                let names: Vec<_> = alias.colnames().iter().map(Node::as_str).collect();
                columns.rename(&names);
                (alias.aliasname(), None)
            }
            None => (name, schema),
        };
        let item = Item { name, schema, columns: columns.clone(), is_bare: true };
        Self { items: vec![item], columns }
    }

    fn unknown() -> Self {
        Self::one(Columns::unknown(), None, None, None)
    }
}

/// What NATURAL or USING joins by.
fn shared_columns<'a>(
    join: &'a nodes::JoinExpr,
    left: &Columns<'a>,
    right: &Columns<'a>,
) -> Vec<&'a str> {
    if join.is_natural {
        let names = left.list.iter().filter_map(|column| column.name);
        return names.filter(|name| right.has(name)).collect();
    }
    join.using_clause().iter().filter_map(|name| name.sval()).collect()
}

/// What a join shows: merged columns first, then the others of each side.
fn joined_columns<'a>(
    shared: &[&'a str],
    merged: &[Column<'a>],
    left: &Columns<'a>,
    right: &Columns<'a>,
) -> Columns<'a> {
    let mut list = merged.to_vec();
    let is_merged = |column: &&Column<'a>| column.name.is_some_and(|name| shared.contains(&name));
    list.extend(left.list.iter().filter(|column| !is_merged(column)));
    list.extend(right.list.iter().filter(|column| !is_merged(column)));
    Columns { list, is_open: left.is_open || right.is_open }
}

pub(super) fn columns_of<'a>(relation: &'a Relation, key: Option<(&str, NodeId)>) -> Columns<'a> {
    let column = |name: &'a String| Column {
        name: Some(name.as_str()),
        node: key.filter(|(key, _)| key == name).map(|(_, node)| node),
    };
    let list: Vec<_> = relation.columns.iter().map(column).collect();
    match (key, list.is_empty()) {
        // Order and others are not certain, but it has its key.
        (Some((_, node)), true) => match &relation.kind {
            RelationKind::Sharded { key } => {
                Columns { list: vec![Column { name: Some(key), node: Some(node) }], is_open: true }
            }
            _ => Columns::unknown(),
        },
        (_, is_open) => Columns { list, is_open },
    }
}

/// A relation's name for people: without schema where that is `public`.
pub(super) fn display_name(relation: &Relation) -> String {
    match relation.schema.as_str() {
        "public" => relation.name.clone(),
        schema => format!("{schema}.{}", relation.name),
    }
}
