//! Prepared statements: one shared statement per text, and each client's names for them.
//!
//! A client's Parse is interned by (text, declared types, search_path, role): the shared
//! [`Statement`] has an id, hence one name on every server, and keeps its analysis. A client's
//! name is only a key into its own small map, so that it works on whatever server it meets.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use quick_cache::sync::Cache;

use crate::server::{Shape, StatementId};
use crate::sql::{self, Analysis, Analyzer, Catalog, Context, Effect, KeySource, SettingValue};

/// What names and literals mean to a session: part of a statement's identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Names {
    /// search_path as set.
    pub search_path: String,
    /// The role that `$user` stands for.
    pub role: String,
    /// Settings that decide what its literals mean, where they differ from the server's.
    pub literals: String,
}

/// A statement that any client may have prepared.
#[derive(Debug)]
pub struct Statement {
    /// Its id.
    pub id: StatementId,
    /// Its name on servers.
    pub server_name: String,
    key: Key,
    /// The statement that it executes or makes, for [`Origin::Execute`] and [`Origin::Prepare`].
    of: Option<Arc<Statement>>,
    /// A server found that it would answer other columns than when it was parsed.
    is_stale: AtomicBool,
    /// Times that it was parsed without a name.
    pub unnamed_uses: AtomicU32,
    kept: ArcSwapOption<Kept>,
}

/// An analysis with the literals that it refers to; valid for one catalog version.
#[derive(Debug)]
pub struct Kept {
    catalog_version: u64,
    /// Facts.
    pub analysis: Arc<Analysis>,
    literals: Vec<(u16, String)>,
    hint: Result<Option<String>, ()>,
}

/// Where a statement comes from, hence how a server gets it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A Parse of its text.
    Parse,
    /// `PREPARE name (types) AS text`, with the types as the client wrote them.
    Sql(Box<str>),
    /// pgward's text of a PREPARE statement, which makes the statement of this id.
    Prepare(StatementId),
    /// pgward's text of an EXECUTE of the statement of this id.
    Execute(StatementId),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    sql: Box<str>,
    types: Box<[u32]>,
    names: Arc<Names>,
    origin: Origin,
}

/// A key in pieces, for look-ups that allocate nothing. Hashes as [`Key`] does.
struct Pieces<'a> {
    sql: &'a str,
    types: &'a [u32],
    names: &'a Arc<Names>,
    origin: &'a Origin,
}

impl Hash for Pieces<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.sql.hash(state);
        self.types.hash(state);
        self.names.hash(state);
        self.origin.hash(state);
    }
}

impl quick_cache::Equivalent<Key> for Pieces<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.sql == *key.sql
            && *self.types == *key.types
            && self.names == &key.names
            && *self.origin == key.origin
    }
}

impl Statement {
    /// The text.
    pub fn sql(&self) -> &str {
        &self.key.sql
    }

    /// Declared types.
    pub fn types(&self) -> &[u32] {
        &self.key.types
    }

    /// The names that its analysis is for.
    pub fn names(&self) -> &Arc<Names> {
        &self.key.names
    }

    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        &self.key.origin
    }

    /// Whoever prepared it must do so again, as on a connection of its own.
    pub fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Relaxed)
    }

    /// The statement that must be on a server before this one is used there.
    pub fn executes(&self) -> Option<&Arc<Statement>> {
        self.of.as_ref().filter(|_| matches!(self.key.origin, Origin::Execute(_)))
    }

    /// The statement that it puts on its server, which must not have it then.
    pub fn makes(&self) -> Option<&Arc<Statement>> {
        self.of.as_ref().filter(|_| matches!(self.key.origin, Origin::Prepare(_)))
    }

    /// The PREPARE that makes it on a server, if it comes from one.
    pub fn prepare_text(&self) -> Option<String> {
        match &self.key.origin {
            Origin::Sql(types) => {
                Some(format!("PREPARE {}{types} AS {}", self.server_name, self.key.sql))
            }
            _ => None,
        }
    }

    /// Its facts under `catalog`, analysed again only when that has changed.
    pub fn analysis(
        &self,
        analyzer: &Analyzer,
        catalog: &Arc<Catalog>,
    ) -> Result<Arc<Kept>, sql::Error> {
        if let Some(kept) = &*self.kept.load()
            && kept.catalog_version == catalog.version
        {
            return Ok(kept.clone());
        }
        let context = Context {
            catalog,
            search_path: &self.key.names.search_path,
            role: &self.key.names.role,
            param_types: &self.key.types,
        };
        let analyzed = analyzer.analyze(&self.key.sql, &context)?;
        let mut kept = Kept::new(&analyzed, catalog);
        if let Some(of) = &self.of {
            let body = of.analysis(analyzer, catalog)?;
            kept = match self.key.origin {
                Origin::Prepare(_) => kept.preparing(&body),
                _ => kept.executing(&body),
            };
        }
        let kept = Arc::new(kept);
        self.kept.store(Some(kept.clone()));
        Ok(kept)
    }
}

