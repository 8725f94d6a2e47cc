//! One request on a server: find the server, send, relay the replies, let it go or keep it.
//!
//! Owns the order of things and nothing of what they mean. The relay moves bytes both ways at
//! once and bounds what it holds, so that neither side can wedge the other; effects of statements
//! reach the session's ledger as the server confirms them; a server that dies ends in one error
//! that tells the truth.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::block::{Block, Pending};
use super::directory::{CancelTarget, Client};
use super::{Attached, End, OUTPUT_BYTES_MAX, READ_AHEAD_BYTES, Session, params};
use crate::catalog::Snapshot;
use crate::config::Consistency;
use crate::metrics::{Fallback, ServerRole};
use crate::pool::{self, Want};
use crate::route::{Bound, Role, Route, TextValues, Values, refusals, refuse_text};
use crate::server::{self, Copy, Expect, Message, Reply, ServerConn, ServerError};
use crate::shard_map::{HospitalId, ShardId};
use crate::sql::{Access, Analysis, Effect, Transaction};
use crate::wire::backend::{self, ErrorReply};
use crate::wire::{self, HEADER_BYTES, TxnStatus, frontend};

/// Bytes for the client that go out even while more is coming.
const WRITE_BYTES: usize = 64 << 10;
/// Text that no server accepts: it makes a refusal real on a server in a transaction.
const REFUSED_TEXT: &[u8] = b"pgward refused this statement";
/// Time for a client to take its last word.
pub(super) const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for a cancel request to get through.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

/// What is to be done with a request.
pub(super) enum Plan {
    /// Nothing: it has been answered.
    Answered,
    /// This, on a server.
    Run(Run),
}

/// A request that needs a server.
#[derive(Debug)]
pub(super) struct Run {
    /// Where.
    pub route: Route,
    /// It may write.
    pub is_write: bool,
    /// It may end a transaction, so that its loss leaves the outcome unknown.
    pub may_commit: bool,
    /// It ends a transaction, or may: the server's word on what is left counts.
    pub may_end: bool,
    /// It may change what can't be seen.
    pub is_opaque: bool,
    /// What its statements do to the session, in order; empty if none does anything.
    pub effects: VecDeque<Confirmed>,
    /// A statement of its own in a block that no server holds yet.
    pub is_aside: bool,
    /// pgward ends the batch on the server, and the client has yet to send its Sync.
    pub is_own_batch: bool,
}

/// What a statement does to the session once the server has confirmed it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Confirmed {
    /// Nothing.
    Nothing,
    /// Settings, `None` for the default.
    Set(Vec<Change>),
    /// RESET ALL.
    ResetAll,
    /// Transaction control.
    Control(Transaction),
    /// The catalog must be read again.
    Ddl,
}

/// One setting that a statement gives.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Change {
    pub name: String,
    value: Option<String>,
    is_local: bool,
}

impl Run {
    /// A request for `route`; its statements come by [`Self::add`].
    pub fn new(route: Route) -> Self {
        Self {
            route,
            is_write: false,
            may_commit: false,
            may_end: false,
            is_opaque: false,
            effects: VecDeque::new(),
            is_aside: false,
            is_own_batch: false,
        }
    }

    /// Takes in one statement or text that runs as part of this request.
    pub fn add(
        &mut self,
        session: &Session,
        analysis: &Analysis,
        values: &dyn Values,
    ) -> Result<(), ErrorReply> {
        let has_effects =
            analysis.statements.iter().any(|statement| statement.effect != Effect::None);
        for statement in &analysis.statements {
            self.is_write |= matches!(statement.access, Access::Write(_));
            self.is_opaque |= is_unread(statement);
            if has_effects {
                let effect = self.confirmed(session, &statement.effect, values)?;
                self.effects.push_back(effect);
            }
        }
        Ok(())
    }

    /// What a Bind's statement will do when it is executed: exactly one effect, `Nothing` included.
    pub fn effect_of(
        &mut self,
        session: &Session,
        analysis: &Analysis,
        values: &dyn Values,
    ) -> Result<Confirmed, ErrorReply> {
        let mut effect = Confirmed::Nothing;
        for statement in &analysis.statements {
            self.is_write |= matches!(statement.access, Access::Write(_));
            self.is_opaque |= is_unread(statement);
            effect = self.confirmed(session, &statement.effect, values)?;
        }
        Ok(effect)
    }

    /// What stands beside a block is rolled back: what it sets must be known, to be set again.
    pub fn check_aside(&self) -> Result<(), ErrorReply> {
        match self.is_aside && self.is_opaque {
            true => Err(refusals::effect_needs_hospital("a computed setting")),
            false => Ok(()),
        }
    }

    /// Effects are followed only if there are any.
    pub fn drop_idle_effects(&mut self) {
        if self.effects.iter().all(|effect| *effect == Confirmed::Nothing) {
            self.effects.clear();
        }
    }

