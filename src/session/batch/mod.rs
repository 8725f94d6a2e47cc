//! The extended protocol: gathers a batch (what a client sends up to Sync, Flush or a bound), has
//! each Bind routed, and puts it on one server under the server's own statement names.
//!
//! A batch before its Sync is one transaction and belongs to one hospital, so all its members
//! agree before the first goes out. What was gathered is bounded by `batch_bytes_max`; a longer
//! batch goes out in pieces, bound to the server that the first piece chose. A refusal fails the
//! batch as an error of the server would. Manual: "Extended Query".

mod described;
mod emit;
mod look;
mod parts;
mod portals;
mod whole;

pub(super) use emit::send_rewrite;
pub(super) use parts::{NameChanges, NoValues, Portal};

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::attach::Unattached;
use super::block::Block;
use super::relay::{Relayed, Running, Until};
use super::run::{Confirmed, Run};
use super::statements::{Kept, Statement};
use super::{Attached, End, Session, params, violation};
use crate::route::{Role, Route};
use crate::server::{Expect, Message};
use crate::sql::Discard;
use crate::wire::backend::{self, ErrorReply};
use crate::wire::frontend::{self, Kind, Named, tag};
use crate::wire::{self, HEADER_BYTES};
use described::{Asked, is_as_told};
use parts::{Batch, BindValues, LookedPortal, Place, Step, StepKind, Trouble};

/// Replies of pgward's own that say nothing but that it was done.
const PARSE_COMPLETE: Bytes = Bytes::from_static(b"1\0\0\0\x04");

const BIND_COMPLETE: Bytes = Bytes::from_static(b"2\0\0\0\x04");

const CLOSE_COMPLETE: Bytes = Bytes::from_static(b"3\0\0\0\x04");

/// Statements closed by refused batches that are remembered; what is beyond stays on the server.
const UNSENT_CLOSES_MAX: usize = 1024;

/// Messages that make up a batch.
pub(super) fn is_member(tag: u8) -> bool {
    matches!(
        tag,
        tag::PARSE | tag::BIND | tag::DESCRIBE | tag::EXECUTE | tag::CLOSE | tag::SYNC | tag::FLUSH
    )
}

impl Session {
    /// Messages of the extended protocol stand at the front of the input. `false`: more must come
    /// before anything can be done.
    pub(super) async fn on_batch(&mut self, limit: usize) -> Result<bool, End> {
        if self.is_skipping {
            return self.skip(limit).await;
        }
        let Some(end) = self.batch_end(limit)? else { return Ok(false) };
        let before = self.hospital_before.take();
        let (mut batch, mut looked) = self.look_to(end, before);
        if let Err(Trouble::Unknown(_)) = &looked
            && self.refresh_catalog().await
        {
            self.take_back_look(&mut batch);
            (batch, looked) = self.look_to(end, before);
        }
        if let Some(loss) = self.take_loss(looked.is_ok() && batch.is_rollback()) {
            self.refuse_batch(batch, loss).await?;
            return Ok(true);
        }
        let mut run = Run::new(Route::Any { role: Role::Replica });
        looked = looked.and_then(|()| self.complete_run(&mut batch, &mut run));
        if looked.is_ok()
            && let Some(end) = self.begin_alone(&batch, &run)
        {
            self.take_back_look(&mut batch);
            (batch, looked) = self.look_to(end, before);
            run = Run::new(Route::Any { role: Role::Replica });
            looked = looked.and_then(|()| self.complete_run(&mut batch, &mut run));
        }
        if looked.is_ok()
            && let Some(stale) = run.sole.take_if(|statement| statement.is_stale())
        {
            // What it answers now, the client hears in this very batch.
            self.take_back_look(&mut batch);
            self.renew(&stale);
            (batch, looked) = self.look_to(batch.end, before);
            run = Run::new(Route::Any { role: Role::Replica });
            looked = looked.and_then(|()| self.complete_run(&mut batch, &mut run));
        }
        match looked {
            Ok(()) => self.run_batch(batch, run).await?,
            Err(Trouble::End(end)) => return Err(end),
            Err(Trouble::Refused(refusal) | Trouble::Unknown(refusal)) => {
                self.refuse_batch(batch, refusal).await?;
            }
        }
        Ok(true)
    }

    /// Looks at the messages before `end`; `before`: the hospital before the batch, if a piece of it
    /// has set it here.
    fn look_to(
        &mut self,
        end: usize,
        before: Option<params::HospitalMark>,
    ) -> (Batch, Result<(), Trouble>) {
        let snapshot = self.services.catalog.current();
        let mut batch = Batch::new(snapshot, end, self.has_own_server());
        batch.hospital_before = before;
        let looked = self.look_at_batch(&mut batch);
        (batch, looked)
    }

