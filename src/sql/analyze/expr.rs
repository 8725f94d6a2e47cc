//! Expressions: which functions they call, which subqueries they hold, and whether they are a key.
//!
//! Every node that Postgres's grammar makes of an expression is named here; any other is refused. The
//! walk also marks each literal that is a value, which is what lets the cache leave it out.

use pg_raw_parse::list::NodeList;
use pg_raw_parse::nodes::{self, SubLinkType};
use pg_raw_parse::{ConstValue, Node};

use super::consts::{self, Const};
use super::facts::{NodeId, PlaceId};
use super::query::Env;
use super::scope::{Columns, Scope};
use super::{SlotKind, Walk};
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
const OPERATORS: &[&str] = &[
    "!!", "!~", "!~*", "!~~", "!~~*", "#", "##", "#-", "#>", "#>>", "%", "&", "&&", "&<", "&<|",
    "&>", "*", "*<", "*<=", "*<>", "*=", "*>", "*>=", "+", "-", "->", "->>", "-|-", "/", "<",
    "<->", "<<", "<<=", "<<|", "<=", "<>", "<@", "<^", "=", ">", ">=", ">>", ">>=", ">^", "?",
    "?#", "?&", "?-", "?-|", "?|", "?||", "@", "@-@", "@>", "@?", "@@", "@@@", "^", "^@", "|",
    "|&>", "|/", "|>>", "||", "||/", "~", "~*", "~<=~", "~<~", "~=", "~>=~", "~>~", "~~", "~~*",
];

