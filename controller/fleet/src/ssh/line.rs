//! A stream that can be cut. russh's session takes a goodbye only when it has room for it, and may be
//! stuck in a write to a host that reads no more: there is no other way to end it from outside.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

/// The stream, for whoever reads and writes.
pub(super) struct Line<S> {
    stream: S,
    // One each: whoever waits in one direction is not to lose its waker to the other.
    cut_reads: Pin<Box<WaitForCancellationFutureOwned>>,
    cut_writes: Pin<Box<WaitForCancellationFutureOwned>>,
    _ended: DropGuard,
}

/// The end of it, for whoever may have to cut it.
#[derive(Clone)]
pub(super) struct Scissors {
    cut: CancellationToken,
    ended: CancellationToken,
}

/// Makes a stream one that can be cut.
pub(super) fn cuttable<S>(stream: S) -> (Line<S>, Scissors) {
    let scissors = Scissors {
        cut: CancellationToken::new(),
        ended: CancellationToken::new(),
    };
    let line = Line {
        stream,
        cut_reads: Box::pin(scissors.cut.clone().cancelled_owned()),
        cut_writes: Box::pin(scissors.cut.clone().cancelled_owned()),
        _ended: scissors.ended.clone().drop_guard(),
    };
    (line, scissors)
}

impl Scissors {
    /// From now on all reads and writes fail, those under way too.
    pub(super) fn cut(&self) {
        self.cut.cancel();
    }

    /// Waits until nobody has the stream any more.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

fn is_cut(
    cut: &mut Pin<Box<WaitForCancellationFutureOwned>>,
    cx: &mut Context<'_>,
) -> io::Result<()> {
    match cut.as_mut().poll(cx) {
        Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
        Poll::Pending => Ok(()),
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Line<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        is_cut(&mut self.cut_reads, cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Line<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        is_cut(&mut self.cut_writes, cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        is_cut(&mut self.cut_writes, cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        is_cut(&mut self.cut_writes, cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        is_cut(&mut self.cut_writes, cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_write_that_nobody_reads_ends_when_the_line_is_cut() {
        let (near, _far) = tokio::io::duplex(16);
        let (mut line, scissors) = cuttable(near);
        let stuck = tokio::spawn(async move { line.write_all(&[0; 64]).await });
        tokio::task::yield_now().await;
        scissors.cut();
        let error = stuck.await.expect("no panic").expect_err("cut");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        scissors.ended().await;
    }

    #[tokio::test]
    async fn a_line_that_is_not_cut_carries_everything() {
        let (near, mut far) = tokio::io::duplex(16);
        let (mut line, _scissors) = cuttable(near);
        line.write_all(b"peas").await.expect("write");
        drop(line);
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.expect("read");
        assert_eq!(read, b"peas");
    }
}
