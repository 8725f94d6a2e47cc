//! Portals of a batch: what its Describes and Executes are of, and the answers of those that need no
//! server.

use std::sync::Arc;

use bytes::BytesMut;

use super::look::name_of;
use super::{Batch, BindValues, NoValues, Place, StepKind, Trouble};
use crate::route::refusals;
use crate::server::Message;
use crate::session::block::Block;
use crate::session::query::ends_failure;
use crate::session::statements::{Kept, Statement};
use crate::session::{Session, answer, params};
use crate::sql::{Discard, Effect};
use crate::wire::HEADER_BYTES;
use crate::wire::frontend::Bind;

impl Session {
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
        let Some(portal) = attached.portals.iter().find(|portal| *portal.name == *name) else {
            if attached.has_doubtful_portals && !self.is_unguarded() {
                return Err(refusals::no_portal(&name_of(name)).into());
            }
            return Ok(None);
        };
        let kept = self.facts(batch, &portal.statement)?;
        Ok(Some((portal.statement.clone(), self.place(batch, &kept))))
    }

    /// Execute or Describe of a portal.
    pub(super) fn portal_step(
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
        if message == Message::Execute && matches!(only.effect, Effect::Discard(Discard::All)) {
            if batch.has_control || self.attached.is_some() || !matches!(self.block, Block::None) {
                return Err(refusals::discard_in_transaction().into());
            }
            return Ok(StepKind::DiscardAll);
        }
        if let (Message::Execute, Effect::Deallocate(of)) = (message, &only.effect) {
            return self.deallocate_step(batch, of.as_deref());
        }
        let mut out = BytesMut::new();
        if message == Message::Describe {
            Self::describe_locally(only).write_description(&mut out);
        } else {
            let local = self.execute_locally(only, &kept, batch, name, statement.sql())?;
            local.write_result(&mut out);
        }
        Ok(StepKind::Local(message, out.freeze()))
    }

    /// Execute of a DEALLOCATE that is answered here.
    fn deallocate_step(
        &mut self,
        batch: &mut Batch,
        name: Option<&str>,
    ) -> Result<StepKind, Trouble> {
        if matches!(self.block, Block::Failed(_)) {
            return Err(refusals::in_failed_transaction().into());
        }
        let (local, change) = self.deallocate(name)?;
        let change = self.unless_described(batch, change);
        batch.named.push(change);
        let mut out = BytesMut::new();
        local.write_result(&mut out);
        Ok(StepKind::Local(Message::CloseStatement, out.freeze()))
    }

    /// What an Execute does to the meaning of what follows it in the batch.
    fn look_at_execute(
        &self,
        batch: &mut Batch,
        statement: &Statement,
        place: Place,
    ) -> Result<(), Trouble> {
        let kept = self.facts(batch, statement)?;
        let statements = &kept.analysis.statements;
        let may_undo = self.ledger.may_undo_names();
        batch.changes_names |= place != Place::Local
            && statements.iter().any(|of| {
                params::changes_names(of) || (may_undo && params::takes_back(&of.effect))
            });
        let effects = statements.iter().map(|statement| &statement.effect);
        let may_undo = self.ledger.may_undo_text();
        batch.changes_text |= effects.clone().any(|of| match of {
            Effect::ResetAll | Effect::Discard(_) => self.has_own_text(),
            of => params::changes_text(of) || (may_undo && params::takes_back(of)),
        });
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
        if !matches!(only.effect, Effect::Show(_)) {
            batch.hospital_before.get_or_insert_with(|| self.ledger.hospital_mark());
        }
        let bound = batch.portals.iter().find(|bound| *bound.name == *portal);
        let Some(frame) = bound.map(|bound| bound.frame.clone()) else {
            return Ok(self.answer(only, &NoValues(kept), text)?);
        };
        let body = self.input.as_slice()[frame.start + HEADER_BYTES..frame.end].to_vec();
        let values = BindValues::new(Bind::read(&body)?, kept);
        Ok(self.answer(only, &values, text)?)
    }
}
