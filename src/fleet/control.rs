//! The socket of a control connection: pgward's own stream, with the TLS that pools use, under
//! tokio-postgres.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config};

use super::monitor::{Carrier, Error};
use crate::net::Stream;
use crate::net::tls::Connector;
use crate::shard_map::Address;

/// A connected stream, over TLS or not.
#[derive(Debug)]
pub struct Control(Stream);

/// Connects to `address` as `tls` says and logs in as `config` does. The caller bounds the time.
pub(super) async fn connect(
    address: &Address,
    tls: &Connector,
    mut config: Config,
) -> Result<(Client, Carrier), Error> {
    // TLS has been agreed on when the library comes in: it is told to begin with it.
    config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
    let mut outcome = Err(Error::Unexpected);
    for attempt in tls.attempts() {
        let connected = Stream::connect(address, tls, *attempt).await;
        let (stream, _) = connected.map_err(|error| Error::Broken(error.to_string()))?;
        let logged_in = config.connect_raw(Control(stream), AsItIs).await;
        outcome = logged_in.map_err(Error::from);
        let is_refused = matches!(&outcome, Err(Error::Refused(state))
            if *state == SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
        if !is_refused {
            break;
        }
    }
    outcome
}

/// Takes the stream as it is.
struct AsItIs;

impl TlsConnect<Control> for AsItIs {
    type Stream = Control;
    type Error = Infallible;
    type Future = Ready<Result<Control, Infallible>>;

    fn connect(self, stream: Control) -> Self::Future {
        ready(Ok(stream))
    }
}

impl TlsStream for Control {
    fn channel_binding(&self) -> ChannelBinding {
        let hash = self.0.server_end_point();
        hash.map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

impl AsyncRead for Control {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Control {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
