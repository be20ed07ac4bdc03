//! The controller's side: tables and certificates in, reports out, over the private socket.

use crate::carried::Carried;
use crate::check;
use crate::keeper::words::Told;
use crate::own_pages::NotAdded;
use crate::shared::Shared;
use crate::statics::{Intake, NotTaken, Statics};
use crate::table::{Table, validate};
use crate::tls::{self, Certificates};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path as InPath, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use beanpole_daemon::clock;
use beanpole_daemon::files::{self, ReadError};
use beanpole_daemon::http::problem_response;
use beanpole_daemon::pace::Pace;
use beanpole_protocol::content::PageText;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::proxy::{ProxyReport, Ready, RoutingTable, TargetReport};
use beanpole_protocol::statics::StaticSet;
use beanpole_protocol::tls::CertificateSet;
use beanpole_protocol::{Digest, Generation};
use futures::{StreamExt, stream};
use serde::de::DeserializeOwned;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinError;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// Largest table, in bytes of JSON.
const LARGEST_TABLE: usize = 64 * 1024 * 1024;
/// From one report of a watcher to the next in the long run, and how many may come at once: a table
/// in force and a target that is well are what deployments wait for.
const REPORT_EVERY: Duration = Duration::from_millis(100);
const REPORTS_AT_ONCE: u32 = 60;
/// What happens together is told together.
const GATHER: Duration = Duration::from_millis(5);
/// How long the end of a request is waited for that somebody asks about.
const TRACE_PATIENCE: Duration = Duration::from_secs(1);
/// Longest time between two reports of one watcher.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// Where what is in force is kept for the next run.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The routing table.
    pub table: PathBuf,
    /// The certificates, with their keys.
    pub certificates: PathBuf,
}

impl Kept {
    /// In a data directory.
    pub fn new(directory: &Path) -> Self {
        Self {
            table: directory.join("table.json"),
            certificates: directory.join("certificates.json"),
        }
    }
}

/// What is known of targets when a table comes that has them.
#[derive(Clone, Copy)]
pub enum Known<'a> {
    /// Nothing: each is to be checked before it gets requests.
    Nothing,
    /// They served when the proxy last ran: they may have requests until a check says otherwise.
    Served,
    /// What another process saw of them a moment ago.
    Seen(&'a ProxyReport),
}

/// What the controller was told before, and goes on with.
pub struct Since {
    /// Differs for every run of the proxy, however many processes are in it.
    pub run: String,
    /// The number of the last report.
    pub sequence: u64,
    /// What others have counted.
    pub carried: Arc<Carried>,
    /// What the first table has in service is taken for well until a check says otherwise.
    pub trusts_first: bool,
}

impl Default for Since {
    /// Nothing.
    fn default() -> Self {
        Self {
            run: format!("{:016x}", clock::random_bits() as u64),
            sequence: 0,
            carried: Arc::default(),
            trusts_first: false,
        }
    }
}

/// What the controller can ask.
pub struct Control {
    shared: Arc<Shared>,
    kept: Kept,
    /// The table that is ready to be put in force. Tables and certificates are taken one after the other.
    next: Mutex<Option<RoutingTable>>,
    run: String,
    sequence: AtomicU64,
    carried: Arc<Carried>,
    listeners: Vec<String>,
    /// What the first table has in service is taken for well until a check says otherwise.
    trusts_first: bool,
    /// Cancelled when the controller has said which table is the newest.
    told: CancellationToken,
    stop: CancellationToken,
}

