//! From a new connection to a login: [`hello`] answers the packets of the start, shakes hands for
//! TLS, negotiates the version, and lets the client prove who it is.
//!
//! Linear: each step takes what the one before returned. Before the proof nothing is kept of the
//! client but one message of at most 10,000 bytes, and the whole has one deadline. `proxy` calls
//! it and turns a [`Login`] into a session or a console, and a cancel into an order.
//!
//! What follows a successful proof (AuthenticationOk, parameters, key, ReadyForQuery) is the
//! session's: only it knows them.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::lookup::Lookup;
use super::prove;
use crate::auth::hba::CONSOLE_DATABASES;
use crate::auth::scram::EndPoint;
use crate::auth::{User, Users};
use crate::config::Admin;
use crate::net::tls::Acceptor;
use crate::net::{Buffer, Origin, Stream};
use crate::route::{Hospitals, refusals};
use crate::shard_map::{HospitalId, ShardId};
use crate::wire::backend::{self, ErrorReply};
use crate::wire::frontend;
use crate::wire::startup::{
    self, BadParams, MINOR_MAX, MINOR_OF_LONG_KEYS, Packet, Replication, StartupParams,
};
use crate::wire::{self, HEADER_BYTES};

/// Most bytes that a client may have sent and not had read before it has logged in, and so the
/// largest message until then (Postgres takes 64 kB of a password; no proof needs that).
const BYTES_MAX: usize = *startup::PACKET_BYTES.end();
/// First byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a client is let in by.
#[derive(Debug)]
pub struct Door<'a> {
    /// TLS, if clients get it.
    pub tls: Option<&'a ClientTls>,
    /// Who clients may be, and how they prove it.
    pub users: &'a Users,
    /// Where users are looked up that are not among those.
    pub lookup: Option<&'a Lookup>,
    /// The database that the map shards.
    pub database: &'a str,
    /// Why nobody gets in now (too many clients, draining, no shard known yet); said to a
    /// StartupMessage, while cancel requests still get through.
    pub refusal: Option<ErrorReply>,
    /// Whose console gets in none the less.
    pub reserved_for: Option<&'a Admin>,
}

impl<'a> Door<'a> {
    /// What a proof over TLS may be bound to.
    pub(super) fn end_point(&self) -> Option<&'a EndPoint> {
        self.tls.and_then(|tls| tls.end_point.as_ref())
    }

    /// Why this one doesn't get in. Who it is has not been proven: that comes behind this.
    fn refusal_of(&self, startup: &StartupParams) -> Option<&ErrorReply> {
        let is_reserved = |admin: &Admin| {
            let mut users = admin.admin_users.iter().chain(&admin.stats_users);
            CONSOLE_DATABASES.contains(&startup.database.as_str())
                && users.any(|user| *user == startup.user)
        };
        self.refusal.as_ref().filter(|_| !self.reserved_for.is_some_and(is_reserved))
    }
}

/// TLS with clients.
#[derive(Debug)]
pub struct ClientTls {
    /// Shakes hands.
    pub acceptor: Acceptor,
    /// What a proof over it may be bound to.
    end_point: Option<EndPoint>,
}

impl ClientTls {
    /// With what `acceptor` can do.
    pub fn new(acceptor: Acceptor) -> Self {
        let end_point =
            acceptor.end_point().and_then(|(pem, hash)| EndPoint::new(pem, hash.to_vec()));
        Self { acceptor, end_point }
    }
}

/// What a new connection is for.
#[derive(Debug)]
pub enum Hello {
    /// To cancel what runs for another client.
    Cancel {
        /// Closed when the cancel has been dealt with: the client waits for that.
        stream: Stream,
        /// As in that client's BackendKeyData.
        pid: i32,
        /// As in that client's BackendKeyData.
        key: Bytes,
    },
    /// To log in, and that is proven.
    Login(Login),
}

/// A client that has proven who it is, and has not been told so yet.
#[derive(Debug)]
pub struct Login {
    /// The connection.
    pub stream: Stream,
    /// What the client has sent already beyond its login.
    pub buffer: Buffer,
    /// Who it is.
    pub user: Arc<User>,
    /// What it asked for.
    pub startup: StartupParams,
    /// What its database is.
    pub database: Database,
    /// `pgward.hospital_id` of the startup, one that the user may reach.
    pub hospital: Option<HospitalId>,
    /// `pgward.shard` of the startup; the user may, but whether it exists the map knows.
    pub shard: Option<ShardId>,
    /// It speaks protocol 3.2, in which cancel keys may be long.
    pub has_long_key: bool,
}

