//! The end of a request: keeps the server in a transaction, else lets it go; a server that died ends
//! in one error that tells the truth.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::attach::server_role;
use super::block::Block;
use super::directory::Cancels;
use super::pins::{self, Pin, Pins};
use super::relay::{Relayed, Running, Until};
use super::run::{Change, Confirmed, Run};
use super::{Attached, End, Session, params};
use crate::config::PoolMode;
use crate::route::{Role, Route, refusals};
use crate::server::{Expect, Message, Reply, ServerConn};
use crate::shard_map::ShardId;
use crate::wire::backend::ErrorReply;
use crate::wire::{TxnStatus, frontend, sqlstate};

/// Time for a client to take its last word.
pub(super) const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Times that a server is asked for pins before it is left for later.
const QUESTIONS_MAX: usize = 3;

/// Time for a cancel request to get through.
pub(super) const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

impl Session {
    /// A request has run: what is left to ask or tell its server, then [`Self::settle`].
    pub(super) async fn finish(
        &mut self,
        mut attached: Box<Attached>,
        run: &Run,
        running: Running,
    ) {
        if !attached.resets.is_empty() {
            Box::pin(self.restore_startup(&mut attached, &running)).await;
        }
        let mut settings = None;
        if running.ready == Some(TxnStatus::Idle) {
            // Boxed: most transactions leave nothing to ask.
            let change = std::mem::take(&mut attached.pin_change);
            // What stands beside the client's block sets nothing.
            let may_set = std::mem::take(&mut attached.may_set)
                && !(self.has_own_server() || run.is_aside || run.is_own_batch);
            if change == pins::Change::MayBegin
                || (change == pins::Change::MayEnd && !attached.pins.is_empty())
                || may_set
            {
                let question = match may_set {
                    true => Cow::Owned(self.settings_question(&mut attached)),
                    false => Cow::Borrowed(pins::QUESTION),
                };
                attached.may_set = may_set;
                settings = Box::pin(ask_for_pins(&mut attached, change, &question)).await;
            }
            // Also where nobody asks: the server may be kept for long.
            attached.custom_names.clear();
            if self.mode == PoolMode::Session && self.is_chosen(&attached) {
                attached.pins.insert(Pin::SessionMode);
            }
        }
        let is_ready = running.ready.is_some();
        self.settle(attached, run, running);
        // The role is always among them.
        if let Some(settings) = settings.filter(|settings| settings.contains_key("role")) {
            self.learn(settings);
        }
        if is_ready && self.attached.is_none() {
            self.tell_settings_before_ready();
        }
    }

    /// [`pins::QUESTION`], and what the server's session has set: custom settings one by one.
    fn settings_question(&self, attached: &mut Attached) -> String {
        let known = self.ledger.settings().keys().filter(|name| name.contains('.')).cloned();
        let names: BTreeSet<String> =
            std::mem::take(&mut attached.custom_names).into_iter().chain(known).collect();
        let mut question = [pins::QUESTION, pins::SETTINGS_QUESTION].concat();
        for name in names {
            let (shown, name) =
                (params::quote_literal(&format!("{name}=")), params::quote_literal(&name));
            question.push_str(&format!(
                " UNION ALL SELECT pg_catalog.concat({shown}, pg_catalog.current_setting({name}, true))"
            ));
        }
        question
    }

