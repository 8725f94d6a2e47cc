//! A server for a request: the one that is held, else one from the pool, with the session's settings
//! on it and its block begun; and what becomes of the request where there is none.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::block::{Block, Pending};
use super::directory::{CancelTarget, Cancels, Client};
use super::pins::{self, Pin, Pins};
use super::run::{Run, add_names};
use super::welcome::reads_single_bytes;
use super::{Attached, End, READ_AHEAD_BYTES, Session, params};
use crate::auth::{ServerCredentials, ServerSecret};
use crate::config::{Consistency, PoolMode};
use crate::metrics::{Fallback, ServerRole};
use crate::pool::{self, Want};
use crate::route::{Bound, Role, Route, refusals};
use crate::server::{self, Expect, Message, ServerConn, ServerError};
use crate::shard_map::HospitalId;
use crate::wire::backend::ErrorReply;
use crate::wire::encoding::Encoding;
use crate::wire::{TxnStatus, frontend};

/// Text that no server accepts: it makes a refusal real on a server in a transaction.
const REFUSED_TEXT: &[u8] = b"pgward refused this statement";

/// Why a server could not be had.
pub(super) enum Unattached {
    /// The client is told so.
    Refused(ErrorReply),
    /// The server's own error, as it said it.
    Server(ServerError),
    /// The session ends.
    End(End),
}

impl From<ErrorReply> for Unattached {
    fn from(refusal: ErrorReply) -> Self {
        Self::Refused(refusal)
    }
}

impl Session {
    /// The server for `run`: the one that is held, else one from the pool, with the session's
    /// settings on it.
    pub(super) async fn attach(&mut self, run: &Run) -> Result<Box<Attached>, Unattached> {
        if let Some(attached) = self.attached.take() {
            return Ok(attached);
        }
        if let Some(pinned) = self.pinned.take() {
            return self.attach_pinned(pinned, run).await;
        }
        if !self.services.pools.is_current(&self.pools) {
            // The secret may have been rotated since the login; who it is on servers stays.
            let users = self.services.users.load();
            let now = users.get(&self.user.name).map(|user| &user.server);
            // What the client has proven is not in the users file.
            let is_known = |server: &&Arc<ServerCredentials>| {
                server.user == self.user.server.user
                    && server.secret != Some(ServerSecret::FromClient)
            };
            let server = now.filter(is_known);
            self.pools = self.services.pools.of_user(server.unwrap_or(&self.user.server));
        }
        let (shard, role, hospital) = match run.route {
            Route::One { hospital, shard, role } => (Some(shard), role, hospital),
            Route::Any { role } => (None, role, None),
        };
        // What is kept may have to write one day.
        let role = if self.mode == PoolMode::Session { Role::Primary } else { role };
        let written_at = self.must_see(hospital);
        let want = Want { shard, role, hospital, written_at };
        let map = self.services.map.current();
        let checkout = match self.services.pools.checkout_now(&self.pools, want) {
            Some(checkout) => checkout,
            // Boxed: its state is large, and most requests find a server at once.
            None => Box::pin(self.wait_for_server(want)).await?,
        };
        let mut checkout = checkout;
        checkout.server.told_pid = self.client.pid;
        if !self.hold(&checkout) {
            give_back(checkout, &self.client);
            return Err(Unattached::Refused(refusals::cancelled()));
        }
        if role == Role::Replica
            && checkout.role == Role::Primary
            && self.has_replicas(&map, &checkout)
        {
            let metrics = self.services.metrics.of(checkout.shard.0, ServerRole::Replica);
            metrics.on_fallback(Fallback::Stale);
        }
        let is_unguarded = self.is_unguarded();
        if self.was_unguarded && !is_unguarded {
            // A guard has come while it waited, and nobody has read the request.
            give_back(checkout, &self.client);
            return Err(Unattached::End(End::Fatal(refusals::drained())));
        }
        self.was_unguarded = is_unguarded;
        let bound = Bound { hospital, shard: checkout.shard, role: checkout.role };
        let mut attached = Box::new(Attached {
            checkout,
            bound,
            map,
            is_write: false,
            may_end: false,
            may_commit: false,
            pins: Pins::default(),
            pin_change: pins::Change::None,
            may_set: false,
            custom_names: Default::default(),
            copying: None,
            has_doubtful_portals: false,
            portals: Vec::new(),
            since: std::time::Instant::now(),
            asked_at: None,
            is_overdue: false,
            effects: VecDeque::new(),
            described: VecDeque::new(),
            has_ddl: false,
            named: Vec::new(),
            has_failed: false,
            encoding: None,
            reported: Vec::new(),
            resets: Vec::new(),
        });
        if self.default_path.is_empty() {
            // Its own server is the first that it meets.
            self.default_path = attached.checkout.server.default_path.clone();
        }
        match self.bring_settings(&mut attached).await {
            Ok(()) => Ok(attached),
            Err(unattached) => {
                give_back(attached.checkout, &self.client);
                Err(unattached)
            }
        }
    }

