//! SSH as the fleet uses it: a connection whose host key is checked against one pinned
//! fingerprint and nothing else, authenticated by a key or an ssh-agent, direct or through a
//! bastion. `~/.ssh/known_hosts` and `~/.ssh/config` play no part.

mod connect;
mod exec;
mod key;
mod line;

pub use connect::{Session, connect, probe};
pub use exec::{ExecError, Output};
pub use key::{ControllerKey, Credential, KeyError};

use beanpole_protocol::api::SshAddress;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// The key that a host showed, or shall show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostKey {
    /// For example `ssh-ed25519`. Absent where a user confirmed a fingerprint only.
    #[serde(default)]
    pub algorithm: Option<String>,
    /// `SHA256:…`, as `ssh-keygen -l` prints it.
    pub fingerprint: String,
}

impl HostKey {
    /// A key of which only the fingerprint is known.
    pub fn pinned(fingerprint: impl Into<String>) -> Self {
        Self {
            algorithm: None,
            fingerprint: fingerprint.into(),
        }
    }
}

impl std::fmt::Display for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.fingerprint)?;
        match &self.algorithm {
            Some(algorithm) => write!(f, " ({algorithm})"),
            None => Ok(()),
        }
    }
}

/// How a shown key compares with the pinned one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is pinned.
    Unknown,
    /// It is the pinned key.
    Matches,
    /// It is another key than the pinned one.
    Changed,
}

impl Verdict {
    /// Compares `shown` with what is pinned. Fingerprints decide; algorithms are hints only.
    pub fn of(pinned: Option<&HostKey>, shown: &HostKey) -> Self {
        match pinned {
            None => Self::Unknown,
            Some(pinned) if pinned.fingerprint == shown.fingerprint => Self::Matches,
            Some(_) => Self::Changed,
        }
    }
}

/// One SSH server and how to get into it.
#[derive(Clone, Debug)]
pub struct Target {
    /// User, address, port.
    pub ssh: SshAddress,
    /// The only key that it may show.
    pub host_key: HostKey,
    /// How to authenticate.
    pub credential: Credential,
    /// The bastion to go through; it may have one of its own.
    pub jump: Option<Arc<Target>>,
}

/// Bounds of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// TCP connection, key exchange and authentication, each.
    pub connect_timeout: Duration,
    /// How often a silent server is asked for a sign of life.
    pub keepalive_interval: Duration,
    /// Unanswered signs after which the connection counts as dead.
    pub keepalive_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(10),
            keepalive_max: 3,
        }
    }
}

/// Why an SSH connection was not made, or broke.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// The address cannot be connected to.
    #[error("cannot connect to {address}")]
    Connect {
        /// The server.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// Nothing happened in time.
    #[error("{address} did not answer within {} s while {doing}", .after.as_secs())]
    TimedOut {
        /// The server.
        address: String,
        /// What was going on.
        doing: &'static str,
        /// The bound.
        after: Duration,
    },
    /// The server shows another key than the pinned one.
    #[error("{address} shows the host key {shown}, and should show {pinned}")]
    KeyChanged {
        /// The server.
        address: String,
        /// What it should show.
        pinned: HostKey,
        /// What it shows.
        shown: HostKey,
    },
    /// The server shows a certificate or a key that cannot be pinned.
    #[error("{address} shows no plain host key")]
    NoPlainKey {
        /// The server.
        address: String,
    },
    /// The server takes none of the keys.
    #[error("{user}@{address} accepts none of the keys offered ({tried})")]
    Denied {
        /// The user.
        user: String,
        /// The server.
        address: String,
        /// What was tried, for people.
        tried: String,
    },
    /// The ssh-agent does not work.
    #[error("the ssh-agent at {socket} cannot be used")]
    Agent {
        /// Its socket.
        socket: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The bastion cannot be got through.
    #[error("the bastion {address} cannot be used")]
    Jump {
        /// The bastion.
        address: String,
        /// Why.
        source: Box<SshError>,
    },
    /// The server lets us in, but nobody listens on the daemon's socket.
    #[error(
        "{address} lets us in, but no daemon listens on {socket} there (adding the host again starts its agent)"
    )]
    NobodyListens {
        /// The server.
        address: String,
        /// The socket.
        socket: String,
        /// What it says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server refuses to open a channel.
    #[error("{address} refuses to connect to {to}")]
    ChannelRefused {
        /// The server.
        address: String,
        /// The socket or the machine behind it.
        to: String,
        /// What it says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The protocol broke down.
    #[error("the SSH connection to {address} broke")]
    Broken {
        /// The server.
        address: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl SshError {
    /// Whether only a change of keys or settings can help, so that trying again soon is idle.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::KeyChanged { .. }
            | Self::NoPlainKey { .. }
            | Self::Denied { .. }
            | Self::Agent { .. } => true,
            Self::Jump { source, .. } => source.is_permanent(),
            Self::Connect { .. }
            | Self::TimedOut { .. }
            | Self::NobodyListens { .. }
            | Self::ChannelRefused { .. }
            | Self::Broken { .. } => false,
        }
    }

    /// The pinned and the shown key, where this is about a changed key of the host itself.
    pub fn changed_key(&self) -> Option<(&HostKey, &HostKey)> {
        match self {
            Self::KeyChanged { pinned, shown, .. } => Some((pinned, shown)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_goes_by_the_fingerprint_alone() {
        let shown = HostKey {
            algorithm: Some("ssh-ed25519".to_owned()),
            fingerprint: "SHA256:a".to_owned(),
        };
        assert_eq!(Verdict::of(None, &shown), Verdict::Unknown);
        assert_eq!(
            Verdict::of(Some(&HostKey::pinned("SHA256:a")), &shown),
            Verdict::Matches
        );
        assert_eq!(
            Verdict::of(Some(&HostKey::pinned("SHA256:b")), &shown),
            Verdict::Changed
        );
    }
}
