//! How instances run: as processes under a shim ([`process::ProcessRuntime`]), some of which run a container
//! ([`crate::containers`]).
//!
//! A runtime holds what runs and tells what it sees. It decides nothing: what shall run comes from
//! the orders, and the converge loop compares the two and calls [`Runtime::start`] and
//! [`Runtime::stop`]. What was started goes on without the agent; the next agent takes it over by
//! [`Runtime::adopt`].

mod client;
pub(crate) mod port;
pub mod process;
mod recover;
mod tail;

use crate::shim::spec::GateSpec;
use beanpole_protocol::agent::{Failure, InstanceReport, Limits, Properties};
use beanpole_protocol::{ApplicationName, Incarnation, InstanceId, ReleaseNumber};
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;

/// What shall run in an instance.
#[derive(Clone, Debug)]
pub struct InstanceSpec {
    /// Which instance.
    pub id: InstanceId,
    /// Decides the system user.
    pub application: ApplicationName,
    /// The release, for reports.
    pub release: ReleaseNumber,
    /// The incarnation, for reports. A start with a higher one needs a stop of the one before.
    pub incarnation: Incarnation,
    /// The processes or containers. They live and die together.
    pub workload: Workload,
    /// Given to every process as `$PORT` that has no port of its own.
    pub port: u16,
    /// Ports of processes besides `web` that take requests, by their names: `$PORT` of each. One that is not among
    /// the processes is listened on by another of them.
    pub ports: BTreeMap<String, u16>,
    /// Given to every process: properties of the environment and what the platform adds, such as
    /// a `PATH` with the virtualenv. The runtime adds `PATH`, `HOME`, `LANG`, `USER`, `TMPDIR`,
    /// `PORT` where they are missing; nothing of the agent's own environment is passed on.
    pub environment: Properties,
    /// What the instance may use.
    pub limits: Limits,
    /// SIGTERM to SIGKILL.
    pub stop_grace: Duration,
    /// What has to succeed before it counts as started.
    pub gate: GateSpec,
    /// As whom it runs, and what that one may.
    pub runs_as: RunsAs,
}

/// As whom an instance runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunsAs {
    /// Its application's user, without any rights.
    #[default]
    Application,
    /// The load balancer's user, who may listen on ports below 1024.
    Edge,
}

/// What runs in an instance.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Where its processes start: the release's read-only tree.
    pub directory: PathBuf,
    /// One of each.
    pub processes: Vec<ProcessSpec>,
}

/// One process type of a Procfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSpec {
    /// Its name in the Procfile: letters, digits, `-` and `_`.
    pub name: String,
    /// Its command line, for `/bin/sh`.
    pub command: String,
    /// Whether it runs a container: it runs as the agent does, and what it leaves goes by the Engine.
    pub runs_container: bool,
}

/// Why a runtime could not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// An earlier incarnation has not ended.
    #[error("instance {id} still runs incarnation {incarnation}")]
    StillRunning {
        /// Which instance.
        id: InstanceId,
        /// What runs.
        incarnation: Incarnation,
    },
    /// This runtime cannot run such a workload.
    #[error("instance {id} cannot run here: {why}")]
    Unsupported {
        /// Which instance.
        id: InstanceId,
        /// What is missing.
        why: String,
    },
    /// The file system said no.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: `write`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A fence could not be put up.
    #[error(transparent)]
    Fence(#[from] crate::fences::FenceError),
    /// The shim did not start.
    #[error("the supervisor of instance {id} did not start: {why}")]
    Shim {
        /// Which instance.
        id: InstanceId,
        /// What it said.
        why: String,
    },
    /// The Engine has an image of its release no more.
    #[error("the image {image} of its release is not on the host any more")]
    ImageGone {
        /// Its id.
        image: String,
    },
    /// Docker Engine is away.
    #[error("{why}")]
    Engine {
        /// How.
        why: String,
    },
    /// Another program listens on its port.
    #[error("{}", _0.message.trim_end_matches('.'))]
    PortTaken(Failure),
    /// A load balancer's newer process could not take over.
    #[error("it goes on as it was, for what was to take over could not: {}", why.trim_end_matches('.'))]
    NotReloaded {
        /// What was in the way.
        why: String,
    },
    /// It would not end.
    #[error("instance {id} could not be ended: {why}")]
    Stuck {
        /// Which instance.
        id: InstanceId,
        /// What is left.
        why: String,
    },
}

impl RuntimeError {
    /// As a failure to report, with a stable code.
    pub fn failure(&self) -> Failure {
        let code = match self {
            Self::StillRunning { .. } => "still-running",
            Self::Unsupported { .. } => "workload-unsupported",
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "disk-full"
            }
            Self::Io { .. } => "host-io",
            Self::Fence(_) => "fence-failed",
            Self::Shim { .. } => "supervisor-failed",
            Self::ImageGone { .. } => "image-gone",
            Self::Engine { .. } => "docker-away",
            Self::PortTaken(failure) => return failure.clone(),
            Self::NotReloaded { .. } => "not-reloaded",
            Self::Stuck { .. } => "instance-stuck",
        };
        let mut message = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            message = format!("{message}: {error}");
            cause = error.source();
        }
        Failure {
            code: code.to_owned(),
            message,
            log: Vec::new(),
        }
    }
}

/// Runs instances. Every call may be repeated.
pub trait Runtime: Send + Sync + 'static {
    /// Finds the instances that an earlier agent left, running or not, and takes them over. Call
    /// it once, before anything else. Instances that are not wanted any more are the caller's to
    /// stop and remove.
    fn adopt(&self) -> BoxFuture<'_, Result<Vec<InstanceId>, RuntimeError>>;

    /// Starts an instance. Done when its supervisor runs; whether its processes stay up shows in
    /// [`Runtime::observe`]. The same incarnation running already is no error and changes nothing.
    fn start(&self, spec: InstanceSpec) -> BoxFuture<'_, Result<(), RuntimeError>>;

    /// Ends every process of an instance: SIGTERM, then SIGKILL after `grace`. Done when all are
    /// gone. An instance that does not run, or that is unknown, is no error.
    fn stop<'a>(
        &'a self,
        id: &'a InstanceId,
        grace: Duration,
    ) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Removes what a stopped instance left: its state, logs and private files. Stops it first if
    /// it runs.
    fn remove<'a>(&'a self, id: &'a InstanceId) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Removes what was left of removed instances. Blocks.
    ///
    /// # Errors
    /// Something of them is still there.
    fn sweep(&self) -> std::io::Result<()>;

    /// Every instance known, as last seen; quick. `Waiting` and `Failed` for want of a release are
    /// the caller's to report: an instance never started is not in here.
    fn observe(&self) -> Vec<InstanceReport>;

    /// Changes whenever an observation does. The number has no meaning.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Where an instance's logs are: `NAME.log`, older `NAME.log.1` and up, for each process;
    /// lines `TIME STREAM LINE`.
    fn log_directory(&self, id: &InstanceId) -> PathBuf;
}
