//! A process that serves, as its keeper knows it.

use super::Event;
use super::opened::{Opening, Wants};
use super::words::{self, First, Order, Word};
use crate::carried::Counts;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// How long a process may take to hear an order: it reads on whatever it does.
const HEARS: Duration = Duration::from_secs(2);
/// How long a process may take to end that has left its keeper.
const ENDS: Duration = Duration::from_secs(2);
/// The longest word of a process, in bytes.
const LONGEST_WORD: usize = 256 * 1024 * 1024;

/// What is started.
#[derive(Clone, Debug)]
pub struct Program {
    /// The executable, by a path that stays the same over upgrades.
    pub path: PathBuf,
    /// The arguments with which it serves for a keeper.
    pub arguments: Vec<OsString>,
}

/// What a process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It is started, and is to serve.
    Comes,
    /// It serves.
    Serves,
    /// It finishes what it began.
    Drains,
}

/// A process that serves, or is about to, or did.
pub struct Process {
    /// Its id. It is not given to another one before this one has been waited for.
    pub pid: u32,
    /// What it is for.
    pub role: Role,
    /// When it was started, or taken over.
    pub since: Instant,
    /// The last that it told, while it drains.
    pub told: Option<Counts>,
    /// Why it cannot go on, if it said so.
    pub why: Option<String>,
    /// By which it asks for listeners.
    pub asks: Option<std::os::unix::net::UnixStream>,
    socket: Arc<UnixStream>,
    /// What was read of its next word.
    ahead: Arc<Mutex<Vec<u8>>>,
    hearing: JoinHandle<()>,
}

impl Process {
    /// Starts the executable at `path`, which listens by these.
    pub fn start(
        path: &Path,
        program: &Program,
        (first, listeners): (&First, &[TcpListener]),
        opening: &Opening,
        events: &mpsc::UnboundedSender<Event>,
    ) -> io::Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let (opens, asks) = std::os::unix::net::UnixStream::pair()?;
        opening.serve(&opens, Wants::Unsaid)?;
        // The last one is known by there being one more than the first word tells of.
        let handed: Vec<_> = listeners
            .iter()
            .map(AsFd::as_fd)
            .chain([asks.as_fd()])
            .collect();
        words::send_first(&ours, first, &handed)?;
        let mut command = Command::new(path);
        command
            .arg0(&program.path)
            .args(&program.arguments)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            // Ctrl-C is for the keeper.
            .process_group(0);
        let child = command.spawn()?;
        Self::adopt(
            child.id(),
            Role::Comes,
            (ours, Some(opens)),
            Vec::new(),
            events,
        )
    }

    /// Takes over one that was started before.
    pub fn adopt(
        pid: u32,
        role: Role,
        (socket, asks): (
            std::os::unix::net::UnixStream,
            Option<std::os::unix::net::UnixStream>,
        ),
        ahead: Vec<u8>,
        events: &mpsc::UnboundedSender<Event>,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = Arc::new(UnixStream::from_std(socket)?);
        let ahead = Arc::new(Mutex::new(ahead));
        let hearing = tokio::spawn(hear(pid, socket.clone(), ahead.clone(), events.clone()));
        Ok(Self {
            pid,
            role,
            since: Instant::now(),
            told: None,
            why: None,
            asks,
            socket,
            ahead,
            hearing,
        })
    }

    /// Gives an order; one that is not heard in time ends the process.
    pub async fn order(&self, order: &Order) {
        let line = words::line(order);
        let written = timeout(HEARS, async {
            let mut rest = &line[..];
            while !rest.is_empty() {
                self.socket.writable().await?;
                match self.socket.try_write(rest) {
                    Ok(count) => rest = &rest[count..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            Ok::<_, io::Error>(())
        });
        if written.await.is_err() {
            tracing::warn!(
                pid = self.pid,
                "a process of this load balancer hears nothing: it is ended"
            );
            self.kill();
        }
    }

    /// Has it stop: it finishes requests in flight within the time for that.
    pub fn dismiss(&self) {
        // One that is gone has stopped.
        let _ = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Write);
    }

    /// Ends it at once.
    pub fn kill(&self) {
        kill(self.pid);
    }

    /// Stops hearing it: what it says waits.
    pub async fn stop_hearing(&mut self) {
        self.hearing.abort();
        let _ = (&mut self.hearing).await;
    }

    /// Hears it again.
    pub fn hear(&mut self, events: &mpsc::UnboundedSender<Event>) {
        let (socket, ahead) = (self.socket.clone(), self.ahead.clone());
        self.hearing = tokio::spawn(hear(self.pid, socket, ahead, events.clone()));
    }

    /// Whether a part of its next word has come.
    pub fn is_speaking(&self) -> bool {
        !lock(&self.ahead).is_empty()
    }

    /// For whoever takes it over: its socket, and what was read of its next word.
    pub fn hand_on(&self) -> io::Result<(OwnedFd, Vec<u8>)> {
        let socket = self.socket.as_fd().try_clone_to_owned()?;
        Ok((socket, lock(&self.ahead).clone()))
    }
}

fn lock(bytes: &Mutex<Vec<u8>>) -> std::sync::MutexGuard<'_, Vec<u8>> {
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kill(pid: u32) {
    if let Some(pid) = pid_of(pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn pid_of(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// Passes on what it says, and at last how it ended.
async fn hear(
    pid: u32,
    socket: Arc<UnixStream>,
    ahead: Arc<Mutex<Vec<u8>>>,
    events: mpsc::UnboundedSender<Event>,
) {
    loop {
        for word in words_in(&mut lock(&ahead)) {
            let _ = events.send(Event::Said(pid, word));
        }
        if socket.readable().await.is_err() {
            break;
        }
        let mut ahead = lock(&ahead);
        match socket.try_read_buf(&mut *ahead) {
            Ok(1..) if ahead.len() < LONGEST_WORD => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => break,
        }
    }
    let _ = events.send(Event::Ended(pid, how_it_ended(pid).await));
}

/// Takes the whole lines out.
fn words_in(bytes: &mut Vec<u8>) -> Vec<Word> {
    let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else {
        return Vec::new();
    };
    let lines: Vec<u8> = bytes.drain(..=end).collect();
    let lines = lines.split(|byte| *byte == b'\n');
    let heard = lines.filter(|line| !line.is_empty()).map(|line| {
        let word = serde_json::from_slice(line);
        word.inspect_err(|error| {
            tracing::warn!(%error, "a process of this load balancer said what is not understood");
        })
    });
    heard.flatten().collect()
}

/// Waits for its end, which comes when it leaves its keeper.
async fn how_it_ended(pid: u32) -> String {
    let end = Instant::now() + ENDS;
    let mut killed = false;
    loop {
        match waitpid(pid_of(pid), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => return in_words(status),
            Err(error) if error != rustix::io::Errno::INTR => return error.to_string(),
            _ => {}
        }
        if Instant::now() > end && !killed {
            killed = true;
            kill(pid);
        }
        sleep(Duration::from_millis(2)).await;
    }
}

fn in_words(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}
