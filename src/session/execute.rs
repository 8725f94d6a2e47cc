//! PREPARE and EXECUTE as SQL statements, in transaction mode.
//!
//! A client's name for a prepared statement means nothing on a server, so the text that goes out has
//! pgward's name in its place, and the statement is put on the server ahead of it where it is
//! missing. PREPARE gives a name of the same space as a Parse does; EXECUTE is routed as a Bind of
//! its arguments would be. Called by `query` and `batch`.

use std::sync::Arc;

use super::batch::NoValues;
use super::run::{Confirmed, Run};
use super::statements::{Kept, Origin, Statement, weight};
use super::{Session, params};
use crate::catalog::Snapshot;
use crate::route::{refusals, refuse_text};
use crate::sql::{self, Effect, execute};
use crate::wire::backend::ErrorReply;

/// What goes to the server in the place of a client's text.
#[derive(Debug)]
pub(super) struct Rewrite {
    /// The text, with pgward's name in it.
    pub text: String,
    /// The statement that it speaks of.
    pub of: Arc<Statement>,
    /// It makes that statement; else it executes it.
    pub is_prepare: bool,
    /// The server is the session's own, and knows its names: the text is the client's.
    pub is_own: bool,
}

/// A statement as it is sent, its facts, and the name that it gives if it is a PREPARE.
type Sent = (Arc<Statement>, Arc<Kept>, Option<Box<str>>);

/// A refusal; `true` where it may be due to a name that the catalog does not know yet.
type Refused = (ErrorReply, bool);

impl Session {
    /// The statement of a client's name, for what names and literals mean now: it may be prepared
    /// under that.
    pub(super) fn named(&self, name: &[u8]) -> Option<Arc<Statement>> {
        let statement = self.statements.get(name)?;
        if *statement.names() == self.names {
            return Some(statement.clone());
        }
        let (text, types) = (statement.sql(), statement.types());
        let store = &self.services.statements;
        Some(store.intern_from(text, types, &self.names, statement.origin(), None))
    }

    /// The client may give this name to one more statement.
    pub(super) fn check_name(&self, name: &[u8], of: &Statement) -> Result<(), ErrorReply> {
        if self.statements.get(name).is_some() && !self.has_own_server() {
            return Err(refusals::duplicate_statement(&String::from_utf8_lossy(name)));
        }
        let config = self.services.config.load();
        if self.statements.len() >= config.pool.max_client_statements {
            return Err(refusals::too_many_statements());
        }
        let bytes = self.statements.bytes() + weight(name, of);
        if bytes > config.pool.client_statement_bytes_max {
            return Err(refusals::too_large_statements());
        }
        Ok(())
    }

    /// What goes out for a PREPARE or EXECUTE, or what has one in it: `None` if `kept` is neither.
    pub(super) fn rewrite(
        &self,
        snapshot: &Snapshot,
        text: &str,
        kept: &Kept,
    ) -> Result<Option<Rewrite>, ErrorReply> {
        if self.has_own_server() && self.is_unguarded() {
            return Ok(None);
        }
        if let Some(prepare) = kept.prepares() {
            return self.rewrite_prepare(text, prepare).map(Some);
        }
        let Some(name) = kept.executes() else { return Ok(None) };
        if kept.analysis.statements.len() > 1 {
            return Err(refusals::unsupported(
                "EXECUTE together with other statements in one query string",
                "Send it as a query of its own.",
            ));
        }
        let of = self.named(name.as_bytes()).ok_or_else(|| refusals::no_statement(name))?;
        let body = self.facts_of(snapshot, &of)?;
        let is_query = |only: &sql::Statement| {
            matches!(only.command, "SELECT" | "INSERT" | "UPDATE" | "DELETE" | "MERGE")
                && !sets_hospital(&only.effect)
        };
        if !matches!(body.analysis.statements.as_slice(), [only] if is_query(only)) {
            return Err(refusals::unsupported(
                "EXECUTE of a statement that is no query",
                "Send that statement itself.",
            ));
        }
        if self.has_own_server() {
            let text = text.to_owned();
            return Ok(Some(Rewrite { text, of, is_prepare: false, is_own: true }));
        }
        let place = execute::execute_name(text).ok_or_else(unreadable)?;
        let text = [&text[..place.start], &of.server_name, &text[place.end..]].concat();
        Ok(Some(Rewrite { text, of, is_prepare: false, is_own: false }))
    }

    fn rewrite_prepare(&self, text: &str, prepare: &sql::Prepare) -> Result<Rewrite, ErrorReply> {
        let parts = execute::prepare_parts(text).ok_or_else(unreadable)?;
        let origin = Origin::Sql(parts.types.into());
        let store = &self.services.statements;
        let of = store.intern_from(parts.body, &prepare.types, &self.names, &origin, None);
        let is_own = self.has_own_server();
        let text = match is_own {
            true => text.to_owned(),
            false => of.prepare_text().ok_or_else(refusals::internal)?,
        };
        Ok(Rewrite { text, of, is_prepare: true, is_own })
    }

