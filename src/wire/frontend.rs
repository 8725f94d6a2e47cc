//! Client messages: views of those that routing needs, builders of those pgward sends to servers.
//!
//! A view borrows the body that [`super::peek`] found and has checked every length in it, so its
//! accessors can't fail. Text stays bytes: only the session knows the client's encoding. Builders
//! append whole messages, header included. Format: the manual's "Message Formats".

use std::cell::OnceCell;

use bytes::{BufMut, BytesMut};

use super::{Error, Reader, write, write_cstr};

/// Message type bytes of clients (manual: "Message Formats", those marked F).
pub mod tag {
    /// Bind
    pub const BIND: u8 = b'B';
    /// Close
    pub const CLOSE: u8 = b'C';
    /// CopyData
    pub const COPY_DATA: u8 = b'd';
    /// CopyDone
    pub const COPY_DONE: u8 = b'c';
    /// CopyFail
    pub const COPY_FAIL: u8 = b'f';
    /// Describe
    pub const DESCRIBE: u8 = b'D';
    /// Execute
    pub const EXECUTE: u8 = b'E';
    /// Flush
    pub const FLUSH: u8 = b'H';
    /// FunctionCall
    pub const FUNCTION_CALL: u8 = b'F';
    /// Parse
    pub const PARSE: u8 = b'P';
    /// PasswordMessage, SASLInitialResponse and SASLResponse: which one, only the state says.
    pub const PASSWORD: u8 = b'p';
    /// Query
    pub const QUERY: u8 = b'Q';
    /// Sync
    pub const SYNC: u8 = b'S';
    /// Terminate
    pub const TERMINATE: u8 = b'X';
}

/// Query: one or more statements in one text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query<'a> {
    /// The text, in the client's encoding.
    pub sql: &'a [u8],
}

impl<'a> Query<'a> {
    /// Reads a Query's body.
    pub fn read(body: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(tag::QUERY, body);
        let sql = reader.cstr()?;
        reader.finish()?;
        Ok(Self { sql })
    }
}

/// Parse: a statement to prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parse<'a> {
    /// Name of the statement; empty for the unnamed one.
    pub name: &'a [u8],
    /// The text, in the client's encoding.
    pub sql: &'a [u8],
    types: &'a [u8],
}

impl<'a> Parse<'a> {
    /// Reads a Parse's body.
    pub fn read(body: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(tag::PARSE, body);
        let name = reader.cstr()?;
        let sql = reader.cstr()?;
        let count = reader.count()?;
        let types = reader.bytes(count * 4)?;
        reader.finish()?;
        Ok(Self { name, sql, types })
    }

    /// Declared parameter types, in order; 0 where the server shall infer one.
    pub fn param_types(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.types.chunks_exact(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }
}

/// Bind: parameter values for a prepared statement, which make a portal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bind<'a> {
    /// Name of the portal; empty for the unnamed one.
    pub portal: &'a [u8],
    /// Name of the statement; empty for the unnamed one.
    pub statement: &'a [u8],
    /// All behind the statement's name, undecoded: [`write_bind_as`] copies it.
    pub rest: &'a [u8],
    formats: &'a [u8],
    values: &'a [u8],
    param_count: usize,
    result_formats: &'a [u8],
}

impl<'a> Bind<'a> {
    /// Reads a Bind's body. The number of formats must be 0, 1 or that of the parameters, as
    /// Postgres has it, so that no two readers can disagree on a parameter's format.
    pub fn read(body: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(tag::BIND, body);
        let portal = reader.cstr()?;
        let statement = reader.cstr()?;
        let rest = reader.rest();
        let format_count = reader.count()?;
        let formats = reader.bytes(format_count * 2)?;
        let param_count = reader.count()?;
        if format_count > 1 && format_count != param_count {
            return Err(reader.malformed("number of formats is not that of parameters"));
        }
        let values = reader.rest();
        for _ in 0..param_count {
            read_value(&mut reader)?;
        }
        let values = &values[..values.len() - reader.rest().len()];
        let result_count = reader.count()?;
        let result_formats = reader.bytes(result_count * 2)?;
        reader.finish()?;
        Ok(Self { portal, statement, rest, formats, values, param_count, result_formats })
    }

    /// Number of parameters.
    pub fn param_count(&self) -> usize {
        self.param_count
    }

    /// Parameter values in order; `None` is NULL.
    pub fn params(&self) -> impl Iterator<Item = Option<&'a [u8]>> + use<'a> {
        let mut reader = Reader::new(tag::BIND, self.values);
        // `read` has walked these bytes: an error can't come, and would end the list.
        (0..self.param_count).map_while(move |_| read_value(&mut reader).ok())
    }

