//! The load balancer of a host: the orders say whether there is one, and this has it so.
//!
//! It runs as instances do, under a shim of its own: that outlives the agent, restarts it when it ends, keeps its
//! log, and is found again by the next agent. Its user is nobody else's, and may listen on ports below 1024 and
//! nothing more. Its routing table and its certificates are in the home directory of that user, which goes with
//! it. The controller speaks to its control socket through the agent's: no other way leads there.

use crate::converge::Host;
use crate::logs;
use crate::runtime::{InstanceSpec, ProcessSpec, RunsAs, Runtime, RuntimeError, Workload};
use crate::shim::spec::GateSpec;
use crate::shim::spec::files;
use beanpole_daemon::files::{read_json, write_json};
use beanpole_daemon::http::{CallError, Connection};
use beanpole_daemon::{clock, files as daemon_files};
use beanpole_protocol::agent::{Failure, InstancePhase, InstanceReport, Limits, Properties};
use beanpole_protocol::edge::{EdgeOrders, EdgeReport, RELOAD_PATH};
use beanpole_protocol::{ApplicationName, Incarnation, InstanceId, ReleaseNumber, Timestamp};
use http::Method;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

/// SIGTERM to SIGKILL: a load balancer gives requests 30 s to end, and needs a moment for itself.
const GRACE: Duration = Duration::from_secs(35);
/// How long it waits at its start to be told the newest table before it takes requests by that of its last run:
/// this long a controller may take to reach a host that is back. Clients wait in the backlog.
const TABLE_WAIT: Duration = Duration::from_secs(10);
/// Its control socket, in its home directory.
const SOCKET: &str = "control.sock";
/// The socket of the process that keeps its listeners, beside that.
const KEEPER: &str = "control.keep";
/// How long that may take: twice what it gives one that is to take over.
const RELOAD: Duration = Duration::from_secs(45);
/// What it is told besides its addresses, where its user can read it and not write.
const TERMS: &str = "terms.json";
/// Its access log, in its home directory.
const ACCESS_LOG: &str = "access.log";
/// How long its control socket may take to answer.
const CONNECT: Duration = Duration::from_secs(5);
/// Its process, and so its log.
const PROCESS: &str = "proxy";
/// What it was started with.
const HELD: &str = "held.json";
/// How often it is looked whether all is as it should be, besides when something changes.
const LOOK: Duration = Duration::from_mins(1);

/// What it was started with last. Written before it is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    orders: EdgeOrders,
    /// Rises with every start; what runs has the same.
    incarnation: Incarnation,
    /// It reads its terms from a file. Those that earlier agents started have them as arguments.
    #[serde(default)]
    terms_in_file: bool,
}

/// The load balancer of this host, if it has one.
pub struct Edge {
    runtime: Arc<dyn Runtime>,
    /// Where everything of it is.
    directory: PathBuf,
    id: InstanceId,
    /// The executable that it is a subcommand of.
    program: PathBuf,
    /// As on disk.
    held: Mutex<Option<Held>>,
    trouble: Mutex<Option<Trouble>>,
}

/// Why it could not be started or ended.
struct Trouble {
    failure: Failure,
    attempts: u32,
    since: Timestamp,
}

impl Edge {
    /// The one whose files are in `directory`. `runtime` runs it there, and nothing else.
    pub fn new(runtime: Arc<dyn Runtime>, directory: PathBuf, program: PathBuf) -> Self {
        let held = read_json(&directory.join(HELD)).unwrap_or_else(|error| {
            tracing::warn!(%error, "what the load balancer was started with is not known: it is started afresh");
            None
        });
        Self {
            runtime,
            id: id_in(&directory),
            directory,
            program,
            held: Mutex::new(held),
            trouble: Mutex::default(),
        }
    }

