//! Looks at each message of a batch before anything of it goes out: names its statements and routes
//! each Bind. Its portals are `portals`'s, and what the whole will do `whole`'s.

use std::ops::Range;
use std::sync::Arc;

use bytes::BytesMut;

use super::{
    BIND_COMPLETE, Batch, BindValues, CLOSE_COMPLETE, LookedPortal, PARSE_COMPLETE, Place, Step,
    StepKind, Trouble,
};
use crate::route::{Bound, Role, Route, refusals};
use crate::server::Message;
use crate::session::block::Block;
use crate::session::run::Confirmed;
use crate::session::statements::{Change, Kept, Statement};
use crate::session::{Session, invalid_text, params};
use crate::sql::{Access, Effect, Temporary, Transaction};
use crate::wire::backend;
use crate::wire::encoding::Encoding;
use crate::wire::frontend::{Bind, Execute, Kind, Named, Parse, tag};
use crate::wire::{self, HEADER_BYTES};

/// Longest name that Postgres tells from others (NAMEDATALEN less its end).
const NAME_BYTES_MAX: usize = 63;
/// Declared parameter types that a Parse may carry (Postgres's own limit).
const TYPES_MAX: usize = 65_535;

impl Session {
    pub(super) fn look_at_batch(&mut self, batch: &mut Batch) -> Result<(), Trouble> {
        let may_undo = self.ledger.may_undo_names();
        batch.changes_names = self
            .attached
            .as_ref()
            .is_some_and(|attached| attached.effects.iter().any(|of| changes_names(of, may_undo)));
        batch.changes_text = self
            .attached
            .as_ref()
            .is_some_and(|attached| attached.effects.iter().any(|of| self.changes_text(of)));
        let mut at = 0;
        while at < batch.end {
            let Ok(Some(header)) = wire::header(&self.input.as_slice()[at..], usize::MAX) else {
                break;
            };
            let frame = at..at + header.total;
            at = frame.end;
            self.look_at_message(batch, header.tag, frame)?;
            if matches!(batch.steps.last(), Some(Step { kind: StepKind::DiscardAll, .. })) {
                batch.end = at;
            }
        }
        Ok(())
    }

    fn look_at_message(
        &mut self,
        batch: &mut Batch,
        tag: u8,
        frame: Range<usize>,
    ) -> Result<(), Trouble> {
        let body = frame.start + HEADER_BYTES..frame.end;
        let kind = match tag {
            tag::PARSE => self.look_at_parse(batch, body)?,
            tag::BIND => self.look_at_bind(batch, body)?,
            tag::DESCRIBE => {
                let named = Named::read_describe(&self.input.as_slice()[body])?;
                self.check_spelling(named.kind, named.name)?;
                match named.kind {
                    Kind::Statement if self.is_servers_own(named.name) => {
                        StepKind::Own(Message::Describe)
                    }
                    Kind::Statement => {
                        let name = named.name.into();
                        self.look_at_describe(batch, name)?
                    }
                    Kind::Portal => {
                        let name = named.name.to_vec();
                        self.portal_step(batch, Message::Describe, &name)?
                    }
                }
            }
            tag::EXECUTE => {
                let execute = Execute::read(&self.input.as_slice()[body])?;
                self.check_spelling(Kind::Portal, execute.portal)?;
                let name = execute.portal.to_vec();
                self.portal_step(batch, Message::Execute, &name)?
            }
            tag::CLOSE => self.look_at_close(batch, body)?,
            tag::SYNC => {
                batch.has_sync = true;
                StepKind::Sync
            }
            _ => StepKind::Flush,
        };
        batch.steps.push(Step { frame, kind });
        Ok(())
    }

