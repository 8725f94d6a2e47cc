//! SELECT: levels, common table expressions, set operations, and what a subquery shows outside.
//!
//! A level's WHERE is a place without parent; [`Walk::expose`] gives it one where dropping rows below
//! a subquery is the same as dropping them above it.

use pg_raw_parse::Node;
use pg_raw_parse::nodes::{self, SetOperation};

use super::consts::Const;
use super::expr::{At, Term};
use super::facts::{Fact, NodeId, PlaceId};
use super::scope::{Column, Columns, Item, Scope};
use super::{Level, QUERY_DEPTH, Walk};
use crate::sql::{Error, KeySource};

/// Names of WITH that a level sees, and those of the levels around it.
#[derive(Clone, Copy)]
pub(super) struct Env<'s, 'a> {
    names: &'s [(&'a str, usize)],
    outer: Option<&'s Env<'s, 'a>>,
}

impl<'a> Env<'_, 'a> {
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        let mut env = Some(self);
        while let Some(level) = env {
            if let Some((_, cte)) = level.names.iter().rev().find(|(known, _)| *known == name) {
                return Some(*cte);
            }
            env = level.outer;
        }
        None
    }
}

/// A common table expression.
pub(super) struct Cte<'a> {
    /// `None` until it is walked: it refers to itself, or to a later one.
    pub(super) selected: Option<Selected<'a>>,
    pub(super) names: Vec<Option<&'a str>>,
    pub(super) reference_count: u32,
}

/// What a query puts out.
#[derive(Clone, Default)]
pub(super) struct Selected<'a> {
    /// One, or those of a UNION.
    pub(super) arms: Vec<Arm<'a>>,
    /// It has an aggregate that may belong to the level outside.
    pub(super) has_outer_aggregate: bool,
}

/// A query level as a source of rows.
#[derive(Clone)]
pub(super) struct Arm<'a> {
    pub(super) level: PlaceId,
    pub(super) columns: Vec<Output<'a>>,
    /// There may be other columns.
    pub(super) is_open: bool,
    /// Rows do not decide about one another, but for those of the same keys.
    pub(super) is_transparent: bool,
    /// It has a row only if a row passes its WHERE.
    pub(super) is_filtered: bool,
}

/// An output column.
#[derive(Clone, Copy)]
pub(super) struct Output<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) value: Value,
}

/// What an output column holds.
#[derive(Clone, Copy)]
pub(super) enum Value {
    Node(NodeId),
    Const(Const),
    Other,
}

impl Selected<'_> {
    /// The place whose facts hold if there is any row.
    pub(super) fn level_that_holds(&self) -> Option<PlaceId> {
        match self.arms.as_slice() {
            [arm] if arm.is_filtered => Some(arm.level),
            _ => None,
        }
    }

    /// Rows may decide about one another.
    fn make_opaque(&mut self) {
        for arm in &mut self.arms {
            arm.is_transparent = false;
        }
    }

    /// Nothing is known of what the columns hold.
    fn forget_values(&mut self) {
        for column in self.arms.iter_mut().flat_map(|arm| &mut arm.columns) {
            column.value = Value::Other;
        }
    }
}

impl<'a> Walk<'a> {
    /// A query wherever one may stand: a subquery, or the body of a WITH.
    pub(super) fn query(&mut self, node: Node<'a>, at: At<'_, 'a>) -> Result<Selected<'a>, Error> {
        self.found.is_query = true;
        self.deeper(QUERY_DEPTH, |walk| match node {
            Node::SelectStmt(select) => walk.select(select, at),
            Node::InsertStmt(insert) => walk.insert(insert, at),
            Node::UpdateStmt(update) => walk.update(update, at),
            Node::DeleteStmt(delete) => walk.delete(delete, at),
            _ => {
                walk.writes("MERGE");
                walk.unsupported("MERGE", "Use INSERT ... ON CONFLICT, or UPDATE and INSERT.");
                Ok(Selected::default())
            }
        })
    }

    pub(super) fn select(
        &mut self,
        select: &'a nodes::SelectStmt,
        at: At<'_, 'a>,
    ) -> Result<Selected<'a>, Error> {
        let outside = std::mem::take(&mut self.level);
        let selected = self.with(select.with_clause(), at, |walk, at| {
            if select.op != SetOperation::SETOP_NONE {
                walk.set_operation(select, at)
            } else if !select.values_lists().is_empty() {
                walk.values(select, at)
            } else {
                walk.plain(select, at)
            }
        });
        let level = std::mem::replace(&mut self.level, outside);
        let mut selected = selected?;
        selected.has_outer_aggregate = level.has_outer_aggregate;
        Ok(selected)
    }

