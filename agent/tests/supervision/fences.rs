//! Limits, and what an application cannot reach.

use crate::world::{World, is_root};
use beanpole_agent::fences::Fences;
use beanpole_agent::runtime::Runtime;
use beanpole_agent::shim::spec::{LogBounds, files};
use beanpole_protocol::agent::InstancePhase;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

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
    // Where agents have their data: an application's private /tmp hides what lies in the machine's.
    let place = tempfile::tempdir_in("/var/lib").expect("directory");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("mode");
    let base = place.path().to_owned();
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
}
