//! Server messages: views of the few that pgward reads, builders of the few that it sends.
//!
//! Views check every length and take every field as optional: a server may be hostile or just
//! odd. Builders go through pgwire's encoders; its decoders are never used, they panic on hostile
//! bytes. Format: the manual's "Message Formats".

use std::borrow::Cow;
use std::num::NonZeroU32;

use bytes::{BufMut, Bytes, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::startup::{Authentication, NegotiateProtocolVersion, SecretKey};
use pgwire::messages::{data, extendedquery, response, startup};

use super::{Error, Reader, TxnStatus};

/// Message type bytes of servers (manual: "Message Formats", those marked B).
pub mod tag {
    /// AuthenticationOk and all that ask for a proof
    pub const AUTHENTICATION: u8 = b'R';
    /// BackendKeyData
    pub const BACKEND_KEY_DATA: u8 = b'K';
    /// BindComplete
    pub const BIND_COMPLETE: u8 = b'2';
    /// CloseComplete
    pub const CLOSE_COMPLETE: u8 = b'3';
    /// CommandComplete
    pub const COMMAND_COMPLETE: u8 = b'C';
    /// CopyBothResponse
    pub const COPY_BOTH_RESPONSE: u8 = b'W';
    /// CopyData
    pub const COPY_DATA: u8 = b'd';
    /// CopyDone
    pub const COPY_DONE: u8 = b'c';
    /// CopyInResponse
    pub const COPY_IN_RESPONSE: u8 = b'G';
    /// CopyOutResponse
    pub const COPY_OUT_RESPONSE: u8 = b'H';
    /// DataRow
    pub const DATA_ROW: u8 = b'D';
    /// EmptyQueryResponse
    pub const EMPTY_QUERY_RESPONSE: u8 = b'I';
    /// ErrorResponse
    pub const ERROR_RESPONSE: u8 = b'E';
    /// FunctionCallResponse
    pub const FUNCTION_CALL_RESPONSE: u8 = b'V';
    /// NegotiateProtocolVersion
    pub const NEGOTIATE_PROTOCOL_VERSION: u8 = b'v';
    /// NoData
    pub const NO_DATA: u8 = b'n';
    /// NoticeResponse
    pub const NOTICE_RESPONSE: u8 = b'N';
    /// NotificationResponse
    pub const NOTIFICATION_RESPONSE: u8 = b'A';
    /// ParameterDescription
    pub const PARAMETER_DESCRIPTION: u8 = b't';
    /// ParameterStatus
    pub const PARAMETER_STATUS: u8 = b'S';
    /// ParseComplete
    pub const PARSE_COMPLETE: u8 = b'1';
    /// PortalSuspended
    pub const PORTAL_SUSPENDED: u8 = b's';
    /// ReadyForQuery
    pub const READY_FOR_QUERY: u8 = b'Z';
    /// RowDescription
    pub const ROW_DESCRIPTION: u8 = b'T';
}

/// An ErrorResponse or NoticeResponse of pgward's own (manual: "Error and Notice Message Fields").
///
/// Carries no SQL text, no value and no other hospital's id: whatever is put here reaches a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReply {
    /// `ERROR`, `FATAL`, `WARNING` or `NOTICE`.
    pub severity: &'static str,
    /// Five characters, from [`super::sqlstate`].
    pub sqlstate: &'static str,
    /// The primary message.
    pub message: String,
    /// More about this case.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// 1-based character position in the statement.
    pub position: Option<NonZeroU32>,
    /// The function in Postgres that would have reported it, where drivers go by that.
    pub routine: Option<Routine>,
}

/// A function in Postgres whose errors drivers know by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routine {
    /// Looks whether a cached plan still holds.
    RevalidateCachedQuery,
}

impl Routine {
    fn name(self) -> &'static str {
        match self {
            Self::RevalidateCachedQuery => "RevalidateCachedQuery",
        }
    }
}

