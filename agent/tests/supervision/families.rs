//! What a process leaves behind when it ends: its group, its grandchildren, orphans.

use crate::world::{World, alive, kill, number_after, pid_of, until};
use beanpole_agent::runtime::Runtime;
use std::fs;
use std::time::Duration;

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
