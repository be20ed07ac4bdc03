//! What is stored: one record type per table.
//!
//! Records are the stored side of things; what crosses an interface is in `beanpole_protocol`. Fields
//! are only ever added, with a default. Who writes what: the engine writes environments, releases,
//! instances, operations, the journal, orders and the table; the controller's services write
//! applications, versions, hosts and tokens; both write events.

use crate::{Record, key};
use beanpole_planner::guard::{Evidence, Sample, Sides};
use beanpole_planner::{Happened, Plan, Progress};
use beanpole_protocol::agent::{HostOrders, Owner, Platform};
use beanpole_protocol::api::{
    Deploy, EnvironmentStatus, Leftover, OperationFailure, OperationKind, OperationStatus, Receipt,
    ReceiptTraffic, ReleaseDeployment, Rollback, Scale, SshAddress, Tier, UpdateSettings,
};
use beanpole_protocol::content::PageFor;
use beanpole_protocol::edge::EdgeOrders;
use beanpole_protocol::event::Event;
use beanpole_protocol::options::{OptionSettings, SITE};
use beanpole_protocol::proxy::{RoutingTable, TargetMode};
use beanpole_protocol::{
    AgentId, ApplicationName, Cname, ControllerId, Digest, Domain, EnvironmentId, EnvironmentName,
    EventId, Generation, HostId, HostName, Incarnation, InstanceId, Network, OperationId,
    ReleaseNumber, RequestId, Timestamp, VersionLabel,
};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// An application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationRecord {
    /// Its name, unique.
    pub name: ApplicationName,
    /// For people.
    pub description: String,
    /// Whether its bundles may act as root on hosts.
    #[serde(default)]
    pub root: bool,
    /// When it was created.
    pub created_at: Timestamp,
}

impl ApplicationRecord {
    /// Its key.
    pub fn key_of(name: &ApplicationName) -> Vec<u8> {
        key::join(&[name.as_str().as_bytes()])
    }
}

impl Record for ApplicationRecord {
    const TABLE: &'static str = "applications";
    fn key(&self) -> Vec<u8> {
        Self::key_of(&self.name)
    }
}

/// What a bundle's configuration files have done on hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerCommands {
    /// The names of the container commands that run on each host that prepares a release of it, in their order.
    pub everywhere: Vec<String>,
    /// Those that run once for each deployment.
    pub leader: Vec<String>,
    /// Whether hosts are set up besides, with packages, files and the like.
    #[serde(default)]
    pub sets_up: bool,
}

impl ContainerCommands {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.everywhere.is_empty() && self.leader.is_empty() && !self.sets_up
    }
}

/// A version of an application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRecord {
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
    /// Its release command, for people; absent where it has none.
    #[serde(default)]
    pub release_command: Option<String>,
    /// The names of its container commands.
    #[serde(default)]
    pub container_commands: ContainerCommands,
    /// The processes that its Procfile names; none where it has no Procfile. Absent where nobody has looked: the record is of
    /// before that was kept, or the Procfile cannot be read.
    #[serde(default)]
    pub processes: Option<Vec<String>>,
    /// The static site in it; absent where it has none that load balancers can serve.
    #[serde(default)]
    pub site: Option<SiteRecord>,
    /// The options that its configuration files set, where the environment does not itself.
    #[serde(default)]
    pub options: OptionSettings,
    /// The options that its manifest gives an environment that is made.
    #[serde(default)]
    pub manifest: OptionSettings,
    /// Options in it that do nothing here, each with its place.
    #[serde(default)]
    pub options_passed_over: Vec<String>,
    /// When it was created.
    pub created_at: Timestamp,
}

/// A static site in a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteRecord {
    /// Its directory.
    pub root: String,
    /// Whether the bundle is one by its files, without anybody choosing the platform.
    pub by_itself: bool,
}

impl VersionRecord {
    /// Its key.
    pub fn key_of(application: &ApplicationName, label: &VersionLabel) -> Vec<u8> {
        key::join(&[application.as_str().as_bytes(), label.as_str().as_bytes()])
    }

    /// What the keys of all versions of an application begin with.
    pub fn prefix(application: &ApplicationName) -> Vec<u8> {
        key::join(&[application.as_str().as_bytes(), b""])
    }
}

