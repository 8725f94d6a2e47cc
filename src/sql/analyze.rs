//! Postgres's grammar to [`super::Analysis`]; with the files of `analyze/` the one place that names the
//! SQL parser.
//!
//! The walk proves things; what it can't prove stays unsaid, and what it does not know becomes a
//! [`Problem`]. `query` walks SELECT and the statements that write rows, `expr` their expressions,
//! `scope` resolves columns, `facts` solves which hospital keys hold where, `consts` says what may
//! be a key's value, `session` handles all else. Called by `Analyzer` on a miss of its cache.

mod conditions;
mod consts;
mod copy;
mod dml;
mod expr;
mod facts;
mod from;
mod position;
mod query;
mod scope;
mod session;
mod temporary;
mod utility;

use std::collections::BTreeSet;

use pg_raw_parse::Node;

use super::lexer::{Lexed, SlotKind};
use super::{
    Access, Analysis, Catalog, Context, CopyIn, Effect, Error, Execute, KeySource, Problem,
    ProblemKind, ShardedUse, Statement, Temporary, catalog,
};
use facts::{Facts, NodeId};

/// How deep expressions and queries may nest: about 1 MB of stack where nothing is optimized, of the
/// 2 MiB that a worker thread has.
const DEPTH_MAX: u32 = 500;
/// What one level of query costs of [`DEPTH_MAX`], its frames being larger than an expression's.
const QUERY_DEPTH: u32 = 10;
/// Relations that one statement may name.
const RELATIONS_MAX: usize = 1000;

/// Comments in a row: the parser's library calls itself for each, and a stack that overflows ends the
/// process. These take under 1 MB where nothing is optimized.
const COMMENTS_MAX: usize = 10_000;

/// Where the lexer can't say how many stand in a row, all that may be one counts.
fn has_too_many_comments(lexed: &Lexed<'_>) -> bool {
    let written = lexed.text.matches("/*").count() + lexed.text.matches("--").count();
    written > COMMENTS_MAX && lexed.comments_in_a_row().is_none_or(|row| row > COMMENTS_MAX)
}

/// Steps of Postgres's scanner over operators and comments: some tenths of a second.
const SCAN_STEPS_MAX: usize = 1 << 26;

/// Postgres's scanner looks over a run of operator characters anew from each `/*` in it, which is
/// the square of its length: seconds for some kilobytes of `/**//**/`, on a thread that serves
/// others. Counts within literals too: no such run is text.
fn is_slow_to_scan(text: &str) -> bool {
    if text.matches("/*").count() * text.len() <= SCAN_STEPS_MAX {
        return false;
    }
    let is_operator = |b: &u8| b"~!@#^&|`?+-*/%<>=".contains(b);
    let steps = |run: &[u8]| run.windows(2).filter(|pair| pair == b"/*").count() * run.len();
    let runs = text.as_bytes().split(|b| !is_operator(b));
    runs.filter(|run| run.len() > 2).map(steps).sum::<usize>() > SCAN_STEPS_MAX
}

/// Analyzes `lexed`; also tells which slots' values the analysis depends on, in rising order.
pub(super) fn analyze(
    lexed: &Lexed<'_>,
    context: &Context<'_>,
) -> Result<(Analysis, Vec<u16>), Error> {
    if is_slow_to_scan(lexed.text) || has_too_many_comments(lexed) {
        return Err(Error::TooComplex);
    }
    let tree = match pg_raw_parse::parse(lexed.text) {
        Ok(tree) => tree,
        Err(error) => return Err(position::syntax_error(lexed.text, &error)),
    };
    let mut analyzer = Walk::new(lexed, context);
    let mut analysis = Analysis::default();
    for raw in tree.iter() {
        analysis.statements.push(analyzer.statement(raw.stmt())?);
    }
    analysis.refuse_mixed_control();
    Ok((analysis, analyzer.slots_looked_at()))
}

impl Analysis {
    /// A Query of several statements is one implicit transaction, which transaction control would cut.
    fn refuse_mixed_control(&mut self) {
        if self.statements.len() < 2 {
            return;
        }
        for statement in &mut self.statements {
            if matches!(statement.effect, Effect::Transaction(_)) {
                statement.problems.push(Problem {
                    kind: ProblemKind::Unsupported,
                    subject: format!("{} in a query of several statements", statement.command),
                    hint: "Send it as a query of its own.",
                });
            }
        }
    }
}

