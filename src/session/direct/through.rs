//! Bytes of a session on one shard, both ways and unread, until one side ends it, a time-out does, or
//! pgward is drained.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::talk::{Phase, Talk};
use crate::auth::User;
use crate::net::{Buffer, Stream};
use crate::route::refusals;
use crate::session::Services;
use crate::session::directory::Client;
use crate::session::settle::REFUSAL_TIMEOUT;
use crate::session::timeouts::{Overdue, Watch, limit};
use crate::shard_map::ShardId;
use crate::wire::backend::ErrorReply;
use crate::wire::frontend;

/// Bytes in flight in one direction.
const FLIGHT_BYTES_MAX: usize = 256 << 10;

/// One side's connection, and what is on its way there.
pub(super) struct Side<'a> {
    pub(super) stream: &'a mut Stream,
    pub(super) output: &'a mut Buffer,
}

/// A session on one shard.
pub(super) struct Through<'a> {
    pub(super) services: &'a Services,
    pub(super) user: &'a User,
    pub(super) handle: &'a Client,
    pub(super) shard: ShardId,
    pub(super) is_replication: bool,
    pub(super) client: Side<'a>,
    pub(super) server: Side<'a>,
    pub(super) talk: Talk,
    pub(super) clock: Clock,
}

/// What the session's time-outs need to know.
#[derive(Debug, Default)]
pub(super) struct Clock {
    watch: Watch,
    /// The phase and turn that `watch` is of.
    of: Option<(Phase, u64)>,
    /// When the transaction, or the request outside one, began.
    begun_at: Option<Instant>,
    /// The request under way is being cancelled.
    is_overdue: bool,
}

/// Why bytes stop passing.
enum Event {
    /// One side has ended.
    Gone,
    /// What was being cancelled has been answered.
    Answered,
    /// Something has lasted too long.
    Overdue(Overdue),
    /// pgward is drained, or an admin wants it gone.
    Killed,
    /// No message of the server's is half with the client.
    Boundary,
}

