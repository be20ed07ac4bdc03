//! The process that outlives those that serve: it holds the listeners and carries nothing.
//!
//! It starts a process that serves, by the same executable, and hands it the listeners. While none serves,
//! clients wait in the backlog and nobody is refused. One that ends is followed by another at once. At a reload
//! the executable on disk is started beside the one that serves, takes over what that knows, and only when it
//! serves does the other one finish what it began. Then the keeper becomes that executable itself, in place:
//! same process, same children.
//!
//! | From | Event | To |
//! |---|---|---|
//! | a process comes | it is prepared | the one that serves hands over (none: it takes at once) |
//! | | it ends, or is late (which is soon, where none serves) | the one that serves goes on; none serves: another comes, later and later |
//! | one hands over | it told | the one that comes takes |
//! | | it ends, or is late | the same, without what it would have told |
//! | one takes | it serves | the one before drains |
//! | | it ends, or is late | the one before takes from the controller again |

mod again;
mod kept;
pub mod opened;
mod process;
pub mod words;

pub use again::Successor;
pub use kept::serve_kept;
pub use process::Program;

use crate::NEWEST_TABLE;
use crate::carried::Counts;
use crate::listen::{self, ListenError, Scheme};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use beanpole_daemon::http::{CallError, Connection, problem_response};
use beanpole_daemon::notify;
use beanpole_daemon::socket::{self, BindError};
use beanpole_protocol::Generation;
use beanpole_protocol::edge::RELOAD_PATH;
use beanpole_protocol::problem::Problem;
use http::Method;
use opened::Opening;
use process::{Process, Role};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use words::{First, Order, Told, Word};

/// How long a process may take to be ready, and then to serve, unless told otherwise.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// How long the one that serves may take to hand over.
const HANDS_OVER: Duration = Duration::from_secs(5);
/// How long one that follows a crash waits for the controller to say which table is the newest, before it takes
/// requests. A crash is over within a second.
const NEWEST_AFTER_A_CRASH: Duration = Duration::from_millis(250);
/// How long a process that gets ready for a reload still has when the one that serves has ended. Clients wait: the
/// executable that served so far is sooner there than one that may hang.
const HURRY: Duration = Duration::from_millis(250);
/// The first pause before another start, after one that served for too short a time; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// What served for this long was well.
const WELL: Duration = Duration::from_secs(10);
/// How much longer than the time for requests in flight a stop may take.
const MORE: Duration = Duration::from_secs(3);
/// How long a process of a keeper that was killed may take to leave the listeners.
const LEAVES: Duration = Duration::from_secs(3);
/// How long the answers to those that asked for a reload may take to be sent.
const GOODBYE: Duration = Duration::from_secs(1);
/// How long a reload may be waited for: another one may be under way.
const RELOAD: Duration = Duration::from_mins(2);

/// What a keeper keeps.
#[derive(Clone, Debug)]
pub struct KeeperConfig {
    /// The socket of the proxy; the keeper's is beside it.
    pub socket: PathBuf,
    /// Where plain HTTP is served.
    pub http: Vec<SocketAddr>,
    /// Where HTTPS is served.
    pub https: Vec<SocketAddr>,
    /// What serves.
    pub program: Program,
    /// What this process becomes after a reload that brought another executable; none: it stays what it is.
    pub successor: Option<Successor>,
    /// How long requests in flight have at a stop.
    pub drain: Duration,
    /// How long a process may take to be ready, and then to serve.
    pub patience: Duration,
    /// [`crate::ProxyConfig::table_wait`], of the first process that serves.
    pub table_wait: Option<Duration>,
}