impl ErrorReply {
    /// An `ERROR` with `message` and nothing else.
    pub fn error(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: "ERROR",
            sqlstate,
            message: message.into(),
            detail: None,
            hint: None,
            position: None,
            routine: None,
        }
    }

    /// A `FATAL`: the connection is closed behind it.
    pub fn fatal(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self { severity: "FATAL", ..Self::error(sqlstate, message) }
    }

    /// Adds a detail line.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// In words that every client encoding has: what is not ASCII is a question mark.
    pub fn in_ascii(self) -> Self {
        let ascii = |text: String| match text.is_ascii() {
            true => text,
            false => text.replace(|c: char| !c.is_ascii(), "?"),
        };
        let (detail, hint) = (self.detail.map(ascii), self.hint.map(ascii));
        Self { message: ascii(self.message), detail, hint, ..self }
    }

    /// Adds a hint line.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says where in the statement, counted in characters from 1.
    pub fn with_position(mut self, position: u32) -> Self {
        self.position = NonZeroU32::new(position);
        self
    }

    /// Says which function of Postgres would have reported it.
    pub fn with_routine(mut self, routine: Routine) -> Self {
        self.routine = Some(routine);
        self
    }

    /// Appends the message to `out`: ErrorResponse, or NoticeResponse for WARNING and NOTICE.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut fields = vec![
            (b'S', self.severity.to_owned()),
            (b'V', self.severity.to_owned()),
            (b'C', self.sqlstate.to_owned()),
            (b'M', text(&self.message).into_owned()),
        ];
        let mut add = |code, value: Option<&str>| {
            fields.extend(value.map(|value| (code, text(value).into_owned())));
        };
        add(b'D', self.detail.as_deref());
        add(b'H', self.hint.as_deref());
        add(b'P', self.position.map(|position| position.to_string()).as_deref());
        add(b'R', self.routine.map(Routine::name));
        if matches!(self.severity, "WARNING" | "NOTICE") {
            put(out, response::NoticeResponse::new(fields));
        } else {
            put(out, response::ErrorResponse::new(fields));
        }
    }
}

/// Text as it may go into a C string: cut at a NUL, which would end it anyway and shift what
/// follows.
fn text(text: &str) -> Cow<'_, str> {
    Cow::Borrowed(text.split('\0').next().unwrap_or_default())
}

/// Appends `message`, or nothing of it: pgwire refuses what libpq would take for a broken stream
/// (over 30,000 bytes but for rows, errors and the like). Of our own messages only a
/// ParameterStatus could be that long, and it is better not told.
fn put(out: &mut BytesMut, message: impl Message) {
    let before = out.len();
    if message.encode(out).is_err() {
        out.truncate(before);
    }
}

/// Appends ReadyForQuery.
pub fn write_ready_for_query(out: &mut BytesMut, status: TxnStatus) {
    out.put_slice(&[tag::READY_FOR_QUERY, 0, 0, 0, 5, status.byte()]);
}

/// Appends CommandComplete with `command` as its tag, e.g. `SELECT 1`.
pub fn write_command_complete(out: &mut BytesMut, command: &str) {
    put(out, response::CommandComplete::new(text(command).into_owned()));
}

/// Appends ParseComplete.
pub fn write_parse_complete(out: &mut BytesMut) {
    put(out, extendedquery::ParseComplete::new());
}

/// Appends BindComplete.
pub fn write_bind_complete(out: &mut BytesMut) {
    put(out, extendedquery::BindComplete::new());
}

/// Appends CloseComplete.
pub fn write_close_complete(out: &mut BytesMut) {
    put(out, extendedquery::CloseComplete::new());
}

/// Appends NoData.
pub fn write_no_data(out: &mut BytesMut) {
    put(out, data::NoData::new());
}

/// Appends EmptyQueryResponse.
pub fn write_empty_query(out: &mut BytesMut) {
    put(out, response::EmptyQueryResponse::new());
}

/// Appends ParameterDescription.
pub fn write_parameter_description(out: &mut BytesMut, types: &[u32]) {
    put(out, data::ParameterDescription::new(types.to_vec()));
}

/// Appends ParameterStatus.
pub fn write_parameter_status(out: &mut BytesMut, name: &str, value: &str) {
    put(out, startup::ParameterStatus::new(text(name).into_owned(), text(value).into_owned()));
}

/// As [`write_parameter_status`], of a value in the client's encoding.
pub fn write_parameter_bytes(out: &mut BytesMut, name: &str, value: &[u8]) {
    let length = 4 + name.len() + 1 + value.len() + 1;
    out.extend_from_slice(b"S");
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    for text in [name.as_bytes(), value] {
        out.extend_from_slice(text);
        out.extend_from_slice(b"\0");
    }
}

/// Appends BackendKeyData. A key has 4 to 256 bytes; protocol 3.0 clients expect 4.
pub fn write_backend_key_data(out: &mut BytesMut, pid: i32, key: &[u8]) {
    debug_assert!(CANCEL_KEY_BYTES.contains(&key.len()));
    let key = SecretKey::Bytes(Bytes::copy_from_slice(key));
    put(out, startup::BackendKeyData::new(pid, key));
}