    /// Walks the queries of a WITH, then `body`, which sees their names.
    pub(super) fn with<T>(
        &mut self,
        clause: Option<&'a nodes::WithClause>,
        at: At<'_, 'a>,
        body: impl FnOnce(&mut Self, At<'_, 'a>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Some(clause) = clause else { return body(self, at) };
        let first = self.ctes.len();
        let mut names = Vec::new();
        for cte in clause.ctes() {
            names.push((cte.ctename().unwrap_or_default(), self.ctes.len()));
            self.ctes.push(Cte {
                selected: None,
                names: cte.aliascolnames().iter().map(Node::as_str).collect(),
                reference_count: 0,
            });
        }
        for (index, cte) in clause.ctes().iter().enumerate() {
            // With RECURSIVE all names are seen by all; else those before.
            let seen = if clause.recursive { &names[..] } else { &names[..index] };
            let env = Env { names: seen, outer: at.env };
            let place = self.facts.place(None);
            let inside = At { scope: at.scope, env: Some(&env), place };
            let mut selected = self.query(cte.ctequery(), inside)?;
            let known = &mut self.ctes[first + index];
            if known.reference_count > 0 {
                // Referred to before it was walked: recursive, or out of order.
                selected.make_opaque();
                selected.forget_values();
                known.reference_count += 1;
            }
            if cte.search_clause().is_some() || cte.cycle_clause().is_some() {
                selected.make_opaque();
                selected.arms.iter_mut().for_each(|arm| arm.is_open = true);
            }
            known.selected = Some(selected);
            if let Some(cycle) = cte.cycle_clause() {
                self.expr(cycle.cycle_mark_value(), inside)?;
                self.expr(cycle.cycle_mark_default(), inside)?;
            }
        }
        let env = Env { names: &names, outer: at.env };
        body(self, At { env: Some(&env), ..at })
    }

    /// `a UNION b ...`. The grammar makes a chain of them lean to the left.
    fn set_operation(
        &mut self,
        select: &'a nodes::SelectStmt,
        at: At<'_, 'a>,
    ) -> Result<Selected<'a>, Error> {
        let mut rights = Vec::new();
        let mut left = select;
        let mut is_union = true;
        loop {
            is_union &= left.op == SetOperation::SETOP_UNION;
            rights.extend(left.rarg());
            match left.larg() {
                Some(next) if next.op != SetOperation::SETOP_NONE && is_bare(next) => left = next,
                Some(next) => {
                    rights.push(next);
                    break;
                }
                None => break,
            }
        }
        let mut selected = Selected::default();
        let mut level = Level::default();
        for arm in rights.into_iter().rev() {
            let arm = self.deeper(QUERY_DEPTH, |walk| walk.select(arm, at))?;
            level.has_outer_aggregate |= arm.has_outer_aggregate;
            selected.arms.extend(arm.arms);
        }
        self.level = level;
        selected.arms.iter_mut().for_each(|arm| arm.is_filtered = false);
        if !is_union {
            selected.forget_values();
            selected.make_opaque();
        }
        if self.tail(select, At { scope: None, ..at })? {
            selected.make_opaque();
        }
        Ok(selected)
    }