/// Why a keeper cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The keeper's own socket cannot be listened on.
    #[error("cannot open the socket for reloads")]
    Socket(#[source] BindError),
    /// The first process that was to serve could not.
    #[error("the process that serves could not be started: {0}")]
    Start(String),
    /// What the keeper before this one left cannot be taken over.
    #[error("cannot go on with what the keeper before this one held")]
    Again(#[source] io::Error),
    /// The system said no.
    #[error("cannot go on")]
    System(#[source] io::Error),
}

/// The keeper's socket, beside the proxy's.
pub fn socket_of(proxy: &Path) -> PathBuf {
    proxy.with_extension("keep")
}

/// What a reload came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The process that serves now.
    pub pid: u32,
}

/// Has the proxy with that socket reload, and waits for the outcome.
pub async fn reload(proxy: &Path) -> Result<Reloaded, CallError> {
    let path = socket_of(proxy);
    let begun = Instant::now();
    let stream = loop {
        // A keeper that becomes another executable is not to be reached for a moment.
        match UnixStream::connect(&path).await {
            Err(_) if begun.elapsed() < GOODBYE => tokio::time::sleep(FIRST_PAUSE).await,
            connected => break connected.map_err(|error| CallError::Broken(Box::new(error)))?,
        }
    };
    let mut connection = Connection::open(stream).await?;
    connection
        .call::<Reloaded>(Method::POST, RELOAD_PATH, None::<&()>, RELOAD)
        .await
}

/// Somebody who waits for a reload.
type Asker = oneshot::Sender<Result<Reloaded, String>>;

/// What happens.
pub enum Event {
    /// A process said something.
    Said(u32, Word),
    /// A process ended, that way.
    Ended(u32, String),
    /// Somebody wants a reload.
    Asked(Asker),
}

/// How far a process is that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It reads what serving takes.
    Prepares,
    /// The one that serves hands over.
    Waits,
    /// It takes over.
    Takes,
}

/// A process that comes.
struct Change {
    pid: u32,
    stage: Stage,
    deadline: Instant,
    /// Who waits for it.
    askers: Vec<Asker>,
    /// Whether it is for a reload: the executable on disk.
    reload: bool,
}

struct Keeper {
    config: KeeperConfig,
    first: First,
    listeners: Vec<TcpListener>,
    /// The listeners that processes asked for.
    opening: Opening,
    processes: BTreeMap<u32, Process>,
    change: Option<Change>,
    events: mpsc::UnboundedSender<Event>,
    /// Who wants a reload while a process comes.
    waiting: Vec<Asker>,
    /// A reload is wanted, by whomever.
    again: bool,
    /// When the next process is started, while none serves and none comes.
    start_at: Option<Instant>,
    /// Starts in a row that served for too short a time, or not at all.
    failures: u32,
    /// One has served.
    ever_served: bool,
    /// Another executable is on disk since the last reload.
    is_another: bool,
}

/// Keeps a proxy serving until `stop`; then has it finish what is in flight.
pub async fn keep(config: KeeperConfig, stop: CancellationToken) -> Result<(), KeeperError> {
    let mut hang_up = signal(SignalKind::hangup()).map_err(KeeperError::System)?;
    let (events, mut happens) = mpsc::unbounded_channel();
    let mut keeper = match again::taken_over(&events).map_err(KeeperError::Again)? {
        Some(held) => Keeper {
            opening: held.opening,
            ..Keeper::with(config, held.first, held.listeners, held.processes, events)
        },
        None => {
            let (first, listeners) = bind(&config).await?;
            Keeper::with(config, first, listeners, BTreeMap::new(), events)
        }
    };
    for process in keeper.processes.values() {
        if process.role == Role::Drains {
            // It tells what it has counted, which went with the executable before.
            let generation = Generation::default();
            process.order(&Order::Follow { generation }).await;
        }
    }
    let mut door = Door::open(&keeper).await?;
    if keeper.serving().is_none() {
        keeper.start_at = Some(Instant::now());
    }
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            // The keeper holds a sender itself.
            Some(event) = happens.recv() => keeper.take(event).await?,
            _ = hang_up.recv() => keeper.again = true,
            () = sleep_until(keeper.due().into()) => keeper.late().await,
        }
        keeper.go_on().await?;
        if keeper.may_become_another() {
            door.close().await;
            keeper.become_another(&mut happens).await?;
            door = Door::open(&keeper).await?;
        }
    }
    door.close().await;
    keeper.end(happens).await;
    Ok(())
}

