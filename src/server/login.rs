//! Connecting to a Postgres server and logging in there: a socket in, a [`Greeting`] out.
//!
//! Speaks protocol 3.0 with trust, clear text, md5 and SCRAM-SHA-256, over TLS bound to the server's
//! certificate. The server is not trusted:
//! each message and the login as a whole are bounded, in bytes and in time, and what it says in
//! errors goes nowhere but for the SQLSTATE. Also sends cancel requests. Called by `pool`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::auth::scram::{self, Binding, ClientExchange, ClientProof};
use crate::auth::{self, ServerCredentials, ServerSecret};
use crate::net::tls::{Attempt, Connector};
use crate::net::{Buffer, Stream, Way};
use crate::shard_map::Address;
use crate::wire::backend::{self, AuthRequest, ErrorFields};
use crate::wire::{self, HEADER_BYTES, TxnStatus, frontend, sqlstate, startup};

/// Largest message of a server before it is ready.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Most bytes of a server before it is ready: endless notices would else keep us busy.
const LOGIN_BYTES_MAX: usize = 256 << 10;

/// Where to connect and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Host and port.
    pub address: Address,
    /// How it is spoken to.
    pub tls: Connector,
    /// Database on it.
    pub database: String,
    /// Role.
    pub user: String,
    /// Its secret; `None` where the server asks for none.
    pub secret: Option<ServerSecret>,
    /// Further settings of the StartupMessage, by name and value.
    pub settings: Vec<(String, String)>,
}

