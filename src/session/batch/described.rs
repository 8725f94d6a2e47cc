//! A client reads rows as its statement was described to it. Where the server for a batch has not
//! described that statement itself, it is asked first: DDL may have come in between.
//!
//! A server keeps what a statement answers, and raises 0A000 once it can't. So what is found as told
//! stays so on that server, and the question costs a round trip once for each statement and server.

use std::sync::Arc;

use super::emit::{close, ready};
use super::{Attached, Batch, End, Session, Step, StepKind};
use crate::route::{Role, Route, refusals};
use crate::server::{Expect, Message};
use crate::session::block::Block;
use crate::session::relay::{Relayed, Running, Until};
use crate::session::run::Run;
use crate::session::statements::{Origin, Statement};
use crate::wire::TxnStatus;
use crate::wire::frontend::{self, Kind, tag};

/// What became of the question.
pub(super) enum Asked {
    /// All is as the client was told.
    AsTold(Box<Attached>),
    /// The replica could not answer: to be asked on the primary.
    Rerun(Box<Attached>),
    /// The batch has failed, as on a connection of its own whose plans are stale.
    Failed,
}

/// The server has all that the batch uses as the client was told of it.
pub(super) fn is_as_told(attached: &Attached, batch: &Batch) -> bool {
    let prepared = &attached.checkout.server.prepared;
    batch.told.iter().all(|told| prepared.shape(told.statement.id) == Some(told.shape))
}

impl Session {
    /// Has the server parse and describe what it may have otherwise than the client was told. Nothing
    /// of the batch has run yet, nor of a block that no server holds.
    pub(super) async fn check_told(
        &mut self,
        mut attached: Box<Attached>,
        batch: &mut Batch,
    ) -> Result<Asked, End> {
        let may_rerun = attached.checkout.role == Role::Replica
            && !matches!(self.block, Block::Server(_))
            && !attached.checkout.server.pipeline().is_unsynced()
            && attached.checkout.server.pipeline().status() == TxnStatus::Idle;
        self.ask_for_shapes(&mut attached, batch, may_rerun);
        let mut run = Run::new(Route::Any { role: Role::Primary });
        run.is_aside = matches!(self.block, Block::Pending(_));
        run.is_own_batch = true;
        let mut running = Running::new(may_rerun);
        match self.relay(&mut attached, &mut running, Until::Settled, batch.end).await? {
            Relayed::Rerun => return Ok(Asked::Rerun(attached)),
            Relayed::Lost => {
                self.fail_batch(batch);
                self.on_lost(attached, &run, &running)?;
            }
            Relayed::Done if running.has_failed => {
                self.fail_batch(batch);
                self.take_back_unconfirmed(&mut attached);
                self.finish(attached, &run, running).await;
            }
            Relayed::Done if is_as_told(&attached, batch) => return Ok(Asked::AsTold(attached)),
            Relayed::Done => {
                for statement in changed(&attached, batch) {
                    self.services.statements.retire(&statement);
                }
                self.finish(attached, &run, running).await;
                let batch = std::mem::replace(batch, Batch::new(batch.snapshot.clone(), 0, false));
                self.refuse_batch(batch, refusals::stale_statement()).await?;
            }
        }
        Ok(Asked::Failed)
    }

    /// The batch has failed, and the client knows: its rest is dropped up to its Sync.
    fn fail_batch(&mut self, batch: &mut Batch) {
        self.take_back(batch);
        self.is_skipping = true;
    }

    fn ask_for_shapes(&self, attached: &mut Attached, batch: &mut Batch, may_rerun: bool) {
        let max = self.services.config.load().pool.max_prepared_statements.max(batch.steps.len());
        // Some of pgward's own statements have no name, and would take the place of the client's.
        let has_own = matches!(self.block, Block::Pending(_)) || batch.steps.iter().any(needs_own);
        let encoding = self.encoding_on(attached);
        let server = &mut *attached.checkout.server;
        server.prepared.epoch = self.services.catalog.epoch();
        let is_unsynced = server.pipeline().is_unsynced();
        server.begin_request(may_rerun);
        let mut asked = std::collections::HashSet::new();
        for told in &batch.told {
            let statement = &told.statement;
            let is_known = server.prepared.shape(statement.id) == Some(told.shape);
            if is_known || !asked.insert(statement.id) {
                continue;
            }
            // Whether it is older than what the client was told, nobody knows.
            close(server, statement);
            if !told.is_named && has_own {
                batch.brief = Some(statement.clone());
            }
            let name = ready(server, statement, told.is_named || has_own, 0, max, encoding);
            server.send(Message::DescribeShared(statement.id), Expect::Swallow, |out| {
                frontend::write_describe(out, Kind::Statement, name);
            });
        }
        // A Sync would end a batch whose first piece the server has; without one, the question would
        // be part of what follows it.
        match is_unsynced {
            true => server.send_bytes(&[tag::FLUSH, 0, 0, 0, 4]),
            false => server.send(Message::Sync, Expect::Swallow, frontend::write_sync),
        }
    }
}

/// It may take a statement of pgward's own.
fn needs_own(step: &Step) -> bool {
    match &step.kind {
        StepKind::Parse(of) | StepKind::Bind(of, _) | StepKind::DescribeStatement(of) => {
            *of.origin() != Origin::Parse
        }
        _ => false,
    }
}

/// What the server describes otherwise than the client was told.
fn changed(attached: &Attached, batch: &Batch) -> Vec<Arc<Statement>> {
    let prepared = &attached.checkout.server.prepared;
    let is_other = |shape| move |found| found != shape;
    let told = batch.told.iter();
    // What an EXECUTE executes is of another Parse or PREPARE.
    told.filter(|told| told.statement.executes().is_none())
        .filter(|told| prepared.shape(told.statement.id).is_some_and(is_other(told.shape)))
        .map(|told| told.statement.clone())
        .collect()
}
