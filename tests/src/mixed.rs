//! Mixed load: what the clients of a real site send at once, by a schedule that waits for no answer.
//! Each kind of request has its own rate and its own workers; a worker that is free takes the next
//! place in the schedule, so that a slow answer delays nobody while any is free.

use crate::http::{Answer, Connection};
use crate::wait;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a client waits for an answer: far longer than any that comes.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a POST carries.
const BODY_BYTES: usize = 32 * 1024;
/// WebSockets that are open all the time.
const SOCKETS: u64 = 20;
/// From one frame on a WebSocket to the next.
const FRAME_EVERY: Duration = Duration::from_millis(500);
/// The example of RFC 6455, section 1.3, and what it is accepted with.
const KEY: (&str, &str) = ("dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A GET over a connection that is kept.
    KeepAlive,
    /// A GET over a connection of its own.
    NewConnection,
    /// A POST of 32 KiB, which have to come back as they were.
    Post,
    /// A GET that is answered after 1 to 2 s.
    Slow,
    /// A WebSocket that is opened, and every frame on it that has to come back.
    WebSocket,
}

impl Kind {
    /// Requests a second of each kind and the workers that send them: enough for answers that take
    /// forty times as long as they do on an idle machine. 520 in all, WebSockets apart.
    const SCHEDULED: [(Self, u32, u32); 4] = [
        (Self::KeepAlive, 320, 8),
        (Self::NewConnection, 120, 6),
        (Self::Post, 60, 6),
        (Self::Slow, 20, 50),
    ];
}

/// A request that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its kind.
    pub kind: Kind,
    /// When it failed, counted from the start of the load.
    pub at: Duration,
    /// How long it had taken by then.
    pub took: Duration,
    /// Why.
    pub cause: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            to,
            "at {:.3} s after {} ms, {:?}: {}",
            self.at.as_secs_f64(),
            self.took.as_millis(),
            self.kind,
            self.cause
        )
    }
}

/// What came of mixed load.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Requests sent, frames on WebSockets apart.
    pub sent: BTreeMap<Kind, u64>,
    /// Frames that came back.
    pub frames: u64,
    /// WebSockets that were ended between two frames, as those of an instance are that leaves.
    pub closed: u64,
    /// Requests and frames that failed.
    pub failures: Vec<Failure>,
    /// The first word of each GET's answer (the application's version) and how often it came.
    pub versions: BTreeMap<String, u64>,
    /// The most that a request was sent behind its schedule.
    pub latest: Duration,
    /// How long the load ran.
    pub lasted: Duration,
}

impl Outcome {
    /// Requests per second, as sent; WebSockets apart, which come on top.
    pub fn rate(&self) -> f64 {
        let all = self.sent.iter();
        let requests = all.filter(|(kind, _)| **kind != Kind::WebSocket);
        let sum: u64 = requests.map(|(_, count)| count).sum();
        sum as f64 / self.lasted.as_secs_f64().max(0.001)
    }

    /// Failures per kind, and the first of them: for messages of tests.
    pub fn told(&self) -> String {
        let mut counts: BTreeMap<Kind, u64> = BTreeMap::new();
        for failure in &self.failures {
            *counts.entry(failure.kind).or_default() += 1;
        }
        let first: Vec<String> = self
            .failures
            .iter()
            .take(25)
            .map(ToString::to_string)
            .collect();
        format!(
            "{} failed {counts:?} of {:?}, {} frames came back, {} WebSockets were closed, \
             {:.0} requests/s, at most {} ms late, versions {:?}\n  {}",
            self.failures.len(),
            self.sent,
            self.frames,
            self.closed,
            self.rate(),
            self.latest.as_millis(),
            self.versions,
            first.join("\n  ")
        )
    }

    fn add(&mut self, other: Self) {
        for (kind, count) in other.sent {
            *self.sent.entry(kind).or_default() += count;
        }
        for (version, count) in other.versions {
            *self.versions.entry(version).or_default() += count;
        }
        self.frames += other.frames;
        self.closed += other.closed;
        self.failures.extend(other.failures);
        self.latest = self.latest.max(other.latest);
    }
}