    fn values(
        &mut self,
        select: &'a nodes::SelectStmt,
        at: At<'_, 'a>,
    ) -> Result<Selected<'a>, Error> {
        let level = self.facts.place(None);
        self.exprs(select.values_lists(), At { place: level, ..at })?;
        self.tail(select, At { place: level, ..at })?;
        // Its columns are called column1 and so on.
        let arm = Arm {
            level,
            columns: Vec::new(),
            is_open: true,
            is_transparent: false,
            is_filtered: false,
        };
        Ok(Selected { arms: vec![arm], has_outer_aggregate: false })
    }

    fn plain(
        &mut self,
        select: &'a nodes::SelectStmt,
        at: At<'_, 'a>,
    ) -> Result<Selected<'a>, Error> {
        let level = self.facts.place(None);
        let items = self.items_of(select.from_clause(), level, at)?;
        let scope = Scope { items: &items, outer: at.scope };
        let inside = At { scope: Some(&scope), env: at.env, place: level };
        self.condition(select.where_clause(), inside)?;
        let (mut columns, is_open) = self.targets(select.target_list(), inside)?;
        let (groups, is_simple_group) = self.groups(select.group_clause(), inside)?;
        self.expr(select.having_clause(), inside)?;
        self.exprs(select.window_clause(), inside)?;
        let is_distinct_on = select.distinct_clause().iter().any(|by| !matches!(by, Node::None));
        self.exprs(select.distinct_clause(), inside)?;
        let is_cut = self.tail(select, inside)?;
        self.into(select);

        let is_grouped = !select.group_clause().is_empty();
        let is_aggregated =
            is_grouped || self.level.has_aggregate || !matches!(select.having_clause(), Node::None);
        if is_aggregated {
            // Of a group only what it is grouped by is the same in all its rows.
            for column in &mut columns {
                match column.value {
                    Value::Node(node) if groups.contains(&node) => {}
                    // ROLLUP and the like put NULL even in place of a constant.
                    Value::Const(_) if is_simple_group => {}
                    _ => column.value = Value::Other,
                }
            }
        }
        let is_plain_group = is_grouped && !groups.is_empty();
        let is_transparent = !is_cut
            && !is_distinct_on
            && !self.level.has_window
            && select.window_clause().is_empty()
            && (!is_aggregated || is_plain_group);
        let arm = Arm { level, columns, is_open, is_transparent, is_filtered: !is_aggregated };
        Ok(Selected { arms: vec![arm], has_outer_aggregate: false })
    }

    /// The output columns of a target list; whether there may be others.
    pub(super) fn targets(
        &mut self,
        list: impl IntoIterator<Item = &'a nodes::ResTarget>,
        at: At<'_, 'a>,
    ) -> Result<(Vec<Output<'a>>, bool), Error> {
        let mut columns = Vec::new();
        let mut is_open = false;
        for target in list {
            let value = target.val();
            if let Node::ColumnRef(column) = value
                && let Some(shown) = star(column, at.scope)
            {
                let Some(shown) = shown else {
                    is_open = true;
                    continue;
                };
                is_open |= shown.is_open;
                columns.extend(shown.list.iter().map(|column| Output {
                    name: column.name,
                    value: column.node.map_or(Value::Other, Value::Node),
                }));
                continue;
            }
            // `(f(x)).*`
            let is_row = matches!(value, Node::A_Indirection(part)
                if part.indirection().iter().any(|part| matches!(part, Node::A_Star(_))));
            is_open |= is_row;
            let name = target.name().or(match value {
                Node::ColumnRef(column) => {
                    column.fields().iter().next_back().and_then(Node::as_str)
                }
                _ => None,
            });
            let value = match self.expr(value, at)? {
                Term::Node(node) => Value::Node(node),
                Term::Const(value) => Value::Const(value),
                Term::Array(_) | Term::Null | Term::Other => Value::Other,
            };
            columns.push(Output { name, value });
        }
        Ok((columns, is_open))
    }

    /// Key columns that the rows are grouped by; none, and false, if not simply by a list of expressions.
    fn groups(
        &mut self,
        list: &'a pg_raw_parse::list::NodeList,
        at: At<'_, 'a>,
    ) -> Result<(Vec<NodeId>, bool), Error> {
        let mut groups = Vec::new();
        let mut is_simple = true;
        for by in list.iter() {
            is_simple &= !matches!(by, Node::GroupingSet(_));
            if let Term::Node(node) = self.expr(by, at)? {
                groups.push(node);
            }
        }
        if !is_simple {
            groups.clear();
        }
        Ok((groups, is_simple))
    }

    /// ORDER BY, LIMIT, OFFSET and FOR UPDATE; whether rows compete for a place, or are locked.
    fn tail(&mut self, select: &'a nodes::SelectStmt, at: At<'_, 'a>) -> Result<bool, Error> {
        for sort in select.sort_clause() {
            self.operator(sort.use_op());
            self.expr(sort.node(), at)?;
        }
        self.expr(select.limit_count(), at)?;
        self.expr(select.limit_offset(), at)?;
        let is_locking = !select.locking_clause().is_empty();
        if is_locking {
            self.writes("SELECT FOR UPDATE or SHARE");
        }
        let is_limited = |node| !matches!(node, Node::None);
        Ok(is_locking || is_limited(select.limit_count()) || is_limited(select.limit_offset()))
    }

    /// The columns of a subquery for the level outside, whose row is at `place`. `is_filter`: rows that the
    /// facts at `place` leave out do not matter, wherever the subquery itself lets that through.
    pub(super) fn expose(
        &mut self,
        selected: &Selected<'a>,
        place: PlaceId,
        is_filter: bool,
    ) -> Result<Columns<'a>, Error> {
        let Some((first, others)) = selected.arms.split_first() else {
            return Ok(Columns::unknown());
        };
        let outside = self.facts.place(Some(place));
        if others.is_empty() {
            let mut columns = Columns { list: Vec::new(), is_open: first.is_open };
            for output in &first.columns {
                let node = self.output_node(output.value, outside);
                columns.list.push(Column { name: output.name, node });
            }
            if is_filter && first.is_transparent {
                self.facts.set_parent(first.level, Some(outside));
            }
            return Ok(columns);
        }
        let width = first.columns.len();
        if selected.arms.iter().any(|arm| arm.is_open || arm.columns.len() != width) {
            return Ok(Columns::unknown());
        }
        let ways: Vec<PlaceId> =
            selected.arms.iter().map(|_| self.facts.place(Some(place))).collect();
        let mut list = Vec::with_capacity(width);
        for (index, output) in first.columns.iter().enumerate() {
            let node = self.union_node(selected, index, &ways, outside)?;
            list.push(Column { name: output.name, node });
        }
        for (arm, way) in selected.arms.iter().zip(ways) {
            if is_filter && arm.is_transparent {
                self.facts.set_parent(arm.level, Some(way));
            }
        }
        Ok(Columns { list, is_open: false })
    }

    /// A node of its own for each use of a column, because each use has a row of its own.
    fn output_node(&mut self, value: Value, outside: PlaceId) -> Option<NodeId> {
        let fact = match value {
            Value::Node(inner) => {
                let node = self.facts.node(outside);
                (node, Fact::Same(node, inner))
            }
            Value::Const(value) if value.is_uuid() => {
                let key = self.key(value)?;
                let node = self.facts.node(outside);
                (node, Fact::Is(node, vec![key]))
            }
            Value::Const(_) | Value::Other => return None,
        };
        self.facts.add(outside, [fact.1]);
        Some(fact.0)
    }

    /// Column `index` of a UNION: from each arm what holds for that arm's rows, to the outside only
    /// values that all arms have.
    fn union_node(
        &mut self,
        selected: &Selected<'a>,
        index: usize,
        ways: &[PlaceId],
        outside: PlaceId,
    ) -> Result<Option<NodeId>, Error> {
        let values = || selected.arms.iter().map(|arm| arm.columns[index].value);
        if values().any(|value| matches!(value, Value::Other)) {
            return Ok(None);
        }
        let node = self.facts.node(outside);
        let mut all = Some(Vec::new());
        for (value, way) in values().zip(ways) {
            let keys = self.keys_of(value)?;
            if let Value::Node(inner) = value {
                self.facts.add(*way, [Fact::Same(node, inner)]);
            }
            match (keys.is_empty(), &mut all) {
                (false, Some(all)) => all.extend(keys),
                _ => all = None,
            }
        }
        self.facts.add(outside, all.map(|keys| Fact::Is(node, keys)));
        Ok(Some(node))
    }

    /// The keys that an output column is proven to hold, so far.
    pub(super) fn keys_of(&mut self, value: Value) -> Result<Vec<KeySource>, Error> {
        match value {
            Value::Node(node) => self.facts.solve(node),
            Value::Const(value) => Ok(self.key(value).into_iter().collect()),
            Value::Other => Ok(Vec::new()),
        }
    }
}