    fn look_at_parse(
        &mut self,
        batch: &mut Batch,
        body: Range<usize>,
    ) -> Result<StepKind, Trouble> {
        let parse = Parse::read(&self.input.as_slice()[body])?;
        self.check_spelling(Kind::Statement, parse.name)?;
        let sql = match self.decode(parse.sql) {
            Ok(sql) => sql,
            Err(_) if self.has_own_server() && self.is_unguarded() => {
                // Whatever it is, it is not what the name meant; if it fails, that stays.
                let name: Box<[u8]> = parse.name.into();
                let before = self.statements.remove(&name);
                batch.named.push(Change::Given(name, before));
                return Ok(StepKind::Own(Message::Parse));
            }
            Err(refusal) => return Err(refusal.into()),
        };
        let mut types = [0u32; 32];
        let count = parse.param_types().len();
        let statement = if count <= types.len() {
            parse.param_types().zip(&mut types).for_each(|(oid, slot)| *slot = oid);
            self.services.statements.intern(&sql, &types[..count], &self.names)
        } else {
            let types: Vec<u32> = parse.param_types().take(TYPES_MAX).collect();
            self.services.statements.intern(&sql, &types, &self.names)
        };
        let kept = self.facts(batch, &statement)?;
        self.check_failed(&kept.analysis, batch.has_ended_failure)?;
        if !parse.name.is_empty() {
            self.check_name(parse.name, &statement)?;
        }
        let name: Box<[u8]> = parse.name.into();
        let given = statement.clone();
        let (statement, kept, _) = self.resolved(&batch.snapshot, statement, kept)?;
        batch.named.push(self.statements.give(&name, given));
        Ok(match self.place(batch, &kept) {
            Place::Server => {
                // A text that no login could ever run is refused now, not at its Bind.
                self.check_parse(batch, &kept)?;
                batch.needs_server = true;
                StepKind::Parse(statement)
            }
            Place::Local => StepKind::Local(Message::Parse, PARSE_COMPLETE),
            Place::Control => StepKind::Control(Message::Parse, statement, kept),
        })
    }

    /// Texts are read otherwise behind a RESET ALL.
    pub(super) fn has_own_text(&self) -> bool {
        self.encoding() != Encoding::Utf8
            || self.has_escapes
            || self.ledger.startup().keys().any(|name| params::is_of_text(name))
    }

    /// An effect under way after which texts are read otherwise.
    fn changes_text(&self, effect: &Confirmed) -> bool {
        match effect {
            Confirmed::Set(changes) => changes.iter().any(|of| params::is_of_text(&of.name)),
            Confirmed::ResetAll | Confirmed::DiscardAll => self.has_own_text(),
            _ => false,
        }
    }

    /// Facts of a statement under the catalog of now.
    pub(super) fn facts(&self, batch: &Batch, statement: &Statement) -> Result<Arc<Kept>, Trouble> {
        let text = statement.sql();
        if batch.changes_text && (!text.is_ascii() || text.contains('\\')) {
            return Err(refusals::unsupported(
                "text that is not plain ASCII behind a change of how texts are read in one batch",
                "Send Sync behind it.",
            )
            .into());
        }
        if self.encoding().encode(text).is_none() {
            return Err(invalid_text(self.encoding()).into());
        }
        if self.is_unreadable(text) {
            return match self.is_unguarded() {
                true => Ok(Arc::new(Kept::unread())),
                false => Err(refusals::nonstandard_strings().into()),
            };
        }
        match statement.analysis(&self.services.analyzer, &batch.snapshot.catalog) {
            Err(_) if self.is_unguarded() => Ok(Arc::new(Kept::unread())),
            outcome => outcome.map_err(|error| Trouble::Refused(crate::route::refuse_text(&error))),
        }
    }

