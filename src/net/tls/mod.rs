//! TLS on both sides: an [`Acceptor`] for clients, a [`Connector`] for servers, and the stream that
//! either makes. The only place that knows the library, rustls with ring.
//!
//! Both are made of files, once at the start and again by a reload; a connection keeps what it was
//! made with. Sessions are never resumed: drivers of Postgres don't ask for it, and a resumed one
//! would outlive the certificates that a reload has taken away.

mod acceptor;
mod certificate;
mod connector;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{RootCertStore, SupportedProtocolVersion, version};

use super::{Buffer, TlsFacts};
use crate::config::TlsProtocols;
pub use acceptor::Acceptor;
pub use connector::{Attempt, Connector, ServerTls};

/// What both sides of Postgres's protocol call it (ALPN).
const PROTOCOL: &[u8] = b"postgresql";
/// Largest file of certificates or of a key that is read.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Why files don't make a TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be read, or has not in it what it should.
    #[error("{}: {why}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// For people; never of a key's contents.
        why: String,
    },
    /// Each is readable, and they don't fit together.
    #[error("{}: {source}", .path.display())]
    Unfit {
        /// The certificate's file, or the authorities'.
        path: PathBuf,
        /// Why.
        source: tokio_rustls::rustls::Error,
    },
    /// A certificate is to be verified, and there is no authority.
    #[error("the shard map wants shard {0}'s certificate verified, and names no `ca_file`")]
    NoAuthority(u16),
}

impl Error {
    /// The file that is at fault, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } | Self::Unfit { path, .. } => Some(path),
            Self::NoAuthority(_) => None,
        }
    }
}

/// A connection over TLS.
#[derive(Debug)]
pub struct TlsStream {
    inner: tokio_rustls::TlsStream<TcpStream>,
    /// Bytes at the front of the buffer being drained that are encrypted already and not all
    /// written: they leave the buffer when they have left us, so that who looks at the buffer
    /// knows that there is something to be done.
    unwritten: usize,
    /// Of pgward's certificate; empty on connections to servers.
    end_point: Arc<[u8]>,
}

impl TlsStream {
    fn new(inner: tokio_rustls::TlsStream<TcpStream>, end_point: Arc<[u8]>) -> Box<Self> {
        Box::new(Self { inner, unwritten: 0, end_point })
    }

    /// The socket below.
    pub(super) fn tcp(&self) -> &TcpStream {
        self.inner.get_ref().0
    }

    /// As a client came in.
    pub(super) fn facts(&self) -> TlsFacts {
        let certificates = self.inner.get_ref().1.peer_certificates();
        TlsFacts {
            client_certificate: certificates
                .and_then(|chain| certificate::names(chain.first()?.as_ref())),
            server_end_point: self.end_point.to_vec(),
        }
    }

    /// What a login to this server may be bound to; `None` where its certificate has nothing.
    pub(super) fn server_end_point(&self) -> Option<Vec<u8>> {
        let chain = self.inner.get_ref().1.peer_certificates()?;
        Some(certificate::end_point(chain.first()?.as_ref())).filter(|hash| !hash.is_empty())
    }

    /// As `TLSv1.3/TLS13_AES_256_GCM_SHA384`, for people.
    pub(super) fn version(&self) -> String {
        let session = self.inner.get_ref().1;
        let version = match session.protocol_version() {
            Some(tokio_rustls::rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLSv1.3",
        };
        let suite = session.negotiated_cipher_suite().map(|suite| suite.suite());
        let suite = suite.and_then(|suite| suite.as_str()).unwrap_or_default();
        format!("{version}/{suite}")
    }

    /// Writes from the front of `buffer`, always the same one, until it is empty and all is out.
    pub(super) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Buffer,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.unwritten > 0 {
                ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
                buffer.advance(std::mem::take(&mut self.unwritten));
            }
            if buffer.is_empty() {
                return Poll::Ready(Ok(()));
            }
            match ready!(Pin::new(&mut self.inner).poll_write(cx, buffer.as_slice()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.unwritten = n,
            }
        }
    }
}

impl AsyncRead for TlsStream {
    /// An end without close_notify is an end all the same: Postgres's messages have lengths, and
    /// its peers say Terminate, so nothing that was cut off can pass for whole.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.inner).poll_read(cx, buffer)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            read => Poll::Ready(read),
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl Drop for TlsStream {
    /// Says close_notify, as far as the socket takes it: else libpq reports an unexpected end where
    /// the peer should read why it was sent away.
    fn drop(&mut self) {
        // What can't be said now is not worth waiting for.
        let _ = match &mut self.inner {
            tokio_rustls::TlsStream::Server(stream) => {
                let (tcp, session) = stream.get_mut();
                session.send_close_notify();
                session.write_tls(&mut Now(tcp))
            }
            tokio_rustls::TlsStream::Client(stream) => {
                let (tcp, session) = stream.get_mut();
                session.send_close_notify();
                session.write_tls(&mut Now(tcp))
            }
        };
    }
}

/// Writes what a socket takes at once.
struct Now<'a>(&'a TcpStream);

impl Write for Now<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn versions(protocols: TlsProtocols) -> Vec<&'static SupportedProtocolVersion> {
    match protocols {
        TlsProtocols::Secure => vec![&version::TLS13, &version::TLS12],
        TlsProtocols::V12 => vec![&version::TLS12],
        TlsProtocols::V13 => vec![&version::TLS13],
    }
}

/// The bytes of a PEM file.
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let fault = |why: String| Error::File { path: path.to_owned(), why };
    let length = std::fs::metadata(path).map_err(|error| fault(error.to_string()))?.len();
    if length > FILE_BYTES_MAX {
        return Err(fault(format!("has more than {FILE_BYTES_MAX} bytes")));
    }
    std::fs::read(path).map_err(|error| fault(error.to_string()))
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let fault = |why: &str| Error::File { path: path.to_owned(), why: why.to_owned() };
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(chain) if chain.is_empty() => Err(fault("has no certificate in PEM")),
        Ok(chain) => Ok(chain),
        Err(error) => Err(fault(&error.to_string())),
    }
}

fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    // The error's own words may quote the file.
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| Error::File {
        path: path.to_owned(),
        why: "has no private key in PEM that needs no passphrase".to_owned(),
    })
}

fn authorities(path: &Path, pem: &[u8]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots.add(certificate).map_err(|source| Error::Unfit { path: path.to_owned(), source })?;
    }
    Ok(roots)
}