impl Record for VersionRecord {
    const TABLE: &'static str = "versions";
    fn key(&self) -> Vec<u8> {
        Self::key_of(&self.application, &self.label)
    }
}

/// An environment. Terminated ones stay for a while, with their names free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentRecord {
    /// Its id.
    pub id: EnvironmentId,
    /// Its name, unique among those that are not terminated.
    pub name: EnvironmentName,
    /// Its application.
    pub application: ApplicationName,
    /// For people.
    pub description: String,
    /// Web server or worker.
    pub tier: Tier,
    /// How its versions are built and run.
    pub platform: Platform,
    /// The first label of its hostname, unique among those that are not terminated.
    pub cname: Option<Cname>,
    /// Its other hostnames, and what is said of the one below the default domain. They stay with the CNAME.
    #[serde(default)]
    pub domains: Vec<DomainRecord>,
    /// What clients get in place of its answers.
    #[serde(default)]
    pub content: ContentRecord,
    /// The first table that has its hostnames as they are; absent while none was made.
    #[serde(default)]
    pub routed: Option<Generation>,
    /// Where it stands.
    pub status: EnvironmentStatus,
    /// Its settings; a release freezes a copy of them.
    pub settings: OptionSettings,
    /// Those of its settings that the files of its version set: they go with it. What is in here with another value than
    /// in the settings was set otherwise since, and counts for nothing.
    #[serde(default)]
    pub brought: OptionSettings,
    /// The release that is live: the last one deployed with success.
    pub live: Option<ReleaseNumber>,
    /// The number of the newest release; 0 before the first.
    #[serde(default)]
    pub last_release: ReleaseNumber,
    /// The operation that runs.
    pub operation: Option<OperationId>,
    /// The operation that begins when that one has ended.
    #[serde(default)]
    pub next: Option<OperationId>,
    /// The operation that ended last, while the minute after it is counted for its receipt.
    #[serde(default)]
    pub counted_after: Option<OperationId>,
    /// Left as a failed operation left it, as its user asked: nothing is mended by itself until the
    /// next operation.
    #[serde(default)]
    pub hold: bool,
    /// The share of the requests that a new release has; all share alike where absent.
    #[serde(default)]
    pub split: Option<SplitRecord>,
    /// When mending by itself may be tried again, after it failed.
    #[serde(default)]
    pub mend_after: Option<Timestamp>,
    /// How often in a row mending failed.
    #[serde(default)]
    pub mend_failures: u32,
    /// Why the last operation on it failed; none where it did not.
    #[serde(default)]
    pub failed_by: Option<String>,
    /// It shall have no instances until somebody asks for it.
    #[serde(default)]
    pub asleep: Option<SleepRecord>,
    /// Its ports that load balancers could not open, as far as that was told in events.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closed_ports: Vec<ClosedPort>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was terminated.
    #[serde(default)]
    pub terminated_at: Option<Timestamp>,
    /// The time of its newest event: the next one is later.
    #[serde(default)]
    pub last_event_at: Timestamp,
}

/// A port of a network environment that a load balancer cannot open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClosedPort {
    /// Which port.
    pub port: u16,
    /// The load balancer's name.
    pub balancer: String,
}

/// An environment that nobody asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SleepRecord {
    /// Since when.
    pub since: Timestamp,
    /// Where its instances were: its releases stay there, so that it wakes soon.
    pub hosts: Vec<HostId>,
}

/// A domain of an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainRecord {
    /// It, as it is wanted.
    pub domain: Domain,
    /// When it was added or last changed.
    pub since: Timestamp,
}

/// What clients get in place of an environment's answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentRecord {
    /// It is closed for a while.
    #[serde(default)]
    pub maintenance: Option<MaintenanceRecord>,
    /// Its own pages for what load balancers answer themselves.
    #[serde(default)]
    pub pages: BTreeMap<PageFor, PageUseRecord>,
}

impl ContentRecord {
    /// The pages that it names.
    pub fn all_pages(&self) -> impl Iterator<Item = &Digest> {
        let closed = self.maintenance.iter().filter_map(|one| one.page.as_ref());
        self.pages.values().map(|one| &one.digest).chain(closed)
    }
}