/// What a client's database is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    /// The one that the map shards.
    Sharded,
    /// The admin console.
    Console,
}

/// Why there is no login. The client has been told, where it is to be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client left.
    #[error("the client closed the connection during login")]
    Closed,
    /// `client_login_timeout`.
    #[error("the login took too long")]
    TimedOut,
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// TLS was agreed on and did not come about.
    #[error("no TLS: {0}")]
    Tls(io::Error),
    /// Not the protocol at all, a port scan perhaps: closed without a word.
    #[error("{0}")]
    NotPostgres(wire::Error),
    /// Refused with this FATAL.
    #[error("the login was refused with {}", .0.sqlstate)]
    Refused(Box<ErrorReply>),
}

impl Error {
    pub(super) fn violation(message: impl Into<String>) -> Self {
        refusals::protocol_violation(message).into()
    }
}

impl From<ErrorReply> for Error {
    fn from(reply: ErrorReply) -> Self {
        Self::Refused(Box::new(reply))
    }
}

impl From<wire::Error> for Error {
    fn from(error: wire::Error) -> Self {
        match error {
            wire::Error::LengthTooSmall { tag: 0, .. } | wire::Error::TooLong { tag: 0, .. } => {
                Self::NotPostgres(error)
            }
            wire::Error::UnsupportedProtocol { major, minor } => {
                refusals::unsupported_protocol(major, minor).into()
            }
            _ => Self::violation(error.to_string()),
        }
    }
}

impl From<BadParams> for Error {
    fn from(bad: BadParams) -> Self {
        let refusal = match bad {
            BadParams::NoUser => refusals::no_user_name(),
            BadParams::Replication(value) => refusals::bad_replication(&value),
            BadParams::Unknown(name) => refusals::unknown_setting(&name),
            BadParams::Switch(word) => refusals::bad_switch(&word),
            BadParams::NoValue(switch) => refusals::switch_without_value(&switch),
        };
        ErrorReply { severity: "FATAL", ..refusal }.into()
    }
}

/// Takes a new connection as far as a proven login, by `deadline`. The future holds a socket and a
/// message: box it beside the session's own.
pub async fn hello(stream: Stream, door: &Door<'_>, deadline: Instant) -> Result<Hello, Error> {
    let mut client = Conversation { stream, input: Buffer::default(), output: Buffer::default() };
    let entered = tokio::time::timeout_at(deadline, enter(&mut client, door)).await;
    let (user, startup, minor) = match entered.unwrap_or(Err(Error::TimedOut)) {
        Ok(Entered::Login(user, startup, minor)) => (user, startup, minor),
        Ok(Entered::Cancel(pid, key)) => {
            return Ok(Hello::Cancel { stream: client.stream, pid, key });
        }
        Err(error) => return Err(client.refuse(error, deadline).await),
    };
    let admitted = admit(&user, &startup, door);
    let mut startup = startup;
    if startup.replication == Some(Replication::Physical) {
        // Whatever its client calls it: it is in none, and counts among those of the map's.
        door.database.clone_into(&mut startup.database);
    }
    match admitted {
        Ok((database, hospital, shard)) => Ok(Hello::Login(Login {
            stream: client.stream,
            buffer: client.input,
            user,
            startup,
            database,
            hospital,
            shard,
            has_long_key: minor >= MINOR_OF_LONG_KEYS,
        })),
        Err(refusal) => Err(client.refuse(refusal.into(), deadline).await),
    }
}

enum Entered {
    /// Who, what it asked for, and the minor version that it is spoken to in.
    Login(Arc<User>, StartupParams, u16),
    Cancel(i32, Bytes),
}

