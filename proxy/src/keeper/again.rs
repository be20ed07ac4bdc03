//! A keeper that becomes another executable in place: its process id stays, and with it its children. What it
//! holds waits in a socket meanwhile, which the next executable finds as its standard input.

use super::Event;
use super::opened::{Opening, Wants};
use super::process::{Process, Role};
use super::words::{self, First};
use beanpole_daemon::inherited;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tokio::sync::mpsc;

/// This process's own executable, even where there is another one by its name now.
pub const OWN_IMAGE: &str = "/proc/self/exe";

/// What a keeper becomes.
#[derive(Clone, Debug)]
pub struct Successor {
    /// The executable.
    pub path: PathBuf,
    /// The arguments of this process, without its name.
    pub arguments: Vec<OsString>,
}

/// What goes along with an exec, beside the descriptors: those of the listeners, then those of the processes.
#[derive(Serialize, Deserialize)]
struct Held {
    first: First,
    processes: Vec<HeldProcess>,
    /// Where the listeners are that processes asked for. Behind all other descriptors.
    #[serde(default)]
    opened: Vec<SocketAddr>,
}

#[derive(Serialize, Deserialize)]
struct HeldProcess {
    pid: u32,
    role: Role,
    /// What was read of its next word.
    #[serde(default)]
    ahead: Vec<u8>,
    /// Whether there is a socket by which it asks for listeners: these come last.
    #[serde(default)]
    asks: bool,
}

/// What was taken over.
pub struct TakenOver {
    pub first: First,
    pub listeners: Vec<TcpListener>,
    pub opening: Opening,
    pub processes: BTreeMap<u32, Process>,
}

/// Whether the executable at `path` is the one that this process runs.
pub fn is_on_disk(path: &Path) -> bool {
    let number = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    match (number(path), number(Path::new(OWN_IMAGE))) {
        (Ok(there), Ok(own)) => there == own,
        _ => false,
    }
}

/// What the executable before this one held, if this process was another one before. Nothing else has a socket
/// for standard input here.
pub fn taken_over(events: &mpsc::UnboundedSender<Event>) -> io::Result<Option<TakenOver>> {
    let input = io::stdin();
    let is_socket = rustix::fs::fstat(&input).is_ok_and(|status| {
        rustix::fs::FileType::from_raw_mode(status.st_mode) == rustix::fs::FileType::Socket
    });
    if !is_socket || std::env::var_os(MARK).is_none() {
        return Ok(None);
    }
    let socket = UnixStream::from(input.as_fd().try_clone_to_owned()?);
    let (held, handed) = words::receive_first::<Held>(&socket)?;
    let mut handed = handed.into_iter();
    let listeners = handed.by_ref().take(held.first.listeners.len());
    let listeners = listeners.map(TcpListener::from).collect();
    let sockets: Vec<OwnedFd> = handed.by_ref().take(held.processes.len()).collect();
    let opened: Vec<OwnedFd> = handed.by_ref().take(held.opened.len()).collect();
    let opened = held.opened.into_iter().zip(opened);
    let opening = Opening::with(opened.map(|(at, fd)| (at, TcpListener::from(fd))));
    let mut processes = BTreeMap::new();
    for (held, fd) in held.processes.into_iter().zip(sockets) {
        let asks = if held.asks { handed.next() } else { None };
        let asks = asks.map(UnixStream::from);
        if let Some(asks) = &asks {
            let wants = match held.role {
                Role::Comes => Wants::Unsaid,
                Role::Serves => Wants::All,
                Role::Drains => Wants::Nothing,
            };
            opening.serve(asks, wants)?;
        }
        let socket = UnixStream::from(fd);
        let process = Process::adopt(held.pid, held.role, (socket, asks), held.ahead, events)?;
        processes.insert(held.pid, process);
    }
    Ok(Some(TakenOver {
        first: held.first,
        listeners,
        opening,
        processes,
    }))
}

/// In the environment of a keeper that was another executable before.
const MARK: &str = "BEANPOLE_KEEPER_GOES_ON";

/// Becomes `successor`. Returns only where that fails.
pub fn become_it(
    successor: &Successor,
    (first, listeners): (&First, &[TcpListener]),
    opening: &Opening,
    processes: &BTreeMap<u32, Process>,
) -> io::Error {
    opening.hold(|opened| become_with(successor, (first, listeners), opened, processes))
}

fn become_with(
    successor: &Successor,
    (first, listeners): (&First, &[TcpListener]),
    opened: &BTreeMap<SocketAddr, TcpListener>,
    processes: &BTreeMap<u32, Process>,
) -> io::Error {
    let held = || {
        let mut held = Held {
            first: first.clone(),
            processes: Vec::new(),
            opened: opened.keys().copied().collect(),
        };
        let mut sockets = Vec::new();
        let mut asks = Vec::new();
        // The one that serves is the newest.
        let mut in_turn: Vec<_> = processes.iter().collect();
        in_turn.sort_by_key(|(_, process)| process.role == Role::Serves);
        for (pid, process) in in_turn {
            let (socket, ahead) = process.hand_on()?;
            held.processes.push(HeldProcess {
                pid: *pid,
                role: process.role,
                ahead,
                asks: process.asks.is_some(),
            });
            sockets.push(socket);
            if let Some(one) = &process.asks {
                asks.push(one.as_fd().try_clone_to_owned()?);
            }
        }
        for listener in opened.values() {
            sockets.push(listener.as_fd().try_clone_to_owned()?);
        }
        sockets.extend(asks);
        Ok::<_, io::Error>((held, sockets))
    };
    match held() {
        Ok((held, sockets)) => exec(successor, &held, listeners, &sockets),
        Err(error) => error,
    }
}

fn exec(
    successor: &Successor,
    held: &Held,
    listeners: &[TcpListener],
    sockets: &[OwnedFd],
) -> io::Error {
    let sent = || {
        let (ours, theirs) = UnixStream::pair()?;
        let handed: Vec<_> = listeners
            .iter()
            .map(AsFd::as_fd)
            .chain(sockets.iter().map(AsFd::as_fd))
            .collect();
        words::send_first(&ours, held, &handed)?;
        Ok::<_, io::Error>(theirs)
    };
    let theirs = match sent() {
        Ok(theirs) => theirs,
        Err(error) => return error,
    };
    // A reload that is asked for in between is one that has just been done.
    inherited::ignore_hang_up();
    Command::new(&successor.path)
        .args(&successor.arguments)
        .env(MARK, "1")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .exec()
}
