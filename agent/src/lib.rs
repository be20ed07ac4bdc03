//! The agent: makes one host match its orders.
//!
//! [`run`] is the daemon. It holds the orders on disk, prepares releases ([`release`]), starts and
//! stops instances through a [`runtime`], and answers the controller on a Unix socket ([`api`]).
//! It opens no TCP port. What it started goes on without it: the next agent on the same data takes
//! over where this one ended, however it ended.

pub mod api;
pub mod blobs;
pub mod containers;
pub mod converge;
pub mod edge;
pub mod facts;
pub mod fences;
pub mod layout;
pub mod logs;
pub mod orders;
pub mod owner;
pub mod release;
mod remove;
pub mod runtime;
pub mod shim;
mod sys;
pub mod uninstall;
pub mod upgrade;
pub mod web;

use crate::api::{Agent, Ending};
use crate::converge::{Host, Runs, Whose};
use crate::layout::Layout;
use crate::release::Workshop;
use crate::runtime::Runtime;
use crate::runtime::process::{ProcessRuntime, ProcessSettings, ShimProgram};
use crate::shim::spec::Backoff;
use beanpole_daemon::connections::raise_open_files;
use beanpole_daemon::{files, socket};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Bytes that stay free on the disk, so that apps can still write when bundles fill it.
const DISK_RESERVE_BYTES: u64 = 64 << 20;
/// How long calls in flight may take to end once the agent is told to stop.
const LAST_CALLS: Duration = Duration::from_secs(5);

/// The first and the longest pause before a load balancer that ended is started again, in milliseconds: clients wait
/// for it, or are sent elsewhere as long as it is away.
const EDGE_PAUSES_MS: (u64, u64) = (100, 10_000);

/// How long a lock or socket of an agent that was just killed may linger.
const PATIENCE: Duration = Duration::from_secs(2);

/// How an agent runs.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Everything the agent keeps is in `agent/` below this directory.
    pub data_dir: PathBuf,
    /// Where it listens.
    pub socket: PathBuf,
    /// The group that may use the socket besides the agent's own user.
    pub socket_group: Option<String>,
    /// How shims are started.
    pub shim: ShimProgram,
    /// Bounds of bundles.
    pub limits: release::unpack::UnpackLimits,
    /// Bytes that stay free on the disk.
    pub disk_reserve_bytes: u64,
    /// The executable whose subcommand `proxy` is the load balancer of this host; if absent, the agent's own, by the
    /// name by which upgrades are found.
    pub edge_program: Option<PathBuf>,
}

