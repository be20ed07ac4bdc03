//! What the agent was started with beyond the standard streams stays with the agent.

use crate::world::{LIMIT, SLEEPER, World, bundle, instance, pid, release, runs};
use beanpole_protocol::agent::ReleasePhase;
use std::fs::File;
use std::process::Command;
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_lock_that_the_agent_inherited_reaches_no_app_and_no_build() {
    let mut world = World::new();
    world.kill();
    world.tool("node", "echo v18.0.0");
    world.tool(
        "npm",
        "if [ -e /proc/self/fd/9 ]; then ls -l /proc/self/fd; exit 9; fi",
    );
    let path = world.directory.path().join("lock");
    let lock = File::create(&path).expect("make");
    // As in a script: `exec 9>lock; flock 9; beanpole agent …`.
    let agent = world.command(&world.data());
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "exec 9>\"$0\"; flock -n 9 && exec \"$@\""])
        .arg(&path)
        .arg(agent.get_program())
        .args(agent.get_args())
        .envs(
            agent
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    world.agent = Some(shell.spawn().expect("agent"));
    let app = bundle(&[
        (
            "Procfile",
            "web: ls /proc/self/fd | tr '\\n' ' '; exec sleep 1000\n",
        ),
        (
            "package.json",
            r#"{"name":"a","version":"1.0.0","dependencies":{"a":"1"}}"#,
        ),
    ]);
    world.send(&app).await.expect("blob");
    world.order(&[release(1, &app)], &[instance(1, 1)]).await;
    let report = world
        .until("an end of the build", |report| {
            matches!(report.releases[0].phase, ReleasePhase::Failed(_)) || runs(report, 1, 1)
        })
        .await;
    assert_eq!(report.releases[0].phase, ReleasePhase::Ready);
    assert!(lock.try_lock().is_err(), "the agent itself has it");
    let app = pid(&report);
    // Before, it is a shell with a pipe of its own.
    let deadline = Instant::now() + LIMIT;
    while std::fs::read_to_string(format!("/proc/{app}/comm")).expect("it runs") != "sleep\n" {
        assert!(Instant::now() < deadline, "it sleeps in the end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let open = std::fs::read_dir(format!("/proc/{app}/fd")).expect("descriptors");
    let numbers: Vec<String> = open
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(numbers.len(), 3, "{numbers:?}");
    // The app and its shim go on without the agent, and the lock is free.
    world.kill();
    let deadline = Instant::now() + LIMIT;
    while lock.try_lock().is_err() {
        assert!(Instant::now() < deadline, "somebody still holds the lock");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    lock.unlock().expect("unlock");
    assert!(std::path::Path::new(&format!("/proc/{app}")).exists());
}

#[tokio::test]
async fn what_the_agent_may_open_itself_is_not_what_apps_and_builds_may() {
    let mut world = World::new();
    world.kill();
    world.tool("node", "echo v18.0.0");
    world.tool(
        "npm",
        "[ \"$1\" = --version ] || [ $(ulimit -Sn) = 777 ] || { ulimit -Sn; exit 9; }",
    );
    let agent = world.command(&world.data());
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ulimit -Sn 777 && exec \"$@\"", "sh"])
        .arg(agent.get_program())
        .args(agent.get_args())
        .envs(
            agent
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    world.agent = Some(shell.spawn().expect("agent"));
    let app = bundle(&[
        SLEEPER[0],
        (
            "package.json",
            r#"{"name":"a","version":"1.0.0","dependencies":{"a":"1"}}"#,
        ),
    ]);
    world.send(&app).await.expect("blob");
    world.order(&[release(1, &app)], &[instance(1, 1)]).await;
    let report = world
        .until("an end of the build", |report| {
            matches!(report.releases[0].phase, ReleasePhase::Failed(_)) || runs(report, 1, 1)
        })
        .await;
    assert_eq!(report.releases[0].phase, ReleasePhase::Ready);
    let limit_of = |pid: u32| {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let words: Vec<String> = line
            .expect("that limit")
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        (words[3].clone(), words[4].clone())
    };
    let agent = limit_of(world.agent.as_ref().expect("agent").id());
    assert_eq!(agent.0, agent.1, "it takes all that it may");
    assert_eq!(limit_of(pid(&report)), ("777".to_owned(), agent.1));
}