    /// Format code and value of parameter `n`, counted from 1; `None` where there is none. It walks
    /// there: for many of them there is [`BindParams`].
    pub fn param(&self, n: u16) -> Option<(i16, Option<&'a [u8]>)> {
        let index = usize::from(n).checked_sub(1)?;
        let value = self.params().nth(index)?;
        Some((self.format(index)?, value))
    }

    /// No parameter is sent in binary; what NULL is sent in does not matter.
    pub fn has_text_only(&self) -> bool {
        let mut binary = self
            .params()
            .enumerate()
            .filter(|(index, value)| value.is_some() && self.format(*index) != Some(0));
        binary.next().is_none()
    }

    /// Format code of the parameter at `index`, counted from 0.
    fn format(&self, index: usize) -> Option<i16> {
        let at = match self.formats.len() / 2 {
            0 => return Some(0),
            1 => 0,
            _ => index * 2,
        };
        codes(self.formats.get(at..at + 2)?).next()
    }

    /// Result format codes as sent: none, one for all columns, or one for each.
    pub fn result_formats(&self) -> impl ExactSizeIterator<Item = i16> + use<'a> {
        codes(self.result_formats)
    }
}

/// Parameters of a Bind by their numbers, in any order: a row of an INSERT may have one each, and
/// to walk to each anew would take the square of their number.
#[derive(Debug, Clone)]
pub struct BindParams<'a> {
    bind: Bind<'a>,
    /// Where each value starts.
    starts: OnceCell<Vec<usize>>,
}

impl<'a> BindParams<'a> {
    /// Parameters up to this number are walked to, which costs less than the list of all.
    const WALKED_MAX: u16 = 32;

    /// Of `bind`.
    pub fn new(bind: Bind<'a>) -> Self {
        Self { bind, starts: OnceCell::new() }
    }

    /// As [`Bind::param`].
    pub fn get(&self, n: u16) -> Option<(i16, Option<&'a [u8]>)> {
        if n <= Self::WALKED_MAX {
            return self.bind.param(n);
        }
        let index = usize::from(n) - 1;
        let start = *self.starts.get_or_init(|| self.starts()).get(index)?;
        let value = read_value(&mut Reader::new(tag::BIND, &self.bind.values[start..])).ok()?;
        Some((self.bind.format(index)?, value))
    }

    fn starts(&self) -> Vec<usize> {
        let mut at = 0;
        let start = |value: Option<&[u8]>| {
            let start = at;
            at += size_of::<i32>() + value.map_or(0, <[u8]>::len);
            start
        };
        self.bind.params().map(start).collect()
    }
}

/// One parameter: Int32 length, -1 for NULL, then that many bytes.
fn read_value<'a>(reader: &mut Reader<'a>) -> Result<Option<&'a [u8]>, Error> {
    match reader.i32()? {
        -1 => Ok(None),
        length => match usize::try_from(length) {
            Ok(length) => reader.bytes(length).map(Some),
            Err(_) => Err(reader.malformed("negative parameter length")),
        },
    }
}

fn codes(bytes: &[u8]) -> impl ExactSizeIterator<Item = i16> + use<'_> {
    bytes.chunks_exact(2).map(|b| i16::from_be_bytes([b[0], b[1]]))
}

/// What Describe and Close name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A prepared statement.
    Statement,
    /// A portal.
    Portal,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Statement => b'S',
            Self::Portal => b'P',
        }
    }
}

/// Describe or Close: both have this body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named<'a> {
    /// Which name space.
    pub kind: Kind,
    /// The name; empty for the unnamed one.
    pub name: &'a [u8],
}

impl<'a> Named<'a> {
    /// Reads the body of a Describe.
    pub fn read_describe(body: &'a [u8]) -> Result<Self, Error> {
        Self::read(tag::DESCRIBE, body)
    }

    /// Reads the body of a Close.
    pub fn read_close(body: &'a [u8]) -> Result<Self, Error> {
        Self::read(tag::CLOSE, body)
    }

    fn read(tag: u8, body: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(tag, body);
        let kind = match reader.u8()? {
            b'S' => Kind::Statement,
            b'P' => Kind::Portal,
            _ => return Err(reader.malformed("names neither a statement nor a portal")),
        };
        let name = reader.cstr()?;
        reader.finish()?;
        Ok(Self { kind, name })
    }
}

/// Execute: run a portal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Execute<'a> {
    /// Name of the portal; empty for the unnamed one.
    pub portal: &'a [u8],
    /// Rows after which to suspend; 0 or less is no limit.
    pub max_rows: i32,
}

