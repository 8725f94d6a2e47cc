//! Sockets with buffers that exist only while bytes are in them.
//!
//! A [`Stream`] is TCP, TLS over it, or a Unix socket; sessions and servers see only poll-based reads
//! into a [`Buffer`] and writes from one. TCP is the hot path: one `match`, no more, is what the
//! others cost it. A buffer takes its memory from a
//! per-thread free list when bytes come and gives it back when it is empty, so that an idle
//! client costs none (`ARCHITECTURE.md`, limits).

pub mod tls;
pub mod unix;
mod way;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::config::Listen;

use tls::{Acceptor, TlsStream};
pub use way::Way;

/// Bytes of a fresh buffer: a whole region of replies in one read.
pub const BUFFER_BYTES: usize = 16 << 10;
/// Buffers that a thread keeps for reuse.
const FREE_LIST_MAX: usize = 128;

thread_local! {
    // Per thread, not per process: no lock, and nothing in it survives its bytes.
    static FREE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// A byte queue without memory of its own while it is empty.
#[derive(Debug, Default)]
pub struct Buffer {
    /// `None` where nothing is held.
    bytes: Option<BytesMut>,
}

impl Buffer {
    /// Bytes waiting.
    #[inline]
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Nothing waiting.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// The bytes waiting.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or_default()
    }

    /// Drops `n` bytes from the front.
    #[inline]
    pub fn advance(&mut self, n: usize) {
        match &mut self.bytes {
            Some(bytes) if n < bytes.len() => bytes.advance(n),
            _ => {
                assert_eq!(n, self.len(), "more bytes dropped than are waiting");
                self.clear();
            }
        }
    }

    /// To append to.
    #[inline]
    pub fn tail(&mut self) -> &mut BytesMut {
        self.bytes.get_or_insert_with(take)
    }

    /// Appends `bytes`.
    pub fn push(&mut self, bytes: &[u8]) {
        self.tail().extend_from_slice(bytes);
    }

    /// Drops all bytes.
    #[inline]
    pub fn clear(&mut self) {
        if let Some(bytes) = self.bytes.take() {
            give_back(bytes);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Memory for a buffer.
fn take() -> BytesMut {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(BUFFER_BYTES))
}

/// Only a buffer of the usual size is kept; one that grew goes back to the allocator.
fn give_back(mut bytes: BytesMut) {
    bytes.clear();
    // One that was emptied in a single step is whole as it is.
    let is_usual = bytes.capacity() == BUFFER_BYTES
        || bytes.try_reclaim(BUFFER_BYTES) && bytes.capacity() < 2 * BUFFER_BYTES;
    if is_usual {
        FREE.with_borrow_mut(|free| {
            if free.len() < FREE_LIST_MAX {
                free.push(bytes);
            }
        });
    }
}

/// One side's connection.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Plain(TcpStream),
    /// TLS over TCP; boxed, so that the others don't carry its size.
    Tls(Box<TlsStream>),
    /// A Unix socket.
    Unix(UnixStream),
    /// An in-memory pipe (tests).
    Memory(Box<tokio::io::DuplexStream>),
}

/// How a client is connected: what rules for its login may look at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    /// Its address; `None` over a Unix socket or a pipe.
    pub peer: Option<SocketAddr>,
    /// Over TLS, with what the handshake has shown.
    pub tls: Option<TlsFacts>,
}

/// What a TLS handshake has shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFacts {
    /// Of the client's certificate, where it gave one that is trusted.
    pub client_certificate: Option<CertificateNames>,
    /// Hash of pgward's own certificate (RFC 5929, `tls-server-end-point`), for channel binding.
    pub server_end_point: Vec<u8>,
}

/// Names in a certificate that its authority vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CertificateNames {
    /// The subject's common name.
    pub common_name: Option<String>,
    /// The whole subject, as RFC 2253 writes it.
    pub distinguished_name: String,
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self::Plain(stream)
    }
}

/// How a dead host at the other end is noticed; a zero leaves the system's own value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keepalive {
    /// Probes are sent at all.
    pub is_on: bool,
    /// Silence before the first probe, in seconds.
    pub idle_s: u32,
    /// Between probes, in seconds.
    pub interval_s: u32,
    /// Probes without an answer that end the connection.
    pub count: u32,
    /// Milliseconds that sent bytes may stay without an answer.
    pub user_timeout_ms: u32,
}

impl From<&Listen> for Keepalive {
    fn from(listen: &Listen) -> Self {
        Self {
            is_on: listen.tcp_keepalive,
            idle_s: listen.tcp_keepidle,
            interval_s: listen.tcp_keepintvl,
            count: listen.tcp_keepcnt,
            user_timeout_ms: listen.tcp_user_timeout,
        }
    }
}

/// Servers that vanish are noticed within a minute.
const OF_SERVERS: Keepalive =
    Keepalive { is_on: true, idle_s: 30, interval_s: 10, count: 3, user_timeout_ms: 0 };

