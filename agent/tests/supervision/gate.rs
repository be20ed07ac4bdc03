//! What has to succeed in an instance before it counts as started.

use crate::world::{GRACE, World, alive, kill, pid_of, until};
use beanpole_agent::runtime::{InstanceSpec, ProcessSpec, Runtime, Workload};
use beanpole_agent::shim::spec::{LogBounds, files};
use beanpole_protocol::agent::{Failure, InstanceReport, ReadyOrder, Startup};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn with_command(number: u128, command: &str, timeout_ms: u64) -> InstanceSpec {
    let mut spec = World::spec(number, &[("web", "sleep 1000")]);
    spec.gate.ready = Some(ReadyOrder {
        command: command.to_owned(),
        timeout_ms,
    });
    spec
}

/// How the readiness command ended the last time, as long as it has not succeeded.
fn failed(report: &InstanceReport) -> Option<&str> {
    match &report.startup {
        Some(Startup::Ready { last, .. }) => last.as_deref(),
        _ => None,
    }
}

fn home(world: &World, spec: &InstanceSpec) -> PathBuf {
    world.instance(&spec.id).join(files::HOME)
}

#[tokio::test]
async fn a_readiness_command_is_run_until_it_succeeds_whatever_becomes_of_the_agent() {
    let kept = tempfile::tempdir().expect("directory");
    let first = World::at(kept.path(), LogBounds::default());
    let spec = with_command(
        81,
        "test -e $HOME/table && echo port $PORT || { echo no such table; exit 3; }",
        5_000,
    );
    first.runtime.start(spec.clone()).await.expect("started");
    let said = "exited with 3 (no such table)";
    let report = first
        .until(&spec.id, "a try", |report| failed(report) == Some(said))
        .await;
    let log: Vec<&str> = report.log.iter().map(String::as_str).collect();
    assert!(!log.contains(&"no such table"), "the app's own: {log:?}");
    // Another agent takes over.
    let world = World::at(kept.path(), LogBounds::default());
    world.runtime.adopt().await.expect("adopted");
    fs::write(home(&world, &spec).join("table"), "").expect("made");
    let report = world
        .until(&spec.id, "it is ready", |report| {
            report.startup == Some(Startup::Passed)
        })
        .await;
    world
        .until_log(
            &spec.id,
            files::READY_LOG,
            &format!("stdout port {}\n", spec.port),
        )
        .await;
    // What is started again has to prove it again.
    fs::remove_file(home(&world, &spec).join("table")).expect("removed");
    kill(pid_of(&report));
    world
        .until(&spec.id, "it is not ready any more", |report| {
            failed(report) == Some(said)
        })
        .await;
    world.runtime.remove(&spec.id).await.expect("removed");
}

#[tokio::test]
async fn a_readiness_command_has_its_time_and_ends_with_its_instance() {
    let world = World::new();
    let slow = with_command(82, "sleep 1000", 200);
    world.runtime.start(slow.clone()).await.expect("started");
    world
        .until(&slow.id, "its time is up", |report| {
            failed(report) == Some("took longer than 0.2 s and was ended")
        })
        .await;
    let endless = with_command(83, "echo $$ > $HOME/pid; sleep 1000", 1_000_000);
    world.runtime.start(endless.clone()).await.expect("started");
    let file = home(&world, &endless).join("pid");
    let pid: i32 = until("it runs", || {
        fs::read_to_string(&file).ok()?.trim().parse().ok()
    })
    .await;
    assert!(alive(pid));
    world.runtime.stop(&endless.id, GRACE).await.expect("ended");
    assert!(!alive(pid));
    for spec in [slow, endless] {
        world.runtime.remove(&spec.id).await.expect("removed");
    }
}

/// Hooks in a directory of their own, which is where the processes start, too.
fn with_hooks(number: u128, process: &str, hooks: &[(&str, &str)]) -> (InstanceSpec, TempDir) {
    let tree = tempfile::tempdir().expect("directory");
    let open = |path: &Path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("mode");
    };
    open(tree.path());
    for (name, script) in hooks {
        let path = tree.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("hook");
        open(&path);
    }
    let mut spec = World::spec(number, &[(process, "sleep 1000")]);
    spec.workload = Workload {
        directory: tree.path().to_owned(),
        processes: vec![ProcessSpec {
            name: process.to_owned(),
            command: "sleep 1000".to_owned(),
            runs_container: false,
        }],
    };
    spec.gate.hooks = hooks.iter().map(|(name, _)| PathBuf::from(name)).collect();
    spec.gate.hook_timeout_ms = 60_000;
    (spec, tree)
}

fn hook_failure(report: &InstanceReport) -> Option<&Failure> {
    match &report.startup {
        Some(Startup::Failed(failure)) => Some(failure),
        _ => None,
    }
}