    /// Where a batch that begins a block is cut, if no hospital is named in it: what is behind BEGIN
    /// then stands beside the block, which no server holds yet.
    fn begin_alone(&self, batch: &Batch, run: &Run) -> Option<usize> {
        let is_free = self.attached.is_none()
            && !self.has_own_server()
            && matches!(self.block, Block::None)
            && batch.begins.is_some()
            && batch.needs_server
            && matches!(run.route, Route::Any { .. });
        let is_here =
            |step: &Step| matches!(step.kind, StepKind::Control(..) | StepKind::Local(..));
        let first = batch.steps.iter().position(|step| !is_here(step))?;
        let has_begun = |step: &Step| matches!(step.kind, StepKind::Control(Message::Execute, ..));
        let (ahead, behind) = batch.steps.split_at(first);
        // With its end in the batch, the whole block goes to one server.
        let is_whole = behind.iter().any(has_begun);
        (is_free && ahead.iter().any(has_begun) && !is_whole).then(|| behind[0].frame.start)
    }

    /// Where the gathered batch ends: behind a Sync or Flush, before a message of another kind,
    /// or behind the last whole message once the bound is reached. A Flush ends nothing if the Sync
    /// is there too: nobody waits for answers in between, and a portal that no server has yet would
    /// not outlive its piece of the batch.
    fn batch_end(&self, limit: usize) -> Result<Option<usize>, End> {
        let input = self.input.as_slice();
        let bound = self.services.config.load().routing.batch_bytes_max;
        let mut at = 0;
        let mut flushed = None;
        loop {
            let header = match wire::header(&input[at..], limit) {
                Err(error) if flushed.is_none() => return Err(End::Fatal(violation(&error))),
                header => header.ok().flatten(),
            };
            let is_whole = |total: usize| at + total <= input.len();
            match header.filter(|header| is_whole(header.total)) {
                Some(header) if is_member(header.tag) && (at < bound || flushed.is_none()) => {
                    at += header.total;
                    match header.tag {
                        tag::SYNC => return Ok(Some(at)),
                        tag::FLUSH => flushed = Some(at),
                        _ => {}
                    }
                }
                _ if flushed.is_some() => return Ok(flushed),
                Some(_) => return Ok(Some(at)),
                None if input.len() >= bound && at > 0 => return Ok(Some(at)),
                None => return Ok(None),
            }
        }
    }