/// Mixed load that runs until [`Mixed::stop`].
pub struct Mixed {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Outcome>>,
    started: Instant,
}

impl Mixed {
    /// Sends it to `host` through `proxy`.
    pub fn start(proxy: SocketAddr, host: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let started = Instant::now();
        let client = |kind| Client {
            kind,
            proxy,
            host: host.to_owned(),
            started,
            stop: Arc::clone(&stop),
            outcome: Outcome::default(),
        };
        let mut workers = Vec::new();
        for (kind, rate, count) in Kind::SCHEDULED {
            let schedule = Arc::new(Schedule {
                rate,
                next: AtomicU64::new(0),
            });
            for _ in 0..count {
                let (client, schedule) = (client(kind), Arc::clone(&schedule));
                workers.push(std::thread::spawn(move || client.request(&schedule)));
            }
        }
        for number in 0..SOCKETS {
            let client = client(Kind::WebSocket);
            workers.push(std::thread::spawn(move || client.talk(number)));
        }
        Self {
            stop,
            workers,
            started,
        }
    }

    /// Lets it run for that long: what comes before and after is part of what is measured.
    pub fn run_on(&self, length: Duration) {
        wait::pause(length);
    }

    /// Ends it and sums up, once every request on its way is answered.
    ///
    /// # Panics
    /// When a worker did.
    pub fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Outcome {
            lasted: self.started.elapsed(),
            ..Outcome::default()
        };
        for worker in self.workers {
            all.add(worker.join().expect("a worker of the load does not panic"));
        }
        all.failures.sort_by_key(|failure| failure.at);
        all
    }
}

/// When requests of one kind are due.
struct Schedule {
    rate: u32,
    next: AtomicU64,
}

impl Schedule {
    /// The next place: its number and when it is due.
    fn take(&self, started: Instant) -> (u64, Instant) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let after = Duration::from_secs_f64(number as f64 / f64::from(self.rate));
        (number, started + after)
    }
}

/// One worker.
struct Client {
    kind: Kind,
    proxy: SocketAddr,
    host: String,
    started: Instant,
    stop: Arc<AtomicBool>,
    outcome: Outcome,
}

impl Client {
    /// Waits until `due`; says whether the load still runs then.
    fn wait(&self, due: Instant) -> bool {
        while !self.stop.load(Ordering::Relaxed) {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            wait::pause(left.min(Duration::from_millis(100)));
        }
        false
    }

    fn failed(&mut self, since: Instant, cause: &str) {
        self.outcome.failures.push(Failure {
            kind: self.kind,
            at: self.started.elapsed(),
            took: since.elapsed(),
            cause: cause.trim().chars().take(160).collect(),
        });
    }

    /// Sends what is due until the end.
    fn request(mut self, schedule: &Schedule) -> Outcome {
        let mut kept = None;
        loop {
            let (number, due) = schedule.take(self.started);
            if !self.wait(due) {
                return self.outcome;
            }
            let begun = Instant::now();
            self.outcome.latest = self.outcome.latest.max(begun - due);
            *self.outcome.sent.entry(self.kind).or_default() += 1;
            match self.send(&mut kept, number) {
                Ok(None) => {}
                Ok(Some(cause)) => self.failed(begun, &cause),
                Err(error) => self.failed(begun, &format!("{:?}: {error}", error.kind())),
            }
        }
    }

    /// One request: what is wrong with its answer, if anything.
    fn send(&mut self, kept: &mut Option<Connection>, number: u64) -> io::Result<Option<String>> {
        let mut open = match kept.take() {
            Some(open) => open,
            None => Connection::open(self.proxy, PATIENCE)?,
        };
        let answer = match self.kind {
            Kind::Post => {
                let mut body = format!("{number:016}").into_bytes();
                body.resize(BODY_BYTES, b'a' + (number % 26) as u8);
                let answer = open.send("POST", &self.host, "/echo", &[], &body)?;
                if answer.status == 200 && answer.body != body {
                    return Ok(Some(format!("{} other bytes came back", answer.body.len())));
                }
                answer
            }
            Kind::Slow => {
                let path = format!("/slow?{}", 1_000 + number % 11 * 100);
                open.send("GET", &self.host, &path, &[], b"")?
            }
            Kind::NewConnection => {
                open.send("GET", &self.host, "/", &[("Connection", "close")], b"")?
            }
            Kind::KeepAlive | Kind::WebSocket => open.send("GET", &self.host, "/", &[], b"")?,
        };
        if self.kind != Kind::NewConnection && !open.closing {
            *kept = Some(open);
        }
        Ok(self.wrong_with(&answer))
    }

