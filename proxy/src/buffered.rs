//! A client's socket with a write buffer, which there is only while something is in it: a connection that rests costs
//! none. pingora's own stream from an accepted socket is unbuffered (its `set_buffer` is private), which costs a system
//! call per write, and keeps account of its time.

use futures::ready;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// How much is gathered before it is written: a head and a small body in one segment.
const WRITE_BUFFER: usize = 16 * 1024;
/// How many buffers each thread keeps for that.
const KEPT_BUFFERS: usize = 64;

thread_local! {
    /// Buffers for what is written that nobody uses now.
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A client's socket.
#[derive(Debug)]
pub struct Buffered {
    socket: TcpStream,
    digest: Arc<SocketDigest>,
    since: SystemTime,
    pending: Vec<u8>,
    /// How much of that is written.
    written: usize,
    /// Read already, and to be read again first.
    ahead: Vec<u8>,
}

impl Buffered {
    /// Takes an accepted socket, whose listener has no delay; pingora learns both addresses here.
    pub fn accepted(socket: TcpStream, peer: SocketAddr, local: SocketAddr) -> Self {
        let digest = SocketDigest::from_raw_fd(socket.as_raw_fd());
        // They are empty: the digest was made a line ago.
        let _ = digest.peer_addr.set(Some(peer.into()));
        let _ = digest.local_addr.set(Some(local.into()));
        Self {
            socket,
            digest: Arc::new(digest),
            since: SystemTime::now(),
            pending: Vec::new(),
            written: 0,
            ahead: Vec::new(),
        }
    }

    /// Has bytes read again that were read.
    pub fn give_back(&mut self, bytes: Vec<u8>) {
        self.ahead = bytes;
    }

    /// Writes what is pending.
    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.pending.len() {
            let rest = &self.pending[self.written..];
            let count = ready!(Pin::new(&mut self.socket).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        if self.pending.capacity() > 0 {
            put_aside(std::mem::take(&mut self.pending));
            self.written = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes `buf` in, where there is room for it.
    fn takes_in(&mut self, buf: &[u8]) -> bool {
        let fits = self.pending.len() + buf.len() <= WRITE_BUFFER;
        if fits && !buf.is_empty() {
            if self.pending.capacity() == 0 {
                self.pending = take_buffer();
            }
            self.pending.extend_from_slice(buf);
        }
        fits
    }
}

/// A buffer of this thread, or a new one.
fn take_buffer() -> Vec<u8> {
    let kept = BUFFERS.with_borrow_mut(Vec::pop);
    kept.unwrap_or_else(|| Vec::with_capacity(WRITE_BUFFER))
}

fn put_aside(mut buffer: Vec<u8>) {
    buffer.clear();
    BUFFERS.with_borrow_mut(|kept| {
        if kept.len() < KEPT_BUFFERS {
            kept.push(buffer);
        }
    });
}

impl Drop for Buffered {
    /// A handshake that fails leaves the alert that says why in the buffer, and nobody who could flush it.
    fn drop(&mut self) {
        let mut nobody = Context::from_waker(Waker::noop());
        let _ = self.poll_pending(&mut nobody);
    }
}

impl AsyncRead for Buffered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead[..count]);
            self.ahead.drain(..count);
            if self.ahead.is_empty() {
                // A connection that rests has no buffer.
                self.ahead = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Buffered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.takes_in(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(self.poll_pending(cx))?;
        if self.takes_in(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all: usize = bufs.iter().map(|buf| buf.len()).sum();
        if self.pending.len() + all > WRITE_BUFFER {
            ready!(self.poll_pending(cx))?;
        }
        if all > WRITE_BUFFER {
            return Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        }
        for buf in bufs {
            self.takes_in(buf);
        }
        Poll::Ready(Ok(all))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[async_trait::async_trait]
impl Shutdown for Buffered {
    async fn shutdown(&mut self) {
        // A connection that is gone is shut down enough.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Buffered {
    fn id(&self) -> UniqueIDType {
        self.socket.as_raw_fd()
    }
}

impl Ssl for Buffered {}
impl Peek for Buffered {}
impl GetProxyDigest for Buffered {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetTimingDigest for Buffered {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(TimingDigest {
            established_ts: self.since,
            ..TimingDigest::default()
        })]
    }
}

impl GetSocketDigest for Buffered {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.digest.clone())
    }
}