    /// Drops what follows a failure, up to its Sync.
    pub(super) async fn skip(&mut self, limit: usize) -> Result<bool, End> {
        while let Some((tag, total)) = super::whole_frame(self.input.as_slice(), limit)? {
            if tag == tag::TERMINATE {
                return Err(End::Client);
            }
            self.input.advance(total);
            if tag == tag::SYNC {
                self.is_skipping = false;
                self.hospital_before = None;
                if self.attached.is_some() {
                    self.sync_server().await?;
                } else {
                    self.write_ready();
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The batch fails: its names are taken back, its rest is dropped up to its Sync.
    async fn refuse_batch(&mut self, mut batch: Batch, refusal: ErrorReply) -> Result<(), End> {
        self.take_back(&mut batch);
        self.keep_closes(&batch);
        let has_pieces = self.is_behind_batch();
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
                if has_pieces {
                    // One of those may have failed before this one did.
                    self.take_back_unconfirmed(&mut attached);
                }
                self.finish(attached, &run, running).await;
                Ok(())
            }
        }
    }

    /// What a refused batch has closed ahead of its fault stays closed, as on a server; where the fault
    /// is, only a look that has ended with it tells. A server that has the client's own names hears of
    /// it ahead of the next request.
    fn keep_closes(&mut self, batch: &Batch) {
        if batch.steps.last().is_some_and(|last| last.frame.end == batch.end) {
            return;
        }
        let closes = |step: &&Step| matches!(step.kind, StepKind::CloseStatement);
        for step in batch.steps.iter().filter(closes) {
            let body = &self.input.as_slice()[step.frame.start + HEADER_BYTES..step.frame.end];
            let Ok(named) = Named::read_close(body) else { continue };
            self.statements.remove(named.name);
            if self.has_own_server() && self.unsent_closes.len() < UNSENT_CLOSES_MAX {
                self.unsent_closes.push(named.name.into());
            }
        }
    }

    /// As if the batch, of which nothing has run, had not been looked at. What earlier pieces of it
    /// have done stays.
    fn take_back_look(&mut self, batch: &mut Batch) {
        self.take_back_names(std::mem::take(&mut batch.named), 0);
        if let Some(ledger) = batch.ledger_before.take() {
            self.ledger = *ledger;
            self.renew_names();
        }
    }

    /// A batch has failed before anything of its last piece ran: it takes with it what it has set here.
    fn take_back(&mut self, batch: &mut Batch) {
        self.take_back_look(batch);
        self.hospital_before = batch.hospital_before.take().or(self.hospital_before);
        self.take_back_hospital();
    }

    /// A failed batch takes its hospital with it. All else that it has set the ledger undoes, as the
    /// server does.
    pub(super) fn take_back_hospital(&mut self) {
        if let Some(mark) = self.hospital_before.take() {
            self.ledger.return_to(mark);
        }
    }

    /// Names that were given or taken by messages beyond the first `confirmed` mean again what they did
    /// before.
    fn take_back_names(&mut self, named: NameChanges, confirmed: usize) {
        let unconfirmed = named.into_iter().skip(confirmed).rev();
        unconfirmed.for_each(|change| self.statements.undo(change));
    }

    /// A batch has failed on its server: as [`Self::take_back_names`], and what was closed, bound
    /// and run of it before the error is not known.
    pub(super) fn take_back_unconfirmed(&mut self, attached: &mut Attached) {
        let confirmed = attached.checkout.server.pipeline().name_changes();
        self.take_back_names(std::mem::take(&mut attached.named), confirmed);
        self.take_back_hospital();
        attached.has_doubtful_portals = true;
        self.note_unseen(attached, |_| true);
        attached.portals.retain(|portal| portal.is_settled);
    }

    /// Of these portals nobody knows whether they are there yet, and what they do may go unseen.
    fn note_unseen(&self, attached: &mut Attached, of: impl Fn(&Portal) -> bool) {
        // Without a block they end with the batch.
        let may_run = |portal: &Portal| of(portal) && portal.effect != Confirmed::Nothing;
        attached.checkout.server.is_opaque |=
            !matches!(self.block, Block::None) && attached.portals.iter().any(may_run);
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
                    self.take_back(&mut batch);
                    self.on_unattached(unattached)?;
                    self.is_skipping = true;
                    return Ok(());
                }
            };
            // From here on it does what the server says: the ledger follows that.
            batch.ledger_before = None;
            if !is_as_told(&attached, &batch) {
                attached = match self.check_told(attached, &mut batch).await? {
                    Asked::AsTold(attached) => attached,
                    Asked::Rerun(attached) => {
                        self.rerun_on_primary(attached, &mut run);
                        continue;
                    }
                    Asked::Failed => return Ok(()),
                };
            }
            // What has just been parsed can't be stale.
            run.is_healable &= run
                .sole
                .as_ref()
                .is_some_and(|statement| attached.checkout.server.prepared.touch(statement.id));
            let may_rerun = self.begin(&mut attached, &run, batch.has_sync);
            self.emit(&batch, &mut attached);
            attached.described.extend(batch.described.iter().cloned());
            if run.is_own_batch {
                let server = &mut *attached.checkout.server;
                server.send(Message::Sync, Expect::Swallow, frontend::write_sync);
            }
            let kept = if may_rerun || run.is_healable { batch.end } else { 0 };
            self.input.advance(batch.end - kept);
            // Data of a COPY that comes right behind has to find it begun.
            let is_fed = !batch.has_sync && self.input.as_slice().get(kept).is_some_and(is_copy);
            if is_fed {
                let server = &mut *attached.checkout.server;
                server.send_bytes(&[tag::FLUSH, 0, 0, 0, 4]);
            }
            let has_answers = batch.has_sync || self.ends_with_flush(&batch) || run.is_own_batch;
            let is_flushed = is_fed || has_answers;
            let until = if is_flushed { Until::Settled } else { Until::Sent };
            self.hospital_before = batch.hospital_before.take().or(self.hospital_before);
            let mut running = Running::of_batch(may_rerun, &run);
            let relayed = self.relay(&mut attached, &mut running, until, kept).await?;
            if running.wants_healing && matches!(relayed, Relayed::Rerun) {
                self.heal(&mut batch, attached, run.sole.take());
                return Ok(());
            }
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
            // If it has failed before that, they are not.
            self.note_unseen(&mut attached, is_gone);
            attached.portals.retain(|old| !is_gone(old));
            let has_run = |portal: &&mut Portal| batch.ran.contains(&portal.name);
            for portal in attached.portals.iter_mut().filter(has_run) {
                portal.is_settled &= portal.next_effect() == Confirmed::Nothing;
                portal.has_run = true;
            }
            attached.portals.append(&mut batch.bound);
            if running.has_failed {
                attached.checkout.server.is_opaque |= !run.effects.is_empty();
            } else if running.ready.is_some() {
                attached.portals.iter_mut().for_each(Portal::settle);
            }
            match relayed {
                Relayed::Rerun | Relayed::Done => {
                    if running.has_failed {
                        self.take_back_unconfirmed(&mut attached);
                        self.is_skipping = running.ready.is_none() || run.is_own_batch;
                    } else if batch.has_sync {
                        self.hospital_before = None;
                    }
                    self.finish(attached, &run, running).await;
                }
                Relayed::Lost => {
                    self.on_lost(attached, &run, &running)?;
                    if batch.has_sync {
                        self.write_ready();
                    } else {
                        self.is_skipping = true;
                    }
                }
            }
            return Ok(());
        }
    }

    /// The statement of the batch has gone stale, or is gone, on its server. Nothing of the batch has
    /// run, the client has heard nothing of it, and it is still in the input: it is looked at again.
    fn heal(
        &mut self,
        batch: &mut Batch,
        attached: Box<Attached>,
        statement: Option<Arc<Statement>>,
    ) {
        self.take_back_names(std::mem::take(&mut batch.named), 0);
        self.release(attached);
        // The server keeps it under its name, until it is the longest unused.
        if let Some(stale) = statement.filter(|statement| statement.is_stale()) {
            self.renew(&stale);
        }
    }

    /// The client's names for what has gone stale mean its text, prepared anew.
    fn renew(&mut self, stale: &Arc<Statement>) {
        let store = &self.services.statements;
        let (text, types) = (stale.sql(), stale.types());
        let fresh = store.intern_from(text, types, &self.names, stale.origin(), None);
        self.statements.replace(stale, &fresh);
    }

    /// Parse and Describe with no Bind, then Flush or the bound: the hospital is not known yet, so
    /// that they go to any shard as a batch of their own.
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
        (self.ends_with_flush(batch) || self.is_cut(batch)) && batch.steps.iter().all(prepares)
    }

    /// It ends where it does because the bound was reached: more of it comes.
    fn is_cut(&self, batch: &Batch) -> bool {
        let has_end = batch.has_sync || self.ends_with_flush(batch);
        let next = self.input.as_slice().get(batch.end);
        !has_end && next.is_none_or(|tag| is_member(*tag))
    }

    fn ends_with_flush(&self, batch: &Batch) -> bool {
        matches!(batch.steps.last(), Some(Step { kind: StepKind::Flush, .. }))
    }

    /// Answers a batch that needs no server.
    fn answer_batch(&mut self, mut batch: Batch) {
        let mut confirmed = 0;
        for step in &batch.steps {
            confirmed += usize::from(step.kind.changes_names());
            match &step.kind {
                StepKind::Local(_, bytes) => self.output.push(bytes),
                StepKind::Control(message, statement, kept) => {
                    if *message == Message::Describe && self.is_of_statement(&step.frame) {
                        let types = statement.types();
                        backend::write_parameter_description(self.output.tail(), types);
                    }
                    if let Err(refusal) = self.control(*message, statement, kept) {
                        self.take_back_names(batch.named, confirmed);
                        self.hospital_before = batch.hospital_before;
                        self.take_back_hospital();
                        self.refuse(refusal);
                        self.is_skipping = true;
                        return;
                    }
                }
                StepKind::CloseStatement | StepKind::Portal(Message::Close) => {
                    backend::write_close_complete(self.output.tail());
                }
                StepKind::DiscardAll => {
                    let local = self.discard(Discard::All);
                    // Done for good, whatever becomes of the rest.
                    batch.hospital_before = None;
                    match local {
                        Ok(local) => local.write_result(self.output.tail()),
                        Err(refusal) => {
                            self.refuse(refusal);
                            self.is_skipping = true;
                            return;
                        }
                    }
                }
                StepKind::Sync => {
                    self.write_ready();
                }
                _ => {}
            }
        }
        self.input.advance(batch.end);
        if !batch.has_sync {
            self.hospital_before = batch.hospital_before;
        }
    }

    /// One message of transaction control that no server needs to hear.
    pub(super) fn control(
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
            _ => backend::write_no_data(self.output.tail()),
        }
        Ok(())
    }

    /// A Describe that is about a statement, so that its parameters are told too.
    fn is_of_statement(&self, frame: &Range<usize>) -> bool {
        let body = &self.input.as_slice()[frame.start + HEADER_BYTES..frame.end];
        Named::read_describe(body).is_ok_and(|named| named.kind == Kind::Statement)
    }
}

/// CopyData, or the end of it.
pub(super) fn is_copy(tag: &u8) -> bool {
    matches!(*tag, tag::COPY_DATA | tag::COPY_DONE | tag::COPY_FAIL)
}