impl Target {
    /// A target with the settings that pgward needs and no others: what a client sees on its server
    /// is else what it would see directly.
    pub fn new(
        address: Address,
        tls: Connector,
        database: String,
        credentials: &ServerCredentials,
    ) -> Self {
        Self {
            address,
            tls,
            database,
            user: credentials.user.clone(),
            secret: credentials.secret.clone(),
            // Whatever the role's or the database's defaults are: texts are read as UTF-8 with
            // standard strings, so servers must read them so too.
            settings: [("client_encoding", "UTF8"), ("standard_conforming_strings", "on")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
        }
    }

    /// The same with `settings` before its own.
    pub fn with_settings(&self, settings: &[(String, String)]) -> Self {
        let mut target = self.clone();
        target.settings.retain(|(name, _)| settings.iter().all(|(other, _)| other != name));
        target.settings.extend_from_slice(settings);
        target
    }
}

/// A server that is ready for a query.
#[derive(Debug)]
pub struct Greeting {
    /// The connection.
    pub stream: Stream,
    /// What came behind ReadyForQuery: nothing, but for a server that talks out of turn.
    pub buffer: Buffer,
    /// Settings as the server reports them.
    pub parameters: Vec<(String, String)>,
    /// Its process.
    pub pid: i32,
    /// Its cancel key, 4 to 256 bytes.
    pub key: Bytes,
    /// How it was reached: cancel requests go the same way. `None` for a pipe.
    pub way: Option<Arc<Way>>,
}

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// The socket failed, before or during the login.
    #[error("can't connect: {0}")]
    Io(Arc<io::Error>),
    /// It took longer than `server_connect_timeout`.
    #[error("connecting took too long")]
    TimedOut,
    /// The server closed the connection.
    #[error("the server closed the connection during login")]
    Closed,
    /// `max_db_connections` or `max_user_connections` is reached.
    #[error("no more connections are allowed there")]
    NoPlace,
    /// The server said no. Its message is dropped: it may quote what it should not.
    #[error("the server refused the login with {sqlstate}")]
    Refused {
        /// Five letters or digits.
        sqlstate: String,
        /// Its ErrorResponse, where it had taken the proof: about what was asked for then, not about
        /// who pgward is there. Only for whoever asked for it.
        word: Option<Word>,
    },
    /// The server asks for a secret, and none is configured.
    #[error("the server asks for a secret, and its user has none in the users file")]
    NoSecret,
    /// The server asks for a proof that takes the secret, of which pgward has only a hash or keys, or
    /// nothing before a client has proven itself.
    #[error("the server asks for a proof that pgward can't give with what it has of the secret")]
    Unfit,
    /// The server asks for something that pgward can't do.
    #[error("the server asks for an authentication method that pgward does not have")]
    Method,
    /// The exchange went wrong.
    #[error("{0}")]
    Auth(#[from] auth::Error),
    /// The server's bytes are not the protocol, or out of turn.
    #[error("the server broke the protocol: {0}")]
    Protocol(#[from] wire::Error),
    /// The server sent more than a login takes.
    #[error("the server sent more than {LOGIN_BYTES_MAX} bytes during login")]
    TooLong,
}

/// A server's message that may quote what no log shall have. Prints as dots.
#[derive(Clone)]
pub struct Word(wire::Frame);

impl Word {
    /// Appends it as it came, for the client whom it answers.
    pub fn encode(&self, out: &mut bytes::BytesMut) {
        self.0.encode(out);
    }
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Word(...)")
    }
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

impl ConnectError {
    /// What a client is told: neither the host nor who pgward is there.
    pub fn public_words(&self) -> String {
        match self {
            Self::Io(_) | Self::Closed | Self::NoPlace => "The connection failed.".to_owned(),
            Self::TimedOut => "The connection took too long.".to_owned(),
            Self::Refused { sqlstate, .. } => format!("It refused pgward's login ({sqlstate})."),
            Self::NoSecret | Self::Unfit | Self::Method | Self::Auth(_) => {
                "The login failed.".to_owned()
            }
            Self::Protocol(_) | Self::TooLong => "It does not speak the protocol.".to_owned(),
        }
    }
}

/// Connects and logs in, within `timeout`.
pub async fn connect(target: &Target, timeout: Duration) -> Result<Greeting, ConnectError> {
    let attempts = match target.address.socket_path() {
        None => target.tls.attempts(),
        Some(_) => &[Attempt::Plain],
    };
    let login = async {
        let mut outcome = Err(ConnectError::Closed);
        for attempt in attempts {
            let (stream, way) = Stream::connect(&target.address, &target.tls, *attempt).await?;
            outcome = log_in(stream, target).await;
            match &mut outcome {
                Ok(greeting) => greeting.way = Some(way),
                // "no pg_hba.conf entry for host ..., no encryption", most likely.
                Err(ConnectError::Refused { sqlstate, .. })
                    if sqlstate == sqlstate::INVALID_AUTHORIZATION =>
                {
                    continue;
                }
                Err(_) => {}
            }
            break;
        }
        outcome
    };
    tokio::time::timeout(timeout, login).await.unwrap_or(Err(ConnectError::TimedOut))
}

/// Logs in over `stream`; the caller bounds the time.
pub async fn log_in(stream: Stream, target: &Target) -> Result<Greeting, ConnectError> {
    let mut server = Conversation {
        stream,
        input: Buffer::default(),
        output: Buffer::default(),
        bytes_left: LOGIN_BYTES_MAX,
        is_proven: false,
    };
    let named = [("user", target.user.as_str()), ("database", target.database.as_str())];
    let settings = target.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    startup::write_startup(server.output.tail(), named.into_iter().chain(settings));
    server.flush().await?;
    authenticate(&mut server, target).await?;
    server.is_proven = true;
    let (parameters, (pid, key)) = read_until_ready(&mut server).await?;
    let Conversation { stream, input: buffer, .. } = server;
    Ok(Greeting { stream, buffer, parameters, pid, key, way: None })
}

/// Asks the server at the end of `way` to cancel what its process `pid` runs, and waits until it has read
/// that: it closes the connection then. What is answered doesn't matter.
pub async fn send_cancel(
    way: &Way,
    pid: i32,
    key: &[u8],
    timeout: Duration,
) -> Result<(), ConnectError> {
    let cancel = async { deliver_cancel(Stream::connect_again(way).await?, pid, key).await };
    tokio::time::timeout(timeout, cancel).await.unwrap_or(Err(ConnectError::TimedOut))
}

/// As [`send_cancel`], to a host by its name: another pgward.
pub async fn send_cancel_to(
    address: &Address,
    pid: i32,
    key: &[u8],
    timeout: Duration,
) -> Result<(), ConnectError> {
    let cancel = async {
        let (stream, _) = Stream::connect(address, &Connector::plain(), Attempt::Plain).await?;
        deliver_cancel(stream, pid, key).await
    };
    tokio::time::timeout(timeout, cancel).await.unwrap_or(Err(ConnectError::TimedOut))
}

async fn deliver_cancel(mut stream: Stream, pid: i32, key: &[u8]) -> Result<(), ConnectError> {
    let mut buffer = Buffer::default();
    startup::write_cancel_request(buffer.tail(), pid, key);
    stream.drain(&mut buffer).await?;
    while stream.fill(&mut buffer).await? > 0 {
        buffer.clear();
    }
    Ok(())
}

/// How far the proof is. One server may ask once: a second question would be for another answer
/// to the same secret.
enum Proof {
    NotAsked,
    Given,
    ScramStarted(ClientExchange),
    ScramProven(ClientProof),
}

/// Answers what the server asks, up to AuthenticationOk.
async fn authenticate(server: &mut Conversation, target: &Target) -> Result<(), ConnectError> {
    let secret = || target.secret.as_ref().ok_or(ConnectError::NoSecret);
    let mut proof = Proof::NotAsked;
    loop {
        let body = server.message(backend::tag::AUTHENTICATION).await?;
        let request = AuthRequest::read(&body)?;
        let out = server.output.tail();
        proof = match (request, proof) {
            (AuthRequest::Ok, Proof::NotAsked | Proof::Given) => return Ok(()),
            (AuthRequest::Cleartext, Proof::NotAsked) => {
                // Nothing but the secret itself will do, and nothing else may go out in clear text.
                let ServerSecret::Plain(secret) = secret()? else {
                    return Err(ConnectError::Unfit);
                };
                frontend::write_password(out, secret.expose().as_bytes());
                Proof::Given
            }
            (AuthRequest::Md5(salt), Proof::NotAsked) => {
                let response = secret()?.md5_response(&target.user, salt);
                let response = response.ok_or(ConnectError::Unfit)?;
                frontend::write_password(out, response.as_bytes());
                Proof::Given
            }
            (AuthRequest::Sasl(mechanisms), Proof::NotAsked) => {
                let offers = |mechanism: &str| {
                    mechanisms.split(|byte| *byte == 0).any(|name| name == mechanism.as_bytes())
                };
                let (mechanism, binding) = match server.stream.server_end_point() {
                    Some(hash) if offers(scram::MECHANISM_PLUS) => {
                        (scram::MECHANISM_PLUS, Binding::EndPoint(hash))
                    }
                    // Were it hidden from us that the server offers it, the server will find out.
                    Some(_) => (scram::MECHANISM, Binding::NotOffered),
                    None => (scram::MECHANISM, Binding::None),
                };
                if !offers(mechanism) {
                    return Err(ConnectError::Method);
                }
                let (client_first, exchange) = match secret()? {
                    ServerSecret::Plain(secret) => ClientExchange::start_bound(secret, binding),
                    ServerSecret::Keys(keys) => {
                        ClientExchange::start_with_keys(keys.clone(), binding)
                    }
                    ServerSecret::Md5(_) | ServerSecret::FromClient => {
                        return Err(ConnectError::Unfit);
                    }
                };
                frontend::write_sasl_initial(out, mechanism, &client_first);
                Proof::ScramStarted(exchange)
            }
            (AuthRequest::SaslContinue(server_first), Proof::ScramStarted(exchange)) => {
                let server_first = server_first.to_vec();
                let (client_final, proof) =
                    off_thread(move || exchange.on_server_first(&server_first)).await?;
                frontend::write_sasl_response(server.output.tail(), &client_final);
                Proof::ScramProven(proof)
            }
            (AuthRequest::SaslFinal(server_final), Proof::ScramProven(proof)) => {
                proof.on_server_final(server_final)?;
                Proof::Given
            }
            (AuthRequest::Other(_), _) => return Err(ConnectError::Method),
            // Above all AuthenticationOk in the middle of SCRAM: the server has proved nothing.
            _ => {
                let what = "authentication request out of turn";
                return Err(out_of_turn(backend::tag::AUTHENTICATION, what));
            }
        };
        server.flush().await?;
    }
}

/// PBKDF2 takes milliseconds, more if the server says so: not on a thread that serves clients.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, auth::Error> + Send + 'static,
) -> Result<T, ConnectError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(io::Error::other(error).into()),
    }
}

