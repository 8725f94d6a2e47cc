//! Our end of one client: reads requests, has them routed, runs them on a server, lets it go.
//!
//! Owns sequencing only: what a statement means is `sql`'s, where it goes is `route`'s, which
//! host and connection is `pool`'s. [`Session::run`] is the request loop; `query` and `batch`
//! look at a request and say what it does (`run`), `attach` finds its server, `relay` moves its bytes,
//! `settle` ends it; `answer` gives the answers that need no server, `welcome` ends the login, `direct`
//! is a session on one shard, or a replication connection. Called by `proxy`.

mod answer;
mod attach;
pub mod auth_query;
mod batch;
pub mod block;
mod copy;
pub mod direct;
pub mod directory;
mod execute;
pub mod login;
pub mod lookup;
pub mod params;
pub mod pins;
mod prove;
mod query;
mod relay;
mod run;
mod settle;
pub mod statements;
mod timeouts;
mod told;
pub mod welcome;
pub mod writes;

use std::borrow::Cow;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::auth::users::{User, Users};
use crate::catalog::CatalogStore;
use crate::config::{Config, PoolMode};
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::net::{Buffer, Stream};
use crate::pool::{Checkout, Pools, UserPools};
use crate::route::{Bound, SessionView, refusals};
use crate::server::Copy;
use crate::shard_map::ShardMap;
use crate::shard_map::source::MapStore;
use crate::sql::{Analyzer, Isolation, TransactionModes};
use crate::wire::backend::ErrorReply;
use crate::wire::encoding::Encoding;
use crate::wire::{self, frontend};
use block::Block;
use directory::{Client, Directory};
use params::Ledger;
use statements::{Names, Statements, Store};
use timeouts::Overdue;

/// Bytes for the client beyond which it must read before more is done for it.
const OUTPUT_BYTES_MAX: usize = 256 << 10;
/// Bytes of the client's that are read ahead while a request runs.
const READ_AHEAD_BYTES: usize = 64 << 10;