/// Listens. A process of a keeper that was killed is about to leave the listeners.
async fn bind(config: &KeeperConfig) -> Result<(First, Vec<TcpListener>), KeeperError> {
    let end = Instant::now() + LEAVES;
    let bound = loop {
        match listen::bind_all(&config.http, &config.https) {
            Err(error) if error.is_held_by_another_of_us() && Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            bound => break bound?,
        }
    };
    let (listeners, sockets): (Vec<Scheme>, Vec<_>) = bound.into_iter().unzip();
    let sockets = sockets.into_iter().map(tokio::net::TcpListener::into_std);
    let sockets = sockets.collect::<Result<_, _>>();
    Ok((First { listeners }, sockets.map_err(KeeperError::System)?))
}

impl Keeper {
    fn with(
        config: KeeperConfig,
        first: First,
        listeners: Vec<TcpListener>,
        processes: BTreeMap<u32, Process>,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        let ever_served = !processes.is_empty();
        Self {
            config,
            first,
            listeners,
            opening: Opening::default(),
            processes,
            change: None,
            events,
            waiting: Vec::new(),
            again: false,
            start_at: None,
            failures: 0,
            ever_served,
            is_another: false,
        }
    }

    fn serving(&self) -> Option<&Process> {
        self.processes.values().find(|one| one.role == Role::Serves)
    }

    /// The process that answers the controller.
    fn front(&self) -> Option<&Process> {
        match &self.change {
            Some(change) if change.stage == Stage::Takes => self.processes.get(&change.pid),
            _ => self.serving(),
        }
    }

    /// When something is late, or to be started.
    fn due(&self) -> Instant {
        let deadline = self.change.as_ref().map(|change| change.deadline);
        deadline
            .or(self.start_at)
            .unwrap_or_else(|| Instant::now() + Duration::from_hours(1))
    }

    async fn take(&mut self, event: Event) -> Result<(), KeeperError> {
        match event {
            Event::Said(pid, word) => self.said(pid, word).await,
            Event::Ended(pid, how) => return self.ended(pid, &how).await,
            Event::Asked(asker) => {
                self.again = true;
                self.waiting.push(asker);
            }
        }
        Ok(())
    }

    async fn said(&mut self, pid: u32, word: Word) {
        let stage = |change: &Option<Change>| {
            change
                .as_ref()
                .filter(|change| change.pid == pid)
                .map(|change| change.stage)
        };
        match word {
            Word::Prepared if stage(&self.change) == Some(Stage::Prepares) => {
                let Some(serving) = self.serving() else {
                    return self.hand(None).await;
                };
                serving.order(&Order::HandOver).await;
                self.enter(Stage::Waits, HANDS_OVER);
            }
            Word::Told(told) => {
                let waits = self
                    .change
                    .as_ref()
                    .is_some_and(|change| change.stage == Stage::Waits);
                if waits && self.serving().is_some_and(|serving| serving.pid == pid) {
                    self.hand(Some(told)).await;
                }
            }
            Word::Serving if stage(&self.change) == Some(Stage::Takes) => self.changed().await,
            Word::Counts { counts } => {
                if let Some(process) = self.processes.get_mut(&pid) {
                    process.told = Some(counts.clone());
                }
                self.pass_on(
                    pid,
                    &Order::Elder {
                        pid,
                        counts,
                        follows: None,
                    },
                )
                .await;
            }
            Word::Follows { generation, counts } => {
                if let Some(process) = self.processes.get_mut(&pid)
                    && process.role == Role::Drains
                {
                    process.told = Some(counts.clone());
                }
                let follows = Some(generation);
                self.pass_on(
                    pid,
                    &Order::Elder {
                        pid,
                        counts,
                        follows,
                    },
                )
                .await;
            }
            Word::Follow { generation } => {
                for other in self.processes.values() {
                    if other.pid != pid && other.role != Role::Comes {
                        other.order(&Order::Follow { generation }).await;
                    }
                }
            }
            Word::Stuck { pids } => {
                for stuck in pids.iter().filter_map(|pid| self.processes.get(pid)) {
                    stuck.kill();
                }
            }
            Word::Failed { why } => {
                if let Some(process) = self.processes.get_mut(&pid) {
                    process.why = Some(why);
                }
            }
            Word::Leaving => {
                if let Some(process) = self.processes.get_mut(&pid)
                    && process.role == Role::Serves
                {
                    tracing::warn!(
                        pid,
                        "the process that serves was told to stop by another one: starting the next"
                    );
                    process.role = Role::Drains;
                    if self.change.is_none() {
                        self.start_at = Some(Instant::now());
                    }
                    self.hurry().await;
                }
            }
            Word::Prepared | Word::Serving => {}
        }
    }

