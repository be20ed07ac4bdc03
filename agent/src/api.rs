//! The agent's calls, as `protocol::agent` lists them: HTTP on a Unix socket that only the
//! controller reaches.

use crate::converge::Host;
use crate::logs;
use crate::uninstall::{self, Installation};
use crate::upgrade;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post, put};
use beanpole_daemon::http::{hand_over, problem_response};
use beanpole_daemon::pace::Pace;
use beanpole_protocol::agent::{
    Claim, HostOrders, HostReport, InstancePhase, Uninstalled, UpgradeOrder,
};
use beanpole_protocol::edge::CONTROL_UPGRADE;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{ControllerId, Digest, InstanceId};
use futures::future::{BoxFuture, Shared};
use futures::{FutureExt, Stream, StreamExt};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Longest orders, in bytes: hundreds of instances with their properties are far below.
const LONGEST_ORDERS: usize = 64 << 20;
/// From one report of a watch to the next in the long run, and how many may come at once: that a
/// process runs and has its port is what deployments wait for.
const REPORT_EVERY: Duration = Duration::from_millis(100);
const REPORTS_AT_ONCE: u32 = 20;
/// What happens together is told together.
const GATHER: Duration = Duration::from_millis(5);
/// Longest silence of a watch before that: together at most 5 s.
const LONGEST_SILENCE: Duration = Duration::from_millis(4900);
/// The same while an instance was started lately: a deployment waits for the word that it stays up.
const SILENCE_AFTER_A_START: Duration = Duration::from_millis(400);
/// How long after its start, or that of one of its processes, an instance counts as that.
const LATELY: Duration = Duration::from_secs(30);
/// How long the last answer has to reach its reader.
const LAST_ANSWER: Duration = Duration::from_secs(1);
/// Lines of the past when the caller does not say.
const DEFAULT_TAIL: usize = 100;

/// What the agent does after its last answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// It was told to stop.
    #[default]
    Stop,
    /// Another executable takes its place.
    Replace(std::path::PathBuf),
}

/// What the calls work on.
pub struct Agent {
    /// The host.
    pub host: Arc<Host>,
    /// What was installed on it.
    pub installation: Installation,
    /// Ends the agent.
    pub stop: CancellationToken,
    /// How it ends.
    pub ending: Mutex<Ending>,
    /// The uninstall, once there is one.
    pub uninstall: OnceLock<Uninstall>,
}

/// An uninstall under way or over; everybody who asks for one waits for the same.
pub type Uninstall = Shared<BoxFuture<'static, Result<Uninstalled, String>>>;

/// A refusal, as an answer.
struct Refusal(Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        problem_response(&self.0)
    }
}

type Answer = Result<Response, Refusal>;

/// The calls.
pub fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/v1/report", get(report))
        .route("/v1/watch", get(watch))
        .route("/v1/orders", put(take_orders))
        .route("/v1/owner", put(take_claim))
        .route("/v1/blobs/{digest}", get(blob_status).merge(patch(append)))
        .route("/v1/blobs/{digest}/made", post(make))
        .route("/v1/instances/{id}/logs", get(instance_logs))
        .route("/v1/edge/control", get(edge_control))
        .route("/v1/edge/logs", get(edge_logs))
        .route("/v1/upgrade", post(take_upgrade))
        .route("/v1/uninstall", post(take_uninstall))
        .fallback(async || -> Refusal { Problem::not_found("call", "of that name").into() })
        .layer(DefaultBodyLimit::max(LONGEST_ORDERS))
        .with_state(agent)
}

type Access = State<Arc<Agent>>;

fn json(value: &impl serde::Serialize) -> Answer {
    let bytes = serde_json::to_vec(value).map_err(|e| Problem::internal(e.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        Problem::invalid(
            "body-invalid",
            format!("The body is not what this call takes: {error}."),
        )
    })
}

fn parameter<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Problem> {
    text.parse()
        .map_err(|error: T::Err| Problem::invalid("path-invalid", format!("{error}.")))
}

