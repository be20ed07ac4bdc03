//! Load balancers, on the controller's machine and on hosts.

use crate::edge::AccessLog;
use crate::{Generation, Timestamp};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Give a host a load balancer, or change the one that it has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutEdge {
    /// Where it answers by HTTP, `IP:PORT`. With no address at all: 0.0.0.0:80 and 0.0.0.0:443.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub http: Vec<SocketAddr>,
    /// Where it answers by HTTPS, `IP:PORT`.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub https: Vec<SocketAddr>,
    /// Networks whose `X-Forwarded-*` headers are believed: `10.0.0.0/8`, or an address.
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
}

/// How a load balancer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub enum EdgeStatus {
    /// Its host was told of it, and it does not serve yet.
    Starting,
    /// It serves, by the newest routing table.
    Serving,
    /// It serves, and has not put the newest routing table in force yet.
    Behind,
    /// It does not run, or cannot listen.
    Failing,
    /// Nothing is heard of it. Where it runs, it serves by its last routing table.
    Unreachable,
}

impl std::fmt::Display for EdgeStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Starting => "Starting",
            Self::Serving => "Serving",
            Self::Behind => "Behind",
            Self::Failing => "Failing",
            Self::Unreachable => "Unreachable",
        })
    }
}

/// A load balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Edge {
    /// The host that it is on; `local`, `local-2`, … on the controller's machine.
    pub name: String,
    /// It was started on the controller's machine, and not by an agent.
    pub local: bool,
    /// How it is.
    pub status: EdgeStatus,
    /// Why it is not well, or what is odd about it.
    pub causes: Vec<String>,
    /// How it is to run; absent on the controller's machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<PutEdge>,
    /// Whether its host has said that it runs as it is wanted now, by its newest executable where that was asked
    /// for; always on the controller's machine.
    pub settled: bool,
    /// Where it listens, by its own word.
    pub listeners: Vec<String>,
    /// Its version.
    pub version: Option<String>,
    /// The routing table that it has in force.
    pub generation: Option<Generation>,
    /// Whether deployments and certificates wait for it: not while nothing is heard of it for long.
    pub counts: bool,
    /// Its process on the host.
    pub pid: Option<u32>,
    /// How often it was started again because it had ended.
    pub restarts: u32,
    /// When it was last heard of.
    pub last_seen: Option<Timestamp>,
}

/// What became of a load balancer that was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EdgeRemoved {
    /// Its host.
    pub name: String,
    /// Whether its host has said that it is gone. Else it ends there as soon as the host is told.
    pub gone: bool,
}
