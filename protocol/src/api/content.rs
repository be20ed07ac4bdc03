//! What clients get in place of an environment's answers.

use crate::content::PageFor;
use crate::{Network, Timestamp};
use serde::{Deserialize, Serialize};

/// Closes an environment for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetMaintenance {
    /// The page that clients get, HTML of at most 64 KiB; that for a 503 if absent. `{{status}}` and `{{request_id}}`
    /// stand for what their names say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<String>,
    /// Addresses and networks whose clients get to the application all the same, at most 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub allow: Vec<Network>,
    /// After how many seconds clients may try again, 1 to 86400; 300 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
}

/// An environment that is closed for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MaintenanceView {
    /// Since when.
    pub since: Timestamp,
    /// Whether it has a page of its own for that.
    pub has_page: bool,
    /// Addresses and networks whose clients get to the application all the same.
    #[schema(value_type = Vec<String>)]
    pub allow: Vec<Network>,
    /// After how many seconds clients may try again.
    pub retry_after_s: u32,
    /// Whether every load balancer that is connected has it.
    pub in_force: bool,
}

/// A page for answers that the load balancer gives itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPage {
    /// What it is for: 408, 413, 429, 500 to 599, or `5xx` for all from 500 on that have none of their own.
    pub page: PageFor,
    /// HTML of at most 64 KiB. `{{status}}` and `{{request_id}}` stand for what their names say.
    pub html: String,
}

/// A page of an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PageView {
    /// What it is for.
    pub page: PageFor,
    /// How large it is, in bytes.
    pub size: u64,
    /// When it was set.
    pub since: Timestamp,
    /// Whether every load balancer that is connected knows of it.
    pub in_force: bool,
}
