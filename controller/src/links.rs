//! The connections to agents and proxies: orders and tables go out, reports come in.

use crate::app::App;
use crate::deltas::Bundles;
use crate::services::{certificates, edges, hosts};
use crate::statics::Statics;
use beanpole_engine::Observed;
use beanpole_fleet::{
    AgentClient, BundleSource, Changeover, Dialer, HostLink, HostLinkConfig, LinkEvent, LinkNews,
    OrdersTrouble, PageSource, ProxyEvent, ProxyLink, ProxyLinkConfig, ProxyNews, Pushes,
    StaticSource,
};
use beanpole_protocol::agent::{FOREIGN_CONTROLLER, HostOrders, HostReport, Owner};
use beanpole_protocol::proxy::RoutingTable;
use beanpole_protocol::tls::CertificateSet;
use beanpole_protocol::{AgentId, Digest, HostId};
use beanpole_store::Store;
use beanpole_store::blobs::Blobs;
use beanpole_store::model::PageRecord;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, watch};

/// The name of a proxy on this machine, counted from 0.
pub(crate) fn local_proxy(number: usize) -> String {
    match number {
        0 => "local".to_owned(),
        number => format!("local-{}", number + 1),
    }
}

/// Whether a load balancer on this machine may have that name.
pub(crate) fn is_local_proxy(name: &str) -> bool {
    name == "local"
        || name
            .strip_prefix("local-")
            .is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Events of links that wait to be taken in.
const EVENTS_WAITING: usize = 256;
/// Bundles that are pushed at the same time.
const PUSHES_AT_ONCE: usize = 16;

/// What a link last said about itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkState {
    /// It has been connected since the controller started.
    pub(crate) was_connected: bool,
    /// Why it is not connected now.
    pub(crate) trouble: Option<String>,
    /// The key that it shows instead of the pinned one.
    pub(crate) shown_key: Option<String>,
    /// Its clock less the controller's, in milliseconds.
    pub(crate) clock_skew_ms: Option<i64>,
    /// Why its agent refuses its orders.
    pub(crate) refused: Option<String>,
    /// Why its agent does not take its orders, though it would.
    pub(crate) not_taken: Option<String>,
    /// What its agent last said of itself that records know.
    noted: Option<Whose>,
}

/// Which agent a host has, and which other controller it belongs to.
pub(crate) type Whose = (Option<AgentId>, Option<Owner>);

struct Host {
    orders: watch::Sender<HostOrders>,
    link: Option<HostLink>,
    /// Its load balancer, by name, and the link to it.
    edge: Option<(String, ProxyLink)>,
    state: LinkState,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            orders: watch::Sender::new(HostOrders::default()),
            link: None,
            edge: None,
            state: LinkState::default(),
        }
    }
}

/// All links.
pub(crate) struct Links {
    hosts: Mutex<BTreeMap<HostId, Host>>,
    table: watch::Sender<RoutingTable>,
    certificates: watch::Sender<CertificateSet>,
    proxies: Mutex<Vec<ProxyLink>>,
    /// How each proxy is reached, by name.
    dialers: Mutex<BTreeMap<String, Dialer>>,
    changeover: Changeover,
    bundles: Arc<dyn BundleSource>,
    pages: Arc<dyn PageSource>,
    statics: Arc<dyn StaticSource>,
    pushes: Arc<Pushes>,
    host_events: mpsc::Sender<LinkEvent>,
    proxy_events: mpsc::Sender<ProxyEvent>,
}

/// What links say, on its way to [`Incoming::take_in`].
pub(crate) struct Incoming {
    hosts: mpsc::Receiver<LinkEvent>,
    proxies: mpsc::Receiver<ProxyEvent>,
}

/// Pages for load balancers.
struct Pages(Store);

impl PageSource for Pages {
    fn page(&self, digest: &Digest) -> Option<String> {
        match self.0.get::<PageRecord>(&PageRecord::key_of(digest)) {
            Ok(record) => record.map(|record| record.html),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a page cannot be read"
                );
                None
            }
        }
    }
}

