//! The threads that carry the traffic. Each has a runtime, a pool of connections to targets and
//! its share of the clients: nothing of a request crosses threads.

use crate::announced;
use crate::buffered::Buffered;
use crate::connection::{ConnState, Connection, Patience};
use crate::exchange::{Exchange, Next};
use crate::forwarded::Client;
use crate::listen::{Accepted, Kind};
use crate::network::{self, Came};
use crate::service::{Refuser, Service};
use crate::shared::Shared;
use crate::streams;
use crate::tls::{self, Hello};
use beanpole_daemon::connections::Connections;
use beanpole_daemon::rarely::Rarely;
use pingora_core::apps::{HttpServerApp, HttpServerOptions, ServerApp};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::{HttpProxy, http_proxy};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

/// Connections to targets that a worker keeps for the next request. Below the number of concurrent
/// requests, connections are opened and closed for every request (2.4 times the CPU time).
const KEPT_CONNECTIONS: usize = 1024;
/// Attempts per request: the first, one at another target where nothing was sent, one more where a
/// kept connection turned out to be closed.
const ATTEMPTS: usize = 3;
/// How long a TLS handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long a client's connection is kept for its next request. Longer than the 60 s after which
/// load balancers in front of this one commonly close theirs.
pub const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long a client has to take the refusal of a request.
const REFUSED: Duration = Duration::from_secs(2);
/// How often clients' time is looked at, at least and at most.
const TICKS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How long the end of a connection may take to be sent.
const GOODBYE: Duration = Duration::from_secs(5);
/// Connections on their way to a worker.
const WAITING: usize = 1024;

/// How long clients are waited for.
#[derive(Clone, Copy)]
pub struct Limits {
    /// For the head of a request.
    pub head: Duration,
}

impl Limits {
    fn tick(self) -> Duration {
        (self.head / 8).clamp(TICKS.0, TICKS.1)
    }

    fn patience(self) -> Patience {
        let ticks = |limit: Duration| {
            u32::try_from(limit.as_millis().div_ceil(self.tick().as_millis())).unwrap_or(u32::MAX)
        };
        Patience {
            head: ticks(self.head),
            next: ticks(KEEP_ALIVE),
            refused: ticks(REFUSED),
        }
    }
}

/// Ends connections that are in one phase for too long, as long as it is polled.
pub async fn keep_time(connections: Arc<Connections<ConnState>>, limits: Limits) {
    loop {
        tokio::time::sleep(limits.tick()).await;
        connections.each(|state| state.tick(limits.patience()));
    }
}

/// What ends a worker.
#[derive(Clone)]
pub struct Ends {
    /// When it turns true, the worker takes no more connections and ends when it has none left, which each
    /// client is told by HTTP.
    pub retire: watch::Receiver<bool>,
    /// When it turns true after that, the worker closes what is idle and finishes the requests it has within
    /// `drain`.
    pub stop: watch::Receiver<bool>,
    /// How long requests in flight have at a stop.
    pub drain: Duration,
}

/// A worker's handle.
pub struct Worker {
    /// Where it takes connections from.
    pub connections: mpsc::Sender<Accepted>,
    /// Its thread's runtime.
    pub runtime: Handle,
    done: oneshot::Receiver<()>,
}

