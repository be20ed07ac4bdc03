//! The connections of a listener: bounded, and the bound costs nobody who works.
//!
//! Whoever may connect may open connections and leave them: without a bound they take every file
//! descriptor that the process may have, and nobody else gets in. At the bound, connections that rest
//! (nothing was asked yet, or everything was answered) are closed, those first that have rested the
//! longest, as nginx does.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio_util::sync::CancellationToken;

/// What a connection is while it does not rest, instead of the time since when.
const AT_WORK: u64 = u64::MAX;
/// How many are closed at a time: of this many one.
const CLOSED_OF: usize = 32;
/// Descriptors that are not for connections: files, sockets of our own.
const OTHERS: u64 = 128;

/// Lets this process open as many files as it may, instead of the 1024 that shells start with, and
/// says how many that is.
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "the limit of open files stays low");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How many connections there may be where each takes `descriptors`, at most `most`.
pub fn room_for(open_files: u64, descriptors: u64, most: usize) -> usize {
    let room = open_files.saturating_sub(OTHERS.min(open_files / 4)) / descriptors;
    usize::try_from(room).unwrap_or(most).clamp(1, most)
}

/// The connections of a listener.
#[derive(Debug)]
pub struct Connections {
    most: usize,
    began: Instant,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    seats: HashMap<u64, Arc<Seat>>,
}

#[derive(Debug)]
struct Seat {
    /// Milliseconds after the beginning, or [`AT_WORK`].
    rests_since: AtomicU64,
    leave: CancellationToken,
}

/// One connection: it counts while this lives.
#[derive(Debug)]
pub struct Connection {
    all: Arc<Connections>,
    number: u64,
    seat: Arc<Seat>,
}

impl Connections {
    /// At most that many.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            began: Instant::now(),
            open: Mutex::default(),
        })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(AT_WORK - 1)
    }

    /// One more, that rests; none while there is no room and every other one works.
    pub fn enter(self: &Arc<Self>) -> Option<Connection> {
        let mut open = self.open();
        if open.seats.len() >= self.most && !open.make_room() {
            return None;
        }
        let number = open.next;
        open.next += 1;
        let seat = Arc::new(Seat {
            rests_since: AtomicU64::new(self.now()),
            leave: CancellationToken::new(),
        });
        open.seats.insert(number, Arc::clone(&seat));
        Some(Connection {
            all: Arc::clone(self),
            number,
            seat,
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.open().seats.len()
    }
}

impl Open {
    /// Has those leave that have rested the longest; whether any could.
    fn make_room(&mut self) -> bool {
        let mut resting: Vec<(u64, u64)> = self
            .seats
            .iter()
            .map(|(number, seat)| (seat.rests_since.load(Ordering::Relaxed), *number))
            .filter(|(since, _)| *since != AT_WORK)
            .collect();
        if resting.is_empty() {
            return false;
        }
        let leaving = (self.seats.len() / CLOSED_OF).clamp(1, resting.len());
        resting.select_nth_unstable(leaving - 1);
        for (_, number) in &resting[..leaving] {
            if let Some(seat) = self.seats.remove(number) {
                seat.leave.cancel();
            }
        }
        tracing::debug!(leaving, "too many connections: closing idle ones");
        true
    }
}

impl Connection {
    /// Something was asked: it is not closed before it rests again.
    pub fn works(&self) {
        self.seat.rests_since.store(AT_WORK, Ordering::Relaxed);
    }

    /// Everything was answered.
    pub fn rests(&self) {
        self.seat
            .rests_since
            .store(self.all.now(), Ordering::Relaxed);
    }

    /// Done when it is to leave, for others to have room.
    pub async fn told_to_leave(&self) {
        self.seat.leave.cancelled().await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.open().seats.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(connection: &Connection) -> bool {
        connection.seat.leave.is_cancelled()
    }

    #[test]
    fn the_one_that_rests_the_longest_makes_room() {
        let all = Connections::new(3);
        let [first, second, third] = [(); 3].map(|()| all.enter().expect("room"));
        first.works();
        let fourth = all.enter().expect("room is made");
        assert!(!told(&first) && told(&second) && !told(&third));
        assert_eq!(all.count(), 3);
        third.works();
        fourth.works();
        assert!(all.enter().is_none(), "all work");
        first.rests();
        assert!(all.enter().is_some() && told(&first));
        drop(third);
        assert!(all.enter().is_some());
    }

    #[test]
    fn room_is_left_for_other_files() {
        assert_eq!(room_for(1024, 2, 50_000), 448);
        assert_eq!(room_for(64, 2, 50_000), 24);
        assert_eq!(room_for(1 << 20, 1, 4096), 4096);
        assert_eq!(room_for(u64::MAX, 1, 4096), 4096);
    }
}
