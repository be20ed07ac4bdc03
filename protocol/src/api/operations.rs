//! Operations, their plans, and the releases that they make.

use crate::options::{DeploymentPolicy, OptionSettings};
use crate::{
    EnvironmentId, EnvironmentName, HostName, InstanceId, OperationId, ReleaseNumber, RequestId,
    Timestamp, VersionLabel,
};
use serde::{Deserialize, Serialize};

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
    /// Exchanges its hostnames with those of another environment.
    Swap,
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
            Self::Swap => "swap",
        })
    }
}

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OperationStatus {
    /// Accepted; it begins when the operation under way has ended.
    Queued,
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
        !matches!(self, Self::Queued | Self::Running | Self::RollingBack)
    }
}

impl std::fmt::Display for OperationStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Queued => "queued",
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
    /// When it was queued, if it had to wait for another operation.
    #[serde(default)]
    pub queued_at: Option<Timestamp>,
    /// When it was accepted; of one that was queued, when it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// When it is given up if it has not ended; while it is queued, when the one before it is.
    pub deadline: Timestamp,
    /// Instances that it gave up on hosts that could not be reached. They are removed when the hosts are
    /// back.
    #[serde(default)]
    pub leftovers: Vec<Leftover>,
    /// The share of the requests that the new release has, while it has one.
    #[serde(default)]
    pub split: Option<SplitView>,
    /// Requests of the environment answered meanwhile.
    pub requests_served: u64,
    /// Requests that got no answer from the app meanwhile.
    pub requests_failed: u64,
    /// What it did, once it is over, if it changed what runs.
    #[serde(default)]
    pub receipt: Option<super::Receipt>,
}

/// Two releases that share the requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SplitView {
    /// The new release's share, in per cent.
    pub percent: u8,
    /// Which step it is, counted from 1.
    pub step: u32,
    /// How many there are.
    pub steps: u32,
    /// When every load balancer had confirmed the share.
    pub confirmed_at: Option<Timestamp>,
    /// When the step is over; absent before it is confirmed.
    pub until: Option<Timestamp>,
    /// Somebody had it get all requests without further waiting.
    pub promoted: bool,
    /// The new release's requests since the first step began.
    pub new: SideView,
    /// Those of the release before, in the same time.
    pub old: SideView,
}

/// Requests of one side of a split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SideView {
    /// Requests that ended.
    pub requests: u64,
    /// Those answered with a status of 500 or above, or not, or not to the end.
    pub errors: u64,
    /// The 95th percentile of the time until the answer began, in microseconds; absent without answers.
    pub p95_us: Option<u64>,
}

/// An instance that was given up on a host that did not say that it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Leftover {
    /// Which instance.
    pub instance: InstanceId,
    /// Its host's name.
    pub host: HostName,
}

impl std::fmt::Display for Leftover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} on {} could not be reached: its processes may run on there, with their settings, and are \
             removed when the host is back.",
            self.instance, self.host
        )
    }
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
    /// Instances that stay as they are, though others change.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    /// Where a rollback leads: only in the plan of one that is asked what it would do.
    #[serde(default)]
    pub back_to: Option<BackTo>,
    /// Each step with its capacity and time: only in a plan that is asked for before it is carried out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<super::PlanStep>,
    /// How long all of it takes: only in such a plan, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<super::PlanTime>,
    /// Settings that change with it: only in such a plan, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<super::PlannedSetting>,
    /// What will probably go wrong with it, and what to do about that, for people: only in such a plan, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// An instance that a plan leaves out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LeftOut {
    /// Which instance.
    pub instance: InstanceId,
    /// Its host's name.
    pub host: String,
    /// Why, and what happens to it then, in a sentence without its end.
    pub reason: String,
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} on {} was left out: {}.",
            self.instance, self.host, self.reason
        )
    }
}

/// A release to go back to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BackTo {
    /// Its number.
    pub release: ReleaseNumber,
    /// Its version.
    pub version: VersionLabel,
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
    /// How its last deployment went, in short; absent until that is over.
    #[serde(default)]
    pub receipt: Option<super::ReceiptSummary>,
}
