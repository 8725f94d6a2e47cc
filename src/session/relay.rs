//! Moves the bytes of one request both ways until it is answered.
//!
//! What it holds is bounded on both sides, so that neither can wedge the other. Effects of
//! statements reach the session's ledger as the server confirms them.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::attach::{abandon, server_role};
use super::copy::{self, Watch};
use super::run::{Confirmed, Run, apply, resets};
use super::settle::CANCEL_TIMEOUT;
use super::statements::Statement;
use super::timeouts::Overdue;
use super::{Attached, End, OUTPUT_BYTES_MAX, READ_AHEAD_BYTES, Session};
use crate::route::refusals;
use crate::server::{self, Copy, Reply};
use crate::sql::Temporary;
use crate::wire::TxnStatus;
use crate::wire::encoding::Encoding;

/// Bytes for the client that go out even while more is coming.
const WRITE_BYTES: usize = 64 << 10;

/// The setting that says how the bytes of a text are read.
const ENCODING: &str = "client_encoding";

/// How a relay ended.
#[derive(Debug)]
pub(super) enum Relayed {
    /// As asked.
    Done,
    /// The replica could not, and said nothing to the client: run it on the primary.
    Rerun,
    /// The server is gone.
    Lost,
}

/// State of a request while it is relayed.
#[derive(Debug, Default)]
pub(super) struct Running {
    /// The last ReadyForQuery.
    pub ready: Option<TxnStatus>,
    /// An error came.
    pub has_failed: bool,
    /// The session's settings or block changed.
    pub has_changed: bool,
    /// SQLSTATE of the server's farewell.
    pub last_words: Option<String>,
    /// The client has an error of this request already.
    pub has_told: bool,
    /// The farewell itself.
    pub farewell: Option<bytes::Bytes>,
    may_rerun: bool,
    wants_rerun: bool,
    /// The statement of its only Bind; whether it may be parsed anew and run again.
    sole: Option<(Arc<Statement>, bool)>,
    /// It has gone stale, and nothing of that is with the client.
    pub wants_healing: bool,
    pub is_ddl: bool,
    /// Something of the server's waits to be written to the client.
    has_news: bool,
    /// Bytes of a CopyData of the client's that go on as they come.
    pub copy_left: usize,
    pub is_copy_ended: bool,
    /// pgward has the COPY fail; what else the client sends for it is for nobody.
    pub is_copy_refused: bool,
    /// Looks at the rows of the COPY under way.
    pub watch: Option<Box<Watch>>,
}

/// A COPY FROM between two relays.
#[derive(Debug)]
pub(super) struct Copying {
    watch: Option<Box<Watch>>,
    is_refused: bool,
    is_ended: bool,
}

/// When a relay ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The server owes nothing.
    Settled,
    /// All has been written; replies are taken as they come.
    Sent,
}

impl Running {
    /// For a request that is about to be relayed.
    pub(super) fn new(may_rerun: bool) -> Self {
        Self { may_rerun, ..Self::default() }
    }

    /// As [`Self::new`], for a batch that does `run`.
    pub(super) fn of_batch(may_rerun: bool, run: &Run) -> Self {
        let sole = run.sole.clone().map(|statement| (statement, run.is_healable));
        Self { sole, ..Self::new(may_rerun) }
    }

    /// A COPY that began in an earlier piece of the batch goes on under the same watch.
    pub(super) fn resume_copy(&mut self, attached: &mut Attached) {
        if let Some(kept) = attached.copying.take() {
            self.watch = kept.watch;
            self.is_copy_refused = kept.is_refused;
            self.is_copy_ended = kept.is_ended;
        }
    }

    /// The COPY goes on beyond what is relayed now.
    pub(super) fn keep_copy(&mut self, attached: &mut Attached) {
        if attached.checkout.server.pipeline().copy() == Copy::In {
            attached.copying = Some(Copying {
                watch: self.watch.take(),
                is_refused: self.is_copy_refused,
                is_ended: self.is_copy_ended,
            });
        }
    }

    /// The server is gone: what a replica has not begun to answer runs again on the primary.
    pub(super) fn on_lost(&self, attached: &Attached) -> Relayed {
        if self.may_rerun && !attached.checkout.server.has_forwarded() {
            Relayed::Rerun
        } else {
            Relayed::Lost
        }
    }
}

