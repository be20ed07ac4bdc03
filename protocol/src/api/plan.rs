//! What a plan comes to, for who asks before anything is done: capacity, time, settings.

use serde::{Deserialize, Serialize};

/// One step of a plan, and what is in service around it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlanStep {
    /// The number of its batch; absent where no instance changes.
    pub batch: Option<u32>,
    /// The share of requests that the new release gets, in per cent, where that is what the step is about.
    #[serde(default)]
    pub share: Option<u8>,
    /// What happens where.
    pub changes: Vec<PlannedChange>,
    /// Healthy instances in service when it begins.
    pub serving_before: u32,
    /// The fewest while it lasts.
    pub serving_lowest: u32,
    /// When it is done.
    pub serving_after: u32,
    /// The most instances there are while it lasts, in service or not.
    pub running_most: u32,
    /// Instances there are when it is done.
    pub running_after: u32,
    /// How long it is expected to take, in milliseconds; absent where nothing like it was measured yet.
    pub expected_ms: Option<u64>,
    /// How long it may take by the settings, in milliseconds.
    pub at_most_ms: u64,
}

/// What happens on one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlannedChange {
    /// `prepare`, `launch`, `replace`, `restart`, `remove`, `return`.
    pub change: String,
    /// The host's name.
    pub host: String,
    /// To how many instances; 0 of `prepare`, which touches none.
    pub instances: u32,
}

/// How long a plan is expected to take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlanTime {
    /// All of it, in milliseconds; absent where a step has no measure.
    pub expected_ms: Option<u64>,
    /// What it may take by the settings, in milliseconds.
    pub at_most_ms: u64,
    /// How many operations of this environment the expectation was measured by.
    pub measured: u32,
}

/// A setting that changes with an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlannedSetting {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub option: String,
    /// What holds now; absent of environment properties, whose values are not shown, and where nothing
    /// holds.
    pub from: Option<String>,
    /// What holds then.
    pub to: Option<String>,
    /// What becomes of it: `set`, `changed`, `removed`.
    pub how: String,
    /// What it takes: `nothing`, `check` (what is in service has to pass it first), `restart`, or `replacement` of instances by new ones.
    pub needs: String,
}