    pub(super) fn facts_of(
        &self,
        snapshot: &Snapshot,
        statement: &Statement,
    ) -> Result<Arc<Kept>, ErrorReply> {
        statement
            .analysis(&self.services.analyzer, &snapshot.catalog)
            .map_err(|error| refuse_text(&error))
    }

    /// What is to run for a simple Query that is a PREPARE or EXECUTE.
    pub(super) fn look_at_rewrite(
        &self,
        snapshot: &Snapshot,
        rewrite: Rewrite,
        before: &Kept,
    ) -> Result<Run, Refused> {
        let plain = |refusal| (refusal, false);
        let context = sql::Context {
            catalog: &snapshot.catalog,
            search_path: &self.names.search_path,
            role: &self.names.role,
            param_types: &[],
        };
        let analyzed = self.services.analyzer.analyze(&rewrite.text, &context);
        let analyzed = analyzed.map_err(|error| plain(refuse_text(&error)))?;
        let kept = Kept::new(&analyzed, &snapshot.catalog);
        check_rewrite(&rewrite, before, &kept).map_err(plain)?;
        let body = self.facts_of(snapshot, &rewrite.of).map_err(plain)?;
        let is_unknown = body.analysis.statements.iter().any(|s| s.unknown_names);
        let mut effect = None;
        let kept = match before.prepares() {
            Some(prepare) => {
                self.check_name(prepare.name.as_bytes(), &rewrite.of).map_err(plain)?;
                self.check_prepared(&body).map_err(|refusal| (refusal, is_unknown))?;
                let of = rewrite.of.clone();
                effect = Some(Confirmed::Prepared(prepare.name.as_str().into(), of));
                kept.preparing(&body)
            }
            None => kept.executing(&body),
        };
        let values = NoValues(&kept);
        let route = self
            .decide(snapshot, &kept.analysis, &values, None)
            .map_err(|refusal| (refusal, is_unknown))?;
        let mut run = Run::new(route);
        run.add(self, &kept.analysis, &values).map_err(plain)?;
        if let Some(effect) = effect {
            run.effects = [effect].into();
        }
        run.rewrite = Some(Box::new(rewrite));
        Ok(run)
    }

    /// A statement that no login could ever run is refused when it is prepared.
    pub(super) fn check_prepared(&self, kept: &Kept) -> Result<(), ErrorReply> {
        match self.is_unguarded() {
            true => Ok(()),
            false => self.admit(&kept.analysis),
        }
    }

    /// The statement that is sent for a client's: another where that is a PREPARE or an EXECUTE,
    /// whose name means what it does now. With the name that it gives.
    pub(super) fn resolved(
        &self,
        snapshot: &Snapshot,
        statement: Arc<Statement>,
        kept: Arc<Kept>,
    ) -> Result<Sent, ErrorReply> {
        let Some(rewrite) = self.rewrite(snapshot, statement.sql(), &kept)? else {
            return Ok((statement, kept, None));
        };
        if rewrite.is_own {
            return Err(refusals::unsupported(
                "PREPARE or EXECUTE in the extended protocol in session mode",
                "Send it as a simple query.",
            ));
        }
        let id = rewrite.of.id;
        let origin = if rewrite.is_prepare { Origin::Prepare(id) } else { Origin::Execute(id) };
        let store = &self.services.statements;
        let (text, types) = (&rewrite.text, statement.types());
        let sent = store.intern_from(text, types, &self.names, &origin, Some(&rewrite.of));
        let context = sql::Context {
            catalog: &snapshot.catalog,
            search_path: &self.names.search_path,
            role: &self.names.role,
            param_types: types,
        };
        let analyzed = self.services.analyzer.analyze(text, &context);
        let analyzed = analyzed.map_err(|error| refuse_text(&error))?;
        check_rewrite(&rewrite, &kept, &Kept::new(&analyzed, &snapshot.catalog))?;
        let name = kept.prepares().map(|prepare| prepare.name.as_str().into());
        let kept = self.facts_of(snapshot, &sent)?;
        Ok((sent, kept, name))
    }
}

/// A rewritten text must be the client's in all but the name.
fn check_rewrite(rewrite: &Rewrite, before: &Kept, after: &Kept) -> Result<(), ErrorReply> {
    let [old] = before.analysis.statements.as_slice() else { return Err(unreadable()) };
    let [new] = after.analysis.statements.as_slice() else { return Err(unreadable()) };
    let mut expected = old.clone();
    let name = || rewrite.of.server_name.clone();
    if rewrite.is_own {
        return if old == new { Ok(()) } else { Err(unreadable()) };
    }
    if let Some(execute) = &mut expected.executes {
        execute.name = name();
    }
    if let Effect::Prepare(prepare) = &mut expected.effect {
        prepare.name = name();
    }
    if expected == *new { Ok(()) } else { Err(unreadable()) }
}

fn unreadable() -> ErrorReply {
    refusals::unsupported(
        "a prepared statement's name written like this",
        "Write it as a plain or quoted name.",
    )
}

fn sets_hospital(effect: &Effect) -> bool {
    matches!(effect, Effect::Set(settings) if settings.iter().any(|s| s.name == params::HOSPITAL))
}
