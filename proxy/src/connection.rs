//! A client's connection as pingora sees it: buffered, with a deadline for request heads, an answer
//! to "HTTP/2 or not?", and a way to close it from outside.
//!
//! pingora's own stream from an accepted socket is unbuffered (its `set_buffer` is private), costs
//! a system call per write, and offers no way to end an upgraded connection.

use futures::task::AtomicWaker;
use pingora_core::protocols::l4::stream::Stream as L4Stream;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::{SslDigest, TlsRef, TlsStream};
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, BufWriter, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// What an HTTP/2 client with prior knowledge sends first (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How much is gathered before it is written: a head and a small body in one segment.
const WRITE_BUFFER: usize = 16 * 1024;

/// Nothing of a request has come.
const IDLE: u8 = 0;
/// A part of a request's head has come.
const HEAD: u8 = 1;
/// A request is being answered, or the connection is HTTP/2, which has its own limits.
const BUSY: u8 = 2;

/// What is known of a connection outside of it.
#[derive(Debug, Default)]
pub struct ConnState {
    phase: AtomicU8,
    watched: AtomicBool,
    closed: AtomicBool,
    waker: AtomicWaker,
}

impl ConnState {
    /// A request's head is complete.
    pub fn begin(&self) {
        self.phase.store(BUSY, Ordering::Relaxed);
    }

    /// The request has been answered; the next may come.
    pub fn end(&self) {
        self.phase.store(IDLE, Ordering::Relaxed);
    }

    /// From the next read on, [`ConnState::close`] ends the connection.
    pub fn watch(&self) {
        self.watched.store(true, Ordering::SeqCst);
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.waker.wake();
    }
}

/// pingora's socket with a write buffer.
#[derive(Debug)]
pub struct Buffered(BufWriter<L4Stream>);

impl Buffered {
    /// Takes an accepted socket whose digest is already set.
    pub fn new(socket: L4Stream) -> Self {
        Self(BufWriter::with_capacity(WRITE_BUFFER, socket))
    }

    /// Takes an accepted socket as it is; pingora learns both addresses here.
    pub fn accepted(
        socket: TcpStream,
        peer: std::net::SocketAddr,
        local: std::net::SocketAddr,
    ) -> io::Result<Self> {
        use std::os::fd::AsRawFd;
        socket.set_nodelay(true)?;
        let digest = SocketDigest::from_raw_fd(socket.as_raw_fd());
        // They are empty: the digest was made a line ago.
        let _ = digest.peer_addr.set(Some(peer.into()));
        let _ = digest.local_addr.set(Some(local.into()));
        let mut stream: L4Stream = socket.into();
        stream.set_socket_digest(digest);
        Ok(Self::new(stream))
    }
}

impl AsyncRead for Buffered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(self.0.get_mut()).poll_read(cx, buf)
    }
}

impl AsyncWrite for Buffered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[async_trait::async_trait]
impl Shutdown for Buffered {
    async fn shutdown(&mut self) {
        // A connection that is gone is shut down enough.
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut self.0).await;
    }
}

impl UniqueID for Buffered {
    fn id(&self) -> UniqueIDType {
        self.0.get_ref().id()
    }
}

impl Ssl for Buffered {}
impl Peek for Buffered {}

impl GetTimingDigest for Buffered {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.0.get_ref().get_timing_digest()
    }
}

impl GetProxyDigest for Buffered {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.0.get_ref().get_proxy_digest()
    }
}

impl GetSocketDigest for Buffered {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.0.get_ref().get_socket_digest()
    }
}

/// What carries the bytes.
#[derive(Debug)]
enum Carrier {
    Plain(Box<Buffered>),
    Tls(Box<TlsStream<Buffered>>),
}

/// A client's connection, plain or with TLS.
#[derive(Debug)]
pub struct Connection {
    carrier: Carrier,
    state: Arc<ConnState>,
    /// Read ahead to tell HTTP/2 from HTTP/1, and not yet handed out.
    ahead: Vec<u8>,
    head_limit: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    /// A plain connection. `head_limit`: how long a request's head may take from its first byte.
    pub fn plain(io: Buffered, head_limit: Duration) -> Self {
        Self::new(Carrier::Plain(Box::new(io)), head_limit)
    }

