//! The load balancer: carries traffic to instances, checks them, counts what it sees.
//!
//! It holds one immutable routing table, swapped atomically and kept on disk, and works on for days
//! without a controller. The controller talks to it over a private Unix socket in the words of
//! `beanpole_protocol::proxy`. This is the only crate that knows pingora, and pingora's server is
//! not used: connections are accepted here and handed to it, which allows listeners, drains and
//! tests inside one process.
//!
//! | File | Idea |
//! |---|---|
//! | `table` | hostname and path to pool (by `protocol::router`): lookups and turns |
//! | `redirect` | where clients are sent instead |
//! | `rate` | how many requests may come |
//! | `balance` | pool to target: who gets the next request |
//! | `asker` | what of a request may decide about that |
//! | `target` | a target's health and counts, across tables |
//! | `check` | active checks |
//! | `shared` | what all workers share, and where a request goes |
//! | `service` | a request's way, as pingora's callbacks |
//! | `exchange` | the short way of plain requests, and what takes the long one |
//! | `sticky`, `names`, `cookies` | clients that stay on a side, or at a target |
//! | `connection`, `calm` | a client's socket, as pingora wants it; what it may ask for over HTTP/2 |
//! | `announced` | clients that a load balancer in front announces |
//! | `listen`, `worker` | from the listening socket to the thread that serves |
//! | `fault` | whether a failure is this machine's own |
//! | `control` | tables in, reports out |
//! | `head`, `host` | what of a request's head goes on, and which host it asks for |
//! | `tls` | which certificate a client is shown |
//! | `trace_context` | the traces that requests belong to |
//! | `traced` | what became of requests that somebody asks about |
//! | `forwarded`, `pages`, `access_log`, `traffic` | what their names say |

mod access_log;
mod alarm;
mod announced;
mod announcing;
mod asker;
mod balance;
mod calm;
mod check;
mod connection;
mod control;
mod cookies;
mod exchange;
mod fault;
mod forwarded;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod grpc;
mod head;
mod host;
mod listen;
mod names;
mod pages;
mod rate;
mod redirect;
mod service;
mod shared;
mod sticky;
mod table;
mod target;
mod tls;
mod trace_context;
mod traced;
mod traffic;
mod worker;

pub use access_log::{LogFormat, LogOptions};
pub use forwarded::Network;
pub use listen::{ListenError, Scheme};
pub use tls::CertificateError;
pub use trace_context::Tracing;

use crate::access_log::AccessLog;
use crate::connection::ConnState;
use crate::control::{Control, Kept};
use crate::names::Names;
use crate::shared::Shared;
use crate::target::Changes;
use crate::traced::Traced;
use crate::worker::{Limits, Worker};
use arc_swap::ArcSwap;
use beanpole_daemon::connections::{Connections, raise_open_files, room_for};
use beanpole_daemon::files::ReadError;
use beanpole_daemon::socket::{self, BindError};
use pingora_timeout::fast_timeout::set_fast_timeout_to_tokio_threshold;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long a proxy with the table of its last run waits for the controller to say whether that is the newest, before
/// it takes requests: they may have been exchanged meanwhile. Clients wait in the backlog.
const NEWEST_TABLE: Duration = Duration::from_millis(500);

/// How long calls of the controller may take to end at a stop.
const CONTROL_PATIENCE: Duration = Duration::from_secs(1);

/// pingora shares timers up to this long (in whole seconds) among the requests of a thread, keeps each
/// until it has run out, and needs a thread for them that wakes 100 times a second. Longer ones are
/// tokio's, which forgets them with their request, at less than half the cost.
const LONGEST_SHARED_TIMER: Duration = Duration::ZERO;

/// The longest time that the head of a request may take, in seconds, and what it may unless told otherwise.
/// pingora gives up a read that brings nothing for 60 s, without an answer.
pub const LONGEST_HEADER_TIMEOUT: u64 = 50;

/// The most connections of clients, unless told otherwise.
pub const MAX_CONNECTIONS: usize = 50_000;
/// File descriptors for each: its own, one to a target, one that is kept for the next request.
const DESCRIPTORS: u64 = 3;