impl Control {
    /// Keeps what is in force in `kept`, and goes on from `since`; watchers end with `stop`.
    pub fn new(
        shared: Arc<Shared>,
        kept: Kept,
        listeners: Vec<String>,
        since: Since,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared,
            kept,
            next: Mutex::default(),
            run: since.run,
            sequence: AtomicU64::new(since.sequence),
            carried: since.carried,
            listeners,
            trusts_first: since.trusts_first,
            told: CancellationToken::new(),
            stop,
        })
    }

    /// The calls of `protocol::proxy`.
    pub fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/v1/table", put(put_table))
            .route("/v1/table/next", put(put_next).post(enforce_next))
            .route("/v1/certificates", put(put_certificates).get(certificates))
            .route("/v1/pages", get(pages))
            .route("/v1/pages/{digest}", put(put_page))
            .route("/v1/static", get(static_sets))
            .route(
                "/v1/static/{set}",
                put(put_static_set).post(post_static_files),
            )
            .route("/v1/report", get(report))
            .route("/v1/requests/{id}", get(traced))
            .route("/v1/watch", get(watch_reports))
            .layer(DefaultBodyLimit::max(LARGEST_TABLE))
            .with_state(self)
    }

    /// Puts a table in force, which came as `text`.
    async fn take(&self, table: RoutingTable, text: Bytes) -> Result<(), Problem> {
        let mut next = self.next.lock().await;
        *next = None;
        if self.is_news(&table)? {
            self.keep_table(&table, text, self.kept.table.clone())
                .await?;
            self.enforce(table).await;
        }
        self.told.cancel();
        Ok(())
    }

    /// Done when the controller has said which table is the newest, or has had that long to say it.
    pub async fn told_within(&self, limit: Duration) {
        let _ = timeout(limit, self.told.cancelled()).await;
    }

    /// Takes all that a table asks for but its coming into force.
    async fn take_next(&self, table: RoutingTable, text: Bytes) -> Result<(), Problem> {
        let mut next = self.next.lock().await;
        *next = None;
        if self.is_news(&table)? {
            self.keep_table(&table, text, self.next_path()).await?;
            *next = Some(table);
        }
        Ok(())
    }

    /// Puts the table in force that was made ready.
    async fn enforce_next(&self, wanted: Ready) -> Result<(), Problem> {
        let mut next = self.next.lock().await;
        let held = self.shared.table.load();
        let held = held.source.as_ref().map(|source| source.generation);
        match next.take_if(|table| table.generation == wanted.generation) {
            Some(table) => {
                // It is on disk: only its name changes there.
                let (from, to) = (self.next_path(), self.kept.table.clone());
                on_disk(move || files::rename(&from, &to)).await?;
                self.enforce(table).await;
                self.told.cancel();
                Ok(())
            }
            None if held == Some(wanted.generation) => {
                self.told.cancel();
                Ok(())
            }
            None => Err(Problem::conflict(
                "not-ready",
                format!("Generation {} was not made ready.", wanted.generation),
            )),
        }
    }

    /// Whether a table is another than the one in force.
    fn is_news(&self, table: &RoutingTable) -> Result<bool, Problem> {
        let held = self.shared.table.load();
        let Some(source) = &held.source else {
            return Ok(true);
        };
        is_there(source.generation, table.generation, || table == source).map(|there| !there)
    }

    /// Writes a table to disk as it came, where it makes sense.
    async fn keep_table(
        &self,
        table: &RoutingTable,
        text: Bytes,
        path: PathBuf,
    ) -> Result<(), Problem> {
        validate(table).map_err(|reason| {
            Problem::new(422, "invalid-table", "The table makes no sense", reason)
        })?;
        on_disk(move || files::write_atomically(&path, &text, 0o600)).await
    }

    /// Puts a table in force that is on disk: first in the processes that finish what they began, so that
    /// nobody is told of it before it holds everywhere.
    async fn enforce(&self, table: RoutingTable) {
        self.carried.follow(table.generation).await;
        let held = self.shared.table.load_full();
        let pages = table.pages().into_iter().cloned().collect();
        let sets = table.static_files().into_iter();
        let sets = sets.map(|files| files.set.clone()).collect();
        let known = if self.trusts_first && held.source.is_none() {
            // Others have found it well, or it would not be in service.
            Known::Served
        } else {
            Known::Nothing
        };
        enforce(&self.shared, &held, table, known);
        self.carried.keep_only(&seen(&self.shared));
        let shared = self.shared.clone();
        // What is left over is found by the next table.
        let tidied = tokio::task::spawn_blocking(move || {
            shared.own_pages.keep_only(&pages);
            shared.statics.keep_only(&sets);
        });
        let _ = tidied.await;
    }

    /// What the next process has to know, once nobody is answered here any more.
    pub fn hand_over(&self) -> Told {
        let (past, elders) = self.carried.hand_over();
        Told {
            pid: std::process::id(),
            run: self.run.clone(),
            sequence: self.sequence.load(Ordering::SeqCst),
            report: seen(&self.shared),
            past,
            elders,
        }
    }

    /// Takes a page in, which the next table may name.
    async fn take_page(&self, digest: Digest, page: PageText) -> Result<(), Problem> {
        let _turn = self.next.lock().await;
        let shared = self.shared.clone();
        let added = tokio::task::spawn_blocking(move || shared.own_pages.add(digest, page.html));
        let added = added
            .await
            .unwrap_or_else(|error| Err(NotAdded::Disk(io::Error::other(error))));
        added.map_err(|error| match error {
            NotAdded::Refused(why) => {
                Problem::new(422, "invalid-page", "The page cannot be taken", why)
            }
            NotAdded::Disk(error) => {
                tracing::error!(%error, "cannot keep a page");
                Problem::internal("It could not be written to disk.")
            }
        })
    }

    fn next_path(&self) -> PathBuf {
        self.kept.table.with_extension("next")
    }

    async fn take_certificates(&self, set: CertificateSet) -> Result<(), Problem> {
        let _turn = self.next.lock().await;
        let held = &self.shared.certificates;
        let set = held.complete(set);
        let same = || set.digest.is_some() && held.digest() == set.digest;
        if is_there(held.generation(), set.generation, same)? {
            return Ok(());
        }
        tls::validate(&set).map_err(|reason| {
            Problem::new(
                422,
                "invalid-certificates",
                "The certificates make no sense",
                reason,
            )
        })?;
        let (path, kept) = (self.kept.certificates.clone(), set.clone());
        on_disk(move || files::write_json(&path, &kept, 0o600)).await?;
        held.enforce(set);
        if self.shared.names.take(held.session_key()) {
            self.rename();
        }
        Ok(())
    }

    /// Has clients known by the names that targets have by now, and by those of before.
    fn rename(&self) {
        let table = self.shared.table.load_full();
        for target in table.targets() {
            target.rename(&self.shared.names);
        }
        if let Some(source) = &table.source {
            enforce(&self.shared, &table, source.clone(), Known::Nothing);
        }
    }

    fn report(&self) -> ProxyReport {
        // The sequence is drawn first: a report that was made later is never numbered lower.
        let sequence = self.sequence.fetch_add(1, Ordering::SeqCst) + 1;
        let mut report = ProxyReport {
            sequence,
            run: self.run.clone(),
            listeners: self.listeners.clone(),
            ..seen(&self.shared)
        };
        self.carried.add_to(&mut report);
        report
    }
}

