//! The link to one agent: a task that dials, pushes orders and bundles, listens to reports, and
//! begins again when anything breaks, for as long as it is wanted.

use crate::backoff::Backoff;
use crate::client::AgentClient;
use crate::dial::{DialError, Dialer, Transport};
use crate::push::{BundleSource, Pushes};
use crate::{chain, ssh::HostKey};
use beanpole_daemon::clock;
use beanpole_daemon::http::{CallError, Connection};
use beanpole_protocol::agent::{HostOrders, HostReport, ReleasePhase, ReleaseReport};
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{ControllerId, Digest, Generation, HostId, Timestamp};
use futures::StreamExt;
use http::Method;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The first pause between two attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause between two attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The same where a load balancer is on the host.
const LONGEST_PAUSE_OF_EDGES: Duration = Duration::from_secs(1);
/// How long an agent may take to confirm orders: it writes them to its disk.
const ORDERS_LIMIT: Duration = Duration::from_secs(15);
/// How long the stream of reports may take to begin.
const WATCH_LIMIT: Duration = Duration::from_secs(15);
/// Agents report every 5 s: after three missed ones the connection is given up.
const SILENCE_LIMIT: Duration = Duration::from_secs(16);
/// Progress of a push is told at most this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// Orders that got lost that often in a row are told of: once or twice goes with a connection that
/// is about to break, which is told anyway.
const LOST_UNTOLD: u32 = 2;
/// The first pause after a failed push of a bundle.
const FIRST_PUSH_PAUSE: Duration = Duration::from_millis(250);

/// What a link needs to know.
pub struct HostLinkConfig {
    /// The host, for events.
    pub host: HostId,
    /// This controller, to tell its own host from one that another has taken over.
    pub controller: ControllerId,
    /// How to reach its agent.
    pub dialer: Dialer,
    /// What the host shall hold. Generation 0 means that nothing is known yet: it is not pushed.
    pub orders: watch::Receiver<HostOrders>,
    /// Where bundles come from.
    pub bundles: Arc<dyn BundleSource>,
    /// What all pushes share.
    pub pushes: Arc<Pushes>,
    /// Where events go. When nobody receives them, the link ends.
    pub events: mpsc::Sender<LinkEvent>,
}

/// Something that a link did or saw.
#[derive(Clone, Debug)]
pub struct LinkEvent {
    /// The host.
    pub host: HostId,
    /// When, by the controller's clock.
    pub at: Timestamp,
    /// What.
    pub news: LinkNews,
}

/// What a link did or saw.
#[derive(Clone, Debug)]
pub enum LinkNews {
    /// It dials.
    Connecting,
    /// The connection stands; a report will follow.
    Connected {
        /// The host key, with its algorithm; none for this machine.
        host_key: Option<HostKey>,
    },
    /// The connection could not be made, or broke. It is dialled again after `retry_in_ms`.
    Unreachable {
        /// Why, with all causes.
        reason: String,
        /// Whether only a change of keys or settings can help.
        permanent: bool,
        /// The pause before the next attempt, in milliseconds.
        retry_in_ms: u64,
    },
    /// The host shows another key than the pinned one. It is dialled again every now and then, but
    /// that key is never accepted: stop the link and start another with the new pin.
    KeyChanged {
        /// The pinned key.
        pinned: HostKey,
        /// The key it shows.
        shown: HostKey,
    },
    /// The agent reports.
    Report {
        /// What it says.
        report: Arc<HostReport>,
        /// Its clock less the controller's, in milliseconds; off by the time the report travelled.
        clock_skew_ms: i64,
    },
    /// The agent has written these orders to its disk.
    OrdersConfirmed {
        /// Their generation.
        generation: Generation,
    },
    /// The agent refuses these orders (`stale-generation`, `generation-reused`, …). They are not
    /// pushed again until others come or the connection is made anew.
    OrdersRefused {
        /// Their generation.
        generation: Generation,
        /// What the agent says.
        problem: Box<Problem>,
    },
    /// The agent cannot take these orders now, because its disk is full for example, or does not
    /// answer. They are pushed again until it confirms them; told once per reason.
    OrdersNotTaken {
        /// Their generation.
        generation: Generation,
        /// Why not.
        trouble: OrdersTrouble,
    },
    /// A bundle is on its way.
    BundleProgress {
        /// The bundle.
        digest: Digest,
        /// Bytes that the agent holds or was given.
        sent: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// A push of a bundle is over, however it ended.
    BundleSent {
        /// The bundle.
        digest: Digest,
        /// Bytes that went out for it, those that did not arrive included.
        bytes: u64,
    },
    /// A bundle has arrived and has the right digest.
    BundleDone {
        /// The bundle.
        digest: Digest,
    },
    /// A bundle did not get there. It is tried again after a pause while the agent asks for it.
    BundleFailed {
        /// The bundle.
        digest: Digest,
        /// Why, with all causes.
        reason: String,
    },
}

/// Why orders were not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrdersTrouble {
    /// The agent says so itself.
    Told(Box<Problem>),
    /// They did not get there, or no answer came back: why, with all causes.
    Lost(String),
}

