//! Host addresses as the map spells them: `host:port`, the port always said, IPv6 in brackets, and
//! `/directory:port` for a Unix socket.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// What the path of a Unix socket may have (108 on Linux, fewer elsewhere) less the socket's name.
const DIRECTORY_BYTES_MAX: usize = 103 - "/.s.PGSQL.65535".len();

/// host:port, or directory:port, of one Postgres server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Host name in lower case, or IP address, IPv6 without brackets; or the absolute directory of a
    /// Unix socket.
    pub host: String,
    /// TCP port; in a directory it is part of the socket's name.
    pub port: u16,
}

impl Address {
    /// Its Unix socket; `None` where it is reached by TCP.
    pub fn socket_path(&self) -> Option<std::path::PathBuf> {
        let directory = self.host.strip_prefix('/')?;
        Some(format!("/{directory}/.s.PGSQL.{}", self.port).into())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') && !self.host.starts_with('/') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What is wrong with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No `:port` at the end.
    #[error("has no port: write it as host:port, such as pg-0:5432")]
    NoPort,
    /// Not 1-65535.
    #[error("has a port that is not a number from 1 to 65535")]
    Port,
    /// IPv6 without brackets: its last group would be read as the port.
    #[error("is an IPv6 address without brackets: write it as [::1]:5432")]
    NoBrackets,
    /// Brackets around what isn't an IPv6 address.
    #[error("has brackets around what is no IPv6 address")]
    Ipv6,
    /// A directory whose socket would have too long a path, or with odd characters.
    #[error("has a directory that is no place for a Unix socket")]
    Directory,
    /// Neither a name nor an IPv4 address.
    #[error("has a host that is neither a name nor an IP address")]
    Host,
}

impl std::str::FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (host, port) = text.rsplit_once(':').ok_or(AddressError::NoPort)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let inner = rest.strip_suffix(']').ok_or(if text.ends_with(']') {
                    AddressError::NoPort
                } else {
                    AddressError::Ipv6
                })?;
                inner.parse::<Ipv6Addr>().map_err(|_| AddressError::Ipv6)?.to_string()
            }
            None if host.starts_with('/') => directory(host)?,
            None if host.contains(':') => return Err(AddressError::NoBrackets),
            None => name(host)?,
        };
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        match port.parse() {
            Ok(port) if digits && port > 0 => Ok(Self { host, port }),
            _ => Err(AddressError::Port),
        }
    }
}

/// Without a slash at the end, so that one socket has one spelling.
fn directory(path: &str) -> Result<String, AddressError> {
    let path = path.trim_end_matches('/');
    let is_plain = path.split('/').skip(1).all(|name| !matches!(name, "" | "." | ".."));
    let is_printable = !path.contains(|c: char| c.is_control() || c == '{' || c == '}');
    if path.len() <= DIRECTORY_BYTES_MAX && is_plain && is_printable && path.starts_with('/') {
        Ok(path.to_owned())
    } else {
        Err(AddressError::Directory)
    }
}

/// DNS doesn't tell cases apart, so neither may the check for duplicates.
fn name(host: &str) -> Result<String, AddressError> {
    let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let named = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let edges = host.starts_with(['-', '.']) || host.ends_with('-') || host.contains("..");
    if host.is_empty() || host.len() > 253 || !named || edges {
        return Err(AddressError::Host);
    }
    if numeric && host.parse::<Ipv4Addr>().is_err() {
        return Err(AddressError::Host);
    }
    Ok(host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let cases: &[(&str, Result<&str, AddressError>)] = &[
            ("pg-na-00a:5432", Ok("pg-na-00a:5432")),
            ("PG.Example.org:1", Ok("pg.example.org:1")),
            ("127.0.0.1:65535", Ok("127.0.0.1:65535")),
            ("[::1]:5432", Ok("[::1]:5432")),
            ("[2001:DB8:0::0:1]:5432", Ok("[2001:db8::1]:5432")),
            ("pg", Err(AddressError::NoPort)),
            ("", Err(AddressError::NoPort)),
            ("[::1]", Err(AddressError::NoPort)),
            ("pg:", Err(AddressError::Port)),
            ("pg:0", Err(AddressError::Port)),
            ("pg:65536", Err(AddressError::Port)),
            ("pg:+5432", Err(AddressError::Port)),
            ("pg: 5432", Err(AddressError::Port)),
            ("pg:5432/hospital", Err(AddressError::Port)),
            ("::1:5432", Err(AddressError::NoBrackets)),
            ("[pg]:5432", Err(AddressError::Ipv6)),
            ("[::1:5432", Err(AddressError::Ipv6)),
            (":5432", Err(AddressError::Host)),
            ("999.1.1.1:5432", Err(AddressError::Host)),
            ("1:5432", Err(AddressError::Host)),
            ("pg 1:5432", Err(AddressError::Host)),
            ("pg-{id}:5432", Err(AddressError::Host)),
            ("/var/run/postgresql:5432", Ok("/var/run/postgresql:5432")),
            ("/Run/A:b/:5432", Ok("/Run/A:b:5432")),
            ("/var/run/postgresql", Err(AddressError::NoPort)),
            ("/:5432", Err(AddressError::Directory)),
            ("/a//b:5432", Err(AddressError::Directory)),
            ("/a/../b:5432", Err(AddressError::Directory)),
            ("/a/{id}:5432", Err(AddressError::Directory)),
            ("run/postgresql:5432", Err(AddressError::Host)),
            ("-pg:5432", Err(AddressError::Host)),
        ];
        for (text, want) in cases {
            let got = text.parse::<Address>().map(|a| a.to_string());
            assert_eq!(got, want.map(str::to_owned), "{text:?}");
        }
    }
}
