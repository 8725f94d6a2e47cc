//! To a server, and to the very same one again.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::{TcpStream, UnixStream};

use super::Stream;
use super::tls::{Attempt, Connector};
use crate::shard_map::Address;

/// The way that a connection to a server went. A cancel request goes the same: to the very host, of
/// those that a name stands for, and over TLS if the connection has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    place: Place,
    /// What the map calls the host: its certificate must, too.
    host: String,
    /// `Plain` or `Encrypted`: whichever it became.
    attempt: Attempt,
    tls: Connector,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Way {
    /// In the clear to `address` (tests).
    pub fn plain(address: SocketAddr) -> Self {
        let host = address.ip().to_string();
        let tls = Connector::plain();
        Self { place: Place::Tcp(address), host, attempt: Attempt::Plain, tls }
    }
}

impl Stream {
    /// Connects to `address` as `tls` and `attempt` say, over TCP with keep-alive probes, which tell
    /// of a dead host within a minute where nothing is being sent. Unix sockets have no TLS,
    /// whatever is asked for, as with libpq.
    pub async fn connect(
        address: &Address,
        tls: &Connector,
        attempt: Attempt,
    ) -> io::Result<(Self, Arc<Way>)> {
        let host = address.host.clone();
        let (stream, place) = match address.socket_path() {
            Some(path) => (UnixStream::connect(&path).await?.into(), Place::Unix(path)),
            None => {
                let tcp = TcpStream::connect((host.as_str(), address.port)).await?;
                let peer = tcp.peer_addr()?;
                (encrypt(tcp, tls, &host, attempt).await?, Place::Tcp(peer))
            }
        };
        let attempt = if stream.is_tls() { Attempt::Encrypted } else { Attempt::Plain };
        Ok((stream, Arc::new(Way { place, host, attempt, tls: tls.clone() })))
    }

    /// Connects once more to where `way` leads.
    pub async fn connect_again(way: &Way) -> io::Result<Self> {
        match &way.place {
            Place::Unix(path) => Ok(UnixStream::connect(path).await?.into()),
            Place::Tcp(peer) => {
                let tcp = TcpStream::connect(peer).await?;
                encrypt(tcp, &way.tls, &way.host, way.attempt).await
            }
        }
    }
}

async fn encrypt(
    tcp: TcpStream,
    tls: &Connector,
    host: &str,
    attempt: Attempt,
) -> io::Result<Stream> {
    super::tune(&tcp, super::OF_SERVERS)?;
    // Boxed: a handshake is large, and most connections have none.
    let asked = Box::pin(tls.ask(tcp, host, attempt)).await?;
    Ok(asked.map_or_else(Stream::Plain, Stream::Tls))
}
