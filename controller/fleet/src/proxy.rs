//! The link to one proxy: the routing table with its pages and static files, and certificates, down; what the proxy sees up.

use crate::backoff::Backoff;
use crate::chain;
use crate::changeover::{Changeover, Member};
use crate::dial::{Dialer, Transport};
use crate::host::{Failed, put, send};
use crate::push::Pushes;
use crate::statics::{Next, StaticSource, There, Way};
use beanpole_daemon::clock;
use beanpole_daemon::http::{CallError, Connection};
use beanpole_protocol::content::PageText;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::proxy::{ProxyReport, Ready, RoutingTable};
use beanpole_protocol::statics::StaticFiles;
use beanpole_protocol::tls::{CertificateSet, CertificatesReport};
use beanpole_protocol::{Digest, Generation, Timestamp};
use futures::StreamExt;
use http::Method;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The first pause between two attempts to connect. The proxy is usually on this machine.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between two attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long a proxy may take to put a table in force.
const TABLE_LIMIT: Duration = Duration::from_secs(15);
/// How long a proxy may take to put certificates in force, or to say which are.
const CERTIFICATES_LIMIT: Duration = Duration::from_secs(15);
/// Where they are.
const CERTIFICATES: &str = "/v1/certificates";
/// Proxies report every 2 s: after three missed ones the connection is given up.
const SILENCE_LIMIT: Duration = Duration::from_secs(7);

/// How long pages may hold up the table that names them, altogether. It goes without those that are not there by
/// then: clients get the usual ones, until the link has tried again.
const PAGES_LIMIT: Duration = Duration::from_secs(3);
/// From one try to the next.
const PAGES_AGAIN: Duration = Duration::from_secs(2);
/// Where they are.
const PAGES: &str = "/v1/pages";

/// How long static files of releases in service may hold up the table that names them. It goes without those that are
/// not there by then: the application is asked for them, or the release before has them.
const STATICS_LIMIT: Duration = Duration::from_secs(3);
/// The shortest and the longest pause before static files are tried again.
const STATICS_AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Where a table is put, at once or to be put in force with others.
const TABLE: &str = "/v1/table";
const NEXT_TABLE: &str = "/v1/table/next";

/// Where pages come from.
pub trait PageSource: Send + Sync + 'static {
    /// The text of a page, if it is there. May block for as long as reading a record takes.
    fn page(&self, digest: &Digest) -> Option<String>;
}

/// What a link needs to know.
pub struct ProxyLinkConfig {
    /// The proxy's name, for events.
    pub proxy: String,
    /// How to reach it.
    pub dialer: Dialer,
    /// The table. Generation 0 means that nothing is known yet: it is not pushed.
    pub table: watch::Receiver<RoutingTable>,
    /// Where the pages come from that it names.
    pub pages: Arc<dyn PageSource>,
    /// Where the static files come from that it names.
    pub statics: Arc<dyn StaticSource>,
    /// What bounds how these are sent.
    pub pushes: Arc<Pushes>,
    /// The load balancers that it changes over with.
    pub changeover: Changeover,
    /// The certificates. Generation 0 means that nothing is known yet: they are not pushed.
    pub certificates: watch::Receiver<CertificateSet>,
    /// Where events go. When nobody receives them, the link ends.
    pub events: mpsc::Sender<ProxyEvent>,
}

/// Something that a link to a proxy did or saw.
#[derive(Clone, Debug)]
pub struct ProxyEvent {
    /// The proxy.
    pub proxy: String,
    /// When, by the controller's clock.
    pub at: Timestamp,
    /// What.
    pub news: ProxyNews,
}

