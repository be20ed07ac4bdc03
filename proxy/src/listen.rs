//! Listeners: bound with an explanation where that fails, accepted from, handed to the workers.

use crate::connection::ConnState;
use crate::fault;
use crate::tls::Certificates;
use beanpole_daemon::connections::{Connection, Connections};
use beanpole_daemon::rarely::Rarely;
use rustix::net::sockopt::set_tcp_nodelay;
use rustix::net::{SocketFlags, acceptfrom_with};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;
/// Pause after an accept that failed for want of file descriptors or memory.
const RECOVER: Duration = Duration::from_millis(50);
/// How often it is looked for room while all connections work: the others wait in the backlog.
const FULL: Duration = Duration::from_millis(20);

/// A protocol of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// Plain HTTP/1.1, and HTTP/2 with prior knowledge.
    Http,
    /// TLS, HTTP/2 by ALPN.
    Https,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

/// Why an address cannot be listened on, and what to change.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {scheme}://{address}: {reason}")]
pub struct ListenError {
    /// For what.
    pub scheme: Scheme,
    /// Where.
    pub address: SocketAddr,
    /// What is in the way, and what to do about it.
    pub reason: String,
    /// What the system said.
    pub source: io::Error,
}

impl ListenError {
    /// Whether another process of the same executable listens there.
    pub fn is_held_by_another_of_us(&self) -> bool {
        let own = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
        self.source.kind() == io::ErrorKind::AddrInUse
            && holder(self.address.port())
                .is_some_and(|holder| holder.starts_with(&format!("{} (", own.trim())))
    }
}

/// An accepted connection on its way to a worker.
pub struct Accepted {
    /// The socket, not yet part of any runtime.
    pub socket: std::net::TcpStream,
    /// The client.
    pub peer: SocketAddr,
    /// Where it came to.
    pub local: SocketAddr,
    /// What its listener is for.
    pub kind: Kind,
    /// Its place among all connections.
    pub place: Connection<ConnState>,
}

/// What a listener is for.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS, which is done so.
    Https(Arc<Certificates>),
    /// Connections of network environments.
    Stream,
}

/// Listens on an address of network environments; else what is in the way, and what to do about it.
pub fn open(address: SocketAddr) -> Result<std::net::TcpListener, String> {
    let opened = std::net::TcpListener::bind(address).and_then(|listener| {
        // It asks for a short backlog.
        rustix::net::listen(&listener, i32::try_from(BACKLOG).unwrap_or(i32::MAX))?;
        Ok(listener)
    });
    opened.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            let holder = holder_of(address.port());
            format!(
                "{holder} already listens on port {}; stop it, or choose another port for the environment",
                address.port()
            )
        }
        io::ErrorKind::PermissionDenied => format!(
            "port {} is below 1024, and the load balancer lacks the right to listen there (root or \
             CAP_NET_BIND_SERVICE); choose another port for the environment",
            address.port()
        ),
        _ => format!("cannot listen on {address}: {error}"),
    })
}

fn holder_of(port: u16) -> String {
    holder(port).unwrap_or_else(|| "another program".to_owned())
}

/// Listens on `address`. `alone` leaves IPv4 to others at that port, where the address stands for all of IPv6.
fn bind(scheme: Scheme, address: SocketAddr, alone: bool) -> Result<TcpListener, ListenError> {
    let try_bind = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        // Else a restart waits for the last connections to be forgotten.
        socket.set_reuseaddr(true)?;
        if alone {
            rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
        }
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    try_bind().map_err(|source| ListenError {
        scheme,
        address,
        reason: explain(scheme, address, &source),
        source,
    })
}

/// Listens on all of them.
pub fn bind_all(
    http: &[SocketAddr],
    https: &[SocketAddr],
) -> Result<Vec<(Scheme, TcpListener)>, ListenError> {
    let http = http.iter().map(|address| (Scheme::Http, *address));
    let https = https.iter().map(|address| (Scheme::Https, *address));
    let wanted: Vec<(Scheme, SocketAddr)> = http.chain(https).collect();
    let bound = |(scheme, address): (Scheme, SocketAddr)| {
        // An address of all of IPv6 takes IPv4 as well, unless that has an address of its own there.
        let alone = address.is_ipv6()
            && wanted
                .iter()
                .any(|(_, other)| other.is_ipv4() && other.port() == address.port());
        Ok((scheme, bind(scheme, address, alone)?))
    };
    wanted.iter().copied().map(bound).collect()
}

