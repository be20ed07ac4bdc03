//! A connection's way: greeted where that decides something, given to an instance, carried, told.

use super::relay::{End, Relay, To};
use super::wire::{Ahead, Wire};
use crate::access_log::Entry;
use crate::announcing::{self, Ends};
use crate::asker::{Asker, Headers};
use crate::balance::{self, Pool};
use crate::connection::ConnState;
use crate::fault;
use crate::forwarded::Client;
use crate::service::BROKEN_OFF;
use crate::shared::{Shared, Way, count};
use crate::sticky::Stay;
use crate::target::{CONNECT_TIMEOUT, InFlight, TargetState};
use crate::tls::{self, Alert, First, Hello};
use beanpole_protocol::proxy::StreamMode;
use rustls::server::ServerConfig;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

/// Instances that are tried one after the other before a connection is given up.
const ATTEMPTS: usize = 3;
/// What every greeting of TLS begins with (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;
/// How long a greeting, and a handshake, may take.
const GREETING: Duration = Duration::from_secs(10);
/// How long a client that says nothing is waited for where one that does not speak TLS is taken as well: it may be
/// of a protocol in which the server speaks first.
const SPEAKS: Duration = Duration::from_secs(3);

/// A client that came.
pub struct Came {
    /// Who.
    pub peer: SocketAddr,
    /// Where to.
    pub local: SocketAddr,
    /// What is known of its connection outside.
    pub state: Arc<ConnState>,
}

/// Whether a client that greeted so at a port of ours is passed on as it is.
pub fn takes(shared: &Shared, port: u16, hello: &Hello) -> bool {
    let table = shared.table.load();
    let named = hello.name.as_deref();
    let found = table.streams.port(port);
    let has = found.is_some_and(|port| named.is_some_and(|name| port.has(name)));
    has && !shared.certificates.is_challenge(hello)
}

/// Serves a client of a listener of network environments; `ahead` was read of it.
pub async fn serve(shared: &Arc<Shared>, came: &Came, socket: TcpStream, ahead: Vec<u8>) {
    if socket.set_nodelay(true).is_err() {
        return;
    }
    let mut io = Ahead::new(socket, ahead);
    let port = came.local.port();
    let greeted = tokio::select! {
        biased;
        greeted = tokio::time::timeout(GREETING, greet(shared, port, &mut io)) => greeted,
        () = came.state.unwanted() => return,
    };
    match greeted {
        Ok(Ok(hello)) => serve_greeted(shared, came, io, hello).await,
        Ok(Err(error)) => tracing::debug!(%error, peer = %came.peer, "a client left at once"),
        Err(_) => {}
    }
}

/// Reads what a client says first, as far as it matters; none where it is no greeting of TLS, or does not matter.
async fn greet(shared: &Shared, port: u16, io: &mut Ahead) -> io::Result<Option<Hello>> {
    let (names, any, ends_tls) = {
        let table = shared.table.load();
        let port = table.streams.port(port);
        let any = port.and_then(|port| port.any()).map(|way| way.mode);
        (
            port.is_some_and(super::streams::Port::has_names),
            any,
            any == Some(StreamMode::Terminate),
        )
    };
    if !names && !ends_tls {
        return Ok(None);
    }
    // What is passed on as it is need not be TLS.
    let others = any == Some(StreamMode::Pass);
    if !others {
        return tls::hear(io).await.map(Some);
    }
    let mut bytes = Vec::with_capacity(2048);
    let Ok(read) = tokio::time::timeout(SPEAKS, io.read_buf(&mut bytes)).await else {
        return Ok(None);
    };
    read?;
    let is_tls = bytes.first() == Some(&HANDSHAKE);
    io.give_back(bytes);
    if !is_tls {
        return Ok(None);
    }
    match tls::listen(io).await? {
        First::Hello(hello) => Ok(Some(hello)),
        First::Odd { bytes, .. } => {
            io.give_back(bytes);
            Ok(None)
        }
    }
}

