//! Time-outs of a session: which hold for it, and the watch that the earliest of them needs.
//!
//! What has no limit costs nothing: no timer is made, and no clock is read. All limits are of the
//! configuration, or of the user in place of it, as they are now: a reload holds for the next wait.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::block::Block;
use super::{Attached, End, Session};
use crate::config::PoolMode;
use crate::route::refusals;
use crate::server::Copy;
use crate::sql::{Analysis, Effect, Transaction};
use crate::wire::backend::ErrorReply;

/// What has lasted too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    /// A request: `query_timeout`.
    Query,
    /// A server that was asked to cancel one: `cancel_wait_timeout`.
    Obedience,
    /// `transaction_timeout`.
    Transaction,
    /// `idle_transaction_timeout`.
    IdleTransaction,
    /// `client_idle_timeout`.
    Client,
    /// `query_wait_notify`.
    Queued,
}

/// Waits for the earliest of some deadlines; one pointer where there is none.
#[derive(Debug, Default)]
pub(super) struct Watch(Option<Box<Watched>>);

#[derive(Debug)]
struct Watched {
    at: Instant,
    overdue: Overdue,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Watch {
    /// Adds a deadline, `limit` from `since` on; `since` is asked only where there is a limit.
    pub(super) fn add(
        &mut self,
        limit: Option<Duration>,
        since: impl FnOnce() -> Instant,
        overdue: Overdue,
    ) {
        let Some(limit) = limit else { return };
        let at = since() + limit;
        if self.0.as_ref().is_none_or(|watched| at < watched.at) {
            self.0 = Some(Box::new(Watched { at, overdue, sleep: None }));
        }
    }

    /// Ready once, when the deadline has passed.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Overdue> {
        let Some(watched) = &mut self.0 else { return Poll::Pending };
        // The clock first: amid a stream of rows a timer may not get its turn.
        if Instant::now() < watched.at {
            let at = watched.at;
            let sleep = watched.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            std::task::ready!(sleep.as_mut().poll(cx));
        }
        let overdue = watched.overdue;
        self.0 = None;
        Poll::Ready(overdue)
    }
}

/// `own`, a user's line, counts before the configuration's `all`; 0 is no limit.
pub(super) fn limit(own: Option<f64>, all: f64) -> Option<Duration> {
    let seconds = own.unwrap_or(all);
    (seconds > 0.0).then(|| Duration::from_secs_f64(seconds))
}

impl Session {
    /// In statement mode nothing may begin a block.
    pub(super) fn check_mode(&self, analysis: &Analysis) -> Result<(), ErrorReply> {
        let is_begin = |statement: &crate::sql::Statement| {
            matches!(statement.effect, Effect::Transaction(Transaction::Begin(_)))
        };
        let refused = analysis.statements.iter().any(is_begin) && self.mode == PoolMode::Statement;
        if refused { Err(refusals::no_blocks()) } else { Ok(()) }
    }

    /// How long a request of this session may wait for a server.
    pub(super) fn wait_limit(&self) -> Option<Duration> {
        let config = self.services.config.load();
        limit(self.user.limits.query_wait_timeout, config.pool.query_wait_timeout)
    }

    /// The watch of a client that waits for a server.
    pub(super) fn watch_queue(&self) -> Watch {
        let mut watch = Watch::default();
        if self.is_greeted {
            let notify = self.services.config.load().pool.query_wait_notify;
            watch.add(limit(None, notify), Instant::now, Overdue::Queued);
        }
        watch
    }

    /// The watch of a request that runs on `attached`.
    pub(super) fn watch_request(&self, attached: &mut Attached) -> Watch {
        let config = self.services.config.load();
        let (own, all) = (&self.user.limits, &config.pool);
        let mut watch = Watch::default();
        if let Some(query) = limit(own.query_timeout, all.query_timeout) {
            let since = *attached.asked_at.get_or_insert_with(Instant::now);
            if attached.is_overdue {
                let more = Duration::from_secs_f64(all.cancel_wait_timeout);
                watch.add(Some(query + more), || since, Overdue::Obedience);
            } else {
                watch.add(Some(query), || since, Overdue::Query);
            }
        }
        let transaction = limit(own.transaction_timeout, all.transaction_timeout);
        watch.add(transaction, || Instant::from_std(attached.since), Overdue::Transaction);
        watch
    }

