//! Listeners that a keeper opens because a process that serves asks for them, and holds from then on: those of
//! network environments, which come and go with tables.
//!
//! Each process has a socket for that besides the one for orders, for descriptors go along with what is said there.
//! A thread of the keeper waits at each: opening a listener needs nothing else of it.

use super::words;
use crate::listen;
use crate::network::Opened;
use crate::target::lock;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long the other side may take over a word, or its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a process asks for.
#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    /// Rises: an answer that comes too late is known by it.
    number: u64,
    /// All that it wants.
    wanted: BTreeSet<SocketAddr>,
    /// What of that it has not got.
    missing: Vec<SocketAddr>,
}

/// The answer, with the listeners in their order.
#[derive(Debug, Serialize, Deserialize)]
struct Given {
    number: u64,
    opened: Vec<SocketAddr>,
    /// Why others could not be.
    failed: Vec<(SocketAddr, String)>,
}

/// The side of the process.
pub struct Asks {
    socket: Mutex<(UnixStream, u64)>,
    nobody: AtomicBool,
}

impl Asks {
    /// By the socket that came along with the first word.
    pub fn by(socket: UnixStream) -> io::Result<Self> {
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            socket: Mutex::new((socket, 0)),
            nobody: AtomicBool::new(false),
        })
    }

    /// Whether there is no keeper at the other end that opens listeners.
    pub fn is_nobody_there(&self) -> bool {
        self.nobody.load(Relaxed)
    }

    /// Has those opened that are `missing`, and all others closed that nobody wants. Blocks.
    pub fn open(
        &self,
        wanted: &BTreeSet<SocketAddr>,
        missing: &[SocketAddr],
    ) -> io::Result<Vec<Opened>> {
        let mut held = lock(&self.socket);
        let (socket, number) = &mut *held;
        *number += 1;
        let ask = Ask {
            number: *number,
            wanted: wanted.clone(),
            missing: missing.to_vec(),
        };
        let none: [&UnixStream; 0] = [];
        let asked = words::send_first(socket, &ask, &none);
        let given = asked.and_then(|()| {
            loop {
                let (given, handed) = words::receive_first::<Given>(socket)?;
                if given.number == *number {
                    return Ok((given, handed));
                }
            }
        });
        let (given, handed) = given.inspect_err(|error| {
            let late = matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            );
            self.nobody.fetch_or(!late, Relaxed);
        })?;
        let opened = given.opened.into_iter().zip(handed);
        let opened = opened.map(|(at, fd)| (at, Ok(TcpListener::from(fd))));
        let failed = given.failed.into_iter().map(|(at, why)| (at, Err(why)));
        Ok(opened.chain(failed).collect())
    }
}

/// What a keeper holds so, and who wants it.
#[derive(Clone, Default)]
pub struct Opening(Arc<Mutex<Holding>>);

/// What a process is known to want before it says so itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// It has not said anything yet.
    Unsaid,
    /// All that there are: it serves.
    All,
    /// Nothing: it finishes what it began.
    Nothing,
}

#[derive(Default)]
struct Holding {
    listeners: BTreeMap<SocketAddr, TcpListener>,
    /// By the numbers of processes, which rise; none before a process has asked.
    wanted: BTreeMap<u64, Option<BTreeSet<SocketAddr>>>,
    /// The last number given to a process.
    last: u64,
    /// The newest process that serves, or is about to; also where it has just died: what it wanted stays for the
    /// next one.
    newest: u64,
}

impl Holding {
    /// Takes what a process asks for.
    fn take(&mut self, process: u64, ask: &Ask) -> (Given, Vec<TcpListener>) {
        self.wanted.insert(process, Some(ask.wanted.clone()));
        self.close_unwanted();
        let mut given = Given {
            number: ask.number,
            opened: Vec::new(),
            failed: Vec::new(),
        };
        let mut handed = Vec::new();
        for at in &ask.missing {
            match self.open(*at) {
                Ok(listener) => {
                    given.opened.push(*at);
                    handed.push(listener);
                }
                Err(why) => given.failed.push((*at, why)),
            }
        }
        (given, handed)
    }

    fn open(&mut self, at: SocketAddr) -> Result<TcpListener, String> {
        let again = |listener: &TcpListener| listener.try_clone().map_err(|e| e.to_string());
        if let Some(known) = self.listeners.get(&at) {
            return again(known);
        }
        let opened = listen::open(at)?;
        let handed = again(&opened)?;
        self.listeners.insert(at, opened);
        Ok(handed)
    }

    /// A process is gone. One that had not said anything never served: the one before it goes on.
    fn leave(&mut self, process: u64) {
        if let Some(None) = self.wanted.remove(&process)
            && self.newest == process
        {
            let before = self.wanted.last_key_value();
            self.newest = before.map_or(process, |(number, _)| *number);
        }
        self.close_unwanted();
    }

    /// Closes what nobody wants, once the newest process has said what it wants: clients of what it is going to
    /// ask for wait in the backlog until then.
    fn close_unwanted(&mut self) {
        if !matches!(self.wanted.get(&self.newest), Some(Some(_))) {
            return;
        }
        let all: BTreeSet<SocketAddr> = self.wanted.values().flatten().flatten().copied().collect();
        self.listeners.retain(|at, _| all.contains(at));
    }
}