impl Worker {
    /// Starts a thread, which ends as `ends` says. `kept` connections to targets at most wait for the next request. `ca_file` is any file of certificates: pingora reads one although
    /// targets are never spoken to over TLS.
    pub fn start(
        number: usize,
        shared: Arc<Shared>,
        ca_file: &Path,
        ends: Ends,
        kept: usize,
    ) -> io::Result<Self> {
        // Both ways keep some, within the same bound of open files.
        let kept = kept.div_ceil(2).min(KEPT_CONNECTIONS);
        let (connections, accepted) = mpsc::channel(WAITING);
        let (ended, done) = oneshot::channel();
        let conf = ServerConf {
            ca_file: Some(ca_file.to_string_lossy().into_owned()),
            threads: 1,
            upstream_keepalive_pool_size: kept,
            max_retries: ATTEMPTS,
            ..ServerConf::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        std::thread::Builder::new()
            .name(format!("proxy-{number}"))
            .spawn(move || {
                let mut app = http_proxy(&Arc::new(conf), Service(shared.clone()));
                let mut options = HttpServerOptions::default();
                // Refused by the service, with a page.
                options.allow_connect_method_proxying = true;
                app.server_options = Some(options);
                let ways = Ways {
                    app: Arc::new(app),
                    exchange: Exchange::new(shared.clone(), kept),
                    shared,
                    refused: Rarely::new(),
                    retire: ends.retire.clone(),
                };
                runtime.block_on(carry(Arc::new(ways), accepted, ends));
                // What is still there after the drain is cut off with the runtime.
                runtime.shutdown_background();
                let _ = ended.send(());
            })?;
        Ok(Self {
            connections,
            runtime: handle,
            done,
        })
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) {
        if !self.done.is_terminated() {
            let _ = (&mut self.done).await;
        }
    }
}

/// The ways that requests can take.
pub struct Ways {
    /// The short one.
    pub exchange: Arc<Exchange>,
    /// The long one.
    pub app: Arc<HttpProxy<Service>>,
    shared: Arc<Shared>,
    /// Clients whose certificates were refused.
    refused: Rarely,
    /// Turns true when connections are to end.
    pub retire: ShutdownWatch,
}

async fn carry(ways: Arc<Ways>, mut accepted: mpsc::Receiver<Accepted>, ends: Ends) {
    let Ends {
        mut retire,
        mut stop,
        drain,
    } = ends;
    let tracker = TaskTracker::new();
    let exchange = ways.exchange.clone();
    let timekeeper = tokio::spawn(async move { exchange.keep_time().await });
    loop {
        tokio::select! {
            biased;
            next = accepted.recv() => match next {
                Some(next) => {
                    tracker.spawn(serve(ways.clone(), next));
                }
                None => break,
            },
            _ = retire.wait_for(|retire| *retire) => break,
        }
    }
    // Accepted before that: these are served if they ask for something.
    accepted.close();
    while let Some(next) = accepted.recv().await {
        tracker.spawn(serve(ways.clone(), next));
    }
    tracker.close();
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => {}
        () = tracker.wait() => {}
    }
    ways.app.cleanup().await;
    if tokio::time::timeout(drain, tracker.wait()).await.is_err() {
        tracing::warn!(
            connections = tracker.len(),
            "connections were cut off at the end of the drain"
        );
    }
    timekeeper.abort();
}

/// What came of a greeting.
enum Greeted {
    /// The client speaks to us.
    Here(Box<Connection>, Arc<Client>),
    /// It came to a listener of network environments; these bytes of it were read.
    Stream(Came, TcpStream, Vec<u8>),
    /// It speaks to an application, and is passed on as it is.
    Passed(Came, Buffered, Hello),
}

async fn serve(ways: Arc<Ways>, accepted: Accepted) {
    let Accepted {
        socket,
        peer,
        local,
        kind,
        place,
    } = accepted;
    let newcomer = Newcomer {
        socket,
        peer,
        local,
    };
    // In a box that goes with it: a connection that rests does not take the memory that greeting takes.
    match Box::pin(greet(&ways, newcomer, kind, place.member())).await {
        Some(Greeted::Here(connection, client)) => converse(&ways, connection, &client).await,
        Some(Greeted::Stream(came, socket, ahead)) => {
            Box::pin(network::serve(&ways.shared, &came, socket, ahead)).await;
        }
        Some(Greeted::Passed(came, io, hello)) => {
            let passed = network::serve_greeted(&ways.shared, &came, io, Some(hello));
            Box::pin(passed).await;
        }
        None => {}
    }
}

/// A socket as it was accepted.
struct Newcomer {
    socket: std::net::TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
}

