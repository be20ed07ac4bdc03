//! A whole agent as a process of its own: orders, bundles, builds, and SIGKILL at any time.

mod builds;
mod edge;
mod inherited;
mod once;
mod setup;
mod world;

use beanpole_agent::fences::cgroups::Group;
use beanpole_agent::fences::{Fences, users};
use beanpole_daemon::http::{CallError, request};
use beanpole_protocol::agent::{
    Claim, ControllerIdentity, FOREIGN_CONTROLLER, HostOrders, HostReport, InstancePhase, Limits,
    ReleasePhase, Uninstalled,
};
use beanpole_protocol::{ApplicationName, ControllerId, Generation, InstanceId};
use futures::StreamExt;
use http::Method;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use world::{LIMIT, SLEEPER, World, bundle, instance, instance_id, pid, release, runs};

#[tokio::test]
async fn a_release_runs_and_outlives_its_agent() {
    let mut world = World::new();
    let one = bundle(SLEEPER);
    world.order(&[release(1, &one)], &[instance(1, 1)]).await;
    let report = world.report().await;
    assert_eq!(report.releases[0].phase, ReleasePhase::NeedsBundle);
    assert_eq!(report.instances[0].phase, InstancePhase::Waiting);
    assert!(world.send(&one).await.expect("blob").complete);
    let report = world.until("a running instance", |r| runs(r, 1, 1)).await;
    let first = pid(&report);
    // Neither SIGKILL of the agent nor its new start touches the app.
    world.kill();
    assert!(Path::new(&format!("/proc/{first}")).exists());
    world.start(world.data());
    let report = world.until("the same instance", |r| runs(r, 1, 1)).await;
    assert_eq!(pid(&report), first);
    let mut connection = world.connect().await;
    let id = instance_id();
    let call = request(
        Method::GET,
        &format!("/v1/instances/{id}/logs?tail=5"),
        None::<&()>,
    );
    let body = connection.send(call.expect("request")).await.expect("logs");
    let text = http_body_util::BodyExt::collect(body)
        .await
        .expect("text")
        .to_bytes();
    let text = String::from_utf8_lossy(&text);
    assert!(
        text.contains(" web stdout hello on 23456 as v1 in prod"),
        "{text}"
    );
    // The next release takes its place; then nothing is ordered, and nothing is left.
    let two = bundle(&[SLEEPER[0], ("more", "x")]);
    world.send(&two).await.expect("blob");
    world
        .order(&[release(1, &one), release(2, &two)], &[instance(2, 2)])
        .await;
    world.until("release 2", |r| runs(r, 2, 2)).await;
    assert!(!Path::new(&format!("/proc/{first}")).exists());
    world.order(&[], &[]).await;
    world.until("nothing", |r| r.instances.is_empty()).await;
    let releases = world.data().join("agent/releases");
    let deadline = Instant::now() + LIMIT;
    while std::fs::read_dir(&releases).expect("list").count() > 0 {
        assert!(Instant::now() < deadline, "releases stay");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The application's user on this machine, while there is one.
fn has_user(world: &World) -> bool {
    let tag = users::tag_of(&world.data().join("agent"));
    let application = ApplicationName::new("lodger").expect("name");
    let line = format!("{}:", users::name_for(&tag, &application));
    let passwd = std::fs::read_to_string("/etc/passwd").expect("passwd");
    passwd.lines().any(|one| one.starts_with(&line))
}

#[tokio::test]
async fn an_applications_user_goes_with_the_last_that_needs_it() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut world = World::new();
    // It leaves a file where everybody may write, for the next user with its number.
    let stray = format!("/var/tmp/beanpole-stray-{}", instance_id());
    let command = format!("web: touch {stray}; exec sleep 1000\n");
    let one = bundle(&[("Procfile", &command)]);
    // Not that of the other tests: a machine may have its user from an earlier build.
    let mut order = release(1, &one);
    order.application = ApplicationName::new("lodger").expect("name");
    world.send(&one).await.expect("blob");
    world.order(&[order.clone()], &[instance(1, 1)]).await;
    world.until("a running instance", |r| runs(r, 1, 1)).await;
    assert!(has_user(&world));
    // Stopped, but ordered: it stays.
    let mut stopped = instance(1, 1);
    stopped.run = false;
    world.order(&[order.clone()], &[stopped]).await;
    world
        .until("a stopped instance", |r| {
            r.instances[0].phase == InstancePhase::Stopped
        })
        .await;
    world.kill();
    world.start(world.data());
    world.until("its report", |r| !r.instances.is_empty()).await;
    assert!(has_user(&world));
    world.order(&[], &[]).await;
    let deadline = Instant::now() + LIMIT;
    while has_user(&world) {
        assert!(Instant::now() < deadline, "the user stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!Path::new(&stray).exists(), "{stray}");
    // It comes back when it is needed again.
    world.send(&one).await.expect("blob");
    world.order(&[order.clone()], &[instance(1, 2)]).await;
    world.until("a running instance", |r| runs(r, 1, 2)).await;
}

#[tokio::test]
async fn a_watch_tells_changes_and_ends_with_the_agent() {
    let mut world = World::new();
    let mut lines = world
        .connect()
        .await
        .lines::<HostReport>("/v1/watch", LIMIT)
        .await
        .expect("watch");
    let first = lines.next().await.expect("line").expect("report");
    let one = bundle(SLEEPER);
    world.order(&[release(1, &one)], &[]).await;
    let second = lines.next().await.expect("line").expect("report");
    assert!(second.sequence > first.sequence);
    assert_eq!(second.generation, Generation(1));
    let agent = world.agent.as_mut().expect("agent");
    let pid = rustix::process::Pid::from_child(agent);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal");
    while let Some(Ok(_)) = lines.next().await {}
    assert!(agent.wait().expect("wait").success());
    world.agent = None;
}

#[tokio::test]
async fn old_orders_and_a_second_agent_are_refused() {
    let mut world = World::new();
    world.order(&[], &[]).await;
    world.order(&[], &[]).await;
    let stale = HostOrders {
        generation: Generation(1),
        ..HostOrders::default()
    };
    let error = world.put(&stale).await.expect_err("stale");
    assert!(
        matches!(&error, CallError::Refused(p) if p.code == "stale-generation"),
        "{error}"
    );
    let data = world.data();
    let second = world
        .command(&data)
        .stderr(Stdio::piped())
        .output()
        .expect("second");
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr);
    let holder = world.agent.as_ref().expect("agent").id();
    assert!(said.contains(&format!("process {holder}")), "{said}");
}

#[tokio::test]
async fn another_controllers_word_counts_for_nothing_until_it_takes_the_host_over() {
    let mut world = World::new();
    let controller = |bits| ControllerIdentity {
        id: ControllerId::from_bits(bits),
        name: format!("machine-{bits}"),
    };
    let orders = |bits, generation| HostOrders {
        generation: Generation(generation),
        controller: Some(controller(bits)),
        ..HostOrders::default()
    };
    // A host of before there were ids is its own controller's from the next orders on.
    world.order(&[], &[]).await;
    let id = world.report().await.agent.expect("an id");
    world.put(&orders(1, 10)).await.expect("the first one");
    let owner = world.report().await.owner.expect("an owner");
    assert_eq!(owner.controller, controller(1));

    let refused = |result: Result<(), CallError>| {
        let error = result.expect_err("another's");
        assert!(
            matches!(&error, CallError::Refused(p) if p.status == 409 && p.code == FOREIGN_CONTROLLER),
            "{error}"
        );
    };
    refused(world.put(&orders(2, 11)).await);
    refused(world.put(&orders(2, 10)).await);
    let nobodys = HostOrders {
        generation: Generation(12),
        ..HostOrders::default()
    };
    refused(world.put(&nobodys).await);
    let claim = |take_over| Claim {
        controller: controller(2),
        take_over,
    };
    refused(world.call(Method::PUT, "/v1/owner", &claim(false)).await);
    let stranger = format!("/v1/uninstall?controller={}", controller(2).id);
    refused(world.call(Method::POST, &stranger, &()).await);
    refused(world.call(Method::POST, "/v1/uninstall", &()).await);

    // All of it lasts through the agent's end.
    world.kill();
    world.start(world.data());
    let report = world.report().await;
    assert_eq!((report.agent, report.owner), (Some(id), Some(owner)));
    assert_eq!(report.generation, Generation(10));
    refused(world.put(&orders(2, 11)).await);

    let taken = world.call(Method::PUT, "/v1/owner", &claim(true)).await;
    taken.expect("taken over");
    refused(world.put(&orders(1, 12)).await);
    world.put(&orders(2, 12)).await.expect("its own");
    // For the end of this test, which speaks for nobody.
    let file = world.data().join("agent/owner.json");
    world.kill();
    std::fs::remove_file(file).expect("remove");
}

#[tokio::test]
async fn bad_bundles_fail_without_holding_up_good_ones() {
    let mut world = World::new();
    let bad = bundle(&[("shop/Procfile", "web: ./run\n")]);
    let good = bundle(SLEEPER);
    world.send(&bad).await.expect("blob");
    world.send(&good).await.expect("blob");
    world
        .order(&[release(1, &bad), release(2, &good)], &[instance(2, 1)])
        .await;
    world.until("a running instance", |r| runs(r, 2, 1)).await;
    let failure = world.failure().await;
    assert_eq!(failure.code, "no-platform");
    assert!(failure.message.contains("`shop`"), "{}", failure.message);
}

#[tokio::test]
async fn a_bundle_that_went_bad_on_the_hosts_disk_is_asked_for_again() {
    let mut world = World::new();
    let one = bundle(&[SLEEPER[0], ("data", &"x".repeat(10_000))]);
    world.send(&one).await.expect("blob");
    let order = release(1, &one);
    let path = world.data().join("agent/blobs").join(order.bundle.as_str());
    let mut bad = std::fs::read(&path).expect("blob");
    bad[45] ^= 0xff;
    std::fs::write(&path, bad).expect("damage");
    world.order(&[order], &[instance(1, 1)]).await;
    world
        .until("a bundle that is needed", |r| {
            r.releases[0].phase == ReleasePhase::NeedsBundle && r.releases[0].bundle_have == 0
        })
        .await;
    assert!(world.send(&one).await.expect("blob").complete);
    world.until("a running instance", |r| runs(r, 1, 1)).await;
}

/// An agent with an instance that lives until it is killed, so that there is an end to wait for.
#[tokio::test]
async fn a_release_of_another_bundle_under_the_same_number_fails_and_starts_nothing() {
    let mut world = World::new();
    let (one, other) = (bundle(SLEEPER), bundle(&[SLEEPER[0], ("more", "x")]));
    world.send(&one).await.expect("blob");
    world.send(&other).await.expect("blob");
    world.order(&[release(1, &one)], &[instance(1, 1)]).await;
    let first = pid(&world.until("a running instance", |r| runs(r, 1, 1)).await);
    // A controller that lost its records may give the number again: also to an agent that is new.
    world.order(&[release(1, &other)], &[instance(1, 1)]).await;
    assert_eq!(world.failure().await.code, "release-differs");
    world.kill();
    world.start(world.data());
    let failure = world.failure().await;
    assert_eq!(failure.code, "release-differs");
    assert!(
        failure
            .message
            .starts_with("Release 1 was prepared on this host from another bundle"),
        "{}",
        failure.message
    );
    assert_eq!(pid(&world.report().await), first);
    world.order(&[release(1, &other)], &[instance(1, 2)]).await;
    world.failure().await;
    assert!(!runs(&world.report().await, 1, 2));
    // What is ordered as it was made is ready again.
    world.order(&[release(1, &one)], &[instance(1, 3)]).await;
    world.until("the next incarnation", |r| runs(r, 1, 3)).await;
}

async fn a_world_that_takes_its_time_to_go() -> World {
    let mut world = World::new();
    let one = bundle(&[(
        "Procfile",
        "web: trap '' TERM; echo ready; while :; do sleep 1; done\n",
    )]);
    world.send(&one).await.expect("blob");
    world.order(&[release(1, &one)], &[instance(1, 1)]).await;
    world.until("a running instance", |r| runs(r, 1, 1)).await;
    world
}

async fn uninstall(world: &World) -> Uninstalled {
    let call = request(Method::POST, "/v1/uninstall", None::<&()>).expect("a request");
    let body = world.connect().await.send(call).await.expect("an answer");
    let body = http_body_util::BodyExt::collect(body).await.expect("all");
    serde_json::from_slice(&body.to_bytes()).expect("an answer")
}

/// The agent ends by itself, and nothing is left.
async fn is_gone(world: &mut World) {
    let mut agent = world.agent.take().expect("an agent");
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = agent.try_wait().expect("asked") {
            break status;
        }
        if Instant::now() > deadline {
            world.agent = Some(agent);
            panic!("the agent goes on");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(status.success(), "{status}");
    assert!(!world.data().exists());
}

#[tokio::test]
async fn an_uninstall_goes_to_its_end_when_its_caller_goes_away() {
    let mut world = a_world_that_takes_its_time_to_go().await;
    let ends = world.until("an instance that ends", |r| {
        r.instances
            .iter()
            .any(|one| one.phase == InstancePhase::Stopping)
    });
    tokio::select! {
        answer = uninstall(&world) => panic!("it takes longer than that: {answer:?}"),
        _ = ends => {}
    }
    is_gone(&mut world).await;
}

#[tokio::test]
async fn all_who_ask_for_an_uninstall_get_the_answer_of_one() {
    let mut world = a_world_that_takes_its_time_to_go().await;
    let (first, second) = tokio::join!(uninstall(&world), uninstall(&world));
    assert_eq!(first, second);
    let gone = format!("instance {}", instance_id());
    assert!(first.removed.contains(&gone), "{first:?}");
    assert!(first.left.is_empty(), "{first:?}");
    is_gone(&mut world).await;
}

#[tokio::test]
async fn it_converges_after_kills_at_any_time() {
    let mut world = World::new();
    for round in 1..=8_u64 {
        let text = "x".repeat(200_000 + round as usize);
        let next = bundle(&[SLEEPER[0], ("data", &text)]);
        world.send(&next).await.expect("blob");
        world
            .order(&[release(round, &next)], &[instance(round, round)])
            .await;
        // A different moment each round: unpacking, starting, stopping the one before.
        tokio::time::sleep(Duration::from_millis(round * 13 % 97)).await;
        world.kill();
        world.start(world.data());
        let report = world
            .until("the new release", |r| runs(r, round, round))
            .await;
        assert_eq!(report.instances.len(), 1);
    }
}

#[tokio::test]
async fn a_full_disk_is_reported_and_passes() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut world = World::new();
    let disk = world.directory.path().join("small");
    std::fs::create_dir(&disk).expect("make");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=16m,mode=755", "tmpfs"])
        .arg(&disk)
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        return;
    }
    world.kill();
    world.start(disk.clone());
    // Letters at random, which ZIP makes little smaller.
    let mut seed = 1_u64;
    let noise: String = (0..6_000_000)
        .map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            char::from(b'a' + (seed % 26) as u8)
        })
        .collect();
    let large = bundle(&[SLEEPER[0], ("noise", &noise)]);
    std::fs::write(disk.join("ballast"), vec![1; 9 << 20]).expect("ballast");
    world.send(&large).await.expect("blob");
    world.order(&[release(1, &large)], &[]).await;
    let failure = world.failure().await;
    assert_eq!(failure.code, "disk-full", "{failure:?}");
    std::fs::remove_file(disk.join("ballast")).expect("remove");
    world
        .until("a ready release", |r| {
            r.releases[0].phase == ReleasePhase::Ready
        })
        .await;
    world.order(&[], &[]).await;
    world.kill();
    let unmounted = Command::new("umount").arg("-l").arg(&disk).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
}