    /// The server that the session keeps, for a transaction of its own.
    async fn attach_pinned(
        &mut self,
        mut pinned: Box<Attached>,
        run: &Run,
    ) -> Result<Box<Attached>, Unattached> {
        if let Route::One { shard, .. } = run.route {
            assert_eq!(shard, pinned.bound.shard, "routed away from the server that is kept");
        }
        pinned.map = self.services.map.current();
        pinned.since = std::time::Instant::now();
        match self.bring_settings(&mut pinned).await {
            Ok(()) => Ok(pinned),
            Err(Unattached::Server(error)) if !pinned.checkout.server.is_broken() => {
                self.pinned = Some(pinned);
                Err(Unattached::Server(error))
            }
            Err(_) => {
                self.client.on_detach();
                let lost = refusals::pinned_server_lost(pinned.bound.shard);
                Err(Unattached::End(End::Fatal(lost)))
            }
        }
    }

    /// The last write that a read of `hospital` must see.
    fn must_see(&self, hospital: Option<HospitalId>) -> u64 {
        match (self.services.config.load().routing.consistency, hospital) {
            (Consistency::Hospital, Some(hospital)) => self.services.writes.last(hospital),
            _ => self.written_at,
        }
    }

    /// A write has an outcome, or lost it.
    pub(super) fn note_write(&mut self, hospital: Option<HospitalId>) {
        let now = self.services.fleet.now();
        self.written_at = now;
        match hospital {
            Some(hospital) => self.services.writes.note(hospital, now),
            None => self.services.writes.note_all(now),
        }
    }

    fn has_replicas(&self, map: &crate::shard_map::ShardMap, checkout: &pool::Checkout) -> bool {
        map.shard(checkout.shard).is_some_and(|shard| !shard.replicas.is_empty())
    }

    /// Waits for a server; a cancel, or the client's end, ends the wait.
    async fn wait_for_server(&mut self, want: Want) -> Result<pool::Checkout, Unattached> {
        let client = self.client.clone();
        client.on_wait();
        let services = self.services.clone();
        let pools = self.pools.clone();
        let limit = self.wait_limit();
        let mut watch = self.watch_queue();
        let mut checkout = std::pin::pin!(services.pools.checkout_within(&pools, want, limit));
        let mut woken = std::pin::pin!(client.woken());
        let outcome = std::future::poll_fn(|cx| {
            // The server first: a cancel that comes with it is seen by `on_attach`.
            if let Poll::Ready(outcome) = checkout.as_mut().poll(cx) {
                return Poll::Ready(Ok(outcome));
            }
            if woken.as_mut().poll(cx).is_ready() || client.is_cancelled() {
                if client.is_cancelled() {
                    return Poll::Ready(Err(Unattached::Refused(refusals::cancelled())));
                }
                woken.set(client.woken());
                cx.waker().wake_by_ref();
            }
            if watch.poll(cx).is_ready() {
                refusals::queued().encode(self.output.tail());
            }
            // What it has been answered already need not wait, too.
            if !self.output.is_empty()
                && let Poll::Ready(Err(_)) = self.stream.poll_drain(cx, &mut self.output)
            {
                return Poll::Ready(Err(Unattached::End(End::Client)));
            }
            // Reading ahead shows when the client has gone; what it sends meanwhile is bounded.
            while self.input.len() < READ_AHEAD_BYTES {
                match self.stream.poll_fill(cx, &mut self.input) {
                    Poll::Ready(Ok(n)) if n > 0 => {}
                    Poll::Ready(_) => return Poll::Ready(Err(Unattached::End(End::Client))),
                    Poll::Pending => break,
                }
            }
            Poll::Pending
        })
        .await;
        let refusal = match outcome {
            Ok(Ok(checkout)) => return Ok(checkout),
            Ok(Err(error)) => Unattached::Refused(pool_reply(&error)),
            Err(unattached) => unattached,
        };
        client.on_detach();
        Err(refusal)
    }

