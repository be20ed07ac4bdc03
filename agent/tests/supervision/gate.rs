//! What has to succeed in an instance before it counts as started.

use crate::world::{GRACE, World, alive, kill, pid_of, until};
use beanpole_agent::runtime::{InstanceSpec, Runtime};
use beanpole_agent::shim::spec::{LogBounds, files};
use beanpole_protocol::agent::{InstanceReport, ReadyOrder, Startup};
use std::fs;
use std::path::PathBuf;

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
