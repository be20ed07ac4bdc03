//! What a shim is told: a file that its starter writes (mode 0600: it holds the app's secrets).

use crate::fences::cgroups::Group;
use crate::fences::users::User;
use beanpole_protocol::agent::{Limits, Properties, ReadyOrder};
use beanpole_protocol::{Incarnation, InstanceId, ReleaseNumber};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The version of the spec, the state file and the control protocol. A shim outlives upgrades of
/// the agent, so version 1 never changes: fields may be added with a default, nothing else.
pub const VERSION: u32 = 1;

/// The files in an instance's directory.
pub mod files {
    /// The [`super::ShimSpec`].
    pub const SPEC: &str = "spec.json";
    /// The last [`crate::shim::wire::Status`], replaced by rename.
    pub const STATE: &str = "state.json";
    /// The control socket.
    pub const SOCKET: &str = "shim.sock";
    /// Locked while a shim lives.
    pub const LOCK: &str = "shim.lock";
    /// What the shim itself has to say when it breaks down.
    pub const TROUBLE: &str = "shim.err";
    /// The directory of the logs.
    pub const LOGS: &str = "log";
    /// What the log of the readiness command is called, as a process's is by its name: no process can
    /// have one with a dot.
    pub const READY_LOG: &str = "readiness.command";
    /// What the log of hooks is called.
    pub const HOOKS_LOG: &str = "hooks.postdeploy";
    /// The processes' home directory.
    pub const HOME: &str = "home";
    /// `TMPDIR` where `/tmp` cannot be made private.
    pub const TMP: &str = "tmp";
    /// Holds the directory that is mounted as `/tmp`; nobody but root gets in.
    pub const PRIVATE: &str = "private";
}

/// What to run and how. Its directory is the instance's; all other files are beside it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShimSpec {
    /// [`VERSION`].
    pub v: u32,
    /// The instance.
    pub instance: InstanceId,
    /// Its release, for reports.
    pub release: ReleaseNumber,
    /// Its incarnation, for reports.
    pub incarnation: Incarnation,
    /// One of each.
    pub processes: Vec<Program>,
    /// The ports of processes besides `web`, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u16>,
    /// Where they start.
    pub directory: PathBuf,
    /// Their whole environment.
    pub environment: Properties,
    /// Who they run as; none: as the shim does.
    pub user: Option<User>,
    /// Their cgroup, with its limits to put in force.
    pub cgroup: Option<Group>,
    /// What they may use.
    pub limits: Limits,
    /// Whether `private/tmp` is mounted as their `/tmp`.
    pub private_tmp: bool,
    /// SIGTERM to SIGKILL where a stop does not say, in milliseconds.
    pub grace_ms: u64,
    /// Bounds of the logs.
    #[serde(default)]
    pub logs: LogBounds,
    /// Pauses before starting again.
    #[serde(default)]
    pub backoff: Backoff,
    /// What has to succeed before the instance counts as started.
    #[serde(default)]
    pub gate: GateSpec,
    /// Whether they may listen on ports below 1024, as root may.
    #[serde(default)]
    pub low_ports: bool,
}

impl ShimSpec {
    /// Whether any of its processes runs a container.
    pub fn runs_containers(&self) -> bool {
        self.processes.iter().any(|program| program.runs_container)
    }
}

/// What has to succeed in an instance before it counts as started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateSpec {
    /// The readiness command.
    #[serde(default)]
    pub ready: Option<ReadyOrder>,
    /// Hooks that run once when that has succeeded and the application listens, below the directory, in
    /// this order.
    #[serde(default)]
    pub hooks: Vec<PathBuf>,
    /// How long each of them may take, in milliseconds.
    #[serde(default)]
    pub hook_timeout_ms: u64,
    /// Whether they run as root.
    #[serde(default)]
    pub hooks_as_root: bool,
}

/// The process type that gets the traffic, and with it the port.
pub(crate) const WEB: &str = "web";

/// One process type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its name; also of its log file.
    pub name: String,
    /// Its command line, for `/bin/sh -c`.
    pub command: String,
    /// Its `$PORT`, where that is another one than the instance's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Whether it runs a container: as the shim does, not as the application's user, who may not speak to the Engine. Its
    /// command is the agent's own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub runs_container: bool,
}

/// How much log is kept for each process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBounds {
    /// The size at which a file is put aside, in bytes.
    pub file_bytes: u64,
    /// How many files are kept, the current one included; at least 1.
    pub files: u32,
}

impl Default for LogBounds {
    fn default() -> Self {
        Self {
            file_bytes: 10 * 1024 * 1024,
            files: 5,
        }
    }
}

/// The pause before a process is started again: doubled with every end in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// The first pause, in milliseconds.
    pub first_ms: u64,
    /// The longest pause, in milliseconds.
    pub longest_ms: u64,
    /// A process that ran this long ends the row, in milliseconds.
    pub reset_ms: u64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first_ms: 500,
            longest_ms: 30_000,
            reset_ms: 60_000,
        }
    }
}

impl Backoff {
    /// The pause after the `row`th end in a row, counted from 1.
    pub fn pause_ms(&self, row: u32) -> u64 {
        let doublings = row.saturating_sub(1).min(20);
        (self.first_ms << doublings).min(self.longest_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let backoff = Backoff::default();
        let pauses: Vec<u64> = (1..=8).map(|row| backoff.pause_ms(row)).collect();
        assert_eq!(
            pauses,
            [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]
        );
        assert_eq!(backoff.pause_ms(u32::MAX), 30_000);
    }
}