impl Links {
    /// No links yet. `rate` bounds pushes over all hosts, in bytes per second.
    pub(crate) fn new(store: Store, blobs: Arc<Blobs>, rate: Option<u64>) -> (Self, Incoming) {
        let (host_events, hosts) = mpsc::channel(EVENTS_WAITING);
        let (proxy_events, proxies) = mpsc::channel(EVENTS_WAITING);
        let links = Self {
            hosts: Mutex::default(),
            table: watch::Sender::new(RoutingTable::default()),
            certificates: watch::Sender::new(CertificateSet::default()),
            proxies: Mutex::default(),
            dialers: Mutex::default(),
            changeover: Changeover::default(),
            statics: Arc::new(Statics::new(Arc::clone(&blobs))),
            bundles: Arc::new(Bundles::new(blobs)),
            pages: Arc::new(Pages(store)),
            pushes: Pushes::new(rate, PUSHES_AT_ONCE),
            host_events,
            proxy_events,
        };
        (links, Incoming { hosts, proxies })
    }

    fn hosts(&self) -> MutexGuard<'_, BTreeMap<HostId, Host>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a host's link its newest orders; keeps them for one that has no link yet, unless it is not
    /// `there` any more.
    pub(crate) fn publish_orders<E>(
        &self,
        host: &HostId,
        orders: HostOrders,
        there: impl FnOnce() -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut hosts = self.hosts();
        // Under the lock: a removal deletes the record before it forgets what is here.
        if !hosts.contains_key(host) && !there()? {
            return Ok(());
        }
        let host = hosts.entry(host.clone()).or_default();
        host.orders.send_if_modified(|last| {
            let newer = orders.generation > last.generation;
            if newer {
                *last = orders;
            }
            newer
        });
        Ok(())
    }

    /// Gives proxies the newest table.
    pub(crate) fn publish_table(&self, table: RoutingTable) {
        self.table.send_if_modified(|last| {
            let newer = table.generation > last.generation;
            if newer {
                *last = table;
            }
            newer
        });
    }

    /// Gives proxies the newest certificates.
    pub(crate) fn publish_certificates(&self, set: CertificateSet) {
        self.certificates.send_if_modified(|last| {
            let newer = set.generation > last.generation;
            if newer {
                *last = set;
            }
            newer
        });
    }

    /// Starts the link to a host, in the place of one that runs.
    pub(crate) fn start_host(&self, app: &App, id: &HostId, dialer: Dialer) {
        app.observations
            .change(|seen| seen.orders_not_taken(id, None));
        let mut hosts = self.hosts();
        let host = hosts.entry(id.clone()).or_default();
        host.state.trouble = None;
        host.state.shown_key = None;
        host.state.refused = None;
        host.state.not_taken = None;
        host.state.noted = None;
        let link = HostLink::spawn(
            HostLinkConfig {
                host: id.clone(),
                controller: app.identity.id.clone(),
                dialer,
                orders: host.orders.subscribe(),
                bundles: Arc::clone(&self.bundles),
                pushes: Arc::clone(&self.pushes),
                events: self.host_events.clone(),
            },
            &app.stop,
        );
        // What led through the link before ends with that.
        if let Some((name, _ended)) = host.edge.take() {
            host.edge = Some(self.edge_link(app, name, &link));
        }
        host.link = Some(link);
    }

    /// Starts the link to a host's load balancer, or ends it.
    pub(crate) async fn set_edge(&self, app: &App, id: &HostId, name: Option<&str>) {
        let ended = {
            let mut hosts = self.hosts();
            let Some(host) = hosts.get_mut(id) else {
                return;
            };
            match (name, &host.link, host.edge.take()) {
                (Some(name), Some(link), None) => {
                    host.edge = Some(self.edge_link(app, name.to_owned(), link));
                    None
                }
                (Some(_), _, there) => {
                    host.edge = there;
                    None
                }
                (None, _, there) => there,
            }
        };
        if let Some((_, link)) = ended {
            link.stop().await;
        }
    }

    fn edge_link(&self, app: &App, name: String, host: &HostLink) -> (String, ProxyLink) {
        let agent = host.client();
        let link = self.proxy_link(app, &name, Dialer::Edge { agent });
        (name, link)
    }