async fn enter(client: &mut Conversation, door: &Door<'_>) -> Result<Entered, Error> {
    let (minor, startup) = match purpose(client, door.tls.map(|tls| &tls.acceptor)).await? {
        Purpose::Cancel(pid, key) => return Ok(Entered::Cancel(pid, key)),
        Purpose::Login(minor, params) => (minor, params?),
    };
    if let Some(refusal) = door.refusal_of(&startup) {
        return Err(refusal.clone().into());
    }
    let is_required = door.tls.is_some_and(|tls| tls.acceptor.is_required());
    if is_required && !client.stream.is_tls() && !client.stream.is_local() {
        return Err(refusals::tls_required().into());
    }
    // As Postgres 18: never more than was asked for, and said only where it is less, or where an
    // option is unknown. (libpq 19 asks for 3.9999 and an option that nobody has, to see that.)
    let spoken = minor.min(MINOR_MAX);
    if minor > spoken || !startup.unsupported.is_empty() {
        let unsupported = &startup.unsupported;
        backend::write_negotiate_protocol_version(client.output.tail(), spoken, unsupported);
    }
    // Boxed: what a proof needs is large, and most of a login is waiting.
    let user = Box::pin(prove::prove(client, &startup, door)).await?;
    client.flush().await?;
    Ok(Entered::Login(user, startup, spoken))
}

/// What a connection is for, by its first packet that isn't about encryption.
enum Purpose {
    Cancel(i32, Bytes),
    /// Minor version, and the parameters or why they can't be.
    Login(u16, Result<StartupParams, BadParams>),
}

/// A packet of the start, owned.
enum Opening {
    SslRequest,
    GssEncRequest,
    Purpose(Purpose),
}

/// Answers requests for encryption, each kind once, until the client says what it is here for.
async fn purpose(client: &mut Conversation, tls: Option<&Acceptor>) -> Result<Purpose, Error> {
    // Over a Unix socket nobody is offered TLS, as Postgres has it.
    let tls = tls.filter(|_| !client.stream.is_local());
    let (mut has_asked_ssl, mut has_asked_gss) = (false, false);
    if let Some(acceptor) = tls
        && client.begins_with_tls().await?
    {
        client.start_tls(acceptor, true).await?;
        (has_asked_ssl, has_asked_gss) = (true, true);
    }
    loop {
        let (asked, minor) = match client.packet().await? {
            Opening::Purpose(purpose) => return Ok(purpose),
            Opening::SslRequest => (&mut has_asked_ssl, 5679),
            Opening::GssEncRequest => (&mut has_asked_gss, 5680),
        };
        // Asked again, it is no request any more but a version that nobody speaks (CVE-2026-6479
        // is what comes of answering it each time).
        if std::mem::replace(asked, true) {
            return Err(wire::Error::UnsupportedProtocol { major: 1234, minor }.into());
        }
        match tls {
            Some(acceptor) if minor == 5679 => {
                client.answer_encryption(b"S").await?;
                client.start_tls(acceptor, false).await?;
                // Encryption inside encryption: no.
                has_asked_gss = true;
            }
            _ => client.answer_encryption(b"N").await?,
        }
    }
}

type Admission = (Database, Option<HospitalId>, Option<ShardId>);

/// What a proven user asked for at the start, if it may have it. Not a word of this before the
/// proof: which databases and hospitals there are is nobody else's business.
fn admit(user: &User, startup: &StartupParams, door: &Door<'_>) -> Result<Admission, ErrorReply> {
    let database = match startup.database.as_str() {
        _ if startup.replication == Some(Replication::Physical) => Database::Sharded,
        name if name == door.database => Database::Sharded,
        name if CONSOLE_DATABASES.contains(&name) && startup.replication.is_some() => {
            return Err(refusals::replication_of_console());
        }
        name if CONSOLE_DATABASES.contains(&name) => Database::Console,
        name => return Err(refusals::unknown_database(name)),
    };
    let hospital = match startup.hospital.as_deref() {
        None | Some("") => None,
        Some(text) => match HospitalId::parse(text) {
            Some(id) if may_reach(user, id) => Some(id),
            Some(_) => return Err(refusals::start_may_not_reach()),
            None => return Err(refusals::start_not_a_uuid()),
        },
    };
    let shard = match startup.shard.as_deref() {
        None | Some("") => None,
        Some(_) if !user.rights.shard_access => {
            return Err(refusals::no_shard_access());
        }
        Some(text) => match text.parse() {
            Ok(number) => Some(ShardId(number)),
            Err(_) => return Err(refusals::shard_not_a_number()),
        },
    };
    if hospital.is_some() && shard.is_some() {
        return Err(refusals::shard_and_hospital());
    }
    Ok((database, hospital, shard))
}

