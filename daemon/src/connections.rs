//! The connections of listeners: bounded, and the bound costs nobody who works.
//!
//! Whoever may connect may open connections and leave them: without a bound they take every file
//! descriptor that the process may have, and nobody else gets in. At the bound, connections that rest
//! (nothing was asked yet, or everything was answered) are closed, those first that have rested the
//! longest, as nginx does.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::cmp::Reverse;
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

/// What is asked of a connection when there is no room.
pub trait Member {
    /// How long it has rested, in a unit that is the same for all; none while it works.
    fn rested(&self) -> Option<u64>;

    /// Ends it, unless it works by now: then as soon as it rests.
    fn leave(&self);
}

/// The connections of one or several listeners.
#[derive(Debug)]
pub struct Connections<M = Seat> {
    most: usize,
    open: Mutex<Open<M>>,
}

#[derive(Debug)]
struct Open<M> {
    next: u64,
    /// And whether each was told to leave.
    members: HashMap<u64, (Arc<M>, bool)>,
    /// How many were not told to leave.
    staying: usize,
}

/// A member for which the time is kept.
#[derive(Debug)]
pub struct Seat {
    began: Instant,
    /// Milliseconds after the beginning, or [`AT_WORK`].
    rests_since: AtomicU64,
    leave: CancellationToken,
}

/// One connection: it counts while this lives.
#[derive(Debug)]
pub struct Connection<M: Member = Seat> {
    all: Arc<Connections<M>>,
    number: u64,
    member: Arc<M>,
}

impl Connections {
    /// One more, that rests; none while there is no room and every other one works.
    pub fn enter(self: &Arc<Self>) -> Option<Connection> {
        self.enter_as(&Arc::new(Seat {
            began: Instant::now(),
            rests_since: AtomicU64::new(0),
            leave: CancellationToken::new(),
        }))
    }
}

impl<M: Member> Connections<M> {
    /// At most that many.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            open: Mutex::new(Open {
                next: 0,
                members: HashMap::new(),
                staying: 0,
            }),
        })
    }

    fn open(&self) -> MutexGuard<'_, Open<M>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `member` as one more; none while there is no room and every other one works.
    pub fn enter_as(self: &Arc<Self>, member: &Arc<M>) -> Option<Connection<M>> {
        let mut open = self.open();
        if open.staying >= self.most && !open.make_room() {
            return None;
        }
        let number = open.next;
        open.next += 1;
        open.staying += 1;
        open.members.insert(number, (Arc::clone(member), false));
        Some(Connection {
            all: Arc::clone(self),
            number,
            member: Arc::clone(member),
        })
    }

    /// Has those leave that have rested the longest; whether any could.
    pub fn make_room(&self) -> bool {
        self.open().make_room()
    }

    /// How many there are that were not told to leave.
    pub fn count(&self) -> usize {
        self.open().staying
    }

    /// Does something with all of them.
    pub fn each(&self, act: impl Fn(&M)) {
        for (member, _) in self.open().members.values() {
            act(member);
        }
    }
}

impl<M: Member> Open<M> {
    fn make_room(&mut self) -> bool {
        let mut resting: Vec<(Reverse<u64>, u64)> = self
            .members
            .iter()
            .filter(|(_, (_, leaves))| !leaves)
            .filter_map(|(number, (member, _))| Some((Reverse(member.rested()?), *number)))
            .collect();
        if resting.is_empty() {
            return false;
        }
        let leaving = (self.staying / CLOSED_OF).clamp(1, resting.len());
        resting.select_nth_unstable(leaving - 1);
        for (_, number) in &resting[..leaving] {
            if let Some((member, leaves)) = self.members.get_mut(number) {
                *leaves = true;
                self.staying -= 1;
                member.leave();
            }
        }
        tracing::debug!(leaving, "too many connections: closing idle ones");
        true
    }
}

impl Seat {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(AT_WORK - 1)
    }
}

impl Member for Seat {
    fn rested(&self) -> Option<u64> {
        let since = self.rests_since.load(Ordering::Relaxed);
        (since != AT_WORK).then(|| self.now().saturating_sub(since))
    }

    fn leave(&self) {
        self.leave.cancel();
    }
}

impl Connection {
    /// Something was asked: it is not closed before it rests again.
    pub fn works(&self) {
        self.member.rests_since.store(AT_WORK, Ordering::Relaxed);
    }

    /// Everything was answered.
    pub fn rests(&self) {
        let now = self.member.now();
        self.member.rests_since.store(now, Ordering::Relaxed);
    }

    /// Done when it is to leave, for others to have room.
    pub async fn told_to_leave(&self) {
        self.member.leave.cancelled().await;
    }
}

impl<M: Member> Connection<M> {
    /// As what it entered.
    pub fn member(&self) -> &Arc<M> {
        &self.member
    }
}

impl<M: Member> Drop for Connection<M> {
    fn drop(&mut self) {
        let mut open = self.all.open();
        if let Some((_, false)) = open.members.remove(&self.number) {
            open.staying -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(connection: &Connection) -> bool {
        connection.member.leave.is_cancelled()
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
        drop((first, second));
        assert_eq!(all.count(), 1, "who was told to leave counts no more");
    }

    #[test]
    fn room_is_left_for_other_files() {
        assert_eq!(room_for(1024, 2, 50_000), 448);
        assert_eq!(room_for(64, 2, 50_000), 24);
        assert_eq!(room_for(1 << 20, 1, 4096), 4096);
        assert_eq!(room_for(u64::MAX, 1, 4096), 4096);
    }
}
