//! The extended protocol: gathers a batch (what a client sends up to Sync, Flush or a bound), has
//! each Bind routed, and puts it on one server under the server's own statement names.
//!
//! A batch before its Sync is one transaction and belongs to one hospital, so all its members
//! agree before the first goes out. What was gathered is bounded by `batch_bytes_max`; a longer
//! batch goes out in pieces, bound to the server that the first piece chose. A refusal fails the
//! batch as an error of the server would. Manual: "Extended Query".

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};

use super::block::Block;
use super::exchange::{Confirmed, Relayed, Run, Running, Unattached, Until, send_sync};
use super::statements::{Kept, Statement};
use super::{Attached, End, Session, params, violation};
use crate::catalog::Snapshot;
use crate::route::{Bound, Role, Route, Values, refusals};
use crate::server::{Expect, Message, ServerConn};
use crate::sql::{Access, Effect, Isolation, Transaction, TransactionModes};
use crate::wire::backend::{self, ErrorReply};
use crate::wire::frontend::{self, Bind, Execute, Kind, Named, Parse, tag};
use crate::wire::{self, HEADER_BYTES};

/// Replies of pgward's own that say nothing but that it was done.
const PARSE_COMPLETE: Bytes = Bytes::from_static(b"1\0\0\0\x04");
const BIND_COMPLETE: Bytes = Bytes::from_static(b"2\0\0\0\x04");
const CLOSE_COMPLETE: Bytes = Bytes::from_static(b"3\0\0\0\x04");
/// Messages of a usual batch: Parse, Bind, Describe, Execute, Sync.
const STEPS_USUAL: usize = 6;
/// Declared parameter types that a Parse may carry (Postgres's own limit).
const TYPES_MAX: usize = 65_535;

/// Messages that make up a batch.
pub(super) fn is_member(tag: u8) -> bool {
    matches!(
        tag,
        tag::PARSE | tag::BIND | tag::DESCRIBE | tag::EXECUTE | tag::CLOSE | tag::SYNC | tag::FLUSH
    )
}

/// One message of a batch, looked at.
struct Step {
    frame: Range<usize>,
    kind: StepKind,
}

enum StepKind {
    Parse(Arc<Statement>),
    Bind(Arc<Statement>),
    DescribeStatement(Arc<Statement>),
    /// Close of a statement: the server keeps the shared one.
    CloseStatement,
    /// Describe or Close of a portal, Execute: as sent.
    Portal(Message),
    Execute,
    /// Answered here when its turn comes.
    Local(Message, Bytes),
    /// Transaction control: the server's if the batch goes to one, else answered here.
    Control(Message, Arc<Statement>, Arc<Kept>),
    Sync,
    Flush,
}

/// Names given away by Parse messages, with what they meant before, in the order of the messages.
/// No name: it was closed again.
pub(super) type GivenNames = Vec<(Option<Box<[u8]>>, Option<Arc<Statement>>)>;

/// A portal on the server that is held.
pub(super) struct Portal {
    name: Box<[u8]>,
    statement: Arc<Statement>,
    /// What its Execute does to the session, with the values of its Bind.
    effect: Confirmed,
}

impl Portal {
    /// Its effect, once: a portal that goes on has done what it does.
    fn take_effect(&mut self) -> Confirmed {
        std::mem::replace(&mut self.effect, Confirmed::Nothing)
    }
}

/// A portal of a batch that is looked at.
struct LookedPortal {
    name: Box<[u8]>,
    statement: Arc<Statement>,
    place: Place,
    /// Its Bind.
    frame: Range<usize>,
}

/// A batch, looked at and not yet sent.
struct Batch {
    /// What names mean throughout it.
    snapshot: Arc<Snapshot>,
    steps: Vec<Step>,
    end: usize,
    route: Option<Route>,
    needs_server: bool,
    has_sync: bool,
    /// Names that this batch gave away, with what they meant before, to take back what fails.
    named: GivenNames,
    portals: Vec<LookedPortal>,
    /// As `portals`, of those that go to a server; filled in by `complete_run`.
    bound: Vec<Portal>,
    /// Portals that it closes and does not bind again.
    closed: Vec<Box<[u8]>>,
    /// A member changes the meaning of names, and the server has yet to confirm it.
    changes_names: bool,
    /// Transaction control is among its members.
    has_control: bool,
    /// BEGIN is among its members.
    begins: Option<TransactionModes>,
    /// The settings before its first statement that was answered here.
    ledger_before: Option<Box<params::Ledger>>,
}

