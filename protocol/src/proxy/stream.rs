//! Connections that are carried as they are: what a network environment takes, and how that goes.

use super::WeightedPool;
use serde::{Deserialize, Serialize};

/// Where the connections to a TCP port go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// The port, at every address at which the proxy listens for HTTP.
    pub port: u16,
    /// The names that clients of TLS ask for (`*.example.org`: every name below, `*`: every name), in lower case.
    /// None: whatever no other stream of the port takes. A port has one such stream at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// What is done to the bytes.
    #[serde(default)]
    pub mode: StreamMode,
    /// The pools and their shares. Weights are relative; a pool of weight 0 gets nothing.
    pub pools: Vec<WeightedPool>,
}

/// What is done to the bytes of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub enum StreamMode {
    /// Nothing: TLS is between the client and the application.
    #[default]
    #[serde(rename = "TCP")]
    Pass,
    /// TLS ends here; the application gets what was in it.
    #[serde(rename = "TLS")]
    Terminate,
}

impl std::fmt::Display for StreamMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Pass => "TCP",
            Self::Terminate => "TLS",
        })
    }
}

/// What a proxy sees of a port of [`Stream`]s.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamReport {
    /// Which port.
    pub port: u16,
    /// Why connections to it are not accepted, for people; absent while they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// Connections that no stream of the port takes: without a name, or with one that nobody has.
    #[serde(default)]
    pub refused: u64,
}
