//! Messages of a client as bytes, right or not.

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
