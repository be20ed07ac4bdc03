//! A worker's connections to targets that wait for the next request.

use fnv::FnvHashMap;
use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// They wait by target, and the one that has waited longest goes first: bytes that an app sends behind its answer,
/// where there should be none, have had time to come, and whoever sent them is not asked again.
pub struct Kept {
    most: usize,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    count: usize,
    by_target: FnvHashMap<u64, VecDeque<(TcpStream, Instant)>>,
}

impl Kept {
    /// At most that many.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            idle: Mutex::default(),
        }
    }

    /// One to the target with that number, that is still open and not older than `longest`.
    pub fn take(&self, target: u64, longest: Duration) -> Option<TcpStream> {
        let mut idle = self.idle();
        let Idle { count, by_target } = &mut *idle;
        let waiting = by_target.get_mut(&target)?;
        while let Some((stream, since)) = waiting.pop_front() {
            *count -= 1;
            if since.elapsed() <= longest && is_quiet(&stream) {
                return Some(stream);
            }
        }
        None
    }

    /// Keeps one for the next request.
    pub fn put(&self, target: u64, stream: TcpStream, now: Instant) {
        let mut idle = self.idle();
        if idle.count < self.most {
            idle.count += 1;
            idle.by_target
                .entry(target)
                .or_default()
                .push_back((stream, now));
        }
    }

    /// Closes those that have waited for too long, and those that the other side has closed.
    pub fn prune(&self, longest: Duration) {
        let mut idle = self.idle();
        idle.by_target.retain(|_, waiting| {
            waiting.retain(|(stream, since)| since.elapsed() <= longest && is_quiet(stream));
            !waiting.is_empty()
        });
        idle.count = idle.by_target.values().map(VecDeque::len).sum();
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it is open and silent. It costs no system call: the runtime knows whether anything came.
fn is_quiet(stream: &TcpStream) -> bool {
    let read = stream.try_read(&mut [0]);
    read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
