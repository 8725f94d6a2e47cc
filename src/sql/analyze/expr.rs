//! Expressions: which functions they call, which subqueries they hold, and whether they are a key.
//!
//! Every node that Postgres's grammar makes of an expression is named here; any other is refused. The
//! walk also marks each literal that is a value, which is what lets the cache leave it out.

use pg_raw_parse::list::NodeList;
use pg_raw_parse::nodes::{self, A_Expr_Kind, JsonExprOp, SubLinkType};
use pg_raw_parse::{ConstValue, Node};

use super::Walk;
use super::consts::{self, Const};
use super::facts::{NodeId, PlaceId};
use super::query::{Env, Selected};
use super::scope::{Columns, Scope};
use crate::sql::functions::{self, Listed};
use crate::sql::{Effect, Error, FunctionKind, Pin, ProblemKind};

/// Where an expression stands.
#[derive(Clone, Copy)]
pub(super) struct At<'s, 'a> {
    pub(super) scope: Option<&'s Scope<'s, 'a>>,
    pub(super) env: Option<&'s Env<'s, 'a>>,
    pub(super) place: PlaceId,
}

/// What an expression is, as far as keys go.
#[derive(Debug)]
pub(super) enum Term {
    /// A column that holds keys.
    Node(NodeId),
    /// A literal or parameter.
    Const(Const),
    /// `ARRAY[...]` of those; NULLs left out.
    Array(Vec<Const>),
    Null,
    Other,
}

/// Operators of pg_catalog [15], sorted. Any other is a user function by another name.
pub(super) const OPERATORS: &[&str] = &[
    "!!", "!~", "!~*", "!~~", "!~~*", "#", "##", "#-", "#>", "#>>", "%", "&", "&&", "&<", "&<|",
    "&>", "*", "*<", "*<=", "*<>", "*=", "*>", "*>=", "+", "-", "->", "->>", "-|-", "/", "<",
    "<->", "<<", "<<=", "<<|", "<=", "<>", "<@", "<^", "=", ">", ">=", ">>", ">>=", ">^", "?",
    "?#", "?&", "?-", "?-|", "?|", "?||", "@", "@-@", "@>", "@?", "@@", "@@@", "^", "^@", "|",
    "|&>", "|/", "|>>", "||", "||/", "~", "~*", "~<=~", "~<~", "~=", "~>=~", "~>~", "~~", "~~*",
];

/// Hint for what is refused because nobody vouched for it.
const DECLARE_SAFE: &str =
    "If it reads no table and changes nothing, name it in safe_functions in the configuration.";