/// Sends what is written at once, and has the system look whether the other end's host is there: a
/// client's place and its server would else never come back.
pub fn tune(tcp: &TcpStream, keepalive: Keepalive) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = socket2::SockRef::from(tcp);
    if keepalive.user_timeout_ms > 0 {
        #[cfg(target_os = "linux")]
        socket
            .set_tcp_user_timeout(Some(Duration::from_millis(keepalive.user_timeout_ms.into())))?;
    }
    if !keepalive.is_on {
        return Ok(());
    }
    let seconds = |n: u32| Duration::from_secs(n.into());
    let mut probes = socket2::TcpKeepalive::new();
    if keepalive.idle_s > 0 {
        probes = probes.with_time(seconds(keepalive.idle_s));
    }
    if keepalive.interval_s > 0 {
        probes = probes.with_interval(seconds(keepalive.interval_s));
    }
    if keepalive.count > 0 {
        probes = probes.with_retries(keepalive.count);
    }
    socket.set_keepalive(true)?;
    socket.set_tcp_keepalive(&probes)
}

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Self {
        Self::Unix(stream)
    }
}

impl Stream {
    /// A stream that has ended: what is left where a stream was taken out.
    pub fn closed() -> Self {
        Self::Memory(Box::new(tokio::io::duplex(1).0))
    }

    /// The peer's address; `None` for a Unix socket and a pipe.
    pub fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Plain(tcp) => tcp.peer_addr().ok(),
            Self::Tls(tls) => tls.tcp().peer_addr().ok(),
            Self::Unix(_) | Self::Memory(_) => None,
        }
    }

    /// How its other end is connected.
    pub fn origin(&self) -> Origin {
        let tls = match self {
            Self::Tls(tls) => Some(tls.facts()),
            Self::Plain(_) | Self::Unix(_) | Self::Memory(_) => None,
        };
        Origin { peer: self.peer(), tls }
    }

    /// It is encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// It crosses no network.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Unix(_) | Self::Memory(_))
    }

    /// Protocol and cipher, as `TLSv1.3/TLS13_AES_256_GCM_SHA384`; `None` without TLS.
    pub fn tls_version(&self) -> Option<String> {
        match self {
            Self::Tls(tls) => Some(tls.version()),
            Self::Plain(_) | Self::Unix(_) | Self::Memory(_) => None,
        }
    }

    /// What pgward's own login to the server at the other end may be bound to (RFC 5929,
    /// `tls-server-end-point`); `None` without TLS, or with a certificate that has no such thing.
    pub fn server_end_point(&self) -> Option<Vec<u8>> {
        match self {
            Self::Tls(tls) => tls.server_end_point(),
            Self::Plain(_) | Self::Unix(_) | Self::Memory(_) => None,
        }
    }

    /// Takes a client's TLS handshake, of which `begun` has been read; see
    /// [`Acceptor`]. Only TCP can: elsewhere nobody is offered it.
    pub async fn accept_tls(
        self,
        acceptor: &Acceptor,
        begun: &[u8],
        is_direct: bool,
    ) -> io::Result<Self> {
        match self {
            Self::Plain(tcp) => acceptor.accept(tcp, begun, is_direct).await.map(Self::Tls),
            Self::Tls(_) | Self::Unix(_) | Self::Memory(_) => {
                Err(io::ErrorKind::Unsupported.into())
            }
        }
    }

    /// Reads once into `buffer`; `Ok(0)` is the peer's end. Keeps memory only when bytes are there.
    pub fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Buffer,
    ) -> Poll<io::Result<usize>> {
        self.poll_fill_at_most(cx, buffer, usize::MAX)
    }

    /// As [`Self::poll_fill`], and takes no more than `max` bytes off the socket.
    ///
    /// Memory is at hand before it is known whether there are bytes, and goes back where there are
    /// none: asking the socket first would ask it twice, and is done only before a buffer grows. `try_read` would not do either: unlike
    /// `poll_read` it doesn't take a read that leaves room as the socket's end, and costs a system
    /// call more to find that out.
    pub fn poll_fill_at_most(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Buffer,
        max: usize,
    ) -> Poll<io::Result<usize>> {
        let tail = buffer.tail();
        if tail.capacity() - tail.len() < BUFFER_BYTES / 4 {
            match self {
                Self::Plain(tcp) => ready!(tcp.poll_read_ready(cx))?,
                Self::Unix(unix) => ready!(unix.poll_read_ready(cx))?,
                Self::Tls(_) | Self::Memory(_) => {}
            }
            tail.reserve(BUFFER_BYTES);
        }
        let polled = match self {
            Self::Plain(tcp) => poll_read(Pin::new(tcp), cx, tail, max),
            Self::Tls(tls) => poll_read(Pin::new(&mut **tls), cx, tail, max),
            Self::Unix(unix) => poll_read(Pin::new(unix), cx, tail, max),
            Self::Memory(pipe) => poll_read(Pin::new(pipe), cx, tail, max),
        };
        if buffer.is_empty() {
            buffer.clear();
        }
        polled
    }

    /// Writes from the front of `buffer` until it is empty. A stream drains one buffer, to whose end
    /// alone bytes may be added between calls: over TLS its front may be encrypted already.
    pub fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Buffer,
    ) -> Poll<io::Result<()>> {
        while !buffer.is_empty() {
            let bytes = buffer.as_slice();
            let n = ready!(match self {
                Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
                Self::Tls(tls) => return tls.poll_drain(cx, buffer),
                Self::Unix(unix) => Pin::new(unix).poll_write(cx, bytes),
                Self::Memory(pipe) => Pin::new(pipe).poll_write(cx, bytes),
            })?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            buffer.advance(n);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once; `Ok(0)` is the peer's end. Cancel safety: bytes are in `buffer` or not read.
    pub async fn fill(&mut self, buffer: &mut Buffer) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.poll_fill(cx, buffer)).await
    }

    /// As [`Self::fill`], and takes no more than `max` bytes off the socket.
    pub async fn fill_at_most(&mut self, buffer: &mut Buffer, max: usize) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.poll_fill_at_most(cx, buffer, max)).await
    }

    /// Writes all of `buffer`. Cancel safety: what was not written is still in `buffer`.
    pub async fn drain(&mut self, buffer: &mut Buffer) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_drain(cx, buffer)).await
    }
}

