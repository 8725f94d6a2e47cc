//! A client that sends bytes as it likes: for what no driver would do. Needs `auth_type = "trust"`.

use std::io::{Read, Write};
use std::net::TcpStream;

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

/// A StartupMessage of user `app`.
pub fn startup(protocol: u32) -> Vec<u8> {
    packet(&[&protocol.to_be_bytes(), b"user\0app\0database\0hospital\0\0"])
}

/// An untagged packet.
pub fn packet(parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    [&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat()
}

/// A message to the server side.
pub fn message(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    [&[tag][..], &packet(parts)].concat()
}

pub fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &[sql.as_bytes(), b"\0"])
}

pub fn parse(sql: &str) -> Vec<u8> {
    message(b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"])
}

/// Binds the unnamed statement to text parameters.
pub fn bind(values: &[&str]) -> Vec<u8> {
    let count = (values.len() as u16).to_be_bytes();
    let mut parts: Vec<u8> = [&b"\0\0\0\0"[..], &count].concat();
    for value in values {
        parts.extend((value.len() as u32).to_be_bytes());
        parts.extend(value.as_bytes());
    }
    parts.extend([0, 0]);
    message(b'B', &[&parts])
}

pub fn execute() -> Vec<u8> {
    message(b'E', &[b"\0\0\0\0\0"])
}

pub fn flush() -> Vec<u8> {
    message(b'H', &[])
}

pub fn sync() -> Vec<u8> {
    message(b'S', &[])
}

/// Parse, Bind and Execute of one statement, without Sync.
pub fn batch(sql: &str, values: &[&str]) -> Vec<u8> {
    [parse(sql), bind(values), execute()].concat()
}