    /// Ends the link to a host and forgets it.
    pub(crate) async fn forget_host(&self, id: &HostId) {
        let host = self.hosts().remove(id);
        let (edge, link) = host.map(|host| (host.edge, host.link)).unwrap_or_default();
        if let Some((_, edge)) = edge {
            edge.stop().await;
        }
        if let Some(link) = link {
            link.stop().await;
        }
    }

    /// Starts the link to a proxy.
    pub(crate) fn start_proxy(&self, app: &App, name: &str, dialer: Dialer) {
        let link = self.proxy_link(app, name, dialer);
        let mut proxies = self.proxies.lock().unwrap_or_else(PoisonError::into_inner);
        proxies.push(link);
    }

    fn proxy_link(&self, app: &App, name: &str, dialer: Dialer) -> ProxyLink {
        self.dialers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned(), dialer.clone());
        ProxyLink::spawn(
            ProxyLinkConfig {
                proxy: name.to_owned(),
                dialer,
                table: self.table.subscribe(),
                pages: Arc::clone(&self.pages),
                statics: Arc::clone(&self.statics),
                pushes: Arc::clone(&self.pushes),
                changeover: self.changeover.clone(),
                certificates: self.certificates.subscribe(),
                events: self.proxy_events.clone(),
            },
            &app.stop,
        )
    }

    /// How each proxy is reached, by name.
    pub(crate) fn proxies(&self) -> BTreeMap<String, Dialer> {
        let dialers = self.dialers.lock();
        dialers.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Calls to a host's agent; none when it has no link.
    pub(crate) fn client(&self, id: &HostId) -> Option<AgentClient> {
        self.hosts()
            .get(id)
            .and_then(|host| host.link.as_ref())
            .map(HostLink::client)
    }

    /// What a host's link last said about itself.
    pub(crate) fn state(&self, id: &HostId) -> LinkState {
        self.hosts()
            .get(id)
            .map(|host| host.state.clone())
            .unwrap_or_default()
    }

    /// Whether there is such a host. A link that has ended may have left some of its news on the way.
    fn knows(&self, id: &HostId) -> bool {
        self.hosts().contains_key(id)
    }

    /// What a host's agent last said of itself that records know.
    pub(crate) fn whose(&self, id: &HostId) -> Option<Whose> {
        self.hosts()
            .get(id)
            .and_then(|host| host.state.noted.clone())
    }

    /// Has the next report written down again.
    pub(crate) fn forget_whose(&self, id: &HostId) {
        self.change_state(id, |state| state.noted = None);
    }

    fn change_state<T>(&self, id: &HostId, change: impl FnOnce(&mut LinkState) -> T) -> Option<T> {
        self.hosts().get_mut(id).map(|host| change(&mut host.state))
    }

    /// Ends all links.
    pub(crate) async fn stop(&self) {
        let hosts = std::mem::take(&mut *self.hosts());
        for host in hosts.into_values() {
            if let Some((_, edge)) = host.edge {
                edge.stop().await;
            }
            if let Some(link) = host.link {
                link.stop().await;
            }
        }
        let proxies = {
            let mut all = self.proxies.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *all)
        };
        for proxy in proxies {
            proxy.stop().await;
        }
    }
}

impl Incoming {
    /// Takes in what links say, and wakes the engine, until the controller stops.
    pub(crate) async fn take_in(mut self, app: App) {
        loop {
            tokio::select! {
                () = app.stop.cancelled() => return,
                Some(event) = self.hosts.recv() => from_host(&app, event),
                Some(event) = self.proxies.recv() => from_proxy(&app, event),
            }
        }
    }
}

/// Notes what was seen of a host, unless it was removed in the meantime.
fn see(app: &App, host: &HostId, change: impl FnOnce(&mut Observed)) {
    app.observations.change(|seen| {
        // Within the change: a removal forgets the link before it forgets what was seen.
        if app.links.knows(host) {
            change(seen);
        }
    });
}