    /// Tells the process that answers the controller of another one.
    async fn pass_on(&self, from: u32, order: &Order) {
        if let Some(front) = self.front().filter(|front| front.pid != from) {
            front.order(order).await;
        }
    }

    fn enter(&mut self, stage: Stage, limit: Duration) {
        if let Some(change) = &mut self.change {
            change.stage = stage;
            change.deadline = Instant::now() + limit;
        }
    }

    /// Those in one of these roles, and the last that each told.
    fn alive(&self, roles: &[Role]) -> Vec<(u32, Option<Counts>)> {
        let of = |one: &&Process| roles.contains(&one.role);
        let alive = self.processes.values().filter(of);
        alive.map(|one| (one.pid, one.told.clone())).collect()
    }

    /// Has the process that comes take over.
    async fn hand(&mut self, told: Option<Box<Told>>) {
        let alive = self.alive(&[Role::Serves, Role::Drains]);
        let replaces = self.serving().is_some();
        // What was told a moment ago is the newest.
        let newest = match (&told, self.ever_served) {
            (Some(_), _) => Duration::ZERO,
            (None, true) => NEWEST_AFTER_A_CRASH,
            (None, false) => self.config.table_wait.unwrap_or(NEWEST_TABLE),
        };
        let order = Order::Take {
            told,
            alive,
            replaces,
            newest_ms: u64::try_from(newest.as_millis()).unwrap_or(0),
        };
        self.enter(Stage::Takes, self.config.patience);
        let comes = self.change.as_ref().map(|change| change.pid);
        if let Some(comes) = comes.and_then(|pid| self.processes.get(&pid)) {
            comes.order(&order).await;
        }
    }

    /// The process that came serves: the one before finishes what it began.
    async fn changed(&mut self) {
        let Some(change) = self.change.take() else {
            return;
        };
        for before in self.processes.values_mut() {
            if before.role == Role::Serves {
                before.role = Role::Drains;
                before.order(&Order::Drain).await;
            }
        }
        if let Some(process) = self.processes.get_mut(&change.pid) {
            process.role = Role::Serves;
            process.since = Instant::now();
        }
        if !self.ever_served {
            notify::ready();
        }
        self.ever_served = true;
        let successor = self.config.successor.as_ref();
        self.is_another |=
            change.reload && successor.is_some_and(|next| !again::is_on_disk(&next.path));
        tracing::info!(pid = change.pid, reload = change.reload, "a process serves");
        for asker in change.askers {
            let _ = asker.send(Ok(Reloaded { pid: change.pid }));
        }
    }

    async fn ended(&mut self, pid: u32, how: &str) -> Result<(), KeeperError> {
        let Some(process) = self.processes.remove(&pid) else {
            return Ok(());
        };
        let why = process.why.clone();
        let why = why.unwrap_or_else(|| format!("it ended with {how}"));
        if self.change.as_ref().is_some_and(|change| change.pid == pid) {
            return self.failed(&why).await;
        }
        self.pass_on(pid, &Order::Gone { pid }).await;
        if process.role != Role::Serves {
            return Ok(());
        }
        tracing::error!(
            pid,
            how,
            why,
            "the process that serves ended: starting another one"
        );
        if process.since.elapsed() >= WELL {
            self.failures = 0;
        }
        if self.change.is_none() {
            self.start_later();
        }
        self.hurry().await;
        Ok(())
    }

