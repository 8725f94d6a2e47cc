//! Conditions: what a WHERE or ON that is true says of keys.
//!
//! Only top-level ANDs say something for sure; an OR says what all its arms say. Everything is also
//! walked as an expression, once.

use pg_raw_parse::Node;
use pg_raw_parse::nodes::{self, A_Expr_Kind, BoolExprType, SubLinkType};

use super::Walk;
use super::consts::Const;
use super::expr::{At, Term, has_star, operator_name};
use super::facts::{Fact, any_of};
use crate::sql::{Error, KeySource};

impl<'a> Walk<'a> {
    /// Walks the condition of `at.place` and notes its facts there.
    pub(super) fn condition(&mut self, node: Node<'a>, at: At<'_, 'a>) -> Result<(), Error> {
        let facts = self.facts_of(node, at, true)?;
        self.facts.add(at.place, facts);
        Ok(())
    }

    /// What is true where `node` is. `is_top`: it holds at `at.place`, not just in an arm of an OR.
    fn facts_of(
        &mut self,
        node: Node<'a>,
        at: At<'_, 'a>,
        is_top: bool,
    ) -> Result<Vec<Fact>, Error> {
        self.deeper(1, |walk| match node {
            Node::BoolExpr(all) if all.boolop == BoolExprType::AND_EXPR => {
                let mut facts = Vec::new();
                for arg in all.args().iter() {
                    facts.extend(walk.facts_of(arg, at, is_top)?);
                }
                Ok(facts)
            }
            Node::BoolExpr(any) if any.boolop == BoolExprType::OR_EXPR => {
                let arms = any.args().iter().map(|arg| walk.facts_of(arg, at, false));
                Ok(any_of(&arms.collect::<Result<Vec<_>, _>>()?))
            }
            Node::A_Expr(operation) if operator_name(operation.name()) == Some("=") => {
                walk.operator(operation.name());
                match operation.kind {
                    A_Expr_Kind::AEXPR_OP => walk.equality(operation, at),
                    A_Expr_Kind::AEXPR_OP_ANY => walk.equality_any(operation, at),
                    A_Expr_Kind::AEXPR_IN => walk.equality_in(operation, at),
                    _ => walk.no_facts(node, at),
                }
            }
            Node::SubLink(link) if is_top => walk.subquery_fact(link, at),
            _ => walk.no_facts(node, at),
        })
    }

    fn no_facts(&mut self, node: Node<'a>, at: At<'_, 'a>) -> Result<Vec<Fact>, Error> {
        self.expr(node, at)?;
        Ok(Vec::new())
    }

    /// `a = b`, `(a, b) = (c, d)`.
    fn equality(
        &mut self,
        operation: &'a nodes::A_Expr,
        at: At<'_, 'a>,
    ) -> Result<Vec<Fact>, Error> {
        let pair = (operation.lexpr(), operation.rexpr());
        if let (Node::RowExpr(left), Node::RowExpr(right)) = pair
            && left.args().len() == right.args().len()
            && !has_star(left.args())
            && !has_star(right.args())
        {
            let mut facts = Vec::new();
            for (left, right) in left.args().iter().zip(right.args().iter()) {
                let terms = (self.expr(left, at)?, self.expr(right, at)?);
                facts.extend(self.fact(terms.0, terms.1));
            }
            return Ok(facts);
        }
        let terms = (self.expr(pair.0, at)?, self.expr(pair.1, at)?);
        Ok(self.fact(terms.0, terms.1).into_iter().collect())
    }

    fn fact(&self, left: Term, right: Term) -> Option<Fact> {
        match (left, right) {
            (Term::Node(a), Term::Node(b)) => Some(Fact::Same(a, b)),
            (Term::Node(node), Term::Const(value)) | (Term::Const(value), Term::Node(node)) => {
                Some(Fact::Is(node, vec![self.key(value)?]))
            }
            _ => None,
        }
    }

    /// Where the key stands if `value` is compared with a key column.
    pub(super) fn key(&self, value: Const) -> Option<KeySource> {
        self.keeps_meaning(value).then(|| value.key()).flatten()
    }

    /// Comparing a uuid with text is an error, unless there is an operator that nobody knows.
    fn keeps_meaning(&self, value: Const) -> bool {
        !value.is_text() || !self.catalog.has_foreign_uuid_equality()
    }