impl Batch {
    fn new(snapshot: Arc<Snapshot>, end: usize) -> Self {
        Self {
            snapshot,
            steps: Vec::with_capacity(STEPS_USUAL),
            end,
            route: None,
            needs_server: false,
            has_sync: false,
            named: Vec::new(),
            portals: Vec::new(),
            bound: Vec::new(),
            closed: Vec::new(),
            changes_names: false,
            has_control: false,
            begins: None,
            ledger_before: None,
        }
    }

    fn is_control(&self, portal: &[u8]) -> bool {
        let of_name = |known: &&LookedPortal| *known.name == *portal;
        self.portals.iter().find(of_name).is_some_and(|known| known.place == Place::Control)
    }

    /// More than one statement is parsed or bound in it.
    fn has_several(&self) -> bool {
        let is_statement =
            |step: &&Step| matches!(step.kind, StepKind::Parse(_) | StepKind::Bind(_));
        self.steps.iter().filter(is_statement).count() > 2
    }

    /// It rolls a block back: it needs no word of the loss of what it rolls back.
    fn is_rollback(&self) -> bool {
        self.steps.iter().any(|step| match &step.kind {
            StepKind::Control(_, _, kept) => kept.analysis.statements.iter().any(|statement| {
                matches!(statement.effect, Effect::Transaction(Transaction::Rollback { .. }))
            }),
            _ => false,
        })
    }
}

/// Values of one Bind.
struct BindValues<'a> {
    bind: Bind<'a>,
    kept: &'a Kept,
}

impl Values for BindValues<'_> {
    fn param(&self, n: u16) -> Option<(i16, Option<&[u8]>)> {
        self.bind.param(n)
    }

    fn literal(&self, slot: u16) -> Option<std::borrow::Cow<'_, str>> {
        self.kept.literal(slot).map(std::borrow::Cow::Borrowed)
    }

    fn hint(&self) -> Result<Option<&str>, ()> {
        self.kept.hint()
    }
}

/// No values: a statement that is only described.
struct NoValues<'a>(&'a Kept);

impl Values for NoValues<'_> {
    fn param(&self, _n: u16) -> Option<(i16, Option<&[u8]>)> {
        None
    }

    fn literal(&self, slot: u16) -> Option<std::borrow::Cow<'_, str>> {
        self.0.literal(slot).map(std::borrow::Cow::Borrowed)
    }

    fn hint(&self) -> Result<Option<&str>, ()> {
        self.0.hint()
    }
}

enum Trouble {
    Refused(ErrorReply),
    /// As refused, and perhaps only because the catalog is old.
    Unknown(ErrorReply),
    End(End),
}

impl From<ErrorReply> for Trouble {
    fn from(refusal: ErrorReply) -> Self {
        Self::Refused(refusal)
    }
}

impl From<wire::Error> for Trouble {
    fn from(error: wire::Error) -> Self {
        Self::End(End::Fatal(violation(&error)))
    }
}

