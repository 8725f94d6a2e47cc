//! The simple Query: decides what to do with its text, and runs it on a server if that needs one.

use super::block::Block;
use super::relay::{Relayed, Running, Until};
use super::run::Run;
use super::settle::send_sync;
use super::statements::Kept;
use super::{Attached, End, Services, Session, batch, params, violation};
use crate::auth::users::User;
use crate::catalog::Snapshot;
use crate::route::{Bound, Role, Route, TextValues, Values, refusals, refuse_text};
use crate::server::{Expect, Message};
use crate::shard_map::ShardId;
use crate::sql::catalog::parse_search_path;
use crate::sql::{Analysis, Discard, Effect};
use crate::wire::backend::{self, ErrorReply};
use crate::wire::{HEADER_BYTES, TxnStatus, frontend};

/// What is to be done with a request.
enum Plan {
    /// Nothing: it has been answered.
    Answered,
    /// This, on a server.
    Run(Run),
}

enum Look {
    Empty,
    Local(crate::sql::Statement, String),
    Run(Run),
}

impl Session {
    /// A simple Query of `total` bytes stands at the front of the input.
    pub(super) async fn on_query(&mut self, total: usize) -> Result<(), End> {
        let body = &self.input.as_slice()[HEADER_BYTES..total];
        if let Err(error) = frontend::Query::read(body) {
            return Err(End::Fatal(violation(&error)));
        }
        if self.is_skipping {
            self.input.advance(total);
            return Ok(());
        }
        if self.is_behind_batch() {
            self.settle_batch(total).await?;
            if self.is_skipping {
                self.input.advance(total);
                return Ok(());
            }
        }
        self.hospital_before = None;
        if let Some(loss) = self.take_loss(self.is_rollback(total)) {
            self.input.advance(total);
            self.refuse(loss);
            return self.finish_refusal().await;
        }
        match self.plan_query(total).await {
            Ok(Plan::Answered) if self.is_behind_batch() => {
                // Its end is the end of what the batch has done.
                self.input.advance(total);
                self.sync_server().await
            }
            Ok(Plan::Answered) => {
                self.input.advance(total);
                self.write_ready();
                Ok(())
            }
            Ok(Plan::Run(run)) => self.run_query(Message::Query, total, run).await,
            Err(refusal) => {
                self.input.advance(total);
                self.refuse(refusal);
                self.finish_refusal().await
            }
        }
    }

    /// A FunctionCall of `total` bytes stands at the front of the input. It names its function by a
    /// number that no catalog here knows, so that nobody can say what it reads.
    pub(super) async fn on_function_call(&mut self, total: usize) -> Result<(), End> {
        if self.is_behind_batch() {
            self.settle_batch(total).await?;
        }
        if self.is_skipping {
            self.input.advance(total);
            return Ok(());
        }
        self.hospital_before = None;
        let refusal = match (self.take_loss(false), &self.block) {
            (Some(loss), _) => Some(loss),
            (None, Block::Failed(_)) => Some(refusals::in_failed_transaction()),
            _ if self.is_unguarded() && self.ledger.hospital().is_none() => None,
            _ => Some(refusals::unsupported(
                "the function call message",
                "Call the function in a SELECT.",
            )),
        };
        if let Some(refusal) = refusal {
            self.input.advance(total);
            self.refuse(refusal);
            return self.finish_refusal().await;
        }
        let shard = ShardId(0);
        let mut run = Run::new(Route::One { hospital: None, shard, role: Role::Primary });
        run.on_unknown();
        self.run_query(Message::FunctionCall, total, run).await
    }

    /// What comes now stands behind a batch whose Sync has not come.
    pub(super) fn is_behind_batch(&self) -> bool {
        let is_open = |attached: &Attached| attached.checkout.server.pipeline().is_unsynced();
        self.attached.as_deref().is_some_and(is_open)
    }

    /// Takes in the replies of a batch without a Sync: what follows it may be answered here, and must
    /// not come ahead of them. `kept` bytes of the input are of what follows. A COPY among them is
    /// fed from the input.
    pub(super) async fn settle_batch(&mut self, kept: usize) -> Result<(), End> {
        let Some(mut attached) = self.attached.take() else { return Ok(()) };
        let server = &mut *attached.checkout.server;
        if !server.pipeline().is_empty() {
            let mut flush = bytes::BytesMut::new();
            frontend::write_flush(&mut flush);
            server.send_bytes(&flush);
        }
        let run = Run::new(Route::Any { role: Role::Primary });
        let mut running = Running::new(false);
        match self.relay(&mut attached, &mut running, Until::Settled, kept).await? {
            Relayed::Lost => {
                self.is_skipping = true;
                self.on_lost(attached, &run, &running)
            }
            _ => {
                if running.has_failed {
                    self.take_back_unconfirmed(&mut attached);
                    self.is_skipping = true;
                }
                self.finish(attached, &run, running).await;
                Ok(())
            }
        }
    }