impl Opening {
    /// With listeners that an executable before held.
    pub fn with(listeners: impl IntoIterator<Item = (SocketAddr, TcpListener)>) -> Self {
        Self(Arc::new(Mutex::new(Holding {
            listeners: listeners.into_iter().collect(),
            ..Holding::default()
        })))
    }

    /// Opens listeners for a process at the other end of `socket`, as long as that is there.
    pub fn serve(&self, socket: &UnixStream, wants: Wants) -> io::Result<()> {
        let socket = socket.try_clone()?;
        let number = {
            let mut holding = lock(&self.0);
            holding.last += 1;
            let number = holding.last;
            let wanted = match wants {
                Wants::Unsaid => None,
                Wants::All => Some(holding.listeners.keys().copied().collect()),
                Wants::Nothing => Some(BTreeSet::new()),
            };
            holding.wanted.insert(number, wanted);
            holding.newest = number;
            number
        };
        let opening = self.clone();
        let serving = std::thread::Builder::new().name("opens".to_owned());
        serving.spawn(move || {
            while let Ok(true) = opening.answer(&socket, number) {}
            lock(&opening.0).leave(number);
        })?;
        Ok(())
    }

    /// Waits for the next ask and answers it; false at the end.
    fn answer(&self, socket: &UnixStream, process: u64) -> io::Result<bool> {
        use rustix::event::{PollFd, PollFlags, poll};
        // Nothing is taken from the socket before the lock is held: an executable that follows finds words whole.
        let mut waits = [PollFd::new(socket, PollFlags::IN)];
        match poll(&mut waits, None) {
            Err(rustix::io::Errno::INTR) => return Ok(true),
            polled => polled?,
        };
        let mut holding = lock(&self.0);
        socket.set_read_timeout(Some(PATIENCE))?;
        let (ask, _) = words::receive_first::<Ask>(socket)?;
        let (given, handed) = holding.take(process, &ask);
        words::send_first(socket, &given, &handed)?;
        Ok(true)
    }

    /// Closes all of them.
    pub fn close(&self) {
        lock(&self.0).listeners.clear();
    }

    /// Does something with all of them, while nobody asks for one.
    pub fn hold<T>(&self, act: impl FnOnce(&BTreeMap<SocketAddr, TcpListener>) -> T) -> T {
        act(&lock(&self.0).listeners)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    fn process(opening: &Opening) -> Asks {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        opening.serve(&ours, Wants::Unsaid).expect("a thread");
        Asks::by(theirs).expect("a socket")
    }

    fn free() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        listener.local_addr().expect("an address")
    }

    fn open(asks: &Asks, all: &[SocketAddr]) -> Vec<TcpListener> {
        let opened = asks
            .open(&all.iter().copied().collect(), all)
            .expect("an answer");
        opened
            .into_iter()
            .map(|(_, one)| one.expect("opened"))
            .collect()
    }

    #[test]
    fn what_one_process_asked_for_is_there_for_the_next_and_closed_when_nobody_wants_it() {
        let opening = Opening::default();
        let (one, two) = (free(), free());
        let first = process(&opening);
        drop(open(&first, &[one, two]));
        // As by kill -9: the backlog stays.
        drop(first);
        let client = TcpStream::connect(one).expect("it waits");
        let second = process(&opening);
        let listeners = open(&second, &[one]);
        let (_, came) = listeners[0].accept().expect("the one that waited");
        assert_eq!(Some(came), client.local_addr().ok());
        until_closed(two);
    }

    fn until_closed(at: SocketAddr) {
        let end = std::time::Instant::now() + PATIENCE;
        while TcpStream::connect(at).is_ok() {
            assert!(std::time::Instant::now() < end, "nobody wants it any more");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_a_process_that_died_wanted_stays_whatever_earlier_ones_say() {
        let opening = Opening::default();
        let at = free();
        let (drains, serves) = (process(&opening), process(&opening));
        drop(open(&serves, &[at]));
        drop(serves);
        // It may be known by now that the other one is gone, or not.
        open(&drains, &[]);
        TcpStream::connect(at).expect("it waits for the next one");
        let unfit = process(&opening);
        drop(unfit);
        let next = process(&opening);
        open(&next, &[]);
        until_closed(at);
    }

    #[test]
    fn nothing_is_closed_while_the_newest_process_has_not_said_what_it_wants() {
        let opening = Opening::default();
        let at = free();
        let old = process(&opening);
        drop(open(&old, &[at]));
        let new = process(&opening);
        open(&old, &[]);
        TcpStream::connect(at).expect("still there");
        drop(open(&new, &[at]));
        open(&old, &[]);
        TcpStream::connect(at).expect("the new one wants it");
        open(&new, &[]);
        assert!(TcpStream::connect(at).is_err());
    }

    #[test]
    fn a_port_that_is_taken_is_told_with_who_has_it_and_opened_later() {
        let opening = Opening::default();
        let other = TcpListener::bind("127.0.0.1:0").expect("bind");
        let at = other.local_addr().expect("an address");
        let asks = process(&opening);
        let mut opened = asks.open(&[at].into(), &[at]).expect("an answer");
        let why = opened.remove(0).1.expect_err("it is taken");
        assert!(why.contains("already listens on port"), "{why}");
        drop(other);
        open(&asks, &[at]);
    }
}