/// The name that servers before 16 would take for a function.
fn json_function(node: Node<'_>) -> Option<&'static str> {
    Some(match node {
        Node::JsonObjectConstructor(_) => "json_object",
        Node::JsonArrayConstructor(_) => "json_array",
        Node::JsonParseExpr(_) => "json",
        Node::JsonScalarExpr(_) => "json_scalar",
        Node::JsonSerializeExpr(_) => "json_serialize",
        Node::JsonObjectAgg(_) => "json_objectagg",
        Node::JsonArrayAgg(_) => "json_arrayagg",
        Node::JsonFuncExpr(call) => match call.op {
            JsonExprOp::JSON_EXISTS_OP => "json_exists",
            JsonExprOp::JSON_QUERY_OP => "json_query",
            _ => "json_value",
        },
        _ => return None,
    })
}

/// Whether a schema's name is pg_catalog.
pub(super) fn is_catalog_name(schema: &str) -> bool {
    schema == "pg_catalog"
}

/// `a`, `s.a` or `db.s.a`: the schema and the name.
pub(super) fn qualified_name(list: &NodeList) -> Option<(Option<&str>, &str)> {
    let mut parts = list.iter().rev().map(Node::as_str);
    let name = parts.next()??;
    match parts.next() {
        None => Some((None, name)),
        Some(schema) => Some((Some(schema?), name)),
    }
}

/// The name of an operator that surely is pg_catalog's or found by search_path.
pub(super) fn operator_name(list: &NodeList) -> Option<&str> {
    match qualified_name(list)? {
        (Some(schema), _) if !is_catalog_name(schema) => None,
        (_, name) => Some(name),
    }
}

impl<'a> Walk<'a> {
    pub(super) fn exprs(&mut self, list: &'a NodeList, at: At<'_, 'a>) -> Result<(), Error> {
        for node in list.iter() {
            self.expr(node, at)?;
        }
        Ok(())
    }

    /// Walks an expression; says what it is.
    pub(super) fn expr(&mut self, node: Node<'a>, at: At<'_, 'a>) -> Result<Term, Error> {
        match self.leaf(node, at) {
            Some(term) => Ok(term),
            None => self.deeper(1, |walk| walk.compound(node, at)),
        }
    }

    /// What has nothing inside.
    fn leaf(&mut self, node: Node<'a>, at: At<'_, 'a>) -> Option<Term> {
        Some(match node {
            Node::A_Const(constant) => self.constant(constant),
            Node::ColumnRef(column) => self.column(column, at),
            Node::ParamRef(param) => {
                Const::param(param.number, self.param_types).map_or(Term::Other, Term::Const)
            }
            // Nothing, a field's name, `*`, DEFAULT, CURRENT_DATE and the like, WHERE CURRENT OF.
            Node::None
            | Node::String(_)
            | Node::A_Star(_)
            | Node::SetToDefault(_)
            | Node::SQLValueFunction(_)
            | Node::CurrentOfExpr(_) => Term::Other,
            _ => return None,
        })
    }

    fn column(&mut self, column: &nodes::ColumnRef, at: At<'_, 'a>) -> Term {
        if let Some(name) = maybe_call(column, at.scope) {
            self.attribute(name);
        }
        self.level.column_count += 1;
        self.level.own_column_count += u32::from(is_own_column(column, at.scope));
        column_node(column, at.scope).map_or(Term::Other, Term::Node)
    }

    // From here each function does little, for they nest: a frame is as large as all its arms.

    fn compound(&mut self, node: Node<'a>, at: At<'_, 'a>) -> Result<Term, Error> {
        match node {
            Node::TypeCast(cast) => self.cast(cast, at),
            Node::A_ArrayExpr(array) => self.array(array, at),
            Node::SubLink(link) => self.sublink(link, at),
            _ => self.parts(node, at).map(|()| Term::Other),
        }
    }

    /// An expression that is never a key: its parts.
    fn parts(&mut self, node: Node<'a>, at: At<'_, 'a>) -> Result<(), Error> {
        match node {
            Node::A_Expr(operation) => self.operation(operation, at),
            Node::FuncCall(call) => self.call(call, at),
            Node::BoolExpr(all) => self.exprs(all.args(), at),
            Node::NodeList(list) => self.exprs(list, at),
            Node::RowExpr(row) => self.exprs(row.args(), at),
            Node::NullTest(test) => self.part(test.arg(), at),
            Node::BooleanTest(test) => self.part(test.arg(), at),
            Node::CoalesceExpr(all) => self.exprs(all.args(), at),
            Node::MinMaxExpr(all) => self.exprs(all.args(), at),
            Node::CaseExpr(case) => self.case(case, at),
            Node::CaseWhen(when) => self.both(when.expr(), when.result(), at),
            Node::A_Indirection(part) => self.indirection(part.arg(), part.indirection(), at),
            Node::A_Indices(index) => self.both(index.lidx(), index.uidx(), at),
            Node::CollateClause(collate) => self.part(collate.arg(), at),
            Node::NamedArgExpr(arg) => self.part(arg.arg(), at),
            // Its steps say which part of a column is set.
            Node::ResTarget(target) => {
                self.part(target.val(), at)?;
                self.exprs(target.indirection(), at)
            }
            // Each column of `(a, b) = ...` has the whole source.
            Node::MultiAssignRef(part) if part.colno > 1 => Ok(()),
            Node::MultiAssignRef(part) => self.part(part.source(), at),
            Node::SortBy(sort) => {
                self.operator(sort.use_op());
                self.part(sort.node(), at)
            }
            Node::GroupingSet(set) => self.exprs(set.content(), at),
            Node::GroupingFunc(grouping) => {
                self.level.has_aggregate = true;
                self.level.has_outer_aggregate = true;
                self.exprs(grouping.args(), at)
            }
            Node::WindowDef(window) => self.window(window, at),
            Node::XmlExpr(xml) => self.xml(xml, at),
            Node::XmlSerialize(xml) => self.part(xml.expr(), at),
            other => self.json(other, at),
        }
    }

    fn part(&mut self, node: Node<'a>, at: At<'_, 'a>) -> Result<(), Error> {
        self.expr(node, at).map(drop)
    }

    fn both(&mut self, a: Node<'a>, b: Node<'a>, at: At<'_, 'a>) -> Result<(), Error> {
        self.part(a, at)?;
        self.part(b, at)
    }

    fn case(&mut self, case: &'a nodes::CaseExpr, at: At<'_, 'a>) -> Result<(), Error> {
        self.both(case.arg(), case.defresult(), at)?;
        self.exprs(case.args(), at)
    }

    fn xml(&mut self, xml: &'a nodes::XmlExpr, at: At<'_, 'a>) -> Result<(), Error> {
        self.exprs(xml.named_args(), at)?;
        self.exprs(xml.args(), at)
    }

    /// `a.b`, `a[1]`.
    fn indirection(
        &mut self,
        of: Node<'a>,
        steps: &'a NodeList,
        at: At<'_, 'a>,
    ) -> Result<(), Error> {
        self.part(of, at)?;
        for step in steps.iter() {
            if let Node::String(_) = step
                && let Some(name) = step.as_str()
            {
                self.attribute(name);
            }
            self.expr(step, at)?;
        }
        Ok(())
    }

    /// `x.name` is a field of x, or a call `name(x)`: Postgres takes the one for the other, whatever x is.
    fn attribute(&mut self, name: &str) {
        if !self.catalog.is_function(name) {
            return;
        }
        self.function(None, name);
        if may_be_aggregate(None, name) {
            self.level.has_aggregate = true;
            self.level.has_outer_aggregate = true;
        }
    }

    /// `a + b + c`: a chain leans to the left, and may be long.
    fn operation(&mut self, chain: &'a nodes::A_Expr, at: At<'_, 'a>) -> Result<(), Error> {
        let mut operation = chain;
        loop {
            // BETWEEN stands where others have their operator.
            if !matches!(
                operation.kind,
                A_Expr_Kind::AEXPR_BETWEEN
                    | A_Expr_Kind::AEXPR_NOT_BETWEEN
                    | A_Expr_Kind::AEXPR_BETWEEN_SYM
                    | A_Expr_Kind::AEXPR_NOT_BETWEEN_SYM
            ) {
                self.operator(operation.name());
            }
            self.expr(operation.rexpr(), at)?;
            match operation.lexpr() {
                Node::A_Expr(left) => operation = left,
                left => return self.expr(left, at).map(drop),
            }
        }
    }

    /// SQL/JSON. Servers before 16 take the names for functions, so users may have such functions.
    fn json(&mut self, node: Node<'a>, at: At<'_, 'a>) -> Result<(), Error> {
        if let Some(name) = json_function(node) {
            self.function(None, name);
        }
        match node {
            Node::JsonValueExpr(value) => self.part(value.raw_expr(), at),
            Node::JsonIsPredicate(test) => self.part(test.expr(), at),
            Node::JsonKeyValue(pair) => self.both(pair.key(), pair.value().into(), at),
            Node::JsonObjectConstructor(object) => {
                object.exprs().iter().try_for_each(|pair| self.part(pair.into(), at))
            }
            Node::JsonArrayConstructor(array) => {
                array.exprs().iter().try_for_each(|value| self.part(value.into(), at))
            }
            Node::JsonParseExpr(parse) => self.part(parse.expr().into(), at),
            Node::JsonScalarExpr(scalar) => self.part(scalar.expr(), at),
            Node::JsonSerializeExpr(text) => self.part(text.expr().into(), at),
            Node::JsonObjectAgg(object) => {
                self.json_aggregate(object.arg().into(), object.constructor(), at)
            }
            Node::JsonArrayAgg(array) => {
                self.json_aggregate(array.arg().into(), array.constructor(), at)
            }
            Node::JsonFuncExpr(call) => self.json_path(call, at),
            _ => {
                self.unsupported("an expression of this kind", "Write it in another way.");
                Ok(())
            }
        }
    }

    /// JSON_VALUE, JSON_QUERY and JSON_EXISTS.
    fn json_path(&mut self, call: &'a nodes::JsonFuncExpr, at: At<'_, 'a>) -> Result<(), Error> {
        self.expr(call.context_item().into(), at)?;
        self.expr(call.pathspec(), at)?;
        for arg in call.passing().iter() {
            if let Node::JsonArgument(arg) = arg {
                self.expr(arg.val().into(), at)?;
            }
        }
        for fallback in [call.on_empty(), call.on_error()].into_iter().flatten() {
            self.expr(fallback.expr(), at)?;
        }
        Ok(())
    }

    fn json_aggregate(
        &mut self,
        arg: Node<'a>,
        call: Option<&'a nodes::JsonAggConstructor>,
        at: At<'_, 'a>,
    ) -> Result<(), Error> {
        self.level.has_aggregate = true;
        self.level.has_outer_aggregate = true;
        self.part(arg, at)?;
        let Some(call) = call else { return Ok(()) };
        self.part(call.agg_filter(), at)?;
        self.exprs(call.agg_order(), at)?;
        if let Some(window) = call.over() {
            self.level.has_window = true;
            self.window(window, at)?;
        }
        Ok(())
    }

    fn constant(&mut self, constant: &nodes::A_Const) -> Term {
        let slot = self.slot(constant.location);
        match (constant.val(), slot) {
            (None, _) => Term::Null,
            (Some(ConstValue::String(value)), Some((slot, _))) if self.is_read_as(slot, value) => {
                Term::Const(Const::literal(slot))
            }
            _ => Term::Other,
        }
    }

    fn cast(&mut self, cast: &'a nodes::TypeCast, at: At<'_, 'a>) -> Result<Term, Error> {
        let value = self.expr(cast.arg(), at)?;
        let Some(target) = cast.type_name().and_then(consts::named_type) else {
            return Ok(Term::Other);
        };
        Ok(match value {
            Term::Const(value) => value.cast(target).map_or(Term::Other, Term::Const),
            Term::Array(values) if target == consts::Type::UuidArray => {
                let cast = |value: Const| value.cast(consts::Type::Uuid);
                values.into_iter().map(cast).collect::<Option<_>>().map_or(Term::Other, Term::Array)
            }
            // A uuid cast to uuid. Cast to anything else its operators are not those of uuid.
            Term::Node(node) if target == consts::Type::Uuid => Term::Node(node),
            Term::Null => Term::Null,
            _ => Term::Other,
        })
    }

    fn array(&mut self, array: &'a nodes::A_ArrayExpr, at: At<'_, 'a>) -> Result<Term, Error> {
        let mut values = Some(Vec::new());
        for element in array.elements().iter() {
            match (self.expr(element, at)?, &mut values) {
                (Term::Const(value), Some(values)) => values.push(value),
                (Term::Null, _) => {}
                _ => values = None,
            }
        }
        Ok(values.map_or(Term::Other, Term::Array))
    }

    /// A subquery in an expression. Its value is a column only where it has one row and one column.
    fn sublink(&mut self, link: &'a nodes::SubLink, at: At<'_, 'a>) -> Result<Term, Error> {
        self.operator(link.oper_name());
        self.expr(link.testexpr(), at)?;
        let columns = self.sublink_columns(link, at, false)?;
        match (link.sub_link_type, columns.list.as_slice()) {
            (SubLinkType::EXPR_SUBLINK, [column]) if !columns.is_open => {
                Ok(column.node.map_or(Term::Other, Term::Node))
            }
            _ => Ok(Term::Other),
        }
    }

    /// Walks the subquery of `link`; its output columns. With `is_filter`, rows that are not equal to what
    /// `at.place` says of those columns do not matter.
    pub(super) fn sublink_columns(
        &mut self,
        link: &'a nodes::SubLink,
        at: At<'_, 'a>,
        is_filter: bool,
    ) -> Result<Columns<'a>, Error> {
        let selected = self.sublink_query(link, at)?;
        self.expose(&selected, at.place, is_filter)
    }

    /// Walks the subquery of `link`.
    pub(super) fn sublink_query(
        &mut self,
        link: &'a nodes::SubLink,
        at: At<'_, 'a>,
    ) -> Result<Selected<'a>, Error> {
        self.level.sublink_count += 1;
        let selected = self.query(link.subselect(), at)?;
        self.level.has_aggregate |= selected.has_outer_aggregate;
        self.level.has_outer_aggregate |= selected.has_outer_aggregate;
        Ok(selected)
    }

    fn call(&mut self, call: &'a nodes::FuncCall, at: At<'_, 'a>) -> Result<(), Error> {
        let name = qualified_name(call.funcname());
        match name {
            Some((_, "set_config")) if self.is_setting_seen(call) => {}
            Some((schema, name)) => self.function(schema, name),
            None => self.unsupported("a function of this name", ""),
        }
        let before = self.level;
        self.exprs(call.args(), at)?;
        for sort in call.agg_order() {
            self.expr(sort.into(), at)?;
        }
        self.expr(call.agg_filter(), at)?;
        let is_aggregate = call.agg_star
            || call.agg_distinct
            || call.agg_within_group
            || !call.agg_order().is_empty()
            || !matches!(call.agg_filter(), Node::None)
            || name.is_none_or(|(schema, name)| may_be_aggregate(schema, name));
        if is_aggregate {
            self.level.has_aggregate = true;
            self.level.has_outer_aggregate |= self.level.may_be_outer_since(&before);
        }
        if let Some(window) = call.over() {
            self.level.has_window = true;
            self.window(window, at)?;
        }
        Ok(())
    }

    pub(super) fn window(
        &mut self,
        window: &'a nodes::WindowDef,
        at: At<'_, 'a>,
    ) -> Result<(), Error> {
        self.exprs(window.partition_clause(), at)?;
        for sort in window.order_clause() {
            self.expr(sort.into(), at)?;
        }
        self.expr(window.start_offset(), at)?;
        self.expr(window.end_offset(), at)?;
        Ok(())
    }

    /// What calling a function means for the statement.
    pub(super) fn function(&mut self, schema: Option<&str>, name: &str) {
        let is_builtin = schema.is_none_or(is_catalog_name);
        let listed = functions::listed(name).filter(|_| is_builtin);
        match self.catalog.function(schema, name) {
            FunctionKind::BuiltinRead => {}
            FunctionKind::BuiltinWrite(_) if listed == Some(Listed::Setting) => {
                self.writes("function set_config");
                self.found.effect = Effect::Opaque;
                self.unsupported(
                    "set_config here",
                    "Use it alone in a SELECT without FROM, with a literal name, or use SET.",
                );
            }
            FunctionKind::BuiltinWrite(_) | FunctionKind::DeclaredSafe => {
                self.writes(format!("function {name}"));
            }
            FunctionKind::PerShard if listed == Some(Listed::Lock) => {
                self.is_per_shard(format!("function {name}"));
                // What is opaque is looked at for locks, too.
                if self.found.effect != Effect::Opaque {
                    self.found.effect = Effect::Pin(Pin::AdvisoryLock);
                }
            }
            FunctionKind::PerShard => self.is_per_shard(format!("function {name}")),
            FunctionKind::Unkeyed => {
                self.writes(format!("function {name}"));
                self.problem(ProblemKind::ReadsUnkeyed, format!("function {name}"), "");
            }
            FunctionKind::User => {
                self.writes(format!("function {name}"));
                self.found.effect = Effect::Opaque;
                self.problem(ProblemKind::ReadsUnkeyed, format!("function {name}"), DECLARE_SAFE);
            }
        }
    }

    /// What an operator means for the statement: those outside pg_catalog call user functions.
    pub(super) fn operator(&mut self, name: &'a NodeList) {
        if name.is_empty() {
            return;
        }
        let is_builtin = operator_name(name)
            .is_some_and(|name| OPERATORS.binary_search(&name).is_ok() || name == "!=");
        if !is_builtin {
            let name = qualified_name(name).map_or("", |(_, name)| name);
            self.writes(format!("operator {name}"));
            self.found.effect = Effect::Opaque;
            self.problem(ProblemKind::ReadsUnkeyed, format!("operator {name}"), DECLARE_SAFE);
        }
    }
}