    /// Where a statement is answered, as far as it says by itself.
    pub(super) fn place(&self, batch: &Batch, kept: &Kept) -> Place {
        // Behind what a server runs, or what begins or ends a block, a setting is the server's: their
        // order counts. So is a RESET that is rolled back with the batch.
        let resets = |only: &crate::sql::Statement| {
            matches!(only.effect, Effect::Reset(_) | Effect::ResetAll)
        };
        let is_served = self.attached.is_some()
            || batch.needs_server
            || batch.has_control
            || (matches!(self.block, Block::None) && kept.analysis.statements.iter().all(resets));
        match kept.analysis.statements.as_slice() {
            [only] if matches!(only.effect, Effect::Transaction(_)) => Place::Control,
            [only] if self.is_local(only, is_served) => Place::Local,
            _ => Place::Server,
        }
    }

    /// Parse and Describe send text to a server with no hospital known. What is wrong with it
    /// whatever the values are is said at once; the rest is Bind's.
    fn check_parse(&self, batch: &Batch, kept: &Kept) -> Result<(), Trouble> {
        if self.is_unguarded() {
            return Ok(());
        }
        if kept.analysis.statements.iter().all(|s| s.problems.is_empty()) {
            return Ok(());
        }
        let is_unknown = kept.analysis.statements.iter().any(|s| s.unknown_names);
        if is_unknown && batch.changes_names {
            return Err(names_have_changed());
        }
        self.admit(&kept.analysis).map_err(|refusal| match is_unknown {
            true => Trouble::Unknown(refusal),
            false => Trouble::Refused(refusal),
        })
    }

    fn look_at_bind(&mut self, batch: &mut Batch, body: Range<usize>) -> Result<StepKind, Trouble> {
        let bind = Bind::read(&self.input.as_slice()[body.clone()])?;
        self.check_spelling(Kind::Statement, bind.statement)?;
        self.check_spelling(Kind::Portal, bind.portal)?;
        if self.is_servers_own(bind.statement) {
            return Ok(StepKind::Own(Message::Bind));
        }
        let statement = self.statement(bind.statement)?;
        let kept = self.facts(batch, &statement)?;
        self.check_failed(&kept.analysis, batch.has_ended_failure)?;
        let told = self.statements.told(bind.statement);
        let (statement, kept, gives) = self.resolved(&batch.snapshot, statement, kept)?;
        if let Some(name) = &gives {
            self.check_name(name.as_bytes(), statement.makes().unwrap_or(&statement))?;
        }
        if let Some(made) = statement.makes() {
            let body = self.facts(batch, made)?;
            self.check_prepared(&body)?;
        }
        if batch.changes_names && !self.is_unguarded() {
            return Err(names_have_changed());
        }
        let is_unknown = kept.analysis.statements.iter().any(|s| s.unknown_names);
        let place = self.place(batch, &kept);
        if let Place::Server = place {
            if !bind.portal.is_empty() && has_effect(&kept) && !self.is_unguarded() {
                // FETCH could run it, unseen.
                return Err(refusals::unsupported(
                    "a statement that changes the session in a portal with a name",
                    "Bind it to the unnamed portal.",
                )
                .into());
            }
            if !bind.portal.is_empty()
                && is_looked_up_late(&statement, &kept)
                && !self.is_unguarded()
            {
                return Err(refusals::unsupported(
                    "COPY, EXECUTE, TRUNCATE or ANALYZE in a portal with a name",
                    "Bind it to the unnamed portal.",
                )
                .into());
            }
            let values = BindValues::new(bind, &kept);
            let bound = batch.route.and_then(bound_of);
            match self.decide(&batch.snapshot, &kept.analysis, &values, bound) {
                Ok(route) => batch.route = Some(merge(batch.route, route, &kept)),
                Err(refusal) if is_unknown => return Err(Trouble::Unknown(refusal)),
                Err(refusal) => return Err(refusal.into()),
            }
            batch.needs_server = true;
            batch.uses(&statement, !bind.statement.is_empty(), told);
            batch.changes_names |= kept.analysis.statements.iter().any(params::changes_names);
        }
        batch.portals.retain(|portal| *portal.name != *bind.portal);
        batch.portals.push(LookedPortal {
            name: bind.portal.into(),
            statement: statement.clone(),
            place,
            frame: body.start - HEADER_BYTES..body.end,
        });
        Ok(match place {
            Place::Server => StepKind::Bind(statement, gives),
            Place::Local => StepKind::Local(Message::Bind, BIND_COMPLETE),
            Place::Control => {
                batch.has_control = true;
                if let Some(Effect::Transaction(Transaction::Begin(modes))) =
                    kept.analysis.statements.first().map(|statement| &statement.effect)
                {
                    batch.begins = Some(*modes);
                }
                StepKind::Control(Message::Bind, statement, kept)
            }
        })
    }

