//! Release commands and container commands for the leader: run once for an operation whatever happens to the agent, and never as a process.

use crate::world::{LIMIT, World, bundle, instance, release, runs};
use beanpole_protocol::OperationId;
use beanpole_protocol::agent::{
    Failure, HostReport, OnceOrder, OncePhase, ReleaseOrder, ReleasePhase,
};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A world with a directory that every user may write to.
fn world() -> World {
    let world = World::new();
    let state = state(&world, "");
    std::fs::create_dir(&state).expect("make");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(&state, open).expect("mode");
    world
}

fn state(world: &World, name: &str) -> PathBuf {
    world.directory.path().join("state").join(name)
}

/// A release with this command, ready on the host.
async fn ready(world: &mut World, command: &str) -> ReleaseOrder {
    let procfile = format!("release: {command}\nweb: exec sleep 1000\n");
    ready_with(world, &[("Procfile", &procfile)]).await
}

/// A release of these files, ready on the host.
async fn ready_with(world: &mut World, files: &[(&str, &str)]) -> ReleaseOrder {
    let bytes = bundle(files);
    world.send(&bytes).await.expect("blob");
    let mut order = release(1, &bytes);
    let directory = state(world, "").to_string_lossy().into_owned();
    order.properties.0.insert("STATE".to_owned(), directory);
    world.order(&[order.clone()], &[]).await;
    world
        .until("a ready release", |report| {
            report.releases[0].phase == ReleasePhase::Ready
                && report.releases[0].has_release_command
        })
        .await;
    order
}

/// Has the agent run it for an operation.
async fn run(world: &mut World, order: &mut ReleaseOrder, operation: u128) {
    let agent = world.report().await.agent.expect("an agent has an id");
    order.run_once = Some(OnceOrder {
        operation: OperationId::from_bits(operation),
        agent,
    });
    world.order(std::slice::from_ref(order), &[]).await;
}

fn once(report: &HostReport, operation: u128) -> Option<OncePhase> {
    let once = report.releases[0].once.as_ref()?;
    (once.operation == OperationId::from_bits(operation)).then(|| once.phase.clone())
}