async fn report(State(agent): Access) -> Answer {
    json(&agent.host.report().await)
}

async fn watch(State(agent): Access) -> Response {
    (
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(reports(Arc::clone(&agent.host), agent.stop.clone())),
    )
        .into_response()
}

/// A report at once, after each change and when it was silent for long; ends with the agent.
fn reports(
    host: Arc<Host>,
    stop: CancellationToken,
) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static {
    let changes = host.changes();
    let pace = Pace::new(REPORT_EVERY, REPORTS_AT_ONCE);
    let start = (host, changes, stop, pace, None);
    futures::stream::unfold(
        start,
        |(host, mut changes, stop, mut pace, silence)| async move {
            if let Some(silence) = silence {
                tokio::select! {
                    () = stop.cancelled() => return None,
                    changed = changes.changed() => changed.ok()?,
                    () = tokio::time::sleep(silence) => {}
                }
                let now = std::time::Instant::now();
                let due = pace.next(now).max(now + GATHER);
                tokio::select! {
                    () = stop.cancelled() => return None,
                    () = tokio::time::sleep_until(due.into()) => {}
                }
            }
            changes.borrow_and_update();
            let report = host.report().await;
            let silence = longest_silence(&report);
            let line = serde_json::to_vec(&report)
                .map(|mut line| {
                    line.push(b'\n');
                    Bytes::from(line)
                })
                .map_err(std::io::Error::other);
            Some((line, (host, changes, stop, pace, Some(silence))))
        },
    )
}

fn longest_silence(report: &HostReport) -> Duration {
    let lately = report.instances.iter().any(|instance| {
        instance.phase == InstancePhase::Running && report.now.since(instance.since) < LATELY
    });
    if lately {
        SILENCE_AFTER_A_START
    } else {
        LONGEST_SILENCE
    }
}