/// Why orders were not taken: for a sentence, and in the agent's own words.
fn words(trouble: &OrdersTrouble) -> (String, String) {
    match trouble {
        OrdersTrouble::Told(problem) if problem.code == "disk-full" => {
            let short = "its disk is full";
            (short.to_owned(), format!("{short}. {}", problem.detail))
        }
        OrdersTrouble::Told(problem) => {
            let short = problem.detail.trim_end_matches('.');
            (short.to_owned(), problem.detail.clone())
        }
        OrdersTrouble::Lost(reason) => (reason.clone(), format!("{reason}.")),
    }
}

fn from_host(app: &App, event: LinkEvent) {
    let LinkEvent { host, news, .. } = event;
    match news {
        LinkNews::Connecting | LinkNews::BundleProgress { .. } => return,
        LinkNews::OrdersConfirmed { .. } => {
            let was = app.links.change_state(&host, |state| {
                let refused = state.refused.take().is_some();
                (refused, state.not_taken.take().is_some())
            });
            let Some((refused, not_taken)) = was.filter(|was| *was != (false, false)) else {
                return;
            };
            see(app, &host, |seen| seen.orders_not_taken(&host, None));
            if not_taken {
                hosts::note_orders(app, &host, None);
            }
            tracing::info!(%host, refused, "the agent takes its orders again");
        }
        LinkNews::OrdersNotTaken {
            generation,
            trouble,
        } => {
            let (why, words) = words(&trouble);
            let before = app.links.change_state(&host, |state| {
                state.refused = None;
                state.not_taken.replace(words.clone())
            });
            see(app, &host, |seen| seen.orders_not_taken(&host, Some(why)));
            if before.is_some_and(|before| before.as_ref() != Some(&words)) {
                tracing::warn!(%host, %generation, words, "the agent cannot take its orders");
                hosts::note_orders(app, &host, Some(words));
            }
        }
        LinkNews::Connected { .. } => {
            let was = app.links.change_state(&host, |state| {
                state.trouble = None;
                state.shown_key = None;
                std::mem::replace(&mut state.was_connected, true)
            });
            tracing::info!(%host, "host connected");
            see(app, &host, |seen| seen.host_connected(&host, true));
            if was == Some(true) {
                hosts::note_connection(app, &host, None);
            }
        }
        LinkNews::Unreachable { reason, .. } => {
            let first = app.links.change_state(&host, |state| {
                state.not_taken = None;
                state.trouble.replace(reason.clone()).is_none() && state.was_connected
            });
            see(app, &host, |seen| {
                seen.host_connected(&host, false);
                seen.orders_not_taken(&host, None);
            });
            if first == Some(true) {
                tracing::warn!(%host, reason, "host disconnected");
                hosts::note_connection(app, &host, Some(reason));
            } else {
                tracing::debug!(%host, reason, "host not reached");
            }
        }
        LinkNews::KeyChanged { pinned, shown } => {
            let trouble = format!(
                "It shows the host key {}, but {} is pinned.",
                shown.fingerprint, pinned.fingerprint
            );
            let first = app.links.change_state(&host, |state| {
                state.trouble = Some(trouble.clone());
                state.shown_key.replace(shown.fingerprint.clone()).is_none()
            });
            see(app, &host, |seen| seen.host_connected(&host, false));
            if first == Some(true) {
                tracing::warn!(%host, trouble, "the host key has changed");
                hosts::note_connection(app, &host, Some(trouble));
            }
        }
        LinkNews::Report {
            report,
            clock_skew_ms,
        } => {
            app.links.change_state(&host, |state| {
                state.clock_skew_ms = Some(clock_skew_ms);
            });
            note_whose(app, &host, &report);
            let ours = report.is_of(&app.identity.id);
            see(app, &host, |seen| {
                let at = app.time.now();
                if ours {
                    seen.host_is_ours(&host);
                    seen.host_report(&host, Arc::unwrap_or_clone(report), at);
                } else {
                    seen.host_taken(&host, at);
                }
            });
        }
        LinkNews::OrdersRefused {
            generation,
            problem,
        } => {
            tracing::warn!(%host, %generation, %problem, "the agent refuses its orders");
            match problem.code.as_str() {
                // Its reports say whose it is.
                FOREIGN_CONTROLLER => return,
                "generation-reused" => {
                    see(app, &host, |seen| seen.generation_reused(&host, generation));
                }
                _ => {}
            }
            let why = format!(
                "its agent refuses them ({})",
                problem.detail.trim_end_matches('.')
            );
            see(app, &host, |seen| seen.orders_not_taken(&host, Some(why)));
            let refused = Some(problem.to_string());
            app.links.change_state(&host, |state| {
                state.not_taken = None;
                state.refused = refused;
            });
        }
        LinkNews::BundleSent { digest, bytes } => {
            see(app, &host, |seen| seen.bundle_sent(&host, &digest, bytes));
            return;
        }
        LinkNews::BundleDone { digest } => {
            tracing::info!(%host, bundle = digest.short(), "bundle delivered");
            return;
        }
        LinkNews::BundleFailed { digest, reason } => {
            tracing::warn!(%host, bundle = digest.short(), reason, "bundle not delivered");
            return;
        }
    }
    app.wake();
}