/// The name at the end of `t.name`, unless `t` surely has such a column.
fn maybe_call<'n>(column: &'n nodes::ColumnRef, scope: Option<&Scope<'_, '_>>) -> Option<&'n str> {
    let fields = column.fields();
    let part = |index: usize| fields.get(index).and_then(Node::as_str);
    let last = fields.len().checked_sub(1).filter(|last| *last > 0)?;
    let name = part(last)?;
    let item = match last {
        1 => scope?.item(None, part(0)?),
        2 => scope?.item(Some(part(0)?), part(1)?),
        _ => None,
    };
    (!item.is_some_and(|item| item.columns.has(name))).then_some(name)
}

/// Whether one of these stands for several values: `t.*`, `(f(x)).*`. What follows it is then not where it
/// seems to be.
pub(super) fn has_star(list: &NodeList) -> bool {
    let is_star = |list: &NodeList| list.iter().any(|part| matches!(part, Node::A_Star(_)));
    list.iter().any(|value| match value {
        Node::ColumnRef(column) => is_star(column.fields()),
        Node::A_Indirection(part) => is_star(part.indirection()),
        _ => false,
    })
}

/// Whether a function may be an aggregate: of a user function nobody knows.
fn may_be_aggregate(schema: Option<&str>, name: &str) -> bool {
    let listed = functions::listed(name).filter(|_| schema.is_none_or(is_catalog_name));
    matches!(listed, None | Some(Listed::Aggregate | Listed::Unkeyed))
}

/// Whether a column is certainly one of the level itself, not of one outside.
fn is_own_column(column: &nodes::ColumnRef, scope: Option<&Scope<'_, '_>>) -> bool {
    let fields = column.fields();
    let part = |index: usize| fields.get(index).and_then(Node::as_str);
    let Some(items) = scope.map(|scope| scope.items) else { return false };
    match (fields.len(), part(0), part(1)) {
        (1, Some(name), _) => items.iter().any(|item| item.is_bare && item.columns.has(name)),
        (2, table, _) | (3, _, table) => items.iter().any(|item| item.name == table),
        _ => false,
    }
}

/// What a column reference means.
fn column_node(column: &nodes::ColumnRef, scope: Option<&Scope<'_, '_>>) -> Option<NodeId> {
    let fields = column.fields();
    let part = |index: usize| fields.get(index).and_then(Node::as_str);
    let scope = scope?;
    match fields.len() {
        1 => scope.bare(part(0)?),
        2 => scope.qualified(None, part(0)?, part(1)?),
        3 => scope.qualified(Some(part(0)?), part(1)?, part(2)?),
        _ => None,
    }
}