/// What a link to a proxy did or saw.
#[derive(Clone, Debug)]
pub enum ProxyNews {
    /// The proxy answers.
    Connected,
    /// It could not be reached, or the connection broke. It is dialled again.
    Unreachable {
        /// Why, with all causes.
        reason: String,
        /// The pause before the next attempt, in milliseconds.
        retry_in_ms: u64,
    },
    /// The proxy reports.
    Report(Arc<ProxyReport>),
    /// The table is in force.
    TableConfirmed {
        /// Its generation.
        generation: Generation,
    },
    /// The proxy refuses the table. It is not pushed again until another comes or the connection
    /// is made anew.
    TableRefused {
        /// Its generation.
        generation: Generation,
        /// What the proxy says.
        problem: Box<Problem>,
    },
    /// Which certificates are in force: told when the link is made, and after each change.
    Certificates(Box<CertificatesReport>),
    /// The proxy refuses certificates. They are not pushed again until others come or the connection is
    /// made anew.
    CertificatesRefused {
        /// Their generation.
        generation: Generation,
        /// What the proxy says.
        problem: Box<Problem>,
    },
}

/// A running link to one proxy. Dropping it ends the link.
pub struct ProxyLink {
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl ProxyLink {
    /// Starts a link. It runs until `stop` is cancelled, [`ProxyLink::stop`] is called or it is
    /// dropped.
    pub fn spawn(config: ProxyLinkConfig, stop: &CancellationToken) -> Self {
        let stop = stop.child_token();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let link = Link { config };
            tokio::select! {
                () = stopped.cancelled() => {}
                () = link.run() => {}
            }
        });
        Self {
            stop,
            task: Some(task),
        }
    }

    /// Ends the link and waits for it.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }
}

impl Drop for ProxyLink {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Nobody receives events any more.
struct Unheard;

/// The pages that a proxy has.
#[derive(Default)]
struct Pages {
    /// Which; none while it was not asked.
    held: Option<BTreeSet<Digest>>,
    /// When it is tried again to give it those that it lacks; none where it lacks none.
    again_at: Option<Instant>,
}

impl Pages {
    fn are_due(&self) -> bool {
        self.again_at.is_some_and(|at| at <= Instant::now())
    }