/// One occurrence of a sharded relation, whose keys are solved for once all facts are known.
struct Use {
    relation: String,
    column: String,
    keys: UseKeys,
}

enum UseKeys {
    /// Whatever the key column is equal to.
    Node(NodeId),
    /// Rows of an INSERT.
    Known(Vec<KeySource>),
}

/// The walk over the statements of one text. `'a` is the life of the parse tree and the catalog.
struct Walk<'a> {
    lexed: &'a Lexed<'a>,
    catalog: &'a Catalog,
    search_path: Vec<String>,
    /// `=` means what it should: else nothing is a key.
    is_equality_safe: bool,
    param_types: &'a [u32],
    depth: u32,
    /// By slot: some expression has this literal as a value, so the grammar did not consume it.
    is_value: Vec<bool>,
    /// By slot: the walk read its value.
    is_read: Vec<bool>,
    // Of the statement in hand.
    facts: Facts,
    uses: Vec<Use>,
    ctes: Vec<query::Cte<'a>>,
    found: Found,
    /// Of the query level in hand.
    level: Level,
}

/// What a statement turned out to do.
#[derive(Default)]
struct Found {
    write: Option<String>,
    per_shard: Option<String>,
    problems: Vec<Problem>,
    effect: Effect,
    unknown_names: bool,
    executes: Option<Box<Execute>>,
    copy_in: Option<Box<CopyIn>>,
    temporary: Option<Box<Temporary>>,
    relation_count: usize,
    /// Names in it are looked up.
    is_query: bool,
    /// It does not run now, or perhaps not at all: EXPLAIN, DECLARE CURSOR.
    is_deferred: bool,
    /// Where calls of set_config stand whose effect is known.
    seen_settings: Vec<i32>,
}

/// What the expressions of a query level have in them.
#[derive(Default, Clone, Copy)]
struct Level {
    has_aggregate: bool,
    /// One of them may belong to a level outside, which has all the columns it names.
    has_outer_aggregate: bool,
    has_window: bool,
    column_count: u32,
    /// Of those, certainly of this level.
    own_column_count: u32,
    sublink_count: u32,
}

impl Level {
    /// Whether an aggregate over what was walked since `before` may belong to a level outside: it
    /// belongs to the innermost level that it names a column of, and to its own if it names none.
    fn may_be_outer_since(&self, before: &Self) -> bool {
        let has_columns = self.column_count > before.column_count;
        let has_own = self.own_column_count > before.own_column_count;
        (has_columns && !has_own) || self.sublink_count > before.sublink_count
    }
}

impl<'a> Walk<'a> {
    fn new(lexed: &'a Lexed<'a>, context: &'a Context<'a>) -> Self {
        let catalog: &'a Catalog = context.catalog;
        let path = catalog::parse_search_path(context.search_path, context.role);
        let mut search_path = path.clone().unwrap_or_default();
        if !search_path.iter().any(|schema| schema == "pg_catalog") {
            search_path.insert(0, "pg_catalog".into());
        }
        let schemas: Vec<&str> = search_path.iter().map(String::as_str).collect();
        let is_equality_safe = path.is_some() && catalog.is_search_path_safe(&schemas);
        let slots = lexed.slot_count();
        Self {
            lexed,
            catalog,
            search_path,
            is_equality_safe,
            param_types: context.param_types,
            depth: 0,
            is_value: vec![false; slots],
            is_read: vec![false; slots],
            facts: Facts::default(),
            uses: Vec::new(),
            ctes: Vec::new(),
            found: Found::default(),
            level: Level::default(),
        }
    }