    fn confirmed(
        &mut self,
        session: &Session,
        effect: &Effect,
        values: &dyn Values,
    ) -> Result<Confirmed, ErrorReply> {
        Ok(match effect {
            Effect::Set(settings) => {
                let mut changes = Vec::new();
                for setting in settings {
                    let value = session.setting_value(setting, values)?;
                    if matches!(setting.value, crate::sql::SettingValue::Computed) {
                        if decides_meaning(&setting.name) {
                            return Err(refusals::computed_setting(&setting.name));
                        }
                        self.is_opaque = true;
                        continue;
                    }
                    if value.is_none() {
                        session.check_reset(&setting.name)?;
                    }
                    self.is_opaque |= value.is_none()
                        && !setting.is_local
                        && session.ledger.startup().contains_key(&setting.name);
                    let name = setting.name.clone();
                    let is_local = setting.is_local || params::is_of_transaction(&name);
                    changes.push(Change { name, value, is_local });
                }
                Confirmed::Set(changes)
            }
            Effect::Reset(name) => {
                session.check_reset(name)?;
                let change = Change { name: name.clone(), value: None, is_local: false };
                Confirmed::Set(vec![change])
            }
            Effect::ResetAll => {
                session.check_reset("search_path")?;
                Confirmed::ResetAll
            }
            Effect::Transaction(control) => {
                self.may_commit |= matches!(control, Transaction::Commit { .. });
                self.may_end |=
                    matches!(control, Transaction::Commit { .. } | Transaction::Rollback { .. });
                Confirmed::Control(control.clone())
            }
            Effect::Ddl => Confirmed::Ddl,
            // Also where nothing is guarded: the client would lose them without a word.
            Effect::Prepare(_) | Effect::Execute(_) => {
                return Err(refusals::unsupported(
                    "PREPARE and EXECUTE as SQL statements",
                    "Use the driver's prepared statements (the extended protocol).",
                ));
            }
            Effect::Pin(pin) => {
                return Err(refusals::unsupported(
                    pin_name(*pin),
                    "Use a shard-addressed session (options=-c pgward.shard=N).",
                ));
            }
            Effect::Opaque => {
                self.is_opaque = true;
                self.may_commit = true;
                self.may_end = true;
                Confirmed::Nothing
            }
            _ => Confirmed::Nothing,
        })
    }
}

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
    has_changed: bool,
    /// SQLSTATE of the server's farewell.
    last_words: Option<String>,
    may_rerun: bool,
    wants_rerun: bool,
    is_ddl: bool,
    /// Something of the server's waits to be written to the client.
    has_news: bool,
    /// Bytes of a CopyData of the client's that go on as they come.
    copy_left: usize,
    is_copy_ended: bool,
}

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

enum Look {
    Empty,
    Local(crate::sql::Statement, String),
    Run(Run),
}

impl Session {
    /// Decides what to do with the simple Query at the front of the input, and answers it if that
    /// needs no server.
    pub(super) async fn plan_query(&mut self, total: usize) -> Result<Plan, ErrorReply> {
        let mut looked = self.look_at_query(total);
        if let Err((_, true)) = looked
            && self.refresh_catalog().await
        {
            looked = self.look_at_query(total);
        }
        match looked.map_err(|(refusal, _)| refusal)? {
            Look::Run(run) => Ok(Plan::Run(run)),
            Look::Empty => {
                backend::write_empty_query(self.output.tail());
                Ok(Plan::Answered)
            }
            Look::Local(statement, text) => {
                // Analysed again for its literals: they borrow the text.
                let catalog = self.services.catalog.current().catalog.clone();
                let services = self.services.clone();
                let names = self.names.clone();
                let context = crate::sql::Context {
                    catalog: &catalog,
                    search_path: &names.search_path,
                    role: &names.role,
                    param_types: &[],
                };
                let analyzed = services
                    .analyzer
                    .analyze(&text, &context)
                    .map_err(|error| refuse_text(&error))?;
                let local = self.answer(
                    &statement,
                    &TextValues { lexed: &analyzed.lexed, params: &[] },
                    &text,
                )?;
                local.write_query_result(self.output.tail());
                Ok(Plan::Answered)
            }
        }
    }