/// A running link to one host. Dropping it ends the link.
pub struct HostLink {
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
    client: AgentClient,
}

impl HostLink {
    /// Starts a link. It runs until `stop` is cancelled, [`HostLink::stop`] is called or it is
    /// dropped.
    pub fn spawn(config: HostLinkConfig, stop: &CancellationToken) -> Self {
        let stop = stop.child_token();
        let (transport_in, transport) = watch::channel(None);
        let (report_in, report) = watch::channel(None);
        let client = AgentClient {
            transport,
            report,
            pushes: Arc::clone(&config.pushes),
            controller: config.controller.clone(),
        };
        let link = Link {
            config,
            transport: transport_in,
            report: report_in,
        };
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = link.run() => {}
            }
            let transport = link.transport.send_replace(None);
            if let Some(transport) = transport {
                transport.close().await;
            }
        });
        Self {
            stop,
            task: Some(task),
            client,
        }
    }

    /// For calls to the agent.
    pub fn client(&self) -> AgentClient {
        self.client.clone()
    }

    /// Ends the link and waits for it.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }
}

impl Drop for HostLink {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Nobody receives events any more.
struct Unheard;

/// Why a connection is over.
enum End {
    Broken(String),
    Unheard,
}

impl From<Unheard> for End {
    fn from(_: Unheard) -> Self {
        Self::Unheard
    }
}

struct Link {
    config: HostLinkConfig,
    transport: watch::Sender<Option<Transport>>,
    report: watch::Sender<Option<Arc<HostReport>>>,
}

impl Link {
    async fn emit(&self, news: LinkNews) -> Result<(), Unheard> {
        let event = LinkEvent {
            host: self.config.host.clone(),
            at: clock::now(),
            news,
        };
        self.config.events.send(event).await.map_err(|_| Unheard)
    }

    async fn run(&self) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        while self.turn(&mut backoff).await.is_ok() {}
    }

    /// One connection, from dialling to the pause after its end.
    async fn turn(&self, backoff: &mut Backoff) -> Result<(), Unheard> {
        self.emit(LinkNews::Connecting).await?;
        let (reason, permanent) = match self.config.dialer.dial().await {
            Err(error) => {
                if let Some((pinned, shown)) = error.changed_key() {
                    self.emit(LinkNews::KeyChanged {
                        pinned: pinned.clone(),
                        shown: shown.clone(),
                    })
                    .await?;
                }
                let permanent = matches!(&error, DialError::Ssh(error) if error.is_permanent());
                (chain(&error), permanent)
            }
            Ok(transport) => {
                self.report.send_replace(None);
                let end = self.serve(&transport).await;
                self.transport.send_replace(None);
                // Whatever still runs over it breaks now rather than hang.
                transport.close().await;
                if self.report.borrow().is_some() {
                    backoff.reset();
                }
                match end {
                    End::Unheard => return Err(Unheard),
                    End::Broken(reason) => (reason, false),
                }
            }
        };
        let mut pause = backoff.pause();
        if self.config.orders.borrow().edge.is_some() && !permanent {
            // A load balancer that is back answers by the table of before until it is reached.
            pause = pause.min(LONGEST_PAUSE_OF_EDGES);
        }
        tracing::info!(host = %self.config.host, reason, "the link is down");
        self.emit(LinkNews::Unreachable {
            reason,
            permanent,
            retry_in_ms: pause.as_millis() as u64,
        })
        .await?;
        tokio::time::sleep(pause).await;
        Ok(())
    }

