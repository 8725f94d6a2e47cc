//! One connection to a Postgres server: what is sent, what is owed, and whether it is clean.
//!
//! Owns the socket, its buffers, the [`Pipeline`] of owed replies, the statements and settings
//! known to be on this server. Never sees a client: the session appends to [`ServerConn::send`]
//! and takes replies from [`ServerConn::next_reply`], which hands whole regions on unparsed.

pub mod login;
pub mod pipeline;
pub mod prepared;

use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::net::{Buffer, Stream, Way};
use crate::wire::backend::ErrorReply;
use crate::wire::frontend::Kind;
use crate::wire::{self, HEADER_BYTES, TxnStatus, backend, frontend, sqlstate};
pub use pipeline::{Copy, Expect, Message, Pipeline, Settled, Verdict};
pub use prepared::{Prepared, Shape, StatementId};

/// Name of pgward's own statement beside a client's.
const BESIDE: &[u8] = b"pgward_beside";
/// How long a query of pgward's own (settings, a reset) may take: a server that is silent for
/// longer is gone.
const OWN_QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest reply that is looked into (errors, parameters); rows and copy data pass by unbounded.
const REPLY_BYTES_MAX: usize = 8 << 20;
/// Largest length that a server may announce for a message that passes by.
const FRAME_BYTES_MAX: usize = 1 << 30;

/// Settings that differ from the server's own, by lower-case name. Shared between equal sessions.
pub type SettingsMap = std::collections::BTreeMap<String, String>;