/// Has the records follow what a host's agent says of itself and of whose it is.
fn note_whose(app: &App, host: &HostId, report: &HostReport) {
    let taken = report
        .owner
        .clone()
        .filter(|owner| owner.controller.id != app.identity.id);
    let said = (report.agent.clone(), taken);
    let news = app.links.change_state(host, |state| {
        let news = state.noted.as_ref() != Some(&said);
        state.noted = Some(said);
        news
    });
    if news == Some(true) {
        hosts::note_whose(app, host);
    }
}

/// Notes what was seen of a proxy, unless it was removed in the meantime.
fn see_proxy(app: &App, proxy: &str, change: impl FnOnce(&mut Observed)) {
    app.observations.change(|seen| {
        if seen.proxies.contains_key(proxy) {
            change(seen);
        }
    });
}

fn is_connected(app: &App, proxy: &str) -> bool {
    let observed = app.observations.snapshot();
    let seen = observed.proxies.get(proxy);
    seen.is_some_and(|seen| seen.connected)
}

fn from_proxy(app: &App, event: ProxyEvent) {
    let ProxyEvent { proxy, news, .. } = event;
    match news {
        ProxyNews::Connected => {
            tracing::info!(proxy, "proxy connected");
            if !is_connected(app, &proxy) {
                edges::note_connection(app, &proxy, None);
            }
            see_proxy(app, &proxy, |seen| seen.proxy_connected(&proxy, true));
        }
        ProxyNews::Unreachable { reason, .. } => {
            tracing::debug!(proxy, reason, "proxy not reached");
            if is_connected(app, &proxy) {
                tracing::warn!(proxy, reason, "proxy disconnected");
                edges::note_connection(app, &proxy, Some(reason));
            }
            see_proxy(app, &proxy, |seen| seen.proxy_connected(&proxy, false));
            app.certificates.note(&proxy, None);
        }
        ProxyNews::Report(report) => {
            let report = Arc::unwrap_or_clone(report);
            let at = app.time.now();
            see_proxy(app, &proxy, |seen| seen.proxy_report(&proxy, report, at));
        }
        // Only a report counts for the engine: it pairs the generation with what is in flight.
        ProxyNews::TableConfirmed { generation } => {
            tracing::debug!(proxy, %generation, "table in force");
            return;
        }
        ProxyNews::TableRefused {
            generation,
            problem,
        } => {
            tracing::error!(proxy, %generation, %problem, "the proxy refuses the table");
        }
        ProxyNews::Certificates(report) => {
            let generation = report.generation;
            tracing::debug!(proxy, %generation, "certificates in force");
            app.certificates.note(&proxy, Some(*report));
            // It may hold newer ones than these records know of.
            certificates::publish_later(app);
            app.certificates.due.notify_one();
            return;
        }
        ProxyNews::CertificatesRefused {
            generation,
            problem,
        } => {
            tracing::error!(proxy, %generation, %problem, "the proxy refuses the certificates");
            return;
        }
    }
    app.wake();
}