    /// One statement, from the parser's node to the facts.
    fn statement(&mut self, node: Node<'a>) -> Result<Statement, Error> {
        self.facts = Facts::default();
        self.uses.clear();
        self.ctes.clear();
        self.found = Found::default();
        self.level = Level::default();
        let command = self.top(node)?;
        let mut sharded = Vec::with_capacity(self.uses.len());
        for used in std::mem::take(&mut self.uses) {
            let mut keys = match used.keys {
                UseKeys::Node(node) => self.facts.solve(node)?,
                UseKeys::Known(keys) => {
                    keys.into_iter().collect::<BTreeSet<_>>().into_iter().collect()
                }
            };
            if !self.is_equality_safe {
                keys.clear();
            }
            sharded.push(ShardedUse { relation: used.relation, column: used.column, keys });
        }
        if !self.is_equality_safe && self.found.is_query {
            self.unsupported(
                "this search_path",
                "Leave pg_catalog out of search_path, or put it first.",
            );
        }
        // What one call may have set unseen would be taken for what the others set.
        let is_settings = matches!(self.found.effect, Effect::Set(_));
        if !self.found.seen_settings.is_empty() && !is_settings {
            self.unsupported("set_config beside other effects", "Use a SELECT of its own for it.");
        }
        let found = std::mem::take(&mut self.found);
        Ok(Statement {
            command,
            access: found.write.map_or(Access::Read, Access::Write),
            sharded,
            per_shard: found.per_shard,
            problems: found.problems,
            effect: found.effect,
            unknown_names: found.unknown_names,
            executes: found.executes,
            copy_in: found.copy_in,
            temporary: found.temporary,
        })
    }

    /// Slots whose values the analysis depends on: those it read, and those that the grammar consumed
    /// (a type's length, an interval's precision), because then they may be anything.
    fn slots_looked_at(&self) -> Vec<u16> {
        let slots = self.is_value.iter().zip(&self.is_read).enumerate();
        slots
            .filter(|(_, (is_value, is_read))| !**is_value || **is_read)
            .filter_map(|(slot, _)| u16::try_from(slot).ok())
            .filter(|slot| self.lexed.is_left_out(*slot))
            .collect()
    }

    /// The slot of a constant at `location`, which thereby is a value and not grammar.
    fn slot(&mut self, location: i32) -> Option<(u16, SlotKind)> {
        let offset = usize::try_from(location).ok()?;
        if let Some((slot, kind)) = self.lexed.slot_at(offset) {
            self.mark_value(slot);
            return Some((slot, kind));
        }
        let slot = self.lexed.slot_after_sign(offset)?;
        self.mark_value(slot);
        None
    }

    /// Whether the lexer reads `slot` as the grammar does. Strings that a comment stands between are one to
    /// the grammar alone.
    fn is_read_as(&self, slot: u16, value: &str) -> bool {
        let is_string = !matches!(
            self.lexed.kind(slot),
            None | Some(SlotKind::Integer | SlotKind::Decimal | SlotKind::Opaque)
        );
        is_string && self.lexed.literal(slot).is_some_and(|read| read == value)
    }

    fn mark_value(&mut self, slot: u16) {
        if let Some(is_value) = self.is_value.get_mut(usize::from(slot)) {
            *is_value = true;
        }
    }

    /// Notes that the analysis depends on the value of the constant at `location`.
    fn reads_value(&mut self, location: i32) {
        if let Some((slot, _)) = self.slot(location)
            && let Some(is_read) = self.is_read.get_mut(usize::from(slot))
        {
            *is_read = true;
        }
    }

    /// Runs `walk` `cost` levels deeper.
    fn deeper<T>(
        &mut self,
        cost: u32,
        walk: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.depth + cost > DEPTH_MAX {
            return Err(Error::TooComplex);
        }
        self.depth += cost;
        let result = walk(self);
        self.depth -= cost;
        result
    }

    fn writes(&mut self, why: impl Into<String>) {
        self.found.write.get_or_insert_with(|| why.into());
    }

    fn is_per_shard(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.writes(what.clone());
        self.found.per_shard.get_or_insert(what);
    }

    fn problem(&mut self, kind: ProblemKind, subject: impl Into<String>, hint: &'static str) {
        let problem = Problem { kind, subject: subject.into(), hint };
        if !self.found.problems.contains(&problem) {
            self.found.problems.push(problem);
        }
    }

    fn unsupported(&mut self, subject: impl Into<String>, hint: &'static str) {
        self.problem(ProblemKind::Unsupported, subject, hint);
    }
}

#[cfg(test)]
mod tests;