    async fn serve(&self, transport: &Transport) -> End {
        // The watch comes first: a host counts as connected once its agent answers.
        let watching = async {
            let connection = transport.open().await.map_err(|error| chain(&error))?;
            connection
                .lines::<HostReport>("/v1/watch", WATCH_LIMIT)
                .await
                .map_err(|error| chain(&error))
        };
        let reports = match watching.await {
            Ok(reports) => reports,
            Err(reason) => return End::Broken(reason),
        };
        let host_key = match transport {
            Transport::Ssh { session, .. } => Some(session.host_key().clone()),
            Transport::Local(_) | Transport::Edge { .. } => None,
        };
        if self.emit(LinkNews::Connected { host_key }).await.is_err() {
            return End::Unheard;
        }
        self.transport.send_replace(Some(transport.clone()));
        tokio::select! {
            end = self.listen(reports) => end,
            end = self.push_orders(transport) => end,
            end = self.push_bundles(transport) => end,
        }
    }

    async fn listen(
        &self,
        mut reports: impl futures::Stream<Item = Result<HostReport, CallError>> + Unpin,
    ) -> End {
        loop {
            let report = match tokio::time::timeout(SILENCE_LIMIT, reports.next()).await {
                Err(_) => {
                    let silent = SILENCE_LIMIT.as_secs();
                    return End::Broken(format!("the agent said nothing for {silent} s"));
                }
                Ok(None) => return End::Broken("the agent ended its reports".to_owned()),
                Ok(Some(Err(error))) => return End::Broken(chain(&error)),
                Ok(Some(Ok(report))) => Arc::new(report),
            };
            let skew = report.now.as_millis() as i64 - clock::now().as_millis() as i64;
            self.report.send_replace(Some(Arc::clone(&report)));
            let news = LinkNews::Report {
                report,
                clock_skew_ms: skew,
            };
            if self.emit(news).await.is_err() {
                return End::Unheard;
            }
        }
    }

    /// Pushes the orders once per connection, whenever they change, and when the agent reports
    /// older ones than it confirmed.
    async fn push_orders(&self, transport: &Transport) -> End {
        let mut orders = self.config.orders.clone();
        let mut reports = self.report.subscribe();
        let mut connection: Option<Connection> = None;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut settled: Option<HostOrders> = None;
        // Set by a refusal: the agent's own generation says nothing then.
        let mut refused = false;
        // What was told last of orders that are not taken, and how many got lost in a row.
        let mut told: Option<OrdersTrouble> = None;
        let mut lost_in_a_row = 0;
        loop {
            let wanted = orders.borrow_and_update().clone();
            // Orders that were confirmed and are held no more; new ones are another matter.
            let lost = !refused
                && settled.as_ref() == Some(&wanted)
                && reports
                    .borrow_and_update()
                    .as_ref()
                    .is_some_and(|report| report.generation < wanted.generation);
            if wanted.generation != Generation(0) && (lost || settled.as_ref() != Some(&wanted)) {
                match self.put_orders(transport, &mut connection, &wanted).await {
                    Ok(()) => {
                        let generation = wanted.generation;
                        refused = false;
                        told = None;
                        lost_in_a_row = 0;
                        backoff.reset();
                        settled = Some(wanted);
                        let news = LinkNews::OrdersConfirmed { generation };
                        if self.emit(news).await.is_err() {
                            return End::Unheard;
                        }
                        // A report that was on its way may still carry the generation before.
                        if lost
                            && let Ok(Ok(())) =
                                tokio::time::timeout(backoff.pause(), orders.changed()).await
                        {
                            continue;
                        }
                    }
                    Err(Failed::Refused(problem)) => {
                        let generation = wanted.generation;
                        tracing::warn!(host = %self.config.host, %generation, %problem, "the agent refuses its orders");
                        refused = true;
                        told = None;
                        lost_in_a_row = 0;
                        settled = Some(wanted);
                        let news = LinkNews::OrdersRefused {
                            generation,
                            problem,
                        };
                        if self.emit(news).await.is_err() {
                            return End::Unheard;
                        }
                    }
                    Err(Failed::Again { reason, problem }) => {
                        tracing::debug!(host = %self.config.host, reason, "orders not confirmed");
                        connection = None;
                        let trouble = match problem {
                            Some(problem) => {
                                lost_in_a_row = 0;
                                Some(OrdersTrouble::Told(problem))
                            }
                            None => {
                                lost_in_a_row += 1;
                                (lost_in_a_row > LOST_UNTOLD).then_some(OrdersTrouble::Lost(reason))
                            }
                        };
                        if let Some(trouble) = trouble
                            && told.as_ref() != Some(&trouble)
                        {
                            told = Some(trouble.clone());
                            let news = LinkNews::OrdersNotTaken {
                                generation: wanted.generation,
                                trouble,
                            };
                            if self.emit(news).await.is_err() {
                                return End::Unheard;
                            }
                        }
                        tokio::time::sleep(backoff.pause()).await;
                        continue;
                    }
                }
            }
            // Reports wake only those whose orders may have been lost.
            loop {
                tokio::select! {
                    changed = orders.changed() => {
                        if changed.is_err() {
                            // Nobody will ever order anything else; what is in force stays.
                            std::future::pending::<()>().await;
                        }
                        break;
                    }
                    changed = reports.changed() => {
                        if changed.is_err() {
                            std::future::pending::<()>().await;
                        }
                        let held = reports.borrow().as_ref().map(|report| report.generation);
                        let wanted = settled.as_ref().map(|orders| orders.generation);
                        if !refused && matches!((held, wanted), (Some(held), Some(wanted)) if held < wanted) {
                            break;
                        }
                    }
                }
            }
        }
    }

