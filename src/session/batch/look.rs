//! Looks at a batch before anything of it goes out: names its statements, routes each Bind, and says
//! what the whole will do.

use std::ops::Range;
use std::sync::Arc;

use bytes::BytesMut;

use super::{
    BIND_COMPLETE, Batch, BindValues, CLOSE_COMPLETE, LookedPortal, NoValues, PARSE_COMPLETE,
    Place, Portal, Step, StepKind, Trouble,
};
use crate::route::{Bound, Role, Route, refusals};
use crate::server::Message;
use crate::session::block::Block;
use crate::session::query::ends_failure;
use crate::session::run::{Confirmed, Run};
use crate::session::statements::{Kept, Origin, Statement};
use crate::session::{Session, answer, params, utf8};
use crate::sql::{Access, Effect, Isolation, Transaction, TransactionModes};
use crate::wire::backend;
use crate::wire::frontend::{Bind, Execute, Kind, Named, Parse, tag};
use crate::wire::{self, HEADER_BYTES};

/// Longest name that Postgres tells from others (NAMEDATALEN less its end).
const NAME_BYTES_MAX: usize = 63;
/// Declared parameter types that a Parse may carry (Postgres's own limit).
const TYPES_MAX: usize = 65_535;

impl Session {
    pub(super) fn look_at_batch(&mut self, batch: &mut Batch) -> Result<(), Trouble> {
        batch.changes_names = self
            .attached
            .as_ref()
            .is_some_and(|attached| attached.effects.iter().any(changes_names));
        let mut at = 0;
        while at < batch.end {
            let Ok(Some(header)) = wire::header(&self.input.as_slice()[at..], usize::MAX) else {
                break;
            };
            let frame = at..at + header.total;
            at = frame.end;
            self.look_at_message(batch, header.tag, frame)?;
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
                self.check_name_length(named.kind, named.name)?;
                match named.kind {
                    Kind::Statement if self.is_servers_own(named.name) => {
                        StepKind::Own(Message::Describe)
                    }
                    Kind::Statement => {
                        let statement = self.statement(named.name)?;
                        self.look_at_describe(batch, statement)?
                    }
                    Kind::Portal => {
                        let name = named.name.to_vec();
                        self.portal_step(batch, Message::Describe, &name)?
                    }
                }
            }
            tag::EXECUTE => {
                let execute = Execute::read(&self.input.as_slice()[body])?;
                self.check_name_length(Kind::Portal, execute.portal)?;
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
        self.check_name_length(Kind::Statement, parse.name)?;
        let sql = match utf8(parse.sql) {
            Ok(sql) => sql,
            Err(_) if self.has_own_server() && self.is_unguarded() => {
                let name = parse.name.to_vec();
                self.statements.remove(&name);
                return Ok(StepKind::Own(Message::Parse));
            }
            Err(refusal) => return Err(refusal.into()),
        };
        let mut types = [0u32; 32];
        let count = parse.param_types().len();
        let statement = if count <= types.len() {
            parse.param_types().zip(&mut types).for_each(|(oid, slot)| *slot = oid);
            self.services.statements.intern(sql, &types[..count], &self.names)
        } else {
            let types: Vec<u32> = parse.param_types().take(TYPES_MAX).collect();
            self.services.statements.intern(sql, &types, &self.names)
        };
        let kept = self.facts(batch, &statement)?;
        self.check_failed(&kept.analysis, batch.has_ended_failure)?;
        if !parse.name.is_empty() {
            self.check_name(parse.name)?;
        }
        let before = self.statements.get(parse.name).cloned();
        let name: Box<[u8]> = parse.name.into();
        let given = statement.clone();
        let (statement, kept, _) = self.resolved(&batch.snapshot, statement, kept)?;
        self.statements.insert(&name, given);
        batch.named.push((Some(name), before));
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

    /// Facts of a statement under the catalog of now.
    pub(super) fn facts(&self, batch: &Batch, statement: &Statement) -> Result<Arc<Kept>, Trouble> {
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

    /// Parse sends text to a server with no hospital known. What is wrong with it whatever the
    /// values are is said at once; the rest is Bind's.
    fn check_parse(&self, batch: &Batch, kept: &Kept) -> Result<(), Trouble> {
        if self.is_unguarded() {
            return Ok(());
        }
        let problems = kept.analysis.statements.iter().flat_map(|s| s.problems.first());
        if problems.clone().next().is_none() {
            return Ok(());
        }
        let is_unknown = kept.analysis.statements.iter().any(|s| s.unknown_names);
        match self.decide(&batch.snapshot, &kept.analysis, &NoValues(kept), None) {
            Err(refusal) if is_unknown => Err(Trouble::Unknown(refusal)),
            Err(refusal) => Err(Trouble::Refused(refusal)),
            Ok(_) => Ok(()),
        }
    }

    fn look_at_bind(&mut self, batch: &mut Batch, body: Range<usize>) -> Result<StepKind, Trouble> {
        let bind = Bind::read(&self.input.as_slice()[body.clone()])?;
        self.check_name_length(Kind::Statement, bind.statement)?;
        self.check_name_length(Kind::Portal, bind.portal)?;
        if self.is_servers_own(bind.statement) {
            return Ok(StepKind::Own(Message::Bind));
        }
        let statement = self.statement(bind.statement)?;
        let kept = self.facts(batch, &statement)?;
        self.check_failed(&kept.analysis, batch.has_ended_failure)?;
        let (statement, kept, gives) = self.resolved(&batch.snapshot, statement, kept)?;
        if let Some(name) = &gives {
            self.check_name(name.as_bytes())?;
        }
        if let Some(made) = statement.makes() {
            let body = self.facts(batch, made)?;
            self.check_prepared(&batch.snapshot, &body)?;
        }
        if batch.changes_names && !self.is_unguarded() {
            return Err(refusals::unsupported(
                "search_path or role set ahead of other statements in one batch",
                "Send Sync behind it.",
            )
            .into());
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
            let values = BindValues::new(bind, &kept);
            let bound = batch.route.and_then(bound_of);
            match self.decide(&batch.snapshot, &kept.analysis, &values, bound) {
                Ok(route) => batch.route = Some(merge(batch.route, route, &kept)),
                Err(refusal) if is_unknown => return Err(Trouble::Unknown(refusal)),
                Err(refusal) => return Err(refusal.into()),
            }
            batch.needs_server = true;
            batch.changes_names |=
                kept.analysis.statements.iter().any(|s| params::changes_names(&s.effect));
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
    /// pgward. Shared statements have names of pgward's own, whatever the client calls them.
    fn check_name_length(&self, kind: Kind, name: &[u8]) -> Result<(), Trouble> {
        let is_servers = kind == Kind::Portal || self.has_own_server();
        match is_servers && name.len() > NAME_BYTES_MAX {
            true => Err(refusals::unsupported(
                "a name of more than 63 bytes",
                "Use a shorter name for the statement or portal.",
            )
            .into()),
            false => Ok(()),
        }
    }

    /// A name that pgward has not heard of, and the session's own server may have (PREPARE).
    fn is_servers_own(&self, name: &[u8]) -> bool {
        self.has_own_server() && self.is_unguarded() && self.statements.get(name).is_none()
    }

    /// The statement of a portal and where it runs; `None` where the server that is held may know
    /// it.
    pub(super) fn portal(
        &self,
        batch: &Batch,
        name: &[u8],
    ) -> Result<Option<(Arc<Statement>, Place)>, Trouble> {
        if let Some(portal) = batch.portals.iter().find(|portal| *portal.name == *name) {
            return Ok(Some((portal.statement.clone(), portal.place)));
        }
        let Some(attached) = &self.attached else {
            if self.has_own_server() {
                return Ok(None);
            }
            return Err(refusals::no_portal(&name_of(name)).into());
        };
        if attached.has_doubtful_portals && !self.is_unguarded() {
            return Err(refusals::no_portal(&name_of(name)).into());
        }
        let Some(portal) = attached.portals.iter().find(|portal| *portal.name == *name) else {
            return Ok(None);
        };
        let kept = self.facts(batch, &portal.statement)?;
        Ok(Some((portal.statement.clone(), self.place(batch, &kept))))
    }

    /// Execute or Describe of a portal.
    fn portal_step(
        &mut self,
        batch: &mut Batch,
        message: Message,
        name: &[u8],
    ) -> Result<StepKind, Trouble> {
        let portal = self.portal(batch, name)?;
        if message == Message::Execute
            && let Some((statement, place)) = &portal
        {
            self.look_at_execute(batch, statement, *place)?;
        }
        let Some((statement, place)) = portal.filter(|(_, place)| *place != Place::Server) else {
            batch.needs_server = true;
            return Ok(match message {
                Message::Execute => StepKind::Execute,
                _ => StepKind::Portal(message),
            });
        };
        let kept = self.facts(batch, &statement)?;
        if place == Place::Control {
            batch.has_ended_failure |= message == Message::Execute
                && kept.analysis.statements.iter().any(|only| ends_failure(&only.effect));
            return Ok(StepKind::Control(message, statement, kept));
        }
        let Some(only) = kept.analysis.statements.first() else {
            return Err(refusals::internal().into());
        };
        let mut out = BytesMut::new();
        if message == Message::Describe {
            Self::describe_locally(only).write_description(&mut out);
        } else {
            let local = self.execute_locally(only, &kept, batch, name, statement.sql())?;
            local.write_result(&mut out);
        }
        Ok(StepKind::Local(message, out.freeze()))
    }

    /// What an Execute does to the meaning of what follows it in the batch.
    fn look_at_execute(
        &self,
        batch: &mut Batch,
        statement: &Statement,
        place: Place,
    ) -> Result<(), Trouble> {
        let kept = self.facts(batch, statement)?;
        let effects = kept.analysis.statements.iter().map(|statement| &statement.effect);
        let may_undo = self.ledger.may_undo_names();
        batch.changes_names |= place != Place::Local
            && effects
                .clone()
                .any(|of| params::changes_names(of) || (may_undo && params::takes_back(of)));
        // Answered at once, it would come ahead of them.
        if batch.needs_server
            && place == Place::Local
            && effects.clone().any(|of| matches!(of, Effect::Discard(_)))
        {
            return Err(refusals::unsupported(
                "DISCARD behind other statements in one batch",
                "Send Sync before it.",
            )
            .into());
        }
        Ok(())
    }

    /// Runs a local statement with the parameters of its portal's Bind.
    fn execute_locally(
        &mut self,
        only: &crate::sql::Statement,
        kept: &Kept,
        batch: &mut Batch,
        portal: &[u8],
        text: &str,
    ) -> Result<answer::Local, Trouble> {
        batch.ledger_before.get_or_insert_with(|| Box::new(self.ledger.clone()));
        let bound = batch.portals.iter().find(|bound| *bound.name == *portal);
        let Some(frame) = bound.map(|bound| bound.frame.clone()) else {
            return Ok(self.answer(only, &NoValues(kept), text)?);
        };
        let body = self.input.as_slice()[frame.start + HEADER_BYTES..frame.end].to_vec();
        let values = BindValues::new(Bind::read(&body)?, kept);
        Ok(self.answer(only, &values, text)?)
    }

    fn look_at_describe(
        &mut self,
        batch: &mut Batch,
        statement: Arc<Statement>,
    ) -> Result<StepKind, Trouble> {
        let kept = self.facts(batch, &statement)?;
        let (statement, kept, _) = self.resolved(&batch.snapshot, statement, kept)?;
        Ok(match self.place(batch, &kept) {
            Place::Server => {
                batch.needs_server = true;
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

    fn look_at_close(
        &mut self,
        batch: &mut Batch,
        body: Range<usize>,
    ) -> Result<StepKind, Trouble> {
        let named = Named::read_close(&self.input.as_slice()[body])?;
        self.check_name_length(named.kind, named.name)?;
        Ok(match named.kind {
            Kind::Statement => {
                self.statements.remove(named.name);
                // Close is not undone by a failure; a Parse of the name before it is no more. It
                // keeps its place: replies are counted.
                let of_name = |name: &Option<Box<[u8]>>| name.as_deref() == Some(named.name);
                let given = batch.named.iter_mut().filter(|(name, _)| of_name(name));
                given.for_each(|(name, _)| *name = None);
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

    /// What the batch as a whole does, in the order in which it runs.
    pub(super) fn complete_run(&mut self, batch: &mut Batch, run: &mut Run) -> Result<(), Trouble> {
        if let Some(route) = batch.route {
            run.route = route;
        } else if let Some(attached) = &self.attached {
            let Bound { hospital, shard, role } = attached.bound;
            run.route = Route::One { hospital, shard, role };
        }
        // Only a whole batch without transaction control can stand beside the block.
        run.is_aside = self.attached.is_none()
            && matches!(self.block, Block::Pending(_))
            && matches!(run.route, Route::Any { .. })
            && batch.steps.iter().all(|step| !matches!(step.kind, StepKind::Control(..)))
            && (batch.has_sync || self.is_preparation(batch));
        run.is_own_batch =
            self.attached.is_none() && !self.has_own_server() && self.is_preparation(batch);
        if !batch.needs_server && self.attached.is_none() {
            return Ok(());
        }
        // What begins here may write later, unless it says that it won't.
        // So may what has yet to come of a batch whose Sync is not there.
        let is_whole = batch.has_sync || run.is_own_batch || run.is_aside;
        if batch.begins.is_some_and(may_write) || (!is_whole && self.may_write_later()) {
            run.route = match run.route {
                Route::One { hospital, shard, .. } => {
                    Route::One { hospital, shard, role: Role::Primary }
                }
                Route::Any { .. } => Route::Any { role: Role::Primary },
            };
        }
        // Effects come in the order of the Executes, with the values of their portals' Binds.
        let mut bound: Vec<Portal> = Vec::new();
        let mut closed: Vec<Box<[u8]>> = Vec::new();
        for step in &batch.steps {
            let body = &self.input.as_slice()[step.frame.start + HEADER_BYTES..step.frame.end];
            match &step.kind {
                StepKind::Bind(statement, _) | StepKind::Control(Message::Bind, statement, _) => {
                    let bind = Bind::read(body)?;
                    let kept = self.facts(batch, statement)?;
                    let values = BindValues::new(bind, &kept);
                    let mut effect = run.effect_of(self, &kept.analysis, &values)?;
                    if let StepKind::Bind(prepare, Some(name)) = &step.kind
                        && let Some(made) = prepare.makes()
                    {
                        effect = Confirmed::Prepared(name.clone(), made.clone());
                    }
                    bound.retain(|portal| *portal.name != *bind.portal);
                    closed.retain(|name| **name != *bind.portal);
                    let (name, statement) = (bind.portal.into(), statement.clone());
                    bound.push(Portal { name, statement, effect });
                }
                StepKind::Own(_) => run.on_unknown(),
                StepKind::Portal(Message::Close) => {
                    let name = Named::read_close(body)?.name;
                    bound.retain(|portal| *portal.name != *name);
                    closed.push(name.into());
                }
                StepKind::Execute | StepKind::Control(Message::Execute, ..) => {
                    let name = Execute::read(body)?.portal;
                    let of_name = |portal: &&Portal| *portal.name == *name;
                    if let Some(portal) = bound.iter_mut().find(|portal| of_name(&&**portal)) {
                        run.effects.push_back(portal.take_effect());
                        continue;
                    }
                    let held = self.attached.as_mut().map_or(&mut [][..], |held| &mut held.portals);
                    let Some(portal) = held.iter_mut().find(|portal| of_name(&&**portal)) else {
                        // A cursor of the server's: reading from it changes nothing.
                        run.effects.push_back(Confirmed::Nothing);
                        continue;
                    };
                    run.effects.push_back(portal.take_effect());
                    let statement = portal.statement.clone();
                    let kept = self.facts(batch, &statement)?;
                    run.effect_of(self, &kept.analysis, &NoValues(&kept))?;
                }
                _ => {}
            }
        }
        batch.bound = bound;
        self.find_sole(batch, run)?;
        run.check_aside()?;
        // What is parsed behind a setting in the same batch was looked at without it.
        run.is_opaque |= batch.has_several() && run.effects.iter().any(changes_literals);
        batch.closed = closed;
        // Pieces of a long batch are followed throughout: their replies come later.
        let has_answers = batch.has_sync || self.ends_with_flush(batch);
        let is_first = self.attached.as_ref().is_none_or(|attached| attached.effects.is_empty());
        if has_answers && is_first {
            run.drop_idle_effects();
        }
        Ok(())
    }
}

impl Session {
    /// Whether what the client sends next may write, where no server has been chosen yet.
    fn may_write_later(&self) -> bool {
        self.attached.is_none()
            && match &self.block {
                Block::Pending(pending) => may_write(pending.modes()),
                _ => true,
            }
    }

    /// The batch's only Bind, and whether its statement may be parsed anew behind the client's back
    /// if DDL has changed what it answers. On a connection of its own a client would get an error
    /// for what it prepared before that, and not for what it prepares now.
    fn find_sole(&self, batch: &Batch, run: &mut Run) -> Result<(), Trouble> {
        let mut binds = batch.steps.iter().filter_map(|step| match &step.kind {
            StepKind::Bind(statement, _) => Some((statement, step)),
            _ => None,
        });
        let (first, second) = (binds.next(), binds.next());
        let Some((statement, bind)) = first else { return Ok(()) };
        let is_own = self.has_own_server();
        let is_plain = |step: &Step| match &step.kind {
            StepKind::Parse(other) | StepKind::DescribeStatement(other) => other.id == statement.id,
            StepKind::Bind(..)
            | StepKind::Portal(Message::Describe)
            | StepKind::Execute
            | StepKind::Sync => true,
            _ => false,
        };
        let is_alone = second.is_none()
            && batch.has_sync
            && self.attached.is_none()
            && self.pinned.is_none()
            && matches!(self.block, Block::None)
            && batch.steps.iter().all(is_plain)
            && !matches!(statement.origin(), Origin::Execute(_) | Origin::Prepare(_));
        let parses = |step: &Step| matches!(step.kind, StepKind::Parse(_));
        let describes = |step: &Step| matches!(step.kind, StepKind::Portal(Message::Describe));
        // It learns the new columns from this very batch, and its values mean what they say.
        let body = &self.input.as_slice()[bind.frame.start + HEADER_BYTES..bind.frame.end];
        let bind = Bind::read(body)?;
        let count = bind.param_count();
        let is_typed = statement.types().iter().filter(|oid| **oid != 0).count() >= count;
        let is_text = bind.has_text_only();
        let is_told = batch.steps.iter().any(parses)
            || (batch.steps.iter().any(describes) && (is_typed || is_text));
        if statement.is_stale() && !(is_alone && is_told) && !is_own {
            return Err(refusals::stale_statement().into());
        }
        if second.is_none() {
            run.sole = Some(statement.clone());
            run.is_healable = is_alone && is_told && !is_own;
        }
        Ok(())
    }
}

/// Whether it does something to the session: a FETCH, or a portal of the same name, could run it
/// unseen.
fn has_effect(kept: &Kept) -> bool {
    let is_none = |effect: &Effect| matches!(effect, Effect::None | Effect::Show(_));
    kept.analysis.statements.iter().any(|statement| !is_none(&statement.effect))
}

/// An effect under way after which names mean something else.
pub(super) fn changes_names(effect: &Confirmed) -> bool {
    match effect {
        Confirmed::Set(changes) => changes.iter().any(|change| params::is_of_names(&change.name)),
        Confirmed::ResetAll => true,
        _ => false,
    }
}

/// An effect after which literals mean something else.
fn changes_literals(effect: &Confirmed) -> bool {
    match effect {
        Confirmed::Set(changes) => {
            changes.iter().any(|change| params::OF_LITERALS.contains(&change.name.as_str()))
        }
        Confirmed::ResetAll => true,
        _ => false,
    }
}

/// Whether what is in a block that was begun so may write.
fn may_write(modes: TransactionModes) -> bool {
    modes.read_only != Some(true) || modes.isolation == Some(Isolation::Serializable)
}

/// A name as the client wrote it, for an error about it.
fn name_of(name: &[u8]) -> String {
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