impl<'a> Through<'a> {
    /// Passes bytes until the end.
    pub(super) async fn run(&mut self) -> io::Result<()> {
        let handle: &'a Client = self.handle;
        let mut woken = std::pin::pin!(handle.woken());
        loop {
            let event = std::future::poll_fn(|cx| self.poll(cx, &mut woken)).await?;
            let reply = match event {
                Event::Gone | Event::Boundary => return Ok(()),
                Event::Answered => {
                    // The cancel must not hit what the client asks for next.
                    self.handle.cancels_done().await;
                    self.clock.is_overdue = false;
                    continue;
                }
                Event::Killed => refusals::drained(),
                Event::Overdue(overdue) => match self.on_overdue(overdue) {
                    Some(reply) => reply,
                    None => continue,
                },
            };
            return self.end(reply).await;
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        woken: &mut Pin<&mut Notified<'a>>,
    ) -> Poll<io::Result<Event>> {
        loop {
            self.poll_writes(cx)?;
            let turns = self.talk.turns();
            let mut is_progress = match self.poll_server(cx, usize::MAX) {
                Poll::Ready(Ok(0)) => return self.poll_last_words(cx),
                Poll::Ready(read) => read? > 0,
                Poll::Pending => false,
            };
            if self.clock.is_overdue && self.talk.turns() > turns {
                return Poll::Ready(Ok(Event::Answered));
            }
            if self.server.output.len() < FLIGHT_BYTES_MAX {
                let had = self.server.output.len();
                if let Poll::Ready(read) = self.client.stream.poll_fill(cx, self.server.output) {
                    if read? == 0 {
                        let written = self.server.stream.poll_drain(cx, self.server.output);
                        return written.map_ok(|()| Event::Gone);
                    }
                    self.talk.on_client(&self.server.output.as_slice()[had..]);
                    is_progress = true;
                }
            }
            if !is_progress {
                return self.poll_rest(cx, woken).map(Ok);
            }
        }
    }

    fn poll_writes(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        for side in [&mut self.client, &mut self.server] {
            if let Poll::Ready(written) = side.stream.poll_drain(cx, side.output) {
                written?;
            }
        }
        Ok(())
    }

    /// Reads what the server says, no more than `max` bytes of it.
    fn poll_server(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<io::Result<usize>> {
        let had = self.client.output.len();
        if had >= FLIGHT_BYTES_MAX {
            return Poll::Pending;
        }
        let read = self.server.stream.poll_fill_at_most(cx, self.client.output, max);
        if matches!(read, Poll::Ready(Ok(n)) if n > 0) {
            self.talk.on_server(&self.client.output.as_slice()[had..]);
        }
        read
    }

    /// The server has ended: what it said last still has to go out.
    fn poll_last_words(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Event>> {
        self.client.stream.poll_drain(cx, self.client.output).map_ok(|()| Event::Gone)
    }

    /// What ends a session besides its two sides.
    fn poll_rest(
        &mut self,
        cx: &mut Context<'_>,
        woken: &mut Pin<&mut Notified<'a>>,
    ) -> Poll<Event> {
        let handle: &'a Client = self.handle;
        while woken.as_mut().poll(cx).is_ready() {
            woken.set(handle.woken());
        }
        // A stream has no end to wait for.
        let may_end = matches!(self.talk.phase(), Phase::Idle | Phase::Streaming);
        if may_end && self.handle.is_killed() {
            return Poll::Ready(Event::Killed);
        }
        self.watch();
        self.clock.watch.poll(cx).map(Event::Overdue)
    }

    /// Watches the limits of what goes on now.
    fn watch(&mut self) {
        let now = (self.talk.phase(), self.talk.turns());
        if self.clock.of == Some(now) {
            return;
        }
        self.clock.of = Some(now);
        let config = self.services.config.load();
        let (own, all) = (&self.user.limits, &config.pool);
        let mut watch = Watch::default();
        let transaction = limit(own.transaction_timeout, all.transaction_timeout)
            .filter(|_| !self.is_replication);
        match now.0 {
            Phase::Idle => {
                self.clock.begun_at = None;
                let idle = limit(own.client_idle_timeout, all.client_idle_timeout);
                watch.add(idle, Instant::now, Overdue::Client);
            }
            Phase::IdleInBlock => {
                let idle = limit(own.idle_transaction_timeout, all.idle_transaction_timeout);
                watch.add(idle, Instant::now, Overdue::IdleTransaction);
                let begun_at = &mut self.clock.begun_at;
                let since = || *begun_at.get_or_insert_with(Instant::now);
                watch.add(transaction, since, Overdue::Transaction);
            }
            Phase::Running => {
                let begun_at = &mut self.clock.begun_at;
                let since = || *begun_at.get_or_insert_with(Instant::now);
                watch.add(transaction, since, Overdue::Transaction);
                // A base backup takes what it takes.
                let query = limit(own.query_timeout, all.query_timeout);
                let query = query.filter(|_| !self.is_replication);
                watch.add(query, Instant::now, Overdue::Query);
            }
            Phase::Streaming => {}
        }
        self.clock.watch = watch;
    }

    /// What the client is told and the session ended with; `None`: it goes on.
    fn on_overdue(&mut self, overdue: Overdue) -> Option<ErrorReply> {
        match overdue {
            Overdue::Query => {
                let config = self.services.config.load();
                let timeout = Duration::from_secs_f64(config.pool.cancel_wait_timeout);
                self.clock.is_overdue = true;
                self.handle.cancel_soon(timeout);
                if self.talk.may_fail_copy() {
                    // A server that waits for data does not look at cancels.
                    frontend::write_copy_fail(self.server.output.tail(), b"query timeout");
                }
                self.clock.watch.add(Some(timeout), Instant::now, Overdue::Obedience);
                None
            }
            // Nobody has read what the client asked for: it may have been a COMMIT.
            Overdue::Obedience => {
                Some(ErrorReply { severity: "FATAL", ..refusals::outcome_unknown(self.shard) })
            }
            Overdue::Transaction => Some(refusals::transaction_timeout()),
            Overdue::IdleTransaction => Some(refusals::idle_transaction_timeout()),
            Overdue::Client | Overdue::Queued => Some(refusals::client_idle_timeout()),
        }
    }

    /// Says `reply` behind the server's message under way, if that ends soon.
    async fn end(&mut self, reply: ErrorReply) -> io::Result<()> {
        self.services.metrics.on_refusal(reply.sqlstate);
        let farewell = async {
            let rest = std::future::poll_fn(|cx| self.poll_to_boundary(cx)).await?;
            if let Event::Boundary = rest {
                reply.encode(self.client.output.tail());
                self.client.stream.drain(self.client.output).await?;
            }
            Ok(())
        };
        let told = tokio::time::timeout(REFUSAL_TIMEOUT, farewell).await.unwrap_or(Ok(()));
        if self.talk.phase() == Phase::Running {
            // A server at work does not see that its connection ends.
            self.handle.cancel(REFUSAL_TIMEOUT).await;
        }
        told
    }

    fn poll_to_boundary(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Event>> {
        loop {
            self.poll_writes(cx)?;
            let left = self.talk.unfinished();
            if left == 0 {
                return Poll::Ready(Ok(Event::Boundary));
            }
            if std::task::ready!(self.poll_server(cx, left))? == 0 {
                return self.poll_last_words(cx);
            }
        }
    }
}
