//! What an operation did, told when it is over: its receipt.

use crate::{HostName, InstanceId, OperationId, ReleaseNumber, Timestamp};
use serde::{Deserialize, Serialize};

/// What an operation that changes what runs did, and what its users noticed of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Receipt {
    /// Whether `after` is in: it takes a minute after the end, less when another operation begins.
    pub complete: bool,
    /// From its start to its end, in milliseconds, without `away_ms`.
    pub took_ms: u64,
    /// What the controller was away for meanwhile, or stood still, as far as it counts for nothing, in
    /// milliseconds.
    #[serde(default)]
    pub away_ms: u64,
    /// The minute before it began.
    pub before: ReceiptTraffic,
    /// From its start to its end.
    pub during: ReceiptTraffic,
    /// The minute after its end.
    pub after: Option<ReceiptTraffic>,
    /// What each release was given meanwhile. Requests that no instance was given are in `during` alone.
    pub releases: Vec<ReleaseShare>,
    /// Where the time went; together these are `took_ms`. Phases that took no time are left out.
    pub phases: Vec<PhaseTime>,
    /// The same of each batch, in the order in which they began.
    pub batches: Vec<BatchReceipt>,
    /// Bytes of the release's bundle that went to each host; hosts that had it already are left out.
    pub sent: Vec<SentTo>,
    /// How it went with each instance that was part of it.
    pub instances: Vec<InstanceReceipt>,
}

impl Receipt {
    /// Bytes of the release's bundle that went to hosts.
    pub fn sent_bytes(&self) -> u64 {
        self.sent.iter().map(|to| to.bytes).sum()
    }

    /// What fits into a line of a list.
    pub fn summary(&self) -> ReceiptSummary {
        ReceiptSummary {
            took_ms: self.took_ms,
            requests: self.during.requests.unwrap_or(0),
            failed: self.during.failed.unwrap_or(0),
            p99_before_us: self.before.p99_us,
            p99_during_us: self.during.p99_us,
            p99_after_us: self.after.as_ref().and_then(|after| after.p99_us),
            sent_bytes: self.sent_bytes(),
        }
    }
}

/// An environment's requests over some time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReceiptTraffic {
    /// How long that was, in milliseconds.
    pub for_ms: u64,
    /// Requests answered, failed ones included; absent where nobody counted.
    pub requests: Option<u64>,
    /// Requests that were answered with a status of 500 or above, or not, or not to the end; absent where
    /// nobody counted.
    pub failed: Option<u64>,
    /// How often a load balancer was started again meanwhile. What it had not reported yet, and what clients
    /// were refused until it was back, is in no count.
    #[serde(default)]
    pub restarts: u32,
    /// Median of the time until an answer began, in microseconds; absent without answers.
    pub p50_us: Option<u64>,
    /// Its 99th percentile, in microseconds.
    pub p99_us: Option<u64>,
}

/// What the instances of one release were given while an operation ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReleaseShare {
    /// Which release.
    pub release: ReleaseNumber,
    /// Requests that ended.
    pub requests: u64,
    /// Those of them that were answered with a status of 500 or above, or not, or not to the end.
    pub errors: u64,
    /// Median of the time until an answer began, in microseconds; absent without answers.
    pub p50_us: Option<u64>,
    /// Its 99th percentile, in microseconds.
    pub p99_us: Option<u64>,
}

/// What an operation waits for. While instances of a batch are in different ones, the time counts for
/// the first of these.
#[derive(
    Clone,
    Copy,
    Debug,
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
pub enum Phase {
    /// Hosts get the bundle.
    Bundle,
    /// Hosts unpack and build the release; nothing that runs is touched.
    Preparing,
    /// What runs once does, the release command for example, on one host; nothing that runs is touched.
    ReleaseCommand,
    /// Instances finish their requests and get no new ones.
    Draining,
    /// Instances that leave end.
    Stopping,
    /// Instances start, once their processes of before have ended.
    Starting,
    /// What was started is checked, without traffic, until it has proven well.
    Checking,
    /// A share of the requests goes to the new release, to be compared with the one before.
    Splitting,
    /// The load balancer takes instances in.
    Switching,
    /// Nothing changes: too few instances would serve, or the controller was away.
    Waiting,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Bundle => "sending the bundle",
            Self::Preparing => "preparing",
            Self::ReleaseCommand => "running once",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Starting => "starting",
            Self::Checking => "checking",
            Self::Splitting => "splitting",
            Self::Switching => "switching",
            Self::Waiting => "waiting",
        })
    }
}