impl Kept {
    /// For [`Analysis::unread`].
    pub fn unread() -> Self {
        let analysis = Arc::new(Analysis::unread());
        Self { catalog_version: 0, analysis, literals: Vec::new(), hint: Ok(None) }
    }

    /// Of a text as it stands.
    pub fn new(analyzed: &sql::Analyzed<'_>, catalog: &Catalog) -> Self {
        let mut literals: Vec<(u16, String)> = literal_slots(&analyzed.analysis)
            .filter_map(|slot| Some((slot, analyzed.lexed.literal(slot)?.into_owned())))
            .collect();
        let executes = analyzed.analysis.statements.iter().filter_map(|of| of.executes.as_ref());
        literals.extend(executes.flat_map(|execute| &execute.args).filter_map(|arg| match arg {
            sql::Arg::Slot(slot) => Some((*slot, analyzed.lexed.literal(*slot)?.into_owned())),
            sql::Arg::Other => None,
        }));
        Self {
            catalog_version: catalog.version,
            literals,
            hint: analyzed.lexed.hint().map(|hint| hint.map(str::to_owned)),
            analysis: analyzed.analysis.clone(),
        }
    }

    /// What this EXECUTE does, `body` being what it executes.
    #[must_use]
    pub fn executing(mut self, body: &Self) -> Self {
        let (Some(execute), Some(of)) =
            (self.analysis.statements.first(), body.analysis.statements.first())
        else {
            // Neither is empty: the session has looked at both.
            return self;
        };
        let statement = execute.executing(of);
        let of_body = body.literals.iter();
        self.literals.extend(
            of_body
                .filter_map(|(slot, text)| Some((sql::execute::body_slot(*slot)?, text.clone()))),
        );
        self.hint = match (self.hint, &body.hint) {
            (Ok(None), hint) => hint.clone(),
            (hint, Ok(None)) => hint,
            (hint, other) if hint == *other => hint,
            _ => Err(()),
        };
        self.analysis = Arc::new(Analysis { statements: vec![statement] });
        self
    }

    /// What this PREPARE does: it is looked at as `body` is, and reads nothing.
    #[must_use]
    pub fn preparing(mut self, body: &Self) -> Self {
        let mut statements = self.analysis.statements.clone();
        for statement in &mut statements {
            statement.problems.clear();
            statement.unknown_names =
                body.analysis.statements.iter().any(|statement| statement.unknown_names);
        }
        self.analysis = Arc::new(Analysis { statements });
        self
    }

    /// The name that this EXECUTE of a client's means by its text.
    pub fn executes(&self) -> Option<&str> {
        let execute = self.analysis.statements.iter().find_map(|of| of.executes.as_ref());
        execute.map(|execute| execute.name.as_str())
    }

    /// The PREPARE that it is.
    pub fn prepares(&self) -> Option<&sql::Prepare> {
        match self.analysis.statements.as_slice() {
            [only] => match &only.effect {
                Effect::Prepare(prepare) => Some(prepare),
                _ => None,
            },
            _ => None,
        }
    }

    /// A literal that the analysis refers to.
    pub fn literal(&self, slot: u16) -> Option<&str> {
        let found = self.literals.iter().find(|(n, _)| *n == slot);
        found.map(|(_, text)| text.as_str())
    }

    /// The text's hint.
    #[allow(clippy::result_unit_err)] // as `route::Values` has it: there is nothing more to say
    pub fn hint(&self) -> Result<Option<&str>, ()> {
        self.hint.as_ref().map(Option::as_deref).map_err(|&()| ())
    }
}

