//! What the controller and an agent say to each other: HTTP over the agent's Unix socket, reached
//! through SSH (or directly on the controller's own machine).
//!
//! | Call | Meaning |
//! |---|---|
//! | `GET /v1/report` | a [`HostReport`] |
//! | `GET /v1/watch` | a stream of [`HostReport`]s as JSON lines: one at once, one after each change (ten a second in the long run, twenty at once), one at least every 5 s |
//! | `PUT /v1/orders` | a [`HostOrders`]; answered after it is on disk. 409 `foreign-controller` from another controller than the host's own, 409 `stale-generation` for an older generation, 409 `generation-reused` for the same one with other content |
//! | `PUT /v1/owner` | a [`Claim`]: the host belongs to that controller from now on; 409 `foreign-controller` when it belongs to another and is not taken over |
//! | `GET /v1/blobs/{digest}` | a [`BlobStatus`] |
//! | `PATCH /v1/blobs/{digest}?offset=N&size=TOTAL` | appends raw bytes at `offset`; 409 `wrong-offset` when that is not what the agent holds; the last one verifies the digest (422 `digest-mismatch` drops the blob) |
//! | `GET /v1/instances/{id}/logs?tail=N&process=P&follow=true` | plain text, lines `TIME PROCESS STREAM LINE` |
//! | `GET /v1/edge/control`, `GET /v1/edge/logs` | the host's load balancer, see [`crate::edge`] |
//! | `POST /v1/upgrade?controller=ID` | [`UpgradeOrder`]: installs an executable sent as a blob and restarts the agent, not the apps |
//! | `POST /v1/uninstall?controller=ID` | stops every app, removes everything this host got from Beanpole, answers [`Uninstalled`], ends the agent |
//!
//! A host belongs to one controller: the first that orders anything, or that claims it. Upgrades and
//! uninstalls are refused like orders (409 `foreign-controller`) when they come from another, or do not
//! say from which.

use crate::edge::{EdgeOrders, EdgeReport};
use crate::{
    AgentId, ApplicationName, ControllerId, Digest, EnvironmentId, EnvironmentName, Generation,
    Incarnation, InstanceId, OperationId, ReleaseNumber, Timestamp, VersionLabel,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The code of every refusal of a controller that is not the host's own.
pub const FOREIGN_CONTROLLER: &str = "foreign-controller";

/// A controller, as its hosts know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ControllerIdentity {
    /// Its id, made once; a backup carries it along.
    pub id: ControllerId,
    /// The name of its machine, for people.
    pub name: String,
}

impl std::fmt::Display for ControllerIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.id, self.name)
    }
}

/// Whose a host is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Owner {
    /// Its controller.
    pub controller: ControllerIdentity,
    /// Since when, by the host's clock.
    pub since: Timestamp,
}

/// Makes a host the controller's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The controller.
    pub controller: ControllerIdentity,
    /// Also when the host belongs to another one.
    #[serde(default)]
    pub take_over: bool,
}

/// Everything that one host shall hold. What is not in it goes away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostOrders {
    /// Rises with every change of content.
    pub generation: Generation,
    /// Whose orders these are; absent from controllers of before there were ids.
    #[serde(default)]
    pub controller: Option<ControllerIdentity>,
    /// Releases to keep prepared.
    pub releases: Vec<ReleaseOrder>,
    /// Instances to hold.
    pub instances: Vec<InstanceOrder>,
    /// The load balancer to run; none unless there is one here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<EdgeOrders>,
}

/// A release of an environment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReleaseKey {
    /// The environment.
    pub environment: EnvironmentId,
    /// Its release.
    pub number: ReleaseNumber,
}