/// What this process sees itself, as a report of no run.
pub fn seen(shared: &Shared) -> ProxyReport {
    let table = shared.table.load_full();
    ProxyReport {
        sequence: 0,
        run: String::new(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        generation: table
            .source
            .as_ref()
            .map_or(Generation::default(), |source| source.generation),
        now: clock::now(),
        targets: table.targets().map(|target| target.report()).collect(),
        environments: table.environments(),
        releases: table.releases(),
        listeners: Vec::new(),
        streams: shared.ports.report(&table.streams),
    }
}

/// Puts `source` in force in the place of `held`. Returns when every request that begins from now
/// on follows it.
fn enforce(shared: &Shared, held: &Table, source: RoutingTable, known: Known<'_>) {
    let generation = source.generation;
    let assumed = !matches!(known, Known::Nothing);
    let (next, difference) = held.follow(source, assumed, &shared.names, &shared.changes);
    if let Known::Seen(report) = known {
        for new in &difference.came {
            let same = |told: &&TargetReport| {
                told.instance == new.target.instance
                    && told.process == new.target.process
                    && told.incarnation == new.target.incarnation
            };
            if let Some(told) = report.targets.iter().find(same) {
                new.resume(told);
            }
        }
    }
    let next = Arc::new(next);
    shared.table.store(next.clone());
    next.enact();
    shared.ports.look();
    for target in &difference.went {
        target.leave();
    }
    for target in difference.came {
        check::start(target, shared.retired.clone());
    }
    for (state, target) in next.given() {
        if let Some(tried) = state.tries(target) {
            check::try_out(state.clone(), tried);
        }
    }
    tracing::info!(%generation, targets = next.targets().count(), "a table is in force");
    shared.changes.tell();
}

/// Whether what comes is in force already; refuses what is older, and other content of the same generation.
fn is_there(
    held: Generation,
    comes: Generation,
    same: impl FnOnce() -> bool,
) -> Result<bool, Problem> {
    if comes > held {
        return Ok(false);
    }
    if comes < held {
        let detail = format!("Generation {comes} is older than {held}, which is in force.");
        return Err(Problem::conflict("stale-generation", detail));
    }
    if same() {
        return Ok(true);
    }
    let detail = format!("Generation {comes} had other content before.");
    Err(Problem::conflict("generation-reused", detail))
}

/// Writes what is about to be in force to disk.
async fn on_disk(write: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), Problem> {
    let written = tokio::task::spawn_blocking(write).await;
    let written = written.map_err(io::Error::other).and_then(|result| result);
    written.map_err(|error| {
        tracing::error!(%error, "cannot keep what is to be in force");
        Problem::internal("It could not be written to disk.")
    })
}

/// Puts the table of the last run in force. One that cannot be read is put aside: the controller
/// sends the current one as soon as it is connected.
pub fn restore(shared: &Shared, path: &Path, known: Known<'_>) -> Result<(), ReadError> {
    if let Some(table) = read_kept::<RoutingTable>(path, validate)? {
        let held = shared.table.load_full();
        enforce(shared, &held, table, known);
    }
    Ok(())
}

/// Whether the table of the last run, if there is one, can be read.
pub fn is_readable(path: &Path) -> Result<(), ReadError> {
    read_kept::<RoutingTable>(path, validate).map(|_| ())
}

/// The same, of the certificates.
pub fn restore_certificates(certificates: &Certificates, path: &Path) -> Result<(), ReadError> {
    if let Some(set) = read_kept::<CertificateSet>(path, tls::validate)? {
        certificates.enforce(set);
    }
    Ok(())
}

/// What was kept of the last run, if it makes sense; else it is put aside.
fn read_kept<T: DeserializeOwned>(
    path: &Path,
    validate: impl FnOnce(&T) -> Result<(), String>,
) -> Result<Option<T>, ReadError> {
    let damage = match files::read_json::<T>(path) {
        Ok(None) => return Ok(None),
        Ok(Some(kept)) => match validate(&kept) {
            Ok(()) => return Ok(Some(kept)),
            Err(reason) => reason,
        },
        Err(ReadError::Damaged { source, .. }) => source.to_string(),
        Err(error) => return Err(error),
    };
    let aside = path.with_extension("damaged");
    let renamed = std::fs::rename(path, &aside);
    tracing::error!(%damage, aside = %aside.display(), moved = renamed.is_ok(),
        "what was in force in the last run is damaged: doing without until the controller sends it");
    Ok(None)
}

async fn put_table(State(control): State<Arc<Control>>, body: Bytes) -> Response {
    match read(&body) {
        Ok(table) => answer(control.take(table, body).await),
        Err(problem) => problem_response(&problem),
    }
}

async fn put_next(State(control): State<Arc<Control>>, body: Bytes) -> Response {
    match read(&body) {
        Ok(table) => answer(control.take_next(table, body).await),
        Err(problem) => problem_response(&problem),
    }
}

async fn enforce_next(State(control): State<Arc<Control>>, body: Bytes) -> Response {
    match read(&body) {
        Ok(wanted) => answer(control.enforce_next(wanted).await),
        Err(problem) => problem_response(&problem),
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        Problem::new(
            422,
            "invalid-table",
            "The table cannot be read",
            error.to_string(),
        )
    })
}

