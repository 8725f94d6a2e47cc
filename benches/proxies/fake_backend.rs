//! A Postgres that answers at once: its own process, one thread, canned replies.
//!
//! Trust login, the usual ParameterStatus, then one canned row for every SELECT in the simple and the
//! extended protocol. It knows which statements were parsed on each connection and answers 26000
//! for others, so that a pooler can't cheat; a database whose name ends in `_lenient` accepts
//! any (PgBouncer before 1.21 forwards a Bind without knowing its statement). Connections of
//! the probe user (pgward's control connections) are piped to a real Postgres. Each
//! loopback address is a shard: its number is in the canned row, for the loader to check.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::Result;
use crate::protocol::{cstr, fill, message, split};

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const PROTOCOL_3: u32 = 3;

const PARAMETERS: &[(&str, &str)] = &[
    ("application_name", ""),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("default_transaction_read_only", "off"),
    ("in_hot_standby", "off"),
    ("integer_datetimes", "on"),
    ("IntervalStyle", "postgres"),
    ("is_superuser", "off"),
    ("server_encoding", "UTF8"),
    ("server_version", "15.0 (fake)"),
    ("standard_conforming_strings", "on"),
    ("TimeZone", "Etc/UTC"),
];

/// What the process is told on its command line.
#[derive(Clone)]
struct Setup {
    port: u16,
    shards: u8,
    /// Where connections of `probe_user` go.
    real: SocketAddr,
    probe_user: String,
}

/// The address of shard `n` (also bound: 127.0.0.1, which answers as shard 0).
pub fn shard_host(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, n)
}

/// The text in the canned row's `name` column on shard `n`.
pub fn shard_name(n: u8) -> String {
    format!("shard {n:03}")
}

/// Entry of the process: `PORT SHARDS REAL PROBE_USER`.
pub fn run(args: &[String]) -> Result<()> {
    let [port, shards, real, probe_user] = args else {
        return Err("fake backend: wrong arguments".into());
    };
    let setup = Setup {
        port: port.parse()?,
        shards: shards.parse()?,
        real: real.parse()?,
        probe_user: probe_user.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(setup))
}

async fn serve(setup: Setup) -> Result<()> {
    let hosts = (0..setup.shards).map(|n| (shard_host(n), n));
    let mut accepting = tokio::task::JoinSet::new();
    for (host, shard) in std::iter::once((Ipv4Addr::LOCALHOST, 0)).chain(hosts) {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind((IpAddr::V4(host), setup.port).into())?;
        accepting.spawn(accept(socket.listen(4096)?, shard, setup.clone()));
    }
    println!("ready");
    accepting.join_all().await;
    Ok(())
}

async fn accept(listener: TcpListener, shard: u8, setup: Setup) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let setup = setup.clone();
        tokio::spawn(async move {
            // An end of the connection is how every session ends: nothing to report.
            let _ = session(stream, shard, &setup).await;
        });
    }
}

async fn session(mut stream: TcpStream, shard: u8, setup: &Setup) -> std::io::Result<()> {
    let packet = loop {
        let length = stream.read_u32().await? as usize;
        if !(8..=10_000).contains(&length) {
            return Ok(());
        }
        let mut packet = vec![0; length];
        packet[..4].copy_from_slice(&(length as u32).to_be_bytes());
        stream.read_exact(&mut packet[4..]).await?;
        let code = u32::from_be_bytes([packet[4], packet[5], packet[6], packet[7]]);
        match code {
            SSL_REQUEST | GSSENC_REQUEST => stream.write_all(b"N").await?,
            _ if code >> 16 == PROTOCOL_3 => break packet,
            _ => return Ok(()), // a CancelRequest: nothing ever runs long enough
        }
    };
    if startup_value(&packet, "user") == Some(setup.probe_user.as_bytes()) {
        let mut real = TcpStream::connect(setup.real).await?;
        real.set_nodelay(true)?;
        real.write_all(&packet).await?;
        tokio::io::copy_bidirectional(&mut stream, &mut real).await?;
        return Ok(());
    }
    let is_lenient =
        startup_value(&packet, "database").is_some_and(|name| name.ends_with(b"_lenient"));
    let mut backend = Backend::new(shard, is_lenient);
    let mut input = Vec::new();
    loop {
        let mut used = 0;
        while let Some((tag, body, total)) = split(&input[used..]) {
            if tag == b'X' {
                return Ok(());
            }
            backend.answer(tag, body);
            used += total;
        }
        input.drain(..used);
        if !backend.out.is_empty() && backend.is_flush_due {
            stream.write_all(&backend.out).await?;
            backend.out.clear();
            backend.is_flush_due = false;
        }
        fill(&mut stream, &mut input).await?;
    }
}