    /// The watch of a session that waits for its client.
    pub(super) fn watch_idle(&mut self) -> Watch {
        if let Some(mut attached) = self.attached.take() {
            let is_asked = !attached.checkout.server.pipeline().is_empty();
            let mut watch = if is_asked {
                self.watch_request(&mut attached)
            } else {
                let config = self.services.config.load();
                let (own, all) = (&self.user.limits, &config.pool);
                let mut watch = Watch::default();
                let transaction = limit(own.transaction_timeout, all.transaction_timeout);
                watch.add(transaction, || Instant::from_std(attached.since), Overdue::Transaction);
                watch
            };
            if !is_asked {
                watch.add(self.idle_transaction_limit(), Instant::now, Overdue::IdleTransaction);
            }
            self.attached = Some(attached);
            return watch;
        }
        let mut watch = Watch::default();
        match self.block {
            Block::None => {
                let config = self.services.config.load();
                let own = self.user.limits.client_idle_timeout;
                let idle = limit(own, config.pool.client_idle_timeout);
                watch.add(idle, Instant::now, Overdue::Client);
            }
            // A block that has no server yet is a block to its client.
            _ => watch.add(self.idle_transaction_limit(), Instant::now, Overdue::IdleTransaction),
        }
        watch
    }

    fn idle_transaction_limit(&self) -> Option<Duration> {
        let config = self.services.config.load();
        limit(self.user.limits.idle_transaction_timeout, config.pool.idle_transaction_timeout)
    }

    /// Something on `attached` has lasted too long. `Ok`: it goes on, with another watch.
    pub(super) fn on_overdue(
        &self,
        attached: &mut Attached,
        overdue: Overdue,
    ) -> Result<Watch, End> {
        let server = &mut *attached.checkout.server;
        let reply = match overdue {
            Overdue::Query => {
                attached.is_overdue = true;
                server.replace_cancelled(refusals::query_timeout());
                let config = self.services.config.load();
                let timeout = Duration::from_secs_f64(config.pool.cancel_wait_timeout);
                self.client.cancel_soon(timeout);
                return Ok(self.watch_request(attached));
            }
            Overdue::Obedience => ErrorReply {
                severity: "FATAL",
                ..refusals::server_lost_in_transaction(attached.checkout.shard)
            },
            Overdue::Transaction => refusals::transaction_timeout(),
            Overdue::IdleTransaction => refusals::idle_transaction_timeout(),
            Overdue::Client | Overdue::Queued => refusals::client_idle_timeout(),
        };
        // Half a message is with the client: there is no place for another.
        if server.is_mid_frame() { Err(End::Broken) } else { Err(End::Fatal(reply)) }
    }

    /// What was asked for has been answered: what comes next has its own time.
    pub(super) async fn end_watch(&self, attached: &mut Attached) {
        if !attached.checkout.server.pipeline().is_empty() {
            return;
        }
        if attached.is_overdue {
            // The cancel must not hit what the client asks for next.
            self.client.cancels_done().await;
        }
        attached.asked_at = None;
        attached.is_overdue = false;
    }

    /// A COPY FROM STDIN waits for its client, and a server that reads does not look at cancels:
    /// ending the data ends it.
    pub(super) fn end_copy(attached: &mut Attached, is_amid_data: bool) {
        let server = &mut *attached.checkout.server;
        if server.pipeline().copy() == Copy::In && !is_amid_data {
            let mut bytes = bytes::BytesMut::new();
            crate::wire::frontend::write_copy_fail(&mut bytes, b"query timeout");
            server.send_bytes(&bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_earliest_deadline_is_told_once() {
        let mut watch = Watch::default();
        let start = Instant::now();
        watch.add(None, || unreachable!("no limit, no clock"), Overdue::Client);
        watch.add(Some(Duration::from_secs(3)), || start, Overdue::Transaction);
        watch.add(Some(Duration::from_secs(2)), || start, Overdue::Query);
        watch.add(Some(Duration::from_secs(9)), || start, Overdue::Client);
        let overdue = std::future::poll_fn(|cx| watch.poll(cx)).await;
        assert_eq!((overdue, start.elapsed().as_secs()), (Overdue::Query, 2));
        let once_more = std::future::poll_fn(|cx| Poll::Ready(watch.poll(cx).is_ready())).await;
        assert!(!once_more);
    }

    #[test]
    fn a_users_line_counts_before_the_configuration() {
        for (own, all, want) in [
            (None, 0.0, None),
            (None, 1.5, Some(1500)),
            (Some(0.0), 1.5, None),
            (Some(0.25), 1.5, Some(250)),
            (Some(2.0), 0.0, Some(2000)),
        ] {
            assert_eq!(limit(own, all), want.map(Duration::from_millis), "{own:?} {all}");
        }
    }
}
