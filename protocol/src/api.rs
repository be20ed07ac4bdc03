//! Bodies of the JSON API, version 1. Its description with every path is served at
//! `/openapi.json`.

use crate::agent::{HostFacts, Platform, ProcessReport, Uninstalled};
use crate::event::Event;
use crate::options::{BatchSize, DeploymentPolicy, OptionSettings};
use crate::proxy::{CheckResult, Traffic};
use crate::{
    ApplicationName, Cname, Digest, EnvironmentId, EnvironmentName, HostId, HostName, InstanceId,
    OperationId, ReleaseNumber, RequestId, Timestamp, VersionLabel,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A page of a longer list.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Page<T> {
    /// This page's items.
    pub items: Vec<T>,
    /// Give it as `?after=` to get the page that follows; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// An application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Application {
    /// Its name.
    pub name: ApplicationName,
    /// For people.
    pub description: String,
    /// When it was created.
    pub created_at: Timestamp,
}

/// Create an application.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateApplication {
    /// Its name.
    pub name: ApplicationName,
    /// For people.
    #[serde(default)]
    pub description: String,
}

/// A version of an application: an immutable, labelled bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Version {
    /// The application.
    pub application: ApplicationName,
    /// Its label, unique in the application.
    pub label: VersionLabel,
    /// For people.
    pub description: String,
    /// Its bundle.
    pub bundle: Digest,
    /// The bundle's size in bytes.
    pub bundle_size: u64,
    /// When it was created.
    pub created_at: Timestamp,
}

/// Create a version from an uploaded bundle.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVersion {
    /// Its label, unique in the application.
    pub label: VersionLabel,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// A bundle that was uploaded before.
    pub bundle: Digest,
}

/// A stored bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Bundle {
    /// Its SHA-256.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// Web server or worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Gets requests through the load balancer.
    #[default]
    Web,
    /// Gets no requests.
    Worker,
}

/// Create an environment. It starts without a version unless one is given.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateEnvironment {
    /// The application.
    pub application: ApplicationName,
    /// Its name, unique on the controller.
    pub name: EnvironmentName,
    /// The first label of its hostname; the name in lower case if absent.
    #[serde(default)]
    pub cname: Option<Cname>,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Web server or worker.
    #[serde(default)]
    pub tier: Tier,
    /// How its versions are built and run.
    #[serde(default)]
    pub platform: Platform,
    /// Its settings.
    #[serde(default)]
    pub settings: OptionSettings,
    /// The version to start with; without it instances start at the first deployment.
    #[serde(default)]
    pub version: Option<VersionLabel>,
}

/// Where an environment stands (EB's statuses).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub enum EnvironmentStatus {
    /// Being created.
    Launching,
    /// An operation runs.
    Updating,
    /// Nothing runs; the next operation may start.
    Ready,
    /// An operation is being given up.
    Aborting,
    /// Being taken down.
    Terminating,
    /// Gone.
    Terminated,
}

impl std::fmt::Display for EnvironmentStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Launching => "Launching",
            Self::Updating => "Updating",
            Self::Ready => "Ready",
            Self::Aborting => "Aborting",
            Self::Terminating => "Terminating",
            Self::Terminated => "Terminated",
        })
    }
}

/// An environment's health (EB's colours).
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
pub enum Colour {
    /// Too little is known, or nothing runs yet.
    #[default]
    Grey,
    /// All well.
    Green,
    /// Some instances are not.
    Yellow,
    /// None serves.
    Red,
}

impl std::fmt::Display for Colour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Grey => "Grey",
            Self::Green => "Green",
            Self::Yellow => "Yellow",
            Self::Red => "Red",
        })
    }
}

/// An instance's health.
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
pub enum InstanceHealth {
    /// Its host or the proxy does not say.
    #[default]
    Unknown,
    /// It is being started or changed.
    Pending,
    /// Runs and passes its checks.
    Healthy,
    /// Does not run or fails its checks.
    Unhealthy,
    /// Finishing requests before a change.
    Draining,
}

impl std::fmt::Display for InstanceHealth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Unknown => "Unknown",
            Self::Pending => "Pending",
            Self::Healthy => "Healthy",
            Self::Unhealthy => "Unhealthy",
            Self::Draining => "Draining",
        })
    }
}

