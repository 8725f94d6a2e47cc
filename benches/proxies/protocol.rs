//! The little of the protocol that the fake backend and the loader speak: frames and canned texts.
//!
//! Deliberately not `pgward::wire`: a fault there must not cancel itself out here.

use tokio::io::{AsyncRead, AsyncReadExt};

/// The statement, as an application that interpolates values would send it.
pub const SELECT_PREFIX: &str = "SELECT id, name, mrn FROM patients WHERE hospital_id = ";
/// The statement with parameters.
pub const SELECT_PARAMS: &str =
    "SELECT id, name, mrn FROM patients WHERE hospital_id = $1 AND id = $2";

/// Appends a message: `tag`, its length, and what `body` writes.
pub fn message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    let length = (out.len() - at) as u32;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends `text` and its NUL.
pub fn cstr(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(text);
    out.push(0);
}

/// A StartupMessage of protocol 3.0.
pub fn startup(user: &str, database: &str) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.extend_from_slice(&0x0003_0000u32.to_be_bytes());
    for text in ["user", user, "database", database, ""] {
        cstr(&mut out, text.as_bytes());
    }
    let length = out.len() as u32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

/// The first whole message of `buf` as (tag, body, bytes of it all).
pub fn split(buf: &[u8]) -> Option<(u8, &[u8], usize)> {
    let head = buf.first_chunk::<5>()?;
    let total = 1 + u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    buf.get(5..total).map(|body| (head[0], body, total))
}

/// Reads what is there, at least one byte; an end is an error.
pub async fn fill(stream: &mut (impl AsyncRead + Unpin), buf: &mut Vec<u8>) -> std::io::Result<()> {
    buf.reserve(4096);
    match stream.read_buf(buf).await? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Severity, SQLSTATE and message of an ErrorResponse's body, for people.
pub fn error_text(body: &[u8]) -> String {
    let fields = body.split(|b| *b == 0).filter(|field| !field.is_empty());
    let wanted = fields.filter(|field| matches!(field[0], b'S' | b'C' | b'M' | b'D' | b'H'));
    wanted
        .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