async fn take_orders(State(agent): Access, body: Bytes) -> Answer {
    let orders: HostOrders = parse(&body)?;
    let host = Arc::clone(&agent.host);
    // Syncing a file may take its time.
    tokio::task::spawn_blocking(move || host.accept(orders))
        .await
        .map_err(|error| Problem::internal(error.to_string()))??;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn take_claim(State(agent): Access, body: Bytes) -> Answer {
    let claim: Claim = parse(&body)?;
    let host = Arc::clone(&agent.host);
    tokio::task::spawn_blocking(move || host.claim(&claim))
        .await
        .map_err(|error| Problem::internal(error.to_string()))??;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Whose call it is.
#[derive(Deserialize)]
struct Caller {
    controller: Option<ControllerId>,
}

async fn blob_status(State(agent): Access, Path(digest): Path<String>) -> Answer {
    let digest: Digest = parameter(&digest)?;
    json(&agent.host.blobs.status(&digest))
}

#[derive(Deserialize)]
struct Append {
    offset: u64,
    size: u64,
}

async fn append(
    State(agent): Access,
    Path(digest): Path<String>,
    Query(Append { offset, size }): Query<Append>,
    body: Body,
) -> Answer {
    let digest: Digest = parameter(&digest)?;
    let body = body.into_data_stream();
    let outcome = agent.host.blobs.append(&digest, offset, size, body).await;
    // Complete, or no room: both change what the loop does next.
    agent.host.wake();
    json(&outcome?)
}

#[derive(Deserialize)]
struct Make {
    base: String,
    size: u64,
}

/// Makes a blob of another one and of what it lacks.
async fn make(
    State(agent): Access,
    Path(digest): Path<String>,
    Query(Make { base, size }): Query<Make>,
    body: Body,
) -> Answer {
    let (digest, base): (Digest, Digest) = (parameter(&digest)?, parameter(&base)?);
    let body = body.into_data_stream();
    let outcome = agent.host.blobs.make(&digest, &base, size, body).await;
    agent.host.wake();
    json(&outcome?)
}

#[derive(Deserialize)]
struct LogQuery {
    tail: Option<usize>,
    process: Option<String>,
    follow: Option<bool>,
}

async fn instance_logs(
    State(agent): Access,
    Path(id): Path<String>,
    Query(query): Query<LogQuery>,
) -> Answer {
    let id: InstanceId = parameter(&id)?;
    let directory = agent.host.runtime.log_directory(&id);
    let ordered = agent.host.orders().instances.iter().any(|o| o.id == id);
    if !ordered && !directory.is_dir() {
        return Err(Problem::not_found("instance", id).into());
    }
    let wanted = logs::Query {
        directory,
        tail: query.tail.unwrap_or(DEFAULT_TAIL).min(logs::MOST_LINES),
        process: query.process,
    };
    let body = if query.follow.unwrap_or(false) {
        let stop = agent.stop.clone().cancelled_owned();
        Body::from_stream(logs::follow(wanted).take_until(stop))
    } else {
        let text = logs::tail(wanted).await;
        Body::from(
            text.map_err(|e| Problem::internal(format!("The logs of {id} cannot be read: {e}.")))?,
        )
    };
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

/// The way to the load balancer's control socket: this socket is the only one that the controller's key opens.
async fn edge_control(
    State(agent): Access,
    Query(caller): Query<Caller>,
    request: Request,
) -> Answer {
    agent.host.admit(caller.controller.as_ref())?;
    let to = agent.host.edge.connect().await.map_err(|error| {
        Problem::new(
            503,
            "edge-not-running",
            "There is no load balancer to speak to",
            format!("The load balancer of this host does not answer: {error}."),
        )
    })?;
    Ok(hand_over(request, to, CONTROL_UPGRADE, agent.stop.clone()))
}

#[derive(Deserialize)]
struct EdgeLogQuery {
    tail: Option<usize>,
    #[serde(default)]
    access: bool,
}

async fn edge_logs(State(agent): Access, Query(query): Query<EdgeLogQuery>) -> Answer {
    let tail = query.tail.unwrap_or(DEFAULT_TAIL).min(logs::MOST_LINES);
    let text = if query.access {
        let read = tokio::task::spawn_blocking(move || agent.host.edge.access_log(tail)).await;
        read.unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map(Bytes::from)
    } else {
        logs::tail(agent.host.edge.logs(tail)).await
    };
    let text = text.map_err(|error| {
        Problem::internal(format!("The load balancer's log cannot be read: {error}."))
    })?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}

async fn take_upgrade(State(agent): Access, Query(caller): Query<Caller>, body: Bytes) -> Answer {
    agent.host.admit(caller.controller.as_ref())?;
    let order: UpgradeOrder = parse(&body)?;
    let program = upgrade::install(&agent.host.blobs, &agent.installation, &order).await?;
    tracing::info!(version = order.version, program = %program.display(), "upgraded, starting afresh");
    *agent.ending.lock().unwrap_or_else(PoisonError::into_inner) = Ending::Replace(program);
    agent.stop.cancel();
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn take_uninstall(State(agent): Access, Query(caller): Query<Caller>) -> Answer {
    agent.host.admit(caller.controller.as_ref())?;
    let uninstall = agent.uninstall.get_or_init(|| begin_uninstall(&agent));
    let uninstalled = uninstall.clone().await.map_err(Problem::internal)?;
    json(&uninstalled)
}

/// On a task of its own: whoever called may go away, and a host left half-way would refuse orders for
/// as long as its agent runs.
fn begin_uninstall(agent: &Arc<Agent>) -> Uninstall {
    let agent = Arc::clone(agent);
    let task = tokio::spawn(async move {
        let uninstalled = uninstall::run(&agent.host, &agent.installation).await;
        tracing::info!(
            removed = uninstalled.removed.len(),
            left = uninstalled.left.len(),
            "uninstalled"
        );
        // The answer has to be out before the reports end: their end closes the controller's
        // connection.
        let stop = agent.stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(LAST_ANSWER).await;
            stop.cancel();
        });
        uninstalled
    });
    task.map(|ended| ended.map_err(|error| format!("The uninstall broke off: {error}.")))
        .boxed()
        .shared()
}