/// Serves a client whose greeting was read, if it matters.
pub async fn serve_greeted<W: Wire>(
    shared: &Arc<Shared>,
    came: &Came,
    mut io: W,
    hello: Option<Hello>,
) {
    let begun = Instant::now();
    let name = hello.as_ref().and_then(|hello| hello.name.clone());
    let port = came.local.port();
    let stream = {
        let table = shared.table.load();
        let found = table.streams.find(port, name.as_deref()).cloned();
        if found.is_none()
            && let Some(port) = table.streams.port(port)
        {
            port.refuse();
        }
        found
    };
    let carried = Carried {
        shared,
        came,
        client: shared.client(came.peer.ip(), port, stream.is_some() && hello.is_some()),
        name: name.unwrap_or_default(),
        begun,
    };
    match (stream.as_deref().map(|stream| stream.mode), hello) {
        (None, None) => io.abort(),
        (None, Some(_)) => {
            // It may have left.
            let _ = tls::refuse(&mut io, Alert::UnrecognisedName).await;
            carried.tell(StreamMode::Pass, None, Some("unknown-host"), 0);
        }
        (Some(StreamMode::Pass), hello) => {
            if let Some(hello) = hello {
                io.give_back(hello.bytes);
            }
            carried.carry(io, StreamMode::Pass).await;
        }
        (Some(StreamMode::Terminate), None) => io.abort(),
        (Some(StreamMode::Terminate), Some(hello)) => {
            let Some(offer) = shared.certificates.offer(&hello) else {
                let _ = tls::refuse(&mut io, Alert::UnrecognisedName).await;
                return carried.tell(StreamMode::Terminate, None, Some("no-certificate"), 0);
            };
            io.give_back(hello.bytes);
            let acceptor = TlsAcceptor::from(without_alpn(&offer.config, offer.only_greets));
            let made = tokio::select! {
                biased;
                made = tokio::time::timeout(GREETING, acceptor.accept(io)) => made,
                () = came.state.unwanted() => return,
            };
            match made {
                Ok(Ok(mut io)) if offer.only_greets => {
                    let _ = tokio::time::timeout(GREETING, io.shutdown()).await;
                }
                Ok(Ok(io)) => carried.carry(io, StreamMode::Terminate).await,
                Ok(Err(error)) => {
                    tracing::debug!(%error, peer = %came.peer, "no TLS handshake");
                }
                Err(_) => {}
            }
        }
    }
}

/// The settings of TLS without protocols to choose from: what is spoken is between the client and the application.
fn without_alpn(config: &Arc<ServerConfig>, only_greets: bool) -> Arc<ServerConfig> {
    if only_greets {
        return config.clone();
    }
    let mut config = ServerConfig::clone(config);
    config.alpn_protocols.clear();
    Arc::new(config)
}

/// A connection to be carried.
struct Carried<'a> {
    shared: &'a Arc<Shared>,
    came: &'a Came,
    client: Client,
    /// The name that it asks for; empty for none.
    name: String,
    begun: Instant,
}

/// Why a connection reaches nobody.
struct Unreached {
    pool: Option<Arc<Pool>>,
    why: &'static str,
}

/// What its end says of the instance: one that breaks off before it has said a word has failed.
fn judge(pool: &Pool, at: &InFlight, ended: Option<&End>, sent: u64) {
    let target = at.target();
    match ended {
        Some(End::App(error)) if sent == 0 => {
            tracing::debug!(%error, instance = %target.target.instance, "an instance broke off");
            target.counters.broke_off();
            target.release.broke_off();
            pool.counters.broke_off();
            target.broke();
            pool.judge(target, balance::End::Failure);
        }
        Some(_) => pool.judge(target, balance::End::Good),
        None => {}
    }
}

