//! From a configuration and listeners to a proxy that serves, retires and stops.

use crate::access_log::{AccessLog, Writer};
use crate::connection::ConnState;
use crate::control::{self, Kept};
use crate::listen::{self, Scheme};
use crate::names::Names;
use crate::network::{Binder, Keeping, Ports};
use crate::own_pages::OwnPages;
use crate::shared::Shared;
use crate::statics::Statics;
use crate::target::Changes;
use crate::traced::Traced;
use crate::worker::{self, Ends, KEEP_ALIVE, Limits, Worker};
use crate::{ProxyConfig, ProxyError, tls};
use arc_swap::ArcSwap;
use beanpole_daemon::connections::{Connections, Member, raise_open_files, room_for};
use pingora_timeout::fast_timeout::set_fast_timeout_to_tokio_threshold;
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// pingora shares timers up to this long (in whole seconds) among the requests of a thread, keeps each
/// until it has run out, and needs a thread for them that wakes 100 times a second. Longer ones are
/// tokio's, which forgets them with their request, at less than half the cost.
const LONGEST_SHARED_TIMER: Duration = Duration::ZERO;

/// File descriptors for each connection: its own, one to a target, one that is kept for the next request.
const DESCRIPTORS: u64 = 3;

/// A proxy that is ready to serve, or serves.
pub struct Server {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// Where what is in force is kept.
    pub kept: Kept,
    /// Where it listens, with the scheme.
    pub addresses: Vec<String>,
    listeners: Vec<(Scheme, TcpListener)>,
    /// Who opens the listeners of network environments.
    binder: Binder,
    connections: Arc<Connections<ConnState>>,
    workers: Vec<Worker>,
    retire_workers: watch::Sender<bool>,
    stop_workers: watch::Sender<bool>,
    timekeeper: JoinHandle<()>,
    accepting: TaskTracker,
    /// Ends accepting.
    enough: CancellationToken,
    /// Ends what was accepted and has no place yet.
    stop: CancellationToken,
    log_writer: Option<Writer>,
}

/// Makes the directory in which a proxy keeps what it has to know.
pub fn make_directory(config: &ProxyConfig) -> Result<(), ProxyError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.data_dir)
        .map_err(|source| ProxyError::DataDir {
            path: config.data_dir.clone(),
            source,
        })
}

impl Server {
    /// Makes all ready that serving takes, with the certificates of the last run and without a table.
    pub fn prepare(
        config: &ProxyConfig,
        listeners: Vec<(Scheme, TcpListener)>,
        binder: Binder,
    ) -> Result<Self, ProxyError> {
        set_fast_timeout_to_tokio_threshold(Some(LONGEST_SHARED_TIMER));
        let directory = &config.data_dir;
        let domain = &config.default_domain;
        let shown = tls::self_signed(directory, domain).map_err(ProxyError::Certificate)?;
        let certificates = tls::Certificates::new(shown, domain).map_err(ProxyError::Tls)?;
        let certificates = Arc::new(certificates);
        let kept = Kept::new(directory);
        control::restore_certificates(&certificates, &kept.certificates)
            .map_err(ProxyError::Kept)?;

        let mut https_port = None;
        let mut addresses = Vec::new();
        for (scheme, listener) in &listeners {
            let bound = listener.local_addr().map_err(ProxyError::System)?;
            if *scheme == Scheme::Https {
                https_port.get_or_insert(bound.port());
            }
            addresses.push(format!("{scheme}://{bound}"));
        }
        let (access_log, log_writer) = open_log(config)?;
        let names = Names::kept_at(&directory.join("session-key.json"));
        let cannot_be_used = |source| ProxyError::DataDir {
            path: directory.clone(),
            source,
        };
        let names = names.map_err(cannot_be_used)?;
        names.take(certificates.session_key());
        let shared = Arc::new(Shared {
            table: ArcSwap::default(),
            names,
            own_pages: OwnPages::restore(directory.join("pages")).map_err(cannot_be_used)?,
            statics: Statics::restore(&directory.join("static"))
                .map(Arc::new)
                .map_err(cannot_be_used)?,
            changes: Changes::default(),
            retired: CancellationToken::new(),
            access_log,
            traced: Traced::default(),
            tracing: config.tracing,
            trusted: config.trusted.clone(),
            https_port: config.public_https_port.or(https_port),
            proxy_protocol: config.proxy_protocol,
            certificates,
            ports: Ports::default(),
        });
        let room = room(config.max_connections);
        let connections = Connections::new(room);
        let (retire_workers, retire) = watch::channel(false);
        let (stop_workers, stop) = watch::channel(false);
        let ends = Ends {
            retire,
            stop,
            drain: config.drain,
        };
        let workers = start_workers(config, &shared, &ends, room)?;
        let limits = Limits {
            head: config.header_timeout,
        };
        let timekeeper = tokio::spawn(worker::keep_time(connections.clone(), limits));
        tracing::info!(listeners = ?addresses, workers = workers.len(), connections = room, "the proxy serves");
        Ok(Self {
            shared,
            kept,
            addresses,
            listeners,
            binder,
            connections,
            workers,
            retire_workers,
            stop_workers,
            timekeeper,
            accepting: TaskTracker::new(),
            enough: CancellationToken::new(),
            stop: CancellationToken::new(),
            log_writer,
        })
    }

