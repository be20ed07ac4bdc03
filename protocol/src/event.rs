//! Events: what happened, in order. The log that users read and clients wait on.

use crate::{
    ApplicationName, EnvironmentId, EnvironmentName, EventId, HostId, InstanceId, OperationId,
    RequestId, Timestamp,
};
use serde::{Deserialize, Serialize};

/// Something that happened. Times are strictly increasing per environment, in milliseconds, because
/// real EB clients ask for "what came after the last one".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Event {
    /// Its place among all events of the controller.
    pub id: EventId,
    /// When it was recorded.
    pub at: Timestamp,
    /// How much it matters.
    pub severity: Severity,
    /// Stable and kebab-case, for programs: `deployment-started`, `instance-healthy`.
    pub code: String,
    /// For people: a sentence.
    pub message: String,
    /// The call that led to it.
    pub request_id: Option<RequestId>,
    /// The operation it belongs to.
    pub operation: Option<OperationId>,
    /// The application it concerns.
    pub application: Option<ApplicationName>,
    /// The environment it concerns.
    pub environment: Option<EnvironmentId>,
    /// That environment's name.
    pub environment_name: Option<EnvironmentName>,
    /// The instance it concerns.
    pub instance: Option<InstanceId>,
    /// The host it concerns.
    pub host: Option<HostId>,
    /// More, one line each: log lines of a failed app, for example.
    #[serde(default)]
    pub details: Vec<String>,
}

/// How much an event matters (EB's scale).
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
#[serde(rename_all = "UPPERCASE")]
pub enum Severity {
    /// For following the machinery.
    Trace,
    /// For finding faults.
    Debug,
    /// Normal.
    #[default]
    Info,
    /// Something is off; it goes on.
    Warn,
    /// Something failed.
    Error,
    /// It cannot go on.
    Fatal,
}

impl std::fmt::Display for Severity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Trace => "TRACE",
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
        })
    }
}