fn answer(done: Result<(), Problem>) -> Response {
    match done {
        Ok(()) => StatusCode::OK.into_response(),
        Err(problem) => problem_response(&problem),
    }
}

async fn put_page(
    State(control): State<Arc<Control>>,
    InPath(digest): InPath<String>,
    body: Bytes,
) -> Response {
    let digest = Digest::new(digest).map_err(|error| error.to_string());
    let read = digest.and_then(|digest| {
        let page = serde_json::from_slice::<PageText>(&body);
        let page = page.map_err(|error| error.to_string())?;
        Ok((digest, page))
    });
    match read {
        Ok((digest, page)) => answer(control.take_page(digest, page).await),
        Err(why) => problem_response(&Problem::new(
            422,
            "invalid-page",
            "The page cannot be read",
            why,
        )),
    }
}

async fn pages(State(control): State<Arc<Control>>) -> Response {
    axum::Json(control.shared.own_pages.digests()).into_response()
}

/// Calls about static files. They wait for no table, nor any table for them: they may take long.
async fn static_sets(State(control): State<Arc<Control>>) -> Response {
    axum::Json(control.shared.statics.sets()).into_response()
}

async fn put_static_set(
    State(control): State<Arc<Control>>,
    InPath(name): InPath<String>,
    body: Bytes,
) -> Response {
    let statics = control.shared.statics.clone();
    let begun = tokio::task::spawn_blocking(move || {
        let refused = |why: String| NotTaken::Refused(why);
        let name = Digest::new(name).map_err(|error| refused(error.to_string()))?;
        let set: StaticSet =
            serde_json::from_slice(&body).map_err(|error| refused(error.to_string()))?;
        statics.begin(name, set)
    });
    static_answer(begun.await)
}