    /// Whether a table is in force.
    pub fn has_table(&self) -> bool {
        self.shared.table.load().source.is_some()
    }

    /// Takes connections from now on.
    pub fn accept(&mut self) {
        let keeping = self.keeping();
        self.accepting.spawn(keeping.run());
        // A single worker accepts for itself, and need not be woken by another thread for it. Where there are several,
        // none of them is to wait for what another one is at.
        let alone = match self.workers.as_slice() {
            [only] => Some(only.runtime.clone()),
            _ => None,
        };
        for (scheme, listener) in self.listeners.drain(..) {
            let kind = match scheme {
                Scheme::Http => listen::Kind::Http,
                Scheme::Https => listen::Kind::Https(self.shared.certificates.clone()),
            };
            let accepting = listen::accept(
                listener,
                kind,
                self.connections.clone(),
                self.workers.iter().map(|w| w.connections.clone()).collect(),
                self.enough.clone(),
                self.stop.clone(),
            );
            match &alone {
                Some(runtime) => self.accepting.spawn_on(accepting, runtime),
                None => self.accepting.spawn(accepting),
            };
        }
        self.accepting.close();
    }

    /// What keeps the listeners of network environments: at the addresses of the ones for HTTP.
    fn keeping(&self) -> Keeping {
        let bound = || {
            let listeners = self.listeners.iter();
            listeners.filter_map(|(scheme, one)| Some((*scheme, one.local_addr().ok()?)))
        };
        let at = |wanted| {
            let of = bound().filter(move |(scheme, _)| *scheme == wanted);
            let addresses: BTreeSet<IpAddr> = of.map(|(_, at)| at.ip()).collect();
            Vec::from_iter(addresses)
        };
        let http = at(Scheme::Http);
        Keeping {
            shared: self.shared.clone(),
            binder: self.binder.clone(),
            addresses: if http.is_empty() {
                at(Scheme::Https)
            } else {
                http
            },
            own: bound().map(|(scheme, at)| (scheme, at.port())).collect(),
            connections: self.connections.clone(),
            workers: self.workers.iter().map(|w| w.connections.clone()).collect(),
            enough: self.enough.clone(),
            stop: self.stop.clone(),
            accepting: self.accepting.clone(),
        }
    }

    /// Accepts nothing more, and is done when the last connection has ended by itself: each is ended with an
    /// answer that says so (HTTP/1.1), or by GOAWAY (HTTP/2); WebSockets end when they do.
    pub async fn retire(&mut self) {
        self.enough.cancel();
        self.listeners.clear();
        self.accepting.close();
        self.accepting.wait().await;
        self.connections.each(ConnState::retire);
        let _ = self.retire_workers.send(true);
        let (connections, shared) = (self.connections.clone(), self.shared.clone());
        // What has been idle for that long would be closed in any case.
        let idle = tokio::spawn(async move {
            tokio::time::sleep(KEEP_ALIVE).await;
            connections.each(Member::leave);
            shared.retired.cancel();
        });
        for worker in &mut self.workers {
            worker.ended().await;
        }
        idle.abort();
    }

    /// Accepts nothing more, closes what is idle, and finishes the rest within the time for that.
    pub async fn stop(mut self) {
        self.enough.cancel();
        self.stop.cancel();
        self.listeners.clear();
        self.accepting.close();
        self.accepting.wait().await;
        let _ = self.retire_workers.send(true);
        let _ = self.stop_workers.send(true);
        self.connections.each(ConnState::finish);
        for worker in &mut self.workers {
            worker.ended().await;
        }
        self.end().await;
    }

    /// Writes what is left of the log, once the workers have ended.
    pub async fn end(self) {
        self.timekeeper.abort();
        if let Some(writer) = self.log_writer {
            // It may wait for the disk.
            let _ = tokio::task::spawn_blocking(move || writer.stop()).await;
        }
        tracing::info!("the proxy has stopped");
    }
}

type Log = (Option<Arc<AccessLog>>, Option<Writer>);

fn open_log(config: &ProxyConfig) -> Result<Log, ProxyError> {
    let Some(path) = &config.access_log else {
        return Ok((None, None));
    };
    if let Some(parent) = path.parent() {
        // Should this fail, opening the file tells why.
        let _ = std::fs::create_dir_all(parent);
    }
    let opened = AccessLog::open(path, config.log_options);
    let (log, writer) = opened.map_err(|source| ProxyError::AccessLog {
        path: path.clone(),
        source,
    })?;
    Ok((Some(log), Some(writer)))
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
    ends: &Ends,
    room: usize,
) -> Result<Vec<Worker>, ProxyError> {
    let count = match config.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    };
    let kept = room.div_ceil(count);
    let ca_file: &Path = &tls::certificate_path(&config.data_dir, &config.default_domain);
    (0..count)
        .map(|number| Worker::start(number, shared.clone(), ca_file, ends.clone(), kept))
        .collect::<Result<_, io::Error>>()
        .map_err(ProxyError::System)
}