impl Carried<'_> {
    fn asker(&self) -> Asker<'_> {
        Asker {
            client: &self.client,
            trusted: &self.shared.trusted,
            path: b"",
            headers: Headers::Raw(b""),
        }
    }

    /// Gives it to an instance and carries it to its end.
    async fn carry<W: Wire>(&self, mut io: W, mode: StreamMode) {
        // Its phases are over: from now on it is at work.
        self.came.state.begin();
        let (pool, mut at, mut app) = match self.reach(&io).await {
            Ok(reached) => reached,
            Err(Unreached { pool, why }) => {
                count(pool.as_deref(), None, None, why != "client-left", None);
                io.abort();
                return self.tell(mode, pool.as_deref().map(|pool| (pool, None)), Some(why), 0);
            }
        };
        at.answered();
        count(Some(&pool), Some(&at), None, false, None);
        let target = at.target().clone();
        let mut relay = Relay::new(pool.idle);
        let (mut sent, mut got) = (0u64, 0u64);
        let ended = {
            let note = |to: To, bytes: usize| {
                let bytes = bytes as u64;
                let (up, down) = match to {
                    To::App => (bytes, 0),
                    To::Client => (0, bytes),
                };
                got += up;
                sent += down;
                pool.counters.carried(up, down);
                target.counters.carried(up, down);
            };
            let mut note = note;
            tokio::select! {
                biased;
                ended = poll_fn(|cx| relay.poll(cx, &mut io, &mut app, &mut note)) => Some(ended),
                () = target.gone.cancelled() => None,
            }
        };
        let why = match &ended {
            Some(End::Whole) => None,
            Some(End::Client) => Some("client-left"),
            Some(End::App(_)) => Some(BROKEN_OFF),
            Some(End::Silent) => Some("idle-timeout"),
            None => Some("instance-left"),
        };
        if why.is_some() {
            io.abort();
            let _ = app.set_zero_linger();
        }
        judge(&pool, &at, ended.as_ref(), sent);
        self.tell(mode, Some((&pool, Some(&target))), why, sent);
    }

    /// An instance, and the connection to it.
    async fn reach<W: Wire>(&self, io: &W) -> Result<(Arc<Pool>, InFlight, TcpStream), Unreached> {
        let mut stay = Stay::default();
        let mut except: Option<Arc<TargetState>> = None;
        let mut tried = None;
        let (port, name) = (self.came.local.port(), Some(self.name.as_str()));
        let name = name.filter(|name| !name.is_empty());
        for _ in 0..ATTEMPTS {
            let asker = self.asker();
            let mut choose = || {
                self.shared
                    .choose_stream(port, name, &asker, except.as_ref(), &mut stay)
            };
            let way = choose();
            let way = self.shared.waited(way, choose, || io.is_gone()).await;
            let (pool, at) = match way {
                Way::To(pool, at) => (pool, at),
                Way::NoTarget(pool) => {
                    let why = "no-healthy-instance";
                    return Err(Unreached { pool, why });
                }
                Way::Full(pool) => {
                    if let Some(room) = &pool.room {
                        room.used().refuse();
                    }
                    let (pool, why) = (Some(pool), "over-capacity");
                    return Err(Unreached { pool, why });
                }
                Way::ClientLeft => {
                    let why = "client-left";
                    return Err(Unreached { pool: None, why });
                }
                Way::UnknownHost | Way::Elsewhere | Way::Closed(_) => {
                    let why = "unknown-host";
                    return Err(Unreached { pool: None, why });
                }
            };
            match self.open(&at).await {
                Ok(app) => return Ok((pool, at, app)),
                Err(error) if fault::is_ours(&error) => {
                    tracing::warn!(%error, "cannot connect to an instance for want of resources here");
                    let (pool, why) = (Some(pool), "proxy-failed");
                    return Err(Unreached { pool, why });
                }
                Err(error) => {
                    let target = at.target().clone();
                    target.eject(fault::of_connecting(&error).to_owned());
                    pool.judge(&target, balance::End::Failure);
                    drop(at);
                    let again = pool.may_retry();
                    tried = Some(pool);
                    if !again {
                        break;
                    }
                    except = Some(target);
                }
            }
        }
        let (pool, why) = (tried, "no-answer");
        Err(Unreached { pool, why })
    }

    /// A connection to an instance, which has been told of the client where it wants to know.
    async fn open(&self, at: &InFlight) -> io::Result<TcpStream> {
        let target = &at.target().target;
        let opening = async {
            let mut app = TcpStream::connect(target.address).await?;
            app.set_nodelay(true)?;
            if let Some(version) = target.upstream.announce {
                let ends = Ends {
                    source: self.came.peer,
                    destination: self.came.local,
                };
                app.write_all(&announcing::preface(version, Some(ends))?)
                    .await?;
            }
            Ok(app)
        };
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, opening).await;
        opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Tells how it ended: statuses are those that nginx gives connections.
    fn tell(
        &self,
        mode: StreamMode,
        at: Option<(&Pool, Option<&Arc<TargetState>>)>,
        why: Option<&'static str>,
        sent: u64,
    ) {
        if self.shared.access_log.is_none() {
            return;
        }
        let target = at.and_then(|(_, target)| target).map(|state| &state.target);
        let status = match (target, why) {
            (Some(_), Some(BROKEN_OFF)) if sent == 0 => 502,
            (Some(_), _) => 200,
            (None, Some("no-answer")) => 502,
            (None, Some("client-left")) => 400,
            (None, Some("unknown-host" | "no-certificate")) => 403,
            (None, Some("proxy-failed")) => 500,
            (None, _) => 503,
        };
        self.shared.tell(&Entry {
            client: self.client.text(),
            host: &self.name,
            method: match mode {
                StreamMode::Pass => "TCP",
                StreamMode::Terminate => "TLS",
            },
            path: &format!(":{}", self.came.local.port()),
            version: "TCP",
            status: Some(status),
            bytes: usize::try_from(sent).unwrap_or(usize::MAX),
            duration: self.begun.elapsed(),
            environment: at.map(|(pool, _)| pool.environment_name.as_str()),
            instance: target.map(|target| target.instance.as_str()),
            release: target.map(|target| target.release.0),
            why,
            ..Entry::NONE
        });
    }
}