impl AgentConfig {
    /// The usual settings: shims are this very executable.
    pub fn new(data_dir: impl Into<PathBuf>, socket: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            socket: socket.into(),
            socket_group: None,
            shim: ShimProgram::current(),
            limits: release::unpack::UnpackLimits::default(),
            disk_reserve_bytes: DISK_RESERVE_BYTES,
            edge_program: None,
        }
    }
}

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Another one runs on the same data.
    #[error("another agent (process {holder}) already uses {}", path.display())]
    Held {
        /// The agent's directory.
        path: PathBuf,
        /// Its process id, as it wrote it.
        holder: String,
    },
    /// The file system said no.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: `make`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The orders on disk cannot be read. Running on without them would stop every app.
    #[error("the orders on disk cannot be read: move the file away to start without orders")]
    Orders(#[source] files::ReadError),
    /// Whose host this is cannot be read. Nobody's would be the next controller's.
    #[error(
        "whose host this is cannot be read: move the file away to let the next controller have it"
    )]
    Owner(#[source] files::ReadError),
    /// No such group.
    #[error("there is no group `{0}` on this host")]
    NoGroup(String),
    /// The socket cannot be listened on.
    #[error("cannot serve the controller")]
    Socket(#[from] socket::BindError),
    /// What runs here cannot be taken over.
    #[error("cannot take over the instances on this host")]
    Runtime(#[from] runtime::RuntimeError),
    /// The new executable did not start.
    #[error("cannot start the new executable {}", path.display())]
    Replace {
        /// The executable.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AgentError {
    let path = path.to_owned();
    move |source| AgentError::Io {
        action,
        path,
        source,
    }
}

/// Runs the agent until `stop`. Apps go on running after it.
pub async fn run(config: AgentConfig, stop: CancellationToken) -> Result<(), AgentError> {
    // What it starts gets what it was started with itself: a program that still uses select(2), or
    // closes every descriptor that it might have, does not cope with half a million.
    let open_files = getrlimit(Resource::Nofile);
    raise_open_files();
    let shim = ShimProgram {
        open_files: open_files.current,
        ..config.shim.clone()
    };
    let data_dir =
        std::path::absolute(&config.data_dir).map_err(io_error("find", &config.data_dir))?;
    let layout = Layout::new(&data_dir);
    layout.create().map_err(io_error("make", layout.root()))?;
    let lock = patiently(
        async || hold(&layout),
        |e| matches!(e, AgentError::Held { .. }),
    )
    .await?;
    beanpole_daemon::files::sweep(layout.root()).map_err(io_error("clean up", layout.root()))?;
    let orders = orders::load(&layout.orders()).map_err(AgentError::Orders)?;
    let owner = owner::load(&layout.owner()).map_err(AgentError::Owner)?;
    let id = owner::identity(&layout.identity()).map_err(io_error("write", &layout.identity()))?;
    let executable = std::env::current_exe().unwrap_or_default();
    let installation = uninstall::Installation::of(&executable, &data_dir, &config.socket);
    let fences = fences::Fences::detect(layout.root());
    let runtime: Arc<dyn Runtime> = Arc::new(ProcessRuntime::new(
        ProcessSettings {
            shim: shim.clone(),
            ..ProcessSettings::new(layout.instances())
        },
        fences.clone(),
    )?);
    end_ownerless(&fences, &layout).await;
    let adopted = runtime.adopt().await?;
    let edge_runtime = edge_runtime(&layout, &shim, &fences)?;
    edge_runtime.adopt().await?;
    let program = config
        .edge_program
        .clone()
        .unwrap_or_else(|| installation.program(&executable));
    let edge = Arc::new(edge::Edge::new(
        edge_runtime,
        layout.edge(),
        program.clone(),
    ));
    let workshop = Workshop {
        layout: layout.clone(),
        limits: config.limits,
        reserve_bytes: config.disk_reserve_bytes,
        caches: release::cache::Caches::new(layout.caches()),
        boot_id: facts::boot_id(),
        fences: fences.clone(),
        guard: shim,
        program,
        installing: tokio::sync::Mutex::default(),
    };
    let blobs = blobs::Blobs::open(layout.blobs(), config.disk_reserve_bytes)
        .map_err(io_error("use", &layout.blobs()))?;
    let host = Arc::new(Host::new(
        layout.clone(),
        blobs,
        workshop,
        Runs {
            instances: runtime,
            edge: Arc::clone(&edge),
        },
        facts::Facts::new(layout.root(), fences, installation.clone()),
        orders,
        Whose { agent: id, owner },
    ));
    host.recover()
        .map_err(io_error("read", &layout.releases()))?;
    let in_use =
        |error: &AgentError| matches!(error, AgentError::Socket(socket::BindError::InUse { .. }));
    let listener = patiently(async || listen(&config).await, in_use).await?;
    tracing::info!(
        data = %data_dir.display(),
        socket = %config.socket.display(),
        generation = host.orders().generation.0,
        adopted = adopted.len(),
        "the agent serves"
    );
    learn_digest(Arc::clone(&host), executable);
    let agent = Arc::new(Agent {
        host: Arc::clone(&host),
        installation,
        stop: stop.child_token(),
        ending: Mutex::default(),
        uninstall: OnceLock::new(),
    });
    let stop = agent.stop.clone();
    let serving = socket::serve(listener, api::router(Arc::clone(&agent)), stop.clone());
    let keeper = Arc::clone(&host);
    let edge_stop = stop.clone();
    let keeping = tokio::spawn(async move { edge.keep(keeper, edge_stop).await });
    let converging = tokio::spawn(host.converge(stop.clone()));
    let serving = tokio::spawn(serving);
    stop.cancelled().await;
    if tokio::time::timeout(LAST_CALLS, serving).await.is_err() {
        tracing::debug!("calls in flight were cut off");
    }
    let _ = converging.await;
    let _ = keeping.await;
    let ending = agent
        .ending
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    drop(lock);
    match ending {
        Ending::Stop => {
            tracing::info!("the agent stopped; apps go on");
            Ok(())
        }
        // The same process goes on as the new executable: systemd and every other supervisor
        // sees no end.
        Ending::Replace(program) => {
            let _ = setrlimit(Resource::Nofile, open_files);
            Err(AgentError::Replace {
                source: std::process::Command::new(&program)
                    .args(std::env::args_os().skip(1))
                    .exec(),
                path: program,
            })
        }
    }
}

/// What runs the load balancer.
fn edge_runtime(
    layout: &Layout,
    shim: &ShimProgram,
    fences: &fences::Fences,
) -> Result<Arc<dyn Runtime>, AgentError> {
    let settings = ProcessSettings {
        shim: shim.clone(),
        backoff: Backoff {
            first_ms: EDGE_PAUSES_MS.0,
            longest_ms: EDGE_PAUSES_MS.1,
            ..Backoff::default()
        },
        ..ProcessSettings::new(layout.edge())
    };
    let runtime = ProcessRuntime::new(settings, fences.clone())?;
    edge::make(&layout.edge()).map_err(io_error("clean up", &layout.edge()))?;
    Ok(Arc::new(runtime))
}

/// Ends what an earlier agent on this data left in cgroups when it was killed: instances and builds
/// that are not on disk any more. Nothing is started yet.
async fn end_ownerless(fences: &fences::Fences, layout: &Layout) {
    let (fences, layout) = (fences.clone(), layout.clone());
    let ending = tokio::task::spawn_blocking(move || {
        let trees = fences.cgroups()?;
        Some(trees.end_ownerless(|owner| layout.holds(owner)))
    });
    if let Ok(Some(gone)) = ending.await
        && gone > 0
    {
        tracing::info!(gone, "removed cgroups that nobody owned");
    }
}

/// Tries again for a moment while `held`: an agent that was killed while it started a shim lives on
/// in that child, with its lock and its socket, until the shim is executed.
async fn patiently<T>(
    attempt: impl AsyncFn() -> Result<T, AgentError>,
    held: impl Fn(&AgentError) -> bool,
) -> Result<T, AgentError> {
    let start = std::time::Instant::now();
    loop {
        match attempt().await {
            Err(error) if held(&error) && start.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            outcome => return outcome,
        }
    }
}

/// Makes this agent the only one on its data.
fn hold(layout: &Layout) -> Result<File, AgentError> {
    let path = layout.lock();
    let failed = || io_error("lock", &path);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed())?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::Error(error)) => return Err(failed()(error)),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            return Err(AgentError::Held {
                path: layout.root().to_owned(),
                holder: holder.trim().to_owned(),
            });
        }
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| write!(file, "{}", std::process::id()))
        .map_err(failed())?;
    Ok(file)
}

async fn listen(config: &AgentConfig) -> Result<socket::Socket, AgentError> {
    if let Some(directory) = config.socket.parent() {
        // Whoever is in the group has to get through; the socket itself lets nobody else in.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(io_error("make", directory))?;
    }
    let Some(group) = &config.socket_group else {
        return Ok(socket::bind(&config.socket, 0o600, None).await?);
    };
    let gid = group_id(group).ok_or_else(|| AgentError::NoGroup(group.clone()))?;
    Ok(socket::bind(&config.socket, 0o660, Some(gid)).await?)
}

/// A group's number, from `/etc/group`: a statically linked agent has no name service.
fn group_id(name: &str) -> Option<u32> {
    let text = fs::read_to_string("/etc/group").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// Hashing a large executable takes a moment; reports go out without it meanwhile.
fn learn_digest(host: Arc<Host>, executable: PathBuf) {
    tokio::task::spawn_blocking(move || {
        if let Ok(digest) = blobs::digest_of(&executable) {
            let _ = host.digest.set(digest);
        }
    });
}