    /// The client holds a server from now on: a cancel of its goes there. `false`: it was cancelled
    /// while it waited.
    pub(super) fn hold(&self, checkout: &pool::Checkout) -> bool {
        let server = &checkout.server;
        let target =
            CancelTarget { way: server.way.clone(), pid: server.pid, key: server.key.clone() };
        server.entry().client.store(self.client.number, std::sync::atomic::Ordering::Relaxed);
        self.client.on_attach(target)
    }

    /// Gives the server the session's settings. A round trip of its own, and only where they
    /// differ: were it part of the request, a setting that fails would have to undo the request.
    async fn bring_settings(&mut self, attached: &mut Attached) -> Result<(), Unattached> {
        // Also where no setting is to be brought: a block may begin with one.
        if matches!(self.encoding, Encoding::Single(_))
            && !reads_single_bytes(&attached.checkout.server.parameters)
            && !self.is_unguarded()
        {
            return Err(Unattached::Refused(refusals::unsupported(
                "a client_encoding that this shard's server does not convert to UTF8",
                "SET client_encoding = 'UTF8'.",
            )));
        }
        let server = &mut *attached.checkout.server;
        let want = self.ledger.committed();
        let is_default_path = server.default_path == self.default_path;
        if Arc::ptr_eq(&server.settings, want) && is_default_path {
            return Ok(());
        }
        let mut sql = params::replay(&server.settings, want);
        if !is_default_path && !want.contains_key("search_path") {
            // The role's own search_path was changed since this session learnt it: names would
            // mean on this server what they were not analysed for.
            server.is_opaque = true;
            let path = params::quote_literal(&self.default_path);
            let set = format!("SELECT pg_catalog.set_config('search_path', {path}, false)");
            sql = Some(sql.map_or(set.clone(), |sql| format!("{sql}; {set}")));
        }
        if let Some(sql) = sql {
            match server.run(&sql).await {
                Ok(Ok(())) => attached.encoding = None,
                Ok(Err(error)) => return Err(Unattached::Server(error)),
                Err(_) => {
                    let shard = attached.checkout.shard;
                    return Err(Unattached::Refused(refusals::no_server(shard)));
                }
            }
        }
        server.settings = want.clone();
        Ok(())
    }

    /// Starts a request on its server: what must go out ahead of it. Answers whether it may be
    /// run again on the primary if this server can't; never unless `is_whole`, its end at hand.
    pub(super) fn begin(&mut self, attached: &mut Attached, run: &Run, is_whole: bool) -> bool {
        let is_alone = matches!(self.block, Block::None) || run.is_aside;
        let may_rerun = attached.checkout.role == Role::Replica
            && is_whole
            && is_alone
            && attached.checkout.server.pipeline().is_empty()
            && !attached.checkout.server.pipeline().is_unsynced()
            && attached.checkout.server.pipeline().status() == TxnStatus::Idle;
        if let Route::One { hospital: Some(hospital), .. } = run.route {
            attached.bound.hospital = Some(hospital);
        }
        attached.is_write |= run.is_write;
        attached.may_commit |= run.may_commit || (attached.may_end && run.is_write);
        attached.may_end |= run.may_end;
        attached.pin_change = attached.pin_change.max(run.pin_change);
        attached.may_set |= run.is_opaque;
        add_names(&mut attached.custom_names, run.custom_names.iter().cloned());
        if run.is_load {
            attached.pins.insert(Pin::Load);
        }
        attached.effects.extend(run.effects.iter().cloned());
        let server = &mut *attached.checkout.server;
        server.is_opaque |= run.is_opaque;
        server.begin_request(may_rerun || run.is_healable);
        if attached.named.is_empty() {
            server.forget_name_changes();
        }
        for name in self.unsent_closes.drain(..) {
            server.send(Message::Close, Expect::Swallow, |out| {
                frontend::write_close(out, frontend::Kind::Statement, &name);
            });
        }
        if let Block::Pending(pending) = &self.block {
            if !run.is_aside {
                send_pending(server, pending);
                self.block = Block::Server(pending.modes());
            } else if pending.has_settings() || !run.effects.is_empty() {
                // A transaction of its own with the block's settings; `settle` rolls it back.
                send_pending(server, pending);
            }
        }
        may_rerun
    }

