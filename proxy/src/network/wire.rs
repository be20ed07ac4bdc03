//! What a client's bytes come over.

use crate::buffered::Buffered;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// Carries bytes both ways, and can be broken off.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {
    /// Whoever is at the other end shall see that it broke off, and not a regular end.
    fn abort(&self);
    /// Has bytes read again that were read.
    fn give_back(&mut self, bytes: Vec<u8>);
    /// Whether the other side has broken it off. While a client waits nobody reads from it.
    fn is_gone(&self) -> bool;
}

/// A socket, and what was read ahead of it.
pub struct Ahead {
    socket: TcpStream,
    ahead: Vec<u8>,
}

impl Ahead {
    /// A socket of which `ahead` was read.
    pub fn new(socket: TcpStream, ahead: Vec<u8>) -> Self {
        Self { socket, ahead }
    }
}

impl Wire for Ahead {
    fn abort(&self) {
        // One that is gone is broken off.
        let _ = self.socket.set_zero_linger();
    }

    fn give_back(&mut self, bytes: Vec<u8>) {
        self.ahead = bytes;
    }

    fn is_gone(&self) -> bool {
        // The kernel calls it closed (`TCP_CLOSE`): it has no peer any more.
        self.socket.peer_addr().is_err()
    }
}

impl Wire for Buffered {
    /// It carries TLS, which knows a regular end from another.
    fn abort(&self) {}

    fn give_back(&mut self, bytes: Vec<u8>) {
        Self::give_back(self, bytes);
    }

    fn is_gone(&self) -> bool {
        false
    }
}

impl<W: Wire> Wire for TlsStream<W> {
    fn abort(&self) {
        self.get_ref().0.abort();
    }

    fn give_back(&mut self, bytes: Vec<u8>) {
        self.get_mut().0.give_back(bytes);
    }

    fn is_gone(&self) -> bool {
        self.get_ref().0.is_gone()
    }
}

impl AsyncRead for Ahead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.socket).poll_read(cx, buf);
        }
        let count = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..count]);
        self.ahead.drain(..count);
        if self.ahead.is_empty() {
            self.ahead = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Ahead {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