/// How a proxy runs.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Where the table and the certificates are kept; made if missing.
    pub data_dir: PathBuf,
    /// The controller's way in.
    pub socket: PathBuf,
    /// Where plain HTTP is served.
    pub http: Vec<SocketAddr>,
    /// Where HTTPS is served.
    pub https: Vec<SocketAddr>,
    /// Every connection begins with the announcement of its client by the PROXY protocol.
    pub proxy_protocol: bool,
    /// The port of HTTPS that clients are sent to, where something between changes it; that of the first listener
    /// if absent.
    pub public_https_port: Option<u16>,
    /// The domain below which environments get their hostnames.
    pub default_domain: String,
    /// Where requests are logged, if at all.
    pub access_log: Option<PathBuf>,
    /// What is logged of them, and how.
    pub log_options: LogOptions,
    /// What is done about requests that belong to no trace.
    pub tracing: Tracing,
    /// Threads that carry traffic; 0 = one per CPU.
    pub threads: usize,
    /// How long a client has for the first byte of its first request, and from there for the rest
    /// of a request's head. At most [`LONGEST_HEADER_TIMEOUT`].
    pub header_timeout: Duration,
    /// How long requests in flight have at a stop.
    pub drain: Duration,
    /// The most connections of clients; fewer where the limit of open files is low.
    pub max_connections: usize,
    /// Proxies in front whose `X-Forwarded-*` headers are believed.
    pub trusted: Vec<Network>,
}

impl ProxyConfig {
    /// No listeners, no access log, everything else as usual.
    pub fn new(data_dir: impl Into<PathBuf>, socket: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            socket: socket.into(),
            http: Vec::new(),
            https: Vec::new(),
            proxy_protocol: false,
            public_https_port: None,
            default_domain: "localhost".to_owned(),
            access_log: None,
            log_options: LogOptions::default(),
            tracing: Tracing::default(),
            threads: 0,
            header_timeout: Duration::from_secs(LONGEST_HEADER_TIMEOUT),
            drain: Duration::from_secs(30),
            max_connections: MAX_CONNECTIONS,
            trusted: Vec::new(),
        }
    }
}