/// That an environment is closed for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceRecord {
    /// The page that clients get, where it is not that for a 503.
    pub page: Option<Digest>,
    /// Clients that get to the application all the same.
    pub allow: Vec<Network>,
    /// After how many seconds clients may try again.
    pub retry_after_s: u32,
    /// Since when.
    pub since: Timestamp,
}

/// What an environment has a page for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageUseRecord {
    /// Which one.
    pub digest: Digest,
    /// How large it is, in bytes.
    pub size: u64,
    /// When it was set.
    pub since: Timestamp,
}

/// A page: as long as an environment names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRecord {
    /// The SHA-256 of its text.
    pub digest: Digest,
    /// Its text.
    pub html: String,
}

impl PageRecord {
    /// Its key.
    pub fn key_of(digest: &Digest) -> Vec<u8> {
        key::join(&[digest.as_str().as_bytes()])
    }
}

impl Record for PageRecord {
    const TABLE: &'static str = "pages";
    fn key(&self) -> Vec<u8> {
        Self::key_of(&self.digest)
    }
}

/// A share of an environment's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitRecord {
    /// The release whose instances get it.
    pub release: ReleaseNumber,
    /// Per cent, 1 to 100.
    pub percent: u8,
}

impl EnvironmentRecord {
    /// Its key.
    pub fn key_of(id: &EnvironmentId) -> Vec<u8> {
        key::join(&[id.as_str().as_bytes()])
    }
}

impl Record for EnvironmentRecord {
    const TABLE: &'static str = "environments";
    fn key(&self) -> Vec<u8> {
        Self::key_of(&self.id)
    }
}

/// A release: version and configuration, frozen and numbered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRecord {
    /// The environment.
    pub environment: EnvironmentId,
    /// Counted from 1 in it.
    pub number: ReleaseNumber,
    /// The release whose prepared tree it uses on hosts: itself, or an earlier one of the same
    /// content.
    pub tree: ReleaseNumber,
    /// Its version.
    pub version: VersionLabel,
    /// That version's bundle.
    pub bundle: Digest,
    /// The bundle's size in bytes.
    pub bundle_size: u64,
    /// How it is built and run.
    pub platform: Platform,
    /// The settings it last ran under, environment properties included: what was changed in place while
    /// it was live is in them.
    pub settings: OptionSettings,
    /// Those of them that the files of its version set, as [`EnvironmentRecord::brought`].
    #[serde(default)]
    pub brought: OptionSettings,
    /// What made it: `deploy`, `rollback to 3`, `settings`.
    pub reason: String,
    /// Its release command, for people; absent where it has none.
    #[serde(default)]
    pub release_command: Option<String>,
    /// The names of its container commands.
    #[serde(default)]
    pub container_commands: ContainerCommands,
    /// The static site in its bundle.
    #[serde(default)]
    pub site: Option<SiteRecord>,
    /// How its last deployment ended.
    pub outcome: Option<OperationStatus>,
    /// When it last became live.
    pub live_at: Option<Timestamp>,
    /// How it was not well when another release was to take its place; absent where it was.
    #[serde(default)]
    pub ill: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl ReleaseRecord {
    /// The directories of its bundle that load balancers serve, by the paths of their URLs: what its settings say, and a static
    /// site at all paths.
    pub fn static_files(&self) -> BTreeMap<String, String> {
        let mut paths = self.settings.static_files();
        let chosen = self
            .settings
            .get(SITE, "Root")
            .filter(|root| !root.is_empty());
        if let Some(site) = &self.site
            && (self.platform == Platform::Static || self.platform == Platform::Auto && site.by_itself)
            // Another directory is served by the instances.
            && chosen.is_none_or(|root| root.trim_matches('/') == site.root)
        {
            paths
                .entry(String::new())
                .or_insert_with(|| site.root.clone());
        }
        paths
    }

    /// The reason of one that a change of settings made.
    pub const OF_SETTINGS: &str = "settings";

    /// Whether a change of settings made it.
    pub fn is_of_settings(&self) -> bool {
        self.reason == Self::OF_SETTINGS
    }

    /// Its key.
    pub fn key_of(environment: &EnvironmentId, number: ReleaseNumber) -> Vec<u8> {
        key::join(&[environment.as_str().as_bytes(), &number.0.to_be_bytes()])
    }

    /// What the keys of all releases of an environment begin with.
    pub fn prefix(environment: &EnvironmentId) -> Vec<u8> {
        key::join(&[environment.as_str().as_bytes(), b""])
    }
}