/// Appends AuthenticationOk.
pub fn write_authentication_ok(out: &mut BytesMut) {
    put(out, Authentication::Ok);
}

/// Appends AuthenticationCleartextPassword.
pub fn write_authentication_cleartext(out: &mut BytesMut) {
    put(out, Authentication::CleartextPassword);
}

/// Appends AuthenticationMD5Password.
pub fn write_authentication_md5(out: &mut BytesMut, salt: [u8; 4]) {
    put(out, Authentication::MD5Password(salt.to_vec()));
}

/// Appends AuthenticationSASL with the mechanisms on offer.
pub fn write_authentication_sasl(out: &mut BytesMut, mechanisms: &[&str]) {
    put(out, Authentication::SASL(mechanisms.iter().map(|name| (*name).to_owned()).collect()));
}

/// Appends AuthenticationSASLContinue.
pub fn write_authentication_sasl_continue(out: &mut BytesMut, data: &str) {
    put(out, Authentication::SASLContinue(Bytes::copy_from_slice(data.as_bytes())));
}

/// Appends AuthenticationSASLFinal.
pub fn write_authentication_sasl_final(out: &mut BytesMut, data: &str) {
    put(out, Authentication::SASLFinal(Bytes::copy_from_slice(data.as_bytes())));
}

/// Appends NegotiateProtocolVersion: 3.`minor` is spoken, these `_pq_.` options are unknown.
pub fn write_negotiate_protocol_version(out: &mut BytesMut, minor: u16, unsupported: &[String]) {
    let unsupported = unsupported.iter().map(|name| text(name).into_owned()).collect();
    let version = super::startup::PROTOCOL_3_0 | i32::from(minor);
    put(out, NegotiateProtocolVersion::new(version, unsupported));
}

/// Appends RowDescription of text-format columns, each a name and a type's OID.
pub fn write_row_description(out: &mut BytesMut, columns: &[(&str, u32)]) {
    let fields = columns
        .iter()
        .map(|(name, oid)| {
            data::FieldDescription::new(text(name).into_owned(), 0, 0, *oid, -1, -1, 0)
        })
        .collect();
    put(out, data::RowDescription::new(fields));
}

/// Appends a DataRow of text values; `None` is NULL.
pub fn write_data_row<'a>(
    out: &mut BytesMut,
    values: impl ExactSizeIterator<Item = Option<&'a str>>,
) {
    let count = values.len() as i16;
    let mut row = BytesMut::new();
    for value in values {
        match value {
            Some(value) => {
                row.put_i32(value.len() as i32);
                row.put_slice(value.as_bytes());
            }
            None => row.put_i32(-1),
        }
    }
    put(out, data::DataRow::new(row, count));
}

/// Fields of a server's ErrorResponse or NoticeResponse; any of them may be missing.
///
/// Message, detail and context may quote a health record: they are forwarded, never logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ErrorFields<'a> {
    /// `V`, the severity that is never translated, else `S`.
    pub severity: Option<&'a [u8]>,
    /// `C`.
    pub sqlstate: Option<&'a [u8]>,
    /// `M`.
    pub message: Option<&'a [u8]>,
    /// `R`, the routine that reports.
    pub routine: Option<&'a [u8]>,
    /// `t`.
    pub table: Option<&'a [u8]>,
    /// `n`.
    pub constraint: Option<&'a [u8]>,
}

impl<'a> ErrorFields<'a> {
    /// Reads the body of an ErrorResponse or a NoticeResponse.
    pub fn read(body: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(tag::ERROR_RESPONSE, body);
        let mut fields = Self::default();
        let mut translated = None;
        loop {
            let code = reader.u8()?;
            if code == 0 {
                break;
            }
            let value = Some(reader.cstr()?);
            match code {
                b'S' => translated = value,
                b'V' => fields.severity = value,
                b'C' => fields.sqlstate = value,
                b'M' => fields.message = value,
                b'R' => fields.routine = value,
                b't' => fields.table = value,
                b'n' => fields.constraint = value,
                _ => {}
            }
        }
        reader.finish()?;
        fields.severity = fields.severity.or(translated);
        Ok(fields)
    }