/// All that sessions share. Built by `proxy` alone.
pub struct Services {
    /// The configuration now.
    pub config: ArcSwap<Config>,
    /// The map now.
    pub map: MapStore,
    /// The users now.
    pub users: ArcSwap<Users>,
    /// Where users are looked up that are not among those.
    pub lookup: ArcSwapOption<lookup::Lookup>,
    /// What the shards' catalogs say.
    pub catalog: Arc<CatalogStore>,
    /// Text to facts.
    pub analyzer: Analyzer,
    /// Hosts and their health.
    pub fleet: Arc<Fleet>,
    /// Server pools.
    pub pools: Arc<Pools>,
    /// Shared prepared statements.
    pub statements: Store,
    /// What servers said of startup settings.
    pub greetings: welcome::Greetings,
    /// When hospitals were last written.
    pub writes: writes::Writes,
    /// Who is connected.
    pub directory: Directory,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Why a session ends.
#[derive(Debug)]
pub(crate) enum End {
    /// Terminate, or the client's socket ended.
    Client,
    /// This is the last word to the client.
    Fatal(ErrorReply),
    /// The output's end is the last word to the client.
    Told,
    /// A server was lost with half a message at the client: nothing sensible can follow.
    Broken,
}

/// Our end of a client.
pub struct Session {
    services: Arc<Services>,
    stream: Stream,
    input: Buffer,
    output: Buffer,
    user: Arc<User>,
    client: Arc<Client>,
    pools: Arc<UserPools>,
    ledger: Ledger,
    told: told::Told,
    /// How its texts are written, by the ledger; see [`Self::encoding`].
    encoding: Encoding,
    /// A backslash in a plain literal is an escape: standard_conforming_strings is off.
    has_escapes: bool,
    /// Meaning of names under the ledger's search_path and role.
    names: Arc<Names>,
    /// search_path of a server that nobody has set.
    default_path: Arc<str>,
    statements: Statements,
    block: Block,
    attached: Option<Box<Attached>>,
    /// The server that it keeps between transactions, and is not in one.
    pinned: Option<Box<Attached>>,
    /// When it lets its server go.
    mode: PoolMode,
    /// See [`Self::has_own_server`].
    is_own: bool,
    /// Nothing was guarded when it got the server that it holds, or its request was looked at.
    was_unguarded: bool,
    /// Its login has been answered: before that drivers take no notices.
    is_greeted: bool,
    /// Statements that refused batches have closed, and the session's own server has yet to.
    unsent_closes: Vec<Box<[u8]>>,
    /// A batch failed without a server: what follows is dropped up to its Sync.
    is_skipping: bool,
    /// `Fleet::now` at the outcome of its last write; 1 before the first.
    written_at: u64,
    /// Bytes of the client's that are the rest of a CopyData nobody wants.
    skip_bytes: usize,
    /// The server of the open transaction died while nothing ran: the next request is told.
    loss: Option<Box<ErrorReply>>,
    /// The hospital before the open batch, a piece of which has set it here: it may fail yet.
    hospital_before: Option<params::HospitalMark>,
}

/// A server that the session holds.
pub(crate) struct Attached {
    checkout: Checkout,
    bound: Bound,
    /// The map when the transaction began: it keeps that one to its end.
    map: Arc<ShardMap>,
    /// Something in it may have written.
    is_write: bool,
    /// What was sent since the last ReadyForQuery may have ended its transaction, in an earlier
    /// piece of the batch too.
    may_end: bool,
    /// As `may_end`, and stored something: its loss leaves the outcome unknown.
    may_commit: bool,
    /// Why it is kept when its transaction is over.
    pins: pins::Pins,
    /// What the transaction may have done to that.
    pin_change: pins::Change,
    /// It may have changed settings that its statements do not name.
    may_set: bool,
    /// Custom settings that it may have set so.
    custom_names: std::collections::BTreeSet<String>,
    /// The COPY that is under way between two relays.
    copying: Option<relay::Copying>,
    /// A batch failed in this block: what names stand for that are not among `portals` is not known.
    has_doubtful_portals: bool,
    /// Portals of this transaction.
    portals: Vec<batch::Portal>,
    /// When it was borrowed.
    since: std::time::Instant,
    /// When what it owes was asked for; kept only where `query_timeout` is.
    asked_at: Option<tokio::time::Instant>,
    /// `query_timeout` has passed: it has been told to cancel.
    is_overdue: bool,
    /// What the statements under way do to the session, in the order of their replies.
    effects: std::collections::VecDeque<run::Confirmed>,
    /// Names whose statements the server is about to describe to the client.
    described: std::collections::VecDeque<Box<[u8]>>,
    /// Its transaction has changed tables or functions.
    has_ddl: bool,
    /// Names that the batch under way gave or took, where that may still fail.
    named: batch::NameChanges,
    /// Something failed since the last ReadyForQuery: the server skips up to Sync, and rolls back.
    has_failed: bool,
    /// The client_encoding that it reported last, whatever set it.
    encoding: Option<Encoding>,
    /// Settings that it reported since the last ReadyForQuery.
    reported: Vec<(String, String)>,
    /// Settings that went to the server's default, and are to go to the session's startup value.
    resets: Vec<String>,
}

impl Drop for Session {
    /// However it ended, a panic included, nobody finds it any more.
    fn drop(&mut self) {
        self.services.directory.leave(&self.client);
    }
}

impl Session {
    /// The request loop, to the session's end.
    pub async fn run(mut self) {
        let end = self.serve().await;
        if let End::Fatal(reply) = &end {
            self.services.metrics.on_refusal(reply.sqlstate);
            reply.encode(self.output.tail());
        }
        if let End::Fatal(_) | End::Told = end {
            // The client may not read: its last word must not hold the session up.
            let farewell = self.stream.drain(&mut self.output);
            drop(tokio::time::timeout(std::time::Duration::from_secs(1), farewell).await);
        }
        if let Some(mut attached) = self.attached.take() {
            let timeout = self.services.config.load().pool.cancel_wait_timeout;
            let timeout = std::time::Duration::from_secs_f64(timeout);
            Box::pin(attach::abandon(&mut attached, &self.client, timeout)).await;
        }
        if let Some(pinned) = self.pinned.take() {
            self.unpin(pinned);
        }
    }

    async fn serve(&mut self) -> End {
        // The greeting; and what came with the login may be a whole request already.
        if let Err(end) = Box::pin(self.work()).await {
            return end;
        }
        loop {
            match self.idle().await {
                Ok(()) => {}
                Err(end) => return end,
            }
            // Boxed: its state is large, and an idle client shall not carry it.
            if let Err(end) = Box::pin(self.work()).await {
                return end;
            }
        }
    }

