//! What a batch as a whole will do, once each of its messages has been looked at.

use super::{Batch, BindValues, NoValues, Portal, Step, StepKind, Trouble};
use crate::route::{Bound, Role, Route, refusals};
use crate::server::Message;
use crate::session::Session;
use crate::session::block::Block;
use crate::session::params;
use crate::session::run::{Confirmed, Run};
use crate::session::statements::Origin;
use crate::sql::{Isolation, TransactionModes};
use crate::wire::frontend::{Bind, Execute, Named};
use crate::wire::{self, HEADER_BYTES};

impl Session {
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
        let mut ran: Vec<Box<[u8]>> = Vec::new();
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
                    let (has_run, is_settled) = (false, false);
                    bound.push(Portal { name, statement, effect, has_run, is_settled });
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
                        run.effects.push_back(portal.next_effect());
                        portal.has_run = true;
                        continue;
                    }
                    let held = self.attached.as_ref().map_or(&[][..], |held| &held.portals);
                    let Some(portal) = held.iter().find(of_name) else {
                        // A cursor of the server's: reading from it changes nothing.
                        run.effects.push_back(Confirmed::Nothing);
                        continue;
                    };
                    // Noted on the portal only once it is sent: the batch may be refused, or looked
                    // at again.
                    run.effects.push_back(match ran.contains(&portal.name) {
                        true => Confirmed::Nothing,
                        false => portal.next_effect(),
                    });
                    ran.push(portal.name.clone());
                    let statement = portal.statement.clone();
                    let kept = self.facts(batch, &statement)?;
                    run.effect_of(self, &kept.analysis, &NoValues(&kept))?;
                }
                _ => {}
            }
        }
        (batch.bound, batch.ran) = (bound, ran);
        self.find_sole(batch, run)?;
        run.check_aside()?;
        // What is parsed behind a setting in the same batch was looked at without it, in a later piece
        // of the batch too.
        let may_undo = self.ledger.may_undo_literals();
        let changes = |effect: &Confirmed| match effect {
            Confirmed::Control(control) => may_undo && params::ends_settings(control),
            effect => changes_literals(effect),
        };
        run.is_opaque |= batch.has_several() && run.effects.iter().any(changes);
        run.is_opaque |=
            self.attached.as_ref().is_some_and(|held| held.effects.iter().any(changes));
        batch.closed = closed;
        // Pieces of a long batch are followed throughout: their replies come later.
        let has_answers = batch.has_sync || self.ends_with_flush(batch);
        let is_first = self.attached.as_ref().is_none_or(|attached| attached.effects.is_empty());
        if has_answers && is_first {
            run.drop_idle_effects();
        }
        Ok(())
    }

    /// Whether what the client sends next may write, where no server has been chosen yet.
    fn may_write_later(&self) -> bool {
        self.attached.is_none()
            && match &self.block {
                Block::Pending(pending) => may_write(pending.modes()),
                _ => true,
            }
    }

    /// The only statement that the batch binds or describes, and whether it may be parsed anew behind
    /// the client's back if DDL has changed what it answers. On a connection of its own a client
    /// would get an error for what it prepared before that, and not for what it prepares now.
    fn find_sole(&self, batch: &Batch, run: &mut Run) -> Result<(), Trouble> {
        let mut binds = batch.steps.iter().filter_map(|step| match &step.kind {
            StepKind::Bind(statement, _) => Some((statement, step)),
            _ => None,
        });
        let (first, second) = (binds.next(), binds.next());
        let mut described = batch.steps.iter().filter_map(|step| match &step.kind {
            StepKind::DescribeStatement(statement) => Some(statement),
            _ => None,
        });
        let of_bind = first.map(|(statement, _)| statement);
        let Some(statement) = of_bind.or_else(|| described.clone().next()) else { return Ok(()) };
        let is_sole = second.is_none() && described.all(|of| of.id == statement.id);
        let is_own = self.has_own_server();
        let is_plain = |step: &Step| match &step.kind {
            StepKind::Parse(other) | StepKind::DescribeStatement(other) => other.id == statement.id,
            StepKind::Bind(..)
            | StepKind::Portal(Message::Describe)
            | StepKind::Execute
            | StepKind::Sync
            | StepKind::Flush => true,
            _ => false,
        };
        let is_alone = is_sole
            && (batch.has_sync || run.is_own_batch)
            && self.attached.is_none()
            && self.pinned.is_none()
            && matches!(self.block, Block::None)
            && batch.steps.iter().all(is_plain)
            && !matches!(statement.origin(), Origin::Execute(_) | Origin::Prepare(_));
        let parses = |step: &Step| matches!(step.kind, StepKind::Parse(_));
        let describes = |step: &Step| matches!(step.kind, StepKind::Portal(Message::Describe));
        // What it was told before it goes by.
        let was_told = batch.is_told(statement);
        // It learns the new columns from this very batch, and its values mean what they say.
        let means_what_it_says = |bind: &Step| {
            let body = &self.input.as_slice()[bind.frame.start + HEADER_BYTES..bind.frame.end];
            let bind = Bind::read(body)?;
            let count = bind.param_count();
            let is_typed = statement.types().iter().filter(|oid| **oid != 0).count() >= count;
            Ok::<_, wire::Error>(is_typed || bind.has_text_only())
        };
        let is_told = !was_told
            && (batch.steps.iter().any(parses)
                || match first {
                    Some((_, bind)) if batch.steps.iter().any(describes) => {
                        means_what_it_says(bind)?
                    }
                    _ => false,
                });
        // Of what it was told the servers are asked.
        let is_answerable = is_own || was_told || (is_alone && is_told);
        if statement.is_stale() && !is_answerable {
            return Err(refusals::stale_statement().into());
        }
        if is_sole {
            run.sole = Some(statement.clone());
            run.is_healable = is_alone && is_told && !is_own;
        }
        Ok(())
    }
}

/// Whether what is in a block that was begun so may write.
fn may_write(modes: TransactionModes) -> bool {
    modes.read_only != Some(true) || modes.isolation == Some(Isolation::Serializable)
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