    /// The SQLSTATE, where it is five upper-case letters or digits; else `XX000`. Safe to log.
    pub fn sqlstate(&self) -> &'a str {
        self.sqlstate
            .filter(|code| code.len() == 5)
            .filter(|code| code.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()))
            .and_then(|code| std::str::from_utf8(code).ok())
            .unwrap_or(super::sqlstate::INTERNAL_ERROR)
    }

    /// True for FATAL and PANIC: the server closes the connection behind it.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity, Some(b"FATAL" | b"PANIC"))
    }
}

/// Reads ReadyForQuery's body.
pub fn read_ready_for_query(body: &[u8]) -> Result<TxnStatus, Error> {
    let mut reader = Reader::new(tag::READY_FOR_QUERY, body);
    let status = TxnStatus::from_byte(reader.u8()?)
        .ok_or(reader.malformed("transaction status is not I, T or E"))?;
    reader.finish()?;
    Ok(status)
}

/// Reads ParameterStatus's body as (name, value); the value is in the client's encoding.
pub fn read_parameter_status(body: &[u8]) -> Result<(&str, &[u8]), Error> {
    let mut reader = Reader::new(tag::PARAMETER_STATUS, body);
    let name = reader.cstr()?;
    let value = reader.cstr()?;
    let name = std::str::from_utf8(name).map_err(|_| reader.malformed("is not UTF-8"))?;
    reader.finish()?;
    Ok((name, value))
}

/// Reads RowDescription into `hash`: what of it decides how rows are read, and what Postgres itself
/// compares before it says that a cached plan must not change its result type. Not the tables, whose
/// OIDs differ between servers, nor formats, which a Bind gives.
pub fn hash_row_description(body: &[u8], hash: &mut impl std::hash::Hasher) -> Result<(), Error> {
    let mut reader = Reader::new(tag::ROW_DESCRIPTION, body);
    let count = reader.count()?;
    for _ in 0..count {
        hash.write(reader.cstr()?);
        // Its end: names are of any length.
        hash.write_u8(0);
        let _table_and_column = reader.bytes(6)?;
        // Type, length and modifier.
        hash.write(reader.bytes(10)?);
        let _format = reader.i16()?;
    }
    reader.finish()
}

/// Reads CommandComplete's tag, e.g. `INSERT 0 1`.
pub fn read_command_complete(body: &[u8]) -> Result<&[u8], Error> {
    let mut reader = Reader::new(tag::COMMAND_COMPLETE, body);
    let command = reader.cstr()?;
    reader.finish()?;
    Ok(command)
}

/// Lengths that a cancel key may have (protocol 3.2; 3.0 has 4).
pub const CANCEL_KEY_BYTES: std::ops::RangeInclusive<usize> = 4..=256;

/// Reads BackendKeyData's body as (pid, key).
pub fn read_backend_key_data(body: &[u8]) -> Result<(i32, &[u8]), Error> {
    let mut reader = Reader::new(tag::BACKEND_KEY_DATA, body);
    let pid = reader.i32()?;
    let key = reader.rest();
    if !CANCEL_KEY_BYTES.contains(&key.len()) {
        return Err(reader.malformed("cancel key is not 4 to 256 bytes long"));
    }
    Ok((pid, key))
}

/// What a server asks of pgward at login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthRequest<'a> {
    /// AuthenticationOk.
    Ok,
    /// AuthenticationCleartextPassword.
    Cleartext,
    /// AuthenticationMD5Password and its salt.
    Md5([u8; 4]),
    /// AuthenticationSASL: NUL-terminated mechanism names, and an empty one.
    Sasl(&'a [u8]),
    /// AuthenticationSASLContinue.
    SaslContinue(&'a [u8]),
    /// AuthenticationSASLFinal.
    SaslFinal(&'a [u8]),
    /// Another method (GSS, SSPI, Kerberos, SCM), by its number.
    Other(i32),
}

impl<'a> AuthRequest<'a> {
    /// Reads an Authentication message's body.
    pub fn read(body: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(tag::AUTHENTICATION, body);
        let request = match reader.i32()? {
            0 => Self::Ok,
            3 => Self::Cleartext,
            5 => {
                let salt = reader.bytes(4)?;
                Self::Md5([salt[0], salt[1], salt[2], salt[3]])
            }
            10 => return Ok(Self::Sasl(reader.rest())),
            11 => return Ok(Self::SaslContinue(reader.rest())),
            12 => return Ok(Self::SaslFinal(reader.rest())),
            method => return Ok(Self::Other(method)),
        };
        reader.finish()?;
        Ok(request)
    }
}