/// An environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Environment {
    /// Its id.
    pub id: EnvironmentId,
    /// Its name.
    pub name: EnvironmentName,
    /// Its application.
    pub application: ApplicationName,
    /// For people.
    pub description: String,
    /// Web server or worker.
    pub tier: Tier,
    /// How its versions are built and run.
    pub platform: Platform,
    /// The first label of its hostname.
    pub cname: Option<Cname>,
    /// Where it answers.
    pub url: Option<String>,
    /// Where it stands.
    pub status: EnvironmentStatus,
    /// How it is.
    pub health: Colour,
    /// Why it is not Green, one sentence each.
    pub causes: Vec<String>,
    /// The release that is live: the last one that was deployed with success.
    pub release: Option<ReleaseNumber>,
    /// Its version.
    pub version: Option<VersionLabel>,
    /// The last attempt at another release, when it failed.
    #[serde(default)]
    pub failed: Option<FailedRelease>,
    /// The operation that runs, if any.
    pub operation: Option<Operation>,
    /// The instances it shall have.
    pub size: u32,
    /// Its instances.
    pub instances: Vec<Instance>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// An attempt at a release that failed, until another one succeeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FailedRelease {
    /// The release.
    pub release: ReleaseNumber,
    /// Its version.
    pub version: Option<VersionLabel>,
    /// The operation that tried.
    pub operation: OperationId,
    /// How that ended.
    pub status: OperationStatus,
    /// Why, in a sentence or two.
    pub reason: String,
    /// When.
    pub at: Option<Timestamp>,
}

/// An instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// The name of its host.
    pub host: HostName,
    /// That host's id.
    pub host_id: HostId,
    /// Where it listens: `ADDRESS:PORT`.
    pub address: String,
    /// The release that it shall run.
    pub release: Option<ReleaseNumber>,
    /// That release's version.
    pub version: Option<VersionLabel>,
    /// How it is.
    pub health: InstanceHealth,
    /// Why, when it is not Healthy.
    pub reason: Option<String>,
    /// Its processes.
    pub processes: Vec<ProcessReport>,
    /// The load balancer's last check of it.
    pub last_check: Option<CheckResult>,
    /// Requests it is answering.
    pub in_flight: u32,
    /// What it was given and how it answered, since the proxy started or it did.
    pub traffic: Traffic,
}

/// Deploy a version.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Deploy {
    /// The version; the one that is live if absent.
    #[serde(default)]
    pub version: Option<VersionLabel>,
    /// How; the environment's setting if absent.
    #[serde(default)]
    pub policy: Option<DeploymentPolicy>,
    /// How many at a time; the environment's setting if absent.
    #[serde(default)]
    pub batch: Option<BatchSize>,
    /// Leave the environment as it is when the deployment fails.
    #[serde(default)]
    pub no_auto_rollback: bool,
    /// Settings that change together with the version.
    #[serde(default)]
    pub settings: OptionSettings,
}

/// Go back.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// The release to return to; the last one that was live before this one if absent.
    #[serde(default)]
    pub to: Option<ReleaseNumber>,
    /// How; the environment's setting if absent.
    #[serde(default)]
    pub policy: Option<DeploymentPolicy>,
    /// How many at a time; the environment's setting if absent.
    #[serde(default)]
    pub batch: Option<BatchSize>,
}

/// Change the number of instances.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// 1 to 10,000.
    pub instances: u32,
}

/// Change settings. What restarts instances does so by the deployment policy.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateSettings {
    /// Settings to set.
    #[serde(default)]
    pub set: OptionSettings,
    /// Settings to remove: namespace to names.
    #[serde(default)]
    pub remove: BTreeMap<String, Vec<String>>,
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OperationKind {
    /// Creates the environment.
    Create,
    /// Moves it to a new release.
    Deploy,
    /// Moves it to an older release.
    Rollback,
    /// Changes its settings.
    Configure,
    /// Changes the number of instances.
    Scale,
    /// Restarts its processes.
    Restart,
    /// Replaces instances on hosts that are drained or lost.
    Replace,
    /// Takes it down.
    Terminate,
}

impl std::fmt::Display for OperationKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Create => "create",
            Self::Deploy => "deploy",
            Self::Rollback => "rollback",
            Self::Configure => "configure",
            Self::Scale => "scale",
            Self::Restart => "restart",
            Self::Replace => "replace",
            Self::Terminate => "terminate",
        })
    }
}

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OperationStatus {
    /// Under way.
    Running,
    /// It failed or was aborted and the environment is on its way back.
    RollingBack,
    /// Done.
    Succeeded,
    /// It failed, and the environment is back on the release before.
    RolledBack,
    /// It failed and the environment was left as `message` says.
    Failed,
    /// It was aborted.
    Aborted,
}

impl OperationStatus {
    /// Whether nothing more will happen.
    pub const fn is_over(self) -> bool {
        !matches!(self, Self::Running | Self::RollingBack)
    }
}

impl std::fmt::Display for OperationStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::RollingBack => "rolling back",
            Self::Succeeded => "succeeded",
            Self::RolledBack => "rolled back",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        })
    }
}

