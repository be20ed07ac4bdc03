//! SIGKILL of a shim or an agent, and ids of processes that others have by then.

use crate::world::{GRACE, World, alive, kill, number_after, pid_of, until};
use beanpole_agent::runtime::Runtime;
use beanpole_agent::shim::spec::{LogBounds, files};
use beanpole_agent::shim::wire::{Identity, Stage};
use beanpole_protocol::InstanceId;
use beanpole_protocol::agent::InstancePhase;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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
        .args(["--exact", "kills::helper_agent", "--ignored"])
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