    fn trouble(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing of it is here.
    pub fn is_gone(&self) -> bool {
        self.runtime.observe().is_empty() && self.held().is_none()
    }

    /// Has it as it is ordered, until `stop`. It goes on after that.
    pub async fn keep(&self, host: Arc<Host>, stop: CancellationToken) {
        let telling = async {
            let mut seen = self.runtime.changes();
            while seen.changed().await.is_ok() {
                host.touch();
            }
        };
        let keeping = async {
            // The reports' changes are those of the orders, too.
            let mut changes = host.changes();
            loop {
                changes.borrow_and_update();
                let wanted = host.orders().edge.clone();
                let Err(error) = self.settle(wanted.clone()).await else {
                    let had = self.trouble().take();
                    if had.is_some() {
                        host.touch();
                    }
                    let _ = tokio::time::timeout(LOOK, changes.changed()).await;
                    continue;
                };
                let pause = self.note(&error);
                host.touch();
                // Only other orders are a reason to try again sooner.
                let others = async {
                    while host.orders().edge == wanted {
                        if changes.changed().await.is_err() {
                            return;
                        }
                    }
                };
                let _ = tokio::time::timeout(pause, others).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = async { tokio::join!(telling, keeping); } => {}
        }
    }

    /// Notes why it is not as ordered; says when to try again.
    fn note(&self, error: &RuntimeError) -> Duration {
        let failure = error.failure();
        tracing::warn!(
            code = failure.code,
            "the load balancer: {}",
            failure.message
        );
        let mut trouble = self.trouble();
        let (attempts, since) = trouble
            .as_ref()
            .map_or_else(|| (0, clock::now()), |last| (last.attempts + 1, last.since));
        *trouble = Some(Trouble {
            failure,
            attempts,
            since,
        });
        Duration::from_secs(1 << attempts.min(5))
    }

    /// Makes it as it is wanted.
    async fn settle(&self, wanted: Option<EdgeOrders>) -> Result<(), RuntimeError> {
        let Some(orders) = wanted else {
            if self.is_gone() {
                return Ok(());
            }
            self.runtime.stop(&self.id, GRACE).await?;
            self.runtime.remove(&self.id).await?;
            for name in [TERMS, HELD] {
                if let Err(error) = fs::remove_file(self.directory.join(name))
                    && error.kind() != io::ErrorKind::NotFound
                {
                    return Err(self.failed("remove", error));
                }
            }
            tracing::info!("the load balancer of this host is gone");
            self.held().take();
            return Ok(());
        };
        let held = self.held().clone();
        let runs = self.observed().filter(|report| {
            !matches!(
                report.phase,
                InstancePhase::Stopped | InstancePhase::Failed(_)
            )
        });
        if let (Some(held), Some(report)) = (&held, &runs)
            && held.orders == orders
            && held.incarnation == report.incarnation
        {
            return Ok(());
        }
        if let (Some(held), Some(report)) = (&held, &runs)
            && held.incarnation == report.incarnation
            && report.phase == InstancePhase::Running
            && can_take_over(held, &orders)
        {
            return self.reload(held, orders).await;
        }
        let last = runs.as_ref().map_or(Incarnation(0), |one| one.incarnation);
        let last = held.map_or(last, |held| held.incarnation.max(last));
        let held = Held {
            orders,
            incarnation: last.next(),
            terms_in_file: true,
        };
        self.runtime.stop(&self.id, GRACE).await?;
        write_json(&self.directory.join(HELD), &held, 0o600)
            .map_err(|error| self.failed("write", error))?;
        *self.held() = Some(held.clone());
        self.write_terms(&held.orders)?;
        tracing::info!(http = ?held.orders.http, https = ?held.orders.https, "the load balancer of this host is started");
        self.runtime.start(self.spec(&held)).await
    }

    /// Has the executable that is there now take over by the newest terms, without a lost request. Where it cannot,
    /// what runs goes on as it was.
    async fn reload(&self, held: &Held, orders: EdgeOrders) -> Result<(), RuntimeError> {
        if held.terms_in_file {
            self.write_terms(&orders)?;
        }
        if let Err(why) = self.ask_to_reload().await {
            if held.terms_in_file {
                self.write_terms(&held.orders)?;
            }
            return Err(RuntimeError::NotReloaded { why });
        }
        // Afterwards: one more reload does no harm.
        let held = Held {
            orders,
            ..held.clone()
        };
        write_json(&self.directory.join(HELD), &held, 0o600)
            .map_err(|error| self.failed("write", error))?;
        *self.held() = Some(held);
        tracing::info!("the load balancer of this host is reloaded");
        Ok(())
    }

    async fn ask_to_reload(&self) -> Result<(), String> {
        let connection = async {
            let socket = self.connect_to(KEEPER).await;
            let socket = socket.map_err(|error| CallError::Broken(Box::new(error)))?;
            Connection::open(socket).await
        };
        let reloaded = async {
            connection
                .await?
                .call::<serde::de::IgnoredAny>(Method::POST, RELOAD_PATH, None::<&()>, RELOAD)
                .await
        };
        match reloaded.await {
            Ok(_) => Ok(()),
            Err(CallError::Refused(problem)) => Err(problem.detail),
            Err(error) => Err(format!("the process that keeps its listeners: {error}")),
        }
    }

    fn write_terms(&self, orders: &EdgeOrders) -> Result<(), RuntimeError> {
        // No secret is in it, and its user has to read it.
        write_json(&self.terms(), &orders.terms(), 0o644)
            .map_err(|error| self.failed("write", error))
    }

    fn terms(&self) -> PathBuf {
        self.directory.join(TERMS)
    }

    fn failed(&self, action: &'static str, source: io::Error) -> RuntimeError {
        RuntimeError::Io {
            action,
            path: self.directory.join(HELD),
            source,
        }
    }

    fn observed(&self) -> Option<InstanceReport> {
        let mut all = self.runtime.observe();
        all.pop()
    }

    fn home(&self) -> PathBuf {
        self.directory.join(self.id.as_str()).join(files::HOME)
    }

    fn spec(&self, held: &Held) -> InstanceSpec {
        InstanceSpec {
            id: self.id.clone(),
            // Its user does not come from this.
            application: ApplicationName::new("beanpole").expect("it is a name"),
            release: ReleaseNumber(0),
            incarnation: held.incarnation,
            workload: Workload {
                directory: self.home(),
                processes: vec![ProcessSpec {
                    name: PROCESS.to_owned(),
                    command: command_line(&self.program, &self.terms(), &held.orders),
                    runs_container: false,
                }],
            },
            port: 0,
            ports: BTreeMap::new(),
            environment: Properties::default(),
            limits: Limits::default(),
            stop_grace: GRACE,
            gate: GateSpec::default(),
            runs_as: RunsAs::Edge,
        }
    }

    /// What is to be told of it; nothing where there is none and none is ordered.
    pub fn report(&self, wanted: Option<&EdgeOrders>) -> Option<EdgeReport> {
        let seen = self.observed();
        let held = self.held().clone();
        if wanted.is_none() && seen.is_none() && held.is_none() {
            return None;
        }
        let trouble = self.trouble();
        let (phase, since) = match (&*trouble, &seen) {
            (Some(trouble), _) => (
                InstancePhase::Failed(trouble.failure.clone()),
                trouble.since,
            ),
            (None, Some(seen)) => (seen.phase.clone(), seen.since),
            (None, None) => (InstancePhase::Waiting, clock::now()),
        };
        let process = seen.as_ref().and_then(|seen| seen.processes.first());
        Some(EdgeReport {
            orders: held.map(|held| held.orders),
            phase,
            since,
            pid: process.and_then(|process| process.pid),
            restarts: process.map_or(0, |process| process.restarts),
            last_exit: process.and_then(|process| process.last_exit.clone()),
            log: seen
                .as_ref()
                .map(|seen| seen.log.clone())
                .unwrap_or_default(),
        })
    }

    /// A connection to its control socket.
    pub async fn connect(&self) -> io::Result<UnixStream> {
        self.connect_to(SOCKET).await
    }

    async fn connect_to(&self, socket: &str) -> io::Result<UnixStream> {
        // By way of a descriptor: the full path may be longer than a socket's address can be.
        let home = self.open_home()?;
        let path = format!("/proc/self/fd/{}/{socket}", home.as_raw_fd());
        // Who may write there shall lead nobody to another socket of this host.
        let found = fs::symlink_metadata(&path)?;
        if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) {
            return Err(io::ErrorKind::NotFound.into());
        }
        tokio::time::timeout(CONNECT, UnixStream::connect(path)).await?
    }

    fn open_home(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::open(self.home(), flags, Mode::empty())?)
    }

