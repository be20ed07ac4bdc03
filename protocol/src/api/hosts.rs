//! Hosts, and how they are reached.

use crate::agent::{HostFacts, Uninstalled};
use crate::{HostId, HostName, InstanceId, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a host is asked to be reached by.
#[derive(Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum AdminKey {
    /// A private key in OpenSSH's format. Used for this call only, then forgotten.
    Identity {
        /// The key itself.
        private_key: String,
        /// Its passphrase.
        #[serde(default)]
        passphrase: Option<String>,
    },
    /// An ssh-agent on the controller's machine.
    Agent {
        /// `$SSH_AUTH_SOCK`.
        socket: String,
    },
}

impl std::fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Identity { .. } => f.write_str("Identity(***)"),
            Self::Agent { socket } => write!(f, "Agent({socket})"),
        }
    }
}

/// How a host is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SshAddress {
    /// The admin's user.
    pub user: String,
    /// Name or IP address.
    pub address: String,
    /// 22 unless told otherwise.
    pub port: u16,
}

impl std::fmt::Display for SshAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            user,
            address,
            port,
        } = self;
        match (address.contains(':'), *port) {
            (false, 22) => write!(f, "{user}@{address}"),
            (false, port) => write!(f, "{user}@{address}:{port}"),
            (true, port) => write!(f, "{user}@[{address}]:{port}"),
        }
    }
}

impl std::str::FromStr for SshAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("`{text}` is not an SSH address: write [USER@]ADDRESS[:PORT]");
        let (user, rest) = text.rsplit_once('@').unwrap_or(("root", text));
        let (address, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (address, after) = rest.split_once(']').ok_or_else(wrong)?;
                (address, after.strip_prefix(':'))
            }
            None if rest.matches(':').count() > 1 => (rest, None),
            None => match rest.split_once(':') {
                Some((address, port)) => (address, Some(port)),
                None => (rest, None),
            },
        };
        let port = port.map_or(Ok(22), str::parse).map_err(|_| wrong())?;
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('-')
                && part
                    .chars()
                    .all(|c| c.is_ascii_graphic() && !"/\\'\"`$;&|<>()".contains(c))
        };
        if !plain(user) || !plain(address) || port == 0 {
            return Err(wrong());
        }
        Ok(Self {
            user: user.to_owned(),
            address: address.to_owned(),
            port,
        })
    }
}

/// Ask a host for its key, without trusting it.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProbeHost {
    /// The host.
    pub ssh: SshAddress,
    /// The bastion to go through.
    #[serde(default)]
    pub jump: Option<Jump>,
}

/// A bastion.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Jump {
    /// The bastion itself.
    pub ssh: SshAddress,
    /// Its key's fingerprint, `SHA256:…`.
    pub host_key: String,
    /// How to get into it.
    pub admin: AdminKey,
}

/// The key that a host showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostKey {
    /// For example `ssh-ed25519`.
    pub algorithm: String,
    /// `SHA256:…`, as `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// The host by this address that has been added already, if any.
    #[serde(default)]
    pub known_as: Option<HostName>,
}

/// Add a host: install the agent and pin its key. Adding it again repairs it.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddHost {
    /// Its name; the address if absent.
    #[serde(default)]
    pub name: Option<HostName>,
    /// How to reach it.
    pub ssh: SshAddress,
    /// The bastion to go through.
    #[serde(default)]
    pub jump: Option<Jump>,
    /// How to get in, as root or as a user with passwordless sudo.
    pub admin: AdminKey,
    /// The fingerprint that the user confirmed, `SHA256:…`.
    pub host_key: String,
    /// Take it over when it belongs to another controller: all that runs there ends and is removed.
    #[serde(default)]
    pub take_over: bool,
    /// The address at which the proxy reaches its instances; the SSH address if absent.
    #[serde(default)]
    pub instance_address: Option<String>,
    /// Labels for placement.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Install nothing on it that platforms need: deployments name what is missing instead.
    #[serde(default)]
    pub no_install: bool,
}

/// Change a host's labels.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateLabels {
    /// Labels to set, by name.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Names of labels to remove.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// Accept a host's changed key.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AcceptHostKey {
    /// The new fingerprint, `SHA256:…`.
    pub host_key: String,
}

/// Whether a host can be reached and used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub enum HostStatus {
    /// Never connected since the controller started.
    Connecting,
    /// Connected.
    Ready,
    /// Connected, gets no instances.
    Draining,
    /// Not heard of for 30 s or more.
    Unreachable,
    /// It shows another key than the pinned one.
    KeyChanged,
    /// It belongs to another controller now.
    TakenOver,
}

impl std::fmt::Display for HostStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Connecting => "Connecting",
            Self::Ready => "Ready",
            Self::Draining => "Draining",
            Self::Unreachable => "Unreachable",
            Self::KeyChanged => "KeyChanged",
            Self::TakenOver => "TakenOver",
        })
    }
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: HostName,
    /// How it is reached; `local` for the controller's own machine.
    pub address: String,
    /// Its pinned key, `SHA256:…`.
    pub host_key: Option<String>,
    /// Whether it can be used.
    pub status: HostStatus,
    /// Why it cannot, or what is odd about it (clock skew, an older agent).
    pub warnings: Vec<String>,
    /// When it was last heard of.
    pub last_seen: Option<Timestamp>,
    /// Its agent's version.
    pub agent_version: Option<String>,
    /// Its clock less the controller's, in milliseconds.
    pub clock_skew_ms: Option<i64>,
    /// The machine.
    pub facts: Option<HostFacts>,
    /// Labels for placement.
    pub labels: BTreeMap<String, String>,
    /// Whether its agent installs what platforms need.
    #[serde(default)]
    pub installs: bool,
    /// The instances it holds.
    pub instances: u32,
    /// When it was added.
    pub added_at: Timestamp,
}

/// What removing a host removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostRemoved {
    /// The host.
    pub name: HostName,
    /// What its agent removed; absent when it could not be asked (`--force`).
    pub uninstalled: Option<Uninstalled>,
    /// Instances that run on there, as far as is known, when it could not be asked: nobody removes
    /// them any more.
    #[serde(default)]
    pub left: Vec<InstanceId>,
}