/// A process in the group of an instance.
fn stray(group: &Group) -> std::process::Child {
    group.create(&Limits::default()).expect("group");
    let mut script = String::new();
    for directory in group.directories() {
        script += &format!("echo $$ >{}/cgroup.procs; ", directory.display());
    }
    let child = Command::new("sh")
        .args(["-c", &format!("{script} exec sleep 1000")])
        .spawn();
    let child = child.expect("sh runs");
    let deadline = Instant::now() + LIMIT;
    while group.processes().is_empty() {
        assert!(Instant::now() < deadline, "it does not enter its group");
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

#[tokio::test]
async fn what_a_killed_agent_left_is_cleared_away_by_the_next_and_others_things_are_not() {
    let mut world = World::new();
    let one = bundle(SLEEPER);
    world.send(&one).await.expect("blob");
    world.order(&[release(1, &one)], &[instance(1, 1)]).await;
    let report = world.until("a running instance", |r| runs(r, 1, 1)).await;
    world.kill();
    let new = || InstanceId::from_bits(beanpole_daemon::clock::random_bits());
    let instances = world.data().join("agent/instances");
    // Killed before an instance's spec was written, and before its shim was started.
    let (empty, unstarted) = (
        instances.join(new().as_str()),
        instances.join(new().as_str()),
    );
    std::fs::create_dir_all(empty.join("logs")).expect("make");
    std::fs::create_dir(&unstarted).expect("make");
    let spec = instances.join(instance_id().as_str()).join("spec.json");
    let spec = std::fs::read_to_string(spec).expect("read");
    let own_name = unstarted.file_name().expect("name").to_string_lossy();
    let spec = spec.replace(instance_id().as_str(), &own_name);
    std::fs::write(unstarted.join("spec.json"), spec).expect("write");
    // Killed after an instance's directory was removed.
    let fences = world.fences();
    let elsewhere = tempfile::tempdir().expect("directory");
    let others = Fences::detect(elsewhere.path());
    let groups = fences
        .cgroups()
        .zip(others.cgroups())
        .map(|(own, others)| (own.group(&new()), others.group(&new())));
    let strays = groups
        .as_ref()
        .map(|(own, others)| (stray(own), stray(others)));
    world.start(world.data());
    let again = world.until("the same instance", |r| runs(r, 1, 1)).await;
    assert_eq!(pid(&again), pid(&report), "what is ordered goes on");
    let deadline = Instant::now() + LIMIT;
    while empty.exists() || unstarted.exists() {
        assert!(Instant::now() < deadline, "directories of no instance stay");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if let Some(((own, other), (mut gone, mut stays))) = groups.zip(strays) {
        gone.wait().expect("it was ended");
        assert!(own.directories().all(|directory| !directory.exists()));
        assert!(
            stays.try_wait().expect("asked").is_none(),
            "another agent's"
        );
        stays.kill().expect("kill");
        stays.wait().expect("wait");
        other.remove(LIMIT).expect("remove");
    }
}