/// Why a server connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed.
    #[error("connection to the server failed: {0}")]
    Io(#[from] io::Error),
    /// The server closed it.
    #[error("the server closed the connection")]
    Closed,
    /// It has not answered a query of pgward's own in time.
    #[error("the server does not answer")]
    Silent,
    /// Its bytes are not the protocol.
    #[error("the server broke the protocol: {0}")]
    Wire(#[from] wire::Error),
    /// It answered something that was not asked.
    #[error(transparent)]
    Desync(#[from] pipeline::Desync),
}

/// One thing that a session wants to know of the replies; all else went to the client unparsed.
#[derive(Debug)]
pub enum Reply {
    /// ReadyForQuery; `forwarded` says whether the client has it.
    Ready {
        /// Transaction status of the server.
        status: TxnStatus,
        /// The client has it.
        forwarded: bool,
    },
    /// An error.
    Error(ServerError),
    /// A statement's end: CommandComplete, EmptyQueryResponse or PortalSuspended.
    Complete {
        /// Its command tag, empty for the other two.
        tag: CommandTag,
        /// `C`, `I` or `s`.
        kind: u8,
        /// The client has it.
        forwarded: bool,
    },
    /// A shared statement was described.
    Described {
        /// Which.
        id: StatementId,
        /// What of it counts.
        shape: Shape,
        /// The client has it.
        forwarded: bool,
    },
    /// The server wants CopyData.
    CopyIn,
    /// A setting's value, as the server reports it.
    Parameter {
        /// Name as reported.
        name: String,
        /// Canonical value, in the client's encoding.
        value: Bytes,
    },
}

/// The beginning of a command tag, enough to tell ROLLBACK from COMMIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CommandTag([u8; 16]);

impl CommandTag {
    fn new(body: &[u8]) -> Self {
        let mut tag = [0; 16];
        let text = body.split(|b| *b == 0).next().unwrap_or_default();
        let n = text.len().min(tag.len());
        tag[..n].copy_from_slice(&text[..n]);
        Self(tag)
    }

    /// The tag is exactly `word`, as far as it is kept.
    pub fn is(&self, word: &str) -> bool {
        *self == Self::new(word.as_bytes())
    }
}

/// What of a server's error pgward acts on and may log: never its text.
#[derive(Debug, Clone)]
pub struct ServerError {
    /// Five characters, `XX000` where the server sent none.
    pub sqlstate: [u8; 5],
    /// The server is ending the connection.
    pub is_fatal: bool,
    /// The function in Postgres that raised it.
    pub routine: String,
    /// The message that it answers.
    pub message: Option<Message>,
    /// The error in full, if it was kept back from the client.
    pub held_back: Option<Bytes>,
}

impl ServerError {
    /// The SQLSTATE as text.
    pub fn code(&self) -> &str {
        std::str::from_utf8(&self.sqlstate).unwrap_or("?????")
    }
}

/// A server connection; see the module.
#[derive(Debug)]
pub struct ServerConn {
    stream: Stream,
    input: Buffer,
    output: Buffer,
    pipeline: Pipeline,
    /// Bytes of a passing frame that have not come yet, and whether the client gets them.
    passing: usize,
    is_passing_forwarded: bool,
    /// Forwarded anything since [`Self::begin_request`].
    has_forwarded: bool,
    /// Errors are kept back while nothing was forwarded, so that the request can run elsewhere.
    is_error_held: bool,
    /// An error is being kept back, and with it all that follows.
    is_holding: bool,
    /// What the client is told in place of the server's word that it was cancelled.
    cancelled: Option<Box<ErrorReply>>,
    /// Replies that only prepare (ParseComplete, RowDescription, ...), kept back with it.
    held: Vec<u8>,
    /// A Close was sent and not confirmed before an error: a name may be taken unexpectedly.
    pending_closes: usize,
    /// Of the description that is coming: its parameters.
    described: DefaultHasher,
    /// Statements on it.
    pub prepared: Prepared,
    /// Settings on it beyond its own defaults.
    pub settings: Arc<SettingsMap>,
    /// Its search_path where nobody has set one; asked for once, at the start.
    pub default_path: Arc<str>,
    /// Something ran on it that may have changed what we can't see.
    pub is_opaque: bool,
    /// Settings as reported at login.
    pub parameters: Vec<(String, String)>,
    /// Its process id.
    pub pid: i32,
    /// The process id that the client who holds it was told; notifications of its own carry that.
    pub told_pid: i32,
    /// Its cancel key.
    pub key: Bytes,
    /// How it was reached, for cancel requests.
    pub way: Option<Arc<Way>>,
    is_broken: bool,
}

impl ServerConn {
    /// A connection that has just logged in.
    pub fn new(greeting: login::Greeting) -> Self {
        Self {
            stream: greeting.stream,
            input: greeting.buffer,
            output: Buffer::default(),
            pipeline: Pipeline::default(),
            passing: 0,
            is_passing_forwarded: false,
            has_forwarded: false,
            is_error_held: false,
            is_holding: false,
            cancelled: None,
            held: Vec::new(),
            pending_closes: 0,
            described: DefaultHasher::new(),
            prepared: Prepared::default(),
            settings: Arc::default(),
            default_path: Arc::default(),
            is_opaque: false,
            parameters: greeting.parameters,
            pid: greeting.pid,
            told_pid: greeting.pid,
            key: greeting.key,
            way: greeting.way,
            is_broken: false,
        }
    }

    /// Protocol and cipher of its TLS; `None` without.
    pub fn tls_version(&self) -> Option<String> {
        self.stream.tls_version()
    }

    /// A request begins. `hold_errors`: keep an error back if it is the first reply.
    pub fn begin_request(&mut self, hold_errors: bool) {
        self.has_forwarded = false;
        self.is_error_held = hold_errors;
        self.is_holding = false;
        self.cancelled = None;
        self.held = Vec::new();
    }

    /// See [`Pipeline::forget_name_changes`].
    pub fn forget_name_changes(&mut self) {
        self.pipeline.forget_name_changes();
    }

    /// pgward itself cancels the request under way: `reply` is what its client is told.
    pub fn replace_cancelled(&mut self, reply: ErrorReply) {
        self.cancelled = Some(Box::new(reply));
    }

    /// Half a message is with the client: nothing else can be said to it before the rest.
    pub fn is_mid_frame(&self) -> bool {
        self.passing > 0 && self.is_passing_forwarded
    }

    /// The error that was kept back is the client's after all; so is what follows.
    pub fn end_hold(&mut self) {
        self.is_holding = false;
    }

    /// Something of this request's reply went to the client.
    pub fn has_forwarded(&self) -> bool {
        self.has_forwarded
    }

    /// Replies owed.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// Puts a message into the output, and its reply into the pipeline.
    pub fn send(&mut self, message: Message, expect: Expect, write: impl FnOnce(&mut BytesMut)) {
        write(self.output.tail());
        if message == Message::Close {
            self.pending_closes += 1;
        }
        self.pipeline.push(message, expect);
    }

    /// An answer of pgward's own, to be given when its turn comes; nothing is sent.
    pub fn synthesize(&mut self, message: Message, reply: Bytes) {
        self.pipeline.push(message, Expect::Synthesize(reply));
    }

    /// The COPY under way fails for `reply`, which takes the place of the server's error.
    pub fn refuse_copy(&mut self, reply: backend::ErrorReply) {
        self.pipeline.refuse_front(reply);
    }

    /// Bytes without a reply of their own: CopyData, CopyDone, CopyFail, Flush.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.output.push(bytes);
    }

    /// Bytes that wait to be written.
    pub fn output_len(&self) -> usize {
        self.output.len()
    }

    /// The output so far (kept by a session that may have to run it elsewhere).
    pub fn output(&self) -> &[u8] {
        self.output.as_slice()
    }

    /// Synthesized answers at the front go to `out`.
    pub fn synthesize_into(&mut self, out: &mut Buffer) {
        if !has_synthesized(&self.pipeline, self.passing) {
            return;
        }
        if self.is_error_held && !self.has_forwarded {
            hold_synthesized(&mut self.pipeline, &mut self.held);
        } else {
            self.pipeline.synthesize_into(out.tail());
            self.has_forwarded = true;
        }
    }

    /// Writes what waits.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.stream.poll_drain(cx, &mut self.output).map_err(|error| self.broken(error.into()))
    }

    /// Reads what came.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.stream.poll_fill(cx, &mut self.input).map(|read| match read {
            Ok(0) => Err(self.broken(Error::Closed)),
            Ok(_) => Ok(()),
            Err(error) => Err(self.broken(error.into())),
        })
    }

    fn broken(&mut self, error: Error) -> Error {
        self.is_broken = true;
        error
    }

    /// Takes replies from what was read: forwards regions into `out` until something that the
    /// session wants to know. `None`: more bytes are needed.
    pub fn next_reply(&mut self, out: &mut Buffer) -> Result<Option<Reply>, Error> {
        match self.scan(out) {
            Ok(reply) => Ok(reply),
            Err(error) => Err(self.broken(error)),
        }
    }

    fn scan(&mut self, out: &mut Buffer) -> Result<Option<Reply>, Error> {
        let bytes = self.input.as_slice();
        let mut at = self.passing.min(bytes.len());
        let mut start = if self.is_passing_forwarded { 0 } else { at };
        self.passing -= at;
        let mut reply = None;
        // All that this request has had so far is `held` or stands between `start` and `at`, and
        // only prepares.
        let mut only_prepares = self.is_error_held && !self.has_forwarded && at == 0;
        let (held, has_forwarded) = (&mut self.held, &mut self.has_forwarded);
        if has_synthesized(&self.pipeline, self.passing) {
            if only_prepares {
                held.extend_from_slice(&bytes[start..at]);
                hold_synthesized(&mut self.pipeline, held);
            } else {
                forward(held, has_forwarded, out, &bytes[start..at]);
                self.pipeline.synthesize_into(out.tail());
                *has_forwarded = true;
            }
            start = at;
        }
        while reply.is_none() && self.passing == 0 {
            let Some(header) = wire::header(&bytes[at..], FRAME_BYTES_MAX)? else { break };
            let rest = &bytes[at..];
            let is_whole = rest.len() >= header.total;
            // What may be kept back with an error to come must not be let go by halves.
            let may_be_held = only_prepares
                && matches!(header.tag, b'T' | b't' | b'N')
                && header.total <= REPLY_BYTES_MAX;
            let is_looked_into = may_be_held || is_description(&self.pipeline, header.tag);
            if !is_whole && (is_looked_into || !passes_by(header.tag)) {
                if header.total > REPLY_BYTES_MAX {
                    return Err(wire::Error::TooLong {
                        tag: header.tag,
                        length: header.total,
                        limit: REPLY_BYTES_MAX,
                    }
                    .into());
                }
                break;
            }
            let body = &rest[HEADER_BYTES..header.total.min(rest.len())];
            let status = body.first().copied().unwrap_or_default();
            if header.tag == b'E' && self.pipeline.is_empty() {
                // Unasked: the server's word on why it ends the connection.
                let mut error = server_error(body, Settled::Async)?;
                error.held_back = Some(Bytes::copy_from_slice(&rest[..header.total]));
                if !error.is_fatal {
                    return Err(pipeline::Desync(header.tag).into());
                }
                self.is_broken = true;
                return Ok(Some(Reply::Error(error)));
            }
            if header.tag == b'Z' && body.len() != 1 {
                return Err(pipeline::Desync(header.tag).into());
            }
            let (mut verdict, settled) = self.pipeline.on_reply(header.tag, status)?;
            let mut is_forwarded = verdict == Verdict::Forward && !self.is_holding;
            reply = match (header.tag, settled) {
                (b'Z', _) => {
                    self.prepared.on_ready();
                    Some(Reply::Ready { status: self.pipeline.status(), forwarded: is_forwarded })
                }
                (b'E', _) => {
                    self.prepared.on_failure();
                    let mut error = server_error(body, settled)?;
                    if error.is_fatal {
                        // The server ends the connection; the session says what that means.
                        self.is_broken = true;
                        is_forwarded = false;
                        error.held_back = Some(Bytes::copy_from_slice(&rest[..header.total]));
                    } else if is_forwarded
                        && error.code() == sqlstate::QUERY_CANCELED
                        && let Some(reply) = self.cancelled.take()
                    {
                        verdict = Verdict::Replace(reply);
                        is_forwarded = false;
                    } else if only_prepares && is_forwarded {
                        held.extend_from_slice(&bytes[start..at + header.total]);
                        error.held_back = Some(std::mem::take(held).into());
                        start = at;
                        self.is_holding = true;
                        is_forwarded = false;
                    }
                    Some(Reply::Error(error))
                }
                (b'C' | b'I' | b's', Settled::One(_)) => Some(Reply::Complete {
                    tag: if header.tag == b'C' {
                        CommandTag::new(body)
                    } else {
                        CommandTag::default()
                    },
                    kind: header.tag,
                    forwarded: is_forwarded,
                }),
                (b'G', _) => Some(Reply::CopyIn),
                // The server's warning that it is about to die says less than the error to come, and
                // must not keep a read from running elsewhere.
                (b'N', _) if is_whole && is_farewell(body) => {
                    is_forwarded = false;
                    None
                }
                (b'S', _) => {
                    let (name, value) = backend::read_parameter_status(body)?;
                    // Whether its client is to hear of it the session knows.
                    is_forwarded = false;
                    Some(Reply::Parameter {
                        name: name.to_owned(),
                        value: Bytes::copy_from_slice(value),
                    })
                }
                (b'1', _) => {
                    self.prepared.on_parse_complete();
                    None
                }
                (b't', _) if is_description(&self.pipeline, header.tag) => {
                    self.described = DefaultHasher::new();
                    self.described.write(body);
                    None
                }
                (b'T' | b'n', Settled::One(Message::DescribeShared(id))) => {
                    let mut hash = std::mem::take(&mut self.described);
                    hash.write_u8(header.tag);
                    if header.tag == b'T' {
                        backend::hash_row_description(body, &mut hash)?;
                    }
                    let shape = Shape(hash.finish());
                    self.prepared.on_described(id, shape);
                    Some(Reply::Described { id, shape, forwarded: is_forwarded })
                }
                (b'3', _) => {
                    self.pending_closes = self.pending_closes.saturating_sub(1);
                    None
                }
                _ => None,
            };
            if header.tag == b'A'
                && is_forwarded
                && is_of(body, self.pid)
                && self.told_pid != self.pid
            {
                // Notified by itself: the client knows it by another process id.
                forward(held, has_forwarded, out, &bytes[start..at]);
                let told = self.told_pid.to_be_bytes();
                let (header, payload) = (&rest[..HEADER_BYTES], &body[told.len()..]);
                forward(held, has_forwarded, out, &[header, &told, payload].concat());
                start = at + HEADER_BYTES + body.len();
            }
            if !is_forwarded && start < at {
                if only_prepares {
                    held.extend_from_slice(&bytes[start..at]);
                } else {
                    forward(held, has_forwarded, out, &bytes[start..at]);
                }
            }
            only_prepares &=
                !is_forwarded || matches!(header.tag, b'1' | b'2' | b't' | b'T' | b'n' | b'N');
            let end = at + header.total;
            self.passing = end.saturating_sub(bytes.len());
            self.is_passing_forwarded = is_forwarded;
            at = end.min(bytes.len());
            if let Verdict::Replace(refusal) = verdict {
                forward(held, has_forwarded, out, &[]);
                refusal.encode(out.tail());
                *has_forwarded = true;
            }
            if !is_forwarded {
                start = at;
            }
            if header.tag == b'Z' {
                // No error came to what was kept back.
                forward(held, has_forwarded, out, &[]);
            }
            if has_synthesized(&self.pipeline, self.passing) {
                if only_prepares {
                    held.extend_from_slice(&bytes[start..at]);
                    hold_synthesized(&mut self.pipeline, held);
                } else {
                    forward(held, has_forwarded, out, &bytes[start..at]);
                    self.pipeline.synthesize_into(out.tail());
                    *has_forwarded = true;
                }
                start = at;
            }
        }
        if only_prepares && self.passing == 0 {
            held.extend_from_slice(&bytes[start..at]);
        } else if start < at {
            forward(held, has_forwarded, out, &bytes[start..at]);
        }
        self.input.advance(at);
        Ok(reply)
    }

    /// Is it provably clean: nothing owed, nothing half-read or half-written, outside a
    /// transaction, nothing opaque ran, no statement name in doubt?
    pub fn is_clean(&self) -> bool {
        !self.is_broken
            && !self.is_opaque
            && self.pipeline.is_empty()
            && !self.pipeline.is_unsynced()
            && self.pipeline.status() == TxnStatus::Idle
            && self.pipeline.copy() == Copy::None
            && self.passing == 0
            && self.pending_closes == 0
            && self.input.is_empty()
            && self.output.is_empty()
    }

    /// Nothing is owed, half-read or half-written, in whatever transaction: what stands between it
    /// and [`Self::is_clean`], ROLLBACK and [`Self::reset`] can clear.
    pub fn is_settled(&self) -> bool {
        !self.is_broken
            && self.pipeline.is_empty()
            && !self.pipeline.is_unsynced()
            && self.passing == 0
            && self.input.is_empty()
            && self.output.is_empty()
    }

    /// It failed, or was found out of step.
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Whether an idle server is still there and silent. Costs no system call unless something
    /// came: a FATAL before the server closed, a notice, the end.
    pub fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        if self.is_broken || !self.input.is_empty() {
            return false;
        }
        match self.stream.poll_fill(&mut cx, &mut self.input) {
            Poll::Pending => true,
            // Harmless news of an idle server (a reloaded setting) is dropped; all else ends it.
            Poll::Ready(Ok(n)) if n > 0 => {
                let mut nowhere = Buffer::default();
                let is_fine =
                    matches!(self.scan(&mut nowhere), Ok(Some(Reply::Parameter { .. }) | None));
                self.is_broken |= !is_fine || !self.input.is_empty();
                !self.is_broken
            }
            Poll::Ready(_) => {
                self.is_broken = true;
                false
            }
        }
    }

    /// Asks for what a login does not report and sessions must know. To be called once, first.
    pub async fn learn(&mut self) -> Result<(), Error> {
        let asked = self.run_collect("SELECT pg_catalog.current_setting('search_path')").await?;
        let path = asked.ok().and_then(|rows| rows.into_iter().flatten().next());
        self.default_path = path.ok_or(Error::Closed)?.into();
        Ok(())
    }

    /// Runs `sql` as a simple Query of our own and waits for its end; rows are dropped.
    /// `Ok(Err(..))`: the server refused it and is otherwise fine.
    pub async fn run(&mut self, sql: &str) -> Result<Result<(), ServerError>, Error> {
        self.run_collect(sql).await.map(|outcome| outcome.map(|_| ()))
    }

    /// As [`Self::run`], with the first column of each row as text.
    pub async fn run_collect(
        &mut self,
        sql: &str,
    ) -> Result<Result<Vec<Option<String>>, ServerError>, Error> {
        let answer = tokio::time::timeout(OWN_QUERY_TIMEOUT, self.collect(sql)).await;
        answer.unwrap_or_else(|_| Err(self.broken(Error::Silent)))
    }

    /// As [`Self::run_collect`], for one statement, and the unnamed statement stays: a client whose
    /// own server this is may have parsed it and not bound it yet.
    pub async fn run_beside(
        &mut self,
        sql: &str,
    ) -> Result<Result<Vec<Option<String>>, ServerError>, Error> {
        self.begin_request(true);
        self.prepared.parse_unnamed(None);
        // Closed first, too: an error in the middle may have left it there the last time.
        let close = |out: &mut BytesMut| frontend::write_close(out, Kind::Statement, BESIDE);
        self.send(Message::Close, Expect::Forward, close);
        self.send(Message::Parse, Expect::Forward, |out| {
            frontend::write_parse(out, BESIDE, sql.as_bytes(), std::iter::empty());
        });
        self.send(Message::Bind, Expect::Forward, |out| frontend::write_bind(out, b"", BESIDE));
        self.send(Message::Execute, Expect::Forward, |out| frontend::write_execute(out, b"", 0));
        self.send(Message::Close, Expect::Forward, close);
        self.send(Message::Sync, Expect::Forward, frontend::write_sync);
        let answer = tokio::time::timeout(OWN_QUERY_TIMEOUT, self.replies()).await;
        answer.unwrap_or_else(|_| Err(self.broken(Error::Silent)))
    }

    async fn collect(
        &mut self,
        sql: &str,
    ) -> Result<Result<Vec<Option<String>>, ServerError>, Error> {
        self.prepared.forget_unnamed();
        self.begin_request(true);
        self.send(Message::Query, Expect::Forward, |out| {
            frontend::write_query(out, sql.as_bytes())
        });
        self.replies().await
    }

    /// First column of the rows of a request of our own.
    async fn replies(&mut self) -> Result<Result<Vec<Option<String>>, ServerError>, Error> {
        let mut replies = Buffer::default();
        let mut failure = None;
        loop {
            std::future::poll_fn(|cx| self.poll_drain(cx)).await?;
            match self.next_reply(&mut replies)? {
                Some(Reply::Ready { .. }) => break,
                Some(Reply::Error(error)) => {
                    failure = Some(error);
                }
                Some(_) => {}
                None => std::future::poll_fn(|cx| self.poll_fill(cx)).await?,
            }
            if replies.len() > REPLY_BYTES_MAX {
                replies.clear();
            }
        }
        match failure {
            Some(error) => Ok(Err(error)),
            None => Ok(Ok(first_columns(replies.as_slice()))),
        }
    }

    /// Takes socket, unread bytes and parameters out; what is left is broken.
    pub fn take_raw(&mut self) -> (Stream, Buffer, Vec<(String, String)>) {
        self.is_broken = true;
        let stream = std::mem::replace(&mut self.stream, Stream::closed());
        (stream, std::mem::take(&mut self.input), std::mem::take(&mut self.parameters))
    }

    /// DISCARD ALL: whatever a client left is gone, and so are all prepared statements.
    pub async fn reset(&mut self) -> Result<bool, Error> {
        let is_reset = self.run("DISCARD ALL").await?.is_ok();
        if is_reset {
            self.is_opaque = false;
            self.pending_closes = 0;
            self.prepared.clear();
            self.settings = Arc::default();
        }
        Ok(is_reset)
    }
}

