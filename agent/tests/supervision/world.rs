//! A runtime in a directory of its own, and how to wait for what it does.

use beanpole_agent::fences::Fences;
use beanpole_agent::runtime::process::{ProcessRuntime, ProcessSettings, ShimProgram};
use beanpole_agent::runtime::{InstanceSpec, ProcessSpec, Runtime, Workload};
use beanpole_agent::shim::spec::{Backoff, LogBounds, files};
use beanpole_agent::shim::wire::{Identity, Status};
use beanpole_protocol::agent::{InstanceReport, Limits, Properties};
use beanpole_protocol::{ApplicationName, Incarnation, InstanceId, ReleaseNumber};
use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub const LIMIT: Duration = Duration::from_secs(20);
pub const GRACE: Duration = Duration::from_secs(5);
/// How long what was killed may take to be gone.
const ENDING: Duration = Duration::from_secs(10);

/// The shim's executable, built beside this test.
pub fn shim_program() -> PathBuf {
    if let Some(path) = std::env::var_os("BEANPOLE_TEST_SHIM") {
        return path.into();
    }
    let me = std::env::current_exe().expect("path of this test");
    let path = me
        .ancestors()
        .nth(2)
        .expect("target directory")
        .join("examples/shim");
    if !path.exists() {
        // `cargo test` builds examples only when it builds everything.
        let built = Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "-p",
                "beanpole-agent",
                "--example",
                "shim",
            ])
            .status();
        assert!(built.is_ok_and(|status| status.success()) && path.exists());
    }
    path
}

/// A port that nobody listens on, outside the range that instances are given.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("its address").port()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A directory with a runtime that works in it; everything in it ends with it.
pub struct World {
    pub directory: PathBuf,
    pub runtime: ProcessRuntime,
    kept: Option<tempfile::TempDir>,
}

impl World {
    pub fn new() -> Self {
        let kept = tempfile::tempdir().expect("directory");
        let mut world = Self::at(kept.path(), LogBounds::default());
        world.kept = Some(kept);
        world
    }

    pub fn at(directory: &Path, logs: LogBounds) -> Self {
        let instances = directory.join("instances");
        let settings = ProcessSettings {
            shim: ShimProgram {
                open_files: None,
                program: shim_program(),
                arguments: vec!["shim".to_owned()],
            },
            logs,
            backoff: Backoff {
                first_ms: 20,
                longest_ms: 200,
                reset_ms: 60_000,
            },
            ..ProcessSettings::new(&instances)
        };
        let fences = Fences::detect(&instances);
        Self {
            directory: directory.to_owned(),
            runtime: ProcessRuntime::new(settings, fences).expect("runtime"),
            kept: None,
        }
    }

    pub fn spec(number: u128, commands: &[(&str, &str)]) -> InstanceSpec {
        InstanceSpec {
            // Unique on this machine: cgroups are named after instances.
            id: InstanceId::from_bits(number * 1_000_003 + u128::from(std::process::id())),
            application: ApplicationName::new("supervision-test").expect("name"),
            release: ReleaseNumber(1),
            incarnation: Incarnation(1),
            workload: Workload {
                directory: PathBuf::from("/"),
                processes: commands
                    .iter()
                    .map(|(name, command)| ProcessSpec {
                        name: (*name).to_owned(),
                        command: (*command).to_owned(),
                        runs_container: false,
                    })
                    .collect(),
            },
            port: free_port(),
            ports: Default::default(),
            environment: Properties::default(),
            limits: Limits::default(),
            stop_grace: GRACE,
            gate: Default::default(),
            runs_as: Default::default(),
        }
    }

    pub fn report(&self, id: &InstanceId) -> Option<InstanceReport> {
        self.runtime.observe().into_iter().find(|r| &r.id == id)
    }

    /// Waits until the report satisfies `is`.
    pub async fn until(
        &self,
        id: &InstanceId,
        what: &str,
        is: impl Fn(&InstanceReport) -> bool,
    ) -> InstanceReport {
        let mut changes = self.runtime.changes();
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(report) = self.report(id)
                && is(&report)
            {
                return report;
            }
            assert!(
                Instant::now() < end,
                "not in time: {what}; {:?}",
                self.report(id)
            );
            let _ = tokio::time::timeout(Duration::from_millis(50), changes.changed()).await;
        }
    }

    pub fn log(&self, id: &InstanceId, process: &str) -> String {
        let path = self
            .runtime
            .log_directory(id)
            .join(format!("{process}.log"));
        fs::read_to_string(path).unwrap_or_default()
    }

    pub async fn until_log(&self, id: &InstanceId, process: &str, text: &str) -> String {
        until(&format!("`{text}` in the log"), || {
            let log = self.log(id, process);
            log.contains(text).then_some(log)
        })
        .await
    }

    pub fn status(&self, id: &InstanceId) -> Status {
        let path = self.instance(id).join(files::STATE);
        serde_json::from_slice(&fs::read(path).expect("state")).expect("status")
    }

    pub fn instance(&self, id: &InstanceId) -> PathBuf {
        self.directory.join("instances").join(id.as_str())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Tests end their instances by killing what supervises them, too.
        let fences = Fences::detect(&self.directory.join("instances"));
        if let Some(trees) = fences.cgroups() {
            trees.end_ownerless(|_| false);
        }
        // The user of its own that this directory had; one with a process stays until that is gone.
        let end = Instant::now() + ENDING;
        while !fences.keep_users(&BTreeSet::new(), false) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
            if let Some(trees) = fences.cgroups() {
                trees.end_ownerless(|_| false);
            }
        }
    }
}

pub async fn until<T>(what: &str, mut is: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(found) = is() {
            return found;
        }
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn pid_of(report: &InstanceReport) -> i32 {
    report.processes[0].pid.expect("it runs") as i32
}

pub fn alive(pid: i32) -> bool {
    Identity::of(pid).is_some_and(|identity| identity.lives())
}

pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
}

pub fn number_after(text: &str, mark: &str) -> i32 {
    let rest = &text[text.rfind(mark).expect("mark") + mark.len()..];
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("number")
}
