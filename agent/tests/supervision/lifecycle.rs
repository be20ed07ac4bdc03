//! How an instance starts, stops and starts again.

use crate::world::{GRACE, World, alive, pid_of, until};
use beanpole_agent::runtime::{InstanceSpec, ProcessSpec, Runtime, RuntimeError, Workload};
use beanpole_agent::shim::wire::{Identity, Stage};
use beanpole_protocol::Incarnation;
use beanpole_protocol::agent::InstancePhase;
use std::path::PathBuf;
use std::time::{Duration, Instant};

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
async fn what_cannot_start_says_so() {
    let world = World::new();
    let mut spec = World::spec(12, &[("web", "true")]);
    spec.workload = Workload {
        directory: PathBuf::from("/nonexistent"),
        processes: vec![ProcessSpec {
            name: "web".to_owned(),
            command: "true".to_owned(),
            runs_container: false,
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

    let spec = World::spec(13, &[("../web", "true")]);
    let refused = world.runtime.start(spec).await.expect_err("a path");
    assert_eq!(refused.failure().code, "workload-unsupported");
}