impl Session {
    /// Messages of the extended protocol stand at the front of the input. `false`: more must come
    /// before anything can be done.
    pub(super) async fn on_batch(&mut self, limit: usize) -> Result<bool, End> {
        if self.is_skipping {
            return self.skip(limit).await;
        }
        let Some(end) = self.batch_end(limit)? else { return Ok(false) };
        let loss = self.loss.take();
        let mut batch = Batch::new(self.services.catalog.current(), end);
        let before = self.ledger_before.take();
        batch.ledger_before.clone_from(&before);
        let mut looked = self.look_at_batch(&mut batch);
        if let Err(Trouble::Unknown(_)) = &looked
            && self.refresh_catalog().await
        {
            self.take_back_names(std::mem::take(&mut batch.named), 0);
            self.take_back_settings(&mut batch);
            batch = Batch::new(self.services.catalog.current(), end);
            batch.ledger_before = before;
            looked = self.look_at_batch(&mut batch);
        }
        if let Some(loss) = loss
            && !(looked.is_ok() && batch.is_rollback())
        {
            self.refuse_batch(batch, *loss).await?;
            return Ok(true);
        }
        let mut run = Run::new(Route::Any { role: Role::Replica });
        match looked.and_then(|()| self.complete_run(&mut batch, &mut run)) {
            Ok(()) => self.run_batch(batch, run).await?,
            Err(Trouble::End(end)) => return Err(end),
            Err(Trouble::Refused(refusal) | Trouble::Unknown(refusal)) => {
                self.refuse_batch(batch, refusal).await?;
            }
        }
        Ok(true)
    }

    /// Where the gathered batch ends: behind a Sync or Flush, before a message of another kind,
    /// or behind the last whole message once the bound is reached.
    fn batch_end(&self, limit: usize) -> Result<Option<usize>, End> {
        let input = self.input.as_slice();
        let bound = self.services.config.load().routing.batch_bytes_max;
        let mut at = 0;
        loop {
            match wire::header(&input[at..], limit) {
                Err(error) => return Err(End::Fatal(violation(&error))),
                Ok(Some(header)) if at + header.total <= input.len() => {
                    if !is_member(header.tag) {
                        return Ok(Some(at));
                    }
                    at += header.total;
                    if matches!(header.tag, tag::SYNC | tag::FLUSH) {
                        return Ok(Some(at));
                    }
                }
                Ok(_) if input.len() >= bound && at > 0 => return Ok(Some(at)),
                Ok(_) => return Ok(None),
            }
        }
    }