    /// A connection whose TLS handshake is done.
    pub fn tls(io: TlsStream<Buffered>, head_limit: Duration) -> Self {
        let h2 = matches!(io.selected_alpn_proto(), Some(ALPN::H2));
        let connection = Self::new(Carrier::Tls(Box::new(io)), head_limit);
        if h2 {
            connection.state.begin();
        }
        connection
    }

    fn new(carrier: Carrier, head_limit: Duration) -> Self {
        Self {
            carrier,
            state: Arc::default(),
            ahead: Vec::new(),
            head_limit,
            deadline: None,
        }
    }

    /// What is known of it outside.
    pub fn state(&self) -> &Arc<ConnState> {
        &self.state
    }

    fn poll_carrier(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.carrier {
            Carrier::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Carrier::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }

    /// Ready when the head that is being read has taken too long.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.head_limit;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(limit)));
        deadline.as_mut().poll(cx)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.state.watched.load(Ordering::SeqCst) {
            this.state.waker.register(cx.waker());
            if this.state.closed.load(Ordering::SeqCst) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
        }
        if !this.ahead.is_empty() {
            let count = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..count]);
            this.ahead.drain(..count);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        match this.poll_carrier(cx, buf) {
            Poll::Ready(result) => {
                let phase = &this.state.phase;
                if phase.load(Ordering::Relaxed) == IDLE && buf.filled().len() > before {
                    phase.store(HEAD, Ordering::Relaxed);
                    this.deadline = None;
                }
                Poll::Ready(result)
            }
            Poll::Pending => {
                if this.state.phase.load(Ordering::Relaxed) == HEAD {
                    ready!(this.poll_deadline(cx));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.carrier {
            Carrier::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Carrier::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.carrier {
            Carrier::Plain(io) => Pin::new(io).poll_flush(cx),
            Carrier::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.carrier {
            Carrier::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Carrier::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.carrier {
            Carrier::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Carrier::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.carrier {
            Carrier::Plain(io) => io.is_write_vectored(),
            Carrier::Tls(io) => io.is_write_vectored(),
        }
    }
}

#[async_trait::async_trait]
impl Shutdown for Connection {
    async fn shutdown(&mut self) {
        match &mut self.carrier {
            Carrier::Plain(io) => Shutdown::shutdown(&mut **io).await,
            Carrier::Tls(io) => Shutdown::shutdown(&mut **io).await,
        }
    }
}

#[async_trait::async_trait]
impl Peek for Connection {
    /// Reads only as far as the bytes agree with an HTTP/2 preface: a short HTTP/1 request must not
    /// wait for bytes that never come. Where they disagree, `buf` differs from the preface.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        let mut ahead = Vec::with_capacity(buf.len());
        loop {
            let wanted = buf.len() - ahead.len();
            let count = (&mut *self)
                .take(wanted as u64)
                .read_buf(&mut ahead)
                .await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let agrees = PREFACE.starts_with(&ahead);
            if agrees && ahead.len() < buf.len() {
                continue;
            }
            if agrees {
                self.state.begin();
            }
            buf.fill(0);
            buf[..ahead.len()].copy_from_slice(&ahead);
            self.ahead = ahead;
            return Ok(true);
        }
    }
}

impl UniqueID for Connection {
    fn id(&self) -> UniqueIDType {
        match &self.carrier {
            Carrier::Plain(io) => io.id(),
            Carrier::Tls(io) => io.id(),
        }
    }
}

impl Ssl for Connection {
    fn get_ssl(&self) -> Option<&TlsRef> {
        match &self.carrier {
            Carrier::Plain(_) => None,
            Carrier::Tls(io) => io.get_ssl(),
        }
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        match &self.carrier {
            Carrier::Plain(_) => None,
            Carrier::Tls(io) => io.get_ssl_digest(),
        }
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        match &self.carrier {
            Carrier::Plain(_) => None,
            Carrier::Tls(io) => io.selected_alpn_proto(),
        }
    }
}

impl GetTimingDigest for Connection {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        match &self.carrier {
            Carrier::Plain(io) => io.get_timing_digest(),
            Carrier::Tls(io) => io.get_timing_digest(),
        }
    }
}

impl GetProxyDigest for Connection {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        match &self.carrier {
            Carrier::Plain(io) => io.get_proxy_digest(),
            Carrier::Tls(io) => io.get_proxy_digest(),
        }
    }
}

impl GetSocketDigest for Connection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        match &self.carrier {
            Carrier::Plain(io) => io.get_socket_digest(),
            Carrier::Tls(io) => io.get_socket_digest(),
        }
    }
}
