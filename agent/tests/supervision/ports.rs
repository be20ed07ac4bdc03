//! Who listens on an instance's port.

use crate::world::{GRACE, World, free_port, kill, pid_of};
use beanpole_agent::runtime::{Runtime, RuntimeError};
use beanpole_protocol::agent::{InstancePhase, PortUse, Properties};
use std::net::TcpListener;

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
async fn each_process_has_its_own_port_and_all_know_it() {
    let world = World::new();
    let says = "echo ports $PORT $PORT_API; exec sleep 1000";
    let mut spec = World::spec(44, &[("api", says), ("web", says)]);
    let api = free_port();
    spec.ports = [("api".to_owned(), api)].into();
    let variable = ("PORT_API".to_owned(), api.to_string());
    spec.environment = Properties([variable].into());
    world.runtime.start(spec.clone()).await.expect("started");
    for (process, port) in [("api", api), ("web", spec.port)] {
        let wanted = format!("ports {port} {api}\n");
        world.until_log(&spec.id, process, &wanted).await;
    }
    world.runtime.stop(&spec.id, GRACE).await.expect("stopped");
    let _stranger = TcpListener::bind(("127.0.0.1", api)).expect("the port is free");
    let refused = world.runtime.start(spec.clone()).await;
    assert!(matches!(refused, Err(RuntimeError::PortTaken(_))));
}

/// Listens on `$PORT`, and stops that when it is told so.
const LISTENS: &str = "python3 -c \"import os, signal, socket, time
s = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))
signal.signal(signal.SIGUSR1, lambda *_: s.close())
while True: time.sleep(1)\"";

#[tokio::test]
async fn a_stranger_on_the_port_of_a_further_process_is_no_app_either() {
    let world = World::new();
    let mut spec = World::spec(45, &[("api", "sleep 1000"), ("web", LISTENS)]);
    let api = free_port();
    spec.ports = [("api".to_owned(), api)].into();
    world.runtime.start(spec.clone()).await.expect("started");
    let report = world.report(&spec.id).expect("report");
    assert_eq!(report.port, PortUse::Free, "one listens, and not both");
    let _stranger = TcpListener::bind(("127.0.0.1", api)).expect("the port is free");
    let report = world
        .until(&spec.id, "the stranger is seen", |report| {
            report.port == PortUse::Taken
        })
        .await;
    let InstancePhase::Failed(why) = report.phase else {
        unreachable!("a stranger answers for it")
    };
    let start = format!("Port {api} is taken by");
    assert!(why.message.starts_with(&start), "{}", why.message);
    world.runtime.remove(&spec.id).await.expect("removed");
}

#[tokio::test]
async fn a_process_that_goes_on_and_stops_to_listen_leaves_its_port_to_nobody() {
    let world = World::new();
    let spec = World::spec(46, &[("web", &format!("exec {LISTENS}"))]);
    world.runtime.start(spec.clone()).await.expect("started");
    let report = world
        .until(&spec.id, "it listens", |report| report.port == PortUse::Own)
        .await;
    let pid = rustix::process::Pid::from_raw(pid_of(&report)).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).expect("it is there");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let _stranger = loop {
        match TcpListener::bind(("127.0.0.1", spec.port)) {
            Ok(stranger) => break stranger,
            Err(_) => assert!(std::time::Instant::now() < end, "it goes on to listen"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    world
        .until(&spec.id, "the stranger is seen", |report| {
            matches!(&report.phase, InstancePhase::Failed(why) if why.code == "port-taken")
        })
        .await;
    world.runtime.remove(&spec.id).await.expect("removed");
}