    /// Drops what follows a failure, up to its Sync.
    async fn skip(&mut self, limit: usize) -> Result<bool, End> {
        while let Some((tag, total)) = super::whole_frame(self.input.as_slice(), limit)? {
            if tag == tag::TERMINATE {
                return Err(End::Client);
            }
            self.input.advance(total);
            if tag == tag::SYNC {
                self.is_skipping = false;
                if self.attached.is_some() {
                    self.sync_server().await?;
                } else {
                    let status = self.block.status();
                    backend::write_ready_for_query(self.output.tail(), status);
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The batch fails: its names are taken back, its rest is dropped up to its Sync.
    async fn refuse_batch(&mut self, mut batch: Batch, refusal: ErrorReply) -> Result<(), End> {
        self.take_back_names(std::mem::take(&mut batch.named), 0);
        self.take_back_settings(&mut batch);
        self.refuse(refusal);
        // `skip` finds the Sync, which may be in what was gathered.
        self.is_skipping = true;
        // A client that asked with Flush waits for the error, and sends Sync only then.
        let Some(mut attached) = self.attached.take() else { return Ok(()) };
        let mut running = Running::new(false);
        let run = Run::new(Route::Any { role: Role::Primary });
        match self.relay(&mut attached, &mut running, Until::Settled, 0).await? {
            Relayed::Lost => self.on_lost(attached, &run, &running),
            _ => {
                self.settle(attached, &run, running);
                Ok(())
            }
        }
    }

    /// A failed batch takes with it what it has set here.
    fn take_back_settings(&mut self, batch: &mut Batch) {
        if let Some(ledger) = batch.ledger_before.take() {
            self.ledger = *ledger;
            self.renew_names();
        }
    }

    /// Names given by Parse messages beyond the first `confirmed` mean again what they did before.
    fn take_back_names(&mut self, named: GivenNames, confirmed: usize) {
        for (name, before) in named.into_iter().skip(confirmed).rev() {
            let Some(name) = name else { continue };
            match before {
                Some(statement) if !name.is_empty() => self.statements.insert(&name, statement),
                _ => self.statements.remove(&name),
            }
        }
    }

    /// As [`Self::take_back_names`], for a batch on its server.
    pub(super) fn take_back_unconfirmed(&mut self, attached: &mut Attached) {
        let confirmed = attached.checkout.server.pipeline().client_parses();
        self.take_back_names(std::mem::take(&mut attached.named), confirmed);
    }

    fn look_at_batch(&mut self, batch: &mut Batch) -> Result<(), Trouble> {
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
                match named.kind {
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
        let sql = super::utf8(parse.sql)?;
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
        self.check_failed(&kept.analysis)?;
        let max = self.services.config.load().pool.max_client_statements;
        let before = self.statements.get(parse.name).cloned();
        if !parse.name.is_empty() {
            if before.is_some() {
                return Err(refusals::duplicate_statement(&name_of(parse.name)).into());
            }
            if self.statements.len() >= max {
                return Err(refusals::too_many_statements().into());
            }
        }
        let name: Box<[u8]> = parse.name.into();
        self.statements.insert(&name, statement.clone());
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
    fn facts(&self, batch: &Batch, statement: &Statement) -> Result<Arc<Kept>, Trouble> {
        statement
            .analysis(&self.services.analyzer, &batch.snapshot.catalog)
            .map_err(|error| Trouble::Refused(crate::route::refuse_text(&error)))
    }

    /// Where a statement is answered, as far as it says by itself.
    fn place(&self, batch: &Batch, kept: &Kept) -> Place {
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
        let statement = self.statement(bind.statement)?;
        let kept = self.facts(batch, &statement)?;
        self.check_failed(&kept.analysis)?;
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
            if !bind.portal.is_empty() && sets_by_function(&kept) {
                // FETCH could run it, unseen.
                return Err(refusals::unsupported(
                    "set_config in a portal with a name",
                    "Bind it to the unnamed portal.",
                )
                .into());
            }
            let values = BindValues { bind, kept: &kept };
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
            Place::Server => StepKind::Bind(statement),
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
    fn statement(&self, name: &[u8]) -> Result<Arc<Statement>, Trouble> {
        match self.statements.get(name) {
            Some(statement) if *statement.names() == self.names => Ok(statement.clone()),
            Some(statement) => {
                let store = &self.services.statements;
                Ok(store.intern(statement.sql(), statement.types(), &self.names))
            }
            None => Err(refusals::no_statement(&name_of(name)).into()),
        }
    }

    /// The statement of a portal and where it runs; `None` where the server that is held may know
    /// it.
    fn portal(
        &self,
        batch: &Batch,
        name: &[u8],
    ) -> Result<Option<(Arc<Statement>, Place)>, Trouble> {
        if let Some(portal) = batch.portals.iter().find(|portal| *portal.name == *name) {
            return Ok(Some((portal.statement.clone(), portal.place)));
        }
        let Some(attached) = &self.attached else {
            return Err(refusals::no_portal(&name_of(name)).into());
        };
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
        if batch.needs_server && effects.clone().any(|of| matches!(of, Effect::Discard(_))) {
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
    ) -> Result<super::answer::Local, Trouble> {
        batch.ledger_before.get_or_insert_with(|| Box::new(self.ledger.clone()));
        let bound = batch.portals.iter().find(|bound| *bound.name == *portal);
        let Some(frame) = bound.map(|bound| bound.frame.clone()) else {
            return Ok(self.answer(only, &NoValues(kept), text)?);
        };
        let body = self.input.as_slice()[frame.start + HEADER_BYTES..frame.end].to_vec();
        let values = BindValues { bind: Bind::read(&body)?, kept };
        Ok(self.answer(only, &values, text)?)
    }

    fn look_at_describe(
        &mut self,
        batch: &mut Batch,
        statement: Arc<Statement>,
    ) -> Result<StepKind, Trouble> {
        let kept = self.facts(batch, &statement)?;
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
    fn complete_run(&mut self, batch: &mut Batch, run: &mut Run) -> Result<(), Trouble> {
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
        run.is_own_batch = self.attached.is_none() && self.is_preparation(batch);
        if !batch.needs_server && self.attached.is_none() {
            return Ok(());
        }
        // What begins here may write later, unless it says that it won't.
        let may_write = |modes: TransactionModes| {
            modes.read_only != Some(true) || modes.isolation == Some(Isolation::Serializable)
        };
        if batch.begins.is_some_and(may_write) {
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
                StepKind::Bind(statement) | StepKind::Control(Message::Bind, statement, _) => {
                    let bind = Bind::read(body)?;
                    let kept = self.facts(batch, statement)?;
                    let values = BindValues { bind, kept: &kept };
                    let effect = run.effect_of(self, &kept.analysis, &values)?;
                    bound.retain(|portal| *portal.name != *bind.portal);
                    closed.retain(|name| **name != *bind.portal);
                    let (name, statement) = (bind.portal.into(), statement.clone());
                    bound.push(Portal { name, statement, effect });
                }
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
        run.check_aside()?;
        // What is parsed behind a setting in the same batch was looked at without it.
        run.is_opaque |= batch.has_several() && run.effects.iter().any(changes_literals);
        batch.closed = closed;
        // Pieces of a long batch are followed throughout: their replies come later.
        let is_whole = batch.has_sync || self.ends_with_flush(batch);
        let is_first = self.attached.as_ref().is_none_or(|attached| attached.effects.is_empty());
        if is_whole && is_first {
            run.drop_idle_effects();
        }
        Ok(())
    }

    async fn run_batch(&mut self, mut batch: Batch, mut run: Run) -> Result<(), End> {
        if !batch.needs_server && self.attached.is_none() {
            self.answer_batch(batch);
            return Ok(());
        }
        loop {
            let mut attached = match self.attach(&run).await {
                Ok(attached) => attached,
                Err(Unattached::End(end)) => return Err(end),
                Err(unattached) => {
                    self.take_back_names(batch.named.split_off(0), 0);
                    self.take_back_settings(&mut batch);
                    self.on_unattached(unattached)?;
                    self.is_skipping = true;
                    return Ok(());
                }
            };
            let may_rerun = self.begin(&mut attached, &run) && batch.has_sync;
            self.emit(&batch, &mut attached);
            if run.is_own_batch {
                let server = &mut *attached.checkout.server;
                server.send(Message::Sync, Expect::Swallow, frontend::write_sync);
            }
            let kept = if may_rerun { batch.end } else { 0 };
            self.input.advance(batch.end - kept);
            // Data of a COPY that comes right behind has to find it begun.
            let is_fed = !batch.has_sync && self.input.as_slice().get(kept).is_some_and(is_copy);
            if is_fed {
                let server = &mut *attached.checkout.server;
                server.send_bytes(&[tag::FLUSH, 0, 0, 0, 4]);
            }
            let is_flushed = is_fed || batch.has_sync || self.ends_with_flush(&batch);
            let until = if is_flushed { Until::Settled } else { Until::Sent };
            let mut running = Running::new(may_rerun);
            let relayed = self.relay(&mut attached, &mut running, until, kept).await?;
            if let Relayed::Rerun = relayed {
                self.rerun_on_primary(attached, &mut run);
                continue;
            }
            self.input.advance(kept);
            attached.named.append(&mut batch.named);
            let is_gone = |old: &Portal| {
                batch.closed.contains(&old.name)
                    || batch.bound.iter().any(|new| new.name == old.name)
            };
            attached.portals.retain(|old| !is_gone(old));
            attached.portals.append(&mut batch.bound);
            match relayed {
                Relayed::Rerun | Relayed::Done => {
                    if running.has_failed {
                        self.take_back_unconfirmed(&mut attached);
                        if matches!(self.block, Block::None) {
                            // Once the server is let go: it keeps the settings brought to it.
                            attached.ledger_before = batch.ledger_before.take();
                        } else if batch.ledger_before.is_some() {
                            attached.checkout.server.is_opaque = true;
                            self.take_back_settings(&mut batch);
                        }
                        self.is_skipping = running.ready.is_none() || run.is_own_batch;
                    } else if !batch.has_sync {
                        self.ledger_before = batch.ledger_before.take();
                    }
                    self.restore_startup(&mut attached, &running).await;
                    self.settle(attached, &run, running);
                }
                Relayed::Lost => {
                    self.take_back_settings(&mut batch);
                    self.on_lost(attached, &run, &running)?;
                    if batch.has_sync {
                        let status = self.block.status();
                        backend::write_ready_for_query(self.output.tail(), status);
                    } else {
                        self.is_skipping = true;
                    }
                }
            }
            return Ok(());
        }
    }

    /// Parse and Describe with no Bind, then Flush: the hospital is not known yet, so that they
    /// go to any shard as a batch of their own.
    fn is_preparation(&self, batch: &Batch) -> bool {
        let prepares = |step: &Step| {
            matches!(
                step.kind,
                StepKind::Parse(_)
                    | StepKind::DescribeStatement(_)
                    | StepKind::CloseStatement
                    | StepKind::Local(Message::Parse | Message::Describe | Message::Close, _)
                    | StepKind::Flush
            )
        };
        self.ends_with_flush(batch) && batch.steps.iter().all(prepares)
    }

    fn ends_with_flush(&self, batch: &Batch) -> bool {
        matches!(batch.steps.last(), Some(Step { kind: StepKind::Flush, .. }))
    }

    /// Answers a batch that needs no server.
    fn answer_batch(&mut self, batch: Batch) {
        let mut parses = 0;
        for step in &batch.steps {
            match &step.kind {
                StepKind::Local(message, bytes) => {
                    parses += usize::from(*message == Message::Parse);
                    self.output.push(bytes);
                }
                StepKind::Control(message, statement, kept) => {
                    parses += usize::from(*message == Message::Parse);
                    if let Err(refusal) = self.control(*message, statement, kept) {
                        self.take_back_names(batch.named, parses);
                        self.refuse(refusal);
                        self.is_skipping = true;
                        return;
                    }
                }
                StepKind::CloseStatement | StepKind::Portal(Message::Close) => {
                    backend::write_close_complete(self.output.tail());
                }
                StepKind::Sync => {
                    let status = self.block.status();
                    backend::write_ready_for_query(self.output.tail(), status);
                }
                _ => {}
            }
        }
        self.input.advance(batch.end);
        if !batch.has_sync {
            self.ledger_before = batch.ledger_before;
        }
    }

    /// One message of transaction control that no server needs to hear.
    fn control(
        &mut self,
        message: Message,
        statement: &Statement,
        kept: &Kept,
    ) -> Result<(), ErrorReply> {
        match message {
            Message::Parse => backend::write_parse_complete(self.output.tail()),
            Message::Bind => backend::write_bind_complete(self.output.tail()),
            Message::Execute => {
                if let Some(only) = kept.analysis.statements.first() {
                    let local = self.answer(only, &NoValues(kept), statement.sql())?;
                    local.write_result(self.output.tail());
                }
            }
            _ => {
                // Describe of a portal has no ParameterDescription; control has no parameters, and
                // NoData ends both.
                backend::write_no_data(self.output.tail());
            }
        }
        Ok(())
    }

    /// Puts the batch into the server's buffer under the server's own names.
    fn emit(&mut self, batch: &Batch, attached: &mut Attached) {
        let config = self.services.config.load();
        let (max, threshold) =
            (config.pool.max_prepared_statements, config.pool.server_prepare_threshold);
        let input = self.input.as_slice();
        let server = &mut *attached.checkout.server;
        for step in &batch.steps {
            let frame = &input[step.frame.clone()];
            let body = &frame[HEADER_BYTES..];
            match &step.kind {
                StepKind::Parse(statement) | StepKind::Control(Message::Parse, statement, _) => {
                    let is_unnamed = body.first() == Some(&0);
                    if is_unnamed {
                        statement.unnamed_uses.fetch_add(1, Ordering::Relaxed);
                    }
                    emit_parse(server, statement, !is_unnamed, threshold, max, true);
                }
                StepKind::Bind(statement) | StepKind::Control(Message::Bind, statement, _) => {
                    // Read once already when it was looked at.
                    let Ok(bind) = Bind::read(body) else { continue };
                    let is_named = !bind.statement.is_empty();
                    let name = ready(server, statement, is_named, threshold, max);
                    server.send(Message::Bind, Expect::Forward, |out| {
                        frontend::write_bind_as(out, &bind, name);
                    });
                }
                StepKind::DescribeStatement(statement) => {
                    let is_named = body.len() > 2;
                    let name = ready(server, statement, is_named, threshold, max);
                    server.send(Message::Describe, Expect::Forward, |out| {
                        frontend::write_describe(out, Kind::Statement, name);
                    });
                }
                StepKind::Control(Message::Describe, statement, _) => {
                    if body.first() == Some(&b'S') {
                        let name = ready(server, statement, body.len() > 2, threshold, max);
                        server.send(Message::Describe, Expect::Forward, |out| {
                            frontend::write_describe(out, Kind::Statement, name);
                        });
                    } else {
                        server.send(Message::Describe, Expect::Forward, |out| {
                            out.extend_from_slice(frame);
                        });
                    }
                }
                StepKind::Portal(message) | StepKind::Control(message, ..) => {
                    server.send(*message, Expect::Forward, |out| out.extend_from_slice(frame));
                }
                StepKind::Execute => {
                    server.send(Message::Execute, Expect::Forward, |out| {
                        out.extend_from_slice(frame);
                    });
                }
                StepKind::CloseStatement => {
                    server.synthesize(Message::Close, CLOSE_COMPLETE);
                }
                StepKind::Local(message, bytes) => server.synthesize(*message, bytes.clone()),
                StepKind::Sync => send_sync(server),
                StepKind::Flush => server.send_bytes(frame),
            }
        }
    }
}

/// Whether a SELECT changes settings.
fn sets_by_function(kept: &Kept) -> bool {
    kept.analysis.statements.iter().any(|statement| match &statement.effect {
        Effect::Set(settings) => settings.iter().any(|setting| setting.from_function),
        _ => false,
    })
}

/// An effect under way after which names mean something else.
fn changes_names(effect: &Confirmed) -> bool {
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

/// Where a statement is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Server,
    Local,
    Control,
}

/// The name of `statement` on `server`, which gets it now if it lacks it.
fn ready<'s>(
    server: &mut ServerConn,
    statement: &'s Statement,
    is_named: bool,
    threshold: u32,
    max: usize,
) -> &'s [u8] {
    if server.prepared.touch(statement.id) {
        return statement.server_name.as_bytes();
    }
    if !is_named && server.prepared.is_unnamed(statement.id) {
        return b"";
    }
    emit_parse(server, statement, is_named, threshold, max, false)
}

/// Sends Parse of `statement` unless the server has it; `is_client`: the client asked for it and
/// gets the ParseComplete.
fn emit_parse<'s>(
    server: &mut ServerConn,
    statement: &'s Statement,
    is_named: bool,
    threshold: u32,
    max: usize,
    is_client: bool,
) -> &'s [u8] {
    if server.prepared.touch(statement.id) {
        if is_client {
            server.synthesize(Message::Parse, PARSE_COMPLETE);
        }
        return statement.server_name.as_bytes();
    }
    let expect = if is_client { Expect::Forward } else { Expect::Swallow };
    let is_repeated = threshold > 0 && statement.unnamed_uses.load(Ordering::Relaxed) >= threshold;
    let name: &[u8] = if is_named || is_repeated { statement.server_name.as_bytes() } else { b"" };
    server.send(Message::Parse, expect, |out| {
        let types = statement.types().iter().copied();
        frontend::write_parse(out, name, statement.sql().as_bytes(), types);
    });
    if name.is_empty() {
        server.prepared.parse_unnamed(Some(statement.id));
        return name;
    }
    server.prepared.parse_named(statement.id);
    while let Some(oldest) = server.prepared.evict_over(max.max(1)) {
        server.send(Message::Close, Expect::Swallow, |out| {
            frontend::write_close(out, Kind::Statement, oldest.server_name().as_bytes());
        });
    }
    name
}

fn is_copy(tag: &u8) -> bool {
    matches!(*tag, tag::COPY_DATA | tag::COPY_DONE | tag::COPY_FAIL)
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
