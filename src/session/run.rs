//! What a request will do: where it goes, and what its statements do to the session once the server
//! has confirmed them. Built by `query` and `batch`, carried through `attach`, `relay` and `settle`.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::block::Block;
use super::execute::Rewrite;
use super::statements::{Statement, Statements};
use super::{Session, params, pins};
use crate::route::{Route, Values, refusals};
use crate::server;
use crate::shard_map::HospitalId;
use crate::sql::{Access, Analysis, CopyCheck, Effect, Temporary, Transaction};
use crate::wire::backend::ErrorReply;

/// A request that needs a server.
#[derive(Debug)]
pub(super) struct Run {
    /// Where.
    pub route: Route,
    /// It may write.
    pub is_write: bool,
    /// It may end a transaction, so that its loss leaves the outcome unknown.
    pub may_commit: bool,
    /// It ends a transaction, or may: the server's word on what is left counts.
    pub may_end: bool,
    /// It may change what can't be seen.
    pub is_opaque: bool,
    /// Parameters of what is opaque that may be names of custom settings.
    pub custom_names: BTreeSet<String>,
    /// What it may do to the causes for which the session keeps its server.
    pub pin_change: pins::Change,
    /// It loads a library, which nothing undoes.
    pub is_load: bool,
    /// What its statements do to the session, in order; empty if none does anything.
    pub effects: VecDeque<Confirmed>,
    /// A statement of its own in a block that no server holds yet.
    pub is_aside: bool,
    /// The statement of its only Bind.
    pub sole: Option<Arc<Statement>>,
    /// If that statement has gone stale on the server it may be parsed anew and run again, and
    /// nobody could tell.
    pub is_healable: bool,
    /// What goes out in the place of the client's text.
    pub rewrite: Option<Box<Rewrite>>,
    /// pgward ends the batch on the server, and the client has yet to send its Sync.
    pub is_own_batch: bool,
}

/// What a statement does to the session once the server has confirmed it.
#[derive(Debug, Clone)]
pub(super) enum Confirmed {
    /// Nothing.
    Nothing,
    /// Settings, `None` for the default.
    Set(Vec<Change>),
    /// RESET ALL.
    ResetAll,
    /// Transaction control.
    Control(Transaction),
    /// The catalog must be read again.
    Ddl,
    /// A prepared statement is gone, `None` for all: where the server's names are the client's.
    Deallocate(Option<String>),
    /// All of the session's state is gone, on the server that is its own.
    DiscardAll,
    /// COPY FROM STDIN, all of whose rows must be of this hospital.
    Copy(CopyCheck, HospitalId),
    /// PREPARE gave this name.
    Prepared(Box<str>, Arc<Statement>),
    /// Temporary tables are made, filled or dropped.
    Temporary(Temporary),
}

impl PartialEq for Confirmed {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nothing, Self::Nothing)
            | (Self::ResetAll, Self::ResetAll)
            | (Self::DiscardAll, Self::DiscardAll)
            | (Self::Ddl, Self::Ddl) => true,
            (Self::Deallocate(a), Self::Deallocate(b)) => a == b,
            (Self::Set(a), Self::Set(b)) => a == b,
            (Self::Control(a), Self::Control(b)) => a == b,
            (Self::Temporary(a), Self::Temporary(b)) => a == b,
            (Self::Copy(a, of), Self::Copy(b, other)) => a == b && of == other,
            (Self::Prepared(a, of), Self::Prepared(b, other)) => a == b && of.id == other.id,
            _ => false,
        }
    }
}

/// One setting that a statement gives.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Change {
    pub name: String,
    pub value: Option<String>,
    pub is_local: bool,
}

/// Names of custom settings that a transaction may make pgward ask for.
const ASKED_NAMES_MAX: usize = 64;

/// Adds names, while there is room: they come from the client, in any number.
pub(super) fn add_names(names: &mut BTreeSet<String>, more: impl IntoIterator<Item = String>) {
    for name in more {
        if names.len() >= ASKED_NAMES_MAX {
            return;
        }
        names.insert(name);
    }
}