    /// `a = ANY (array)`.
    fn equality_any(
        &mut self,
        operation: &'a nodes::A_Expr,
        at: At<'_, 'a>,
    ) -> Result<Vec<Fact>, Error> {
        let left = self.expr(operation.lexpr(), at)?;
        let right = self.expr(operation.rexpr(), at)?;
        let Term::Node(node) = left else { return Ok(Vec::new()) };
        let keys = match right {
            Term::Const(array) if self.keeps_meaning(array) => array.keys().map(|keys| vec![keys]),
            // Elements that nobody calls uuid make an array of text.
            Term::Array(values) if values.iter().all(|value| value.is_uuid()) => {
                values.into_iter().map(|value| self.key(value)).collect()
            }
            _ => None,
        };
        Ok(keys
            .filter(|keys| !keys.is_empty())
            .map(|keys| Fact::Is(node, keys))
            .into_iter()
            .collect())
    }

    /// `a IN (b, c)`, `(a, b) IN ((c, d), (e, f))`. A NULL in the list equals nothing.
    fn equality_in(
        &mut self,
        operation: &'a nodes::A_Expr,
        at: At<'_, 'a>,
    ) -> Result<Vec<Fact>, Error> {
        let mut lefts = Vec::new();
        let mut is_certain = true;
        match operation.lexpr() {
            Node::RowExpr(row) => {
                is_certain &= !has_star(row.args());
                for part in row.args().iter() {
                    lefts.push(self.expr(part, at)?);
                }
            }
            part => lefts.push(self.expr(part, at)?),
        }
        let is_row = matches!(operation.lexpr(), Node::RowExpr(_));
        let mut columns: Vec<Option<Vec<KeySource>>> =
            lefts.iter().map(|_| Some(Vec::new())).collect();
        let Node::NodeList(list) = operation.rexpr() else {
            return self.no_facts(operation.rexpr(), at);
        };
        for element in list.iter() {
            let mut terms = Vec::new();
            match element {
                Node::RowExpr(row) if is_row => {
                    is_certain &= !has_star(row.args());
                    for part in row.args().iter() {
                        terms.push(self.expr(part, at)?);
                    }
                }
                part => terms.push(self.expr(part, at)?),
            }
            let is_same_width = is_certain && terms.len() == columns.len();
            let mut terms = terms.into_iter();
            for column in &mut columns {
                match terms.next() {
                    Some(Term::Null) if is_same_width => {}
                    Some(Term::Const(value)) if is_same_width => {
                        match (self.key(value), &mut *column) {
                            (Some(key), Some(keys)) => keys.push(key),
                            _ => *column = None,
                        }
                    }
                    _ => *column = None,
                }
            }
        }
        let facts = lefts.into_iter().zip(columns).filter_map(|(left, keys)| match (left, keys?) {
            (Term::Node(node), keys) if !keys.is_empty() => Some(Fact::Is(node, keys)),
            _ => None,
        });
        Ok(facts.collect())
    }

    /// `EXISTS (...)`, `a IN (SELECT ...)`, `a = ANY (SELECT ...)`, which must be true.
    fn subquery_fact(
        &mut self,
        link: &'a nodes::SubLink,
        at: At<'_, 'a>,
    ) -> Result<Vec<Fact>, Error> {
        let is_equality =
            link.oper_name().is_empty() || operator_name(link.oper_name()) == Some("=");
        match link.sub_link_type {
            SubLinkType::EXISTS_SUBLINK => {
                let selected = self.sublink_query(link, at)?;
                if let Some(level) = selected.level_that_holds() {
                    self.facts.include(at.place, level);
                }
                Ok(Vec::new())
            }
            SubLinkType::ANY_SUBLINK if is_equality => {
                let mut tests = Vec::new();
                let mut is_certain = true;
                match link.testexpr() {
                    Node::RowExpr(row) => {
                        is_certain = !has_star(row.args());
                        for part in row.args().iter() {
                            tests.push(self.expr(part, at)?);
                        }
                    }
                    test => tests.push(self.expr(test, at)?),
                }
                let columns = self.sublink_columns(link, at, true)?;
                if !is_certain || columns.is_open || columns.list.len() != tests.len() {
                    return Ok(Vec::new());
                }
                let facts = tests
                    .into_iter()
                    .zip(columns.list)
                    .filter_map(|(test, column)| self.fact(test, Term::Node(column.node?)));
                Ok(facts.collect())
            }
            _ => self.no_facts(Node::SubLink(link), at),
        }
    }
}