    fn wrong_with(&mut self, answer: &Answer) -> Option<String> {
        if answer.status != 200 {
            return Some(format!("{}: {}", answer.status, answer.text()));
        }
        if self.kind != Kind::Post {
            let text = answer.text();
            let version = text.split_whitespace().next().unwrap_or("?").to_owned();
            *self.outcome.versions.entry(version).or_default() += 1;
        }
        None
    }

    /// Keeps a WebSocket open until the end: another one when it was closed.
    fn talk(mut self, number: u64) -> Outcome {
        // Spread over the interval.
        let mut due = self.started + FRAME_EVERY * number as u32 / SOCKETS as u32;
        let mut socket = None;
        while self.wait(due) {
            due += FRAME_EVERY;
            let begun = Instant::now();
            let mut open = match socket.take() {
                Some(open) => open,
                None => {
                    *self.outcome.sent.entry(self.kind).or_default() += 1;
                    match Socket::open(self.proxy, &self.host) {
                        Ok(open) => open,
                        Err(cause) => {
                            self.failed(begun, &cause);
                            continue;
                        }
                    }
                }
            };
            match open.round(number) {
                Ok(true) => {
                    self.outcome.frames += 1;
                    socket = Some(open);
                }
                Ok(false) => self.outcome.closed += 1,
                Err(error) => self.failed(begun, &format!("{:?}: {error}", error.kind())),
            }
        }
        self.outcome
    }
}

/// The client's side of a WebSocket.
pub struct Socket(BufReader<TcpStream>);

impl Socket {
    /// Opens one at `/ws` of a host.
    ///
    /// # Errors
    /// Says why it was not opened.
    pub fn open(proxy: SocketAddr, host: &str) -> Result<Self, String> {
        let asks = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", KEY.0),
        ];
        let opened = Connection::open(proxy, PATIENCE).and_then(|mut open| {
            let answer = open.send("GET", host, "/ws", &asks, b"")?;
            Ok((open, answer))
        });
        let (open, answer) = opened.map_err(|error| format!("{:?}: {error}", error.kind()))?;
        if answer.status != 101 || answer.header("sec-websocket-accept") != Some(KEY.1) {
            return Err(format!("{}: {}", answer.status, answer.text()));
        }
        Ok(Self(open.into_stream()))
    }

    /// Sends a frame and awaits it. False when it was closed instead. A frame that crosses the close on
    /// its way is answered with a reset: TCP knows no other answer.
    ///
    /// # Errors
    /// When it broke in another way, or what came back is another frame.
    pub fn round(&mut self, number: u64) -> io::Result<bool> {
        let text = format!("from client {number}");
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let mut frame = vec![0x81, 0x80 | text.len() as u8];
        frame.extend(mask);
        let masked = text.bytes().zip(mask.iter().cycle());
        frame.extend(masked.map(|(byte, key)| byte ^ key));
        let mut head = [0; 2];
        let begun = self.0.get_mut().write_all(&frame);
        match begun.and_then(|()| self.0.read(&mut head[..1])) {
            Ok(0) => return Ok(false),
            Err(error) if is_reset(&error) => return Ok(false),
            begun => begun?,
        };
        self.0.read_exact(&mut head[1..])?;
        if head[0] & 0x0f == 8 {
            return Ok(false);
        }
        let mut back = vec![0; usize::from(head[1])];
        self.0.read_exact(&mut back)?;
        if back == text.as_bytes() {
            Ok(true)
        } else {
            Err(io::Error::other("another frame came back"))
        }
    }
}

fn is_reset(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.kind(), ConnectionReset | BrokenPipe)
}
