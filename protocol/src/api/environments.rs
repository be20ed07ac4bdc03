//! Environments, their instances and health, and what can be asked of them.

use super::{MaintenanceView, Operation, OperationStatus};
use crate::agent::{Platform, ProcessReport};
use crate::options::{BatchSize, DeploymentPolicy, OptionSettings, SplitSteps};
use crate::proxy::{CheckResult, StreamMode, Traffic};
use crate::{
    ApplicationName, Cname, DomainName, EnvironmentId, EnvironmentName, HostId, HostName, Hostname,
    InstanceId, OperationId, ReleaseNumber, Timestamp, VersionLabel,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
    /// Has the application created as well where it does not exist, with this description; both are, or neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_application: Option<String>,
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
    /// Like Healthy, but it was lately in trouble again and again.
    Warning,
    /// Does not run or fails its checks.
    Unhealthy,
    /// Finishing requests before a change.
    Draining,
}

impl InstanceHealth {
    /// Whether it answers requests.
    pub const fn serves(self) -> bool {
        matches!(self, Self::Healthy | Self::Warning)
    }
}

impl std::fmt::Display for InstanceHealth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Unknown => "Unknown",
            Self::Pending => "Pending",
            Self::Healthy => "Healthy",
            Self::Warning => "Warning",
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
    /// Where it answers by HTTP; absent of what takes no requests.
    pub url: Option<String>,
    /// The ports on which it takes connections, where it is a network environment; others have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<ListenerView>,
    /// Its other hostnames, and what is said of the one below the default domain.
    #[serde(default)]
    pub domains: Vec<DomainView>,
    /// That it is closed for a while.
    #[serde(default)]
    pub maintenance: Option<MaintenanceView>,
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
    /// The operation that begins when that one has ended.
    #[serde(default)]
    pub queued: Option<Operation>,
    /// Options, by namespace, that the configuration files of its version set and it does not itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options_of_version: BTreeMap<String, Vec<String>>,
    /// The instances it shall have.
    pub size: u32,
    /// Its instances.
    pub instances: Vec<Instance>,
    /// Instances that are its own no more and still have open requests: they get nothing new and count for
    /// nothing.
    #[serde(default)]
    pub lingering: Vec<LingeringInstance>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

impl Environment {
    /// Where clients come to: its URL, or a network environment's addresses; empty where there are none.
    pub fn met_at(&self) -> String {
        let addresses = || self.listeners.iter().map(|one| one.address.as_str());
        match &self.url {
            Some(url) => url.clone(),
            None => addresses().collect::<Vec<_>>().join(", "),
        }
    }
}

/// A port of a network environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ListenerView {
    /// The port.
    pub port: u16,
    /// What is done to the bytes.
    pub protocol: StreamMode,
    /// Whether it takes clients of TLS alone that ask for the environment's hostnames.
    pub by_name: bool,
    /// Where it is met: `tcp://db.example.org:5432`.
    pub address: String,
    /// Load balancers that cannot listen there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closed: Vec<ClosedListener>,
}

/// A load balancer that cannot listen on a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ClosedListener {
    /// Its name.
    pub balancer: String,
    /// Why, and what to do about it; without a full stop.
    pub why: String,
}

/// A domain to be added to an environment, or changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetDomain {
    /// What it is for.
    pub name: DomainName,
    /// Clients are sent to the same path of this host (status 308).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect_to: Option<Hostname>,
    /// Clients that come over plain HTTP are sent to HTTPS (status 308).
    #[serde(default)]
    pub only_https: bool,
}

/// A domain of an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DomainView {
    /// What it is for.
    pub name: DomainName,
    /// Clients are sent to the same path of this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect_to: Option<Hostname>,
    /// Clients that come over plain HTTP are sent to HTTPS.
    #[serde(default)]
    pub only_https: bool,
    /// Where it is met; absent for patterns.
    pub url: Option<String>,
    /// Whether every load balancer that is connected has it.
    pub in_force: bool,
    /// When it was added or last changed.
    pub since: Timestamp,
}

/// Exchanges the hostnames of two environments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Swap {
    /// The other environment.
    pub with: EnvironmentName,
    /// Also where one of the two has no release, so that the hostnames of the other are answered with 503 until it has.
    #[serde(default)]
    pub allow_empty: bool,
}

/// What an exchange of hostnames has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Swapped {
    /// The operation of the environment that was asked.
    pub operation: Operation,
    /// That of the other.
    pub other: Operation,
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
    /// Its processes that take requests, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<ProcessTarget>,
}

/// A process of an instance that takes requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProcessTarget {
    /// Its name in the Procfile.
    pub process: String,
    /// Where it listens: `ADDRESS:PORT`.
    pub address: String,
    /// Whether every load balancer finds it well; absent while none has said.
    pub healthy: Option<bool>,
    /// The load balancer's last check of it.
    pub last_check: Option<CheckResult>,
    /// Requests it is answering.
    pub in_flight: u32,
    /// What it was given and how it answered.
    pub traffic: Traffic,
}

/// An instance that has left its environment and still has open requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LingeringInstance {
    /// Its id.
    pub id: InstanceId,
    /// The name of its host.
    pub host: HostName,
    /// That host's id.
    pub host_id: HostId,
    /// Where it listens: `ADDRESS:PORT`.
    pub address: String,
    /// The release that it runs.
    pub release: ReleaseNumber,
    /// That release's version.
    pub version: Option<VersionLabel>,
    /// The operation that it left by.
    pub operation: OperationId,
    /// Requests that are open, as the load balancers said last.
    pub open: u32,
    /// Since when it gets nothing new.
    pub since: Timestamp,
    /// When it is stopped at the latest, and what is open then is cut.
    pub until: Timestamp,
    /// It is being stopped.
    pub ending: bool,
}

/// End instances that linger.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EndLingering {
    /// This one; all of the environment's if absent.
    #[serde(default)]
    pub instance: Option<InstanceId>,
}

/// The instances that are being ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LingeringEnded {
    /// Their ids.
    pub instances: Vec<InstanceId>,
    /// Requests that were open at them, which are cut.
    pub open: u32,
}

/// Deploy a version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
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
    /// The steps of a split; the environment's setting if absent. Only under TrafficSplitting, which it
    /// asks for where no policy is named.
    #[serde(default)]
    pub split: Option<SplitSteps>,
    /// Leave the environment as it is when the deployment fails.
    #[serde(default)]
    pub no_auto_rollback: bool,
    /// Settings that change together with the version.
    #[serde(default)]
    pub settings: OptionSettings,
    /// While another operation is under way, wait for its end instead of being refused.
    #[serde(default)]
    pub queue: bool,
}

/// Go back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
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
    /// While another operation is under way, wait for its end instead of being refused.
    #[serde(default)]
    pub queue: bool,
}

/// Change the number of instances.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// 1 to 10,000.
    pub instances: u32,
    /// While another operation is under way, wait for its end instead of being refused.
    #[serde(default)]
    pub queue: bool,
}

/// Change settings. What restarts instances does so by the deployment policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateSettings {
    /// Settings to set.
    #[serde(default)]
    pub set: OptionSettings,
    /// Settings to remove: namespace to names.
    #[serde(default)]
    pub remove: BTreeMap<String, Vec<String>>,
    /// While another operation is under way, wait for its end instead of being refused.
    #[serde(default)]
    pub queue: bool,
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
