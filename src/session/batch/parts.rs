//! What a batch is made of: its messages looked at, its portals, and the values of its Binds.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::catalog::Snapshot;
use crate::route::{Route, Values};
use crate::server::{Message, Shape};
use crate::session::run::Confirmed;
use crate::session::statements::{self, Kept, Statement};
use crate::session::{End, params, violation};
use crate::sql::{Effect, Transaction, TransactionModes};
use crate::wire;
use crate::wire::backend::ErrorReply;
use crate::wire::frontend::{Bind, BindParams};

/// Messages of a usual batch: Parse, Bind, Describe, Execute, Sync.
const STEPS_USUAL: usize = 6;

/// One message of a batch, looked at.
pub(super) struct Step {
    pub(super) frame: Range<usize>,
    pub(super) kind: StepKind,
}

pub(super) enum StepKind {
    Parse(Arc<Statement>),
    /// With the name that its Execute gives, if that is a PREPARE.
    Bind(Arc<Statement>, Option<Box<str>>),
    DescribeStatement(Arc<Statement>),
    /// Close of a statement: the server keeps the shared one.
    CloseStatement,
    /// Describe or Close of a portal, Execute: as sent.
    Portal(Message),
    Execute,
    /// To the session's own server as sent: only that one knows what it is about.
    Own(Message),
    /// Answered here when its turn comes.
    Local(Message, Bytes),
    /// Transaction control: the server's if the batch goes to one, else answered here.
    Control(Message, Arc<Statement>, Arc<Kept>),
    /// Execute of DISCARD ALL, the last of its piece: what follows is looked at behind it.
    DiscardAll,
    Sync,
    Flush,
}

/// What the Parse, Close and DEALLOCATE messages of a batch did to its client's names, in their order.
pub(in crate::session) type NameChanges = Vec<statements::Change>;

impl StepKind {
    /// It has an entry among the [`NameChanges`].
    pub(super) fn changes_names(&self) -> bool {
        matches!(
            self,
            Self::Parse(_)
                | Self::CloseStatement
                | Self::Own(Message::Parse)
                | Self::Local(Message::Parse | Message::CloseStatement, _)
                | Self::Control(Message::Parse, ..)
        )
    }
}

/// A portal on the server that is held.
pub(in crate::session) struct Portal {
    pub(super) name: Box<[u8]>,
    pub(super) statement: Arc<Statement>,
    /// What its Execute does to the session, with the values of its Bind.
    pub(super) effect: Confirmed,
    /// An Execute of it was sent: a portal that goes on has done what it does.
    pub(super) has_run: bool,
    /// The server has said that the whole batch of its Bind, and of its first Execute, went well.
    pub(super) is_settled: bool,
}

impl Portal {
    /// What its next Execute does.
    pub(super) fn next_effect(&self) -> Confirmed {
        if self.has_run { Confirmed::Nothing } else { self.effect.clone() }
    }

    /// The batch went well.
    pub(super) fn settle(&mut self) {
        self.is_settled = true;
        self.effect = self.next_effect();
    }
}

/// A portal of a batch that is looked at.
pub(super) struct LookedPortal {
    pub(super) name: Box<[u8]>,
    pub(super) statement: Arc<Statement>,
    pub(super) place: Place,
    /// Its Bind.
    pub(super) frame: Range<usize>,
}

/// A batch, looked at and not yet sent.
pub(super) struct Batch {
    /// What names mean throughout it.
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) steps: Vec<Step>,
    pub(super) end: usize,
    pub(super) route: Option<Route>,
    pub(super) needs_server: bool,
    pub(super) has_sync: bool,
    /// Names that this batch gave or took, to take back what fails.
    pub(super) named: NameChanges,
    pub(super) portals: Vec<LookedPortal>,
    /// As `portals`, of those that go to a server; filled in by `complete_run`.
    pub(super) bound: Vec<Portal>,
    /// Portals of the server that is held which it executes for the first time.
    pub(super) ran: Vec<Box<[u8]>>,
    /// Portals that it closes and does not bind again.
    pub(super) closed: Vec<Box<[u8]>>,
    /// A member changes the meaning of names, and the server has yet to confirm it.
    pub(super) changes_names: bool,
    /// As `changes_names`, of how the bytes of a text are read.
    pub(super) changes_text: bool,
    /// Transaction control is among its members.
    pub(super) has_control: bool,
    /// A failed block is over behind what has been looked at so far.
    pub(super) has_ended_failure: bool,
    /// BEGIN is among its members.
    pub(super) begins: Option<TransactionModes>,
    /// The settings before its first statement that was answered here, until something of it runs.
    pub(super) ledger_before: Option<Box<params::Ledger>>,
    /// The hospital before that, or before an earlier piece of it.
    pub(super) hospital_before: Option<params::HospitalMark>,
    /// Statements that it uses as the client was told of them before it.
    pub(super) told: Vec<Told>,
    /// Of these the one without a name, where the server has it under a name for this batch only.
    pub(super) brief: Option<Arc<Statement>>,
    /// The names that it has described, in order.
    pub(super) described: Vec<Box<[u8]>>,
}