impl Record for ReleaseRecord {
    const TABLE: &'static str = "releases";
    fn key(&self) -> Vec<u8> {
        Self::key_of(&self.environment, self.number)
    }
}

/// How a release was last deployed: kept as long as the release is, the operation itself may be forgotten
/// before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptRecord {
    /// The environment.
    pub environment: EnvironmentId,
    /// The release.
    pub release: ReleaseNumber,
    /// Its deployment.
    pub deployment: ReleaseDeployment,
}

impl ReceiptRecord {
    /// Its key: the release's.
    pub fn key_of(environment: &EnvironmentId, release: ReleaseNumber) -> Vec<u8> {
        ReleaseRecord::key_of(environment, release)
    }
}

impl Record for ReceiptRecord {
    const TABLE: &'static str = "receipts";
    fn key(&self) -> Vec<u8> {
        Self::key_of(&self.environment, self.release)
    }
}

/// An instance as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Its id.
    pub id: InstanceId,
    /// The environment it serves.
    pub environment: EnvironmentId,
    /// Its host.
    pub host: HostId,
    /// Its port there.
    pub port: u16,
    /// Those of its processes besides `web` that take requests, by their names: as its release has them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u16>,
    /// The release it shall run.
    pub release: ReleaseNumber,
    /// Rises when it is told to start afresh.
    pub incarnation: Incarnation,
    /// Whether it shall run.
    pub run: bool,
    /// What it is in the routing table for; absent from it when none.
    pub mode: Option<TargetMode>,
    /// Out of service by itself for as long as its web process does not run and listen.
    #[serde(default)]
    pub withdrawn: bool,
    /// The first table that says so.
    #[serde(default)]
    pub routed: Option<Generation>,
    /// The first orders of its host that say what is wanted of it now.
    #[serde(default)]
    pub ordered: Option<Generation>,
    /// Which ends of its processes events have told of.
    #[serde(default)]
    pub told: Option<EndsTold>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// An instance that has left its environment and still has open requests. It is in no list of the
/// environment's instances any more, and no plan knows of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LingererRecord {
    /// The instance, as it is wanted.
    pub instance: InstanceRecord,
    /// The operation that it left by.
    pub operation: OperationId,
    /// Since when it gets nothing new.
    pub since: Timestamp,
    /// When it is stopped at the latest.
    pub until: Timestamp,
    /// The call that wants it to end now.
    #[serde(default)]
    pub ended_by: Option<RequestId>,
    /// When it was ordered to stop.
    #[serde(default)]
    pub stopping_since: Option<Timestamp>,
}

impl LingererRecord {
    /// Its key.
    pub fn key_of(environment: &EnvironmentId, id: &InstanceId) -> Vec<u8> {
        InstanceRecord::key_of(environment, id)
    }

    /// What the keys of all of an environment begin with.
    pub fn prefix(environment: &EnvironmentId) -> Vec<u8> {
        InstanceRecord::prefix(environment)
    }
}

impl Record for LingererRecord {
    const TABLE: &'static str = "lingering";
    fn key(&self) -> Vec<u8> {
        Self::key_of(&self.instance.environment, &self.instance.id)
    }
}

/// How far events have told of the ends of an instance's processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndsTold {
    /// The incarnation that they belong to.
    pub incarnation: Incarnation,
    /// How many restarts there had been by then.
    pub restarts: u32,
    /// How many others the kernel had killed for memory by then.
    #[serde(default)]
    pub memory_kills: u64,
    /// When that was told.
    pub at: Timestamp,
}

impl InstanceRecord {
    /// All ports that it has.
    pub fn all_ports(&self) -> impl Iterator<Item = u16> {
        std::iter::once(self.port).chain(self.ports.values().copied())
    }