fn startup_value<'a>(packet: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut texts = packet[8..].split(|b| *b == 0);
    while let (Some(key), Some(value)) = (texts.next(), texts.next()) {
        if key == name.as_bytes() {
            return Some(value);
        }
    }
    None
}

/// What a statement's first word makes of it.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Select,
    /// What pgward asks at its first login.
    SearchPath,
    /// Answers its tag; transaction status afterwards, if it changes it.
    Tag(&'static str, Option<u8>),
    Empty,
    Unknown,
}

fn classify(sql: &[u8]) -> Kind {
    let sql = sql.trim_ascii();
    let word = sql.split(|b| !b.is_ascii_alphabetic()).next().unwrap_or_default();
    match word.to_ascii_lowercase().as_slice() {
        b"select" if sql.starts_with(b"SELECT pg_catalog.current_setting(") => Kind::SearchPath,
        b"select" => Kind::Select,
        b"begin" | b"start" => Kind::Tag("BEGIN", Some(b'T')),
        b"commit" | b"end" => Kind::Tag("COMMIT", Some(b'I')),
        b"rollback" => Kind::Tag("ROLLBACK", Some(b'I')),
        b"set" => Kind::Tag("SET", None),
        b"reset" => Kind::Tag("RESET", None),
        b"discard" => Kind::Tag("DISCARD ALL", None),
        b"deallocate" => Kind::Tag("DEALLOCATE ALL", None),
        b"" if sql.is_empty() => Kind::Empty,
        _ => Kind::Unknown,
    }
}

/// One connection after its login.
struct Backend {
    out: Vec<u8>,
    /// Something asked for its answer: Query, Sync or Flush.
    is_flush_due: bool,
    is_lenient: bool,
    status: u8,
    /// After an error in a batch, everything is skipped until Sync.
    is_skipping: bool,
    unnamed: Option<Kind>,
    named: HashMap<Vec<u8>, Kind>,
    portal: Kind,
    row_description: Vec<u8>,
    row: Vec<u8>,
}

impl Backend {
    fn new(shard: u8, is_lenient: bool) -> Self {
        let mut out = Vec::new();
        message(&mut out, b'R', |out| out.extend_from_slice(&[0; 4]));
        for (name, value) in PARAMETERS {
            message(&mut out, b'S', |out| {
                cstr(out, name.as_bytes());
                cstr(out, value.as_bytes());
            });
        }
        message(&mut out, b'K', |out| out.extend_from_slice(&[0, 0, 0x10, 0, 1, 2, 3, 4]));
        message(&mut out, b'Z', |out| out.push(b'I'));
        Self {
            out,
            is_flush_due: true,
            is_lenient,
            status: b'I',
            is_skipping: false,
            unnamed: None,
            named: HashMap::new(),
            portal: Kind::Unknown,
            row_description: row_description(),
            row: row(shard),
        }
    }

    fn answer(&mut self, tag: u8, body: &[u8]) {
        if self.is_skipping && tag != b'S' {
            return;
        }
        match tag {
            b'Q' => {
                let kind = classify(body.strip_suffix(b"\0").unwrap_or(body));
                match kind {
                    Kind::Select => self.out.extend_from_slice(&self.row_description),
                    Kind::SearchPath => {
                        describe_columns(&mut self.out, &[("current_setting", 25, -1)])
                    }
                    _ => (),
                }
                self.execute(kind);
                self.is_skipping = false;
                self.ready();
            }
            b'P' => self.parse(body),
            b'B' => self.bind(body),
            b'D' => self.describe(body),
            b'E' => self.execute(self.portal),
            b'C' => {
                if let Some((b'S', name)) = body.split_first() {
                    self.named.remove(name);
                }
                message(&mut self.out, b'3', |_| ());
            }
            b'S' => {
                self.is_skipping = false;
                self.ready();
            }
            b'H' => self.is_flush_due = true,
            _ => self.error("0A000", "the fake backend does not know this message"),
        }
    }

