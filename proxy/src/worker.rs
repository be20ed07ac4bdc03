//! The threads that carry the traffic. Each has a runtime, a pool of connections to targets and
//! its share of the clients: nothing of a request crosses threads.

use crate::connection::{Buffered, Connection};
use crate::listen::Accepted;
use crate::service::{Service, Shared};
use pingora_core::apps::{HttpServerOptions, ServerApp};
use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::{HttpProxy, http_proxy};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;

/// Connections to targets that a worker keeps for the next request. Below the number of concurrent
/// requests, connections are opened and closed for every request (2.4 times the CPU time).
const KEPT_CONNECTIONS: usize = 1024;
/// Attempts per request: the first, one at another target where nothing was sent, one more where a
/// kept connection turned out to be closed.
const ATTEMPTS: usize = 3;
/// How long a TLS handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long a request's head may take from its first byte.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// How long an HTTP/2 connection is kept without a request.
const H2_IDLE: Duration = Duration::from_secs(75);
/// Connections on their way to a worker.
const WAITING: usize = 1024;

/// A worker's handle.
pub struct Worker {
    /// Where it takes connections from.
    pub connections: mpsc::Sender<Accepted>,
    done: oneshot::Receiver<()>,
}

impl Worker {
    /// Starts a thread. When `stop` turns true it finishes the requests it has, for at most
    /// `drain`, and then ends. `ca_file` is any file of certificates: pingora reads one although
    /// targets are never spoken to over TLS.
    pub fn start(
        number: usize,
        shared: Arc<Shared>,
        ca_file: &Path,
        stop: watch::Receiver<bool>,
        drain: Duration,
    ) -> io::Result<Self> {
        let (connections, accepted) = mpsc::channel(WAITING);
        let (ended, done) = oneshot::channel();
        let conf = ServerConf {
            ca_file: Some(ca_file.to_string_lossy().into_owned()),
            threads: 1,
            upstream_keepalive_pool_size: KEPT_CONNECTIONS,
            max_retries: ATTEMPTS,
            ..ServerConf::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name(format!("proxy-{number}"))
            .spawn(move || {
                let mut app = http_proxy(&Arc::new(conf), Service(shared));
                let mut options = HttpServerOptions::default();
                options.h2c = true;
                options.h2_idle_timeout = Some(H2_IDLE);
                app.server_options = Some(options);
                runtime.block_on(carry(Arc::new(app), accepted, stop, drain));
                // What is still there after the drain is cut off with the runtime.
                runtime.shutdown_background();
                let _ = ended.send(());
            })?;
        Ok(Self { connections, done })
    }

    /// Waits until it has ended.
    pub async fn ended(self) {
        drop(self.connections);
        let _ = self.done.await;
    }
}

async fn carry(
    app: Arc<HttpProxy<Service>>,
    mut accepted: mpsc::Receiver<Accepted>,
    stop: watch::Receiver<bool>,
    drain: Duration,
) {
    let tracker = TaskTracker::new();
    let mut stopping = stop.clone();
    loop {
        tokio::select! {
            biased;
            next = accepted.recv() => match next {
                Some(next) => {
                    tracker.spawn(serve(app.clone(), next, stop.clone()));
                }
                None => break,
            },
            _ = stopping.wait_for(|stop| *stop) => break,
        }
    }
    // Accepted before the stop: these are served.
    accepted.close();
    while let Some(next) = accepted.recv().await {
        tracker.spawn(serve(app.clone(), next, stop.clone()));
    }
    app.cleanup().await;
    tracker.close();
    if tokio::time::timeout(drain, tracker.wait()).await.is_err() {
        tracing::warn!(
            connections = tracker.len(),
            "connections were cut off at the end of the drain"
        );
    }
}

async fn serve(app: Arc<HttpProxy<Service>>, accepted: Accepted, stop: ShutdownWatch) {
    let Accepted {
        socket,
        peer,
        local,
        tls,
    } = accepted;
    let made = TcpStream::from_std(socket).and_then(|s| Buffered::accepted(s, peer, local));
    let io = match made {
        Ok(io) => io,
        Err(error) => {
            tracing::debug!(%error, %peer, "a client left at once");
            return;
        }
    };
    let connection = match tls {
        None => Connection::plain(io, HEAD_LIMIT),
        Some(config) => {
            let acceptor = Acceptor::from_server_config(config);
            let handshake = acceptor.tls_handshake(io);
            match tokio::time::timeout(HANDSHAKE_LIMIT, handshake).await {
                Ok(Ok(io)) => Connection::tls(io, HEAD_LIMIT),
                Ok(Err(error)) => {
                    tracing::debug!(%error, %peer, "no TLS handshake");
                    return;
                }
                Err(_) => return,
            }
        }
    };
    let mut next: Option<Stream> = Some(Box::new(connection));
    while let Some(stream) = next {
        next = app.process_new(stream, &stop).await;
    }
}
