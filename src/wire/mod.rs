//! Frames of the Postgres wire protocol: find them in a buffer, cap them, name them.
//!
//! Owns the message format and nothing else: no sockets, no policy. The hot path looks at a
//! frame's five-byte header in place and forwards whole regions; only the few messages that
//! routing needs are opened ([`frontend`]), and only pgward's own replies are built ([`backend`]).
//! Format: the manual's "Message Formats" (protocol-message-formats).

pub mod backend;
pub mod copy;
pub mod encoding;
pub mod frontend;
pub mod sqlstate;
pub mod startup;

use std::ffi::CStr;

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes of a typed message's header: one tag byte and an Int32 length that counts itself.
pub const HEADER_BYTES: usize = 5;

/// Why bytes of a peer are not the protocol. Never carries the bytes themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The length field is below its own four bytes.
    #[error("message '{}' has length {length}, less than the length field itself", tag_name(*.tag))]
    LengthTooSmall {
        /// Tag of the message, 0 where it has none.
        tag: u8,
        /// The length as sent.
        length: i32,
    },
    /// The length field is beyond what this state allows.
    #[error("message '{}' of {length} bytes is over the limit of {limit}", tag_name(*.tag))]
    TooLong {
        /// Tag of the message, 0 where it has none.
        tag: u8,
        /// The length as sent.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The body does not have the shape that its tag promises.
    #[error("message '{}' is malformed: {what}", tag_name(*.tag))]
    Malformed {
        /// Tag of the message, 0 where it has none.
        tag: u8,
        /// What is wrong.
        what: &'static str,
    },
    /// A StartupMessage of a protocol that is not 3.x.
    #[error("protocol {major}.{minor} is not spoken here")]
    UnsupportedProtocol {
        /// As sent.
        major: u16,
        /// As sent.
        minor: u16,
    },
    /// A tag that does not exist in this direction.
    #[error("message type '{}' is not known here", tag_name(*.tag))]
    UnknownTag {
        /// Tag as sent.
        tag: u8,
    },
}

fn tag_name(tag: u8) -> char {
    if tag.is_ascii_graphic() { tag as char } else { '?' }
}

/// A frame's header, read in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Message type byte.
    pub tag: u8,
    /// Bytes of the whole frame, header included.
    pub total: usize,
}

/// Reads the header at the start of `buf`; `None` while fewer than five bytes are there.
/// Fails on a length below 4 or a frame over `limit` bytes, before anything is allocated.
#[inline]
pub fn header(buf: &[u8], limit: usize) -> Result<Option<Header>, Error> {
    let Some(head) = buf.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let tag = head[0];
    let length = i32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    if length < 4 {
        return Err(Error::LengthTooSmall { tag, length });
    }
    let total = length as usize + 1;
    if total > limit {
        return Err(Error::TooLong { tag, length: total, limit });
    }
    Ok(Some(Header { tag, total }))
}

/// One whole frame at the start of `buf`, as (tag, body); `None` while it is incomplete.
#[inline]
pub fn peek(buf: &[u8], limit: usize) -> Result<Option<(u8, &[u8])>, Error> {
    let Some(header) = header(buf, limit)? else { return Ok(None) };
    Ok(buf.get(HEADER_BYTES..header.total).map(|body| (header.tag, body)))
}

/// A message that outlives the buffer it came in: its tag and its undecoded body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Message type byte.
    pub tag: u8,
    /// Body after the length field.
    pub body: Bytes,
}

impl Frame {
    /// Appends it as it came.
    pub fn encode(&self, out: &mut BytesMut) {
        write(out, Some(self.tag), |out| out.put_slice(&self.body));
    }
}

/// Appends one message: `tag` (none for the packets of the start), the length, and what `body`
/// writes. The only place that computes a length field.
fn write(out: &mut BytesMut, tag: Option<u8>, body: impl FnOnce(&mut BytesMut)) {
    if let Some(tag) = tag {
        out.put_u8(tag);
    }
    let start = out.len();
    out.put_i32(0);
    body(out);
    let length = out.len() - start;
    debug_assert!(i32::try_from(length).is_ok(), "message of {length} bytes");
    out[start..start + 4].copy_from_slice(&(length as u32).to_be_bytes());
}

/// Appends a NUL-terminated string, cut at a NUL of its own: whatever it holds, the messages
/// behind it stay where their lengths say.
fn write_cstr(out: &mut BytesMut, text: &[u8]) {
    let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
    debug_assert_eq!(end, text.len(), "NUL in a C string");
    out.put_slice(&text[..end]);
    out.put_u8(0);
}

/// Transaction status that ReadyForQuery reports (manual: "ReadyForQuery").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TxnStatus {
    /// `I`: not in a transaction block.
    #[default]
    Idle,
    /// `T`: in a transaction block.
    Open,
    /// `E`: in a failed block; statements are refused until it ends.
    Failed,
}

impl TxnStatus {
    /// Reads ReadyForQuery's status byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::Open),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }

    /// The byte that ReadyForQuery carries for this status.
    pub fn byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::Open => b'T',
            Self::Failed => b'E',
        }
    }
}

/// Reads big-endian integers and C strings off a message body; every read is checked.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    tag: u8,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader over `body` of a message with `tag` (used in errors only).
    pub fn new(tag: u8, body: &'a [u8]) -> Self {
        Self { tag, rest: body }
    }

    /// The error for this message.
    pub fn malformed(&self, what: &'static str) -> Error {
        Error::Malformed { tag: self.tag, what }
    }

    /// Bytes not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], Error> {
        let (head, tail) = self.rest.split_at_checked(n).ok_or(self.malformed("ends too early"))?;
        self.rest = tail;
        Ok(head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Error> {
        Ok(self.bytes(1)?[0])
    }

    /// A big-endian Int16.
    pub fn i16(&mut self) -> Result<i16, Error> {
        let b = self.bytes(2)?;
        Ok(i16::from_be_bytes([b[0], b[1]]))
    }

    /// A big-endian Int32.
    pub fn i32(&mut self) -> Result<i32, Error> {
        let b = self.bytes(4)?;
        Ok(i32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// A count sent as Int16, which Postgres reads as unsigned: a Bind may have 65,535 parameters.
    pub fn count(&mut self) -> Result<usize, Error> {
        Ok(usize::from(self.i16()? as u16))
    }

    /// A NUL-terminated string, without its NUL.
    pub fn cstr(&mut self) -> Result<&'a [u8], Error> {
        let text = CStr::from_bytes_until_nul(self.rest)
            .map_err(|_| self.malformed("string has no NUL"))?
            .to_bytes();
        self.rest = &self.rest[text.len() + 1..];
        Ok(text)
    }

    /// Fails if bytes are left over.
    pub fn finish(self) -> Result<(), Error> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.malformed("has bytes left over")) }
    }
}

#[cfg(test)]
mod tests;
