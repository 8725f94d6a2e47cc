//! Untagged packets of the start: SSLRequest, GSSENCRequest, CancelRequest, StartupMessage.
//!
//! Owns their limits and shape, and what a StartupMessage's parameters mean: user, database,
//! `options`, settings, and pgward's own two. Called by `session::login` for clients; the builders
//! by `server::login`. Format: the manual's "Message Formats"; limits: Postgres's `postmaster.c`.

use bytes::{BufMut, BytesMut};

use super::backend::CANCEL_KEY_BYTES;
use super::{Error, Reader, write, write_cstr};

/// Protocol 3.0, which is spoken to servers.
pub const PROTOCOL_3_0: i32 = 3 << 16;
/// Newest minor version of protocol 3 that is spoken to clients.
pub const MINOR_MAX: u16 = 2;
/// From this minor version on, cancel keys may be longer than four bytes.
pub const MINOR_OF_LONG_KEYS: u16 = 2;
/// Lengths of the start's packets, the length field included (`MAX_STARTUP_PACKET_LENGTH`).
pub const PACKET_BYTES: std::ops::RangeInclusive<usize> = 8..=10_000;

const CANCEL_REQUEST: i32 = (1234 << 16) | 5678;
const SSL_REQUEST: i32 = (1234 << 16) | 5679;
const GSSENC_REQUEST: i32 = (1234 << 16) | 5680;

/// A packet of the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet<'a> {
    /// May we speak TLS?
    SslRequest,
    /// May we speak GSSAPI encryption?
    GssEncRequest,
    /// Cancel what runs for the client with this pid and key.
    Cancel {
        /// As in BackendKeyData.
        pid: i32,
        /// As in BackendKeyData, 4 to 256 bytes.
        key: &'a [u8],
    },
    /// Log in.
    Startup(Startup<'a>),
}

/// A StartupMessage of protocol 3.x.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup<'a> {
    /// Minor version that the client asks for.
    pub minor: u16,
    /// Names and values as sent, `_pq_.` options included.
    pub params: Vec<(&'a str, &'a str)>,
}

/// The packet at the start of `buf` and its bytes; `None` while it is incomplete. A length outside
/// [`PACKET_BYTES`] fails before more is read.
pub fn peek(buf: &[u8]) -> Result<Option<(Packet<'_>, usize)>, Error> {
    let Some(head) = buf.first_chunk::<4>() else { return Ok(None) };
    let length = i32::from_be_bytes(*head);
    let total = match usize::try_from(length) {
        Ok(total) if total > *PACKET_BYTES.end() => {
            return Err(Error::TooLong { tag: 0, length: total, limit: *PACKET_BYTES.end() });
        }
        Ok(total) if total >= *PACKET_BYTES.start() => total,
        _ => return Err(Error::LengthTooSmall { tag: 0, length }),
    };
    let Some(body) = buf.get(4..total) else { return Ok(None) };
    Ok(Some((packet(body)?, total)))
}

fn packet(body: &[u8]) -> Result<Packet<'_>, Error> {
    let mut reader = Reader::new(0, body);
    match reader.i32()? {
        SSL_REQUEST => reader.finish().map(|()| Packet::SslRequest),
        GSSENC_REQUEST => reader.finish().map(|()| Packet::GssEncRequest),
        CANCEL_REQUEST => {
            let pid = reader.i32()?;
            let key = reader.rest();
            if !CANCEL_KEY_BYTES.contains(&key.len()) {
                return Err(reader.malformed("cancel key is not 4 to 256 bytes long"));
            }
            Ok(Packet::Cancel { pid, key })
        }
        code => {
            let (major, minor) = ((code >> 16) as u16, code as u16);
            if major != 3 {
                return Err(Error::UnsupportedProtocol { major, minor });
            }
            Ok(Packet::Startup(Startup { minor, params: params(reader)? }))
        }
    }
}

/// Pairs of C strings up to an empty name, which must be the last byte.
fn params(mut reader: Reader<'_>) -> Result<Vec<(&str, &str)>, Error> {
    let mut params = Vec::new();
    loop {
        let name = reader.cstr()?;
        if name.is_empty() {
            reader.finish()?;
            return Ok(params);
        }
        let value = reader.cstr()?;
        let utf8 = |bytes| {
            std::str::from_utf8(bytes).map_err(|_| reader.malformed("parameter is not UTF-8"))
        };
        params.push((utf8(name)?, utf8(value)?));
    }
}

/// Why a StartupMessage's parameters can't be, in what the client sent of them: nobody else sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadParams {
    /// No user.
    NoUser,
    /// A value of `replication`, which Postgres would not read either.
    Replication(String),
    /// The name of no setting.
    Unknown(String),
    /// A word of `options` that is no switch.
    Switch(String),
    /// A switch of `options` that sets nothing.
    NoValue(String),
}

/// What a replication connection is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replication {
    /// The whole server (`replication=true`), in none of its databases.
    Physical,
    /// A database (`replication=database`), which takes SQL as well.
    Database,
}

