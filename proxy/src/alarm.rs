//! Cuts a connection to an app when a request's time is up, or when it may not be used again: pingora has limits for
//! silence alone, and asks nobody what it keeps.

#![expect(
    unsafe_code,
    reason = "pingora tells the descriptor of a connection by its number"
)]

use std::net::Shutdown;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Cuts the connection with that number, which has to be open now: nobody gets it after the request that has it. What has
/// come of it can still be read.
pub fn cut(number: RawFd) {
    if let Some(socket) = own(number) {
        // One that is closed needs no cut.
        let _ = socket.shutdown(Shutdown::Both);
    }
}

fn own(number: RawFd) -> Option<std::net::TcpStream> {
    // SAFETY: it is borrowed as long as this call lasts, and its owner is the caller's.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    borrowed.try_clone_to_owned().ok().map(Into::into)
}

/// A time at which a connection is cut, unless its value is gone by then.
pub struct Alarm {
    socket: Arc<std::net::TcpStream>,
    rung: Arc<AtomicBool>,
    _timer: AbortOnDropHandle<()>,
}

impl Alarm {
    /// Of the connection with that number, which has to be open now; none where no descriptor is left.
    pub fn set(number: RawFd, at: Instant) -> Option<Self> {
        // A descriptor of its own: the number may be somebody else's once the connection is closed.
        Some(Self::ring(Arc::new(own(number)?), at))
    }

    /// The same, at another time.
    pub fn moved(self, at: Instant) -> Self {
        Self::ring(self.socket.clone(), at)
    }

    fn ring(socket: Arc<std::net::TcpStream>, at: Instant) -> Self {
        let rung = Arc::new(AtomicBool::new(false));
        let (cut, tells) = (socket.clone(), rung.clone());
        let timer = tokio::spawn(async move {
            tokio::time::sleep_until(at.into()).await;
            tells.store(true, SeqCst);
            // One that is closed needs no cut.
            let _ = cut.shutdown(Shutdown::Both);
        });
        Self {
            socket,
            rung,
            _timer: AbortOnDropHandle::new(timer),
        }
    }

    /// Whether it has cut the connection.
    pub fn has_rung(&self) -> bool {
        self.rung.load(SeqCst)
    }
}
