//! What all workers share, and on which way a request goes by it, whoever carries it.

use crate::access_log::{AccessLog, Entry};
use crate::asker::Asker;
use crate::balance::Pool;
use crate::forwarded::{Client, Network};
use crate::names::Names;
use crate::network::Ports;
use crate::own_pages::OwnPages;
use crate::pages::Page;
use crate::statics::{Hit, Statics};
use crate::sticky::Stay;
use crate::table::{Route, Table};
use crate::target::{Changes, InFlight, TargetState};
use crate::tls::Certificates;
use crate::trace_context::Tracing;
use crate::traced::{Traced, is_traced};
use arc_swap::ArcSwap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often it is looked whether the client of a request that waits for a target is still there.
const LOOK_FOR_CLIENT: Duration = Duration::from_millis(250);

/// What all workers share.
pub struct Shared {
    /// The table in force.
    pub table: ArcSwap<Table>,
    /// Pages that environments have of their own.
    pub own_pages: OwnPages,
    /// Static files of releases.
    pub statics: Arc<Statics>,
    /// What targets are called towards clients.
    pub names: Names,
    /// Wakes the watchers of reports.
    pub changes: Changes,
    /// Cancelled when nothing new goes to targets, which need no checks any more.
    pub retired: CancellationToken,
    /// The access log, if it is kept.
    pub access_log: Option<Arc<AccessLog>>,
    /// What became of requests that somebody asks about.
    pub traced: Traced,
    /// Clients whose forwarding headers are believed.
    pub trusted: Vec<Network>,
    /// The port of HTTPS that clients are sent to, where it is served.
    pub https_port: Option<u16>,
    /// Every connection begins with the announcement of its client.
    pub proxy_protocol: bool,
    /// What is done about requests that belong to no trace.
    pub tracing: Tracing,
    /// What clients of TLS are shown.
    pub certificates: Arc<Certificates>,
    /// The listeners of network environments.
    pub ports: Ports,
}

impl Shared {
    /// A client at `address` that came to `port`.
    pub fn client(&self, address: IpAddr, port: u16, tls: bool) -> Client {
        let address = address.to_canonical();
        let trusted = self.trusted.iter().any(|net| net.contains(address));
        Client::new(address, port, tls, trusted)
    }

    /// Whether anybody wants to know of a request with this id what became of it.
    pub fn tells(&self, id: &[u8]) -> bool {
        self.access_log.is_some() || is_traced(id)
    }

    /// Tells what became of a request.
    pub fn tell(&self, entry: &Entry<'_>) {
        if is_traced(entry.request_id) {
            let table = self.table.load();
            let generation = table.source.as_ref().map(|source| source.generation);
            self.traced.note(entry, generation.unwrap_or_default());
        }
        if let Some(log) = &self.access_log {
            log.add(entry);
        }
    }

    /// The environment's own page for an answer of ours, if it has one and it is here.
    pub fn own_page(&self, pool: &Pool, page: &Page<'_>) -> Option<Arc<str>> {
        let content = &pool.content;
        let closed = content.maintenance.as_ref();
        let digest = match page {
            Page::Maintenance { .. } => closed.and_then(|closed| closed.page.as_ref()),
            _ => None,
        };
        self.own_pages
            .get(digest.or_else(|| content.page(page.status()))?)
    }

    /// The static file that a request gets, if there is one for it, and the pool that it counts for. Whoever is sent
    /// elsewhere, or gets no further than the page of a closed environment, gets none.
    pub fn static_file(&self, host: &str, asker: &Asker<'_>) -> Option<(Arc<Pool>, Hit)> {
        let table = self.table.load();
        let path = asker.text_of_path();
        let route = table.route(host, path, || asker.is_secure())?;
        if !route.has_files() {
            return None;
        }
        let pool = route.side(asker)?;
        let hit = self.statics.find(&pool.content.static_files, path)?;
        let leads_elsewhere = route.leads_elsewhere(asker.is_secure(), self.https_port.is_some());
        let may = !leads_elsewhere && route.closed_to(asker).is_none();
        may.then(|| (pool.clone(), hit))
    }

    /// Chooses a target. On return the request counts as in flight there under the table in force:
    /// once a newer table is confirmed, no request can still be on its way to a target that this
    /// table took out.
    ///
    /// `stay` is the client's, from its first attempt to the last.
    pub fn choose(
        &self,
        host: &str,
        asker: &Asker<'_>,
        except: Option<&Arc<TargetState>>,
        stay: &mut Stay,
    ) -> Way {
        loop {
            let table = self.table.load();
            let secure = || asker.is_secure();
            let Some(route) = table.route(host, asker.text_of_path(), secure) else {
                return Way::UnknownHost;
            };
            if let Some(way) = self.turn(&table, route, asker, except, stay) {
                return way;
            }
        }
    }

    /// The same for a request on the short way: none where it has to take the long one, and then it has had nobody's
    /// turn.
    pub fn choose_short(
        &self,
        host: &str,
        asker: &Asker<'_>,
        stay: &mut Stay,
    ) -> Option<(Arc<Pool>, InFlight)> {
        loop {
            let table = self.table.load();
            let route = table.route(host, asker.text_of_path(), || asker.is_secure())?;
            if route.changes_answers(asker.headers)
                || route.has_files() && self.static_file(host, asker).is_some()
            {
                return None;
            }
            match self.turn(&table, route, asker, None, stay) {
                None => {}
                Some(Way::To(pool, at)) => return Some((pool, at)),
                Some(_) => return None,
            }
        }
    }