    async fn put_orders(
        &self,
        transport: &Transport,
        connection: &mut Option<Connection>,
        orders: &HostOrders,
    ) -> Result<(), Failed> {
        put::<serde_json::Value>(transport, connection, "/v1/orders", orders, ORDERS_LIMIT)
            .await
            .map(|_| ())
    }

    /// Pushes every bundle that a report asks for.
    async fn push_bundles(&self, transport: &Transport) -> End {
        let mut reports = self.report.subscribe();
        let mut running: HashSet<Digest> = HashSet::new();
        let mut failed: HashMap<Digest, (Backoff, Instant)> = HashMap::new();
        let mut tasks: JoinSet<Pushed> = JoinSet::new();
        loop {
            let needed = reports
                .borrow_and_update()
                .as_deref()
                // What another controller's releases need is not here.
                .filter(|report| report.is_of(&self.config.controller))
                .map(needed_bundles)
                .unwrap_or_default();
            failed.retain(|digest, _| needed.contains(digest));
            let now = Instant::now();
            for digest in needed {
                let waits = failed
                    .get(&digest)
                    .is_some_and(|(_, not_before)| *not_before > now);
                if waits || !running.insert(digest.clone()) {
                    continue;
                }
                let bases = match reports.borrow().as_deref() {
                    Some(report) => bases_for(report, &digest),
                    None => Vec::new(),
                };
                tasks.spawn(self.push_bundle(transport.clone(), digest, bases));
            }
            let next_try = failed
                .values()
                .map(|(_, at)| *at)
                .filter(|at| *at > now)
                .min();
            tokio::select! {
                changed = reports.changed() => {
                    if changed.is_err() {
                        return End::Unheard;
                    }
                }
                Some(done) = tasks.join_next() => {
                    let Ok((digest, result)) = done else { continue };
                    running.remove(&digest);
                    let news = match result {
                        Ok(()) => {
                            failed.remove(&digest);
                            // Until the agent says so itself, its last report asks for more.
                            let _ = tokio::time::timeout(FIRST_PUSH_PAUSE, reports.changed()).await;
                            LinkNews::BundleDone { digest }
                        }
                        Err((reason, transient)) => {
                            let (backoff, at) = failed.entry(digest.clone()).or_insert_with(|| {
                                (Backoff::new(FIRST_PUSH_PAUSE, LONGEST_PAUSE), now)
                            });
                            let pause = if transient { backoff.pause() } else { LONGEST_PAUSE };
                            *at = Instant::now() + pause;
                            LinkNews::BundleFailed { digest, reason }
                        }
                    };
                    if self.emit(news).await.is_err() {
                        return End::Unheard;
                    }
                }
                () = wait_until(next_try) => {}
            }
        }
    }