/// How long a phase took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PhaseTime {
    /// Which.
    pub phase: Phase,
    /// In milliseconds.
    pub ms: u64,
}

/// How long a batch took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BatchReceipt {
    /// Counted from 1 on the way there, and again on the way back.
    pub number: u32,
    /// Whether it belongs to the way back.
    pub back: bool,
    /// Its instances.
    pub instances: u32,
    /// From its start to its end, in milliseconds.
    pub took_ms: u64,
    /// Where that went.
    pub phases: Vec<PhaseTime>,
}

/// What was sent to a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SentTo {
    /// The host's name.
    pub host: HostName,
    /// How much, in bytes; what had to be sent again counts again.
    pub bytes: u64,
}

/// How it went with one instance. Times are absent for what did not happen to it; where it was changed
/// there and back, they are sums.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct InstanceReceipt {
    /// Which instance.
    pub instance: InstanceId,
    /// Its host's name.
    pub host: HostName,
    /// The batch it was in last.
    pub batch: u32,
    /// What was to happen to it: `launch`, `replace`, `restart`, `remove`, `return`.
    pub change: String,
    /// What happened: `launched`, `replaced`, `restarted`, `removed`, `returned` (into service, unchanged),
    /// `taken-back`, `untouched`, `failed`, `unfinished`, `not-reached`.
    pub result: String,
    /// The release that it had at the end; absent where it is gone.
    pub release: Option<ReleaseNumber>,
    /// How long the load balancer gave it nothing, in milliseconds: of one that served before and again
    /// after.
    pub out_of_service_ms: Option<u64>,
    /// How long it took to finish its requests, in milliseconds.
    pub drained_ms: Option<u64>,
    /// From the order to start until it ran, in milliseconds.
    pub started_ms: Option<u64>,
    /// From then until it had proven well, in milliseconds.
    pub checked_ms: Option<u64>,
    /// From the order to stop until it was gone, in milliseconds.
    pub stopped_ms: Option<u64>,
    /// Requests that were still open when its time to drain was up.
    pub cut: u32,
    /// How often its processes were started again before it served.
    pub restarts: u32,
    /// Requests that it was given meanwhile and that ended.
    pub requests: u64,
    /// Why it failed, where it did.
    pub message: Option<String>,
}

/// A receipt in a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReceiptSummary {
    /// From the operation's start to its end, in milliseconds.
    pub took_ms: u64,
    /// Requests answered meanwhile.
    pub requests: u64,
    /// Requests that got no answer from the app meanwhile.
    pub failed: u64,
    /// 99th percentile of the minute before, in microseconds; absent without answers.
    pub p99_before_us: Option<u64>,
    /// 99th percentile meanwhile, in microseconds.
    pub p99_during_us: Option<u64>,
    /// 99th percentile of the minute after, in microseconds; absent until that is over.
    pub p99_after_us: Option<u64>,
    /// Bytes of its bundle that went to hosts.
    pub sent_bytes: u64,
}

/// How a release was last deployed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReleaseDeployment {
    /// The operation; it may be forgotten by now, while the release is kept.
    pub operation: OperationId,
    /// What that was: `deploy`, `rollback`, `configure`, `create`.
    pub kind: super::OperationKind,
    /// The release before it.
    pub from: Option<ReleaseNumber>,
    /// How it ended, in a sentence.
    pub message: Option<String>,
    /// When it was accepted.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// What it did.
    pub receipt: Receipt,
}

/// One release, and how it was deployed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReleaseDetail {
    /// The release.
    #[serde(flatten)]
    pub release: super::Release,
    /// How it was last deployed; absent while that is under way, and of releases that were deployed before
    /// there were receipts.
    pub deployment: Option<ReleaseDeployment>,
}