    /// None serves any more: what comes is waited for by clients.
    async fn hurry(&mut self) {
        let Some(change) = &mut self.change else {
            return;
        };
        match change.stage {
            Stage::Prepares => change.deadline = change.deadline.min(Instant::now() + HURRY),
            Stage::Waits => self.hand(None).await,
            Stage::Takes => {}
        }
    }

    /// At once the first time, and then later and later.
    fn start_later(&mut self) {
        let pause = match self.failures {
            0 => Duration::ZERO,
            more => FIRST_PAUSE
                .saturating_mul(1 << (more - 1).min(10))
                .min(LONGEST_PAUSE),
        };
        self.failures = self.failures.saturating_add(1);
        self.start_at = Some(Instant::now() + pause);
    }

    /// What came cannot serve.
    async fn failed(&mut self, why: &str) -> Result<(), KeeperError> {
        let Some(change) = self.change.take() else {
            return Ok(());
        };
        for asker in change.askers {
            let _ = asker.send(Err(why.to_owned()));
        }
        match self.serving() {
            Some(serving) => {
                tracing::error!(
                    why,
                    pid = serving.pid,
                    "a reload failed: the process that serves goes on"
                );
                if change.stage != Stage::Prepares {
                    let alive = self.alive(&[Role::Drains]);
                    serving.order(&Order::Resume { alive }).await;
                }
            }
            None if self.ever_served => {
                tracing::error!(
                    why,
                    "a process that was to serve could not: starting another one"
                );
                self.start_later();
            }
            None => return Err(KeeperError::Start(why.to_owned())),
        }
        Ok(())
    }

    /// A deadline has passed.
    async fn late(&mut self) {
        let now = Instant::now();
        let Some(change) = self.change.as_ref().filter(|change| change.deadline <= now) else {
            return;
        };
        let (pid, stage) = (change.pid, change.stage);
        if stage == Stage::Waits {
            let Some(serving) = self.serving() else {
                return self.hand(None).await;
            };
            tracing::error!(
                pid = serving.pid,
                "the process that serves does not hand over: it is ended"
            );
            serving.kill();
            // Its end, which is waited for, lets the other one take over.
            self.enter(Stage::Waits, self.config.patience);
            return;
        }
        let hurried = change.reload && stage == Stage::Prepares && self.serving().is_none();
        if let Some(process) = self.processes.get_mut(&pid) {
            let seconds = self.config.patience.as_secs_f32();
            process.why = Some(if hurried {
                "it was not ready when the process that served ended".to_owned()
            } else {
                format!("it was not ready within {seconds} s")
            });
            process.kill();
        }
        self.enter(stage, self.config.patience);
    }

    /// Starts what is to be started now.
    async fn go_on(&mut self) -> Result<(), KeeperError> {
        if self.change.is_some() {
            return Ok(());
        }
        let due = self.start_at.is_some_and(|at| at <= Instant::now());
        let reload = self.again;
        if !due && !reload {
            return Ok(());
        }
        self.start_at = None;
        self.again = false;
        let askers = std::mem::take(&mut self.waiting);
        // What has served before starts again as it was, whatever is on disk by now.
        let path = match (reload, again::is_on_disk(&self.config.program.path)) {
            (true, _) | (false, true) => self.config.program.path.clone(),
            (false, false) => PathBuf::from(again::OWN_IMAGE),
        };
        let Self {
            config,
            first,
            listeners,
            opening,
            events,
            ..
        } = self;
        let started = Process::start(&path, &config.program, (first, listeners), opening, events);
        let mut change = Change {
            pid: 0,
            stage: Stage::Prepares,
            deadline: Instant::now() + self.config.patience,
            askers,
            reload,
        };
        match started {
            Ok(process) => {
                change.pid = process.pid;
                self.processes.insert(process.pid, process);
                self.change = Some(change);
                Ok(())
            }
            Err(error) => {
                self.change = Some(change);
                let why = format!("{} cannot be started: {error}", path.display());
                self.failed(&why).await
            }
        }
    }