    /// Its key.
    pub fn key_of(environment: &EnvironmentId, id: &InstanceId) -> Vec<u8> {
        key::join(&[environment.as_str().as_bytes(), id.as_str().as_bytes()])
    }

    /// What the keys of all instances of an environment begin with.
    pub fn prefix(environment: &EnvironmentId) -> Vec<u8> {
        key::join(&[environment.as_str().as_bytes(), b""])
    }

    /// What the routing table says of it.
    pub fn target_mode(&self) -> Option<TargetMode> {
        match self.mode {
            Some(TargetMode::Serve) if self.withdrawn => Some(TargetMode::Probe),
            mode => mode,
        }
    }
}

impl Record for InstanceRecord {
    const TABLE: &'static str = "instances";
    fn key(&self) -> Vec<u8> {
        Self::key_of(&self.environment, &self.id)
    }
}

/// An operation on an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// Its id.
    pub id: OperationId,
    /// The environment.
    pub environment: EnvironmentId,
    /// That environment's name.
    pub environment_name: EnvironmentName,
    /// Its application.
    pub application: ApplicationName,
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
    /// The way there.
    pub plan: Plan,
    /// How far it is.
    pub progress: Progress,
    /// The way back, once it failed or was aborted.
    pub back: Option<Plan>,
    /// How far that is.
    #[serde(default)]
    pub back_progress: Progress,
    /// Leave the environment as it is on failure.
    pub no_auto_rollback: bool,
    /// The call that aborted it.
    pub aborted_by: Option<RequestId>,
    /// The call that wants all requests to go to the new release at once.
    #[serde(default)]
    pub promoted_by: Option<RequestId>,
    /// What a split has shown.
    #[serde(default)]
    pub guard: GuardRecord,
    /// The environment's settings before, when this operation changed them.
    pub settings_before: Option<OptionSettings>,
    /// What made it fail.
    pub failure: Option<OperationFailure>,
    /// How it ended, in a sentence.
    pub message: Option<String>,
    /// Entries in its journal.
    #[serde(default)]
    pub entries: u64,
    /// What each instance that was waited for answered when that was told last.
    #[serde(default)]
    pub answers: BTreeMap<InstanceId, String>,
    /// How often such an answer was told.
    #[serde(default)]
    pub answers_told: u32,
    /// Requests of the environment, counted while it runs.
    #[serde(default)]
    pub traffic: TrafficMarks,
    /// What its receipt will be made from.
    #[serde(default)]
    pub receipt_marks: ReceiptMarks,
    /// What it did, once it is over; absent of one that changed nothing that runs.
    #[serde(default)]
    pub receipt: Option<Receipt>,
    /// Instances that it gave up on hosts that could not be reached.
    #[serde(default)]
    pub leftovers: Vec<Leftover>,
    /// What was asked for, while it is queued: it is planned when it begins.
    #[serde(default)]
    pub wish: Option<QueuedWish>,
    /// When it was queued, if it had to wait for another operation.
    #[serde(default)]
    pub queued_at: Option<Timestamp>,
    /// When it was accepted; of one that was queued, when it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// When it is given up if it has not ended.
    pub deadline: Timestamp,
}

/// What was asked for of an environment on which another operation was under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueuedWish {
    /// To deploy a version.
    Deploy(Deploy),
    /// To go back.
    Rollback(Rollback),
    /// Another number of instances.
    Scale(Scale),
    /// Other settings.
    Configure(UpdateSettings),
}

impl QueuedWish {
    /// The kind of operation that it comes to.
    pub const fn kind(&self) -> OperationKind {
        match self {
            Self::Deploy(_) => OperationKind::Deploy,
            Self::Rollback(_) => OperationKind::Rollback,
            Self::Scale(_) => OperationKind::Scale,
            Self::Configure(_) => OperationKind::Configure,
        }
    }

    /// The version that it names.
    pub const fn version(&self) -> Option<&VersionLabel> {
        match self {
            Self::Deploy(body) => body.version.as_ref(),
            _ => None,
        }
    }
}

impl OperationRecord {
    /// What lists it among its environment's operations.
    pub fn index(&self) -> OperationIndexRecord {
        OperationIndexRecord {
            environment: self.environment.clone(),
            started_at: self.queued_at.unwrap_or(self.started_at),
            operation: self.id.clone(),
        }
    }