/// Hands `region` on, behind what was kept back before it.
fn forward(held: &mut Vec<u8>, has_forwarded: &mut bool, out: &mut Buffer, region: &[u8]) {
    for bytes in [held.as_slice(), region] {
        if !bytes.is_empty() {
            out.push(bytes);
            *has_forwarded = true;
        }
    }
    held.clear();
}

/// Answers of our own that only prepare wait with those of the server's.
fn hold_synthesized(pipeline: &mut Pipeline, held: &mut Vec<u8>) {
    let mut out = BytesMut::new();
    pipeline.synthesize_into(&mut out);
    held.extend_from_slice(&out);
}

/// An answer of our own is next, and no message of the server's is half passed by.
fn has_synthesized(pipeline: &Pipeline, passing: usize) -> bool {
    passing == 0
        && matches!(pipeline.front(), Some(owed) if matches!(owed.expect, Expect::Synthesize(_)))
}

/// A description that is remembered.
fn is_description(pipeline: &Pipeline, tag: u8) -> bool {
    matches!(tag, b't' | b'T')
        && matches!(pipeline.front(), Some(owed) if matches!(owed.message, Message::DescribeShared(_)))
}

/// Frames whose body nobody needs whole.
fn passes_by(tag: u8) -> bool {
    matches!(tag, b'D' | b'd' | b'T' | b't' | b'V' | b'N')
}