/// Whether a set operation has no clause of its own, so that it is part of a longer one.
fn is_bare(select: &nodes::SelectStmt) -> bool {
    select.with_clause().is_none()
        && select.sort_clause().is_empty()
        && select.locking_clause().is_empty()
        && matches!(select.limit_count(), Node::None)
        && matches!(select.limit_offset(), Node::None)
}

/// What `*` or `t.*` stands for; outer `None`: it is neither.
fn star<'a>(
    column: &nodes::ColumnRef,
    scope: Option<&Scope<'_, 'a>>,
) -> Option<Option<Columns<'a>>> {
    let fields = column.fields();
    let last = fields.len().checked_sub(1)?;
    if !matches!(fields.get(last), Some(Node::A_Star(_))) {
        return None;
    }
    let name = |index: usize| fields.get(index).and_then(Node::as_str);
    let Some(scope) = scope else { return Some(None) };
    Some(match last {
        0 => Some(all_columns(scope.items)),
        1 => name(0).and_then(|table| scope.item(None, table)).map(|item| item.columns.clone()),
        2 => match (name(0), name(1)) {
            (Some(schema), Some(table)) => {
                scope.item(Some(schema), table).map(|item| item.columns.clone())
            }
            _ => None,
        },
        _ => None,
    })
}

/// What `*` shows of a FROM list.
pub(super) fn all_columns<'a>(items: &[Item<'a>]) -> Columns<'a> {
    let mut columns = Columns::default();
    for item in items.iter().filter(|item| item.is_bare) {
        columns.list.extend_from_slice(&item.columns.list);
        columns.is_open |= item.columns.is_open;
    }
    columns
}
