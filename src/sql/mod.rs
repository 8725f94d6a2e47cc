//! What a statement is: which sharded relations it reads, where their hospital keys stand,
//! whether it may write, what it does to the session.
//!
//! Owns the vocabulary ([`Analysis`]), the cache and the door to Postgres's grammar
//! (`analyze.rs`, the one file that names the parser). Knows no parameter value, no map and no
//! session: literals are slots and parameters are numbers, so an analysis can be cached and
//! `route::decide` fills in the values. Called by `session` and the console.

mod analyze;
mod cache;
pub mod catalog;
pub mod execute;
pub mod functions;
pub mod lexer;
mod schema;

use std::sync::Arc;

use crate::wire::copy;

pub use catalog::{
    Catalog, Declared, FunctionFact, FunctionKind, Relation, RelationFact, RelationKind, ShardFacts,
};
pub use execute::{Arg, Execute, Prepare};
pub use schema::schema_facts;

/// All statements of one text, in order. Cached and shared.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Analysis {
    /// Empty for an empty query string.
    pub statements: Vec<Statement>,
}

/// Facts of one statement.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// What it is, as its command tag begins: `SELECT`, `INSERT`, `BEGIN`, ... (for logs and errors).
    pub command: &'static str,
    /// Whether it is proven read-only.
    pub access: Access,
    /// Every occurrence of a sharded relation, in every query level.
    pub sharded: Vec<ShardedUse>,
    /// Has an effect or an answer of its own on each shard (sequences, ...): needs a hospital,
    /// unless the map has one shard. Names the thing.
    pub per_shard: Option<String>,
    /// Why it can't be routed; the first of them is the answer.
    pub problems: Vec<Problem>,
    /// What it does to the session.
    pub effect: Effect,
    /// It names a relation that the catalog has not heard of: reading the catalog again may help.
    pub unknown_names: bool,
    /// It runs a prepared statement, named in the text: what it does, [`Statement::executing`] says.
    pub executes: Option<Box<Execute>>,
    /// It is a COPY FROM STDIN into a sharded relation: its rows are to be looked at.
    pub copy_in: Option<Box<CopyIn>>,
    /// It makes, fills or drops temporary tables.
    pub temporary: Option<Box<Temporary>>,
}

/// What a statement does to the session's temporary tables, whose names the catalog does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Temporary {
    /// CREATE TEMP TABLE, SELECT INTO TEMP.
    Makes {
        /// Its name, in pg_temp.
        name: String,
        /// ON COMMIT DROP.
        ends_with_transaction: bool,
    },
    /// DROP TABLE.
    Drops(Vec<String>),
    /// DISCARD TEMP.
    DropsAll,
    /// COPY FROM STDIN into one, or into a table that is not known.
    Fills,
}

/// COPY FROM STDIN into a sharded relation, whose keys stand in the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyIn {
    /// Its name as in [`ShardedUse::relation`].
    pub relation: String,
    /// How to find each row's key; `None`: nobody can, and so it runs only where nothing is guarded.
    pub check: Option<CopyCheck>,
}

/// How the rows of a COPY show their hospital.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyCheck {
    /// How rows are written.
    pub format: copy::Format,
    /// The first line is no row.
    pub is_header: bool,
    /// Index of the key column.
    pub column: usize,
    /// Columns of each row.
    pub count: usize,
}

/// May it go to a replica?
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Provably read-only.
    Read,
    /// May write, or is not proven not to; says why, e.g. `INSERT`, `FOR UPDATE`, `function nextval`.
    Write(String),
}

/// One occurrence of a sharded relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardedUse {
    /// Its name as in the catalog, without schema where that is `public`.
    pub relation: String,
    /// The key column.
    pub column: String,
    /// Where its keys stand. Empty: none was found. All that are not NULL must name one hospital.
    pub keys: Vec<KeySource>,
}

/// Where the value of a hospital key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeySource {
    /// Literal number `n` of the text (see [`lexer::Lexed::literal`]).
    Slot(u16),
    /// An array literal such as `'{a,b}'`.
    SlotArray(u16),
    /// Parameter `$n` (1-based), read as `kind`.
    Param(u16, ParamKind),
    /// Parameter `$n` (1-based), an array whose elements are read as `kind`.
    ParamArray(u16, ParamKind),
}

/// How the bytes of a parameter are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ParamKind {
    /// uuid: text in format 0, 16 bytes in format 1.
    Uuid,
    /// text or varchar: the string in both formats.
    Text,
}