async fn post_static_files(
    State(control): State<Arc<Control>>,
    InPath(name): InPath<String>,
    body: Body,
) -> Response {
    let taken = take_static_files(control.shared.statics.clone(), name, body).await;
    static_answer(Ok(taken))
}

/// Takes files in as they come. What is whole when the connection breaks stays.
async fn take_static_files(
    statics: Arc<Statics>,
    name: String,
    body: Body,
) -> Result<Vec<Digest>, NotTaken> {
    let name = Digest::new(name).map_err(|error| NotTaken::Refused(error.to_string()))?;
    let mut intake = Intake::new(statics, name)?;
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| NotTaken::Refused(error.to_string()))?;
        let taking = tokio::task::spawn_blocking(move || intake.take(&piece).map(|()| intake));
        intake = taking.await.unwrap_or_else(broke_down)?;
    }
    let ending = tokio::task::spawn_blocking(move || intake.end());
    ending.await.unwrap_or_else(broke_down)
}

fn broke_down<T>(error: JoinError) -> Result<T, NotTaken> {
    Err(NotTaken::Disk(io::Error::other(error)))
}

fn static_answer(done: Result<Result<Vec<Digest>, NotTaken>, JoinError>) -> Response {
    let problem = match done.unwrap_or_else(broke_down) {
        Ok(lacking) => return axum::Json(lacking).into_response(),
        Err(NotTaken::Refused(why)) => {
            let title = "The static files cannot be taken";
            Problem::new(422, "invalid-static-files", title, why)
        }
        Err(NotTaken::Unknown) => {
            let text = "No table names such a set of static files any more.";
            Problem::new(404, "static-set-not-found", "There is no such set", text)
        }
        Err(NotTaken::Disk(error)) => {
            tracing::error!(%error, "cannot keep static files");
            Problem::internal("They could not be written to disk.")
        }
    };
    problem_response(&problem)
}

async fn put_certificates(State(control): State<Arc<Control>>, body: Bytes) -> Response {
    let set = match serde_json::from_slice(&body) {
        Ok(set) => set,
        Err(error) => {
            // Where, and not what: keys are in it.
            let place = format!("line {}, column {}", error.line(), error.column());
            return problem_response(&Problem::new(
                422,
                "invalid-certificates",
                "The certificates cannot be read",
                format!("They are not as they should be at {place}."),
            ));
        }
    };
    match control.take_certificates(set).await {
        Ok(()) => axum::Json(control.shared.certificates.report()).into_response(),
        Err(problem) => problem_response(&problem),
    }
}

async fn certificates(State(control): State<Arc<Control>>) -> Response {
    axum::Json(control.shared.certificates.report()).into_response()
}

async fn traced(State(control): State<Arc<Control>>, InPath(id): InPath<String>) -> Response {
    match control.shared.traced.ask(&id, TRACE_PATIENCE).await {
        Some(traced) => axum::Json(traced).into_response(),
        None => problem_response(&Problem::not_found("request", &id)),
    }
}

async fn report(State(control): State<Arc<Control>>) -> Response {
    axum::Json(control.report()).into_response()
}

struct Watcher {
    control: Arc<Control>,
    changes: watch::Receiver<u64>,
    pace: Pace,
    /// Something was told already.
    begun: bool,
}

async fn watch_reports(State(control): State<Arc<Control>>) -> Response {
    let watcher = Watcher {
        changes: control.shared.changes.watch(),
        control,
        pace: Pace::new(REPORT_EVERY, REPORTS_AT_ONCE),
        begun: false,
    };
    let lines = stream::unfold(watcher, |mut watcher| async move {
        let stop = watcher.control.stop.clone();
        stop.run_until_cancelled(async move {
            if watcher.begun {
                // An error means that the sender is gone, which `stop` tells as well.
                let _ = timeout(HEARTBEAT, watcher.changes.changed()).await;
                sleep_until(
                    (Instant::now() + GATHER)
                        .max(watcher.pace.next(std::time::Instant::now()).into()),
                )
                .await;
            }
            watcher.begun = true;
            watcher.changes.mark_unchanged();
            let mut line = serde_json::to_vec(&watcher.control.report()).unwrap_or_default();
            line.push(b'\n');
            (Ok::<_, io::Error>(Bytes::from(line)), watcher)
        })
        .await
    });
    (
        [(header::CONTENT_TYPE, "application/jsonl")],
        Body::from_stream(lines),
    )
        .into_response()
}