fn explain(scheme: Scheme, address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let port = address.port();
            let holder = holder_of(port);
            format!(
                "{holder} already listens on port {port}; stop it, or choose another address with --{scheme} ADDR"
            )
        }
        io::ErrorKind::PermissionDenied => format!(
            "ports below 1024 need root or CAP_NET_BIND_SERVICE; choose another address with --{scheme} ADDR"
        ),
        io::ErrorKind::AddrNotAvailable => format!(
            "this machine has no such address; choose one that `ip address` shows with --{scheme} ADDR"
        ),
        _ => format!("{error}; choose another address with --{scheme} ADDR"),
    }
}

/// Who listens on `port`, as far as /proc tells: `nginx (process 812)`.
fn holder(port: u16) -> Option<String> {
    let wanted = format!(":{port:04X}");
    let mut inodes = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in std::fs::read_to_string(table).unwrap_or_default().lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // 0A is LISTEN (proc_net_tcp).
            if fields.get(1).is_some_and(|local| local.ends_with(&wanted))
                && fields.get(3) == Some(&"0A")
                && let Some(inode) = fields.get(9)
            {
                inodes.push(format!("socket:[{inode}]"));
            }
        }
    }
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let number = process.file_name().to_string_lossy().into_owned();
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let holds = descriptors.flatten().any(|descriptor| {
            std::fs::read_link(descriptor.path())
                .is_ok_and(|to| inodes.iter().any(|inode| to.as_os_str() == inode.as_str()))
        });
        if holds {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {number})", name.trim()));
        }
    }
    None
}

/// Accepts until `enough` and hands connections to the workers in turn: connections that live long
/// are so spread evenly, which listeners shared by the kernel do not promise. Where there is no room, a
/// connection that rests makes some; while all work, new ones wait. One that was accepted is not let down
/// before `stop`.
pub async fn accept(
    listener: TcpListener,
    kind: Kind,
    connections: Arc<Connections<ConnState>>,
    workers: Vec<mpsc::Sender<Accepted>>,
    enough: CancellationToken,
    stop: CancellationToken,
) {
    let Ok(local) = listener.local_addr() else {
        return;
    };
    let listener = match without_delay(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, %local, "cannot listen any more");
            return;
        }
    };
    let (failures, waits) = (Rarely::new(), Rarely::new());
    let mut turn = 0;
    while let Some(accepted) = enough.run_until_cancelled(next_of(&listener)).await {
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if left_already(&error) => continue,
            Err(error) => {
                if let Some(times) = failures.again() {
                    tracing::warn!(%error, %local, times, "cannot accept connections");
                }
                if fault::is_ours(&error) {
                    connections.make_room();
                }
                tokio::time::sleep(RECOVER).await;
                continue;
            }
        };
        let place = find_place(&connections, &waits);
        let Some(place) = stop.run_until_cancelled(place).await else {
            return;
        };
        turn = (turn + 1) % workers.len();
        let accepted = Accepted {
            socket,
            peer,
            local,
            kind: kind.clone(),
            place,
        };
        if workers[turn].send(accepted).await.is_err() {
            return;
        }
    }
}

/// A listener whose connections send what is written at once: they have that from it, which costs none of them a
/// system call.
fn without_delay(listener: TcpListener) -> io::Result<AsyncFd<std::net::TcpListener>> {
    let listener = listener.into_std()?;
    set_tcp_nodelay(&listener, true)?;
    #[expect(
        deprecated,
        reason = "std's listener has one descriptor as long as it lives"
    )]
    AsyncFd::with_interest(listener, Interest::READABLE)
}

/// The next connection, as no part of any runtime: that of its worker takes it in.
async fn next_of(
    listener: &AsyncFd<std::net::TcpListener>,
) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let accept = |listener: &std::net::TcpListener| {
        let (socket, peer) = acceptfrom_with(listener, flags)?;
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
        let peer = peer.ok_or(io::ErrorKind::ConnectionAborted)?;
        Ok((socket.into(), peer))
    };
    listener.async_io(Interest::READABLE, accept).await
}

async fn find_place(
    connections: &Arc<Connections<ConnState>>,
    waits: &Rarely,
) -> Connection<ConnState> {
    let state = Arc::default();
    loop {
        if let Some(place) = connections.enter_as(&state) {
            return place;
        }
        if let Some(times) = waits.again() {
            tracing::warn!(
                connections = connections.count(),
                times,
                "every connection has a request under way: new ones wait"
            );
        }
        tokio::time::sleep(FULL).await;
    }
}

/// Whether it is the trouble of the one connection that would have been accepted.
fn left_already(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}