    /// The statement of a name, for what names and literals mean now: it may be parsed under that.
    pub(super) fn statement(&self, name: &[u8]) -> Result<Arc<Statement>, Trouble> {
        self.named(name).ok_or_else(|| refusals::no_statement(&name_of(name)).into())
    }

    /// Postgres cuts names to 63 bytes: two that differ behind that are one to it, and would be two to
    /// pgward. So are two spellings of one name, where client_encoding changes between them. Shared
    /// statements have names of pgward's own, whatever the client calls them.
    fn check_spelling(&self, kind: Kind, name: &[u8]) -> Result<(), Trouble> {
        let is_servers = kind == Kind::Portal || self.has_own_server();
        let what = if is_servers && name.len() > NAME_BYTES_MAX {
            "a name of more than 63 bytes"
        } else if kind == Kind::Statement && is_servers && !name.is_ascii() && !self.is_unguarded()
        {
            "a statement's name with other than ASCII characters in session mode"
        } else {
            return Ok(());
        };
        Err(refusals::unsupported(what, "Use another name for the statement or portal.").into())
    }

    /// A name that pgward has not heard of, and the session's own server may have (PREPARE).
    fn is_servers_own(&self, name: &[u8]) -> bool {
        self.has_own_server() && self.is_unguarded() && self.statements.get(name).is_none()
    }

    fn look_at_describe(
        &mut self,
        batch: &mut Batch,
        name: Box<[u8]>,
    ) -> Result<StepKind, Trouble> {
        let statement = self.statement(&name)?;
        let kept = self.facts(batch, &statement)?;
        let (statement, kept, _) = self.resolved(&batch.snapshot, statement, kept)?;
        Ok(match self.place(batch, &kept) {
            Place::Server => {
                // The server looks its names up once more, and a Bind finds what that has found, though a
                // temporary table be made in between.
                self.check_parse(batch, &kept)?;
                batch.needs_server = true;
                batch.uses(&statement, !name.is_empty(), self.statements.told(&name));
                if !self.has_own_server() {
                    batch.described.push(name);
                }
                StepKind::DescribeStatement(statement)
            }
            Place::Control => StepKind::Control(Message::Describe, statement, kept),
            Place::Local => {
                let mut out = BytesMut::new();
                let types: Vec<u32> = match statement.types() {
                    [] if statement.sql().contains("$1") => vec![25],
                    types => types.iter().map(|oid| if *oid == 0 { 25 } else { *oid }).collect(),
                };
                backend::write_parameter_description(&mut out, &types);
                if let Some(only) = kept.analysis.statements.first() {
                    Self::describe_locally(only).write_description(&mut out);
                }
                StepKind::Local(Message::Describe, out.freeze())
            }
        })
    }

    /// What the client is told of a name amid the batch is noted on the name, which is gone by then: such
    /// a one stays gone, whatever becomes of the message that took it.
    pub(super) fn unless_described(&self, batch: &Batch, change: Change) -> Change {
        let held = self.attached.iter().flat_map(|attached| &attached.described);
        let mut described = held.chain(&batch.described);
        match change {
            Change::Taken(name, _) if described.any(|of| *of == name) => Change::Taken(name, None),
            Change::AllTaken(mut before) => {
                described.for_each(|name| drop(before.remove(name)));
                Change::AllTaken(before)
            }
            change => change,
        }
    }