/// Literals that an analysis refers to by number.
fn literal_slots(analysis: &Analysis) -> impl Iterator<Item = u16> {
    let keys = analysis.statements.iter().flat_map(|s| &s.sharded).flat_map(|used| &used.keys);
    let keys = keys.filter_map(|key| match key {
        KeySource::Slot(slot) | KeySource::SlotArray(slot) => Some(*slot),
        _ => None,
    });
    let settings = analysis.statements.iter().filter_map(|statement| match &statement.effect {
        Effect::Set(settings) => Some(settings),
        _ => None,
    });
    keys.chain(settings.flatten().filter_map(|setting| match setting.value {
        SettingValue::Slot(slot) => Some(slot),
        _ => None,
    }))
}

#[derive(Debug, Clone)]
struct Weigh;

impl quick_cache::Weighter<Key, Arc<Statement>> for Weigh {
    fn weight(&self, key: &Key, _: &Arc<Statement>) -> u64 {
        (key.sql.len() + 4 * key.types.len() + 512) as u64
    }
}

/// All shared statements, bounded by bytes. One that is evicted lives on in the clients that hold
/// it; its text then gets a new id.
#[derive(Debug)]
pub struct Store {
    cache: Cache<Key, Arc<Statement>, Weigh, foldhash::quality::RandomState>,
    next: AtomicU64,
}

impl Store {
    /// A store of about `bytes_max` bytes of text.
    pub fn new(bytes_max: usize) -> Self {
        let entries = (bytes_max / 1024).max(16);
        let cache = Cache::with(
            entries,
            bytes_max as u64,
            Weigh,
            foldhash::quality::RandomState::default(),
            quick_cache::sync::DefaultLifecycle::default(),
        );
        Self { cache, next: AtomicU64::new(1) }
    }

    /// The shared statement of this text, types and names.
    pub fn intern(&self, sql: &str, types: &[u32], names: &Arc<Names>) -> Arc<Statement> {
        self.intern_from(sql, types, names, &Origin::Parse, None)
    }

    /// As [`Self::intern`], of whatever origin; `of` is the statement that `origin` speaks of.
    pub fn intern_from(
        &self,
        sql: &str,
        types: &[u32],
        names: &Arc<Names>,
        origin: &Origin,
        of: Option<&Arc<Statement>>,
    ) -> Arc<Statement> {
        if let Some(statement) = self.cache.get(&Pieces { sql, types, names, origin }) {
            return statement;
        }
        let id = StatementId(self.next.fetch_add(1, Ordering::Relaxed));
        let origin = origin.clone();
        let key = Key { sql: sql.into(), types: types.into(), names: names.clone(), origin };
        let statement = Arc::new(Statement {
            id,
            server_name: id.server_name(),
            of: of.cloned(),
            is_stale: AtomicBool::new(false),
            key: key.clone(),
            unnamed_uses: AtomicU32::new(0),
            kept: ArcSwapOption::empty(),
        });
        // Race: two clients may make one each; both are right, the later one stays.
        self.cache.insert(key, statement.clone());
        statement
    }
}

impl Store {
    /// A server says that `statement` would answer other columns now: its text gets a new id, so
    /// that whoever prepares it from now on finds it fresh on every server.
    pub fn retire(&self, statement: &Statement) {
        if statement.is_stale.swap(true, Ordering::Relaxed) {
            // Its text may have a fresh id already.
            return;
        }
        let Key { sql, types, names, origin } = &statement.key;
        self.cache.remove(&Pieces { sql, types, names, origin });
    }
}

/// What a client's name means to it.
#[derive(Debug)]
pub struct Meaning {
    statement: Arc<Statement>,
    /// As it was described to the client, which reads rows by that from then on.
    told: Option<Told>,
}

/// What a client was told, and of which statement: an EXECUTE is another one when its name is.
pub type Told = (StatementId, Shape);

type Named = HashMap<Box<[u8]>, Meaning, foldhash::fast::RandomState>;

/// What a client holds in memory with a name, at most.
pub fn weight(name: &[u8], statement: &Statement) -> usize {
    name.len() + statement.sql().len() + 4 * statement.types().len()
}