    /// Is the simple Query at the front of the input a ROLLBACK? ROLLBACK TO is none: its savepoint
    /// is lost with the server.
    fn is_rollback(&self, total: usize) -> bool {
        let text = &self.input.as_slice()[HEADER_BYTES..total];
        let mut words = text.split(|byte| !byte.is_ascii_alphabetic()).filter(|w| !w.is_empty());
        words.next().is_some_and(|word| word.eq_ignore_ascii_case(b"rollback"))
            && !words.any(|word| word.eq_ignore_ascii_case(b"to"))
    }

    /// Decides what to do with the simple Query at the front of the input, and answers it if that
    /// needs no server.
    async fn plan_query(&mut self, total: usize) -> Result<Plan, ErrorReply> {
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
        let sql = match self.decode(sql) {
            Ok(sql) if self.is_unreadable(&sql) => Err(refusals::nonstandard_strings()),
            decoded => decoded,
        };
        let sql = match &sql {
            Ok(sql) => &**sql,
            Err(_) if self.is_unguarded() => return Ok(Look::Run(unread())),
            Err(refusal) => return Err(plain(refusal.clone())),
        };
        let snapshot = self.services.catalog.current();
        let context = crate::sql::Context {
            catalog: &snapshot.catalog,
            search_path: &self.names.search_path,
            role: &self.names.role,
            param_types: &[],
        };
        let analyzed = match self.services.analyzer.analyze(sql, &context) {
            Ok(analyzed) => analyzed,
            // The server has its own words for it, and may be newer than pgward's grammar.
            Err(_) if self.is_unguarded() => return Ok(Look::Run(unread())),
            Err(error) => return Err(plain(refuse_text(&error))),
        };
        let analysis = &*analyzed.analysis;
        let is_attached = self.attached.is_some() || self.has_own_server();
        if analysis.statements.is_empty() && !is_attached {
            return Ok(Look::Empty);
        }
        self.check_failed(analysis, false).map_err(plain)?;
        if analysis.statements.iter().any(is_of_prepared) {
            let kept = Kept::new(&analyzed, &snapshot.catalog);
            if let Some(rewrite) = self.rewrite(&snapshot, sql, &kept).map_err(plain)? {
                return self.look_at_rewrite(&snapshot, rewrite, &kept).map(Look::Run);
            }
        }
        match analysis.statements.as_slice() {
            [only] if self.is_local(only, is_attached) => {
                return Ok(Look::Local(only.clone(), sql.to_owned()));
            }
            many if many.len() > 1
                && many.iter().any(params::changes_names)
                && !self.is_unguarded() =>
            {
                return Err(plain(refusals::unsupported(
                    "search_path, role or a temporary table changed together with other statements in one query string",
                    "Send it as a query string of its own.",
                )));
            }
            many if many.len() > 1
                && !self.has_own_server()
                && many.iter().any(|s| s.effect == Effect::Discard(Discard::All)) =>
            {
                return Err(plain(refusals::discard_in_transaction()));
            }
            many if many.len() > 1
                && !self.has_own_server()
                && many.iter().any(|s| forgets_statements(&s.effect)) =>
            {
                return Err(plain(refusals::unsupported(
                    "DEALLOCATE together with other statements in one query string",
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
        is_unguarded(&self.services, &self.user)
    }

    /// In a failed block only its end is accepted; `ends_before`: it ended earlier in the request.
    pub(super) fn check_failed(
        &self,
        analysis: &Analysis,
        ends_before: bool,
    ) -> Result<(), ErrorReply> {
        self.check_mode(analysis)?;
        let has_failed = match &self.attached {
            Some(attached) => attached.checkout.server.pipeline().status() == TxnStatus::Failed,
            None => matches!(self.block, Block::Failed(_)),
        };
        let is_control = |s: &crate::sql::Statement| matches!(s.effect, Effect::Transaction(_));
        // What follows the end in one request is the server's to run, where one is held.
        let is_over =
            |s: &crate::sql::Statement| self.attached.is_some() && ends_failure(&s.effect);
        let mut still_in_it = analysis.statements.iter().take_while(|s| !is_over(s));
        if has_failed && !ends_before && !still_in_it.all(is_control) {
            return Err(refusals::in_failed_transaction());
        }
        // Set again behind the request only; until then names mean something else on the server, and
        // texts are read otherwise.
        let is_between = |attached: &Attached| {
            let mut resets = attached.resets.iter();
            resets.any(|name| params::is_of_names(name) || params::is_of_text(name))
        };
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
        self.check_hidden(snapshot, analysis)?;
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

    /// A temporary table may have come to stand before a table that was looked at: under another
    /// search_path its name was free, or the other was made later. What columns it has, and hence
    /// which of them is the key's, nobody knows.
    fn check_hidden(&self, snapshot: &Snapshot, analysis: &Analysis) -> Result<(), ErrorReply> {
        let temporary = self.ledger.temporary();
        let is_sharded = analysis.statements.iter().any(|of| !of.sharded.is_empty());
        if temporary.is_empty() || !is_sharded || self.is_unguarded() {
            return Ok(());
        }
        let Some(path) = parse_search_path(&self.names.search_path, &self.names.role) else {
            return Ok(());
        };
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let is_there = |name: &&String| snapshot.catalog.resolve(None, name, &path).is_some();
        match temporary.keys().find(is_there) {
            None => Ok(()),
            Some(name) => Err(refusals::unsupported(
                &format!("sharded tables while temporary table \"{name}\" stands before another"),
                "End it with DISCARD TEMP.",
            )),
        }
    }

    /// As [`Self::decide`], of a text that is only parsed: its values are not known.
    pub(super) fn admit(&self, analysis: &Analysis) -> Result<(), ErrorReply> {
        let config = self.services.config.load();
        let view = self.view(&config, self.attached.as_ref().map(|attached| attached.bound));
        match &self.attached {
            Some(attached) => crate::route::admit(analysis, &view, &attached.map),
            None => crate::route::admit(analysis, &view, &self.services.map.peek()),
        }
    }

    /// Runs the Query or FunctionCall at the front of the input, and takes it off.
    async fn run_query(&mut self, message: Message, total: usize, mut run: Run) -> Result<(), End> {
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
            let may_rerun = self.begin(&mut attached, &run, true);
            let encoding = self.encoding_on(&attached);
            let server = &mut *attached.checkout.server;
            if let Some(rewrite) = &run.rewrite {
                let max = self.services.config.load().pool.max_prepared_statements;
                batch::send_rewrite(server, rewrite, max, encoding);
            } else {
                let frame = &self.input.as_slice()[..total];
                server.send(message, Expect::Forward, |out| out.extend_from_slice(frame));
            }
            server.prepared.forget_unnamed();
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
                self.finish(attached, &run, running).await;
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
                    self.finish(attached, &run, running).await;
                    return Ok(());
                }
                Relayed::Lost => {
                    self.input.advance(kept);
                    self.on_lost(attached, &run, &running)?;
                    self.write_ready();
                    return Ok(());
                }
            }
        }
    }
}

/// As [`Session::is_unguarded`], of a login.
pub(super) fn is_unguarded(services: &Services, user: &User) -> bool {
    services.config.load().guard.mode == crate::route::GuardMode::Route
        && services.map.peek().shards().len() == 1
        && user.rights.hospitals == crate::route::Hospitals::Any
}

/// A text that can't be read, where nothing is guarded.
fn unread() -> Run {
    let mut run = Run::new(Route::One { hospital: None, shard: ShardId(0), role: Role::Primary });
    run.on_unknown();
    run
}

/// PREPARE, EXECUTE, and what has an EXECUTE in it.
fn is_of_prepared(statement: &crate::sql::Statement) -> bool {
    statement.executes.is_some() || matches!(statement.effect, Effect::Prepare(_))
}

/// On a server it would take away what all clients have prepared there.
fn forgets_statements(effect: &Effect) -> bool {
    matches!(effect, Effect::Deallocate(_))
}

fn sets_hospital(effect: &Effect) -> bool {
    match effect {
        Effect::Set(settings) => settings.iter().any(|s| s.name == params::HOSPITAL),
        Effect::Reset(name) | Effect::Show(name) => name == params::HOSPITAL,
        _ => false,
    }
}

/// A failed block is over, or whole again, behind it.
pub(super) fn ends_failure(effect: &Effect) -> bool {
    use crate::sql::Transaction;
    matches!(
        effect,
        Effect::Transaction(
            Transaction::Commit { .. } | Transaction::Rollback { .. } | Transaction::RollbackTo(_)
        )
    )
}