    /// The error's flag: it may be due to a name that the catalog does not know yet.
    fn look_at_query(&self, total: usize) -> Result<Look, (ErrorReply, bool)> {
        let plain = |refusal| (refusal, false);
        let body = &self.input.as_slice()[HEADER_BYTES..total];
        // `on_query` has read it once: a malformed one does not come here.
        let sql = frontend::Query::read(body).map(|query| query.sql).unwrap_or_default();
        let sql = super::utf8(sql).map_err(plain)?;
        let snapshot = self.services.catalog.current();
        let context = crate::sql::Context {
            catalog: &snapshot.catalog,
            search_path: &self.names.search_path,
            role: &self.names.role,
            param_types: &[],
        };
        let analyzed = self
            .services
            .analyzer
            .analyze(sql, &context)
            .map_err(|error| plain(refuse_text(&error)))?;
        let analysis = &*analyzed.analysis;
        let is_attached = self.attached.is_some();
        if analysis.statements.is_empty() && !is_attached {
            return Ok(Look::Empty);
        }
        self.check_failed(analysis).map_err(plain)?;
        match analysis.statements.as_slice() {
            [only] if self.is_local(only, is_attached) => {
                return Ok(Look::Local(only.clone(), sql.to_owned()));
            }
            many if many.len() > 1
                && many.iter().any(|s| params::changes_names(&s.effect))
                && !self.is_unguarded() =>
            {
                return Err(plain(refusals::unsupported(
                    "search_path or role set together with other statements in one query string",
                    "Send it as a query string of its own.",
                )));
            }
            many if many.len() > 1 && many.iter().any(|s| forgets_statements(&s.effect)) => {
                return Err(plain(refusals::unsupported(
                    "DEALLOCATE or DISCARD together with other statements in one query string",
                    "Send it as a query string of its own.",
                )));
            }
            many if many.iter().any(|s| sets_hospital(&s.effect)) => {
                return Err(plain(refusals::unsupported(
                    "SET pgward.hospital_id together with other statements in one query string",
                    "Send it as a query string of its own.",
                )));
            }
            _ => {}
        }
        let is_unknown = analysis.statements.iter().any(|s| s.unknown_names);
        let values = TextValues { lexed: &analyzed.lexed, params: &[] };
        let route = self
            .decide(&snapshot, analysis, &values, None)
            .map_err(|refusal| (refusal, is_unknown))?;
        let mut run = Run::new(route);
        run.add(self, analysis, &values).map_err(plain)?;
        if analysis.statements.len() > 1
            && analysis.statements.iter().any(|s| matches!(s.effect, Effect::Transaction(_)))
        {
            // Only where nothing is guarded: pgward does not follow blocks within one string.
            run.is_opaque = true;
            run.may_commit = true;
            run.may_end = true;
        }
        Ok(Look::Run(run))
    }

    /// Nothing is guarded: one shard, and an application that is trusted with any hospital.
    pub(super) fn is_unguarded(&self) -> bool {
        self.services.config.load().guard.mode == crate::route::GuardMode::Route
            && self.services.map.peek().shards().len() == 1
            && self.user.rights.hospitals == crate::route::Hospitals::Any
    }

    /// In a failed block only its end is accepted.
    pub(super) fn check_failed(&self, analysis: &Analysis) -> Result<(), ErrorReply> {
        let has_failed = match &self.attached {
            Some(attached) => attached.checkout.server.pipeline().status() == TxnStatus::Failed,
            None => matches!(self.block, Block::Failed(_)),
        };
        let is_control = |s: &crate::sql::Statement| matches!(s.effect, Effect::Transaction(_));
        if has_failed && !analysis.statements.iter().all(is_control) {
            return Err(refusals::in_failed_transaction());
        }
        // Set again behind the request only; until then names mean something else on the server.
        let is_between =
            |attached: &Attached| attached.resets.iter().any(|name| params::is_of_names(name));
        if self.attached.as_deref().is_some_and(is_between) {
            return Err(refusals::unsupported(
                "a statement behind RESET in one batch",
                "Send Sync behind the RESET.",
            ));
        }
        Ok(())
    }

    /// The route of one text or Bind, analysed under `snapshot`. `batch`: what its batch is bound
    /// to already.
    pub(super) fn decide(
        &self,
        snapshot: &Snapshot,
        analysis: &Analysis,
        values: &dyn Values,
        batch: Option<Bound>,
    ) -> Result<Route, ErrorReply> {
        let config = self.services.config.load();
        let bound = self.attached.as_ref().map(|attached| attached.bound).or(batch);
        let view = self.view(&config, bound);
        let decided = match &self.attached {
            Some(attached) => crate::route::decide(analysis, values, &view, &attached.map),
            None => crate::route::decide(analysis, values, &view, &self.services.map.peek()),
        };
        match decided? {
            // What a shard's own catalog has not confirmed may mean something else there.
            Route::One { shard, .. } if !snapshot.speaks_for(shard) => {
                Err(refusals::no_server(shard))
            }
            // A map of one shard leaves nothing to choose.
            Route::Any { role } if self.services.map.peek().shards().len() == 1 => {
                Ok(Route::One { hospital: None, shard: ShardId(0), role })
            }
            route => Ok(route),
        }
    }