async fn failure(world: &World, operation: u128) -> Failure {
    let report = world
        .until("a failed command", |report| {
            matches!(once(report, operation), Some(OncePhase::Failed(_)))
        })
        .await;
    match once(&report, operation) {
        Some(OncePhase::Failed(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

async fn success(world: &World, operation: u128) -> Vec<String> {
    let report = world
        .until("a command that succeeded", |report| {
            matches!(once(report, operation), Some(OncePhase::Succeeded { .. }))
        })
        .await;
    match once(&report, operation) {
        Some(OncePhase::Succeeded { log }) => log,
        other => panic!("{other:?}"),
    }
}

/// How often the command was started.
fn starts(world: &World) -> usize {
    let text = std::fs::read_to_string(state(world, "starts")).unwrap_or_default();
    text.lines().count()
}

async fn until_it_started(world: &World) {
    let deadline = Instant::now() + LIMIT;
    while starts(world) == 0 {
        assert!(Instant::now() < deadline, "it was not started");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn it_runs_once_for_an_operation_and_finds_what_the_app_finds() {
    let mut world = world();
    let command = "echo x >>$STATE/starts; pwd; echo $GREETING from $BEANPOLE_VERSION in \
                   $BEANPOLE_ENVIRONMENT; touch $HOME/x $TMPDIR/x; echo ${PORT:-no port}";
    let mut order = ready(&mut world, command).await;
    run(&mut world, &mut order, 1).await;
    let log = success(&world, 1).await;
    assert!(log[0].ends_with("/1/app"), "{log:?}");
    assert_eq!(log[1..], ["hello from v1 in prod", "no port"]);
    // Neither other orders nor another agent on the same disk runs it again.
    world.order(&[order.clone()], &[instance(1, 1)]).await;
    world.until("a running instance", |r| runs(r, 1, 1)).await;
    world.kill();
    world.start(world.data());
    assert_eq!(success(&world, 1).await, log);
    assert_eq!(starts(&world), 1);
    let report = world.report().await;
    let names: Vec<&str> = report.instances[0]
        .processes
        .iter()
        .map(|process| process.name.as_str())
        .collect();
    assert_eq!(names, ["web"], "it is no process");
    // Another operation does.
    run(&mut world, &mut order, 2).await;
    success(&world, 2).await;
    assert_eq!(starts(&world), 2);
}

#[tokio::test]
async fn one_that_fails_shows_its_last_lines() {
    let mut world = world();
    let mut order = ready(&mut world, "echo no such table; exit 3").await;
    run(&mut world, &mut order, 1).await;
    let failure = failure(&world, 1).await;
    assert_eq!(failure.code, "release-command-failed");
    assert!(
        failure.message.contains("exit status: 3"),
        "{}",
        failure.message
    );
    assert_eq!(failure.log, ["no such table"]);
}

#[tokio::test]
async fn one_that_takes_too_long_is_ended() {
    let mut world = world();
    let command = "echo x >>$STATE/starts; echo begun; sleep 1000 & sleep 1000";
    let mut order = ready(&mut world, command).await;
    order.prepare_timeout_ms = 1_000;
    run(&mut world, &mut order, 1).await;
    let failure = failure(&world, 1).await;
    assert_eq!(failure.code, "release-command-timeout");
    assert!(failure.message.contains("`Timeout`"), "{}", failure.message);
    assert_eq!(failure.log.last().map(String::as_str), Some("begun"));
}

/// SIGKILL of the agent in the middle: nobody knows how far it came, so it is not run again.
#[tokio::test]
async fn one_that_an_agent_left_behind_is_ended_and_not_run_again() {
    let mut world = world();
    let command = "echo x >>$STATE/starts; sleep 1000; echo x >>$STATE/ended";
    let mut order = ready(&mut world, command).await;
    run(&mut world, &mut order, 1).await;
    until_it_started(&world).await;
    world.kill();
    world.start(world.data());
    let failure = failure(&world, 1).await;
    assert_eq!(failure.code, "release-command-interrupted");
    assert!(
        failure.message.contains("deploy again"),
        "{}",
        failure.message
    );
    // Whatever comes after it on the host has been done, too.
    world.order(&[order.clone()], &[instance(1, 1)]).await;
    world.until("a running instance", |r| runs(r, 1, 1)).await;
    assert_eq!(starts(&world), 1);
    assert!(!state(&world, "ended").exists());
    // It stays so for every agent that comes.
    world.kill();
    world.start(world.data());
    let again = self::failure(&world, 1).await;
    assert_eq!(again.code, "release-command-interrupted");
}

#[tokio::test]
async fn one_whose_deployment_is_given_up_is_ended() {
    let mut world = world();
    let command = "echo x >>$STATE/starts; sleep 1000";
    let mut order = ready(&mut world, command).await;
    run(&mut world, &mut order, 1).await;
    until_it_started(&world).await;
    order.run_once = None;
    world.order(&[order.clone()], &[]).await;
    let failure = failure(&world, 1).await;
    assert_eq!(failure.code, "release-command-ended");
    assert_eq!(starts(&world), 1);
}

/// By orders that lay on disk while the agent was away, the deployment may be over.
#[tokio::test]
async fn an_agent_starts_none_by_orders_that_it_finds_at_its_start() {
    let mut world = world();
    let mut order = ready(&mut world, "echo x >>$STATE/starts").await;
    let agent = world.report().await.agent.expect("an id");
    world.kill();
    order.run_once = Some(OnceOrder {
        operation: OperationId::from_bits(1),
        agent,
    });
    let path = world.data().join("agent/orders.json");
    let mut orders: beanpole_protocol::agent::HostOrders =
        serde_json::from_slice(&std::fs::read(&path).expect("orders")).expect("JSON");
    orders.releases = vec![order.clone()];
    std::fs::write(&path, serde_json::to_vec(&orders).expect("JSON")).expect("write");
    world.start(world.data());
    let failure = failure(&world, 1).await;
    assert_eq!(failure.code, "release-command-not-started");
    assert_eq!(starts(&world), 0);
}

#[tokio::test]
async fn an_agent_that_is_not_meant_runs_none() {
    let mut world = world();
    let mut order = ready(&mut world, "echo x >>$STATE/starts").await;
    order.run_once = Some(OnceOrder {
        operation: OperationId::from_bits(1),
        agent: beanpole_protocol::AgentId::from_bits(99),
    });
    world.order(&[order.clone()], &[instance(1, 1)]).await;
    let report = world.until("a running instance", |r| runs(r, 1, 1)).await;
    assert_eq!(report.releases[0].once, None);
    assert_eq!(starts(&world), 0);
}

#[tokio::test]
async fn container_commands_for_the_leader_run_in_their_order_and_before_the_release_command() {
    let mut world = world();
    let commands = "container_commands:\n  b: {command: [sh, -c, 'echo b $OWN; pwd'], cwd: sub, env: \
                    {OWN: mine}, leader_only: true, test: 'false'}\n  a: {command: echo x \
                    >>$STATE/starts; echo a $GREETING, leader_only: true}\n  c: {command: echo c; exit 4, \
                    leader_only: true, ignoreErrors: true}\n  d: {command: echo everywhere >>said}\n";
    let files = [
        (".ebextensions/1.config", commands),
        ("sub/file", ""),
        (
            "Procfile",
            "release: echo last ${OWN:-nothing} `cat said`\nweb: exec sleep 1000\n",
        ),
    ];
    let mut order = ready_with(&mut world, &files).await;
    assert_eq!(starts(&world), 0, "none for the leader before it is told");
    run(&mut world, &mut order, 1).await;
    let log = success(&world, 1).await;
    assert_eq!(log[..2], ["a hello", "b mine"]);
    assert!(log[2].ends_with("/1/app/sub"), "{log:?}");
    assert_eq!(log[3..], ["c", "last nothing everywhere"]);
    world.kill();
    world.start(world.data());
    assert_eq!(success(&world, 1).await, log);
    assert_eq!(starts(&world), 1);
}

#[tokio::test]
async fn a_container_command_for_the_leader_that_fails_is_the_last_that_runs() {
    let mut world = world();
    let commands = "container_commands:\n  a: {command: echo first, leader_only: true}\n  b: {command: echo \
                    no table; exit 3, leader_only: true}\n  c: {command: touch $STATE/late, \
                    leader_only: true}\n";
    let files = [
        (".ebextensions/1.config", commands),
        (
            "Procfile",
            "release: touch $STATE/late\nweb: exec sleep 1000\n",
        ),
    ];
    let mut order = ready_with(&mut world, &files).await;
    run(&mut world, &mut order, 1).await;
    let failure = failure(&world, 1).await;
    assert_eq!(failure.code, "container-command-failed");
    assert_eq!(failure.message, "The command `b` failed: exit status: 3.");
    assert_eq!(failure.log, ["first", "no table"]);
    assert!(!state(&world, "late").exists());
}