/// A release to prepare and keep: unpack the bundle, find out how it runs, install what it needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseOrder {
    /// Which release.
    pub key: ReleaseKey,
    /// The application it belongs to; decides the system user of builds and processes.
    pub application: ApplicationName,
    /// The environment's name, for logs.
    pub environment_name: EnvironmentName,
    /// The version, for logs and the app's environment.
    pub version: VersionLabel,
    /// The bundle, a ZIP.
    pub bundle: Digest,
    /// Its size in bytes.
    pub bundle_size: u64,
    /// How to run it.
    pub platform: Platform,
    /// Environment properties: given to the build and to the processes.
    pub properties: Properties,
    /// Options of the platform, `namespace` + `:` + `name` (for example `WSGIPath`).
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Whether the agent may install what the platform needs on the host, as root.
    #[serde(default)]
    pub install: bool,
    /// Whether only settings differ from what was live when it was made. Where that release's bundle was prepared
    /// before, `confighooks` take the place of `hooks`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub configures: bool,
    /// How long preparing may take, in milliseconds.
    pub prepare_timeout_ms: u64,
    /// Whether the application may act as root on its hosts. Without it, hooks and container commands run as its user,
    /// and a bundle that asks for more is refused (`root-not-allowed`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub root: bool,
    /// The operation that waits for it now. One that did not ask before has a failure of before tried
    /// again at once.
    #[serde(default)]
    pub asked_by: Option<OperationId>,
    /// Run its container commands for the leader and its release command, once; absent when it shall not run, or not any more.
    #[serde(default)]
    pub run_once: Option<OnceOrder>,
}

/// Runs what runs once of a prepared release. For one operation it is started at most once: by
/// the agent that is named, which remembers on disk that it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnceOrder {
    /// The operation that it belongs to.
    pub operation: OperationId,
    /// The agent that shall run it. Another one at the same address, on a disk that was replaced, does
    /// not know whether it has run.
    pub agent: AgentId,
}

/// Environment properties of an application. Values may be secret and are never printed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Properties(pub BTreeMap<String, String>);

impl std::fmt::Debug for Properties {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map()
            .entries(self.0.keys().map(|key| (key, "***")))
            .finish()
    }
}

/// How an application is built and run.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Platform {
    /// Found from the bundle's files, by the rules of `beanpole_bundle::platform`. Where there is a `Procfile`, it
    /// says what to start in each case.
    #[default]
    Auto,
    /// The commands of a `Procfile`, nothing installed.
    Procfile,
    /// Node.js: what the lock file's package manager installs, then the `Procfile`, `npm start` or `app.js`.
    Node,
    /// Python: a virtualenv with what is required, then the `Procfile`, gunicorn or uvicorn.
    Python,
    /// Ruby: `bundle install`, then the `Procfile` or Puma.
    Ruby,
    /// PHP: `composer install`, then php-fpm behind a web server of the agent.
    Php,
    /// Go: `go build`, or what was built before; then the `Procfile` or `bin/application`.
    Go,
    /// Java SE: a JAR, or what a `Buildfile`, Maven or Gradle makes.
    Java,
    /// Tomcat: one WAR or several.
    Tomcat,
    /// .NET on Linux: what `dotnet publish` made.
    Dotnet,
    /// A directory of files.
    Static,
    /// Containers: a `Dockerfile`, a `Dockerrun.aws.json` or a `docker-compose.yml`, on the host's Docker Engine.
    Docker,
}

impl Platform {
    /// All that can be chosen, with `auto` first.
    pub const ALL: [Self; 12] = [
        Self::Auto,
        Self::Node,
        Self::Python,
        Self::Ruby,
        Self::Php,
        Self::Go,
        Self::Java,
        Self::Tomcat,
        Self::Dotnet,
        Self::Docker,
        Self::Static,
        Self::Procfile,
    ];

    /// The name users type.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Procfile => "procfile",
            Self::Node => "node",
            Self::Python => "python",
            Self::Ruby => "ruby",
            Self::Php => "php",
            Self::Go => "go",
            Self::Java => "java",
            Self::Tomcat => "tomcat",
            Self::Dotnet => "dotnet",
            Self::Static => "static",
            Self::Docker => "docker",
        }
    }

    /// What people call it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Auto => "found from the files",
            Self::Procfile => "Procfile",
            Self::Node => "Node.js",
            Self::Python => "Python",
            Self::Ruby => "Ruby",
            Self::Php => "PHP",
            Self::Go => "Go",
            Self::Java => "Java SE",
            Self::Tomcat => "Tomcat",
            Self::Dotnet => ".NET on Linux",
            Self::Static => "static site",
            Self::Docker => "Docker",
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One instance to hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceOrder {
    /// Which instance.
    pub id: InstanceId,
    /// The environment it serves.
    pub environment: EnvironmentId,
    /// The release to run; it is among the orders' releases.
    pub release: ReleaseNumber,
    /// When this rises, the processes are stopped and started afresh, on `release`.
    pub incarnation: Incarnation,
    /// Whether its processes shall run.
    pub run: bool,
    /// The port that its `web` process listens on (`$PORT`).
    pub port: u16,
    /// The ports of its other processes that take requests: each finds its own in `$PORT`, and all find them in
    /// [`port_variable`](crate::options::port_variable).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u16>,
    /// SIGTERM to SIGKILL, in milliseconds.
    pub stop_grace_ms: u64,
    /// What it may use.
    pub limits: Limits,
    /// What has to succeed in it before it counts as started; nothing when absent.
    #[serde(default)]
    pub ready: Option<ReadyOrder>,
}