    /// Runs the simple Query at the front of the input, and takes it off.
    pub(super) async fn run_query(&mut self, total: usize, mut run: Run) -> Result<(), End> {
        run.is_aside = matches!((&self.block, run.route), (Block::Pending(_), Route::Any { .. }));
        if let Err(refusal) = run.check_aside() {
            self.input.advance(total);
            self.refuse(refusal);
            return self.finish_refusal().await;
        }
        loop {
            let mut attached = match self.attach(&run).await {
                Ok(attached) => attached,
                Err(unattached) => {
                    self.input.advance(total);
                    self.on_unattached(unattached)?;
                    return self.finish_refusal().await;
                }
            };
            let is_behind_batch = attached.checkout.server.pipeline().is_unsynced();
            let may_rerun = self.begin(&mut attached, &run);
            let server = &mut *attached.checkout.server;
            server.prepared.forget_unnamed();
            let frame = &self.input.as_slice()[..total];
            server.send(Message::Query, Expect::Forward, |out| out.extend_from_slice(frame));
            // A request that may have to run again stays in the input until it has run.
            let kept = if may_rerun { total } else { 0 };
            self.input.advance(total - kept);
            let mut running = Running::new(may_rerun);
            let mut relayed = self.relay(&mut attached, &mut running, Until::Settled, kept).await?;
            if matches!(relayed, Relayed::Done) && running.ready.is_none() && is_behind_batch {
                // The batch before it failed: the server skips the Query with it, up to the
                // client's own Sync.
                self.input.advance(kept);
                self.take_back_unconfirmed(&mut attached);
                self.is_skipping = true;
                self.settle(attached, &run, running);
                return Ok(());
            }
            if matches!(relayed, Relayed::Done) && running.ready.is_none() {
                // An error ahead of the Query (BEGIN, SET LOCAL): the server skips up to a Sync.
                send_sync(&mut attached.checkout.server);
                relayed = self.relay(&mut attached, &mut running, Until::Settled, kept).await?;
            }
            match relayed {
                Relayed::Rerun => self.rerun_on_primary(attached, &mut run),
                Relayed::Done => {
                    self.input.advance(kept);
                    self.restore_startup(&mut attached, &running).await;
                    self.settle(attached, &run, running);
                    return Ok(());
                }
                Relayed::Lost => {
                    self.input.advance(kept);
                    self.on_lost(attached, &run, &running)?;
                    backend::write_ready_for_query(self.output.tail(), self.block.status());
                    return Ok(());
                }
            }
        }
    }

