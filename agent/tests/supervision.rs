//! Supervision with real processes. As root every test runs with the fences that this machine
//! allows; `without_root` then runs them all again as `nobody`.

use beanpole_agent::fences::Fences;
use beanpole_agent::runtime::process::{ProcessRuntime, ProcessSettings, ShimProgram};
use beanpole_agent::runtime::{InstanceSpec, ProcessSpec, Runtime, RuntimeError, Workload};
use beanpole_agent::shim::spec::{Backoff, LogBounds, files};
use beanpole_agent::shim::wire::{Identity, Stage, Status};
use beanpole_protocol::agent::{InstancePhase, InstanceReport, Limits, PortUse, Properties};
use beanpole_protocol::{ApplicationName, Incarnation, InstanceId, ReleaseNumber};
use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);
const GRACE: Duration = Duration::from_secs(5);

/// The shim's executable, built beside this test.
fn shim_program() -> PathBuf {
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
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("its address").port()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A directory with a runtime that works in it; everything in it ends with it.
struct World {
    directory: PathBuf,
    runtime: ProcessRuntime,
    kept: Option<tempfile::TempDir>,
}

impl World {
    fn new() -> Self {
        let kept = tempfile::tempdir().expect("directory");
        let mut world = Self::at(kept.path(), LogBounds::default());
        world.kept = Some(kept);
        world
    }

    fn at(directory: &Path, logs: LogBounds) -> Self {
        let instances = directory.join("instances");
        let settings = ProcessSettings {
            shim: ShimProgram {
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

    fn spec(number: u128, commands: &[(&str, &str)]) -> InstanceSpec {
        InstanceSpec {
            // Unique on this machine: cgroups are named after instances.
            id: InstanceId::from_bits(number * 1_000_003 + u128::from(std::process::id())),
            application: ApplicationName::new("supervision-test").expect("name"),
            release: ReleaseNumber(1),
            incarnation: Incarnation(1),
            workload: Workload::Processes {
                directory: PathBuf::from("/"),
                processes: commands
                    .iter()
                    .map(|(name, command)| ProcessSpec {
                        name: (*name).to_owned(),
                        command: (*command).to_owned(),
                    })
                    .collect(),
            },
            port: free_port(),
            environment: Properties::default(),
            limits: Limits::default(),
            stop_grace: GRACE,
        }
    }

    fn report(&self, id: &InstanceId) -> Option<InstanceReport> {
        self.runtime.observe().into_iter().find(|r| &r.id == id)
    }

    /// Waits until the report satisfies `is`.
    async fn until(
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

    fn log(&self, id: &InstanceId, process: &str) -> String {
        let path = self
            .runtime
            .log_directory(id)
            .join(format!("{process}.log"));
        fs::read_to_string(path).unwrap_or_default()
    }

    async fn until_log(&self, id: &InstanceId, process: &str, text: &str) -> String {
        until(&format!("`{text}` in the log"), || {
            let log = self.log(id, process);
            log.contains(text).then_some(log)
        })
        .await
    }

    fn status(&self, id: &InstanceId) -> Status {
        let path = self.instance(id).join(files::STATE);
        serde_json::from_slice(&fs::read(path).expect("state")).expect("status")
    }

    fn instance(&self, id: &InstanceId) -> PathBuf {
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
        // The user of its own that this directory had; one with a process stays.
        fences.keep_users(&BTreeSet::new());
    }
}

async fn until<T>(what: &str, mut is: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(found) = is() {
            return found;
        }
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn pid_of(report: &InstanceReport) -> i32 {
    report.processes[0].pid.expect("it runs") as i32
}

fn alive(pid: i32) -> bool {
    Identity::of(pid).is_some_and(|identity| identity.lives())
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
}

#[tokio::test]
async fn starts_runs_and_ends_without_a_trace() {
    let world = World::new();
    let spec = World::spec(1, &[("web", "sleep 1000"), ("worker", "sleep 1000")]);
    world.runtime.start(spec.clone()).await.expect("started");
    let report = world.report(&spec.id).expect("report");
    assert_eq!(report.phase, InstancePhase::Running);
    assert_eq!(report.processes.len(), 2);
    let pid = pid_of(&report);
    world.runtime.start(spec.clone()).await.expect("again");
    assert_eq!(pid_of(&world.report(&spec.id).expect("report")), pid);
    let next = InstanceSpec {
        incarnation: Incarnation(2),
        ..spec.clone()
    };
    let refused = world.runtime.start(next.clone()).await;
    assert!(matches!(refused, Err(RuntimeError::StillRunning { .. })));

    let shim = world.status(&spec.id).shim;
    world.runtime.stop(&spec.id, GRACE).await.expect("stopped");
    let report = world.report(&spec.id).expect("report");
    assert_eq!(report.phase, InstancePhase::Stopped);
    until("no trace", || {
        (Identity::of(pid).is_none() && Identity::of(shim.pid).is_none()).then_some(())
    })
    .await;
    world.runtime.start(next).await.expect("the next one");
    let report = world.report(&spec.id).expect("report");
    assert_eq!(report.incarnation, Incarnation(2));
    assert_eq!(report.processes[0].restarts, 0);
    world.runtime.remove(&spec.id).await.expect("removed");
    assert!(!world.instance(&spec.id).exists());
    assert!(world.report(&spec.id).is_none());
}

#[tokio::test]
async fn an_app_that_listens_late_is_seen_on_its_port() {
    let world = World::new();
    let listens = "import os, socket, time; s = socket.create_server(('', int(os.environ['PORT']))); time.sleep(1000)";
    let command = format!("sleep 0.4; exec python3 -c \"{listens}\"");
    let spec = World::spec(41, &[("web", &command), ("worker", "sleep 1000")]);
    world.runtime.start(spec.clone()).await.expect("started");
    let report = world.report(&spec.id).expect("report");
    assert_eq!(report.port, PortUse::Free, "not yet");
    let report = world
        .until(&spec.id, "it listens", |report| report.port == PortUse::Own)
        .await;
    assert_eq!(report.phase, InstancePhase::Running);
    // The next process has to show itself anew.
    kill(pid_of(&report));
    world
        .until(&spec.id, "it is gone", |report| {
            report.port == PortUse::Free
        })
        .await;
    world
        .until(&spec.id, "it listens again", |report| {
            report.port == PortUse::Own && report.processes[0].restarts == 1
        })
        .await;
    world.runtime.remove(&spec.id).await.expect("removed");
}

#[tokio::test]
async fn a_stranger_on_the_port_is_named_and_not_taken_for_the_app() {
    let world = World::new();
    let spec = World::spec(42, &[("web", "sleep 1000")]);
    world.runtime.start(spec.clone()).await.expect("started");
    let stranger = TcpListener::bind(("127.0.0.1", spec.port)).expect("the port is free");
    let report = world
        .until(&spec.id, "the stranger is seen", |report| {
            matches!(&report.phase, InstancePhase::Failed(why) if why.code == "port-taken")
        })
        .await;
    assert_eq!(report.port, PortUse::Taken);
    let InstancePhase::Failed(why) = report.phase else {
        unreachable!("it failed")
    };
    let start = format!("Port {} is taken by", spec.port);
    assert!(why.message.starts_with(&start), "{}", why.message);

    world.runtime.stop(&spec.id, GRACE).await.expect("stopped");
    let refused = world.runtime.start(spec.clone()).await;
    assert!(matches!(refused, Err(RuntimeError::PortTaken(_))));
    drop(stranger);
    world.runtime.start(spec.clone()).await.expect("started");
    let report = world.report(&spec.id).expect("report");
    assert_eq!(report.phase, InstancePhase::Running);
    world.runtime.remove(&spec.id).await.expect("removed");
}

#[tokio::test]
async fn only_a_web_process_needs_the_port() {
    let world = World::new();
    let spec = World::spec(43, &[("worker", "sleep 1000")]);
    let _stranger = TcpListener::bind(("127.0.0.1", spec.port)).expect("the port is free");
    world.runtime.start(spec.clone()).await.expect("started");
    let report = world.report(&spec.id).expect("report");
    assert_eq!(report.port, PortUse::Unknown);
    assert_eq!(report.phase, InstancePhase::Running);
    world.runtime.remove(&spec.id).await.expect("removed");
}

#[tokio::test]
async fn an_ended_process_is_started_again_with_pauses_and_counted() {
    let world = World::new();
    let spec = World::spec(2, &[("web", "echo up; exit 3"), ("worker", "sleep 1000")]);
    world.runtime.start(spec.clone()).await.expect("started");
    let report = world
        .until(&spec.id, "three restarts", |report| {
            report.processes[0].restarts >= 3
        })
        .await;
    let exit = report.processes[0].last_exit.clone().expect("exit");
    assert_eq!((exit.code, exit.signal, exit.oom), (Some(3), None, false));
    assert_eq!(report.processes[1].restarts, 0, "each on its own");
    world
        .until(&spec.id, "restarting", |report| {
            report.phase == InstancePhase::Restarting && report.log.iter().any(|line| line == "up")
        })
        .await;
    let log = world
        .until_log(
            &spec.id,
            "web",
            "exited with code 3; starts again in 0.08 s",
        )
        .await;
    assert!(log.contains(" stdout up\n"), "{log}");
    world.runtime.remove(&spec.id).await.expect("removed");
}

#[tokio::test]
async fn a_signal_is_recorded_and_its_group_goes_along() {
    let world = World::new();
    let spec = World::spec(3, &[("web", "sleep 1000 & echo child $! ; wait")]);
    world.runtime.start(spec.clone()).await.expect("started");
    let log = world.until_log(&spec.id, "web", "child ").await;
    let child = number_after(&log, "child ");
    kill(pid_of(&world.report(&spec.id).expect("report")));
    let report = world
        .until(&spec.id, "restarted", |report| {
            report.processes[0].restarts == 1
        })
        .await;
    let exit = report.processes[0].last_exit.clone().expect("exit");
    assert_eq!((exit.code, exit.signal, exit.oom), (None, Some(9), false));
    until("its child ended", || (!alive(child)).then_some(())).await;
    world.runtime.remove(&spec.id).await.expect("removed");
}

fn number_after(text: &str, mark: &str) -> i32 {
    let rest = &text[text.rfind(mark).expect("mark") + mark.len()..];
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("number")
}

#[tokio::test]
async fn sigterm_first_and_sigkill_after_the_grace() {
    let world = World::new();
    let polite = World::spec(
        4,
        &[(
            "web",
            "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done",
        )],
    );
    let stubborn = World::spec(
        5,
        &[("web", "trap '' TERM; echo up; while :; do sleep 0.05; done")],
    );
    for spec in [&polite, &stubborn] {
        world.runtime.start(spec.clone()).await.expect("started");
        world.until_log(&spec.id, "web", "up").await;
    }
    let before = Instant::now();
    world
        .runtime
        .stop(&polite.id, GRACE)
        .await
        .expect("stopped");
    assert!(before.elapsed() < GRACE, "it need not wait");
    assert!(world.log(&polite.id, "web").contains(" stdout bye\n"));

    let pid = pid_of(&world.report(&stubborn.id).expect("report"));
    let (before, grace) = (Instant::now(), Duration::from_millis(400));
    world
        .runtime
        .stop(&stubborn.id, grace)
        .await
        .expect("stopped");
    assert!(before.elapsed() >= grace, "it has its grace");
    assert!(!alive(pid));
    assert_eq!(world.status(&stubborn.id).stage, Stage::Stopped);
    for spec in [&polite, &stubborn] {
        world.runtime.remove(&spec.id).await.expect("removed");
    }
}

#[tokio::test]
async fn daemonised_grandchildren_end_as_well() {
    let world = World::new();
    let command =
        "setsid sh -c 'trap \"\" TERM; echo orphan $$; while :; do sleep 0.05; done' & sleep 1000";
    let spec = World::spec(6, &[("web", command)]);
    world.runtime.start(spec.clone()).await.expect("started");
    let log = world.until_log(&spec.id, "web", "orphan ").await;
    let orphan = number_after(&log, "orphan ");
    assert!(alive(orphan));
    let grace = Duration::from_millis(200);
    world.runtime.stop(&spec.id, grace).await.expect("stopped");
    assert!(!alive(orphan));
    world.runtime.remove(&spec.id).await.expect("removed");
}

#[tokio::test]
async fn logs_are_bounded_and_a_line_without_end_takes_no_memory() {
    let kept = tempfile::tempdir().expect("directory");
    let logs = LogBounds {
        file_bytes: 64 * 1024,
        files: 3,
    };
    let world = World::at(kept.path(), logs);
    let flood =
        "head -c 8000000 /dev/zero | tr '\\0' x; yes | head -n 20000; echo; echo done; sleep 1000";
    let spec = World::spec(7, &[("web", flood)]);
    world.runtime.start(spec.clone()).await.expect("started");
    world.until_log(&spec.id, "web", "done").await;
    let sizes: Vec<u64> = fs::read_dir(world.runtime.log_directory(&spec.id))
        .expect("logs")
        .map(|entry| entry.expect("entry").metadata().expect("size").len())
        .collect();
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    // A batch is written whole: at most one chunk over, with its times.
    assert!(sizes.iter().all(|size| *size < 640 * 1024), "{sizes:?}");
    let shim = world.status(&spec.id).shim.pid;
    let peak = fs::read_to_string(format!("/proc/{shim}/status")).expect("status");
    let peak = number_after(&peak.replace(['\t', ' '], ""), "RssAnon:");
    assert!(peak < 4096, "{peak} KiB of its own");
    world.runtime.remove(&spec.id).await.expect("removed");
}

#[tokio::test]
async fn a_killed_shim_is_replaced_and_leaves_no_orphan() {
    let world = World::new();
    let command = "setsid sh -c 'echo orphan $$; exec sleep 1000' & sleep 1000";
    let spec = World::spec(8, &[("web", command)]);
    world.runtime.start(spec.clone()).await.expect("started");
    let log = world.until_log(&spec.id, "web", "orphan ").await;
    let orphan = number_after(&log, "orphan ");
    let pid = pid_of(&world.report(&spec.id).expect("report"));
    let shim = world.status(&spec.id).shim.pid;
    let before = Instant::now();
    kill(shim);
    let report = world
        .until(&spec.id, "another process", |report| {
            report.phase == InstancePhase::Running && pid_of(report) != pid
        })
        .await;
    assert!(before.elapsed() < Duration::from_secs(5));
    assert!(!alive(pid) && !alive(orphan), "nothing keeps the port");
    assert_eq!(report.processes[0].restarts, 1);
    world.runtime.remove(&spec.id).await.expect("removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_and_a_start_in_a_row_start_it_once() {
    let world = World::new();
    let mut spec = World::spec(77, &[("web", "echo begun; exec sleep 600")]);
    let rounds = 12;
    for round in 1..=rounds {
        spec.incarnation = Incarnation(round);
        world.runtime.start(spec.clone()).await.expect("start");
        let wanted = usize::try_from(round).expect("a small number");
        until("its first line", || {
            (world.log(&spec.id, "web").matches("begun").count() >= wanted).then_some(())
        })
        .await;
        world.runtime.stop(&spec.id, GRACE).await.expect("stop");
    }
    let begun = world.log(&spec.id, "web").matches("begun").count();
    assert_eq!(begun as u64, rounds, "each start ran once");
    world.runtime.remove(&spec.id).await.expect("remove");
}

#[tokio::test]
async fn orphans_are_reaped() {
    let world = World::new();
    let spec = World::spec(
        18,
        &[(
            "web",
            "for i in 1 2 3; do (sleep 0.01 &); done; echo up; sleep 1000",
        )],
    );
    world.runtime.start(spec.clone()).await.expect("started");
    world.until_log(&spec.id, "web", "up").await;
    let shim = world.status(&spec.id).shim.pid;
    let children = format!("/proc/{shim}/task/{shim}/children");
    until("one child is left", || {
        let text = fs::read_to_string(&children).expect("children");
        (text.split_whitespace().count() == 1).then_some(())
    })
    .await;
    world.runtime.remove(&spec.id).await.expect("removed");
}

/// Half a mebibyte of disk, unmounted whatever happens.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        let options = ["-t", "tmpfs", "-o", "size=512k", "tmpfs"];
        let status = Command::new("mount").args(options).arg(at).status();
        assert!(status.expect("mount").success());
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Needs root, for a small disk.
#[tokio::test]
async fn a_full_disk_stops_the_log_but_not_the_app() {
    if !is_root() {
        return;
    }
    let kept = tempfile::tempdir().expect("directory");
    let disk = kept.path().join("disk");
    fs::create_dir(&disk).expect("directory");
    let _disk = SmallDisk::mount(&disk);
    let world = World::at(&disk, LogBounds::default());
    let beat = kept.path().join("beat");
    fs::write(&beat, "").expect("beat");
    fs::set_permissions(&beat, fs::Permissions::from_mode(0o666)).expect("mode");
    let command = format!(
        "while :; do yes | head -n 5000; echo x >> {}; done",
        beat.display()
    );
    let spec = World::spec(19, &[("web", &command)]);
    world.runtime.start(spec.clone()).await.expect("started");
    let beats = || fs::metadata(&beat).map_or(0, |metadata| metadata.len());
    until("the disk is full", || (beats() > 100).then_some(())).await;
    let report = world.report(&spec.id).expect("report");
    assert_eq!(
        (report.phase, report.processes[0].restarts),
        (InstancePhase::Running, 0)
    );
    let path = world.runtime.log_directory(&spec.id).join("web.log");
    fs::File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(0))
        .expect("room again");
    world
        .until_log(&spec.id, "web", "lines lost: the log could not be written")
        .await;
    world.runtime.stop(&spec.id, GRACE).await.expect("stopped");
    assert_eq!(
        world.report(&spec.id).expect("report").phase,
        InstancePhase::Stopped
    );
    world.runtime.remove(&spec.id).await.expect("removed");
}

/// Not a test: the agent that `instances_outlive_a_killed_agent` kills.
#[tokio::test]
#[ignore = "run by another test"]
async fn helper_agent() {
    let directory = std::env::var_os("BEANPOLE_TEST_DIRECTORY").expect("directory");
    let world = World::at(Path::new(&directory), LogBounds::default());
    let spec = World::spec(9, &[("web", "while :; do echo tick; sleep 0.05; done")]);
    world.runtime.start(spec.clone()).await.expect("started");
    fs::write(world.directory.join("ready"), spec.id.as_str()).expect("ready");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn instances_outlive_a_killed_agent() {
    let kept = tempfile::tempdir().expect("directory");
    let mut agent = Command::new(std::env::current_exe().expect("path of this test"))
        .args(["--exact", "helper_agent", "--ignored"])
        .env("BEANPOLE_TEST_DIRECTORY", kept.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("agent");
    let ready = kept.path().join("ready");
    let id = until("the agent started it", || {
        InstanceId::new(fs::read_to_string(&ready).ok()?).ok()
    })
    .await;
    agent.kill().expect("kill -9");
    agent.wait().expect("reaped");

    let world = World::at(kept.path(), LogBounds::default());
    let pid = world.status(&id).processes[0].running.expect("runs").pid;
    let length = world.log(&id, "web").len();
    until("it goes on", || {
        (world.log(&id, "web").len() > length + 100).then_some(())
    })
    .await;
    assert_eq!(
        world.runtime.adopt().await.expect("adopted"),
        std::slice::from_ref(&id)
    );
    let report = world.report(&id).expect("report");
    assert_eq!(report.phase, InstancePhase::Running);
    assert_eq!((pid_of(&report), report.processes[0].restarts), (pid, 0));
    world.runtime.stop(&id, GRACE).await.expect("stopped");
    assert!(!alive(pid));
    world.runtime.remove(&id).await.expect("removed");
}

#[tokio::test]
async fn a_reused_process_id_is_not_killed() {
    let kept = tempfile::tempdir().expect("directory");
    let first = World::at(kept.path(), LogBounds::default());
    let spec = World::spec(10, &[("web", "sleep 1000")]);
    first.runtime.start(spec.clone()).await.expect("started");
    first.runtime.stop(&spec.id, GRACE).await.expect("stopped");
    let mut innocent = Command::new("sleep").arg("1000").spawn().expect("sleep");
    let identity = Identity::of(innocent.id() as i32).expect("identity");
    let mut status = first.status(&spec.id);
    let stale = Identity {
        start: identity.start - 1,
        ..identity
    };
    status.stage = Stage::Supervising;
    status.shim = stale;
    status.processes[0].running = Some(stale);
    let text = serde_json::to_vec(&status).expect("text");
    fs::write(first.instance(&spec.id).join(files::STATE), text).expect("state");

    let world = World::at(kept.path(), LogBounds::default());
    world.runtime.adopt().await.expect("adopted");
    world
        .until(&spec.id, "started anew", |report| {
            report.phase == InstancePhase::Running && report.processes[0].pid != Some(innocent.id())
        })
        .await;
    assert!(identity.lives(), "the innocent process was killed");
    innocent.kill().expect("kill");
    innocent.wait().expect("reaped");
    world.runtime.remove(&spec.id).await.expect("removed");
}

#[tokio::test]
async fn secrets_are_in_no_argument_and_in_no_open_file() {
    let world = World::new();
    let mut spec = World::spec(
        11,
        &[(
            "web",
            "echo got $SECRET $PORT $HOME; env > env.txt; sleep 1000",
        )],
    );
    let secret = format!("hunter2-{}", std::process::id());
    spec.environment
        .0
        .insert("SECRET".to_owned(), secret.clone());
    world.runtime.start(spec.clone()).await.expect("started");
    let log = world.until_log(&spec.id, "web", "got ").await;
    let expected = format!("got {secret} {} ", spec.port);
    assert!(log.contains(&expected), "{log}");
    for entry in fs::read_dir("/proc").expect("proc").flatten() {
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&arguments).contains(&secret));
    }
    let mode = |name: &str| {
        let path = world.instance(&spec.id).join(name);
        fs::metadata(path).expect("file").permissions().mode() & 0o777
    };
    assert_eq!(mode(files::SPEC), 0o600);
    assert_eq!(mode(files::STATE), 0o600);
    assert_eq!(mode(files::SOCKET), 0o600);
    let state = fs::read_to_string(world.instance(&spec.id).join(files::STATE)).expect("state");
    assert!(!state.contains(&secret));
    assert!(!format!("{spec:?}").contains(&secret));
    world.runtime.remove(&spec.id).await.expect("removed");
}

#[tokio::test]
async fn what_cannot_start_says_so() {
    let world = World::new();
    let mut spec = World::spec(12, &[("web", "true")]);
    spec.workload = Workload::Processes {
        directory: PathBuf::from("/nonexistent"),
        processes: vec![ProcessSpec {
            name: "web".to_owned(),
            command: "true".to_owned(),
        }],
    };
    world
        .runtime
        .start(spec.clone())
        .await
        .expect("its shim starts");
    world
        .until_log(&spec.id, "web", "cannot be started: No such file")
        .await;
    let report = world.report(&spec.id).expect("report");
    assert_eq!(report.phase, InstancePhase::Restarting);
    world.runtime.remove(&spec.id).await.expect("removed");

    let mut spec = World::spec(13, &[("../web", "true")]);
    let refused = world.runtime.start(spec.clone()).await.expect_err("a path");
    assert_eq!(refused.failure().code, "workload-unsupported");
    spec.workload = Workload::Containers {
        image: "app".to_owned(),
    };
    let refused = world.runtime.start(spec).await.expect_err("no containers");
    assert_eq!(refused.failure().code, "workload-unsupported");
}

#[tokio::test]
async fn memory_limits_hold_and_an_oom_kill_is_told_apart() {
    let world = World::new();
    if Fences::detect(&world.directory).cgroups().is_none() {
        return;
    }
    let mut spec = World::spec(
        14,
        &[("web", "exec tail /dev/zero"), ("worker", "sleep 1000")],
    );
    spec.limits.memory_bytes = Some(24 * 1024 * 1024);
    world.runtime.start(spec.clone()).await.expect("started");
    let report = world
        .until(&spec.id, "killed for memory", |report| {
            report.processes[0].last_exit.is_some()
        })
        .await;
    let exit = report.processes[0].last_exit.clone().expect("exit");
    assert_eq!((exit.signal, exit.oom), (Some(9), true));
    world
        .until_log(&spec.id, "web", "it used more memory than it may")
        .await;
    world.runtime.remove(&spec.id).await.expect("removed");
}

#[tokio::test]
async fn a_child_that_is_killed_for_memory_is_reported_while_the_app_goes_on() {
    let world = World::new();
    if Fences::detect(&world.directory).cgroups().is_none() {
        return;
    }
    let mut spec = World::spec(31, &[("web", "tail /dev/zero; echo it went; sleep 1000")]);
    spec.limits.memory_bytes = Some(24 * 1024 * 1024);
    world.runtime.start(spec.clone()).await.expect("started");
    world
        .until_log(
            &spec.id,
            "web",
            "beanpole the kernel killed 1 of this instance's processes",
        )
        .await;
    let report = world.report(&spec.id).expect("a report");
    assert_eq!(report.phase, InstancePhase::Running);
    assert_eq!(report.processes[0].restarts, 0);
    let kills = world
        .until(&spec.id, "the kill in the report", |report| {
            report.memory_kills.count == 1
        })
        .await
        .memory_kills;
    assert_eq!(kills.limit_bytes, Some(24 * 1024 * 1024));
    assert!(kills.last_at.is_some());
    if fs::File::open("/dev/kmsg").is_ok() {
        assert_eq!(kills.last_name.as_deref(), Some("tail"));
    }
    world.runtime.remove(&spec.id).await.expect("removed");
}

#[tokio::test]
async fn open_files_and_processes_are_limited() {
    let world = World::new();
    let command = "echo files $(ulimit -n) core $(ulimit -c); for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; wait";
    let mut spec = World::spec(15, &[("web", command)]);
    spec.limits.open_files = Some(77);
    spec.limits.pids = Some(5);
    spec.limits.cpu_millis = Some(500);
    world.runtime.start(spec.clone()).await.expect("started");
    world.until_log(&spec.id, "web", "files 77 core 0").await;
    if Fences::detect(&world.directory).cgroups().is_some() {
        world.until_log(&spec.id, "web", "fork").await;
    }
    world.runtime.remove(&spec.id).await.expect("removed");
}

/// The fences that only root can put up.
#[tokio::test]
async fn root_fences_are_in_force() {
    if !is_root() {
        return;
    }
    let base =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fences-{}", std::process::id()));
    fs::create_dir_all(&base).expect("directory");
    let world = World::at(&base, LogBounds::default());
    let fences = Fences::detect(&base.join("instances"));
    for fence in fences.report() {
        assert!(fence.active, "{fence:?}");
    }
    let neighbour = World::spec(16, &[("web", "sleep 1000")]);
    world
        .runtime
        .start(neighbour.clone())
        .await
        .expect("started");
    let neighbour_home = world.instance(&neighbour.id).join("home");
    let marker = format!("beanpole-{}", std::process::id());
    let command = format!(
        "id -u; id -G; grep -E 'Cap(Bnd|Eff|Prm)|NoNewPrivs' /proc/self/status; umask;
        for place in /etc /usr {own} {own}/log {base}; do touch $place/{marker} && echo wrote $place; done;
        touch /tmp/{marker} $HOME/{marker} && echo wrote tmp and home;
        cat /proc/self/cgroup; cat {own}/spec.json; ls /root; echo end; sleep 1000",
        own = world.instance(&World::spec(17, &[]).id).display(),
        base = base.display(),
    );
    let spec = World::spec(17, &[("web", &command)]);
    world.runtime.start(spec.clone()).await.expect("started");
    let log = world.until_log(&spec.id, "web", "stdout end").await;
    let user = fences.user(&spec.application).expect("user").expect("one");
    assert!(log.contains(&format!("stdout {}\n", user.uid)), "{log}");
    assert!(log.contains(&format!("stdout {}\n", user.gid)), "{log}");
    for zero in ["CapBnd", "CapEff", "CapPrm"] {
        assert!(log.contains(&format!("{zero}:\t0000000000000000")), "{log}");
    }
    assert!(log.contains("NoNewPrivs:\t1"), "{log}");
    assert!(log.contains("stdout 0027\n"), "{log}");
    assert!(!log.contains("wrote /"), "{log}");
    assert!(log.contains("wrote tmp and home"), "{log}");
    assert!(log.contains(&format!("beanpole/{}", spec.id)), "{log}");
    assert!(
        !log.contains("supervision-test"),
        "it read its own spec: {log}"
    );
    assert!(
        !Path::new("/tmp").join(&marker).exists(),
        "its /tmp is ours"
    );
    assert!(neighbour_home.exists());
    for id in [&spec.id, &neighbour.id] {
        world.runtime.remove(id).await.expect("removed");
    }
    fs::remove_dir_all(&base).expect("removed");
}

/// Everything again as `nobody`, with copies that it can reach.
#[test]
fn without_root() {
    if !is_root() {
        return;
    }
    let place = tempfile::tempdir().expect("directory");
    let open = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
    };
    open(place.path(), 0o777);
    let (test, shim) = (place.path().join("test"), place.path().join("shim"));
    fs::copy(std::env::current_exe().expect("this test"), &test).expect("copied");
    fs::copy(shim_program(), &shim).expect("copied");
    open(&test, 0o755);
    open(&shim, 0o755);
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&test)
        .args(["--test-threads=2"])
        .env("BEANPOLE_TEST_SHIM", &shim)
        .env("TMPDIR", place.path())
        .output()
        .expect("setpriv (util-linux)");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
