//! Sockets with buffers that exist only while bytes are in them.
//!
//! A [`Stream`] is plain TCP now and TLS or a Unix socket later; sessions and servers see only
//! poll-based reads into a [`Buffer`] and writes from one. A buffer takes its memory from a
//! per-thread free list when bytes come and gives it back when it is empty, so that an idle
//! client costs none (`ARCHITECTURE.md`, limits).

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

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
    bytes: BytesMut,
}

impl Buffer {
    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Nothing waiting.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes waiting.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Drops `n` bytes from the front.
    pub fn advance(&mut self, n: usize) {
        self.bytes.advance(n);
        if self.bytes.is_empty() {
            self.give_back();
        }
    }

    /// To append to.
    pub fn tail(&mut self) -> &mut BytesMut {
        self.ensure();
        &mut self.bytes
    }

    /// Appends `bytes`.
    pub fn push(&mut self, bytes: &[u8]) {
        self.tail().extend_from_slice(bytes);
    }

    /// Drops all bytes.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.give_back();
    }

    fn ensure(&mut self) {
        if self.bytes.capacity() == 0 {
            self.bytes = FREE
                .with_borrow_mut(Vec::pop)
                .unwrap_or_else(|| BytesMut::with_capacity(BUFFER_BYTES));
        }
    }

    /// Only a buffer of the usual size is kept; one that grew goes back to the allocator.
    fn give_back(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        if bytes.try_reclaim(BUFFER_BYTES) && bytes.capacity() < 2 * BUFFER_BYTES {
            FREE.with_borrow_mut(|free| {
                if free.len() < FREE_LIST_MAX {
                    free.push(bytes);
                }
            });
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.capacity() != 0 {
            self.give_back();
        }
    }
}

/// One side's connection.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Plain(TcpStream),
    /// An in-memory pipe (tests).
    Memory(Box<tokio::io::DuplexStream>),
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self::Plain(stream)
    }
}

impl Stream {
    /// Connects to `host`, a name or an IP address. Keep-alive probes tell of a dead host within a
    /// minute where nothing is being sent.
    pub async fn connect(host: &str, port: u16) -> io::Result<Self> {
        Self::set_up(TcpStream::connect((host, port)).await?)
    }

    /// Connects to the very host that another connection went to.
    pub async fn connect_to(peer: SocketAddr) -> io::Result<Self> {
        Self::set_up(TcpStream::connect(peer).await?)
    }

    fn set_up(tcp: TcpStream) -> io::Result<Self> {
        tcp.set_nodelay(true)?;
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10))
            .with_retries(3);
        socket2::SockRef::from(&tcp).set_tcp_keepalive(&keepalive)?;
        Ok(Self::Plain(tcp))
    }

    /// The peer's address; `None` for a pipe.
    pub fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Plain(tcp) => tcp.peer_addr().ok(),
            Self::Memory(_) => None,
        }
    }

    /// Reads once into `buffer`; `Ok(0)` is the peer's end. Takes memory only when bytes are there.
    pub fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Buffer,
    ) -> Poll<io::Result<usize>> {
        self.poll_fill_at_most(cx, buffer, usize::MAX)
    }

    /// As [`Self::poll_fill`], and takes no more than `max` bytes off the socket.
    fn poll_fill_at_most(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Buffer,
        max: usize,
    ) -> Poll<io::Result<usize>> {
        if let Self::Plain(tcp) = self {
            ready!(tcp.poll_read_ready(cx))?;
        }
        let was_empty = buffer.is_empty();
        let tail = buffer.tail();
        if tail.capacity() - tail.len() < BUFFER_BYTES / 4 {
            tail.reserve(BUFFER_BYTES);
        }
        let polled = match self {
            Self::Plain(tcp) => poll_read(Pin::new(tcp), cx, tail, max),
            Self::Memory(pipe) => poll_read(Pin::new(pipe), cx, tail, max),
        };
        if was_empty && buffer.is_empty() {
            buffer.give_back();
        }
        polled
    }

    /// Writes from the front of `buffer` until it is empty.
    pub fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Buffer,
    ) -> Poll<io::Result<()>> {
        while !buffer.is_empty() {
            let bytes = buffer.as_slice();
            let n = ready!(match self {
                Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
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