    /// Takes over what a server's session has set, for the next server: a function may have done so.
    /// Under guard not what decides how texts and names are read: there only what pgward has seen does.
    fn learn(&mut self, mut found: BTreeMap<String, String>) {
        let is_default = |name: &str, value: &str| match name {
            "role" => value == "none",
            "session_authorization" => value == &*self.user.server.user,
            "search_path" => value == &*self.default_path,
            // A custom setting that nobody has set.
            _ => name.contains('.') && value.is_empty(),
        };
        let before = self.ledger.settings().clone();
        found.retain(|name, value| before.contains_key(name) || !is_default(name, value));
        if !self.is_unguarded() {
            let is_read = |name: &String| params::is_of_names(name) || params::is_of_text(name);
            found.retain(|name, _| !is_read(name));
            let kept = before.iter().filter(|(name, _)| is_read(name));
            found.extend(kept.map(|(name, value)| (name.clone(), value.clone())));
        }
        for name in before.keys().filter(|name| !found.contains_key(*name)) {
            self.ledger.reset(name);
        }
        for (name, value) in found.iter().filter(|(name, value)| before.get(*name) != Some(value)) {
            self.ledger.set(name, value);
        }
        self.ledger.commit();
        self.renew_names();
    }

    /// Keeps the server in a transaction, else lets it go.
    fn settle(&mut self, mut attached: Box<Attached>, run: &Run, mut running: Running) {
        let is_over = running.ready == Some(TxnStatus::Idle);
        // Again at the end of its transaction: until then others do not see it.
        if running.is_ddl || (attached.has_ddl && is_over) {
            self.services.catalog.request_refresh();
        }
        attached.has_ddl = (attached.has_ddl || running.is_ddl) && !is_over;
        if running.copy_left > 0 {
            // The server ended the COPY amid a CopyData of the client's: its rest is for nobody.
            self.skip_bytes = running.copy_left;
            running.copy_left = 0;
        }
        let has_failed = attached.has_failed;
        // An earlier piece of the batch may have ended it.
        let may_end = run.may_end || attached.may_end;
        if running.ready.is_some() {
            attached.has_failed = false;
            (attached.may_end, attached.may_commit) = (false, false);
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
                } else if has_failed && !may_end && matches!(self.block, Block::Server(_)) {
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

    /// RESET on a server goes to the server's default. The client's is the value of its startup,
    /// and its next statement shall find that.
    async fn restore_startup(&mut self, attached: &mut Attached, running: &Running) {
        if running.ready.is_none() {
            // What is parsed until then is read under the server's own values, and is kept there.
            attached.checkout.server.is_opaque = true;
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
            if self.block.queue(text.as_bytes()).is_err() {
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

    /// Lets a server go that owes nothing, or keeps it if the session is pinned to it.
    pub(super) fn release(&mut self, attached: Box<Attached>) {
        match attached.pins.is_empty() || !attached.checkout.server.is_settled() {
            true => self.unpin(attached),
            false => self.keep(attached),
        }
    }

    /// In session mode the first server with a hospital is kept, or that of the only shard.
    fn is_chosen(&self, attached: &Attached) -> bool {
        attached.bound.hospital.is_some() || attached.map.shards().len() == 1
    }

    /// Keeps a server between transactions.
    pub(super) fn keep(&mut self, mut attached: Box<Attached>) {
        self.count_transaction(&attached);
        for pin in attached.pins.beyond(self.client.pins()).iter() {
            self.services.metrics.on_pin(pin.name());
        }
        self.client.set_pins(attached.pins);
        let server = &mut *attached.checkout.server;
        server.settings = self.ledger.committed().clone();
        // Whatever ends this, nobody else gets it before a reset.
        server.is_opaque = true;
        attached.is_write = false;
        attached.portals.clear();
        attached.has_doubtful_portals = false;
        if !attached.pins.may_hold_rows() {
            attached.bound.hospital = None;
        }
        if !attached.pins.has(Pin::TempTable) && !attached.pins.has(Pin::Unsure) {
            self.ledger.forget_temporary();
        }
        self.pinned = Some(attached);
    }

    /// Nothing keeps the server any more, if anything did.
    pub(super) fn unpin(&mut self, pinned: Box<Attached>) {
        if !self.client.pins().is_empty() {
            self.client.set_pins(Pins::default());
        }
        self.ledger.forget_temporary();
        if pinned.pins.has(Pin::Load) {
            // A library stays loaded: the server is closed.
            self.client.on_detach();
            return;
        }
        self.let_go(pinned);
    }

    fn count_transaction(&self, attached: &Attached) {
        let role = server_role(attached.checkout.role);
        let metrics = self.services.metrics.of(attached.checkout.shard.0, role);
        metrics.on_release(&crate::metrics::Tally {
            queries: 1,
            held: attached.since.elapsed(),
            ..Default::default()
        });
    }

    /// The server that is kept said something while no transaction is open, or died.
    pub(super) fn take_pinned_news(&mut self) -> Result<(), End> {
        let Some(pinned) = &mut self.pinned else { return Ok(()) };
        let server = &mut *pinned.checkout.server;
        let farewell = loop {
            match server.next_reply(&mut self.output) {
                Ok(Some(Reply::Error(error))) => break error.held_back,
                Ok(Some(Reply::Parameter { name, value })) => {
                    self.told.tell(self.output.tail(), &name, &value);
                }
                Ok(Some(_)) => {}
                Ok(None) if server.is_broken() => break None,
                Ok(None) => return Ok(()),
                Err(_) => break None,
            }
        };
        let shard = pinned.bound.shard;
        let is_mid_frame = server.is_mid_frame();
        self.pinned = None;
        self.client.on_detach();
        Err(self.lost_for_good(shard, farewell.as_deref(), is_mid_frame))
    }

    /// The session dies with the server that it kept, whose last word is the client's.
    fn lost_for_good(
        &mut self,
        shard: ShardId,
        farewell: Option<&[u8]>,
        is_mid_frame: bool,
    ) -> End {
        match farewell {
            _ if is_mid_frame => End::Broken,
            Some(bytes) => {
                self.output.push(bytes);
                End::Told
            }
            None => End::Fatal(refusals::pinned_server_lost(shard)),
        }
    }

    /// Lets a server go that owes nothing: to its pool if it is provably clean, through a reset
    /// if that is all it lacks, else it is closed.
    fn let_go(&mut self, mut attached: Box<Attached>) {
        self.count_transaction(&attached);
        let role = server_role(attached.checkout.role);
        let metrics = self.services.metrics.of(attached.checkout.shard.0, role);
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
        let (services, shard) = (self.services.clone(), attached.checkout.shard);
        tokio::spawn(async move {
            let server = &mut *attached.checkout.server;
            if let Some(hold) = hold
                && hold.cancels_done().await == Cancels::InDoubt
            {
                // It would hit the next client's query, or pgward's own.
                server.is_opaque = true;
                services.metrics.of(shard.0, role).on_discard();
                return;
            }
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
        if attached.has_ddl {
            self.services.catalog.request_refresh();
        }
        let (shard, hospital) = (attached.checkout.shard, attached.bound.hospital);
        let is_mid_frame = attached.checkout.server.is_mid_frame();
        self.client.on_detach();
        if is_mid_frame {
            return Err(End::Broken);
        }
        if !attached.pins.is_empty() {
            let farewell = running.farewell.as_deref();
            self.note_write(hospital);
            return Err(self.lost_for_good(shard, farewell, false));
        }
        // The rest of a CopyData would be read as messages.
        self.skip_bytes = running.copy_left;
        let is_in_block = matches!(self.block, Block::Server(_)) && !run.is_aside;
        // A batch before its Sync may have written in an earlier piece.
        let is_write = run.is_write || attached.is_write;
        let may_commit = attached.may_commit;
        let mut reply = if may_commit || (!is_in_block && is_write) {
            refusals::outcome_unknown(shard)
        } else if is_in_block || run.is_aside {
            refusals::server_lost_in_transaction(shard)
        } else {
            refusals::server_lost_reading(shard)
        };
        if let Some(code) = &running.last_words {
            reply = reply.with_detail(format!("The server's last word was {code}."));
        }
        if is_in_block && !may_commit {
            self.block.lose();
        } else if run.is_aside {
            self.block.fail();
        } else {
            self.block = Block::None;
        }
        self.ledger.rollback();
        self.renew_names();
        self.note_write(hospital);
        // One error is all that a request gets: one that failed has not taken effect.
        if !running.has_told {
            self.services.metrics.on_refusal(reply.sqlstate);
            reply.encode(self.output.tail());
        }
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
                self.write_ready();
            }
            _ => self.finish(attached, &run, running).await,
        }
        Ok(())
    }

    /// The held server said something while nothing was asked, or died.
    pub(super) async fn take_server_news(&mut self) -> Result<(), End> {
        let Some(mut attached) = self.attached.take() else { return Ok(()) };
        let mut running = Running::new(false);
        running.resume_copy(&mut attached);
        let news = self.take_replies(&mut attached, &mut running);
        running.keep_copy(&mut attached);
        if attached.asked_at.is_some() {
            Box::pin(self.end_watch(&mut attached)).await;
        }
        if running.has_changed {
            self.renew_names();
        }
        if running.has_failed {
            self.take_back_unconfirmed(&mut attached);
        }
        if running.has_told {
            // The rest of a long batch: its Sync is still to come.
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
        if !attached.pins.is_empty() {
            let shard = attached.checkout.shard;
            return Err(self.lost_for_good(shard, running.farewell.as_deref(), false));
        }
        // A piece of a batch may have ended its transaction, and stored it, before its Sync.
        let may_commit = attached.may_commit;
        let mut loss = match may_commit {
            true => refusals::outcome_unknown(attached.checkout.shard),
            false => refusals::server_lost_in_transaction(attached.checkout.shard),
        };
        if let Some(code) = &running.last_words {
            loss = loss.with_detail(format!("The server's last word was {code}."));
        }
        // One error is all that a request gets: a batch that failed has not taken effect.
        self.loss = (!self.is_skipping).then(|| Box::new(loss));
        if may_commit {
            self.block = Block::None;
            self.note_write(attached.bound.hospital);
        } else if matches!(self.block, Block::Server(_)) {
            self.block.lose();
        }
        self.take_back_hospital();
        self.ledger.rollback();
        self.renew_names();
        Ok(())
    }

    /// What the request at hand is told of a server that died before it came. A rollback needs no
    /// word of the loss of what it rolls back; where that may be stored, it does.
    pub(super) fn take_loss(&mut self, is_rollback: bool) -> Option<ErrorReply> {
        let is_moot =
            |loss: &ErrorReply| is_rollback && loss.sqlstate == sqlstate::SERIALIZATION_FAILURE;
        self.loss.take().map(|loss| *loss).filter(|loss| !is_moot(loss))
    }
}

/// Sends Sync; the client gets the ReadyForQuery.
pub(super) fn send_sync(server: &mut ServerConn) {
    server.send(Message::Sync, Expect::Forward, frontend::write_sync);
}

/// Asks the server what keeps the session on it, and where it may have set something for its settings.
/// A cancel that was meant for the request may hit the question; one that can't be answered is asked again after the
/// next transaction.
async fn ask_for_pins(
    attached: &mut Attached,
    change: pins::Change,
    question: &str,
) -> Option<BTreeMap<String, String>> {
    let server = &mut *attached.checkout.server;
    for _ in 0..QUESTIONS_MAX {
        let asked = server.run_beside(question);
        match tokio::time::timeout(CANCEL_TIMEOUT, asked).await {
            Ok(Ok(Ok(rows))) => {
                let (words, settings) = pins::split_answer(rows);
                attached.pins = attached.pins.on_answer(&words);
                return std::mem::take(&mut attached.may_set).then_some(settings);
            }
            Ok(Ok(Err(_))) => {}
            // It is gone, or as good as gone: what it kept is gone with it.
            Ok(Err(_)) | Err(_) => return None,
        }
    }
    attached.pins.insert(Pin::Unsure);
    attached.pin_change = change;
    None
}
