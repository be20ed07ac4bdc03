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
//! | `streams` | a client's connection of HTTP/2, whose requests take either way |
//! | `sticky`, `names`, `cookies` | clients that stay on a side, or at a target |
//! | `buffered`, `connection`, `calm` | a client's socket; its connection, as pingora wants it; what it may ask for over HTTP/2 |
//! | `announced` | clients that a load balancer in front announces |
//! | `listen`, `worker` | from the listening socket to the thread that serves |
//! | `network` | connections that are carried as they are |
//! | `serve` | from a configuration to a proxy that serves, retires and stops |
//! | `keeper`, `carried` | the process that outlives those that serve, and how one of these follows another |
//! | `fault` | whether a failure is this machine's own |
//! | `control` | tables in, reports out |
//! | `head`, `host` | what of a request's head goes on, and which host it asks for |
//! | `compress` | answers that are compressed on their way |
//! | `own_pages` | pages that environments have of their own |
//! | `statics` | files of releases that are served without their applications |
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
mod buffered;
mod calm;
mod carried;
mod check;
mod compress;
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
mod keeper;
mod listen;
mod names;
mod network;
mod own_pages;
mod pages;
mod rate;
mod redirect;
mod serve;
mod service;
mod shared;
mod statics;
mod sticky;
mod streams;
mod table;
mod target;
mod tls;
mod trace_context;
mod traced;
mod traffic;
mod trailers;
mod worker;

pub use access_log::{LogFormat, LogOptions};
pub use forwarded::Network;
pub use keeper::{
    KeeperConfig, KeeperError, PATIENCE, Program, Reloaded, Successor, keep, reload, serve_kept,
    socket_of,
};
pub use listen::{ListenError, Scheme};
pub use tls::CertificateError;
pub use trace_context::Tracing;

use crate::control::{Control, Known, Since};
use crate::serve::Server;
use beanpole_daemon::files::ReadError;
use beanpole_daemon::socket::{self, BindError};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a proxy with the table of its last run waits for the controller to say whether that is the newest, before
/// it takes requests: they may have been exchanged meanwhile. Clients wait in the backlog.
const NEWEST_TABLE: Duration = Duration::from_millis(500);

/// How long calls of the controller may take to end at a stop.
const CONTROL_PATIENCE: Duration = Duration::from_secs(1);

/// The longest time that the head of a request may take, in seconds, and what it may unless told otherwise.
/// pingora gives up a read that brings nothing for 60 s, without an answer.
pub const LONGEST_HEADER_TIMEOUT: u64 = 50;

/// How long a process that another one has followed may take to finish what it began, unless told otherwise.
pub const LINGER: Duration = Duration::from_hours(1);

/// The most connections of clients, unless told otherwise.
pub const MAX_CONNECTIONS: usize = 50_000;

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
    /// How long a process that another one has followed may take to finish what it began.
    pub linger: Duration,
    /// The most connections of clients; fewer where the limit of open files is low.
    pub max_connections: usize,
    /// Proxies in front whose `X-Forwarded-*` headers are believed.
    pub trusted: Vec<Network>,
    /// How long it waits at its start to be told the newest table, before it takes requests. Unless told: half a
    /// second where it has one of its last run, else not at all. One that is told is one of several: what its first
    /// table has in service was found well by others, and gets requests before it has passed checks here.
    pub table_wait: Option<Duration>,
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
            linger: LINGER,
            max_connections: MAX_CONNECTIONS,
            trusted: Vec::new(),
            table_wait: None,
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
    /// Nobody says what to listen on.
    #[error("cannot hear the keeper on standard input")]
    Keeper(#[source] io::Error),
    /// The system gives no more threads, or the control socket broke.
    #[error("cannot go on")]
    System(#[source] io::Error),
}

/// Carries traffic until `stop`; then finishes what is in flight and returns.
pub async fn run(config: ProxyConfig, stop: CancellationToken) -> Result<(), ProxyError> {
    serve::make_directory(&config)?;
    let control_socket = socket::bind(&config.socket, 0o600, None)
        .await
        .map_err(ProxyError::Socket)?;
    let listeners = listen::bind_all(&config.http, &config.https).map_err(ProxyError::Listen)?;
    let mut server = Server::prepare(&config, listeners, network::Binder::Own)?;
    control::restore(&server.shared, &server.kept.table, Known::Served)
        .map_err(ProxyError::Kept)?;
    let control = Control::new(
        server.shared.clone(),
        server.kept.clone(),
        server.addresses.clone(),
        Since {
            trusts_first: config.table_wait.is_some(),
            ..Since::default()
        },
        stop.clone(),
    );
    let router = control.clone().router();
    let mut serving = tokio::spawn(socket::serve(control_socket, router, stop.clone()));
    match config.table_wait {
        // Whoever stops it meanwhile does not wait for that.
        Some(limit) => {
            let told = control.told_within(limit);
            stop.run_until_cancelled(told).await;
        }
        None if server.has_table() => control.told_within(NEWEST_TABLE).await,
        None => {}
    }
    server.accept();
    // Without a way in for the controller there is no point in going on.
    let early = tokio::select! {
        () = stop.cancelled() => None,
        served = &mut serving => Some(served),
    };
    stop.cancel();
    server.stop().await;
    let served = match early {
        Some(served) => Ok(served),
        // A call that never ends must not keep the proxy.
        None => tokio::time::timeout(CONTROL_PATIENCE, serving).await,
    };
    match served {
        Err(_) => Ok(()),
        Ok(served) => served
            .map_err(io::Error::other)
            .and_then(|result| result)
            .map_err(ProxyError::System),
    }
}