/// As many parameters are looked at for names of settings.
const CUSTOM_NAMES_MAX: u16 = 8;

impl Run {
    /// A request for `route`; its statements come by [`Self::add`].
    pub fn new(route: Route) -> Self {
        Self {
            route,
            is_write: false,
            may_commit: false,
            may_end: false,
            is_opaque: false,
            custom_names: BTreeSet::new(),
            pin_change: pins::Change::None,
            is_load: false,
            effects: VecDeque::new(),
            is_aside: false,
            sole: None,
            is_healable: false,
            rewrite: None,
            is_own_batch: false,
        }
    }

    /// Takes in one statement or text that runs as part of this request.
    pub fn add(
        &mut self,
        session: &Session,
        analysis: &Analysis,
        values: &dyn Values,
    ) -> Result<(), ErrorReply> {
        let has_effects = analysis
            .statements
            .iter()
            .any(|of| of.effect != Effect::None || of.copy_in.is_some() || of.temporary.is_some());
        for statement in &analysis.statements {
            check_rewritten(session, analysis, statement)?;
            self.note_access(statement);
            self.note_unseen(statement);
            if has_effects {
                let effect = self.statement_effect(session, statement, values)?;
                self.effects.push_back(effect);
            }
        }
        Ok(())
    }

    /// What a Bind's statement will do when it is executed: exactly one effect, `Nothing` included.
    pub fn effect_of(
        &mut self,
        session: &Session,
        analysis: &Analysis,
        values: &dyn Values,
    ) -> Result<Confirmed, ErrorReply> {
        let mut effect = Confirmed::Nothing;
        for statement in &analysis.statements {
            check_rewritten(session, analysis, statement)?;
            self.note_access(statement);
            self.note_unseen(statement);
            effect = self.statement_effect(session, statement, values)?;
        }
        Ok(effect)
    }

    fn statement_effect(
        &mut self,
        session: &Session,
        statement: &crate::sql::Statement,
        values: &dyn Values,
    ) -> Result<Confirmed, ErrorReply> {
        let effect = self.confirmed(session, &statement.effect, values)?;
        if let Some(temporary) = &statement.temporary {
            return Ok(Confirmed::Temporary((**temporary).clone()));
        }
        Ok(self.copied(session, statement)?.unwrap_or(effect))
    }

    /// A write behind the end of a block is a transaction of its own.
    fn note_access(&mut self, statement: &crate::sql::Statement) {
        let is_write = matches!(statement.access, Access::Write(_));
        self.is_write |= is_write;
        self.may_commit |= is_write && self.may_end;
    }

    /// What it may do that its replies do not tell.
    fn note_unseen(&mut self, statement: &crate::sql::Statement) {
        self.pin_change = self.pin_change.max(pins::Change::of(&statement.effect));
        self.is_opaque |= is_unread(statement);
    }

    /// Something runs that pgward has not read: only where nothing is guarded.
    pub fn on_unknown(&mut self) {
        self.is_write = true;
        self.is_opaque = true;
        self.may_commit = true;
        self.may_end = true;
        self.pin_change = pins::Change::MayBegin;
    }

    /// How the rows of a COPY are looked at; `None` for what is none, and where nothing is guarded.
    fn copied(
        &self,
        session: &Session,
        statement: &crate::sql::Statement,
    ) -> Result<Option<Confirmed>, ErrorReply> {
        let Some(copy) = &statement.copy_in else { return Ok(None) };
        if session.is_unguarded() && session.ledger.hospital().is_none() {
            return Ok(None);
        }
        match (copy.check, self.route) {
            (Some(check), Route::One { hospital: Some(hospital), .. }) => {
                Ok(Some(Confirmed::Copy(check, hospital)))
            }
            (None, Route::One { hospital: Some(_), .. }) => Err(refusals::unreadable_row()),
            // `decide` has refused it.
            _ => Err(refusals::internal()),
        }
    }