/// Why a proxy cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The data directory cannot be used.
    #[error("cannot use the data directory {}", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The table or the certificates of the last run cannot be read.
    #[error("cannot read what was in force in the last run")]
    Kept(#[source] ReadError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(ListenError),
    /// The control socket cannot be listened on.
    #[error("cannot open the control socket")]
    Socket(#[source] BindError),
    /// There is no certificate to show.
    #[error("cannot serve HTTPS")]
    Certificate(#[source] CertificateError),
    /// The TLS library refuses its settings.
    #[error("cannot serve HTTPS")]
    Tls(#[source] rustls::Error),
    /// The access log cannot be written.
    #[error("cannot write the access log {}", path.display())]
    AccessLog {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system gives no more threads, or the control socket broke.
    #[error("cannot go on")]
    System(#[source] io::Error),
}

/// Carries traffic until `stop`; then finishes what is in flight and returns.
pub async fn run(config: ProxyConfig, stop: CancellationToken) -> Result<(), ProxyError> {
    set_fast_timeout_to_tokio_threshold(Some(LONGEST_SHARED_TIMER));
    let directory = &config.data_dir;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| ProxyError::DataDir {
            path: directory.clone(),
            source,
        })?;
    let control_socket = socket::bind(&config.socket, 0o600, None)
        .await
        .map_err(ProxyError::Socket)?;
    let domain = &config.default_domain;
    let shown = tls::self_signed(directory, domain).map_err(ProxyError::Certificate)?;
    let certificates = tls::Certificates::new(shown, domain).map_err(ProxyError::Tls)?;
    let certificates = Arc::new(certificates);
    let kept = Kept::new(directory);
    control::restore_certificates(&certificates, &kept.certificates).map_err(ProxyError::Kept)?;

    let mut https_port = None;
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    let wanted = (config.http.iter().map(|address| (Scheme::Http, *address)))
        .chain(config.https.iter().map(|address| (Scheme::Https, *address)));
    for (scheme, address) in wanted {
        let listener = listen::bind(scheme, address).map_err(ProxyError::Listen)?;
        let bound = listener.local_addr().unwrap_or(address);
        if scheme == Scheme::Https {
            https_port.get_or_insert(bound.port());
        }
        addresses.push(format!("{scheme}://{bound}"));
        listeners.push((scheme, listener));
    }

    let (access_log, log_writer) = match &config.access_log {
        None => (None, None),
        Some(path) => {
            if let Some(parent) = path.parent() {
                // Should this fail, opening the file tells why.
                let _ = std::fs::create_dir_all(parent);
            }
            let opened = AccessLog::open(path, config.log_options);
            let (log, writer) = opened.map_err(|source| ProxyError::AccessLog {
                path: path.clone(),
                source,
            })?;
            (Some(log), Some(writer))
        }
    };
    let names = Names::kept_at(&directory.join("session-key.json"));
    let shared = Arc::new(Shared {
        table: ArcSwap::default(),
        names: names.map_err(|source| ProxyError::DataDir {
            path: directory.clone(),
            source,
        })?,
        changes: Changes::default(),
        access_log,
        traced: Traced::default(),
        tracing: config.tracing,
        trusted: config.trusted.clone(),
        https_port: config.public_https_port.or(https_port),
        proxy_protocol: config.proxy_protocol,
        certificates: certificates.clone(),
    });
    control::restore(&shared, &kept.table).map_err(ProxyError::Kept)?;
    let restored = shared.table.load().source.is_some();

    let room = room(config.max_connections);
    let connections = Connections::new(room);
    let (stop_workers, stopping) = watch::channel(false);
    let workers = start_workers(&config, &shared, &stopping, room)?;
    let limits = Limits {
        head: config.header_timeout,
    };
    let timekeeper = tokio::spawn(worker::keep_time(connections.clone(), limits));
    let senders: Vec<_> = workers.iter().map(|w| w.connections.clone()).collect();
    tracing::info!(listeners = ?addresses, workers = workers.len(), connections = room, "the proxy serves");
    let control = Control::new(shared, kept, addresses, stop.clone());
    let mut serving = tokio::spawn(socket::serve(
        control_socket,
        control.clone().router(),
        stop.clone(),
    ));
    if restored {
        control.told_within(NEWEST_TABLE).await;
    }
    let accepting = tokio_util::task::TaskTracker::new();
    for (scheme, listener) in listeners {
        let tls = (scheme == Scheme::Https).then(|| certificates.clone());
        accepting.spawn(listen::accept(
            listener,
            tls,
            connections.clone(),
            senders.clone(),
            stop.clone(),
        ));
    }
    drop(senders);
    // Without a way in for the controller there is no point in going on.
    let early = tokio::select! {
        () = stop.cancelled() => None,
        served = &mut serving => Some(served),
    };
    stop.cancel();
    accepting.close();
    accepting.wait().await;
    let _ = stop_workers.send(true);
    connections.each(ConnState::finish);
    for worker in workers {
        worker.ended().await;
    }
    timekeeper.abort();
    let served = match early {
        Some(served) => Ok(served),
        // A call that never ends must not keep the proxy.
        None => tokio::time::timeout(CONTROL_PATIENCE, serving).await,
    };
    if let Some(writer) = log_writer {
        // It may wait for the disk.
        let _ = tokio::task::spawn_blocking(move || writer.stop()).await;
    }
    tracing::info!("the proxy has stopped");
    match served {
        Err(_) => Ok(()),
        Ok(served) => served
            .map_err(io::Error::other)
            .and_then(|result| result)
            .map_err(ProxyError::System),
    }
}

/// How many connections of clients there may be.
fn room(wanted: usize) -> usize {
    let open_files = raise_open_files();
    let room = room_for(open_files, DESCRIPTORS, wanted);
    if room < wanted {
        tracing::warn!(
            open_files,
            connections = room,
            wanted,
            "the limit of open files (`ulimit -n`, LimitNOFILE=) allows fewer connections than wanted"
        );
    }
    room
}

fn start_workers(
    config: &ProxyConfig,
    shared: &Arc<Shared>,
    stopping: &watch::Receiver<bool>,
    room: usize,
) -> Result<Vec<Worker>, ProxyError> {
    let count = match config.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    };
    let kept = room.div_ceil(count);
    let ca_file: &Path = &tls::certificate_path(&config.data_dir, &config.default_domain);
    (0..count)
        .map(|number| {
            let stopping = stopping.clone();
            Worker::start(
                number,
                shared.clone(),
                ca_file,
                stopping,
                config.drain,
                kept,
            )
        })
        .collect::<Result<_, _>>()
        .map_err(ProxyError::System)
}