/// For libraries that want to read and write by themselves, without a [`Buffer`].
impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_read(cx, buffer),
            Self::Unix(unix) => Pin::new(unix).poll_read(cx, buffer),
            Self::Memory(pipe) => Pin::new(pipe).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_write(cx, bytes),
            Self::Unix(unix) => Pin::new(unix).poll_write(cx, bytes),
            Self::Memory(pipe) => Pin::new(pipe).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_flush(cx),
            Self::Unix(unix) => Pin::new(unix).poll_flush(cx),
            Self::Memory(pipe) => Pin::new(pipe).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
            Self::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
            Self::Memory(pipe) => Pin::new(pipe).poll_shutdown(cx),
        }
    }
}

fn poll_read(
    stream: Pin<&mut impl AsyncRead>,
    cx: &mut Context<'_>,
    tail: &mut BytesMut,
    max: usize,
) -> Poll<io::Result<usize>> {
    let spare = tail.spare_capacity_mut();
    let len = spare.len().min(max);
    let mut read = ReadBuf::uninit(&mut spare[..len]);
    ready!(stream.poll_read(cx, &mut read))?;
    let n = read.filled().len();
    // SAFETY: `ReadBuf` says that its first `n` bytes, the spare capacity's, are initialised.
    #[allow(unsafe_code)]
    unsafe {
        tail.set_len(tail.len() + n);
    }
    Poll::Ready(Ok(n))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn free() -> usize {
        FREE.with_borrow(Vec::len)
    }

    #[test]
    fn an_empty_buffer_holds_no_memory() {
        FREE.take();
        let mut buffer = Buffer::default();
        for steps in [&[9][..], &[2, 3, 4], &[0, 9]] {
            buffer.push(b"123456789");
            assert_eq!(free(), 0);
            for step in steps {
                assert!(buffer.bytes.is_some());
                buffer.advance(*step);
            }
            assert!(buffer.bytes.is_none() && buffer.is_empty());
            // Whole again, however it was emptied.
            assert_eq!(FREE.with_borrow(|free| free[0].capacity()), BUFFER_BYTES);
        }
        buffer.push(&[0; 2 * BUFFER_BYTES]);
        buffer.advance(2 * BUFFER_BYTES);
        assert_eq!(free(), 0, "one that grew is kept");
    }

    #[test]
    #[should_panic(expected = "more bytes dropped than are waiting")]
    fn no_more_is_dropped_than_there_is() {
        let mut buffer = Buffer::default();
        buffer.push(b"1");
        buffer.advance(2);
    }

    #[tokio::test]
    async fn a_stream_with_nothing_to_read_holds_no_memory() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut near = Stream::from(listener.accept().await.unwrap().0);
        let mut buffer = Buffer::default();
        for _ in 0..3 {
            let pending = tokio::time::timeout(Duration::from_millis(5), near.fill(&mut buffer));
            assert!(pending.await.is_err());
            assert!(buffer.bytes.is_none());
            tokio::io::AsyncWriteExt::write_all(&mut far, b"1234").await.unwrap();
            assert_eq!(near.fill_at_most(&mut buffer, 3).await.unwrap(), 3);
            assert_eq!(near.fill(&mut buffer).await.unwrap(), 1);
            assert_eq!(buffer.as_slice(), b"1234");
            buffer.advance(4);
        }
        drop(far);
        assert_eq!(near.fill(&mut buffer).await.unwrap(), 0);
        assert!(buffer.bytes.is_none());
    }
}