    /// The same for a connection to a port, by the name that its client asks for.
    pub fn choose_stream(
        &self,
        port: u16,
        name: Option<&str>,
        asker: &Asker<'_>,
        except: Option<&Arc<TargetState>>,
        stay: &mut Stay,
    ) -> Way {
        loop {
            let table = self.table.load();
            let Some(stream) = table.streams.find(port, name) else {
                return Way::UnknownHost;
            };
            if let Some(way) = self.turn(&table, &stream.route, asker, except, stay) {
                return way;
            }
        }
    }

    /// Waits where that may help: for a target, then for room.
    pub async fn waited(
        &self,
        way: Way,
        mut choose: impl FnMut() -> Way,
        has_left: impl Fn() -> bool,
    ) -> Way {
        let way = self.hold(way, &mut choose, &has_left).await;
        queue(way, choose, has_left).await
    }

    /// Waits for a target, where none can take the request now and its pool lets requests wait.
    async fn hold(
        &self,
        way: Way,
        mut choose: impl FnMut() -> Way,
        has_left: impl Fn() -> bool,
    ) -> Way {
        let Way::NoTarget(Some(pool)) = &way else {
            return way;
        };
        let (Some(hold), Some(_place)) = (pool.hold, pool.place()) else {
            return way;
        };
        pool.counters.held();
        let end = tokio::time::Instant::now() + Duration::from_millis(hold.for_ms);
        let mut news = self.changes.watch();
        loop {
            let way = choose();
            // The next table may say that nothing is waited for any more.
            if !way.may_wait() || tokio::time::Instant::now() >= end {
                return way;
            }
            let look = (tokio::time::Instant::now() + LOOK_FOR_CLIENT).min(end);
            // Nobody but this tells it, and it may never come.
            let _ = tokio::time::timeout_at(look, news.changed()).await;
            if has_left() {
                return Way::ClientLeft;
            }
        }
    }

    /// Takes the next turn of a route; none where its table is in force no more.
    fn turn(
        &self,
        table: &Arc<Table>,
        route: &Route,
        asker: &Asker<'_>,
        except: Option<&Arc<TargetState>>,
        stay: &mut Stay,
    ) -> Option<Way> {
        if route.leads_elsewhere(asker.is_secure(), self.https_port.is_some()) {
            return Some(Way::Elsewhere);
        }
        if let Some(pool) = route.closed_to(asker) {
            return Some(Way::Closed(pool.clone()));
        }
        let (pool, target) = match route.pick(except, asker, stay) {
            None => return Some(Way::NoTarget(None)),
            Some((pool, None)) => return Some(Way::NoTarget(Some(pool.clone()))),
            Some((pool, Some(target))) => (pool.clone(), target),
        };
        let Some(in_flight) = pool.enter(target, except, asker, stay) else {
            return Some(Way::Full(pool));
        };
        Arc::ptr_eq(table, &self.table.load()).then(|| Way::To(pool, in_flight))
    }
}

/// Waits for room, where there is none and its environment lets requests wait for it.
async fn queue(way: Way, mut choose: impl FnMut() -> Way, has_left: impl Fn() -> bool) -> Way {
    let Way::Full(pool) = &way else {
        return way;
    };
    let Some(room) = &pool.room else {
        return way;
    };
    let Some(_place) = room.queue() else {
        return way;
    };
    let end = tokio::time::Instant::now() + Duration::from_millis(room.wanted.wait_ms);
    loop {
        let way = choose();
        if !matches!(way, Way::Full(_)) || tokio::time::Instant::now() >= end {
            return way;
        }
        let look = (tokio::time::Instant::now() + LOOK_FOR_CLIENT).min(end);
        // It may come to another one first.
        let _ = tokio::time::timeout_at(look, room.used().changed()).await;
        if has_left() {
            return Way::ClientLeft;
        }
    }
}

/// Where a request goes.
pub enum Way {
    /// No route has its host.
    UnknownHost,
    /// Its route sends clients elsewhere.
    Elsewhere,
    /// Its environment is closed for a while.
    Closed(Arc<Pool>),
    /// Its route has no target that is fit.
    NoTarget(Option<Arc<Pool>>),
    /// Its route has targets that are fit, and no room for one more request there.
    Full(Arc<Pool>),
    /// Nobody waits for the answer any more.
    ClientLeft,
    /// There.
    To(Arc<Pool>, InFlight),
}

impl Way {
    /// Whether the request may wait for a better one.
    pub fn may_wait(&self) -> bool {
        matches!(self, Self::NoTarget(Some(pool)) if pool.hold.is_some())
    }
}

/// Counts a request that is over: the status that was sent, whether no app answered it, and where one did,
/// when its answer began and how long that took.
pub fn count(
    pool: Option<&Pool>,
    at: Option<&InFlight>,
    status: Option<u16>,
    failed: bool,
    answered: Option<(Instant, Duration)>,
) {
    if let Some(at) = at {
        at.target().counters.record(status, failed, answered);
        let error = failed || status.is_some_and(|status| status >= 500);
        let latency = answered.map(|(_, latency)| latency);
        at.target().release.record(error, latency);
    }
    if let Some(pool) = pool {
        pool.counters.record(status, failed, answered);
        if let (Some(at), Some((began, latency))) = (at, answered) {
            let good = !failed && status.is_some_and(|status| status < 500);
            pool.learn(at.target(), began, latency, good);
        }
    }
}