    /// The server for `run`: the one that is held, else one from the pool, with the session's
    /// settings on it.
    pub(super) async fn attach(&mut self, run: &Run) -> Result<Box<Attached>, Unattached> {
        if let Some(attached) = self.attached.take() {
            return Ok(attached);
        }
        if !self.services.pools.is_current(&self.pools) {
            // The secret may have been rotated since the login; who it is on servers stays.
            let users = self.services.users.load();
            let now = users.get(&self.user.name).map(|user| &user.server);
            let server = now.filter(|server| server.user == self.user.server.user);
            self.pools = self.services.pools.of_user(server.unwrap_or(&self.user.server));
        }
        let (shard, role, hospital) = match run.route {
            Route::One { hospital, shard, role } => (Some(shard), role, hospital),
            Route::Any { role } => (None, role, None),
        };
        let written_at = self.must_see(hospital);
        let want = Want { shard, role, hospital, written_at };
        let map = self.services.map.current();
        let checkout = match self.services.pools.checkout_now(&self.pools, want) {
            Some(checkout) => checkout,
            // Boxed: its state is large, and most requests find a server at once.
            None => Box::pin(self.wait_for_server(want)).await?,
        };
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
        let bound = Bound { hospital, shard: checkout.shard, role: checkout.role };
        let mut attached = Box::new(Attached {
            checkout,
            bound,
            map,
            is_write: false,
            portals: Vec::new(),
            since: std::time::Instant::now(),
            effects: VecDeque::new(),
            named: Vec::new(),
            has_failed: false,
            ledger_before: None,
            resets: Vec::new(),
        });
        match self.bring_settings(&mut attached).await {
            Ok(()) => Ok(attached),
            Err(unattached) => {
                give_back(attached.checkout, &self.client);
                Err(unattached)
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
    fn note_write(&mut self, hospital: Option<HospitalId>) {
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
        let mut checkout = std::pin::pin!(services.pools.checkout(&pools, want));
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
    fn hold(&self, checkout: &pool::Checkout) -> bool {
        let server = &checkout.server;
        let target = CancelTarget { peer: server.peer, pid: server.pid, key: server.key.clone() };
        server.entry().client.store(self.client.pid, std::sync::atomic::Ordering::Relaxed);
        self.client.on_attach(target)
    }

    /// Gives the server the session's settings. A round trip of its own, and only where they
    /// differ: were it part of the request, a setting that fails would have to undo the request.
    async fn bring_settings(&mut self, attached: &mut Attached) -> Result<(), Unattached> {
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
                Ok(Ok(())) => {}
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
    /// run again on the primary if this server can't.
    pub(super) fn begin(&mut self, attached: &mut Attached, run: &Run) -> bool {
        let is_alone = matches!(self.block, Block::None) || run.is_aside;
        let may_rerun = attached.checkout.role == Role::Replica
            && is_alone
            && attached.checkout.server.pipeline().is_empty()
            && !attached.checkout.server.pipeline().is_unsynced()
            && attached.checkout.server.pipeline().status() == TxnStatus::Idle;
        if let Route::One { hospital: Some(hospital), .. } = run.route {
            attached.bound.hospital = Some(hospital);
        }
        attached.is_write |= run.is_write;
        attached.effects.extend(run.effects.iter().cloned());
        let server = &mut *attached.checkout.server;
        server.is_opaque |= run.is_opaque;
        server.begin_request(may_rerun);
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
                refusal.encode(self.output.tail());
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

    /// Moves bytes both ways until `until`. `kept` bytes at the front of the input are of this
    /// request already. Cancel safety: the session is dropped with it, never resumed.
    pub(super) async fn relay(
        &mut self,
        attached: &mut Attached,
        running: &mut Running,
        until: Until,
        kept: usize,
    ) -> Result<Relayed, End> {
        let relayed =
            std::future::poll_fn(|cx| self.poll_relay(cx, attached, running, until, kept)).await;
        if relayed.is_err() {
            Box::pin(abandon(attached, &self.client, CANCEL_TIMEOUT)).await;
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
            if self.output.len() < OUTPUT_BYTES_MAX {
                match server.poll_fill(cx) {
                    Poll::Ready(Ok(())) => is_progress = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(Ok(running.on_lost(attached))),
                    Poll::Pending => {}
                }
            }
            // Written out when the server pauses, and not for answers of our own alone: those go
            // with the server's, in one write.
            let is_due = !is_progress || self.output.len() >= WRITE_BYTES;
            if running.has_news && is_due {
                match self.stream.poll_drain(cx, &mut self.output) {
                    Poll::Ready(Ok(())) => running.has_news = false,
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
    fn take_replies(
        &mut self,
        attached: &mut Attached,
        running: &mut Running,
    ) -> Result<(), server::Error> {
        let server = &mut *attached.checkout.server;
        while let Some(reply) = server.next_reply(&mut self.output)? {
            match reply {
                Reply::Ready { status, .. } => {
                    running.ready = Some(status);
                    if server.pipeline().is_empty() {
                        // The request has its one ReadyForQuery. What a server says behind it is
                        // for nobody: `settle` finds it unclean.
                        return Ok(());
                    }
                }
                Reply::Error(error) => {
                    // The server skips what follows, and so its effects never come.
                    attached.effects.clear();
                    let role = server_role(attached.checkout.role);
                    self.services.metrics.on_error(attached.checkout.shard.0, role, error.code());
                    running.has_failed = true;
                    attached.has_failed = true;
                    let is_stale =
                        error.code() == "0A000" && error.routine == "RevalidateCachedQuery";
                    if is_stale || error.code() == "26000" {
                        // DDL changed what a statement answers, or it is gone: the reset forgets
                        // them all.
                        server.is_opaque = true;
                    }
                    if error.is_fatal {
                        running.last_words = Some(error.code().to_owned());
                        return Err(server::Error::Closed);
                    }
                    if let Some(bytes) = &error.held_back {
                        if running.may_rerun && is_replica_trouble(error.code()) {
                            running.wants_rerun = true;
                        } else {
                            self.output.push(bytes);
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
                        attached.resets.extend(resets(&effect, self.ledger.startup()));
                        running.is_ddl |= apply(&mut self.ledger, &mut self.block, effect, tag);
                    }
                }
                Reply::CopyIn | Reply::Parameter { .. } => {}
            }
        }
        Ok(())
    }

    /// COPY FROM STDIN: hands the client's data on as it comes, without waiting for whole frames.
    fn feed_copy(&mut self, server: &mut ServerConn, running: &mut Running) -> Result<bool, End> {
        let mut is_progress = false;
        while server.output_len() < OUTPUT_BYTES_MAX && server.pipeline().copy() == Copy::In {
            let input = self.input.as_slice();
            if running.copy_left > 0 {
                let n = running.copy_left.min(input.len());
                if n == 0 {
                    break;
                }
                server.send_bytes(&input[..n]);
                running.copy_left -= n;
                self.input.advance(n);
                is_progress = true;
                continue;
            }
            let header = match wire::header(input, 1 << 30) {
                Ok(Some(header)) => header,
                Ok(None) => break,
                Err(error) => return Err(End::Fatal(super::violation(&error))),
            };
            match header.tag {
                frontend::tag::COPY_DATA | frontend::tag::COPY_DONE | frontend::tag::COPY_FAIL => {
                    running.copy_left = header.total;
                }
                // The server reads over these in COPY IN, and they are not answered.
                frontend::tag::FLUSH | frontend::tag::SYNC
                    if !running.is_copy_ended && input.len() >= header.total =>
                {
                    self.input.advance(header.total);
                    is_progress = true;
                    continue;
                }
                frontend::tag::TERMINATE => return Err(End::Client),
                // Its answer, or the end of the data, is still on its way.
                _ if running.is_copy_ended => break,
                tag => return Err(End::Fatal(super::violation(&wire::Error::UnknownTag { tag }))),
            }
            if header.tag != frontend::tag::COPY_DATA {
                running.is_copy_ended = true;
            }
        }
        Ok(is_progress)
    }

    /// RESET on a server goes to the server's default. The client's is the value of its startup,
    /// and its next statement shall find that.
    pub(super) async fn restore_startup(&mut self, attached: &mut Attached, running: &Running) {
        if attached.resets.is_empty() || running.ready.is_none() {
            return;
        }
        let resets = std::mem::take(&mut attached.resets);
        if running.ready == Some(TxnStatus::Failed) || attached.has_failed {
            // They are rolled back, with what is behind them or with the block.
            attached.checkout.server.is_opaque = true;
            return;
        }
        let settings = self.ledger.settings();
        let set = |name: &String| Some(params::set_statement(name, settings.get(name)?, false));
        let statements: Vec<String> = resets.iter().filter_map(set).collect();
        let server = &mut *attached.checkout.server;
        // Where that fails the next statement finds the server gone, or its transaction failed.
        if !matches!(server.run(&statements.join("; ")).await, Ok(Ok(()))) {
            server.is_opaque = true;
        }
    }

    /// A request has run: keeps the server in a transaction, else lets it go.
    pub(super) fn settle(&mut self, mut attached: Box<Attached>, run: &Run, mut running: Running) {
        if running.is_ddl {
            self.services.catalog.request_refresh();
        }
        if running.copy_left > 0 {
            // The server ended the COPY amid a CopyData of the client's: its rest is for nobody.
            self.skip_bytes = running.copy_left;
            running.copy_left = 0;
        }
        let has_failed = attached.has_failed;
        if running.ready.is_some() {
            attached.has_failed = false;
            attached.named.clear();
        }
        match running.ready {
            // A batch before its Sync.
            None => {
                self.attached = Some(attached);
                if running.has_changed {
                    self.renew_names();
                }
            }
            Some(TxnStatus::Idle) => {
                // What stood beside a block leaves the block's own changes as they are.
                if has_failed && !run.is_aside {
                    self.ledger.rollback();
                } else if self.ledger.is_changed() && !run.is_aside && !run.is_own_batch {
                    self.ledger.commit();
                }
                if run.is_aside {
                    if has_failed {
                        self.block.fail();
                    }
                    if !run.is_own_batch {
                        self.patch_status();
                    }
                } else if has_failed && !run.may_end && matches!(self.block, Block::Server(_)) {
                    // BEGIN failed, behind the client's back: it believes in a block, and what
                    // comes next must not run, and commit, by itself.
                    self.block.lose();
                    self.patch_status();
                } else {
                    self.block = Block::None;
                }
                if running.has_changed || has_failed {
                    self.renew_names();
                }
                if attached.is_write && attached.checkout.role == Role::Primary {
                    self.note_write(attached.bound.hospital);
                }
                self.release(attached);
            }
            Some(status) if run.is_aside => {
                if status == TxnStatus::Failed {
                    self.block.fail();
                } else {
                    self.queue_changes(run);
                }
                if !run.is_own_batch {
                    self.patch_status();
                }
                if running.has_changed {
                    self.renew_names();
                }
                self.release(attached);
            }
            Some(_) => {
                if !matches!(self.block, Block::Server(_)) {
                    self.block = Block::Server(Default::default());
                }
                if running.has_changed {
                    self.renew_names();
                }
                self.attached = Some(attached);
            }
        }
    }

    /// What a statement beside the block has set was rolled back there: it is the block's.
    fn queue_changes(&mut self, run: &Run) {
        let changes = run.effects.iter().filter_map(|effect| match effect {
            Confirmed::Set(changes) => Some(changes),
            _ => None,
        });
        for Change { name, value, is_local } in changes.flatten() {
            let text = match value {
                Some(value) => params::set_statement(name, value, *is_local),
                None => self.reset_statement(name, *is_local),
            };
            // A full queue has failed the block, which the status tells.
            if self.block.queue(&text).is_err() {
                return;
            }
        }
    }

    /// The statement that takes a setting to its default: the value of the session's start, which
    /// the server does not know.
    pub(super) fn reset_statement(&self, name: &str, is_local: bool) -> String {
        match self.ledger.startup().get(name) {
            Some(value) => params::set_statement(name, value, is_local),
            // A server's own default may be another than the one that the session learnt.
            None if name == "search_path" => {
                params::set_statement(name, &self.default_path, is_local)
            }
            None if is_local => format!("SET LOCAL {} TO DEFAULT", params::quote_name(name)),
            None => format!("RESET {}", params::quote_name(name)),
        }
    }

    /// The ReadyForQuery that has just been put out says what the server knows; the client's
    /// block is known here only.
    fn patch_status(&mut self) {
        let status = self.block.status().byte();
        if let Some(last) = self.output.tail().last_mut() {
            *last = status;
        }
    }

    /// Lets a server go that owes nothing, and with it what a failed batch had set.
    pub(super) fn release(&mut self, mut attached: Box<Attached>) {
        let ledger_before = attached.ledger_before.take();
        self.let_go(attached);
        if let Some(ledger) = ledger_before {
            self.ledger = *ledger;
            self.renew_names();
        }
    }

    /// Lets a server go that owes nothing: to its pool if it is provably clean, through a reset
    /// if that is all it lacks, else it is closed.
    fn let_go(&mut self, mut attached: Box<Attached>) {
        let metrics = self
            .services
            .metrics
            .of(attached.checkout.shard.0, server_role(attached.checkout.role));
        metrics.on_release(&crate::metrics::Tally {
            queries: 1,
            held: attached.since.elapsed(),
            ..Default::default()
        });
        let server = &mut *attached.checkout.server;
        server.is_opaque |= !attached.resets.is_empty();
        let settings = self.ledger.committed();
        if !Arc::ptr_eq(&server.settings, settings) && !server.is_opaque {
            server.settings = settings.clone();
        }
        let hold = self.client.on_detach();
        if hold.is_none() && server.is_clean() {
            return;
        }
        // Only what stood beside a block leaves a transaction. All else that is not settled is closed.
        let is_open = server.pipeline().status() != TxnStatus::Idle;
        if !server.is_settled() {
            metrics.on_discard();
            return;
        }
        tokio::spawn(async move {
            if let Some(hold) = hold {
                hold.cancels_done().await;
            }
            let server = &mut *attached.checkout.server;
            if is_open {
                drop(tokio::time::timeout(CANCEL_TIMEOUT, server.run("ROLLBACK")).await);
            }
            if !server.is_clean() {
                // A reset that fails leaves it unclean, and so it is closed.
                drop(tokio::time::timeout(CANCEL_TIMEOUT, server.reset()).await);
            }
        });
    }

    /// The server is gone: one error that tells the truth, and the client stays.
    pub(super) fn on_lost(
        &mut self,
        mut attached: Box<Attached>,
        run: &Run,
        running: &Running,
    ) -> Result<(), End> {
        self.take_back_unconfirmed(&mut attached);
        let (shard, hospital) = (attached.checkout.shard, attached.bound.hospital);
        let is_mid_frame = attached.checkout.server.is_mid_frame();
        self.client.on_detach();
        if is_mid_frame {
            return Err(End::Broken);
        }
        // The rest of a CopyData would be read as messages.
        self.skip_bytes = running.copy_left;
        let is_in_block = matches!(self.block, Block::Server(_)) && !run.is_aside;
        // A batch before its Sync may have written in an earlier piece.
        let is_write = run.is_write || attached.is_write;
        let mut reply = if run.may_commit || (!is_in_block && is_write) {
            refusals::outcome_unknown(shard)
        } else if is_in_block || run.is_aside {
            refusals::server_lost_in_transaction(shard)
        } else {
            refusals::server_lost_reading(shard)
        };
        if let Some(code) = &running.last_words {
            reply = reply.with_detail(format!("The server's last word was {code}."));
        }
        if is_in_block && !run.may_commit {
            self.block.lose();
        } else if run.is_aside {
            self.block.fail();
        } else {
            self.block = Block::None;
        }
        self.ledger.rollback();
        self.renew_names();
        self.note_write(hospital);
        self.services.metrics.on_refusal(reply.sqlstate);
        reply.encode(self.output.tail());
        Ok(())
    }

    /// Sends Sync to the held server and relays up to its ReadyForQuery.
    pub(super) async fn sync_server(&mut self) -> Result<(), End> {
        let Some(mut attached) = self.attached.take() else { return Ok(()) };
        let run = Run::new(Route::Any { role: Role::Primary });
        let server = &mut *attached.checkout.server;
        server.begin_request(false);
        send_sync(server);
        let mut running = Running::new(false);
        match self.relay(&mut attached, &mut running, Until::Settled, 0).await? {
            Relayed::Lost => {
                self.on_lost(attached, &run, &running)?;
                backend::write_ready_for_query(self.output.tail(), self.block.status());
            }
            _ => self.settle(attached, &run, running),
        }
        Ok(())
    }

    /// The held server said something while nothing was asked, or died.
    pub(super) async fn take_server_news(&mut self) -> Result<(), End> {
        let Some(mut attached) = self.attached.take() else { return Ok(()) };
        let mut running = Running::new(false);
        let news = self.take_replies(&mut attached, &mut running);
        if running.has_changed {
            self.renew_names();
        }
        if running.has_failed {
            // The rest of a long batch: its Sync is still to come.
            self.take_back_unconfirmed(&mut attached);
            self.is_skipping = attached.checkout.server.pipeline().is_unsynced();
        }
        if news.is_ok() && !attached.checkout.server.is_broken() {
            self.attached = Some(attached);
            return Ok(());
        }
        // Nothing is said now: an error that answers no request would be taken for the answer of
        // the next one. That one gets it.
        self.client.on_detach();
        if attached.checkout.server.is_mid_frame() {
            return Err(End::Broken);
        }
        let mut loss = refusals::server_lost_in_transaction(attached.checkout.shard);
        if let Some(code) = &running.last_words {
            loss = loss.with_detail(format!("The server's last word was {code}."));
        }
        self.loss = Some(Box::new(loss));
        if matches!(self.block, Block::Server(_)) {
            self.block.lose();
        }
        self.ledger.rollback();
        self.renew_names();
        Ok(())
    }
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

    /// The server is gone: what a replica has not begun to answer runs again on the primary.
    fn on_lost(&self, attached: &Attached) -> Relayed {
        if self.may_rerun && !attached.checkout.server.has_forwarded() {
            Relayed::Rerun
        } else {
            Relayed::Lost
        }
    }
}

/// Settings that `effect` takes to a default which is the session's and not the server's.
fn resets(effect: &Confirmed, startup: &server::SettingsMap) -> Vec<String> {
    match effect {
        Confirmed::Set(changes) => changes
            .iter()
            .filter(|change| change.value.is_none() && !change.is_local)
            .filter(|change| startup.contains_key(&change.name))
            .map(|change| change.name.clone())
            .collect(),
        Confirmed::ResetAll => {
            let is_kept = |name: &&String| !params::is_of_role(name);
            startup.keys().filter(is_kept).cloned().collect()
        }
        _ => Vec::new(),
    }
}

/// What the server has confirmed reaches the session. `true`: the catalog has changed.
fn apply(
    ledger: &mut params::Ledger,
    block: &mut Block,
    effect: Confirmed,
    tag: server::CommandTag,
) -> bool {
    match effect {
        Confirmed::Nothing => {}
        Confirmed::Set(changes) => {
            for Change { name, value, is_local } in changes {
                match value {
                    value if is_local => ledger.set_local(&name, value.as_deref()),
                    Some(value) => ledger.set(&name, &value),
                    None => ledger.reset(&name),
                }
            }
        }
        Confirmed::ResetAll => ledger.reset_all(),
        Confirmed::Ddl => return true,
        Confirmed::Control(control) => match control {
            Transaction::Begin(modes) => *block = Block::Server(modes),
            Transaction::Commit { .. } if tag.is("COMMIT") => ledger.commit(),
            // COMMIT of a failed transaction is a ROLLBACK, and says so.
            Transaction::Commit { .. } | Transaction::Rollback { .. } => ledger.rollback(),
            Transaction::Savepoint(name) => ledger.savepoint(&name),
            Transaction::Release(name) => ledger.release(&name),
            Transaction::RollbackTo(name) => ledger.rollback_to(&name),
            _ => {}
        },
    }
    false
}

/// BEGIN and what was queued behind it, as extended messages without a Sync: an error in them
/// makes the server skip the statement that follows, which would else run and commit by itself.
fn send_pending(server: &mut ServerConn, pending: &Pending) {
    for statement in pending.statements() {
        server.prepared.parse_unnamed(None);
        server.send(Message::Parse, Expect::Swallow, |out| {
            frontend::write_parse(out, b"", statement.as_bytes(), std::iter::empty());
        });
        server.send(Message::Bind, Expect::Swallow, |out| frontend::write_bind(out, b"", b""));
        server.send(Message::Execute, Expect::Swallow, |out| {
            frontend::write_execute(out, b"", 0);
        });
    }
}

/// Sends Sync; the client gets the ReadyForQuery.
pub(super) fn send_sync(server: &mut ServerConn) {
    server.send(Message::Sync, Expect::Forward, frontend::write_sync);
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
fn give_back(checkout: pool::Checkout, client: &Client) {
    if let Some(hold) = client.on_detach() {
        tokio::spawn(async move {
            hold.cancels_done().await;
            drop(checkout);
        });
    }
}

/// The client has gone: what runs for it is cancelled. Its server may be dropped then, which closes
/// it unless it is clean.
pub(super) async fn abandon(attached: &Attached, client: &Arc<Client>, timeout: Duration) {
    let server = &attached.checkout.server;
    if !server.pipeline().is_empty()
        && let Some(peer) = server.peer
    {
        drop(server::login::send_cancel(peer, server.pid, &server.key, timeout).await);
    }
    if let Some(hold) = client.on_detach() {
        hold.cancels_done().await;
    }
}

/// Routed though it could not be classified, where nothing is guarded: only of queries are all
/// expressions read, so what another statement does to settings is not known.
fn is_unread(statement: &crate::sql::Statement) -> bool {
    let is_query = matches!(statement.command, "SELECT" | "INSERT" | "UPDATE" | "DELETE");
    !statement.problems.is_empty() && !is_query
}

/// Settings that decide what a text means: pgward must know their values.
fn decides_meaning(name: &str) -> bool {
    matches!(
        name,
        "search_path"
            | "role"
            | "session_authorization"
            | "client_encoding"
            | "standard_conforming_strings"
    )
}

fn pin_name(pin: crate::sql::Pin) -> &'static str {
    use crate::sql::Pin;
    match pin {
        Pin::Listen => "LISTEN",
        Pin::TempTable => "a temporary table",
        Pin::AdvisoryLock => "a session-level advisory lock",
        Pin::HoldCursor => "a cursor WITH HOLD",
        Pin::Load => "LOAD",
    }
}

/// On a server it would take away what all clients have prepared there.
fn forgets_statements(effect: &Effect) -> bool {
    matches!(effect, Effect::Deallocate(_) | Effect::Discard(_))
}

fn sets_hospital(effect: &Effect) -> bool {
    match effect {
        Effect::Set(settings) => settings.iter().any(|s| s.name == params::HOSPITAL),
        Effect::Reset(name) | Effect::Show(name) => name == params::HOSPITAL,
        _ => false,
    }
}

/// Errors of a replica that the primary would not give: a write that was not seen as one, and
/// conflicts with recovery (manual: "Handling Query Conflicts").
fn is_replica_trouble(code: &str) -> bool {
    matches!(code, "25006" | "40001" | "40P01" | "57P03")
}

fn server_role(role: Role) -> ServerRole {
    match role {
        Role::Primary => ServerRole::Primary,
        Role::Replica => ServerRole::Replica,
    }
}

fn pool_reply(error: &pool::Error) -> ErrorReply {
    error.to_reply()
}