    /// Whether it only starts instances afresh or elsewhere, on the release that they have.
    pub const fn changes_no_release(&self) -> bool {
        matches!(self.kind, OperationKind::Replace | OperationKind::Restart)
    }

    /// Whether it has left every instance alone so far, and has run nothing that runs once.
    pub fn touched_nothing(&self) -> bool {
        let progress = &self.progress;
        progress.changes.is_empty() && progress.detours.is_empty() && progress.once_by.is_none()
    }

    /// The way there, as it is walked.
    pub fn way_there(&self) -> Cow<'_, Plan> {
        self.plan.around(&self.progress)
    }

    /// The way back, as it is walked; once there is one.
    pub fn way_back(&self) -> Option<Cow<'_, Plan>> {
        let back = self.back.as_ref()?;
        Some(back.around(&self.back_progress))
    }

    /// Its ways, there and back, as they are walked.
    pub fn ways(&self) -> impl Iterator<Item = Cow<'_, Plan>> {
        [Some(self.way_there()), self.way_back()]
            .into_iter()
            .flatten()
    }

    /// The way that it is on, as it is walked, and how far it is.
    pub fn under_way(&self) -> (Cow<'_, Plan>, &Progress) {
        match self.way_back() {
            Some(back) => (back, &self.back_progress),
            None => (self.way_there(), &self.progress),
        }
    }

    /// Its key.
    pub fn key_of(id: &OperationId) -> Vec<u8> {
        key::join(&[id.as_str().as_bytes()])
    }
}

impl Record for OperationRecord {
    const TABLE: &'static str = "operations";
    fn key(&self) -> Vec<u8> {
        Self::key_of(&self.id)
    }
}

/// What a split has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardRecord {
    /// Up to the last look.
    pub evidence: Evidence,
    /// When that was; absent before the split has begun.
    pub taken_at: Option<Timestamp>,
    /// What the operation had counted of both sides by then.
    pub seen: Sides,
}

/// Requests counted over some time, from counters that start at zero with each run of a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficMarks {
    /// Answered, up to the marks.
    pub served: u64,
    /// Got no answer from the app, up to the marks.
    pub failed: u64,
    /// What each release was given, up to the marks.
    #[serde(default)]
    pub releases: BTreeMap<ReleaseNumber, Sample>,
    /// Requests that each instance was given, up to the marks.
    #[serde(default)]
    pub instances: BTreeMap<InstanceId, u64>,
    /// How often a proxy turned out to have been started again.
    #[serde(default)]
    pub restarts: u32,
    /// When they were last brought up to date.
    #[serde(default)]
    pub at: Timestamp,
    /// Proxy to the counters that are accounted for.
    pub marks: BTreeMap<String, TrafficMark>,
}

/// Counters of one run of a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficMark {
    /// The proxy's run.
    pub run: String,
    /// Its count of requests.
    pub requests: u64,
    /// Its count of failed ones.
    pub failed: u64,
    /// Its counts of each release. Those of one whose last instance left its table begin at zero when
    /// it comes back.
    #[serde(default)]
    pub releases: BTreeMap<ReleaseNumber, Sample>,
    /// Its counts of each instance's requests, and the incarnation that they belong to.
    #[serde(default)]
    pub instances: BTreeMap<InstanceId, (Incarnation, u64)>,
}

/// What a receipt is made from that neither the journal nor the counts of requests hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptMarks {
    /// The minute before the operation began, as proxies saw it.
    pub before: ReceiptTraffic,
    /// By how much the engine's time was behind the machine's clock then, in milliseconds.
    #[serde(default)]
    pub behind_ms: u64,
    /// The bundle whose way to hosts is counted.
    pub bundle: Option<Digest>,
    /// What each host was sent of it.
    pub sent: BTreeMap<HostId, SentMark>,
    /// When each host had the bundle.
    pub bundle_at: BTreeMap<HostId, Timestamp>,
    /// Requests since the operation ended.
    pub after: TrafficMarks,
}

/// What a host was sent of a bundle, from a counter that starts at zero with each run of the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentMark {
    /// The controller's run.
    pub run: String,
    /// The counter that is accounted for, in bytes.
    pub counted: u64,
    /// What was sent, up to the mark, in bytes.
    pub bytes: u64,
}