    /// What stands beside a block is rolled back: what it sets must be known, to be set again.
    pub fn check_aside(&self) -> Result<(), ErrorReply> {
        match self.is_aside && self.is_opaque {
            true => Err(refusals::effect_needs_hospital("a computed setting")),
            false => Ok(()),
        }
    }

    /// Effects are followed only if there are any.
    pub fn drop_idle_effects(&mut self) {
        if self.effects.iter().all(|effect| *effect == Confirmed::Nothing) {
            self.effects.clear();
        }
    }

    pub(super) fn confirmed(
        &mut self,
        session: &Session,
        effect: &Effect,
        values: &dyn Values,
    ) -> Result<Confirmed, ErrorReply> {
        Ok(match effect {
            Effect::Set(settings) => {
                let mut changes = Vec::new();
                for setting in settings {
                    let value = session.setting_value(setting, values)?;
                    if matches!(setting.value, crate::sql::SettingValue::Computed) {
                        let is_followed = session.has_own_server() && session.is_unguarded();
                        if decides_meaning(&setting.name) && !is_followed {
                            return Err(refusals::computed_setting(&setting.name));
                        }
                        self.is_opaque = true;
                        continue;
                    }
                    if value.is_none() {
                        session.check_reset(&setting.name)?;
                    }
                    self.is_opaque |= value.is_none()
                        && !setting.is_local
                        && session.ledger.startup().contains_key(&setting.name);
                    let name = setting.name.clone();
                    let is_local = setting.is_local || params::is_of_transaction(&name);
                    changes.push(Change { name, value, is_local });
                }
                Confirmed::Set(changes)
            }
            Effect::Reset(name) => {
                session.check_reset(name)?;
                let change = Change { name: name.clone(), value: None, is_local: false };
                Confirmed::Set(vec![change])
            }
            Effect::ResetAll => {
                session.check_reset("search_path")?;
                Confirmed::ResetAll
            }
            Effect::Transaction(control) => {
                self.may_commit |= matches!(control, Transaction::Commit { .. });
                self.may_end |=
                    matches!(control, Transaction::Commit { .. } | Transaction::Rollback { .. });
                Confirmed::Control(control.clone())
            }
            Effect::Ddl => Confirmed::Ddl,
            Effect::Pin(pin) => {
                self.is_load |= *pin == crate::sql::Pin::Load;
                Confirmed::Nothing
            }
            Effect::Deallocate(name) => Confirmed::Deallocate(name.clone()),
            Effect::Discard(crate::sql::Discard::All) => Confirmed::DiscardAll,
            Effect::Opaque => {
                self.is_opaque = true;
                let texts = (1..=CUSTOM_NAMES_MAX).map_while(|n| values.param(n));
                let names = texts.filter_map(|(_, bytes)| params::custom_name(bytes?));
                add_names(&mut self.custom_names, names);
                self.may_commit = true;
                self.may_end = true;
                Confirmed::Nothing
            }
            _ => Confirmed::Nothing,
        })
    }
}

/// What the server has confirmed reaches the session. `true`: the catalog has changed.
pub(super) fn apply(
    ledger: &mut params::Ledger,
    block: &mut Block,
    statements: &mut Statements,
    effect: Confirmed,
    tag: server::CommandTag,
) -> bool {
    match effect {
        // Names are the session's own.
        Confirmed::Nothing | Confirmed::Copy(..) | Confirmed::Prepared(..) => {}
        Confirmed::Set(changes) => {
            for Change { name, value, is_local } in changes {
                match value {
                    value if is_local => ledger.set_local(&name, value.as_deref()),
                    Some(value) => ledger.set(&name, &value),
                    None => ledger.reset(&name),
                }
            }
        }
        Confirmed::ResetAll => ledger.reset_all(),
        Confirmed::Ddl => return true,
        Confirmed::Temporary(Temporary::Makes { name, ends_with_transaction }) => {
            ledger.make_temporary(&name, ends_with_transaction);
        }
        Confirmed::Temporary(Temporary::Drops(names)) => {
            names.iter().for_each(|name| ledger.drop_temporary(name));
            // Where nothing is guarded it may have been any table.
            return true;
        }
        Confirmed::Temporary(Temporary::DropsAll) => ledger.drop_all_temporary(),
        Confirmed::Temporary(Temporary::Fills) => {}
        Confirmed::Deallocate(None) => statements.clear(),
        Confirmed::Deallocate(Some(name)) => drop(statements.remove(name.as_bytes())),
        Confirmed::DiscardAll => {
            ledger.discard_all();
            statements.clear();
        }
        // A cursor has the name of a portal of control that is gone.
        Confirmed::Control(control) if !is_said_of(&control, tag) => {}
        Confirmed::Control(control) => match control {
            Transaction::Begin(modes) => *block = Block::Server(modes),
            control => apply_control(ledger, control, tag),
        },
    }
    false
}