    /// The replica could not: the same request on the primary, counted.
    pub(super) fn rerun_on_primary(&mut self, attached: Box<Attached>, run: &mut Run) {
        let shard = attached.checkout.shard;
        self.services.metrics.of(shard.0, ServerRole::Replica).on_fallback(Fallback::Retried);
        run.route = match run.route {
            Route::One { hospital, .. } => Route::One { hospital, shard, role: Role::Primary },
            Route::Any { .. } => Route::Any { role: Role::Primary },
        };
        self.release(attached);
    }

    /// There is no server: the client is told, and a block fails.
    pub(super) fn on_unattached(&mut self, unattached: Unattached) -> Result<(), End> {
        match unattached {
            Unattached::Refused(refusal) => {
                self.services.metrics.on_refusal(refusal.sqlstate);
                refusal.in_ascii().encode(self.output.tail());
            }
            Unattached::Server(error) => match error.held_back {
                Some(bytes) => self.output.push(&bytes),
                None => refusals::internal().encode(self.output.tail()),
            },
            Unattached::End(end) => return Err(end),
        }
        self.block.fail();
        Ok(())
    }
}

/// BEGIN and what was queued behind it, as extended messages without a Sync: an error in them
/// makes the server skip the statement that follows, which would else run and commit by itself.
fn send_pending(server: &mut ServerConn, pending: &Pending) {
    for statement in pending.statements() {
        server.prepared.parse_unnamed(None);
        server.send(Message::Parse, Expect::Swallow, |out| {
            frontend::write_parse(out, b"", statement, std::iter::empty());
        });
        server.send(Message::Bind, Expect::Swallow, |out| frontend::write_bind(out, b"", b""));
        server.send(Message::Execute, Expect::Swallow, |out| {
            frontend::write_execute(out, b"", 0);
        });
    }
}

/// Makes a refusal real on a server in a transaction: it is sent what cannot succeed, and the
/// refusal takes the place of its error.
pub(super) fn make_real(attached: &mut Attached, refusal: ErrorReply) {
    let server = &mut *attached.checkout.server;
    server.begin_request(false);
    server.prepared.parse_unnamed(None);
    server.send(Message::Parse, Expect::Refuse(Box::new(refusal)), |out| {
        frontend::write_parse(out, b"", REFUSED_TEXT, std::iter::empty());
    });
}

/// Gives back a server on which nothing ran for the client, but not before the cancels on their way
/// to it have come: they would hit the next client's query.
fn give_back(mut checkout: pool::Checkout, client: &Client) {
    if let Some(hold) = client.on_detach() {
        tokio::spawn(async move {
            // Unclean, it is closed.
            checkout.server.is_opaque |= hold.cancels_done().await == Cancels::InDoubt;
            drop(checkout);
        });
    }
}

/// The client has gone: what runs for it is cancelled. Its server may be dropped then, which closes
/// it unless it is clean.
pub(super) async fn abandon(attached: &mut Attached, client: &Arc<Client>, timeout: Duration) {
    let server = &mut attached.checkout.server;
    if !server.pipeline().is_empty()
        && let Some(way) = &server.way
    {
        drop(server::login::send_cancel(way, server.pid, &server.key, timeout).await);
    }
    if let Some(hold) = client.on_detach() {
        server.is_opaque |= hold.cancels_done().await == Cancels::InDoubt;
    }
}

pub(super) fn server_role(role: Role) -> ServerRole {
    match role {
        Role::Primary => ServerRole::Primary,
        Role::Replica => ServerRole::Replica,
    }
}

fn pool_reply(error: &pool::Error) -> ErrorReply {
    error.to_reply()
}