/// An operation on an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// The environment.
    pub environment: EnvironmentId,
    /// That environment's name.
    pub environment_name: EnvironmentName,
    /// What it does.
    pub kind: OperationKind,
    /// How it stands.
    pub status: OperationStatus,
    /// The call that started it.
    pub request_id: RequestId,
    /// The release it starts from.
    pub from: Option<ReleaseNumber>,
    /// The release it leads to.
    pub to: Option<ReleaseNumber>,
    /// That release's version.
    pub version: Option<VersionLabel>,
    /// How it goes about it.
    pub plan: PlanView,
    /// Each instance it touches.
    pub instances: Vec<InstanceProgress>,
    /// What it waits for just now, one sentence each.
    pub waiting: Vec<String>,
    /// How it ended, in a sentence.
    pub message: Option<String>,
    /// What made it fail.
    pub failure: Option<OperationFailure>,
    /// When it was accepted.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// When it is given up if it has not ended.
    pub deadline: Timestamp,
    /// Requests of the environment answered meanwhile.
    pub requests_served: u64,
    /// Requests that got no answer from the app meanwhile.
    pub requests_failed: u64,
}

/// A plan, for people and clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlanView {
    /// The policy, where there is one.
    pub policy: Option<DeploymentPolicy>,
    /// One entry per batch, in order.
    pub batches: Vec<PlanBatch>,
    /// Healthy instances that it never goes below on purpose.
    pub floor: u32,
    /// One sentence per step, for people.
    pub lines: Vec<String>,
}

/// Instances that change together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlanBatch {
    /// Counted from 1.
    pub number: u32,
    /// What happens to them: `launch`, `replace`, `restart`, `remove`.
    pub change: String,
    /// Which.
    pub instances: Vec<InstanceId>,
}

/// How far an operation is with one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct InstanceProgress {
    /// Which instance.
    pub instance: InstanceId,
    /// Its host's name.
    pub host: HostName,
    /// The batch it is in.
    pub batch: u32,
    /// `pending`, `preparing`, `draining`, `stopping`, `starting`, `checking`, `done`, `failed`,
    /// `removed`.
    pub state: String,
    /// More, for people: `3 of 6 good checks, last answer 503 in 12 ms`.
    pub detail: Option<String>,
}

/// What made an operation fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OperationFailure {
    /// Stable, kebab-case: `build-failed`, `unhealthy`, `host-lost`, `deadline`.
    pub code: String,
    /// What happened, in a sentence.
    pub message: String,
    /// The instance, where it was one.
    pub instance: Option<InstanceId>,
    /// Its host's name.
    pub host: Option<HostName>,
    /// What was asked: `GET /`.
    pub probe: Option<String>,
    /// What came back: `500 in 3 ms`.
    pub answer: Option<String>,
    /// The app's or build's last lines; at most 20.
    pub log: Vec<String>,
}

/// A release: version and configuration, frozen and numbered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Release {
    /// Counted from 1 in its environment.
    pub number: ReleaseNumber,
    /// Its version.
    pub version: VersionLabel,
    /// When it was made.
    pub created_at: Timestamp,
    /// What made it: `deploy`, `rollback to 3`, `settings`.
    pub reason: String,
    /// How its last deployment ended.
    pub outcome: Option<OperationStatus>,
    /// Whether it is live.
    pub live: bool,
    /// Its settings, without the values of environment properties.
    pub settings: OptionSettings,
}

/// What a host is asked to be reached by.
#[derive(Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum AdminKey {
    /// A private key in OpenSSH's format. Used for this call only, then forgotten.
    Identity {
        /// The key itself.
        private_key: String,
        /// Its passphrase.
        #[serde(default)]
        passphrase: Option<String>,
    },
    /// An ssh-agent on the controller's machine.
    Agent {
        /// `$SSH_AUTH_SOCK`.
        socket: String,
    },
}

impl std::fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Identity { .. } => f.write_str("Identity(***)"),
            Self::Agent { socket } => write!(f, "Agent({socket})"),
        }
    }
}

/// How a host is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SshAddress {
    /// The admin's user.
    pub user: String,
    /// Name or IP address.
    pub address: String,
    /// 22 unless told otherwise.
    pub port: u16,
}

impl std::fmt::Display for SshAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            user,
            address,
            port,
        } = self;
        match (address.contains(':'), *port) {
            (false, 22) => write!(f, "{user}@{address}"),
            (false, port) => write!(f, "{user}@{address}:{port}"),
            (true, port) => write!(f, "{user}@[{address}]:{port}"),
        }
    }
}