    fn may_become_another(&self) -> bool {
        self.is_another && self.change.is_none() && !self.again && self.serving().is_some()
    }

    /// Becomes the executable on disk. Returns where that cannot be, or not now.
    async fn become_another(
        &mut self,
        happens: &mut mpsc::UnboundedReceiver<Event>,
    ) -> Result<(), KeeperError> {
        for process in self.processes.values_mut() {
            process.stop_hearing().await;
        }
        // What was heard up to now is not heard again.
        while let Ok(event) = happens.try_recv() {
            self.take(event).await?;
        }
        // A part of a word waits for the rest of it, which comes.
        if self.may_become_another()
            && !self.processes.values().any(Process::is_speaking)
            && let Some(successor) = &self.config.successor
        {
            tracing::info!(path = %successor.path.display(), "the keeper becomes the executable on disk");
            let Self {
                first,
                listeners,
                opening,
                processes,
                ..
            } = self;
            let error = again::become_it(successor, (first, listeners), opening, processes);
            tracing::error!(%error, path = %successor.path.display(),
                "the keeper cannot become the executable on disk, and goes on as it is");
            self.is_another = false;
        }
        for process in self.processes.values_mut() {
            process.hear(&self.events);
        }
        Ok(())
    }

    /// Has all of them stop, and waits for that.
    async fn end(mut self, mut happens: mpsc::UnboundedReceiver<Event>) {
        self.listeners.clear();
        self.opening.close();
        for process in self.processes.values() {
            process.dismiss();
        }
        let deadline = tokio::time::Instant::now() + self.config.drain + MORE;
        while !self.processes.is_empty() {
            tokio::select! {
                Some(event) = happens.recv() => {
                    if let Event::Ended(pid, _) = event {
                        self.processes.remove(&pid);
                    }
                }
                () = sleep_until(deadline) => {
                    self.processes.values().for_each(Process::kill);
                    return;
                }
            }
        }
    }
}

/// Where reloads are asked for.
struct Door {
    stop: CancellationToken,
    serving: JoinHandle<io::Result<()>>,
}

impl Door {
    async fn open(keeper: &Keeper) -> Result<Self, KeeperError> {
        let path = socket_of(&keeper.config.socket);
        let socket = socket::bind(&path, 0o600, None)
            .await
            .map_err(KeeperError::Socket)?;
        let router = Router::new()
            .route(RELOAD_PATH, post(asked))
            .with_state(keeper.events.clone());
        let stop = CancellationToken::new();
        let serving = tokio::spawn(socket::serve(socket, router, stop.clone()));
        Ok(Self { stop, serving })
    }

    /// Once those who asked have their answers.
    async fn close(&mut self) {
        self.stop.cancel();
        if tokio::time::timeout(GOODBYE, &mut self.serving)
            .await
            .is_err()
        {
            self.serving.abort();
        }
    }
}

async fn asked(State(events): State<mpsc::UnboundedSender<Event>>) -> Response {
    let (asker, answer) = oneshot::channel();
    let _ = events.send(Event::Asked(asker));
    let (code, why) = match answer.await {
        Ok(Ok(reloaded)) => return axum::Json(reloaded).into_response(),
        Ok(Err(why)) => (
            "reload-failed",
            format!("What was started cannot serve: {why}."),
        ),
        Err(_) => ("stopping", "The load balancer is stopping.".to_owned()),
    };
    let status = StatusCode::SERVICE_UNAVAILABLE.as_u16();
    problem_response(&Problem::new(
        status,
        code,
        "The load balancer goes on as it was",
        why,
    ))
}