/// Why a statement can't be routed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Decides SQLSTATE and who may do it all the same.
    pub kind: ProblemKind,
    /// What it is about, ready to be quoted to the client: names only, never a value.
    pub subject: String,
    /// What to do about it.
    pub hint: &'static str,
}

/// Kinds of [`Problem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemKind {
    /// PW004: a table without the key that the map does not declare. None on a map of one shard.
    Undeclared,
    /// PW004: a table that the catalog has not heard of. None where it is the session's temporary one.
    Unknown,
    /// 0A000: not classified, or not supported yet. Forwarded only on a map of one shard with
    /// guard `route`.
    Unsupported,
    /// 42501: reads data with no key (pg_stats, user functions, ...): allowed with guard `route`
    /// (then where the session's hospital says) or a `cross_hospital` login.
    ReadsUnkeyed,
    /// 0A000: would change one shard's copy of a reference table. None on a map of one shard.
    ReferenceWrite,
}

/// What a statement does to the session.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Effect {
    /// Nothing that outlives it.
    #[default]
    None,
    /// Transaction control.
    Transaction(Transaction),
    /// SET, or `SELECT set_config(...)` (then `from_function` and the statement also answers a row).
    Set(Vec<Setting>),
    /// RESET name, or SET name TO DEFAULT. Lower case.
    Reset(String),
    /// RESET ALL.
    ResetAll,
    /// SHOW name (lower case).
    Show(String),
    /// DEALLOCATE name, or all of them.
    Deallocate(Option<String>),
    /// SQL-level PREPARE.
    Prepare(Box<Prepare>),
    /// DISCARD.
    Discard(Discard),
    /// Leaves something on the server that can't be moved to another.
    Pin(Pin),
    /// May take away what keeps a session on its server (UNLISTEN, CLOSE).
    Unpin,
    /// DDL: the catalog must be read again.
    Ddl,
    /// May have changed settings unseen (DO, CALL, a function not declared safe): the server is
    /// reset before another client has it.
    Opaque,
}

/// One setting of SET or set_config.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// Lower case.
    pub name: String,
    /// Its value.
    pub value: SettingValue,
    /// SET LOCAL, or set_config(.., true).
    pub is_local: bool,
    /// It came from set_config, whose answer is the value.
    pub from_function: bool,
}

/// A setting's value as the statement has it.
#[derive(Debug, Clone, PartialEq)]
pub enum SettingValue {
    /// The literal text; lists joined by `, ` as Postgres does.
    Text(String),
    /// set_config whose value is a literal slot (text follows the slot, cached or not).
    Slot(u16),
    /// set_config whose value is parameter `$n`.
    Param(u16),
    /// set_config of something computed: unknown until the server has answered.
    Computed,
    /// SET LOCAL name TO DEFAULT.
    Default,
}

/// Transaction control statements.
#[derive(Debug, Clone, PartialEq)]
pub enum Transaction {
    /// BEGIN or START TRANSACTION with its modes.
    Begin(TransactionModes),
    /// COMMIT or END.
    Commit {
        /// AND CHAIN.
        chain: bool,
    },
    /// ROLLBACK or ABORT.
    Rollback {
        /// AND CHAIN.
        chain: bool,
    },
    /// SAVEPOINT name.
    Savepoint(String),
    /// RELEASE name.
    Release(String),
    /// ROLLBACK TO name.
    RollbackTo(String),
    /// SET TRANSACTION modes.
    SetTransaction(TransactionModes),
    /// SET CONSTRAINTS.
    SetConstraints,
}

/// Modes of BEGIN and SET TRANSACTION; `None` where not said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransactionModes {
    /// ISOLATION LEVEL.
    pub isolation: Option<Isolation>,
    /// READ ONLY (true) or READ WRITE (false).
    pub read_only: Option<bool>,
    /// DEFERRABLE.
    pub deferrable: Option<bool>,
}

/// Isolation levels, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isolation {
    /// READ UNCOMMITTED (Postgres treats it as READ COMMITTED).
    ReadUncommitted,
    /// READ COMMITTED.
    ReadCommitted,
    /// REPEATABLE READ.
    RepeatableRead,
    /// SERIALIZABLE.
    Serializable,
}

/// What DISCARD discards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// DISCARD ALL.
    All,
    /// DISCARD PLANS.
    Plans,
    /// DISCARD SEQUENCES.
    Sequences,
    /// DISCARD TEMP.
    Temp,
}