type Parameters = Vec<(String, String)>;

/// Reads settings and the cancel key, up to ReadyForQuery.
async fn read_until_ready(
    server: &mut Conversation,
) -> Result<(Parameters, (i32, Bytes)), ConnectError> {
    let mut parameters = Parameters::new();
    let mut cancel = None;
    loop {
        let (tag, body) = server.any_message().await?;
        match tag {
            backend::tag::PARAMETER_STATUS => {
                let (name, value) = backend::read_parameter_status(&body)?;
                parameters.retain(|(known, _)| known != name);
                let value = String::from_utf8_lossy(value).into_owned();
                parameters.push((name.to_owned(), value));
            }
            backend::tag::BACKEND_KEY_DATA => {
                let (pid, key) = backend::read_backend_key_data(&body)?;
                cancel = Some((pid, Bytes::copy_from_slice(key)));
            }
            backend::tag::READY_FOR_QUERY => {
                return match (backend::read_ready_for_query(&body)?, cancel) {
                    (TxnStatus::Idle, Some(cancel)) => Ok((parameters, cancel)),
                    (TxnStatus::Idle, None) => Err(out_of_turn(tag, "no cancel key before it")),
                    _ => Err(out_of_turn(tag, "a transaction at the start")),
                };
            }
            tag => return Err(wire::Error::UnknownTag { tag }.into()),
        }
    }
}