impl std::str::FromStr for SshAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("`{text}` is not an SSH address: write [USER@]ADDRESS[:PORT]");
        let (user, rest) = text.rsplit_once('@').unwrap_or(("root", text));
        let (address, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (address, after) = rest.split_once(']').ok_or_else(wrong)?;
                (address, after.strip_prefix(':'))
            }
            None if rest.matches(':').count() > 1 => (rest, None),
            None => match rest.split_once(':') {
                Some((address, port)) => (address, Some(port)),
                None => (rest, None),
            },
        };
        let port = port.map_or(Ok(22), str::parse).map_err(|_| wrong())?;
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('-')
                && part
                    .chars()
                    .all(|c| c.is_ascii_graphic() && !"/\\'\"`$;&|<>()".contains(c))
        };
        if !plain(user) || !plain(address) || port == 0 {
            return Err(wrong());
        }
        Ok(Self {
            user: user.to_owned(),
            address: address.to_owned(),
            port,
        })
    }
}

/// Ask a host for its key, without trusting it.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProbeHost {
    /// The host.
    pub ssh: SshAddress,
    /// The bastion to go through.
    #[serde(default)]
    pub jump: Option<Jump>,
}

/// A bastion.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Jump {
    /// The bastion itself.
    pub ssh: SshAddress,
    /// Its key's fingerprint, `SHA256:…`.
    pub host_key: String,
    /// How to get into it.
    pub admin: AdminKey,
}

/// The key that a host showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostKey {
    /// For example `ssh-ed25519`.
    pub algorithm: String,
    /// `SHA256:…`, as `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// The host by this address that has been added already, if any.
    #[serde(default)]
    pub known_as: Option<HostName>,
}

/// Add a host: install the agent and pin its key. Adding it again repairs it.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddHost {
    /// Its name; the address if absent.
    #[serde(default)]
    pub name: Option<HostName>,
    /// How to reach it.
    pub ssh: SshAddress,
    /// The bastion to go through.
    #[serde(default)]
    pub jump: Option<Jump>,
    /// How to get in, as root or as a user with passwordless sudo.
    pub admin: AdminKey,
    /// The fingerprint that the user confirmed, `SHA256:…`.
    pub host_key: String,
    /// The address at which the proxy reaches its instances; the SSH address if absent.
    #[serde(default)]
    pub instance_address: Option<String>,
    /// Labels for placement.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Change a host's labels.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateLabels {
    /// Labels to set, by name.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Names of labels to remove.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// Accept a host's changed key.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AcceptHostKey {
    /// The new fingerprint, `SHA256:…`.
    pub host_key: String,
}

/// Whether a host can be reached and used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub enum HostStatus {
    /// Never connected since the controller started.
    Connecting,
    /// Connected.
    Ready,
    /// Connected, gets no instances.
    Draining,
    /// Not heard of for 30 s or more.
    Unreachable,
    /// It shows another key than the pinned one.
    KeyChanged,
}

impl std::fmt::Display for HostStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Connecting => "Connecting",
            Self::Ready => "Ready",
            Self::Draining => "Draining",
            Self::Unreachable => "Unreachable",
            Self::KeyChanged => "KeyChanged",
        })
    }
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: HostName,
    /// How it is reached; `local` for the controller's own machine.
    pub address: String,
    /// Its pinned key, `SHA256:…`.
    pub host_key: Option<String>,
    /// Whether it can be used.
    pub status: HostStatus,
    /// Why it cannot, or what is odd about it (clock skew, an older agent).
    pub warnings: Vec<String>,
    /// When it was last heard of.
    pub last_seen: Option<Timestamp>,
    /// Its agent's version.
    pub agent_version: Option<String>,
    /// Its clock less the controller's, in milliseconds.
    pub clock_skew_ms: Option<i64>,
    /// The machine.
    pub facts: Option<HostFacts>,
    /// Labels for placement.
    pub labels: BTreeMap<String, String>,
    /// The instances it holds.
    pub instances: u32,
    /// When it was added.
    pub added_at: Timestamp,
}

/// What removing a host removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostRemoved {
    /// The host.
    pub name: HostName,
    /// What its agent removed; absent when it could not be asked (`--force`).
    pub uninstalled: Option<Uninstalled>,
}

/// An instance's or the controller's answer to "are you well".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Healthz {
    /// `ok`, or `starting`.
    pub status: String,
    /// One line for each daemon that does not serve yet.
    pub waiting: Vec<String>,
    /// The controller's version.
    pub version: String,
}

/// An environment's health in one answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EnvironmentHealth {
    /// The environment's name.
    pub environment: EnvironmentName,
    /// Where it stands.
    pub status: EnvironmentStatus,
    /// How it is.
    pub health: Colour,
    /// Why.
    pub causes: Vec<String>,
    /// Its traffic since the proxy started.
    pub traffic: Traffic,
    /// Its instances.
    pub instances: Vec<Instance>,
}

/// Events, oldest first.
pub type EventPage = Page<Event>;