/// A command that is run in an instance, again and again until it exits with 0. Again after each start
/// of one of its processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyOrder {
    /// The command, for `/bin/sh`.
    pub command: String,
    /// How long one run of it may take, in milliseconds.
    pub timeout_ms: u64,
}

/// Upper bounds for one instance. None means unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Limits {
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// CPU in thousandths of a core.
    pub cpu_millis: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Open files per process.
    pub open_files: Option<u64>,
}

/// What a host is and does, as its agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// Rises with every report of one run of the agent.
    pub sequence: u64,
    /// The agent's version.
    pub agent_version: String,
    /// SHA-256 of the agent's executable.
    #[serde(default)]
    pub agent_digest: Option<Digest>,
    /// Which agent this is, by whatever address it is reached.
    #[serde(default)]
    pub agent: Option<AgentId>,
    /// Whose host this is, once a controller said so.
    #[serde(default)]
    pub owner: Option<Owner>,
    /// The agent's clock when it wrote this.
    pub now: Timestamp,
    /// The orders it holds on disk.
    pub generation: Generation,
    /// The machine.
    pub facts: HostFacts,
    /// Releases, one entry per release ordered.
    pub releases: Vec<ReleaseReport>,
    /// Instances, one entry per instance ordered or not yet gone.
    pub instances: Vec<InstanceReport>,
    /// Its load balancer, where one is ordered or not yet gone. Agents of before know none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<EdgeReport>,
}

impl HostReport {
    /// Whether the host belongs to that controller, or to nobody yet.
    pub fn is_of(&self, controller: &ControllerId) -> bool {
        self.owner
            .as_ref()
            .is_none_or(|owner| owner.controller.id == *controller)
    }
}

/// The TCP ports that instances get.
pub const INSTANCE_PORTS: std::ops::RangeInclusive<u16> = 20_000..=29_999;

/// Facts about a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostFacts {
    /// `hostname`.
    pub hostname: String,
    /// For example `Debian GNU/Linux 12 (bookworm)`.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// For example `x86_64`.
    pub arch: String,
    /// Changes at every boot.
    pub boot_id: String,
    /// Cores.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_total_bytes: u64,
    /// Memory that programs may still take, in bytes.
    pub memory_available_bytes: u64,
    /// The disk that holds the agent's data, in bytes.
    pub disk_total_bytes: u64,
    /// Free there, in bytes.
    pub disk_available_bytes: u64,
    /// Load average over one minute, in hundredths.
    pub load_1m_hundredths: u32,
    /// Docker Engine's version where one answers.
    pub docker: Option<String>,
    /// Whether systemd runs the machine.
    pub systemd: bool,
    /// What starts the agent after a reboot: `systemd`, `cron`; none where nothing of ours does.
    #[serde(default)]
    pub started_at_boot_by: Option<String>,
    /// Whether the agent runs as root.
    pub root: bool,
    /// What the agent does to fence instances in, and what it cannot here.
    pub fences: Vec<Fence>,
    /// Ports out of [`INSTANCE_PORTS`] that some process listens on: a new instance gets another.
    #[serde(default)]
    pub listening: Vec<u16>,
    /// Whether its agent knows [`InstanceOrder::ports`]. One of before gives every process the same.
    #[serde(default)]
    pub ports_by_process: bool,
}

/// One way in which instances are fenced in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Fence {
    /// For example `memory limit`.
    pub name: String,
    /// Whether it is in force.
    pub active: bool,
    /// How, or why not.
    pub detail: String,
}