    /// The last lines of its access log, as they are; none where it keeps none.
    pub fn access_log(&self, tail: usize) -> io::Result<String> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let home = match self.open_home() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            home => home?,
        };
        let file = match rustix::fs::openat(home, ACCESS_LOG, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(String::new()),
            file => file?,
        };
        let mut file = fs::File::from(file);
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (mut lines, _) = logs::last_lines(&mut file, found.len(), tail)?;
        lines.push(String::new());
        Ok(lines.join("\n"))
    }

    /// Where its log is.
    pub fn logs(&self, tail: usize) -> logs::Query {
        logs::Query {
            directory: self.runtime.log_directory(&self.id),
            tail,
            process: Some(PROCESS.to_owned()),
        }
    }
}

/// Whether what runs can be as it is wanted by a reload.
fn can_take_over(held: &Held, wanted: &EdgeOrders) -> bool {
    held.orders.listens_as(wanted) && (held.terms_in_file || held.orders.terms() == wanted.terms())
}

/// What it is to its runtime. No instance has the same, nor has the load balancer of another agent on this machine:
/// without control groups what it left is found by this.
pub fn id_in(directory: &Path) -> InstanceId {
    let hash = Sha256::digest(directory.as_os_str().as_encoded_bytes());
    let bits = hash
        .iter()
        .take(16)
        .fold(0, |bits, byte| (bits << 8) | u128::from(*byte));
    InstanceId::from_bits(bits)
}