#[tokio::test]
async fn hooks_run_in_their_order_after_the_readiness_command_and_once_in_an_incarnation() {
    let world = World::new();
    let count = "echo $0 $PORT >> $HOME/ran";
    let (mut spec, _tree) = with_hooks(84, "worker", &[("1_a", count), ("2_b", count)]);
    spec.gate.ready = Some(ReadyOrder {
        command: "test -e $HOME/go".to_owned(),
        timeout_ms: 5_000,
    });
    world.runtime.start(spec.clone()).await.expect("started");
    world
        .until(&spec.id, "a try", |report| failed(report).is_some())
        .await;
    let ran = home(&world, &spec).join("ran");
    assert!(!ran.exists(), "it is not ready yet");
    fs::write(home(&world, &spec).join("go"), "").expect("made");
    let passed = |report: &InstanceReport| report.startup == Some(Startup::Passed);
    world.until(&spec.id, "all hooks ran", passed).await;
    let names = || -> Vec<String> {
        let text = fs::read_to_string(&ran).expect("they ran");
        let port = format!(" {}", spec.port);
        let names = text.lines().map(|line| {
            let name = line.strip_suffix(&port).expect("its port");
            name.rsplit('/').next().unwrap_or_default().to_owned()
        });
        names.collect()
    };
    assert_eq!(names(), ["1_a", "2_b"]);
    // Its supervisor is killed, and another one takes its place in the same incarnation.
    let shim = world.status(&spec.id).shim;
    kill(shim.pid);
    until("another supervisor", || {
        let now = world.status(&spec.id);
        (now.shim != shim && now.gate.ready.is_some_and(|ready| ready.passed)).then_some(())
    })
    .await;
    world.until(&spec.id, "it is ready again", passed).await;
    assert_eq!(names(), ["1_a", "2_b"]);
    world.runtime.remove(&spec.id).await.expect("removed");
}

#[tokio::test]
async fn a_hook_that_fails_fails_its_instance_with_its_last_lines_and_the_next_does_not_run() {
    let world = World::new();
    let hooks = [("1", "echo no cache; exit 3"), ("2", "touch $HOME/second")];
    let (spec, _tree) = with_hooks(85, "worker", &hooks);
    world.runtime.start(spec.clone()).await.expect("started");
    let report = world
        .until(&spec.id, "it failed", |report| {
            hook_failure(report).is_some()
        })
        .await;
    let failure = hook_failure(&report).expect("a failure");
    assert_eq!(failure.code, "hook-failed");
    assert_eq!(failure.message, "The hook `1` exited with 3.");
    assert_eq!(failure.log, ["no cache"]);
    assert!(!home(&world, &spec).join("second").exists());
    world.runtime.remove(&spec.id).await.expect("removed");
}

#[tokio::test]
async fn a_hook_that_was_interrupted_is_not_run_again_and_says_so() {
    let world = World::new();
    let (spec, _tree) = with_hooks(86, "worker", &[("1", "echo x >> $HOME/ran; sleep 1000")]);
    world.runtime.start(spec.clone()).await.expect("started");
    let ran = home(&world, &spec).join("ran");
    until("it runs", || ran.exists().then_some(())).await;
    kill(world.status(&spec.id).shim.pid);
    let report = world
        .until(&spec.id, "it failed", |report| {
            hook_failure(report).is_some()
        })
        .await;
    let failure = hook_failure(&report).expect("a failure");
    assert_eq!(failure.code, "hook-interrupted");
    assert_eq!(fs::read_to_string(&ran).expect("it ran"), "x\n");
    world.runtime.remove(&spec.id).await.expect("removed");
}

#[tokio::test]
async fn hooks_of_a_web_process_wait_until_it_listens() {
    let world = World::new();
    let (mut spec, _tree) = with_hooks(87, "web", &[("1", "touch $HOME/ran")]);
    let listens = "import os, socket, time; s = socket.create_server(('', int(os.environ['PORT']))); time.sleep(1000)";
    let command =
        format!("until test -e $HOME/go; do sleep 0.05; done; exec python3 -c \"{listens}\"");
    spec.workload.processes[0].command = command;
    world.runtime.start(spec.clone()).await.expect("started");
    world
        .until(&spec.id, "its hooks wait", |report| {
            report.startup == Some(Startup::Listen)
        })
        .await;
    assert!(!home(&world, &spec).join("ran").exists());
    fs::write(home(&world, &spec).join("go"), "").expect("made");
    world
        .until(&spec.id, "its hook ran", |report| {
            report.startup == Some(Startup::Passed)
        })
        .await;
    assert!(home(&world, &spec).join("ran").exists());
    world.runtime.remove(&spec.id).await.expect("removed");
}