    /// Waits for bytes of the client; while a server is held, for its bytes too.
    async fn idle(&mut self) -> Result<(), End> {
        let client = self.client.clone();
        let mut watch = self.watch_idle();
        // Race: a kill between the look and the wait must not be missed.
        let mut woken = std::pin::pin!(client.woken());
        if self.attached.is_none() && client.is_killed() {
            return Err(End::Fatal(refusals::drained()));
        }
        std::future::poll_fn(|cx| {
            use std::task::Poll;
            // The client first: its request is what all else is for.
            match self.stream.poll_fill(cx, &mut self.input) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(End::Client)),
                Poll::Ready(Ok(_)) => return Poll::Ready(Ok(())),
                Poll::Pending => {}
            }
            if let Some(held) = self.attached.as_mut().or(self.pinned.as_mut())
                && let Poll::Ready(read) = held.checkout.server.poll_fill(cx)
            {
                // Its news, or its end, is looked at in `work`.
                drop(read);
                return Poll::Ready(Ok(()));
            }
            if self.attached.is_none() {
                while woken.as_mut().poll(cx).is_ready() {
                    if client.is_killed() {
                        return Poll::Ready(Err(End::Fatal(refusals::drained())));
                    }
                    // A cancel that came too late: the next wake may be the one that counts.
                    woken.set(client.woken());
                }
            }
            while let Poll::Ready(overdue) = watch.poll(cx) {
                let Some(mut attached) = self.attached.take() else {
                    let reply = match overdue {
                        Overdue::IdleTransaction => refusals::idle_transaction_timeout(),
                        _ => refusals::client_idle_timeout(),
                    };
                    return Poll::Ready(Err(End::Fatal(reply)));
                };
                let outcome = self.on_overdue(&mut attached, overdue);
                self.attached = Some(attached);
                match outcome {
                    Ok(next) => watch = next,
                    Err(end) => return Poll::Ready(Err(end)),
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Handles every whole request in the input.
    async fn work(&mut self) -> Result<(), End> {
        self.check_guard()?;
        if self.attached.is_some() {
            self.take_server_news().await?;
        } else if self.pinned.is_some() {
            self.take_pinned_news()?;
        }
        let limit = self.services.config.load().listen.max_packet_size;
        loop {
            if self.output.len() > OUTPUT_BYTES_MAX {
                self.flush().await?;
            }
            if self.skip_bytes > 0 {
                let n = self.skip_bytes.min(self.input.len());
                self.input.advance(n);
                self.skip_bytes -= n;
            }
            if self.is_amid_copy() {
                self.settle_batch(0).await?;
                continue;
            }
            let Some((tag, total)) = whole_frame(self.input.as_slice(), limit)? else { break };
            self.check_guard()?;
            match tag {
                frontend::tag::QUERY => self.on_query(total).await?,
                frontend::tag::TERMINATE => return Err(End::Client),
                // Left over from a COPY that the server has ended (manual: "COPY Operations").
                frontend::tag::COPY_DATA | frontend::tag::COPY_DONE | frontend::tag::COPY_FAIL => {
                    self.input.advance(total);
                }
                _ if batch::is_member(tag) => {
                    if !self.on_batch(limit).await? {
                        break;
                    }
                }
                frontend::tag::FUNCTION_CALL => self.on_function_call(total).await?,
                _ => return Err(End::Fatal(violation(&wire::Error::UnknownTag { tag }))),
            }
        }
        self.flush().await
    }

    /// The client sends, or is about to, data for a COPY that an earlier piece of the batch began, or
    /// may have begun: its server has yet to say.
    fn is_amid_copy(&self) -> bool {
        let (Some(attached), Some(tag)) = (&self.attached, self.input.as_slice().first()) else {
            return false;
        };
        let pipeline = attached.checkout.server.pipeline();
        let is_asked = batch::is_copy(tag) && !self.is_skipping && !pipeline.is_empty();
        pipeline.copy() == Copy::In || is_asked
    }

    /// To be asked ahead of each request: a guard may have come since the last one, or gone.
    fn check_guard(&mut self) -> Result<(), End> {
        if self.is_from_before_guard() {
            return Err(End::Fatal(refusals::drained()));
        }
        if !self.is_own && self.attached.is_none() && self.pinned.is_none() {
            self.was_unguarded = self.is_unguarded();
        }
        Ok(())
    }

    /// Its server may have under a name, or as a setting, what pgward has not read, and what is
    /// guarded now. Where the server knows all names of the client's, the other way round is as bad.
    fn is_from_before_guard(&self) -> bool {
        let holds = self.attached.is_some() || self.pinned.is_some();
        match self.is_own {
            true => self.was_unguarded != self.is_unguarded(),
            false => holds && self.was_unguarded && !self.is_unguarded(),
        }
    }

    async fn flush(&mut self) -> Result<(), End> {
        if self.output.is_empty() {
            return Ok(());
        }
        self.stream.drain(&mut self.output).await.map_err(|_| End::Client)
    }

    /// What `decide` needs of this session.
    fn view(&self, config: &Config, attached: Option<Bound>) -> SessionView<'_> {
        SessionView {
            rights: &self.user.rights,
            hospital: self.ledger.hospital(),
            transaction: attached,
            pinned: self.pinned.as_ref().map(|pinned| pinned.bound),
            temporary: (self.attached.is_some() || self.pinned.is_some())
                .then(|| self.ledger.temporary()),
            block: self.block.view(self.default_modes()),
            guard: config.guard.mode,
        }
    }

    /// It has had one server of its own since its login: that one knows its statements by the
    /// client's names, and hears all that is said.
    fn has_own_server(&self) -> bool {
        self.is_own
    }

    /// Transaction modes that the session's own settings give a BEGIN.
    fn default_modes(&self) -> TransactionModes {
        let settings = self.ledger.settings();
        let isolation = match settings.get("default_transaction_isolation").map(String::as_str) {
            Some("repeatable read") => Some(Isolation::RepeatableRead),
            Some("serializable") => Some(Isolation::Serializable),
            _ => None,
        };
        let read_only = settings
            .get("default_transaction_read_only")
            .map(|value| matches!(value.as_str(), "on" | "true" | "yes" | "1"));
        TransactionModes { isolation, read_only, deferrable: None }
    }

    /// Reads the shards' catalogs again; `true` if they say something new.
    async fn refresh_catalog(&self) -> bool {
        let before = self.services.catalog.peek().catalog.version;
        self.services.catalog.refresh_now().await.catalog.version != before
    }

    /// The ledger's search_path or role may have changed: names mean something else from now on.
    fn renew_names(&mut self) {
        let path = self.ledger.value("search_path").unwrap_or(&self.default_path);
        let role = match self.ledger.value("role") {
            None | Some("none") => self.ledger.value("session_authorization"),
            role => role,
        };
        let role = role.unwrap_or(&self.user.server.user);
        self.encoding =
            self.ledger.value("client_encoding").map_or(Encoding::Utf8, Encoding::named);
        let strings = self.ledger.value("standard_conforming_strings");
        self.has_escapes = strings.is_some_and(|value| !params::is_on(value));
        let mut literals = String::new();
        for name in params::OF_LITERALS {
            let is_usual = name == "standard_conforming_strings" && !self.has_escapes;
            if let Some(value) = self.ledger.value(name).filter(|_| !is_usual) {
                literals.extend([name, "=", value, ";"]);
            }
        }
        let names = &self.names;
        if names.search_path != path || names.role != role || names.literals != literals {
            let (search_path, role) = (path.to_owned(), role.to_owned());
            self.names = Arc::new(Names { search_path, role, literals });
        }
    }

    /// How the client's next text is written: what the server that is held says counts.
    fn encoding(&self) -> Encoding {
        let held = self.attached.as_ref().or(self.pinned.as_ref());
        held.map_or(self.encoding, |held| self.encoding_on(held))
    }

    /// How texts are written to a server that is held.
    fn encoding_on(&self, attached: &Attached) -> Encoding {
        attached.encoding.unwrap_or(self.encoding)
    }

    /// The SQL text of a Query or Parse.
    fn decode<'a>(&self, sql: &'a [u8]) -> Result<Cow<'a, str>, ErrorReply> {
        let encoding = self.encoding();
        encoding.decode(sql).ok_or_else(|| invalid_text(encoding))
    }