fn out_of_turn(tag: u8, what: &'static str) -> ConnectError {
    wire::Error::Malformed { tag, what }.into()
}

/// The socket while the login lasts.
struct Conversation {
    stream: Stream,
    input: Buffer,
    output: Buffer,
    /// Bytes that the server may still send.
    bytes_left: usize,
    /// The server has taken the proof, and given its own where the method has one.
    is_proven: bool,
}

impl Conversation {
    async fn flush(&mut self) -> Result<(), ConnectError> {
        Ok(self.stream.drain(&mut self.output).await?)
    }

    /// The next message, which must have this tag.
    async fn message(&mut self, want: u8) -> Result<Bytes, ConnectError> {
        match self.any_message().await? {
            (tag, body) if tag == want => Ok(body),
            (tag, _) => Err(wire::Error::UnknownTag { tag }.into()),
        }
    }

    /// The next message that is neither a notice nor an error: the one is dropped, the other ends
    /// the login. So is NegotiateProtocolVersion: nothing newer than 3.0 was asked for.
    async fn any_message(&mut self) -> Result<(u8, Bytes), ConnectError> {
        loop {
            let (tag, body) = self.frame().await?;
            match tag {
                backend::tag::NOTICE_RESPONSE | backend::tag::NEGOTIATE_PROTOCOL_VERSION => {}
                backend::tag::ERROR_RESPONSE => {
                    let sqlstate = ErrorFields::read(&body)?.sqlstate().to_owned();
                    let word = self.is_proven.then_some(Word(wire::Frame { tag, body }));
                    return Err(ConnectError::Refused { sqlstate, word });
                }
                _ => return Ok((tag, body)),
            }
        }
    }

    async fn frame(&mut self) -> Result<(u8, Bytes), ConnectError> {
        loop {
            if let Some((tag, body)) = wire::peek(self.input.as_slice(), MESSAGE_BYTES_MAX)? {
                let body = Bytes::copy_from_slice(body);
                self.input.advance(HEADER_BYTES + body.len());
                return Ok((tag, body));
            }
            if self.bytes_left == 0 {
                return Err(ConnectError::TooLong);
            }
            match self.stream.fill_at_most(&mut self.input, self.bytes_left).await? {
                0 => return Err(ConnectError::Closed),
                n => self.bytes_left -= n,
            }
        }
    }
}

#[cfg(test)]
mod tests;