fn apply_control(ledger: &mut params::Ledger, control: Transaction, tag: server::CommandTag) {
    ledger.on_control();
    match control {
        Transaction::Commit { .. } if tag.is("COMMIT") => ledger.commit(),
        // COMMIT of a failed transaction is a ROLLBACK, and says so.
        Transaction::Commit { .. } | Transaction::Rollback { .. } => ledger.rollback(),
        Transaction::Savepoint(name) => ledger.savepoint(&name),
        Transaction::Release(name) => ledger.release(&name),
        Transaction::RollbackTo(name) => ledger.rollback_to(&name),
        _ => {}
    }
}

/// Is this what a server says that has done it?
fn is_said_of(control: &Transaction, tag: server::CommandTag) -> bool {
    match control {
        Transaction::Begin(_) => tag.is("BEGIN") || tag.is("START TRANSACTION"),
        // A failed one is rolled back.
        Transaction::Commit { .. } => tag.is("COMMIT") || tag.is("ROLLBACK"),
        Transaction::Rollback { .. } | Transaction::RollbackTo(_) => tag.is("ROLLBACK"),
        Transaction::Savepoint(_) => tag.is("SAVEPOINT"),
        Transaction::Release(_) => tag.is("RELEASE"),
        Transaction::SetTransaction(_) | Transaction::SetConstraints => true,
    }
}

/// Settings that `effect` takes to a default which is the session's and not the server's.
pub(super) fn resets(effect: &Confirmed, startup: &server::SettingsMap) -> Vec<String> {
    match effect {
        Confirmed::Set(changes) => changes
            .iter()
            .filter(|change| change.value.is_none() && !change.is_local)
            .filter(|change| startup.contains_key(&change.name))
            .map(|change| change.name.clone())
            .collect(),
        Confirmed::DiscardAll => startup.keys().cloned().collect(),
        Confirmed::ResetAll => {
            let is_kept = |name: &&String| !params::is_of_role(name);
            startup.keys().filter(is_kept).cloned().collect()
        }
        _ => Vec::new(),
    }
}

/// Routed though it could not be classified, where nothing is guarded: only of queries are all
/// expressions read, so what another statement does to settings is not known.
fn is_unread(statement: &crate::sql::Statement) -> bool {
    let is_query = matches!(statement.command, "SELECT" | "INSERT" | "UPDATE" | "DELETE");
    !statement.problems.is_empty() && !is_query
}

/// Also where nothing is guarded: the client's name means nothing, or another's statement, on a
/// server.
fn check_rewritten(
    session: &Session,
    analysis: &Analysis,
    statement: &crate::sql::Statement,
) -> Result<(), ErrorReply> {
    if session.has_own_server() && session.is_unguarded() {
        return Ok(());
    }
    let is_prepare = matches!(statement.effect, Effect::Prepare(_));
    if statement.executes.is_some() || (is_prepare && analysis.statements.len() > 1) {
        return Err(refusals::unsupported(
            "PREPARE or EXECUTE together with other statements in one query string",
            "Send it as a query of its own.",
        ));
    }
    Ok(())
}

/// Settings that decide what a text means: pgward must know their values.
fn decides_meaning(name: &str) -> bool {
    matches!(
        name,
        "search_path"
            | "role"
            | "session_authorization"
            | "client_encoding"
            | "standard_conforming_strings"
    )
}