    /// Returns when they are.
    async fn due(&self) {
        match self.again_at {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// A proxy forgets the pages that the table in force does not name.
    fn only_of(&mut self, table: &RoutingTable) {
        let named = table.pages();
        if let Some(held) = &mut self.held {
            held.retain(|digest| named.contains(digest));
        }
    }
}

struct Link {
    config: ProxyLinkConfig,
}

impl Link {
    async fn emit(&self, news: ProxyNews) -> Result<(), Unheard> {
        let event = ProxyEvent {
            proxy: self.config.proxy.clone(),
            at: clock::now(),
            news,
        };
        self.config.events.send(event).await.map_err(|_| Unheard)
    }

    async fn run(&self) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        while self.turn(&mut backoff).await.is_ok() {}
    }

    async fn turn(&self, backoff: &mut Backoff) -> Result<(), Unheard> {
        let reason = match self.config.dialer.dial().await {
            Err(error) => chain(&error),
            Ok(transport) => {
                let reason = self.serve(&transport, backoff).await;
                transport.close().await;
                reason?
            }
        };
        let pause = backoff.pause();
        tracing::debug!(proxy = self.config.proxy, reason, "the link is down");
        self.emit(ProxyNews::Unreachable {
            reason,
            retry_in_ms: pause.as_millis() as u64,
        })
        .await?;
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Returns why the connection ended.
    async fn serve(&self, transport: &Transport, backoff: &mut Backoff) -> Result<String, Unheard> {
        let connection = match transport.open().await {
            Ok(connection) => connection,
            Err(error) => return Ok(chain(&error)),
        };
        let reports = match connection
            .lines::<ProxyReport>("/v1/watch", SILENCE_LIMIT)
            .await
        {
            Ok(reports) => reports,
            Err(error) => return Ok(chain(&error)),
        };
        backoff.reset();
        self.emit(ProxyNews::Connected).await?;
        let member = self.config.changeover.join(&self.config.proxy);
        let (held_in, held) = watch::channel(None);
        let (there_in, there) = watch::channel(None);
        let (confirmed_in, confirmed) = watch::channel(());
        tokio::select! {
            end = self.listen(reports, held_in) => end,
            end = self.push_table(transport, &member, held, there, &confirmed_in) => end,
            end = self.push_statics(transport, &there_in, confirmed) => end,
            end = self.push_certificates(transport) => end,
        }
    }

    async fn listen(
        &self,
        mut reports: impl futures::Stream<Item = Result<ProxyReport, beanpole_daemon::http::CallError>>
        + Unpin,
        held: watch::Sender<Option<Generation>>,
    ) -> Result<String, Unheard> {
        loop {
            let report = match tokio::time::timeout(SILENCE_LIMIT, reports.next()).await {
                Err(_) => {
                    let silent = SILENCE_LIMIT.as_secs();
                    return Ok(format!("the proxy said nothing for {silent} s"));
                }
                Ok(None) => return Ok("the proxy ended its reports".to_owned()),
                Ok(Some(Err(error))) => return Ok(chain(&error)),
                Ok(Some(Ok(report))) => report,
            };
            held.send_replace(Some(report.generation));
            self.emit(ProxyNews::Report(Arc::new(report))).await?;
        }
    }

    async fn push_table(
        &self,
        transport: &Transport,
        member: &Member,
        mut held: watch::Receiver<Option<Generation>>,
        mut there: watch::Receiver<Option<There>>,
        confirmed: &watch::Sender<()>,
    ) -> Result<String, Unheard> {
        let mut missed = BTreeSet::new();
        let mut tables = self.config.table.clone();
        let mut connection: Option<Connection> = None;
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let mut settled: Option<(RoutingTable, bool)> = None;
        let mut pages = Pages::default();
        loop {
            let wanted = tables.borrow_and_update().clone();
            let differs = settled.as_ref().map(|(table, _)| table) != Some(&wanted);
            // A table that was confirmed and is held no more; a new one is another matter.
            let lost = !differs
                && matches!(&settled, Some((_, accepted)) if *accepted)
                && held
                    .borrow_and_update()
                    .is_some_and(|held| held < wanted.generation);
            if wanted.generation != Generation(0) && (lost || differs || pages.are_due()) {
                if lost {
                    pages.held = None;
                }
                self.give_pages(transport, &mut connection, &mut pages, &wanted)
                    .await;
            }
            if wanted.generation != Generation(0) && (lost || differs) {
                let generation = wanted.generation;
                await_statics(&wanted, &mut there, &mut missed).await;
                match give(transport, &mut connection, member, &wanted).await {
                    Ok(()) => {
                        pages.only_of(&wanted);
                        settled = Some((wanted, true));
                        confirmed.send_replace(());
                        self.emit(ProxyNews::TableConfirmed { generation }).await?;
                        // A report that was on its way may still carry the generation before.
                        if lost {
                            let pause = backoff.pause();
                            if let Ok(Ok(())) = tokio::time::timeout(pause, tables.changed()).await
                            {
                                continue;
                            }
                        } else {
                            backoff.reset();
                        }
                    }
                    Err(Failed::Refused(problem)) => {
                        member.is_ready(generation);
                        settled = Some((wanted, false));
                        self.emit(ProxyNews::TableRefused {
                            generation,
                            problem,
                        })
                        .await?;
                    }
                    Err(Failed::Again { reason, .. }) => {
                        tracing::debug!(proxy = self.config.proxy, reason, "table not confirmed");
                        connection = None;
                        tokio::time::sleep(backoff.pause()).await;
                        continue;
                    }
                }
            }
            tokio::select! {
                Ok(()) = tables.changed() => {}
                Ok(()) = held.changed() => {}
                () = pages.due() => {}
                else => std::future::pending().await,
            }
        }
    }

    /// Sees to it that the proxy has the pages that a table names, as far as that goes within [`PAGES_LIMIT`].
    async fn give_pages(
        &self,
        transport: &Transport,
        connection: &mut Option<Connection>,
        pages: &mut Pages,
        table: &RoutingTable,
    ) {
        let wanted = table.pages();
        let given = self.give_each(transport, connection, pages, &wanted);
        let given = tokio::time::timeout(PAGES_LIMIT, given).await;
        let given = given.unwrap_or_else(|_| Err("it took too long".to_owned()));
        pages.again_at = given.err().map(|reason| {
            tracing::debug!(proxy = self.config.proxy, reason, "pages not given");
            Instant::now() + PAGES_AGAIN
        });
    }

    async fn give_each(
        &self,
        transport: &Transport,
        connection: &mut Option<Connection>,
        pages: &mut Pages,
        wanted: &BTreeSet<&Digest>,
    ) -> Result<(), String> {
        if wanted.is_empty() {
            return Ok(());
        }
        let held = match &mut pages.held {
            Some(held) => held,
            None => {
                let asked: Result<Vec<Digest>, Failed> =
                    send(transport, connection, Method::GET, PAGES, &(), PAGES_LIMIT).await;
                match asked {
                    Ok(there) => pages.held.insert(there.into_iter().collect()),
                    // It knows no pages.
                    Err(Failed::Refused(_)) => return Ok(()),
                    Err(Failed::Again { reason, .. }) => return Err(reason),
                }
            }
        };
        for digest in wanted {
            if held.contains(*digest) {
                continue;
            }
            let (source, wanted) = (Arc::clone(&self.config.pages), (*digest).clone());
            let read = tokio::task::spawn_blocking(move || source.page(&wanted));
            let Ok(Some(html)) = read.await else {
                // A newer table names it no more.
                continue;
            };
            let path = format!("{PAGES}/{digest}");
            let page = PageText { html };
            match put::<Value>(transport, connection, &path, &page, PAGES_LIMIT).await {
                Ok(_) => {
                    held.insert((*digest).clone());
                }
                Err(Failed::Refused(problem)) => {
                    tracing::warn!(proxy = self.config.proxy, %problem, "a page is refused");
                }
                Err(Failed::Again { reason, .. }) => return Err(reason),
            }
        }
        Ok(())
    }

    /// Sees to it that the proxy has the static files that tables name. It is asked which it has after each table: one
    /// that named others may have freed them.
    async fn push_statics(
        &self,
        transport: &Transport,
        there: &watch::Sender<Option<There>>,
        mut confirmed: watch::Receiver<()>,
    ) -> Result<String, Unheard> {
        let mut tables = self.config.table.clone();
        let mut connection: Option<Connection> = None;
        let mut backoff = Backoff::new(STATICS_AGAIN.0, STATICS_AGAIN.1);
        let way = Way {
            transport,
            source: &self.config.statics,
            pushes: &self.config.pushes,
        };
        loop {
            let wanted: Vec<StaticFiles> = {
                let table = tables.borrow_and_update();
                table.static_files().into_iter().cloned().collect()
            };
            confirmed.mark_unchanged();
            let mut again = None;
            if !wanted.is_empty() {
                let given = way.give(&mut connection, &wanted, there).await;
                match given {
                    Ok(Next::More) => {
                        backoff.reset();
                        continue;
                    }
                    Ok(Next::Nothing) => backoff.reset(),
                    Err(reason) => {
                        tracing::debug!(
                            proxy = self.config.proxy,
                            reason,
                            "static files not given"
                        );
                        connection = None;
                        again = Some(backoff.pause());
                    }
                }
            }
            let pause = async {
                match again {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Ok(()) = tables.changed() => {}
                Ok(()) = confirmed.changed() => {}
                () = pause => {}
                else => std::future::pending().await,
            }
        }
    }

    /// Sees to it that the proxy has the certificates that it should. It loses none but by an end of the
    /// connection: it is asked once for those that it holds.
    async fn push_certificates(&self, transport: &Transport) -> Result<String, Unheard> {
        let mut sets = self.config.certificates.clone();
        let mut open = match transport.open().await {
            Ok(connection) => connection,
            Err(error) => return Ok(chain(&error)),
        };
        let asked = open.get::<CertificatesReport>(CERTIFICATES, CERTIFICATES_LIMIT);
        let mut held = match asked.await {
            Ok(held) => held,
            Err(CallError::Refused(problem)) => {
                tracing::debug!(proxy = self.config.proxy, %problem, "a proxy that knows no certificates");
                return std::future::pending().await;
            }
            Err(error) => return Ok(chain(&error)),
        };
        self.emit(ProxyNews::Certificates(Box::new(held.clone())))
            .await?;
        let mut connection = Some(open);
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let wanted = sets.borrow_and_update().clone();
            let there = held.generation == wanted.generation && held.digest == wanted.digest;
            if wanted.generation != Generation(0) && !there {
                match put(
                    transport,
                    &mut connection,
                    CERTIFICATES,
                    &wanted,
                    CERTIFICATES_LIMIT,
                )
                .await
                {
                    Ok(now) => {
                        held = now;
                        backoff.reset();
                        self.emit(ProxyNews::Certificates(Box::new(held.clone())))
                            .await?;
                    }
                    Err(Failed::Refused(problem)) => {
                        let generation = wanted.generation;
                        let news = ProxyNews::CertificatesRefused {
                            generation,
                            problem,
                        };
                        self.emit(news).await?;
                    }
                    Err(Failed::Again { reason, .. }) => {
                        tracing::debug!(
                            proxy = self.config.proxy,
                            reason,
                            "certificates not confirmed"
                        );
                        connection = None;
                        tokio::time::sleep(backoff.pause()).await;
                        continue;
                    }
                }
            }
            if sets.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

/// Returns when a proxy has the static files of releases in service that a table names, or has had its time for them.
/// What was missed once is not waited for again on the same connection.
async fn await_statics(
    table: &RoutingTable,
    there: &mut watch::Receiver<Option<There>>,
    missed: &mut BTreeSet<Digest>,
) {
    let files = table.static_files().into_iter();
    let wanted = files.filter(|files| !files.coming).map(|files| &files.set);
    let mut wanted: BTreeSet<&Digest> = wanted.filter(|set| !missed.contains(*set)).collect();
    if wanted.is_empty() {
        return;
    }
    let end = Instant::now() + STATICS_LIMIT;
    loop {
        if let Some(there) = &*there.borrow_and_update() {
            wanted.retain(|set| !there.unknown && !there.settled.contains(*set));
        }
        if wanted.is_empty() {
            return;
        }
        match tokio::time::timeout_at(end, there.changed()).await {
            Ok(Ok(())) => {}
            _ => break,
        }
    }
    missed.extend(wanted.into_iter().cloned());
}

/// Gives a table to a proxy: at once where it is the only one; else each makes it ready first, and then all put it
/// in force.
async fn give(
    transport: &Transport,
    connection: &mut Option<Connection>,
    member: &Member,
    table: &RoutingTable,
) -> Result<(), Failed> {
    let generation = table.generation;
    if member.is_alone() {
        put::<Value>(transport, connection, TABLE, table, TABLE_LIMIT).await?;
        member.is_ready(generation);
        return Ok(());
    }
    put::<Value>(transport, connection, NEXT_TABLE, table, TABLE_LIMIT).await?;
    member.is_ready(generation);
    member.together(generation).await;
    let ready = Ready { generation };
    let post = Method::POST;
    let sent = send::<Value>(transport, connection, post, NEXT_TABLE, &ready, TABLE_LIMIT).await;
    match sent {
        // It was started again in between.
        Err(Failed::Refused(problem)) if problem.code == "not-ready" => {
            let put = put::<Value>(transport, connection, TABLE, table, TABLE_LIMIT);
            put.await.map(|_| ())
        }
        done => done.map(|_| ()),
    }
}
