//! The controller's side: tables in, reports out, over the private socket.

use crate::check;
use crate::service::Shared;
use crate::table::{Table, validate};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use beanpole_daemon::clock;
use beanpole_daemon::files::{self, ReadError};
use beanpole_daemon::http::problem_response;
use beanpole_daemon::pace::Pace;
use beanpole_protocol::Generation;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::proxy::{ProxyReport, RoutingTable};
use futures::stream;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, watch};
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
/// Longest time between two reports of one watcher.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// What the controller can ask.
pub struct Control {
    shared: Arc<Shared>,
    table_path: PathBuf,
    /// Tables are taken one after the other.
    turn: Mutex<()>,
    run: String,
    sequence: AtomicU64,
    listeners: Vec<String>,
    stop: CancellationToken,
}

impl Control {
    /// Keeps tables in `table_path`; watchers end with `stop`.
    pub fn new(
        shared: Arc<Shared>,
        table_path: PathBuf,
        listeners: Vec<String>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared,
            table_path,
            turn: Mutex::new(()),
            run: format!("{:016x}", clock::random_bits() as u64),
            sequence: AtomicU64::new(0),
            listeners,
            stop,
        })
    }

    /// The calls of `protocol::proxy`.
    pub fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/v1/table", put(put_table))
            .route("/v1/report", get(report))
            .route("/v1/watch", get(watch_reports))
            .layer(DefaultBodyLimit::max(LARGEST_TABLE))
            .with_state(self)
    }

    async fn take(&self, table: RoutingTable) -> Result<(), Problem> {
        let _turn = self.turn.lock().await;
        let held = self.shared.table.load_full();
        if let Some(source) = &held.source {
            if table.generation < source.generation {
                return Err(Problem::conflict(
                    "stale-generation",
                    format!(
                        "Generation {} is older than {}, which is in force.",
                        table.generation, source.generation
                    ),
                ));
            }
            if table.generation == source.generation {
                if table == *source {
                    return Ok(());
                }
                return Err(Problem::conflict(
                    "generation-reused",
                    format!("Generation {} had other content before.", table.generation),
                ));
            }
        }
        validate(&table).map_err(|reason| {
            Problem::new(422, "invalid-table", "The table makes no sense", reason)
        })?;
        let path = self.table_path.clone();
        let kept = table.clone();
        let written =
            tokio::task::spawn_blocking(move || files::write_json(&path, &kept, 0o600)).await;
        written
            .map_err(io::Error::other)
            .and_then(|result| result)
            .map_err(|error| {
                tracing::error!(%error, path = %self.table_path.display(), "cannot keep the table");
                Problem::internal("The table could not be written to disk.")
            })?;
        enforce(&self.shared, &held, table, false);
        Ok(())
    }

    fn report(&self) -> ProxyReport {
        // The sequence is drawn first: a report that was made later is never numbered lower.
        let sequence = self.sequence.fetch_add(1, Ordering::SeqCst) + 1;
        let table = self.shared.table.load_full();
        ProxyReport {
            sequence,
            run: self.run.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: table
                .source
                .as_ref()
                .map_or(Generation::default(), |source| source.generation),
            now: clock::now(),
            targets: table.targets().map(|target| target.report()).collect(),
            environments: table.environments(),
            releases: table.releases(),
            listeners: self.listeners.clone(),
        }
    }
}

/// Puts `source` in force in the place of `held`. Returns when every request that begins from now
/// on follows it.
fn enforce(shared: &Shared, held: &Table, source: RoutingTable, assumed: bool) {
    let generation = source.generation;
    let (next, difference) = held.follow(source, assumed, &shared.changes);
    let next = Arc::new(next);
    shared.table.store(next.clone());
    next.enact();
    for target in &difference.went {
        target.leave();
    }
    for target in difference.came {
        check::start(target);
    }
    for (state, target) in next.given() {
        if let Some(tried) = state.tries(target) {
            check::try_out(state.clone(), tried);
        }
    }
    tracing::info!(%generation, targets = next.targets().count(), "a table is in force");
    shared.changes.tell();
}

/// Puts the table of the last run in force. One that cannot be read is put aside: the controller
/// sends the current one as soon as it is connected.
pub fn restore(shared: &Shared, path: &std::path::Path) -> Result<(), ReadError> {
    let damage = match files::read_json::<RoutingTable>(path) {
        Ok(None) => return Ok(()),
        Ok(Some(table)) => match validate(&table) {
            Ok(()) => {
                let held = shared.table.load_full();
                enforce(shared, &held, table, true);
                return Ok(());
            }
            Err(reason) => reason,
        },
        Err(ReadError::Damaged { source, .. }) => source.to_string(),
        Err(error) => return Err(error),
    };
    let aside = path.with_extension("damaged");
    let renamed = std::fs::rename(path, &aside);
    tracing::error!(%damage, aside = %aside.display(), moved = renamed.is_ok(),
        "the table of the last run is damaged: serving nothing until the controller sends one");
    Ok(())
}

async fn put_table(State(control): State<Arc<Control>>, body: Bytes) -> Response {
    let table = match serde_json::from_slice(&body) {
        Ok(table) => table,
        Err(error) => {
            return problem_response(&Problem::new(
                422,
                "invalid-table",
                "The table cannot be read",
                error.to_string(),
            ));
        }
    };
    match control.take(table).await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(problem) => problem_response(&problem),
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