/// What one message did to a client's names, to be undone if it has not taken place.
#[derive(Debug)]
pub enum Change {
    /// Parse gave it, and what it meant before.
    Given(Box<[u8]>, Option<Meaning>),
    /// Close or DEALLOCATE took it.
    Taken(Box<[u8]>, Option<Meaning>),
    /// DEALLOCATE ALL took all of them.
    AllTaken(Statements),
}

/// One client's names.
#[derive(Debug, Default)]
pub struct Statements {
    unnamed: Option<Meaning>,
    named: Option<Box<Named>>,
    /// Of the named ones, with their names.
    bytes: usize,
}

impl Statements {
    /// The statement of this name; empty: the unnamed one.
    pub fn get(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.meaning(name).map(|meaning| &meaning.statement)
    }

    /// What the client was told of the statement of this name, if it was.
    pub fn told(&self, name: &[u8]) -> Option<Told> {
        self.meaning(name)?.told
    }

    fn meaning(&self, name: &[u8]) -> Option<&Meaning> {
        if name.is_empty() { self.unnamed.as_ref() } else { self.named.as_ref()?.get(name) }
    }

    /// Gives `name` to a statement.
    pub fn insert(&mut self, name: &[u8], statement: Arc<Statement>) {
        self.put(name, Meaning { statement, told: None });
    }

    fn put(&mut self, name: &[u8], meaning: Meaning) {
        if name.is_empty() {
            self.unnamed = Some(meaning);
        } else {
            self.bytes += weight(name, &meaning.statement);
            let before = self.named.get_or_insert_default().insert(name.into(), meaning);
            self.bytes -= before.map_or(0, |before| weight(name, &before.statement));
        }
    }

    /// The statement of this name was described to the client.
    pub fn tell(&mut self, name: &[u8], told: Told) {
        let meaning = match name.is_empty() {
            true => self.unnamed.as_mut(),
            false => self.named.as_mut().and_then(|named| named.get_mut(name)),
        };
        if let Some(meaning) = meaning {
            meaning.told = Some(told);
        }
    }

    /// Whatever means `old` means `new` from now on.
    pub fn replace(&mut self, old: &Arc<Statement>, new: &Arc<Statement>) {
        let named = self.named.iter_mut().flat_map(|named| named.values_mut());
        for meaning in named.chain(&mut self.unnamed).filter(|of| of.statement.id == old.id) {
            meaning.statement = new.clone();
        }
    }

    /// Takes the name away.
    pub fn remove(&mut self, name: &[u8]) -> Option<Meaning> {
        if name.is_empty() {
            return self.unnamed.take();
        }
        let named = self.named.as_mut()?;
        let before = named.remove(name);
        if named.is_empty() {
            self.named = None;
        }
        self.bytes -= before.as_ref().map_or(0, |before| weight(name, &before.statement));
        before
    }

    /// As [`Self::insert`], of a Parse that may fail yet.
    pub fn give(&mut self, name: &[u8], statement: Arc<Statement>) -> Change {
        let before = self.remove(name);
        self.insert(name, statement);
        Change::Given(name.into(), before)
    }

    /// As [`Self::remove`], of a message that may be skipped yet.
    pub fn take(&mut self, name: &[u8]) -> Change {
        Change::Taken(name.into(), self.remove(name))
    }

    /// As [`Self::clear`], of a message that may be skipped yet.
    pub fn take_all(&mut self) -> Change {
        let before = Self { unnamed: None, named: self.named.take(), bytes: self.bytes };
        self.clear();
        Change::AllTaken(before)
    }

    /// It has not taken place, nor has any behind it.
    pub fn undo(&mut self, change: Change) {
        match change {
            // A Parse without a name that fails leaves none.
            Change::Given(name, Some(before)) if !name.is_empty() => self.put(&name, before),
            Change::Given(name, _) => drop(self.remove(&name)),
            Change::Taken(name, Some(before)) => self.put(&name, before),
            Change::Taken(_, None) => {}
            Change::AllTaken(before) => (self.named, self.bytes) = (before.named, before.bytes),
        }
    }

    /// DEALLOCATE ALL, DISCARD ALL.
    pub fn clear(&mut self) {
        self.named = None;
        self.bytes = 0;
    }

    /// Bytes of the named statements' texts and names, as if no other client had them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Named statements.
    pub fn len(&self) -> usize {
        self.named.as_ref().map_or(0, |named| named.len())
    }

    /// No named statements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