/// What comes before the first request of a connection; none where it ends with that.
async fn greet(
    ways: &Ways,
    newcomer: Newcomer,
    kind: Kind,
    state: &Arc<ConnState>,
) -> Option<Greeted> {
    let Newcomer {
        socket,
        peer,
        local,
    } = newcomer;
    let accepted = async {
        let mut socket = TcpStream::from_std(socket)?;
        if !ways.shared.proxy_protocol {
            return Ok((socket, peer, Vec::new()));
        }
        let announced = announced::read(&mut socket).await?;
        let peer = announced.client.unwrap_or(peer);
        Ok::<_, io::Error>((socket, peer, announced.rest))
    };
    let made = tokio::select! {
        biased;
        made = accepted => made,
        () = state.unwanted() => return None,
    };
    let (socket, peer, ahead) = match made {
        Ok(made) => made,
        Err(error) => {
            tracing::debug!(%error, %peer, "a client left at once");
            return None;
        }
    };
    let came = || Came {
        peer,
        local,
        state: state.clone(),
    };
    let tls = match kind {
        Kind::Http => None,
        Kind::Https(certificates) => Some(certificates),
        Kind::Stream => return Some(Greeted::Stream(came(), socket, ahead)),
    };
    let mut io = Buffered::accepted(socket, peer, local);
    io.give_back(ahead);
    let client = ways.shared.client(peer.ip(), local.port(), tls.is_some());
    let client = Arc::new(client);
    // Requests that take the long way are told of it so.
    let _ = state.memory.set(client.clone());
    let refuser = Box::new(Refuser {
        shared: ways.shared.clone(),
        client: peer.ip(),
    });
    let Some(certificates) = tls else {
        let connection = Connection::plain(io, state.clone(), refuser);
        return Some(Greeted::Here(Box::new(connection), client));
    };
    let handshake = async {
        let hello = tls::hear(&mut io).await?;
        if network::takes(&ways.shared, local.port(), &hello) {
            return Ok(Err(Greeted::Passed(came(), io, hello)));
        }
        let offer = certificates.greet(&mut io, hello).await?;
        // It is empty: a connection greets once.
        let _ = state.spoken.set(offer.spoken);
        let io = TlsAcceptor::from(offer.config).accept(io).await?;
        Ok::<_, io::Error>(Ok((io, offer.only_greets)))
    };
    let made = tokio::select! {
        biased;
        made = tokio::time::timeout(HANDSHAKE_LIMIT, handshake) => made,
        () = state.unwanted() => return None,
    };
    match made {
        Ok(Ok(Err(passed))) => Some(passed),
        Ok(Ok(Ok((mut io, true)))) => {
            let _ = tokio::time::timeout(GOODBYE, io.shutdown()).await;
            None
        }
        Ok(Ok(Ok((io, false)))) => {
            state.greeted();
            let connection = Connection::tls(io, state.clone(), refuser);
            Some(Greeted::Here(Box::new(connection), client))
        }
        Ok(Err(error)) => {
            // Clients are told little, and who gave them their certificates looks here.
            if let Some(why) = refused_certificate(&error)
                && let Some(times) = ways.refused.again()
            {
                tracing::warn!(%peer, %why, times, "a client's certificate was refused");
            }
            tracing::debug!(%error, %peer, "no TLS handshake");
            None
        }
        Err(_) => None,
    }
}

/// Why a handshake failed, where that was the client's certificate, or that it has none.
fn refused_certificate(error: &io::Error) -> Option<&rustls::Error> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let certificate = matches!(
        error,
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented
    );
    certificate.then_some(error)
}

/// Answers a client's requests, each on its way, until it has no more.
async fn converse(ways: &Arc<Ways>, mut connection: Box<Connection>, client: &Arc<Client>) {
    while !connection.is_h2() {
        let next = ways.exchange.serve(&mut connection, client).await;
        match next {
            Next::End => {
                let _ = tokio::time::timeout(GOODBYE, connection.end()).await;
                if connection.has_more() {
                    let _ = tokio::time::timeout(GOODBYE, connection.drain()).await;
                }
                return;
            }
            Next::OtherWay if connection.may_be_h2() => break,
            Next::OtherWay | Next::OneOtherWay => {}
        }
        // What comes behind a request whose end is not known here is not read by anybody.
        let is_last = next == Next::OtherWay;
        connection.state().last.store(is_last, Relaxed);
        let mut session = ServerSession::new_http1(connection);
        session.set_keepalive((!*ways.retire.borrow()).then_some(KEEP_ALIVE.as_secs()));
        let Some(reused) = ways.app.process_new_http(session, &ways.retire).await else {
            return;
        };
        if is_last {
            return;
        }
        let Ok(back) = reused.consume().0.into_any().downcast::<Connection>() else {
            return;
        };
        connection = back;
    }
    match connection.begins_h2().await {
        // Those that have none rest in less memory.
        Ok(true) => return Box::pin(streams::serve(ways, connection, client)).await,
        Ok(false) => {}
        Err(_) => return,
    }
    let mut next: Option<Stream> = Some(connection);
    while let Some(stream) = next {
        next = ways.app.process_new(stream, &ways.retire).await;
    }
}