/// Things that stay on one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pin {
    /// LISTEN.
    Listen,
    /// CREATE TEMP, SELECT INTO TEMP.
    TempTable,
    /// Session-level advisory lock, taken or released.
    AdvisoryLock,
    /// DECLARE ... WITH HOLD.
    HoldCursor,
    /// LOAD.
    Load,
}

/// Why a text has no analysis. Never carries the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The grammar rejects it: 42601 with the parser's own words and position (1-based characters).
    #[error("{message}")]
    Syntax {
        /// The parser's message, as Postgres would say it.
        message: String,
        /// 1-based character position, where known.
        position: Option<u32>,
    },
    /// Nests deeper than the limit: 54001.
    #[error("statement is too complex")]
    TooComplex,
}

/// What besides the text decides the meaning of a statement; the rest of the cache key.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Tables and functions as the shards have them; its version is part of the key.
    pub catalog: &'a Arc<Catalog>,
    /// The session's search_path, as set (`"$user", public`).
    pub search_path: &'a str,
    /// The session's role, for `$user`.
    pub role: &'a str,
    /// OIDs declared by Parse; 0 or absent means undeclared.
    pub param_types: &'a [u32],
}

/// An analysis with the literals of this very text.
#[derive(Debug, Clone)]
pub struct Analyzed<'a> {
    /// Shared facts.
    pub analysis: Arc<Analysis>,
    /// The text's literals and hint.
    pub lexed: lexer::Lexed<'a>,
}

/// Text to facts, through a bounded cache. One per process, shared by all sessions.
pub struct Analyzer {
    cache: cache::Cache,
    text_bytes_max: usize,
}

impl Analyzer {
    /// An analyzer whose cache holds `cache_bytes_max` bytes and no text over `text_bytes_max`.
    pub fn new(cache_bytes_max: usize, text_bytes_max: usize) -> Self {
        Self { cache: cache::Cache::new(cache_bytes_max), text_bytes_max }
    }

    /// The facts of `text`. A cached text costs one pass of the lexer and one look-up.
    ///
    /// A text that is wrong is looked at anew each time. Catalogs of different databases must have
    /// different versions.
    pub fn analyze<'a>(&self, text: &'a str, context: &Context<'_>) -> Result<Analyzed<'a>, Error> {
        let lexed = lexer::Lexed::new(text);
        if text.len() > self.text_bytes_max {
            let (analysis, _) = analyze::analyze(&lexed, context)?;
            return Ok(Analyzed { analysis: Arc::new(analysis), lexed });
        }
        let known = match self.cache.get(&lexed, context) {
            cache::Found::Analysis(analysis) => return Ok(Analyzed { analysis, lexed }),
            cache::Found::Nothing(known) => known,
        };
        let (analysis, slots) = analyze::analyze(&lexed, context)?;
        let analysis = Arc::new(analysis);
        self.cache.put(&lexed, context, known.as_deref(), &slots, &analysis);
        Ok(Analyzed { analysis, lexed })
    }
}

impl Analysis {
    /// Of a text that has no analysis, for those who run it all the same: it may do anything.
    pub fn unread() -> Self {
        let what = "a statement that pgward can't read";
        let statement = Statement {
            command: "this statement",
            access: Access::Write(what.to_owned()),
            sharded: Vec::new(),
            per_shard: None,
            problems: vec![Problem {
                kind: ProblemKind::Unsupported,
                subject: what.to_owned(),
                hint: "",
            }],
            effect: Effect::Opaque,
            unknown_names: false,
            executes: None,
            copy_in: None,
            temporary: None,
        };
        Self { statements: vec![statement] }
    }

    /// About how many bytes it takes.
    fn size(&self) -> usize {
        let strings = |statement: &Statement| -> usize {
            let keys = statement
                .sharded
                .iter()
                .map(|used| 64 + used.relation.len() + used.column.len() + 8 * used.keys.len());
            let problems = statement.problems.iter().map(|problem| 48 + problem.subject.len());
            let settings = match &statement.effect {
                Effect::Set(settings) => settings.iter().map(Setting::size).sum(),
                _ => 0,
            };
            let executes = statement.executes.as_ref().map_or(0, |of| 4 * of.args.len());
            keys.chain(problems).sum::<usize>() + settings + executes
        };
        self.statements.iter().map(|statement| 256 + strings(statement)).sum()
    }
}

impl Setting {
    fn size(&self) -> usize {
        let value = match &self.value {
            SettingValue::Text(text) => text.len(),
            _ => 0,
        };
        64 + self.name.len() + value
    }
}

#[cfg(test)]
mod tests;
