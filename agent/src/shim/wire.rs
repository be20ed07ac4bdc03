//! What a shim and the agent say to each other: JSON, a line each way, over a private socket.
//!
//! | Line | Answer |
//! |---|---|
//! | `{"v":1,"op":"status"}` | a [`Status`] |
//! | `{"v":1,"op":"watch"}` | a [`Status`] at once and one after each change, until the shim ends |
//! | `{"v":1,"op":"stop","grace_ms":10000}` | a [`Status`] at once; the end shows in the state file and by the closed connection |
//! | anything else | `{"v":1,"error":"…"}` |

use beanpole_protocol::agent::{ExitReport, Failure, MemoryKills, Startup};
use beanpole_protocol::{Incarnation, InstanceId, ReleaseNumber, Timestamp};
use serde::{Deserialize, Serialize};

/// The longest line that a shim reads, in bytes.
pub const LONGEST_LINE: usize = 4096;

/// What the agent asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`super::spec::VERSION`].
    pub v: u32,
    /// What to do.
    #[serde(flatten)]
    pub op: Op,
}

/// The orders that a shim takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Op {
    /// Say how things are.
    Status,
    /// Say so again after each change.
    Watch,
    /// End everything.
    Stop {
        /// SIGTERM to SIGKILL; the spec's when it is missing.
        #[serde(default)]
        grace_ms: Option<u64>,
    },
}

/// How things are, on the wire and in the state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// [`super::spec::VERSION`].
    pub v: u32,
    /// The instance.
    pub instance: InstanceId,
    /// Its release.
    pub release: ReleaseNumber,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The shim itself.
    pub shim: Identity,
    /// The boot of the machine that all process ids belong to.
    pub boot_id: String,
    /// What it does.
    pub stage: Stage,
    /// When it last changed.
    pub since: Timestamp,
    /// The processes, in the spec's order.
    pub processes: Vec<ProcessStatus>,
    /// Log lines lost because the disk was full or failing.
    #[serde(default)]
    pub lines_lost: u64,
    /// What the kernel killed for memory, besides those in `processes`.
    #[serde(default)]
    pub memory_kills: MemoryKills,
    /// What has to succeed before it counts as started.
    #[serde(default)]
    pub gate: GateStatus,
}

/// How far an instance is with what has to succeed before it counts as started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateStatus {
    /// The readiness command, where there is one.
    #[serde(default)]
    pub ready: Option<ReadyStatus>,
    /// The hooks, where there are some.
    #[serde(default)]
    pub hooks: Option<HooksStatus>,
}

/// How far the hooks of an instance are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HooksStatus {
    /// They wait for the application.
    Waiting,
    /// One was started, or is about to be. None of them begins a second time.
    Running {
        /// Which.
        hook: String,
    },
    /// All have exited with 0.
    Passed,
    /// One failed, or nobody knows how it ended.
    Failed(Failure),
}

/// How far a readiness command is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyStatus {
    /// The command, as people are shown it.
    pub command: String,
    /// It has exited with 0 since a process was started last.
    pub passed: bool,
    /// How often it has ended since then.
    pub tries: u32,
    /// How it ended the last time, unless with 0.
    pub last: Option<String>,
}

impl GateStatus {
    /// For a report; none where nothing has to succeed.
    pub fn startup(&self) -> Option<Startup> {
        match (&self.hooks, &self.ready) {
            (Some(HooksStatus::Failed(failure)), _) => Some(Startup::Failed(failure.clone())),
            (_, Some(ready)) if !ready.passed => Some(Startup::Ready {
                command: ready.command.clone(),
                tries: ready.tries,
                last: ready.last.clone(),
            }),
            (Some(HooksStatus::Waiting), _) => Some(Startup::Listen),
            (Some(HooksStatus::Running { hook }), _) => Some(Startup::Hook { hook: hook.clone() }),
            (Some(HooksStatus::Passed), _) | (None, Some(_)) => Some(Startup::Passed),
            (None, None) => None,
        }
    }
}

/// A process that no later one can be taken for: a pid may be given away again, but not with the
/// same start time within one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its process id.
    pub pid: i32,
    /// When it started, in clock ticks since boot (proc(5), field 22 of `stat`).
    pub start: u64,
}

impl Identity {
    /// Of a process that runs now.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = super::proc::Stat::of(pid)?;
        Some(Self {
            pid,
            start: stat.start,
        })
    }

    /// Whether this very process still runs (a zombie does not).
    pub fn lives(&self) -> bool {
        super::proc::Stat::of(self.pid).is_some_and(|stat| stat.start == self.start && stat.alive())
    }
}

/// What a shim does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Keeps the processes running.
    Supervising,
    /// Told to end; some processes are left.
    Stopping,
    /// All are gone, and so is the shim.
    Stopped,
}

/// One process of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// Its name in the Procfile.
    pub name: String,
    /// While it runs.
    pub running: Option<Identity>,
    /// When it was last started.
    pub started_at: Option<Timestamp>,
    /// How often it was started again in this incarnation.
    pub restarts: u32,
    /// How it last ended.
    pub last_exit: Option<ExitReport>,
    /// When it ended by itself lately.
    #[serde(default)]
    pub ended_at: Vec<Timestamp>,
    /// When it will be started again, while it does not run.
    #[serde(default)]
    pub starts_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shims of old agents speak this for ever.
    #[test]
    fn version_1_never_changes() {
        let stop: Request =
            serde_json::from_str(r#"{"v":1,"op":"stop","grace_ms":250}"#).expect("stop");
        let grace_ms = Some(250);
        assert_eq!(stop.op, Op::Stop { grace_ms });
        let watch = Request {
            v: 1,
            op: Op::Watch,
        };
        let text = serde_json::to_string(&watch).expect("watch");
        assert_eq!(text, r#"{"v":1,"op":"watch"}"#);
        let status = r#"{"v":1,"instance":"i-00000000000000001","release":3,"incarnation":2,
            "shim":{"pid":7,"start":99},"boot_id":"b","stage":"supervising",
            "since":"2026-01-02T03:04:05.678Z","processes":[{"name":"web",
            "running":{"pid":8,"start":100},"started_at":null,"restarts":0,"last_exit":null}]}"#;
        let status: Status = serde_json::from_str(status).expect("status");
        assert_eq!(
            status.processes[0].running,
            Some(Identity { pid: 8, start: 100 })
        );
    }

    #[test]
    fn a_pid_with_another_start_time_is_another_process() {
        let me = Identity::of(std::process::id() as i32).expect("me");
        assert!(me.lives());
        let earlier = Identity {
            start: me.start.wrapping_sub(1),
            ..me
        };
        assert!(!earlier.lives());
    }
}