/// How far a release is on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseReport {
    /// Which release.
    pub key: ReleaseKey,
    /// How far it is.
    pub phase: ReleasePhase,
    /// The bundle it needs and how much of it has arrived, while it waits for it.
    pub bundle: Digest,
    /// Bytes of the bundle on this host.
    pub bundle_have: u64,
    /// Since when it is in this phase.
    pub since: Timestamp,
    /// The operation that waited for it when the attempt began that this phase comes of: a failure is
    /// an answer to that one, and to none that came later.
    #[serde(default)]
    pub asked_by: Option<OperationId>,
    /// When it is tried again by itself after a failure. Agents of before do not: their failures are
    /// final.
    #[serde(default)]
    pub again_at: Option<Timestamp>,
    /// Whether it has a release command or container commands for the leader, which this agent knows to
    /// run. Only once it is ready.
    #[serde(default)]
    pub has_release_command: bool,
    /// Whether it is ready, and the container commands of its bundle have run, if there are any: agents
    /// of before run none.
    #[serde(default)]
    pub ran_container_commands: bool,
    /// Whether it is ready, and all that its bundle's configuration files tell a host was carried out: agents of
    /// before know of container commands alone.
    #[serde(default)]
    pub set_up: bool,
    /// How far its release command is, once it was ordered.
    #[serde(default)]
    pub once: Option<OnceReport>,
}

/// How far a release command is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnceReport {
    /// The operation that it was run for.
    pub operation: OperationId,
    /// How far it is.
    #[serde(flatten)]
    pub phase: OncePhase,
    /// Since when, by the host's clock.
    pub since: Timestamp,
}

/// The stages of a release command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case")]
pub enum OncePhase {
    /// It was started, or is about to be.
    Running,
    /// It exited with 0.
    Succeeded {
        /// The last lines that it wrote, oldest first; at most 20.
        #[serde(default)]
        log: Vec<String>,
    },
    /// It failed, was ended, or nobody knows how it ended. It is not started again.
    Failed(Failure),
}

/// The stages of preparing a release on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case")]
pub enum ReleasePhase {
    /// The bundle is not here in full.
    NeedsBundle,
    /// Being unpacked.
    Unpacking,
    /// Dependencies are being installed.
    Building {
        /// The command that runs, for people.
        command: String,
    },
    /// Instances can start from it.
    Ready,
    /// The last attempt failed. There is another one after a pause, or as soon as an operation asks.
    Failed(Failure),
}

/// Why something on a host failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Failure {
    /// Stable, kebab-case: `bundle-unsafe`, `build-failed`, `disk-full`, …
    pub code: String,
    /// What happened and why, in a sentence.
    pub message: String,
    /// The last lines that the command or app wrote, oldest first; at most 20.
    #[serde(default)]
    pub log: Vec<String>,
}

/// How an instance is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceReport {
    /// Which instance.
    pub id: InstanceId,
    /// The release whose processes run or ran last.
    pub release: Option<ReleaseNumber>,
    /// The incarnation these processes belong to.
    pub incarnation: Incarnation,
    /// What it does.
    pub phase: InstancePhase,
    /// Since when.
    pub since: Timestamp,
    /// Its processes.
    pub processes: Vec<ProcessReport>,
    /// The last lines that it logged, oldest first; at most 20. Only while it is not well.
    #[serde(default)]
    pub log: Vec<String>,
    /// Who listens on its port.
    #[serde(default)]
    pub port: PortUse,
    /// What the kernel killed of it for memory besides those in `processes`.
    #[serde(default)]
    pub memory_kills: MemoryKills,
    /// How far it is with what has to succeed in it before it counts as started. Absent where nothing
    /// has to, and from agents of before.
    #[serde(default)]
    pub startup: Option<Startup>,
}

/// How far an instance is with what has to succeed in it before it counts as started, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Startup {
    /// Its readiness command has not exited with 0 since a process was started last.
    Ready {
        /// The command, as people are shown it.
        command: String,
        /// How often it has ended since then.
        tries: u32,
        /// How it ended the last time, to be read after its name: `exited with 1 (no such table)`.
        last: Option<String>,
    },
    /// Its `postdeploy` hooks wait until it listens on its port.
    Listen,
    /// One of its `postdeploy` hooks runs.
    Hook {
        /// Where it lies in the bundle.
        hook: String,
    },
    /// All of it has succeeded.
    Passed,
    /// A hook failed: in this incarnation it will not count as started.
    Failed(Failure),
}

impl Startup {
    /// What is worth an event: how its readiness command failed the last time, without how often it has,
    /// which is another every time; the hook that runs.
    pub fn said(&self) -> Option<String> {
        match self {
            Self::Ready {
                command,
                last: Some(last),
                ..
            } => Some(format!("its readiness command `{command}` {last}")),
            Self::Hook { hook } => Some(format!("its hook `{hook}` runs")),
            _ => None,
        }
    }