/// An entry in an operation's journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalRecord {
    /// The operation.
    pub operation: OperationId,
    /// Counted from 1.
    pub number: u64,
    /// When it was recorded.
    pub at: Timestamp,
    /// Whether it belongs to the way back.
    pub back: bool,
    /// What happened.
    pub entry: Happened,
}

impl JournalRecord {
    /// What the keys of an operation's entries begin with.
    pub fn prefix(operation: &OperationId) -> Vec<u8> {
        key::join(&[operation.as_str().as_bytes(), b""])
    }
}

impl Record for JournalRecord {
    const TABLE: &'static str = "journal";
    fn key(&self) -> Vec<u8> {
        key::join(&[
            self.operation.as_str().as_bytes(),
            &self.number.to_be_bytes(),
        ])
    }
}

/// An operation in its environment's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationIndexRecord {
    /// The environment.
    pub environment: EnvironmentId,
    /// When it was accepted.
    pub started_at: Timestamp,
    /// The operation.
    pub operation: OperationId,
}

impl OperationIndexRecord {
    /// What the keys of an environment's operations begin with.
    pub fn prefix(environment: &EnvironmentId) -> Vec<u8> {
        key::join(&[environment.as_str().as_bytes(), b""])
    }
}

impl Record for OperationIndexRecord {
    const TABLE: &'static str = "operations_of_environment";
    fn key(&self) -> Vec<u8> {
        key::join(&[
            self.environment.as_str().as_bytes(),
            &self.started_at.as_millis().to_be_bytes(),
            self.operation.as_str().as_bytes(),
        ])
    }
}

/// A machine with an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Its id.
    pub id: HostId,
    /// Its name, unique.
    pub name: HostName,
    /// The controller's own machine, reached over its socket without SSH.
    pub local: bool,
    /// How it is reached; absent for the local one.
    pub ssh: Option<SshAddress>,
    /// The bastion to go through.
    pub jump: Option<JumpRecord>,
    /// Its pinned key in OpenSSH's format (`ssh-ed25519 AAAA…`).
    pub host_key: Option<String>,
    /// That key's fingerprint, `SHA256:…`.
    pub fingerprint: Option<String>,
    /// The IP address at which proxies reach its instances, as text. Names are resolved when the
    /// host is added.
    pub instance_address: String,
    /// Labels for placement.
    pub labels: BTreeMap<String, String>,
    /// It gets no instances, and those that it has move elsewhere.
    pub draining: bool,
    /// It is being removed.
    #[serde(default)]
    pub removing: bool,
    /// The load balancer that it shall run.
    #[serde(default)]
    pub edge: Option<EdgeOrders>,
    /// Its agent's own id, once known: the same by every address.
    #[serde(default)]
    pub agent: Option<AgentId>,
    /// The other controller that it belongs to now.
    #[serde(default)]
    pub taken: Option<Owner>,
    /// Agents install nothing on it: platforms name what they lack instead.
    #[serde(default)]
    pub no_install: bool,
    /// When it was added.
    pub added_at: Timestamp,
}

impl HostRecord {
    /// Whether its agent may install what platforms need. The controller's own machine is its owner's to look after.
    pub fn installs(&self) -> bool {
        !self.local && !self.no_install
    }

    /// Whether its instances have an address by which no other machine reaches them.
    pub fn is_reached_from_itself_alone(&self) -> bool {
        let address: Result<IpAddr, _> = self.instance_address.parse();
        address.is_ok_and(|address| address.is_loopback())
    }

    /// Its key.
    pub fn key_of(id: &HostId) -> Vec<u8> {
        key::join(&[id.as_str().as_bytes()])
    }
}

impl Record for HostRecord {
    const TABLE: &'static str = "hosts";
    fn key(&self) -> Vec<u8> {
        Self::key_of(&self.id)
    }
}

/// A bastion; the controller's own key opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JumpRecord {
    /// How it is reached.
    pub ssh: SshAddress,
    /// Its pinned key in OpenSSH's format.
    pub host_key: String,
    /// That key's fingerprint, `SHA256:…`.
    pub fingerprint: String,
}