    fn look_at_close(
        &mut self,
        batch: &mut Batch,
        body: Range<usize>,
    ) -> Result<StepKind, Trouble> {
        let named = Named::read_close(&self.input.as_slice()[body])?;
        self.check_spelling(named.kind, named.name)?;
        Ok(match named.kind {
            Kind::Statement => {
                let change = self.statements.take(named.name);
                let change = self.unless_described(batch, change);
                batch.named.push(change);
                StepKind::CloseStatement
            }
            Kind::Portal if self.attached.is_some() || batch.needs_server => {
                batch.needs_server = true;
                StepKind::Portal(Message::Close)
            }
            // Where transaction control goes in the end, the rest of the batch says.
            Kind::Portal if batch.is_control(named.name) => StepKind::Portal(Message::Close),
            Kind::Portal => StepKind::Local(Message::Close, CLOSE_COMPLETE),
        })
    }
}

/// Whether it does something to the session: a FETCH, or a portal of the same name, could run it
/// unseen.
fn has_effect(kept: &Kept) -> bool {
    let is_none = |effect: &Effect| matches!(effect, Effect::None | Effect::Show(_));
    kept.analysis.statements.iter().any(|statement| !is_none(&statement.effect))
}

/// An effect under way after which names mean something else; `may_undo`: so they do behind the end of
/// the transaction, or a way back in it.
pub(super) fn changes_names(effect: &Confirmed, may_undo: bool) -> bool {
    match effect {
        Confirmed::Control(control) => may_undo && params::ends_settings(control),
        Confirmed::Set(changes) => changes.iter().any(|change| params::is_of_names(&change.name)),
        Confirmed::Temporary(Temporary::Fills) => false,
        Confirmed::ResetAll | Confirmed::Temporary(_) => true,
        _ => false,
    }
}

/// Whether the server looks up its names when it runs, and not when it is bound: by then they may mean
/// something else. The unnamed portal goes with what could change that.
fn is_looked_up_late(statement: &Statement, kept: &Kept) -> bool {
    let is_late = |command| matches!(command, "COPY" | "TRUNCATE TABLE" | "ANALYZE");
    statement.executes().is_some() || kept.analysis.statements.iter().any(|of| is_late(of.command))
}

fn names_have_changed() -> Trouble {
    let what =
        "search_path, role or a temporary table changed ahead of other statements in one batch";
    refusals::unsupported(what, "Send Sync behind it.").into()
}

/// A name as the client wrote it, for an error about it.
pub(super) fn name_of(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// What a batch is tied to by the members routed so far.
fn bound_of(route: Route) -> Option<Bound> {
    match route {
        // The role may still rise: a member that writes is not refused for a read before it.
        Route::One { hospital, shard, .. } => Some(Bound { hospital, shard, role: Role::Primary }),
        Route::Any { .. } => None,
    }
}

/// The route of two members: one shard if either has one, the primary if either needs it.
fn merge(before: Option<Route>, next: Route, kept: &Kept) -> Route {
    let is_read = kept.analysis.statements.iter().all(|s| s.access == Access::Read);
    let role_of = |route: Route| match route {
        Route::One { role, .. } | Route::Any { role } => role,
    };
    let Some(before) = before else { return next };
    // A member that reads rides along: its own role says primary only because the batch was
    // called bound to one.
    let needs_primary = role_of(before) == Role::Primary || !is_read;
    let role = if needs_primary { Role::Primary } else { Role::Replica };
    match (before, next) {
        (Route::One { hospital, shard, .. }, Route::One { hospital: other, .. }) => {
            Route::One { hospital: hospital.or(other), shard, role }
        }
        (Route::One { hospital, shard, .. }, Route::Any { .. })
        | (Route::Any { .. }, Route::One { hospital, shard, .. }) => {
            Route::One { hospital, shard, role }
        }
        (Route::Any { .. }, Route::Any { .. }) => Route::Any { role },
    }
}
