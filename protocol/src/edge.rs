//! A load balancer on a host: what its agent is told of it, and what it says.
//!
//! | Call of the agent | Meaning |
//! |---|---|
//! | `GET /v1/edge/control?controller=ID` | becomes the connection to the load balancer's own control socket (`Upgrade: beanpole-control`, answered with 101); 503 `edge-not-running` while there is none |
//! | `GET /v1/edge/logs?tail=N` | plain text, lines `TIME STREAM LINE`; with `access=true`, lines of the access log as they are |

use crate::Timestamp;
use crate::agent::{ExitReport, InstancePhase};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// What the process that keeps a proxy's listeners is asked, by `POST` over its own socket, to have the executable on
/// disk take over.
pub const RELOAD_PATH: &str = "/v1/reload";

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
    /// How requests are logged; not at all without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
    /// Requests that belong to no trace begin one (W3C Trace Context).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub new_traces: bool,
    /// The domain below which environments get their hostnames.
    pub domain: String,
    /// Rises to have the executable that is there now take over.
    #[serde(default)]
    pub restart: u64,
}

/// How a load balancer logs requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessLog {
    /// How a request is written.
    #[serde(default)]
    pub format: AccessLogFormat,
    /// How many of a thousand requests are logged, 0 to 1000; failed ones (500 and above) and slow ones in any case.
    #[serde(default = "all_of_them")]
    pub sample: u16,
    /// From so many milliseconds on a request is slow.
    #[serde(default = "slow_ms")]
    pub slow_ms: u64,
    /// Query strings of URLs too; they often hold secrets.
    #[serde(default)]
    pub query: bool,
    /// The file is put aside at that size, in MiB, and three such files are kept; 1 to 1048576.
    #[serde(default = "max_mib")]
    pub max_mib: u64,
}

/// Every request is logged.
pub const ALL_OF_THEM: u16 = 1_000;

const fn all_of_them() -> u16 {
    ALL_OF_THEM
}

const fn slow_ms() -> u64 {
    1_000
}

const fn max_mib() -> u64 {
    64
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            format: AccessLogFormat::default(),
            sample: all_of_them(),
            slow_ms: slow_ms(),
            query: false,
            max_mib: max_mib(),
        }
    }
}

/// How requests are written into a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AccessLogFormat {
    /// A JSON object each.
    #[default]
    Json,
    /// As Apache and NCSA do.
    Combined,
}

/// What a load balancer is told besides where it listens. It takes that over without a lost request: from a file,
/// which its process reads as it starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeTerms {
    /// As in [`EdgeOrders`].
    pub trust: Vec<String>,
    /// As in [`EdgeOrders`].
    pub public_https_port: Option<u16>,
    /// As in [`EdgeOrders`].
    pub proxy_protocol: bool,
    /// As in [`EdgeOrders`].
    pub access_log: Option<AccessLog>,
    /// As in [`EdgeOrders`].
    pub new_traces: bool,
}

impl EdgeOrders {
    /// What it takes over without a lost request.
    pub fn terms(&self) -> EdgeTerms {
        EdgeTerms {
            trust: self.trust.clone(),
            public_https_port: self.public_https_port,
            proxy_protocol: self.proxy_protocol,
            access_log: self.access_log,
            new_traces: self.new_traces,
        }
    }

    /// Whether it listens where `other` does, for the same domain.
    pub fn listens_as(&self, other: &Self) -> bool {
        (&self.http, &self.https, &self.domain) == (&other.http, &other.https, &other.domain)
    }
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
