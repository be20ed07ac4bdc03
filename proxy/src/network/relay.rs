//! Bytes both ways between a client and an instance. The end of one direction is passed on and the other one goes
//! on; what one side does not take is not read from the other. A connection that rests has no buffer.

use futures::ready;
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How much is read at once, in bytes: as much as waits in memory of one direction at most.
const PIECE: usize = 64 * 1024;

thread_local! {
    /// What is read before it is known how much that is.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIECE].into());
}

/// How a connection ended.
#[derive(Debug)]
pub enum End {
    /// Both sides said that they had nothing more.
    Whole,
    /// Its client broke it off.
    Client,
    /// The instance broke it off, for this reason.
    App(io::Error),
    /// Nothing came for too long.
    Silent,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// From the client.
    App,
    /// From the instance.
    Client,
}

/// One direction.
#[derive(Default)]
struct Pump {
    /// Read, and not taken yet by the other side, from there on.
    rest: Vec<u8>,
    from: usize,
    unflushed: bool,
    /// Nothing more comes.
    ended: bool,
    /// That has been passed on.
    done: bool,
}

/// Whose fault it is that a direction failed.
enum Fault {
    Reading(io::Error),
    Writing(io::Error),
}

impl Pump {
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        mut note: impl FnMut(usize),
    ) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while !self.done {
            while self.from < self.rest.len() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.rest[self.from..]));
                self.from += some(written).map_err(Fault::Writing)?;
                self.unflushed = true;
            }
            if !self.rest.is_empty() {
                self.rest = Vec::new();
                self.from = 0;
            }
            if self.ended {
                ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Fault::Writing)?;
                // One that is gone needs no end.
                let _ = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                self.done = true;
                break;
            }
            let read = SCRATCH.with_borrow_mut(|scratch| {
                let mut buf = ReadBuf::new(scratch);
                ready!(Pin::new(&mut *from).poll_read(cx, &mut buf)).map_err(Fault::Reading)?;
                let filled = buf.filled();
                note(filled.len());
                if filled.is_empty() {
                    self.ended = true;
                    return Poll::Ready(Ok(()));
                }
                self.unflushed = true;
                let written = match Pin::new(&mut *to).poll_write(cx, filled) {
                    Poll::Ready(written) => some(written).map_err(Fault::Writing)?,
                    Poll::Pending => 0,
                };
                self.rest.extend_from_slice(&filled[written..]);
                Poll::Ready(Ok(()))
            });
            match read {
                Poll::Ready(read) => read?,
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Fault::Writing)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn some(written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        other => other,
    }
}

/// Both directions, and how long nothing has come.
pub struct Relay {
    up: Pump,
    down: Pump,
    last: Instant,
    idle: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Relay {
    /// One that ends when nothing came for `idle`.
    pub fn new(idle: Duration) -> Self {
        Self {
            up: Pump::default(),
            down: Pump::default(),
            last: Instant::now(),
            idle,
            timer: Box::pin(tokio::time::sleep(idle)),
        }
    }

    /// Carries on; `note` is told how many bytes were read, and which way they go.
    pub fn poll<C, A>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        app: &mut A,
        mut note: impl FnMut(To, usize),
    ) -> Poll<End>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        A: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { up, down, last, .. } = self;
        let mut came = |to, count| {
            *last = Instant::now();
            note(to, count);
        };
        let to_app = up.poll(cx, client, app, |count| came(To::App, count));
        let to_client = down.poll(cx, app, client, |count| came(To::Client, count));
        match (to_app, to_client) {
            (Poll::Ready(Err(Fault::Reading(_))), _) | (_, Poll::Ready(Err(Fault::Writing(_)))) => {
                return Poll::Ready(End::Client);
            }
            (Poll::Ready(Err(Fault::Writing(why))), _)
            | (_, Poll::Ready(Err(Fault::Reading(why)))) => return Poll::Ready(End::App(why)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(End::Whole),
            _ => {}
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let until = self.last + self.idle;
            if Instant::now() >= until {
                return Poll::Ready(End::Silent);
            }
            self.timer.as_mut().reset(until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    fn carried(
        idle: Duration,
    ) -> (
        impl Future<Output = End>,
        tokio::io::DuplexStream,
        tokio::io::DuplexStream,
    ) {
        let (client, mut ours) = duplex(1024);
        let (app, mut theirs) = duplex(1024);
        let mut relay = Relay::new(idle);
        let future =
            async move { poll_fn(|cx| relay.poll(cx, &mut ours, &mut theirs, |_, _| {})).await };
        (future, client, app)
    }

    #[tokio::test]
    async fn the_end_of_one_direction_is_passed_on_and_the_other_goes_on() {
        let (relay, mut client, mut app) = carried(Duration::from_mins(1));
        let relay = tokio::spawn(relay);
        client.write_all(b"question").await.expect("sent");
        client.shutdown().await.expect("its end");
        let mut asked = String::new();
        app.read_to_string(&mut asked).await.expect("all of it");
        assert_eq!(asked, "question");
        let long = vec![7; 300_000];
        let (sent, heard) = tokio::join!(
            async {
                app.write_all(&long).await.expect("sent");
                app.shutdown().await.expect("its end");
            },
            async {
                let mut heard = Vec::new();
                client.read_to_end(&mut heard).await.expect("all of it");
                heard
            }
        );
        let () = sent;
        assert_eq!(heard, long);
        assert!(matches!(relay.await.expect("it ends"), End::Whole));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_silent_for_too_long_ends_and_what_speaks_now_and_then_does_not() {
        let (relay, mut client, mut app) = carried(Duration::from_secs(10));
        let relay = tokio::spawn(relay);
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(9)).await;
            client.write_all(b"x").await.expect("sent");
            app.read_u8().await.expect("carried");
        }
        assert!(!relay.is_finished());
        let begun = Instant::now();
        assert!(matches!(relay.await.expect("it ends"), End::Silent));
        assert_eq!(begun.elapsed().as_secs(), 10);
    }
}