/// `beanpole proxy …` for `/bin/sh`. Paths are those of its home directory, where it starts.
fn command_line(program: &Path, terms: &Path, orders: &EdgeOrders) -> String {
    let mut words = vec![
        program.display().to_string(),
        "proxy".to_owned(),
        "--data=.".to_owned(),
        format!("--socket={SOCKET}"),
        format!("--domain={}", orders.domain),
        format!("--table-wait={}", TABLE_WAIT.as_secs()),
        format!("--terms={}", terms.display()),
    ];
    words.extend(orders.http.iter().map(|one| format!("--http={one}")));
    words.extend(orders.https.iter().map(|one| format!("--https={one}")));
    let quoted: Vec<String> = words
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
        .collect();
    format!("exec {}", quoted.join(" "))
}

/// Makes the directory of the load balancer; others may pass through it.
pub fn make(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    daemon_files::sweep(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_become_a_line_in_which_no_value_leaves_its_place() {
        let orders = EdgeOrders {
            http: vec!["0.0.0.0:80".parse().expect("an address")],
            https: vec!["[::]:443".parse().expect("an address")],
            domain: "example.com'; reboot '".to_owned(),
            restart: 3,
            ..EdgeOrders::default()
        };
        let line = command_line(
            Path::new("/usr/local/lib/beanpole/current/beanpole"),
            Path::new("/var/lib/beanpole/agent/edge/terms.json"),
            &orders,
        );
        assert_eq!(
            line,
            "exec '/usr/local/lib/beanpole/current/beanpole' 'proxy' '--data=.' '--socket=control.sock' \
             '--domain=example.com'\\''; reboot '\\''' '--table-wait=10' \
             '--terms=/var/lib/beanpole/agent/edge/terms.json' '--http=0.0.0.0:80' '--https=[::]:443'"
        );
    }

    #[test]
    fn each_agent_of_a_machine_knows_its_own() {
        let one = id_in(Path::new("/var/lib/beanpole/agent/edge"));
        assert_eq!(one, id_in(Path::new("/var/lib/beanpole/agent/edge")));
        assert_ne!(one, id_in(Path::new("/tmp/data/agent/edge")));
    }
}