impl Batch {
    pub(super) fn new(snapshot: Arc<Snapshot>, end: usize, needs_server: bool) -> Self {
        Self {
            snapshot,
            steps: Vec::with_capacity(STEPS_USUAL),
            end,
            route: None,
            needs_server,
            has_sync: false,
            named: Vec::new(),
            portals: Vec::new(),
            bound: Vec::new(),
            ran: Vec::new(),
            closed: Vec::new(),
            changes_names: false,
            changes_text: false,
            has_control: false,
            has_ended_failure: false,
            begins: None,
            ledger_before: None,
            hospital_before: None,
            told: Vec::new(),
            brief: None,
            described: Vec::new(),
        }
    }

    pub(super) fn is_control(&self, portal: &[u8]) -> bool {
        let of_name = |known: &&LookedPortal| *known.name == *portal;
        self.portals.iter().find(of_name).is_some_and(|known| known.place == Place::Control)
    }

    /// A member uses a statement under a name of which the client was told that before.
    pub(super) fn uses(
        &mut self,
        statement: &Arc<Statement>,
        is_named: bool,
        told: Option<statements::Told>,
    ) {
        // What an EXECUTE means is looked up each time: another statement answers as it likes.
        let is_same = |id| statement.executes().is_none() || id == statement.id;
        let shape = told.filter(|(id, _)| is_same(*id)).map(|(_, shape)| shape);
        // Many Binds of one statement are the usual batch of many.
        let is_known = |shape| {
            let last = self.told.last();
            last.is_some_and(|last| last.statement.id == statement.id && last.shape == shape)
        };
        if let Some(shape) = shape.filter(|shape| !is_known(*shape)) {
            self.told.push(Told { statement: statement.clone(), is_named, shape });
        }
    }

    /// The client was told of it, under whatever name, before the batch.
    pub(super) fn is_told(&self, statement: &Statement) -> bool {
        self.told.iter().any(|told| told.statement.id == statement.id)
    }

    /// More than one statement is parsed or bound in it.
    pub(super) fn has_several(&self) -> bool {
        let is_statement =
            |step: &&Step| matches!(step.kind, StepKind::Parse(_) | StepKind::Bind(..));
        self.steps.iter().filter(is_statement).count() > 2
    }

    /// It rolls a block back.
    pub(super) fn is_rollback(&self) -> bool {
        self.steps.iter().any(|step| match &step.kind {
            StepKind::Control(_, _, kept) => kept.analysis.statements.iter().any(|statement| {
                matches!(statement.effect, Effect::Transaction(Transaction::Rollback { .. }))
            }),
            _ => false,
        })
    }
}

/// A statement whose description the client has.
pub(super) struct Told {
    pub(super) statement: Arc<Statement>,
    pub(super) is_named: bool,
    pub(super) shape: Shape,
}

/// Values of one Bind.
pub(super) struct BindValues<'a> {
    pub(super) params: BindParams<'a>,
    pub(super) kept: &'a Kept,
}

impl<'a> BindValues<'a> {
    pub(super) fn new(bind: Bind<'a>, kept: &'a Kept) -> Self {
        Self { params: BindParams::new(bind), kept }
    }
}

impl Values for BindValues<'_> {
    fn param(&self, n: u16) -> Option<(i16, Option<&[u8]>)> {
        self.params.get(n)
    }

    fn literal(&self, slot: u16) -> Option<std::borrow::Cow<'_, str>> {
        self.kept.literal(slot).map(std::borrow::Cow::Borrowed)
    }

    fn hint(&self) -> Result<Option<&str>, ()> {
        self.kept.hint()
    }
}

/// No values: a statement that is only described.
pub(in crate::session) struct NoValues<'a>(pub &'a Kept);

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

pub(super) enum Trouble {
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

/// Where a statement is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Server,
    Local,
    Control,
}