/// The newest orders of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostOrdersRecord {
    /// The host.
    pub host: HostId,
    /// Its orders.
    pub orders: HostOrders,
}

impl HostOrdersRecord {
    /// Its key.
    pub fn key_of(host: &HostId) -> Vec<u8> {
        key::join(&[host.as_str().as_bytes()])
    }
}

impl Record for HostOrdersRecord {
    const TABLE: &'static str = "host_orders";
    fn key(&self) -> Vec<u8> {
        Self::key_of(&self.host)
    }
}

/// The newest routing table; there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRecord {
    /// The table.
    pub table: RoutingTable,
}

impl TableRecord {
    /// Its key.
    pub fn the_key() -> Vec<u8> {
        key::join(&[b"table"])
    }
}

impl Record for TableRecord {
    const TABLE: &'static str = "routing_table";
    fn key(&self) -> Vec<u8> {
        Self::the_key()
    }
}

/// What the engine's time was, and what the machine's clock said then; there is one while an operation
/// is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockRecord {
    /// The engine's time.
    pub at: Timestamp,
    /// The machine's.
    pub wall: Timestamp,
}

impl ClockRecord {
    /// Its key.
    pub fn the_key() -> Vec<u8> {
        key::join(&[b"clock"])
    }
}

impl Record for ClockRecord {
    const TABLE: &'static str = "clock";
    fn key(&self) -> Vec<u8> {
        Self::the_key()
    }
}

/// The controller itself; there is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerRecord {
    /// Its id, by which hosts know whose they are. A restored controller is the same one.
    pub id: ControllerId,
}

impl ControllerRecord {
    /// Its key.
    pub fn the_key() -> Vec<u8> {
        key::join(&[b"controller"])
    }
}

impl Record for ControllerRecord {
    const TABLE: &'static str = "controller";
    fn key(&self) -> Vec<u8> {
        Self::the_key()
    }
}

/// The records came from a backup, and nobody who follows events was told yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredRecord {
    /// When the backup was taken.
    pub backup_of: String,
}

impl RestoredRecord {
    /// Its key.
    pub fn the_key() -> Vec<u8> {
        key::join(&[b"restored"])
    }
}

impl Record for RestoredRecord {
    const TABLE: &'static str = "restored";
    fn key(&self) -> Vec<u8> {
        Self::the_key()
    }
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventRecord(pub Event);

impl EventRecord {
    /// Its key: events sort by id.
    pub fn key_of(id: EventId) -> Vec<u8> {
        id.0.to_be_bytes().to_vec()
    }
}

impl Record for EventRecord {
    const TABLE: &'static str = "events";
    fn key(&self) -> Vec<u8> {
        Self::key_of(self.0.id)
    }
}

/// An event in its environment's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventIndexRecord {
    /// The environment.
    pub environment: EnvironmentId,
    /// The event.
    pub event: EventId,
}

/// An event that concerns no environment, in the list of such events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherEventRecord {
    /// The event.
    pub event: EventId,
}

impl Record for OtherEventRecord {
    const TABLE: &'static str = "events_other";
    fn key(&self) -> Vec<u8> {
        EventRecord::key_of(self.event)
    }
}

impl EventIndexRecord {
    /// Its key.
    pub fn key_of(environment: &EnvironmentId, event: EventId) -> Vec<u8> {
        key::join(&[environment.as_str().as_bytes(), &event.0.to_be_bytes()])
    }

    /// What the keys of an environment's events begin with.
    pub fn prefix(environment: &EnvironmentId) -> Vec<u8> {
        key::join(&[environment.as_str().as_bytes(), b""])
    }
}

impl Record for EventIndexRecord {
    const TABLE: &'static str = "events_of_environment";
    fn key(&self) -> Vec<u8> {
        Self::key_of(&self.environment, self.event)
    }
}

/// An API token; only its hash is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// What it is for: `local`.
    pub name: String,
    /// SHA-256 of the token.
    pub hash: Digest,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Record for TokenRecord {
    const TABLE: &'static str = "tokens";
    fn key(&self) -> Vec<u8> {
        key::join(&[self.name.as_bytes()])
    }
}