    fn parse(&mut self, body: &[u8]) {
        let mut texts = body.splitn(3, |b| *b == 0);
        let (name, sql) = (texts.next().unwrap_or_default(), texts.next().unwrap_or_default());
        let kind = classify(sql);
        match name {
            b"" => self.unnamed = Some(kind),
            _ if self.named.contains_key(name) && !self.is_lenient => {
                return self.error("42P05", "prepared statement already exists");
            }
            _ => {
                self.named.insert(name.to_vec(), kind);
            }
        }
        message(&mut self.out, b'1', |_| ());
    }

    fn bind(&mut self, body: &[u8]) {
        let name = body.splitn(3, |b| *b == 0).nth(1).unwrap_or_default();
        match self.statement(name) {
            Some(kind) => {
                self.portal = kind;
                message(&mut self.out, b'2', |_| ());
            }
            None => self.error("26000", "prepared statement does not exist"),
        }
    }

    fn statement(&self, name: &[u8]) -> Option<Kind> {
        let known = if name.is_empty() { self.unnamed } else { self.named.get(name).copied() };
        known.or(self.is_lenient.then_some(Kind::Select))
    }

    fn describe(&mut self, body: &[u8]) {
        let kind = match body.split_first() {
            Some((b'S', name)) => {
                let Some(kind) = self.statement(name.strip_suffix(b"\0").unwrap_or(name)) else {
                    return self.error("26000", "prepared statement does not exist");
                };
                message(&mut self.out, b't', |out| {
                    out.extend_from_slice(&2u16.to_be_bytes());
                    out.extend_from_slice(&2950u32.to_be_bytes());
                    out.extend_from_slice(&20u32.to_be_bytes());
                });
                kind
            }
            _ => self.portal,
        };
        match kind {
            Kind::Select => self.out.extend_from_slice(&self.row_description),
            _ => message(&mut self.out, b'n', |_| ()),
        }
    }

    fn execute(&mut self, kind: Kind) {
        match kind {
            Kind::Select => {
                self.out.extend_from_slice(&self.row);
                self.complete("SELECT 1");
            }
            Kind::SearchPath => {
                data_row(&mut self.out, &["\"$user\", public"]);
                self.complete("SELECT 1");
            }
            Kind::Tag(tag, status) => {
                self.status = status.unwrap_or(self.status);
                self.complete(tag);
            }
            Kind::Empty => message(&mut self.out, b'I', |_| ()),
            Kind::Unknown => self.error("0A000", "the fake backend does not know this statement"),
        }
    }

    fn complete(&mut self, tag: &str) {
        message(&mut self.out, b'C', |out| cstr(out, tag.as_bytes()));
    }

    fn ready(&mut self) {
        let status = self.status;
        message(&mut self.out, b'Z', |out| out.push(status));
        self.is_flush_due = true;
    }

    fn error(&mut self, sqlstate: &str, text: &str) {
        self.is_skipping = true;
        message(&mut self.out, b'E', |out| {
            for (field, value) in [(b'S', "ERROR"), (b'V', "ERROR"), (b'C', sqlstate), (b'M', text)]
            {
                out.push(field);
                cstr(out, value.as_bytes());
            }
            out.push(0);
        });
    }
}

fn row_description() -> Vec<u8> {
    let mut out = Vec::new();
    describe_columns(&mut out, &[("id", 20, 8), ("name", 25, -1), ("mrn", 25, -1)]);
    out
}

fn row(shard: u8) -> Vec<u8> {
    let mut out = Vec::new();
    data_row(&mut out, &["4711", &shard_name(shard), "MRN-0000004711"]);
    out
}

/// RowDescription of columns with (name, type, size).
fn describe_columns(out: &mut Vec<u8>, columns: &[(&str, u32, i16)]) {
    message(out, b'T', |out| {
        out.extend_from_slice(&(columns.len() as u16).to_be_bytes());
        for (attnum, (name, oid, size)) in (1u16..).zip(columns) {
            cstr(out, name.as_bytes());
            out.extend_from_slice(&16_400u32.to_be_bytes());
            out.extend_from_slice(&attnum.to_be_bytes());
            out.extend_from_slice(&oid.to_be_bytes());
            out.extend_from_slice(&size.to_be_bytes());
            out.extend_from_slice(&(-1i32).to_be_bytes());
            out.extend_from_slice(&0u16.to_be_bytes());
        }
    });
}

fn data_row(out: &mut Vec<u8>, texts: &[&str]) {
    message(out, b'D', |out| {
        out.extend_from_slice(&(texts.len() as u16).to_be_bytes());
        for text in texts {
            out.extend_from_slice(&(text.len() as u32).to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        }
    });
}
