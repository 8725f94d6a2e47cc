//! A client that sends bytes as it likes: for what no driver would do. Needs `auth_type = "trust"`.

use std::io::{Read, Write};
use std::net::TcpStream;

pub use super::messages::*;
use super::{PATIENCE, Ward};

/// A message from the server side: its type and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub tag: u8,
    pub body: Vec<u8>,
}

/// A connection.
pub struct Raw {
    pub stream: TcpStream,
}

impl Message {
    /// The SQLSTATE of an ErrorResponse, or "".
    pub fn sqlstate(&self) -> &str {
        let fields = self.body.split(|byte| *byte == 0).filter(|_| self.tag == b'E');
        let code = fields.filter_map(|field| std::str::from_utf8(field).ok());
        code.filter_map(|field| field.strip_prefix('C')).next().unwrap_or("")
    }
}

impl Raw {
    /// Connects and says nothing yet.
    pub fn connect(ward: &Ward) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", ward.port)).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self { stream }
    }

    /// Connects and logs in as `app`.
    pub fn login(ward: &Ward) -> Self {
        let mut raw = Self::connect(ward);
        raw.send(&startup(0x0003_0000));
        let messages = raw.until(b'Z').expect("a login");
        assert!(messages.iter().all(|message| message.tag != b'E'), "{messages:?}");
        raw
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sent");
    }

    /// One message; `None` at the end.
    pub fn message(&mut self) -> Option<Message> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; length.checked_sub(4).expect("a length")];
        self.stream.read_exact(&mut body).ok()?;
        Some(Message { tag: head[0], body })
    }

    /// Messages up to one of type `tag`; `None` if the connection ended first.
    pub fn until(&mut self, tag: u8) -> Option<Vec<Message>> {
        let mut messages = Vec::new();
        loop {
            messages.push(self.message()?);
            if messages.last().is_some_and(|message| message.tag == tag) {
                return Some(messages);
            }
        }
    }

    /// All that still comes, up to the end.
    pub fn until_closed(&mut self) -> Vec<Message> {
        std::iter::from_fn(|| self.message()).collect()
    }
}

/// How a [`Raw`] client logs in, by trust.
#[derive(Clone, Copy)]
pub struct Login<'a> {
    pub user: &'a str,
    pub minor: u16,
    /// Further pairs of the StartupMessage: `"options\0-c pgward.shard=0\0"`.
    pub more: &'a str,
}

impl Default for Login<'_> {
    fn default() -> Self {
        Self { user: "app", minor: 0, more: "" }
    }
}

/// A client that can be cancelled.
pub struct Cancellable {
    pub raw: Raw,
    pub pid: i32,
    pub key: Vec<u8>,
}

impl Cancellable {
    /// Logs in; the whole answer, if it is a refusal.
    pub fn try_login(ward: &Ward, login: Login<'_>) -> Result<Self, Vec<Message>> {
        let mut raw = Raw::connect(ward);
        let version = (3u32 << 16) | u32::from(login.minor);
        let user = format!("user\0{}\0database\0hospital\0{}\0", login.user, login.more);
        raw.send(&packet(&[&version.to_be_bytes(), user.as_bytes()]));
        let (mut messages, mut key) = (Vec::new(), None);
        loop {
            let Some(message) = raw.message() else { return Err(messages) };
            if message.tag == b'K' {
                let pid = i32::from_be_bytes(message.body[..4].try_into().expect("four bytes"));
                key = Some((pid, message.body[4..].to_vec()));
            }
            if message.tag == b'Z' {
                let (pid, key) = key.expect("BackendKeyData");
                return Ok(Self { raw, pid, key });
            }
            messages.push(message);
        }
    }

    pub fn login(ward: &Ward, login: Login<'_>) -> Self {
        Self::try_login(ward, login).unwrap_or_else(|messages| panic!("{messages:?}"))
    }

    /// Cancels what runs for it, by a connection to `port`; returns when that has been closed.
    pub fn cancel_at(&self, port: u16) {
        send_cancel(port, self.pid, &self.key);
    }

    /// The answer to a simple query: its messages.
    pub fn query(&mut self, sql: &str) -> Vec<Message> {
        self.raw.send(&query(sql));
        self.raw.until(b'Z').expect("an answer")
    }

    /// As [`Self::query`]: the SQLSTATE of its error, or "".
    pub fn code(&mut self, sql: &str) -> String {
        code_of(&self.query(sql))
    }
}

/// The SQLSTATE of the first error of `messages`, or "".
pub fn code_of(messages: &[Message]) -> String {
    let error = messages.iter().find(|message| message.tag == b'E');
    error.map(|message| message.sqlstate().to_owned()).unwrap_or_default()
}

/// The text of the first error of `messages`, or "".
pub fn words_of(messages: &[Message]) -> String {
    let error = messages.iter().find(|message| message.tag == b'E');
    let fields = error.map(|message| message.body.split(|byte| *byte == 0));
    let mut texts = fields.into_iter().flatten().filter_map(|f| std::str::from_utf8(f).ok());
    texts.find_map(|field| field.strip_prefix('M')).unwrap_or_default().to_owned()
}

/// Sends a CancelRequest and waits until the connection has been closed.
pub fn send_cancel(port: u16, pid: i32, key: &[u8]) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
        .write_all(&packet(&[&80_877_102u32.to_be_bytes(), &pid.to_be_bytes(), key]))
        .expect("sent");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("closed");
    assert!(rest.is_empty(), "a cancel is not answered: {rest:?}");
}