impl Replication {
    /// As it stands in a StartupMessage.
    pub fn value(self) -> &'static str {
        match self {
            Self::Physical => "true",
            Self::Database => "database",
        }
    }

    /// Reads the value as Postgres does: exactly `database`, or a boolean of which a beginning will do.
    fn read(value: &str) -> Result<Option<Self>, BadParams> {
        let unreadable = || BadParams::Replication(value.to_owned());
        let text = value.to_ascii_lowercase();
        let begins = |words: &[&str]| words.iter().any(|word| word.starts_with(&text));
        match text.as_str() {
            _ if value == "database" => Ok(Some(Self::Database)),
            "1" | "on" => Ok(Some(Self::Physical)),
            "0" | "of" | "off" => Ok(None),
            "" | "o" => Err(unreadable()),
            _ if begins(&["true", "yes"]) => Ok(Some(Self::Physical)),
            _ if begins(&["false", "no"]) => Ok(None),
            _ => Err(unreadable()),
        }
    }
}

/// What a client asks for at the start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StartupParams {
    /// Name of the login.
    pub user: String,
    /// Database; the user's name where none was sent.
    pub database: String,
    /// `pgward.hospital_id`, as sent.
    pub hospital: Option<String>,
    /// `pgward.shard`, as sent.
    pub shard: Option<String>,
    /// It is to be a replication connection.
    pub replication: Option<Replication>,
    /// All other settings, from `options` and from parameters, the last of a name only. Names are
    /// in lower case and have the shape of a setting's name; values are as sent.
    pub settings: Vec<(String, String)>,
    /// `_pq_.` options, none of which pgward knows.
    pub unsupported: Vec<String>,
}

impl StartupParams {
    /// Sorts the parameters of a StartupMessage.
    pub fn read(startup: &Startup<'_>) -> Result<Self, BadParams> {
        let mut out = Self::default();
        let mut options = "";
        // As Postgres: what `options` sets comes first, whatever the order in the packet.
        let mut params = Vec::new();
        for &(name, value) in &startup.params {
            match name {
                "user" => out.user = value.to_owned(),
                "database" => out.database = value.to_owned(),
                "options" => options = value,
                "replication" => out.replication = Replication::read(value)?,
                _ if name.starts_with("_pq_.") => out.unsupported.push(name.to_owned()),
                _ => params.push((name.to_owned(), value.to_owned())),
            }
        }
        if out.user.is_empty() {
            return Err(BadParams::NoUser);
        }
        if out.database.is_empty() {
            out.database.clone_from(&out.user);
        }
        for (name, value) in read_options(options)?.into_iter().chain(params) {
            out.set(&name, value)?;
        }
        Ok(out)
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), BadParams> {
        let name = name.to_ascii_lowercase();
        match name.as_str() {
            "pgward.hospital_id" => self.hospital = Some(value),
            "pgward.shard" => self.shard = Some(value),
            // Names that are no settings but would be read as parameters of a StartupMessage.
            "user" | "database" | "options" | "replication" => {
                return Err(BadParams::Unknown(name));
            }
            _ if !is_setting_name(&name) => return Err(BadParams::Unknown(name)),
            _ => {
                self.settings.retain(|(known, _)| *known != name);
                self.settings.push((name, value));
            }
        }
        Ok(())
    }
}

/// Identifiers joined by dots, as Postgres has setting names.
fn is_setting_name(name: &str) -> bool {
    name.split('.').all(|part| {
        let mut chars = part.chars();
        chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
    })
}

/// Reads `options` as a Postgres backend reads its command line: `-c name=value`, `-cname=value`
/// and `--name=value`, split at white space, a backslash taking the next character as it is.
fn read_options(options: &str) -> Result<Vec<(String, String)>, BadParams> {
    let mut settings = Vec::new();
    let mut words = split_options(options).into_iter();
    while let Some(word) = words.next() {
        let (switch, assignment) = if let Some(long) = word.strip_prefix("--") {
            ("--", long.to_owned())
        } else if word == "-c" {
            ("-c ", words.next().unwrap_or_default())
        } else if let Some(short) = word.strip_prefix("-c") {
            ("-c ", short.to_owned())
        } else {
            return Err(BadParams::Switch(word));
        };
        match assignment.split_once('=') {
            Some((name, value)) => settings.push((name.replace('-', "_"), value.to_owned())),
            None => return Err(BadParams::NoValue(format!("{switch}{assignment}"))),
        }
    }
    Ok(settings)
}

fn split_options(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r' => words.extend(word.take()),
            '\\' => word.get_or_insert_default().extend(chars.next()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Appends a StartupMessage of protocol 3.0.
pub fn write_startup<'a>(out: &mut BytesMut, params: impl Iterator<Item = (&'a str, &'a str)>) {
    write(out, None, |out| {
        out.put_i32(PROTOCOL_3_0);
        for (name, value) in params {
            write_cstr(out, name.as_bytes());
            write_cstr(out, value.as_bytes());
        }
        out.put_u8(0);
    });
}

/// Appends a CancelRequest.
pub fn write_cancel_request(out: &mut BytesMut, pid: i32, key: &[u8]) {
    write(out, None, |out| {
        out.put_i32(CANCEL_REQUEST);
        out.put_i32(pid);
        out.put_slice(key);
    });
}

/// Appends an SSLRequest.
pub fn write_ssl_request(out: &mut BytesMut) {
    write(out, None, |out| out.put_i32(SSL_REQUEST));
}

/// Appends a GSSENCRequest.
pub fn write_gssenc_request(out: &mut BytesMut) {
    write(out, None, |out| out.put_i32(GSSENC_REQUEST));
}
