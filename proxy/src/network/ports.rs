//! Listeners that come and go with tables. Where a keeper holds the listeners it opens these as well, so that they
//! outlive this process; what cannot be opened is told and tried again.

use super::streams::Streams;
use crate::connection::ConnState;
use crate::keeper::opened::Asks;
use crate::listen::{self, Accepted, Scheme};
use crate::shared::Shared;
use crate::target::lock;
use beanpole_daemon::connections::Connections;
use beanpole_protocol::proxy::StreamReport;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// From one attempt to open what could not be opened to the next.
const AGAIN: Duration = Duration::from_secs(2);

/// What is known of the listeners outside of the task that keeps them.
pub struct Ports {
    news: watch::Sender<u64>,
    /// None before it was tried for the first time: nothing is said of ports until then.
    failed: Mutex<Option<BTreeMap<u16, String>>>,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            news: watch::Sender::new(0),
            failed: Mutex::default(),
        }
    }
}

impl Ports {
    /// Another table is in force.
    pub fn look(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    /// What is seen of a table's ports.
    pub fn report(&self, streams: &Streams) -> Vec<StreamReport> {
        let failed = lock(&self.failed);
        let Some(failed) = &*failed else {
            return Vec::new();
        };
        let told = streams.report().into_iter();
        told.map(|one| StreamReport {
            failed: failed.get(&one.port).cloned(),
            ..one
        })
        .collect()
    }

    /// Whether that is another than before.
    fn takes(&self, failed: BTreeMap<u16, String>) -> bool {
        let mut known = lock(&self.failed);
        let new = known.as_ref() != Some(&failed);
        for (port, why) in &failed {
            let before = known.as_ref().and_then(|known| known.get(port));
            if before != Some(why) {
                tracing::warn!(port, why, "connections to a port cannot be accepted");
            }
        }
        *known = Some(failed);
        new
    }
}

/// Who opens listeners.
#[derive(Clone)]
pub enum Binder {
    /// This process.
    Own,
    /// The keeper, which holds them.
    Kept(Arc<Asks>),
}

/// What became of an address.
pub type Opened = (SocketAddr, Result<TcpListener, String>);

impl Binder {
    /// Opens those of `wanted` that are `missing`; whatever is not wanted may be closed.
    async fn open(&self, wanted: BTreeSet<SocketAddr>, missing: Vec<SocketAddr>) -> Vec<Opened> {
        let asks = match self {
            Self::Own => None,
            Self::Kept(asks) => Some(asks.clone()),
        };
        let opening = tokio::task::spawn_blocking(move || {
            if let Some(asks) = asks {
                match asks.open(&wanted, &missing) {
                    Ok(opened) => return opened,
                    // A keeper of before that does not open any.
                    Err(error) if asks.is_nobody_there() => {
                        tracing::debug!(%error, "the keeper opens no listeners");
                    }
                    Err(error) => {
                        let why = format!("the keeper does not answer: {error}");
                        return missing
                            .into_iter()
                            .map(|at| (at, Err(why.clone())))
                            .collect();
                    }
                }
            }
            missing
                .into_iter()
                .map(|at| (at, listen::open(at)))
                .collect()
        });
        opening.await.unwrap_or_default()
    }
}

/// Keeps the listeners as the table wants them.
pub struct Keeping {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// Who opens them.
    pub binder: Binder,
    /// The addresses at which each port is listened on.
    pub addresses: Vec<IpAddr>,
    /// The ports on which this proxy listens anyway.
    pub own: Vec<(Scheme, u16)>,
    /// Every connection there is.
    pub connections: Arc<Connections<ConnState>>,
    /// Where they go.
    pub workers: Vec<mpsc::Sender<Accepted>>,
    /// Ends accepting.
    pub enough: CancellationToken,
    /// Ends what was accepted and has no place yet.
    pub stop: CancellationToken,
    /// Knows all that accepts.
    pub accepting: TaskTracker,
}

impl Keeping {
    /// Until nothing is accepted any more.
    pub async fn run(self) {
        let mut news = self.shared.ports.news.subscribe();
        let mut open: BTreeMap<SocketAddr, CancellationToken> = BTreeMap::new();
        while !self.enough.is_cancelled() {
            news.mark_unchanged();
            let failed = self.follow(&mut open).await;
            let again = !failed.is_empty();
            if self.shared.ports.takes(failed) {
                self.shared.changes.tell();
            }
            tokio::select! {
                () = self.enough.cancelled() => break,
                // The sender is in what is shared, which is here.
                _ = news.changed() => {}
                () = tokio::time::sleep(AGAIN), if again => {}
            }
        }
        if !open.is_empty() {
            self.binder.open(BTreeSet::new(), Vec::new()).await;
        }
    }

    /// Opens and closes as the table wants it. Gives why ports cannot be opened.
    async fn follow(
        &self,
        open: &mut BTreeMap<SocketAddr, CancellationToken>,
    ) -> BTreeMap<u16, String> {
        let mut failed = BTreeMap::new();
        let mut wanted = BTreeSet::new();
        {
            let table = self.shared.table.load();
            for port in table.streams.numbers() {
                match self.own.iter().find(|(_, own)| *own == port) {
                    None => {
                        wanted.extend(self.addresses.iter().map(|ip| SocketAddr::new(*ip, port)));
                    }
                    Some((Scheme::Https, _)) if table.streams.find(port, None).is_none() => {}
                    Some((scheme, _)) => {
                        failed.insert(port, own_port(*scheme, port));
                    }
                }
            }
        }
        let before = open.len();
        open.retain(|at, accepting| {
            let stays = wanted.contains(at);
            if !stays {
                accepting.cancel();
            }
            stays
        });
        let missing: Vec<SocketAddr> = wanted
            .iter()
            .filter(|at| !open.contains_key(at))
            .copied()
            .collect();
        if missing.is_empty() && open.len() == before {
            return failed;
        }
        for (at, opened) in self.binder.open(wanted, missing).await {
            let accepted = opened.and_then(|listener| self.accept(listener));
            match accepted {
                Ok(accepting) => {
                    open.insert(at, accepting);
                }
                Err(why) => {
                    failed.entry(at.port()).or_insert(why);
                }
            }
        }
        failed
    }

    /// Accepts from a listener until the token that comes back is cancelled.
    fn accept(&self, listener: TcpListener) -> Result<CancellationToken, String> {
        let made = || {
            listener.set_nonblocking(true)?;
            tokio::net::TcpListener::from_std(listener)
        };
        let listener = made().map_err(|error| error.to_string())?;
        let enough = self.enough.child_token();
        self.accepting.spawn(listen::accept(
            listener,
            listen::Kind::Stream,
            self.connections.clone(),
            self.workers.clone(),
            enough.clone(),
            self.stop.clone(),
        ));
        Ok(enough)
    }
}

/// Why a port is not taken for streams.
fn own_port(scheme: Scheme, port: u16) -> String {
    match scheme {
        Scheme::Http => format!(
            "this load balancer listens on port {port} itself, for HTTP; choose another port for the environment"
        ),
        Scheme::Https => format!(
            "this load balancer listens on port {port} itself, for HTTPS; set RouteBySNI=true to share it by \
             hostnames, or choose another port for the environment"
        ),
    }
}