fn may_reach(user: &User, hospital: HospitalId) -> bool {
    match &user.rights.hospitals {
        Hospitals::Any => true,
        Hospitals::Only(ids) => ids.contains(&hospital),
    }
}

/// The socket while the login lasts.
pub(super) struct Conversation {
    stream: Stream,
    input: Buffer,
    pub(super) output: Buffer,
}

impl Conversation {
    /// How the client is connected.
    pub(super) fn origin(&self) -> Origin {
        self.stream.origin()
    }

    pub(super) fn is_tls(&self) -> bool {
        self.stream.is_tls()
    }

    pub(super) async fn flush(&mut self) -> Result<(), Error> {
        Ok(self.stream.drain(&mut self.output).await?)
    }

    async fn fill(&mut self) -> Result<(), Error> {
        let room = BYTES_MAX.saturating_sub(self.input.len());
        match self.stream.fill_at_most(&mut self.input, room).await? {
            0 => Err(Error::Closed),
            _ => Ok(()),
        }
    }

    async fn packet(&mut self) -> Result<Opening, Error> {
        loop {
            if let Some((packet, total)) = startup::peek(self.input.as_slice())? {
                let opening = match packet {
                    Packet::SslRequest => Opening::SslRequest,
                    Packet::GssEncRequest => Opening::GssEncRequest,
                    Packet::Cancel { pid, key } => {
                        Opening::Purpose(Purpose::Cancel(pid, Bytes::copy_from_slice(key)))
                    }
                    Packet::Startup(startup) => {
                        let params = StartupParams::read(&startup);
                        Opening::Purpose(Purpose::Login(startup.minor, params))
                    }
                };
                self.input.advance(total);
                return Ok(opening);
            }
            self.fill().await?;
        }
    }

    /// Whether the client begins with a TLS handshake, unasked (manual: "Direct TLS"): no packet of
    /// the start begins with such a byte, it would be too long by far.
    async fn begins_with_tls(&mut self) -> Result<bool, Error> {
        if self.input.is_empty() {
            self.fill().await?;
        }
        Ok(self.input.as_slice().first() == Some(&TLS_HANDSHAKE))
    }

    /// Shakes hands; all that follows is encrypted.
    async fn start_tls(&mut self, acceptor: &Acceptor, is_direct: bool) -> Result<(), Error> {
        let plain = std::mem::replace(&mut self.stream, Stream::closed());
        // Boxed: a handshake is large, and most logins have none.
        let accepting = Box::pin(plain.accept_tls(acceptor, self.input.as_slice(), is_direct));
        self.stream = accepting.await.map_err(Error::Tls)?;
        self.input.clear();
        Ok(())
    }

    /// Says yes or no to a request for encryption. The client waits for the answer, so what lies
    /// behind the request was put there by somebody who wants it taken for the encrypted part
    /// (CVE-2021-23214).
    async fn answer_encryption(&mut self, answer: &[u8]) -> Result<(), Error> {
        if !self.input.is_empty() {
            return Err(Error::violation("received unencrypted data after an encryption request"));
        }
        self.output.push(answer);
        self.flush().await
    }

    /// Body of a PasswordMessage, a SASLInitialResponse or a SASLResponse, as `what` says.
    pub(super) async fn proof_message(&mut self, what: &str) -> Result<Bytes, Error> {
        loop {
            if let Some((tag, body)) = wire::peek(self.input.as_slice(), BYTES_MAX)? {
                let body = Bytes::copy_from_slice(body);
                self.input.advance(HEADER_BYTES + body.len());
                return match tag {
                    frontend::tag::PASSWORD => Ok(body),
                    frontend::tag::TERMINATE => Err(Error::Closed),
                    _ => Err(Error::violation(format!("expected {what}"))),
                };
            }
            self.fill().await?;
        }
    }

    /// Tells the client of a refusal, as far as it listens; gives the error back.
    async fn refuse(&mut self, error: Error, deadline: Instant) -> Error {
        if let Error::Refused(reply) = &error {
            reply.encode(self.output.tail());
            // A client that doesn't listen is not worth an error of its own.
            let _ = tokio::time::timeout_at(deadline, self.flush()).await;
        }
        error
    }
}