/// Hint for what is refused because nobody vouched for it.
const DECLARE_SAFE: &str =
    "If it reads no table and changes nothing, name it in safe_functions in the configuration.";

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
        match node {
            Node::None => return Ok(Term::Other),
            Node::A_Const(constant) => return Ok(self.constant(constant)),
            Node::ColumnRef(column) => {
                return Ok(column_node(column, at.scope).map_or(Term::Other, Term::Node));
            }
            Node::ParamRef(param) => {
                return Ok(match Const::param(param.number, self.param_types) {
                    Some(param) => Term::Const(param),
                    None => Term::Other,
                });
            }
            _ => {}
        }
        self.deeper(1, |walk| walk.compound(node, at))
    }

    fn compound(&mut self, node: Node<'a>, at: At<'_, 'a>) -> Result<Term, Error> {
        match node {
            Node::TypeCast(cast) => return self.cast(cast, at),
            Node::A_ArrayExpr(array) => return self.array(array, at),
            Node::SubLink(link) => return self.sublink(link, at),
            Node::FuncCall(call) => self.call(call, at)?,
            Node::A_Expr(operation) => {
                self.operator(operation.name());
                self.expr(operation.lexpr(), at)?;
                self.expr(operation.rexpr(), at)?;
            }
            Node::BoolExpr(all) => self.exprs(all.args(), at)?,
            Node::NodeList(list) => self.exprs(list, at)?,
            Node::RowExpr(row) => self.exprs(row.args(), at)?,
            Node::NullTest(test) => drop(self.expr(test.arg(), at)?),
            Node::BooleanTest(test) => drop(self.expr(test.arg(), at)?),
            Node::CoalesceExpr(all) => self.exprs(all.args(), at)?,
            Node::MinMaxExpr(all) => self.exprs(all.args(), at)?,
            Node::CaseExpr(case) => {
                self.expr(case.arg(), at)?;
                self.exprs(case.args(), at)?;
                self.expr(case.defresult(), at)?;
            }
            Node::CaseWhen(when) => {
                self.expr(when.expr(), at)?;
                self.expr(when.result(), at)?;
            }
            Node::A_Indirection(part) => {
                self.expr(part.arg(), at)?;
                self.exprs(part.indirection(), at)?;
            }
            Node::A_Indices(index) => {
                self.expr(index.lidx(), at)?;
                self.expr(index.uidx(), at)?;
            }
            Node::CollateClause(collate) => drop(self.expr(collate.arg(), at)?),
            Node::NamedArgExpr(arg) => drop(self.expr(arg.arg(), at)?),
            Node::ResTarget(target) => {
                self.exprs(target.indirection(), at)?;
                self.expr(target.val(), at)?;
            }
            Node::MultiAssignRef(part) => drop(self.expr(part.source(), at)?),
            Node::SortBy(sort) => {
                self.operator(sort.use_op());
                self.expr(sort.node(), at)?;
            }
            Node::GroupingSet(set) => self.exprs(set.content(), at)?,
            Node::GroupingFunc(grouping) => {
                self.level.has_aggregate = true;
                self.exprs(grouping.args(), at)?;
            }
            Node::WindowDef(window) => self.window(window, at)?,
            Node::XmlExpr(xml) => {
                self.exprs(xml.named_args(), at)?;
                self.exprs(xml.args(), at)?;
            }
            Node::XmlSerialize(xml) => drop(self.expr(xml.expr(), at)?),
            // A field's name, `*`, DEFAULT, CURRENT_DATE and the like, WHERE CURRENT OF.
            Node::String(_)
            | Node::A_Star(_)
            | Node::SetToDefault(_)
            | Node::SQLValueFunction(_)
            | Node::CurrentOfExpr(_) => {}
            other => return self.json(other, at),
        }
        Ok(Term::Other)
    }

    /// SQL/JSON. Servers before 16 take the names for functions, so users may have such functions.
    fn json(&mut self, node: Node<'a>, at: At<'_, 'a>) -> Result<Term, Error> {
        match node {
            Node::JsonValueExpr(value) => drop(self.expr(value.raw_expr(), at)?),
            Node::JsonIsPredicate(test) => drop(self.expr(test.expr(), at)?),
            Node::JsonKeyValue(pair) => {
                self.expr(pair.key(), at)?;
                self.expr(pair.value().into(), at)?;
            }
            Node::JsonObjectConstructor(object) => {
                self.function(None, "json_object");
                for pair in object.exprs() {
                    self.expr(pair.into(), at)?;
                }
            }
            Node::JsonArrayConstructor(array) => {
                self.function(None, "json_array");
                for value in array.exprs() {
                    self.expr(value.into(), at)?;
                }
            }
            Node::JsonParseExpr(parse) => {
                self.function(None, "json");
                self.expr(parse.expr().into(), at)?;
            }
            Node::JsonScalarExpr(scalar) => {
                self.function(None, "json_scalar");
                self.expr(scalar.expr(), at)?;
            }
            Node::JsonSerializeExpr(text) => {
                self.function(None, "json_serialize");
                self.expr(text.expr().into(), at)?;
            }
            Node::JsonObjectAgg(object) => {
                self.function(None, "json_objectagg");
                self.expr(object.arg().into(), at)?;
                self.json_aggregate(object.constructor(), at)?;
            }
            Node::JsonArrayAgg(array) => {
                self.function(None, "json_arrayagg");
                self.expr(array.arg().into(), at)?;
                self.json_aggregate(array.constructor(), at)?;
            }
            _ => self.unsupported("an expression of this kind", "Write it in another way."),
        }
        Ok(Term::Other)
    }

    fn json_aggregate(
        &mut self,
        call: Option<&'a nodes::JsonAggConstructor>,
        at: At<'_, 'a>,
    ) -> Result<(), Error> {
        self.level.has_aggregate = true;
        let Some(call) = call else { return Ok(()) };
        self.expr(call.agg_filter(), at)?;
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
            (Some(ConstValue::String(_)), Some((slot, kind))) => match kind {
                SlotKind::Plain | SlotKind::Pieced | SlotKind::Escape | SlotKind::Dollar => {
                    Term::Const(Const::literal(slot))
                }
                SlotKind::Integer | SlotKind::Decimal | SlotKind::Opaque => Term::Other,
            },
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
        let selected = self.query(link.subselect(), at)?;
        // An aggregate in a subquery may belong to the level outside.
        self.level.has_aggregate |= selected.has_aggregate;
        self.expose(&selected, at.place, is_filter)
    }

    fn call(&mut self, call: &'a nodes::FuncCall, at: At<'_, 'a>) -> Result<(), Error> {
        match qualified_name(call.funcname()) {
            Some((_, "set_config")) if self.is_setting_seen(call) => {}
            Some((schema, name)) => self.function(schema, name),
            None => self.unsupported("a function of this name", ""),
        }
        self.level.has_aggregate |= call.agg_star
            || call.agg_distinct
            || call.agg_within_group
            || !call.agg_order().is_empty()
            || !matches!(call.agg_filter(), Node::None);
        self.exprs(call.args(), at)?;
        for sort in call.agg_order() {
            self.expr(sort.into(), at)?;
        }
        self.expr(call.agg_filter(), at)?;
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
                self.found.effect = Effect::Pin(Pin::AdvisoryLock);
                self.unsupported(
                    format!("function {name}"),
                    "Use pg_advisory_xact_lock, which ends with its transaction.",
                );
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
        // Of a user function nobody knows.
        let is_scalar = matches!(
            listed,
            Some(Listed::Read | Listed::Write | Listed::Shard | Listed::Lock | Listed::Setting)
        );
        self.level.has_aggregate |= !is_scalar;
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