    /// What is waited for, to be read after an instance's name and a colon; none when it has passed.
    pub fn waits_for(&self) -> Option<String> {
        match self {
            Self::Ready {
                command,
                tries,
                last,
            } => Some(match last {
                Some(last) => {
                    format!(
                        "its readiness command `{command}` {last}, {} try",
                        ordinal(*tries)
                    )
                }
                None => format!("its readiness command `{command}` has not ended yet"),
            }),
            Self::Listen => Some("its hooks run when it listens on its port".to_owned()),
            Self::Hook { hook } => Some(format!("its hook `{hook}` runs")),
            Self::Passed => None,
            Self::Failed(failure) => Some(failure.message.clone()),
        }
    }
}

/// `1st`, `2nd`, `3rd`, `4th`, …
fn ordinal(number: u32) -> String {
    let suffix = match (number % 100, number % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    };
    format!("{number}{suffix}")
}

/// Processes of an instance that the kernel killed for memory and that another process of the
/// application had started. How one of the main processes ends is in its [`ProcessReport`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryKills {
    /// How many, in this incarnation.
    pub count: u64,
    /// When the last one was noticed.
    pub last_at: Option<Timestamp>,
    /// What the last one was called, where the kernel's log can be read.
    pub last_name: Option<String>,
    /// What all processes of the instance together may use, in bytes.
    pub limit_bytes: Option<u64>,
}

/// Ends of a process that a report remembers the times of.
pub const ENDS_REMEMBERED: usize = 16;

/// Who listens on the port of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortUse {
    /// Nobody can say: it has no port, or what listens cannot be looked into.
    #[default]
    Unknown,
    /// Nobody that can be seen, yet.
    Free,
    /// The instance itself.
    Own,
    /// Another program.
    Taken,
}

/// What an instance does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case")]
pub enum InstancePhase {
    /// Its release is not ready here.
    Waiting,
    /// All its processes run.
    Running,
    /// A process ended and is started again after a pause.
    Restarting,
    /// Told to end, not gone yet.
    Stopping,
    /// No process runs, as ordered.
    Stopped,
    /// It cannot be started.
    Failed(Failure),
}

/// One process of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProcessReport {
    /// The name in the Procfile.
    pub name: String,
    /// Its process id while it runs.
    pub pid: Option<u32>,
    /// When it was last started.
    pub started_at: Option<Timestamp>,
    /// How often it was started again after ending by itself, in this incarnation.
    pub restarts: u32,
    /// How it last ended.
    pub last_exit: Option<ExitReport>,
    /// When it last ended by itself, oldest first: the last [`ENDS_REMEMBERED`] ends of this
    /// incarnation.
    #[serde(default)]
    pub ended_at: Vec<Timestamp>,
    /// Resident memory in bytes, when known.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExitReport {
    /// Its exit code, when it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed it for memory.
    pub oom: bool,
    /// When.
    pub at: Timestamp,
}

/// How much of a blob an agent holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobStatus {
    /// Bytes held, from the start.
    pub have: u64,
    /// Whether it is whole and verified.
    pub complete: bool,
}

/// Replace the agent's executable by a blob that it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeOrder {
    /// The executable.
    pub digest: Digest,
    /// Its version, for the path.
    pub version: String,
}

/// What the set-up of a host made there, besides what the agent makes itself. It lies in
/// `DATA/installed.json`; an uninstall removes all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// The system user that the controller logs in as, and its group.
    pub user: String,
    /// That user's home directory, with `authorized_keys`.
    pub home: String,
    /// The directory of executables.
    pub executables: String,
    /// The agent's data directory.
    pub data: String,
    /// The directory of the agent's socket.
    pub run: String,
    /// The agent's systemd unit; none where a parent process keeps the agent running.
    #[serde(default)]
    pub unit: Option<String>,
    /// What has cron start the agent at boot, where systemd does not and cron runs.
    #[serde(default)]
    pub cron: Option<String>,
}

/// What an uninstall removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Uninstalled {
    /// One line for each thing, for people: `directory /var/lib/beanpole`.
    pub removed: Vec<String>,
    /// What could not be removed and why.
    pub left: Vec<String>,
}