impl Session {
    /// Moves bytes both ways until `until`. `kept` bytes at the front of the input are of this
    /// request already. Cancel safety: the session is dropped with it, never resumed.
    pub(super) async fn relay(
        &mut self,
        attached: &mut Attached,
        running: &mut Running,
        until: Until,
        kept: usize,
    ) -> Result<Relayed, End> {
        running.resume_copy(attached);
        let mut watch = self.watch_request(attached);
        let relayed = std::future::poll_fn(|cx| {
            loop {
                if let Poll::Ready(relayed) = self.poll_relay(cx, attached, running, until, kept) {
                    return Poll::Ready(relayed);
                }
                let Poll::Ready(overdue) = watch.poll(cx) else { return Poll::Pending };
                match overdue {
                    // It does not even cancel: what became of the request nobody knows.
                    Overdue::Obedience => return Poll::Ready(Ok(Relayed::Lost)),
                    Overdue::Query => Self::end_copy(attached, running.copy_left > 0),
                    _ => {}
                }
                watch = self.on_overdue(attached, overdue)?;
            }
        })
        .await;
        running.keep_copy(attached);
        if relayed.is_err() {
            Box::pin(abandon(attached, &self.client, CANCEL_TIMEOUT)).await;
        } else if attached.asked_at.is_some() {
            Box::pin(self.end_watch(attached)).await;
        }
        relayed
    }

    fn poll_relay(
        &mut self,
        cx: &mut Context<'_>,
        attached: &mut Attached,
        running: &mut Running,
        until: Until,
        kept: usize,
    ) -> Poll<Result<Relayed, End>> {
        loop {
            let server = &mut *attached.checkout.server;
            let is_sent = match server.poll_drain(cx) {
                Poll::Ready(Ok(())) => true,
                // Its last words may still be there to read.
                Poll::Ready(Err(_)) | Poll::Pending => false,
            };
            server.synthesize_into(&mut self.output);
            let before = self.output.len();
            if before < OUTPUT_BYTES_MAX && self.take_replies(attached, running).is_err() {
                return Poll::Ready(Ok(running.on_lost(attached)));
            }
            running.has_news |= self.output.len() > before;
            if running.wants_rerun && running.ready.is_some() {
                return Poll::Ready(Ok(Relayed::Rerun));
            }
            let server = &mut *attached.checkout.server;
            let is_done = match until {
                Until::Settled => server.pipeline().is_empty(),
                Until::Sent => is_sent,
            };
            if is_done {
                return Poll::Ready(Ok(Relayed::Done));
            }
            let mut is_progress = false;
            let is_full = self.output.len() >= OUTPUT_BYTES_MAX;
            if !is_full {
                match server.poll_fill(cx) {
                    Poll::Ready(Ok(())) => is_progress = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(Ok(running.on_lost(attached))),
                    Poll::Pending => {}
                }
            }
            // Written out when the server pauses, and not for answers of our own alone: those go
            // with the server's, in one write.
            let is_due = !is_progress || self.output.len() >= WRITE_BYTES;
            if is_due && (running.has_news || is_full) {
                match self.stream.poll_drain(cx, &mut self.output) {
                    Poll::Ready(Ok(())) => {
                        running.has_news = false;
                        // Race: the server has not been asked while there was no room, and so
                        // nothing wakes us when it has more.
                        is_progress |= is_full;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(End::Client)),
                    Poll::Pending => {}
                }
            }
            if server.pipeline().copy() == Copy::In {
                is_progress |= self.feed_copy(server, running)?;
            }
            // Reading ahead shows when the client has gone; what it sends meanwhile is bounded.
            if self.input.len() < kept + READ_AHEAD_BYTES {
                match self.stream.poll_fill(cx, &mut self.input) {
                    // Once more: only a pending read tells when the client goes.
                    Poll::Ready(Ok(n)) if n > 0 => is_progress = true,
                    Poll::Ready(_) => return Poll::Ready(Err(End::Client)),
                    Poll::Pending => {}
                }
            }
            if !is_progress {
                return Poll::Pending;
            }
        }
    }

