//! A load balancer on a host: what its agent is told of it, and what it says.
//!
//! | Call of the agent | Meaning |
//! |---|---|
//! | `GET /v1/edge/control?controller=ID` | becomes the connection to the load balancer's own control socket (`Upgrade: beanpole-control`, answered with 101); 503 `edge-not-running` while there is none |
//! | `GET /v1/edge/logs?tail=N` | plain text, lines `TIME STREAM LINE` |

use crate::Timestamp;
use crate::agent::{ExitReport, InstancePhase};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// What a connection to an agent is turned into.
pub const CONTROL_UPGRADE: &str = "beanpole-control";

/// The load balancer that a host shall run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeOrders {
    /// Where it answers by HTTP.
    #[serde(default)]
    pub http: Vec<SocketAddr>,
    /// Where it answers by HTTPS.
    #[serde(default)]
    pub https: Vec<SocketAddr>,
    /// Networks whose `X-Forwarded-*` headers are believed.
    #[serde(default)]
    pub trust: Vec<String>,
    /// The port by which clients reach HTTPS, where something in front changes it.
    #[serde(default)]
    pub public_https_port: Option<u16>,
    /// Every connection begins with the announcement of its client by the PROXY protocol.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// The domain below which environments get their hostnames.
    pub domain: String,
    /// Rises to have the executable that is there now take over.
    #[serde(default)]
    pub restart: u64,
}

/// A host's load balancer, as its agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeReport {
    /// What it was started with last; absent before the first start.
    #[serde(default)]
    pub orders: Option<EdgeOrders>,
    /// What it does.
    pub phase: InstancePhase,
    /// Since when, by the host's clock.
    pub since: Timestamp,
    /// Its process, while it has one.
    #[serde(default)]
    pub pid: Option<u32>,
    /// How often it was started again because it had ended.
    #[serde(default)]
    pub restarts: u32,
    /// How it ended the last time.
    #[serde(default)]
    pub last_exit: Option<ExitReport>,
    /// The last lines that it logged, oldest first; at most 20. Only while it is not well.
    #[serde(default)]
    pub log: Vec<String>,
}