    fn push_bundle(
        &self,
        transport: Transport,
        digest: Digest,
        bases: Vec<Digest>,
    ) -> impl Future<Output = Pushed> + Send + 'static {
        let pushes = Arc::clone(&self.config.pushes);
        let source = Arc::clone(&self.config.bundles);
        let events = self.config.events.clone();
        let host = self.config.host.clone();
        async move {
            let told = std::sync::Mutex::new(None::<Instant>);
            let account = Sent {
                events: &events,
                host: &host,
                digest: &digest,
                bytes: AtomicU64::new(0),
            };
            let progress = |sent: u64, size: u64, more: u64| {
                account.bytes.fetch_add(more, Ordering::Relaxed);
                let Ok(mut last) = told.lock() else { return };
                let due = last.is_none_or(|at| at.elapsed() >= PROGRESS_EVERY);
                if due || sent == size {
                    *last = Some(Instant::now());
                    // Progress is dropped rather than waited for.
                    let _ = events.try_send(LinkEvent {
                        host: host.clone(),
                        at: clock::now(),
                        news: LinkNews::BundleProgress {
                            digest: digest.clone(),
                            sent,
                            size,
                        },
                    });
                }
            };
            let result = pushes
                .push(&transport, &source, &digest, &bases, &progress)
                .await;
            let result = result.map_err(|error| (chain(&error), error.is_transient()));
            drop(account);
            (digest, result)
        }
    }
}

/// Counts what goes out for a push and tells it at the end, which may be that of the link.
struct Sent<'p> {
    events: &'p mpsc::Sender<LinkEvent>,
    host: &'p HostId,
    digest: &'p Digest,
    bytes: AtomicU64,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        if bytes > 0 {
            let _ = self.events.try_send(LinkEvent {
                host: self.host.clone(),
                at: clock::now(),
                news: LinkNews::BundleSent {
                    digest: self.digest.clone(),
                    bytes,
                },
            });
        }
    }
}

/// As many bundles of a host are looked at as what a new one could be made of.
const MOST_BASES: usize = 3;

/// A push that is over: the bundle, and if it failed, why and whether trying again soon may help.
type Pushed = (Digest, Result<(), (String, bool)>);

fn needed_bundles(report: &HostReport) -> HashSet<Digest> {
    report
        .releases
        .iter()
        .filter(|release| release.phase == ReleasePhase::NeedsBundle)
        .map(|release| release.bundle.clone())
        .collect()
}

/// Bundles on a host that the new one may have much in common with: those of the same environment, the newest first.
fn bases_for(report: &HostReport, digest: &Digest) -> Vec<Digest> {
    let wanted = report.releases.iter().find(|one| one.bundle == *digest);
    let Some(wanted) = wanted else {
        return Vec::new();
    };
    let mut others: Vec<&ReleaseReport> = report
        .releases
        .iter()
        .filter(|one| one.key.environment == wanted.key.environment && one.bundle != *digest)
        .filter(|one| one.phase == ReleasePhase::Ready)
        .collect();
    others.sort_by_key(|one| std::cmp::Reverse(one.key.number));
    let mut bases: Vec<Digest> = others.into_iter().map(|one| one.bundle.clone()).collect();
    bases.dedup();
    bases.truncate(MOST_BASES);
    bases
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Why something was not confirmed.
pub(crate) enum Failed {
    /// The other side will not have it.
    Refused(Box<Problem>),
    /// Trying again may help.
    Again {
        /// Why, with all causes.
        reason: String,
        /// What the other side says, where it answered.
        problem: Option<Box<Problem>>,
    },
}

/// `PUT`s `value` over `connection`, opened first where there is none.
pub(crate) async fn put<A: serde::de::DeserializeOwned>(
    transport: &Transport,
    connection: &mut Option<Connection>,
    path: &str,
    value: &(impl serde::Serialize + Sync),
    limit: Duration,
) -> Result<A, Failed> {
    send(transport, connection, Method::PUT, path, value, limit).await
}

/// The same by another method.
pub(crate) async fn send<A: serde::de::DeserializeOwned>(
    transport: &Transport,
    connection: &mut Option<Connection>,
    method: Method,
    path: &str,
    value: &(impl serde::Serialize + Sync),
    limit: Duration,
) -> Result<A, Failed> {
    let again = |error: &(dyn std::error::Error + 'static)| Failed::Again {
        reason: chain(error),
        problem: None,
    };
    let mut open = match connection.take().filter(|open| !open.is_closed()) {
        Some(open) => open,
        None => transport.open().await.map_err(|error| again(&error))?,
    };
    match open.call(method, path, Some(value), limit).await {
        Ok(answer) => {
            *connection = Some(open);
            Ok(answer)
        }
        Err(CallError::Refused(problem)) if (400..500).contains(&problem.status) => {
            *connection = Some(open);
            Err(Failed::Refused(problem))
        }
        Err(CallError::Refused(problem)) => Err(Failed::Again {
            reason: problem.to_string(),
            problem: Some(problem),
        }),
        Err(error) => Err(again(&error)),
    }
}