/// A notification sent by the process `pid`.
fn is_of(body: &[u8], pid: i32) -> bool {
    body.starts_with(&pid.to_be_bytes())
}

/// A notice of class 57P (manual: "Operator Intervention"): the server ends.
fn is_farewell(body: &[u8]) -> bool {
    backend::ErrorFields::read(body).is_ok_and(|fields| fields.sqlstate().starts_with("57P"))
}

fn server_error(body: &[u8], settled: Settled) -> Result<ServerError, wire::Error> {
    let fields = backend::ErrorFields::read(body)?;
    let mut sqlstate = *b"?????";
    sqlstate.copy_from_slice(fields.sqlstate().as_bytes());
    Ok(ServerError {
        sqlstate,
        is_fatal: fields.is_fatal(),
        routine: String::from_utf8_lossy(fields.routine.unwrap_or_default()).into_owned(),
        message: match settled {
            Settled::Failed(message) => Some(message),
            _ => None,
        },
        held_back: None,
    })
}

/// First column of each DataRow in `bytes`.
fn first_columns(mut bytes: &[u8]) -> Vec<Option<String>> {
    let mut rows = Vec::new();
    while let Ok(Some((tag, body))) = wire::peek(bytes, FRAME_BYTES_MAX) {
        if tag == b'D' {
            let mut reader = wire::Reader::new(tag, body);
            let length = reader.count().and_then(|_| reader.i32()).unwrap_or(-1);
            let value = usize::try_from(length).ok().and_then(|n| reader.bytes(n).ok());
            rows.push(value.map(|v| String::from_utf8_lossy(v).into_owned()));
        }
        bytes = &bytes[HEADER_BYTES + body.len()..];
    }
    rows
}