impl<'a> Execute<'a> {
    /// Reads an Execute's body.
    pub fn read(body: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(tag::EXECUTE, body);
        let portal = reader.cstr()?;
        let max_rows = reader.i32()?;
        reader.finish()?;
        Ok(Self { portal, max_rows })
    }
}

/// SASLInitialResponse: the chosen mechanism and the client's first message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaslInitial<'a> {
    /// Mechanism, e.g. `SCRAM-SHA-256`.
    pub mechanism: &'a [u8],
    /// The mechanism's data; `None` where the client sent -1.
    pub data: Option<&'a [u8]>,
}

impl<'a> SaslInitial<'a> {
    /// Reads the body of a SASLInitialResponse.
    pub fn read(body: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(tag::PASSWORD, body);
        let mechanism = reader.cstr()?;
        let data = read_value(&mut reader)?;
        reader.finish()?;
        Ok(Self { mechanism, data })
    }
}

/// Appends a Query.
pub fn write_query(out: &mut BytesMut, sql: &[u8]) {
    write(out, Some(tag::QUERY), |out| write_cstr(out, sql));
}

/// Appends a Parse with these declared parameter types.
pub fn write_parse(
    out: &mut BytesMut,
    name: &[u8],
    sql: &[u8],
    types: impl ExactSizeIterator<Item = u32>,
) {
    write(out, Some(tag::PARSE), |out| {
        write_cstr(out, name);
        write_cstr(out, sql);
        out.put_u16(types.len() as u16);
        types.for_each(|oid| out.put_u32(oid));
    });
}

/// Appends a Bind without parameters, results in text.
pub fn write_bind(out: &mut BytesMut, portal: &[u8], statement: &[u8]) {
    write(out, Some(tag::BIND), |out| {
        write_cstr(out, portal);
        write_cstr(out, statement);
        out.put_slice(&[0; 6]); // no formats, no parameters, no result formats
    });
}

/// Appends a client's Bind with another statement name; its parameters are copied undecoded.
pub fn write_bind_as(out: &mut BytesMut, bind: &Bind<'_>, statement: &[u8]) {
    write(out, Some(tag::BIND), |out| {
        write_cstr(out, bind.portal);
        write_cstr(out, statement);
        out.put_slice(bind.rest);
    });
}

/// Appends a Describe.
pub fn write_describe(out: &mut BytesMut, kind: Kind, name: &[u8]) {
    write_named(out, tag::DESCRIBE, kind, name);
}

/// Appends a Close.
pub fn write_close(out: &mut BytesMut, kind: Kind, name: &[u8]) {
    write_named(out, tag::CLOSE, kind, name);
}

fn write_named(out: &mut BytesMut, tag: u8, kind: Kind, name: &[u8]) {
    write(out, Some(tag), |out| {
        out.put_u8(kind.byte());
        write_cstr(out, name);
    });
}

/// Appends an Execute; `max_rows` 0 is no limit.
pub fn write_execute(out: &mut BytesMut, portal: &[u8], max_rows: i32) {
    write(out, Some(tag::EXECUTE), |out| {
        write_cstr(out, portal);
        out.put_i32(max_rows);
    });
}

/// Appends a Sync.
pub fn write_sync(out: &mut BytesMut) {
    write(out, Some(tag::SYNC), |_| {});
}

/// Appends a Flush.
pub fn write_flush(out: &mut BytesMut) {
    write(out, Some(tag::FLUSH), |_| {});
}

/// Appends a Terminate.
pub fn write_terminate(out: &mut BytesMut) {
    write(out, Some(tag::TERMINATE), |_| {});
}

/// Appends a CopyFail.
pub fn write_copy_fail(out: &mut BytesMut, reason: &[u8]) {
    write(out, Some(tag::COPY_FAIL), |out| write_cstr(out, reason));
}

/// Appends a PasswordMessage: a clear-text password or an md5 response.
pub fn write_password(out: &mut BytesMut, password: &[u8]) {
    write(out, Some(tag::PASSWORD), |out| write_cstr(out, password));
}

/// Appends a SASLInitialResponse.
pub fn write_sasl_initial(out: &mut BytesMut, mechanism: &str, data: &[u8]) {
    write(out, Some(tag::PASSWORD), |out| {
        write_cstr(out, mechanism.as_bytes());
        out.put_u32(data.len() as u32);
        out.put_slice(data);
    });
}

/// Appends a SASLResponse.
pub fn write_sasl_response(out: &mut BytesMut, data: &[u8]) {
    write(out, Some(tag::PASSWORD), |out| out.put_slice(data));
}