    /// Takes in what the server sent.
    pub(super) fn take_replies(
        &mut self,
        attached: &mut Attached,
        running: &mut Running,
    ) -> Result<(), server::Error> {
        while let Some(reply) = attached.checkout.server.next_reply(&mut self.output)? {
            let server = &mut *attached.checkout.server;
            match reply {
                Reply::Ready { status, .. } => {
                    running.ready = Some(status);
                    running.has_changed |= self.confirm_reported(attached);
                    let server = &mut *attached.checkout.server;
                    if server.pipeline().is_empty() {
                        // The request has its one ReadyForQuery. What a server says behind it is
                        // for nobody: `settle` finds it unclean.
                        return Ok(());
                    }
                }
                Reply::Error(error) => {
                    // The server skips what follows, and so its effects never come.
                    attached.effects.clear();
                    attached.described.clear();
                    let role = server_role(attached.checkout.role);
                    self.services.metrics.on_error(attached.checkout.shard.0, role, error.code());
                    running.has_failed = true;
                    attached.has_failed = true;
                    let is_stale =
                        error.code() == "0A000" && error.routine == "RevalidateCachedQuery";
                    if is_stale && let Some((statement, _)) = &running.sole {
                        self.services.statements.retire(statement);
                    }
                    let is_at_start = matches!(
                        error.message,
                        Some(
                            server::Message::Bind
                                | server::Message::Describe
                                | server::Message::DescribeShared(_)
                        )
                    );
                    if is_stale || error.code() == "26000" {
                        let may_heal = matches!(running.sole, Some((_, true)));
                        running.wants_healing =
                            may_heal && is_at_start && error.held_back.is_some();
                        // DDL changed what a statement answers, or statements are gone, or the
                        // error is about something else and it is still there under its name: the
                        // reset forgets them all.
                        server.is_opaque |= !(is_stale && running.wants_healing);
                    }
                    if error.is_fatal {
                        running.last_words = Some(error.code().to_owned());
                        running.farewell = error.held_back;
                        return Err(server::Error::Closed);
                    }
                    running.has_told |= error.held_back.is_none();
                    if let Some(bytes) = &error.held_back {
                        let is_replicas = running.may_rerun && is_replica_trouble(error.code());
                        if is_replicas || running.wants_healing {
                            running.wants_rerun = true;
                        } else {
                            self.output.push(bytes);
                            running.has_told = true;
                            server.end_hold();
                        }
                    }
                }
                Reply::Complete { tag, kind, forwarded } => {
                    if forwarded
                        && let Some(effect) = attached.effects.pop_front()
                        // A suspended `SELECT set_config()` has run.
                        && matches!(kind, b'C' | b's')
                    {
                        if kind == b's' {
                            // A set_config that has given its row has taken place, and may again.
                            server.is_opaque |= effect != Confirmed::Nothing;
                        }
                        running.has_changed = true;
                        if matches!(effect, Confirmed::Temporary(Temporary::Makes { .. })) {
                            // What is prepared from now on may have the types of its columns.
                            server.is_opaque = true;
                        }
                        if effect == Confirmed::DiscardAll {
                            server.prepared.clear();
                        }
                        if let Confirmed::Prepared(name, statement) = &effect {
                            self.statements.insert(name.as_bytes(), statement.clone());
                            if !self.has_own_server() {
                                server.prepared.confirm(statement.id);
                            }
                        }
                        attached.resets.extend(resets(&effect, self.ledger.startup()));
                        let before = self.ledger.value(ENCODING).map(str::to_owned);
                        running.is_ddl |= apply(
                            &mut self.ledger,
                            &mut self.block,
                            &mut self.statements,
                            effect,
                            tag,
                        );
                        if self.ledger.value(ENCODING) != before.as_deref() {
                            // The server reports it at its ReadyForQuery only.
                            attached.encoding = None;
                        }
                    }
                }
                Reply::Described { id, shape, forwarded } => {
                    if forwarded && let Some(name) = attached.described.pop_front() {
                        self.statements.tell(&name, (id, shape));
                    }
                }
                Reply::CopyIn => {
                    (running.is_copy_ended, running.is_copy_refused) = (false, false);
                    running.watch = None;
                    let encoding = attached.encoding.unwrap_or(self.encoding);
                    match attached.effects.front() {
                        // A delimiter may be half a character.
                        Some(Confirmed::Copy(..)) if encoding == Encoding::Other => {
                            copy::refuse(server, running, refusals::unreadable_row());
                        }
                        Some(Confirmed::Copy(check, hospital)) => {
                            running.watch = Some(Box::new(Watch::new(*check, *hospital)));
                        }
                        // Its rows are looked at when they leave it for a sharded table.
                        Some(Confirmed::Temporary(Temporary::Fills)) => {}
                        _ if self.is_unguarded() && self.ledger.hospital().is_none() => {}
                        // Nothing that has been looked at does this.
                        _ => copy::refuse(server, running, refusals::internal()),
                    }
                }
                Reply::Parameter { name, value } => self.on_parameter(attached, &name, &value),
            }
        }
        Ok(())
    }
}

/// Errors of a replica that the primary would not give: a write that was not seen as one, and
/// conflicts with recovery (manual: "Handling Query Conflicts").
fn is_replica_trouble(code: &str) -> bool {
    matches!(code, "25006" | "40001" | "40P01" | "57P03")
}