    /// Literals in this text may end elsewhere than pgward's grammar has it.
    fn is_unreadable(&self, sql: &str) -> bool {
        self.has_escapes && sql.contains('\\')
    }

    /// A refusal: made real on a server that is in a transaction, else answered here.
    fn refuse(&mut self, refusal: ErrorReply) {
        let refusal = match self.encoding() {
            Encoding::Utf8 => refusal,
            // It may quote a name.
            _ => refusal.in_ascii(),
        };
        self.services.metrics.on_refusal(refusal.sqlstate);
        match &mut self.attached {
            Some(attached) => attach::make_real(attached, refusal),
            None => {
                refusal.encode(self.output.tail());
                self.block.fail();
            }
        }
    }

    /// Ends a refused simple Query: ReadyForQuery, from the server where one is held.
    async fn finish_refusal(&mut self) -> Result<(), End> {
        if self.attached.is_some() {
            return self.sync_server().await;
        }
        self.write_ready();
        Ok(())
    }
}

/// Tag and length of the frame at the front of `input`, once all of it is there.
fn whole_frame(input: &[u8], limit: usize) -> Result<Option<(u8, usize)>, End> {
    match wire::header(input, limit) {
        Ok(Some(header)) if input.len() >= header.total => Ok(Some((header.tag, header.total))),
        Ok(_) => Ok(None),
        Err(error) => Err(End::Fatal(violation(&error))),
    }
}

/// The client broke the protocol.
pub(crate) fn violation(error: &wire::Error) -> ErrorReply {
    refusals::session_violation(error)
}

/// A text that is none in the client's encoding, or that only a server can read.
fn invalid_text(encoding: Encoding) -> ErrorReply {
    match encoding {
        Encoding::Utf8 => refusals::not_utf8(),
        _ => refusals::unreadable_text(),
    }
}
