//! Builds: what they make, what they may use, and that nothing of them outlives them.

use crate::world::{LIMIT, SLEEPER, World, bundle, instance, instance_id, release, runs};
use beanpole_protocol::OperationId;
use beanpole_protocol::agent::{ReleaseOrder, ReleasePhase};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_build_that_takes_too_long_is_killed() {
    if Command::new("npm").arg("--version").output().is_err() {
        return;
    }
    let mut world = World::new();
    let slow = bundle(&[(
        "package.json",
        r#"{"name":"slow","version":"1.0.0","scripts":{"start":"node x","install":"echo begun; sleep 987654"}}"#,
    )]);
    world.send(&slow).await.expect("blob");
    let mut order = release(1, &slow);
    order.prepare_timeout_ms = 8000;
    world.order(&[order], &[]).await;
    let failure = world.failure().await;
    assert_eq!(failure.code, "build-timeout", "{failure:?}");
    let left = procfs::process::all_processes()
        .expect("processes")
        .flatten()
        .filter_map(|process| process.cmdline().ok())
        .any(|words| words.iter().any(|word| word == "987654"));
    assert!(!left, "the build is still running");
}

#[tokio::test]
async fn a_failing_build_shows_its_last_lines() {
    if Command::new("npm").arg("--version").output().is_err() {
        return;
    }
    let mut world = World::new();
    let broken = bundle(&[(
        "package.json",
        r#"{"name":"broken","version":"1.0.0","scripts":{"start":"node x","install":"echo no such compiler; exit 9"}}"#,
    )]);
    world.send(&broken).await.expect("blob");
    world.order(&[release(1, &broken)], &[]).await;
    let failure = world.failure().await;
    assert_eq!(failure.code, "build-failed");
    assert!(
        failure.message.contains("npm install"),
        "{}",
        failure.message
    );
    assert!(
        failure
            .log
            .iter()
            .any(|line| line.contains("no such compiler")),
        "{failure:?}"
    );
}

#[tokio::test]
async fn node_installs_a_local_package_and_starts_it() {
    if Command::new("npm").arg("--version").output().is_err() {
        return;
    }
    let mut world = World::new();
    let app = bundle(&[
        (
            "package.json",
            r#"{"name":"app","version":"1.0.0","scripts":{"start":"node main.js"},"dependencies":{"greet":"file:./greet"}}"#,
        ),
        (
            "greet/package.json",
            r#"{"name":"greet","version":"1.0.0","main":"index.js"}"#,
        ),
        ("greet/index.js", "module.exports = 'greetings';"),
        (
            "main.js",
            "console.log(require('greet')); setInterval(() => {}, 1000);",
        ),
    ]);
    world.send(&app).await.expect("blob");
    world.order(&[release(1, &app)], &[instance(1, 1)]).await;
    world.until("a running instance", |r| runs(r, 1, 1)).await;
    let log = world
        .data()
        .join(format!("agent/instances/{}", instance_id()));
    assert!(log.exists());
}

#[tokio::test]
async fn python_gets_a_virtualenv_that_the_next_release_reuses() {
    if Command::new("/usr/bin/python3")
        .args(["-c", "import venv, ensurepip"])
        .status()
        .is_ok_and(|status| !status.success())
    {
        return;
    }
    let mut world = World::new();
    let files = |text: &'static str| {
        bundle(&[
            (
                "Procfile",
                "web: python -c \"import sys, time; print(sys.prefix); time.sleep(1000)\"\n",
            ),
            ("requirements.txt", "# nothing from afar\n"),
            ("note", text),
        ])
    };
    let (one, two) = (files("1"), files("2"));
    world.send(&one).await.expect("blob");
    world.send(&two).await.expect("blob");
    world.order(&[release(1, &one)], &[instance(1, 1)]).await;
    world.until("a running instance", |r| runs(r, 1, 1)).await;
    let caches = world.data().join("agent/cache");
    let count = || std::fs::read_dir(&caches).expect("list").count();
    let before = count();
    assert_eq!(before, 2, "a virtualenv and its mark");
    world
        .order(&[release(1, &one), release(2, &two)], &[instance(2, 2)])
        .await;
    world.until("release 2", |r| runs(r, 2, 2)).await;
    assert_eq!(count(), before);
}

#[tokio::test]
async fn hooks_run_in_the_tree_in_the_order_of_their_names_with_what_the_app_finds() {
    let mut world = World::new();
    let says =
        |name: &str| format!("#!/bin/sh\r\necho {name} $GREETING $BEANPOLE_VERSION >>said\r\n");
    let (first, second, third) = (says("first"), says("second"), says("third"));
    let app = bundle(&[
        ("Procfile", "web: cat said; exec sleep 1000\n"),
        (".platform/hooks/predeploy/20_last.sh", &third),
        (".platform/hooks/predeploy/10_then.sh", &second),
        (".platform/hooks/prebuild/99_first.sh", &first),
        (".platform/hooks/prebuild/.gitkeep", ""),
    ]);
    world.send(&app).await.expect("blob");
    world.order(&[release(1, &app)], &[instance(1, 1)]).await;
    world.until("a running instance", |r| runs(r, 1, 1)).await;
    let order = release(1, &app);
    let said = world.data().join(format!(
        "agent/releases/{}/{}/app/said",
        order.key.environment, order.key.number
    ));
    assert_eq!(
        std::fs::read_to_string(said).expect("what they said"),
        "first hello v1\nsecond hello v1\nthird hello v1\n"
    );
}

#[tokio::test]
async fn a_failing_hook_fails_the_release_with_its_last_lines() {
    let mut world = World::new();
    let app = bundle(&[
        SLEEPER[0],
        (
            ".platform/hooks/predeploy/1.sh",
            "#!/bin/sh\necho no assets\nexit 3\n",
        ),
        (
            ".platform/hooks/predeploy/2.sh",
            "#!/bin/sh\necho too late\n",
        ),
    ]);
    world.send(&app).await.expect("blob");
    world.order(&[release(1, &app)], &[]).await;
    let failure = world.failure().await;
    assert_eq!(failure.code, "hook-failed");
    assert!(
        failure
            .message
            .contains("`.platform/hooks/predeploy/1.sh` failed: exit status: 3"),
        "{}",
        failure.message
    );
    assert_eq!(failure.log, ["no assets"]);
}

/// What release 1 has in a file of its tree.
fn in_tree(world: &World, order: &ReleaseOrder, name: &str) -> String {
    let path = world.data().join(format!(
        "agent/releases/{}/{}/app/{name}",
        order.key.environment, order.key.number
    ));
    std::fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test]
async fn container_commands_run_in_the_order_of_their_names_between_the_build_and_predeploy() {
    let mut world = World::new();
    let first = "container_commands:\n  03_not:\n    command: echo no >>said\n    test: '[ -e none ]'\n  \
                 02_two:\n    command: |\n      echo two $GREETING $OWN >>said\n      pwd >>said\n    \
                 cwd: sub\n    env: {OWN: 8080, GREETING: hi}\n  04_may: {command: exit 1, ignoreErrors: yes}\n";
    let second = r#"{"container_commands": {
        "01_one": {"command": ["sh", "-c", "echo one \"$0\" $GREETING $BEANPOLE_VERSION >>said", "a b"],
                   "test": "[ -e Procfile ]"},
        "05_lead": {"command": "echo led >>said", "leader_only": "true"},
        "06_nowhere": {"command": "x", "cwd": "none", "ignoreErrors": true, "test": "true"}}}"#;
    let app = bundle(&[
        ("Procfile", "web: exec sleep 1000\n"),
        ("sub/file", ""),
        (".ebextensions/a.config", first),
        (".ebextensions/b.config", second),
        (
            ".platform/hooks/predeploy/1.sh",
            "#!/bin/sh\necho hook >>said\n",
        ),
        (
            ".platform/hooks/prebuild/1.sh",
            "#!/bin/sh\necho before >>said\n",
        ),
    ]);
    world.send(&app).await.expect("blob");
    let order = release(1, &app);
    world
        .order(std::slice::from_ref(&order), &[instance(1, 1)])
        .await;
    let report = world.until("a running instance", |r| runs(r, 1, 1)).await;
    assert!(report.releases[0].ran_container_commands);
    assert!(report.releases[0].has_release_command, "05_lead runs once");
    assert_eq!(
        in_tree(&world, &order, "said"),
        "before\none a b hello v1\nhook\n"
    );
    let said = in_tree(&world, &order, "sub/said");
    let (line, place) = said.split_once('\n').expect("two lines");
    assert_eq!(line, "two hi 8080");
    assert!(place.ends_with("/app/sub\n"), "{place}");
}

#[tokio::test]
async fn a_failing_container_command_fails_the_release_with_its_last_lines() {
    let mut world = World::new();
    let app = bundle(&[
        SLEEPER[0],
        (
            ".ebextensions/1.config",
            "container_commands:\n  01: {command: echo no assets; exit 3, env: {A: s3cret}}\n  \
             02: {command: echo too late}\n",
        ),
    ]);
    world.send(&app).await.expect("blob");
    world.order(&[release(1, &app)], &[]).await;
    let failure = world.failure().await;
    assert_eq!(failure.code, "container-command-failed");
    assert_eq!(failure.message, "The command `01` failed: exit status: 3.");
    assert_eq!(failure.log, ["no assets"]);
}

#[tokio::test]
async fn a_configuration_file_that_cannot_be_read_fails_the_release_before_anything_runs() {
    let mut world = World::new();
    let app = bundle(&[
        SLEEPER[0],
        (
            ".ebextensions/1.config",
            "container_commands:\n  01: {command: x, cwd: /etc}\n",
        ),
        (".platform/hooks/prebuild/1.sh", "#!/bin/sh\nexit 9\n"),
    ]);
    world.send(&app).await.expect("blob");
    world.order(&[release(1, &app)], &[]).await;
    let failure = world.failure().await;
    assert_eq!(failure.code, "ebextensions-invalid");
    assert!(
        failure.message.contains(".ebextensions/1.config, line 2"),
        "{}",
        failure.message
    );
}

#[tokio::test]
async fn a_container_command_starts_in_no_directory_that_a_link_leads_to_outside() {
    let mut world = World::new();
    let app = bundle(&[
        SLEEPER[0],
        (
            ".ebextensions/1.config",
            "container_commands:\n  01: {command: ln -s /tmp out}\n  02: {command: pwd, cwd: out}\n",
        ),
    ]);
    world.send(&app).await.expect("blob");
    world.order(&[release(1, &app)], &[]).await;
    let failure = world.failure().await;
    assert_eq!(failure.code, "container-command-failed");
    assert!(
        failure.message.contains("no directory `out`"),
        "{}",
        failure.message
    );
}

/// A release whose build is the script `npm` of [`World::tool`].
fn built_by_npm() -> (Vec<u8>, ReleaseOrder) {
    let package = r#"{"name":"app","version":"1.0.0","dependencies":{"a":"1"}}"#;
    let bytes = bundle(&[SLEEPER[0], ("package.json", package)]);
    let order = release(1, &bytes);
    (bytes, order)
}

/// A world where `npm` is this script. `$STATE` is a directory that every user may write to.
fn world_with_npm(script: &str) -> World {
    let mut world = World::new();
    world.kill();
    let state = world.directory.path().join("state");
    std::fs::create_dir(&state).expect("make");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(&state, open).expect("mode");
    world.tool("node", "echo v18.0.0");
    let lines = format!(
        "[ \"$1\" != --version ] || exit 0\nSTATE={}\n{script}",
        state.display()
    );
    world.tool("npm", &lines);
    world.start(world.data());
    world
}

fn state(world: &World, name: &str) -> PathBuf {
    world.directory.path().join("state").join(name)
}

/// Waits for a file of the build with a process id in it.
async fn pid_in(world: &World, name: &str) -> i32 {
    let deadline = Instant::now() + LIMIT;
    loop {
        let text = std::fs::read_to_string(state(world, name)).unwrap_or_default();
        if let Ok(pid) = text.trim().parse() {
            return pid;
        }
        assert!(Instant::now() < deadline, "no {name}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn alive(pid: i32) -> bool {
    procfs::process::Process::new(pid)
        .and_then(|process| process.stat())
        .is_ok_and(|stat| stat.state != 'Z' && stat.state != 'X')
}

fn has_cgroups() -> bool {
    let data = std::path::Path::new("/var/lib");
    let fences = beanpole_agent::fences::Fences::detect(data);
    fences.cgroups().is_some_and(|trees| {
        trees.version_for("memory").is_ok() && trees.version_for("pids").is_ok()
    })
}

/// Fails the first time, as with a registry that answers 503 for a moment.
const FAILS_ONCE: &str = "[ -e $STATE/again ] || { touch $STATE/again; exit 9; }";

#[tokio::test]
async fn a_failed_preparation_is_tried_again_by_itself() {
    let mut world = world_with_npm(FAILS_ONCE);
    let (bytes, order) = built_by_npm();
    world.send(&bytes).await.expect("blob");
    world.order(&[order], &[]).await;
    let report = world
        .until("a failed release", |r| {
            matches!(r.releases[0].phase, ReleasePhase::Failed(_))
        })
        .await;
    let again_at = report.releases[0].again_at.expect("another attempt");
    assert!(again_at > report.now);
    world
        .until("a ready release", |r| {
            r.releases[0].phase == ReleasePhase::Ready
        })
        .await;
}

#[tokio::test]
async fn an_operation_that_asks_has_a_failure_of_before_tried_again_at_once() {
    let mut world = world_with_npm(FAILS_ONCE);
    let (bytes, mut order) = built_by_npm();
    world.send(&bytes).await.expect("blob");
    let one = Some(OperationId::from_bits(1));
    order.asked_by.clone_from(&one);
    world.order(&[order.clone()], &[]).await;
    let report = world
        .until("a failed release", |r| {
            matches!(r.releases[0].phase, ReleasePhase::Failed(_))
        })
        .await;
    assert_eq!(report.releases[0].asked_by, one, "it is that one's answer");
    // Orders that change for another reason are no reason.
    order.asked_by = None;
    world.order(&[order.clone()], &[]).await;
    let report = world.report().await;
    assert_eq!(report.releases[0].asked_by, one);
    order.asked_by = Some(OperationId::from_bits(2));
    world.order(&[order.clone()], &[]).await;
    let report = world
        .until("a ready release", |r| {
            r.releases[0].phase == ReleasePhase::Ready
        })
        .await;
    assert_eq!(report.releases[0].asked_by, order.asked_by);
}

/// Three ways to leave a build: a session of its own, without the build's environment, twice forked.
const ESCAPES: &str = "
escape() {
  env -i setsid sh -c 'echo $$ >$0.new; mv $0.new $0; exec sleep 1000' $STATE/$1 </dev/null >/dev/null 2>&1 &
  while [ ! -s $STATE/$1 ]; do sleep 0.01; done
}
";

#[tokio::test]
async fn what_a_build_leaves_in_another_session_ends_with_it() {
    let script = format!("{ESCAPES} (escape one) & wait; (escape two)");
    let mut world = world_with_npm(&script);
    let (bytes, order) = built_by_npm();
    world.send(&bytes).await.expect("blob");
    world.order(&[order], &[]).await;
    world
        .until("a ready release", |r| {
            r.releases[0].phase == ReleasePhase::Ready
        })
        .await;
    for name in ["one", "two"] {
        let pid = pid_in(&world, name).await;
        assert!(!alive(pid), "{name} is still there");
    }
}

#[tokio::test]
async fn a_build_that_is_given_up_leaves_nothing() {
    let script = format!("{ESCAPES} escape one; trap '' TERM; sleep 1000 & wait");
    let mut world = world_with_npm(&script);
    let (bytes, mut order) = built_by_npm();
    order.prepare_timeout_ms = 4000;
    world.send(&bytes).await.expect("blob");
    world.order(&[order.clone()], &[]).await;
    assert_eq!(world.failure().await.code, "build-timeout");
    assert!(!alive(pid_in(&world, "one").await), "after the deadline");
    // Not wanted any more is the same.
    std::fs::remove_file(state(&world, "one")).expect("remove");
    order.key.number = beanpole_protocol::ReleaseNumber(2);
    order.prepare_timeout_ms = 60_000;
    world.order(&[order], &[]).await;
    let pid = pid_in(&world, "one").await;
    world.order(&[], &[]).await;
    let deadline = Instant::now() + LIMIT;
    while alive(pid) {
        assert!(Instant::now() < deadline, "the build goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The second run of the build says whether anything of the first one lives.
async fn rebuilds_after(kill: impl AsyncFnOnce(&mut World)) {
    let script = format!(
        "{ESCAPES}
if [ -e $STATE/one ]; then
  for name in one main; do
    if grep -q '^State:.[^ZX]' /proc/$(cat $STATE/$name)/status 2>/dev/null; then
      echo $name lives; exit 7
    fi
  done
  exit 0
fi
escape one
echo $$ >$STATE/main
sleep 1000"
    );
    let mut world = world_with_npm(&script);
    let (bytes, order) = built_by_npm();
    world.send(&bytes).await.expect("blob");
    world.order(&[order], &[]).await;
    pid_in(&world, "main").await;
    kill(&mut world).await;
    world.start(world.data());
    let report = world
        .until("an end of the build", |report| {
            report
                .releases
                .iter()
                .any(|r| matches!(r.phase, ReleasePhase::Ready | ReleasePhase::Failed(_)))
        })
        .await;
    assert_eq!(report.releases[0].phase, ReleasePhase::Ready);
    for name in ["one", "main"] {
        assert!(!alive(pid_in(&world, name).await), "{name} lives");
    }
}

#[tokio::test]
async fn an_agent_ends_what_its_killed_predecessor_was_building_first() {
    rebuilds_after(async |world| world.kill()).await;
}

#[tokio::test]
async fn it_does_so_even_where_the_builds_guard_was_killed_as_well() {
    if !has_cgroups() {
        // What has cleared its environment cannot be found then, as `host show` says.
        return;
    }
    rebuilds_after(async |world| {
        world.kill();
        let builds = world.data().join("agent/builds");
        let record = std::fs::read_dir(builds)
            .expect("list")
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|ending| ending == "pid"));
        // It may have ended already, its socket being closed.
        if let Some(text) = record.and_then(|path| std::fs::read_to_string(path).ok()) {
            let record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            let pid = record["guard"]["pid"].as_i64().expect("pid") as i32;
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_killed_guard_fails_the_build_and_leaves_nothing() {
    let script = "sleep 1000 & echo $! >$STATE/one.new; mv $STATE/one.new $STATE/one; wait";
    let mut world = world_with_npm(script);
    let (bytes, order) = built_by_npm();
    world.send(&bytes).await.expect("blob");
    world.order(&[order], &[]).await;
    let sleeper = pid_in(&world, "one").await;
    let shell = procfs::process::Process::new(sleeper)
        .and_then(|process| process.stat())
        .expect("it runs")
        .ppid;
    let guard = procfs::process::Process::new(shell)
        .and_then(|process| process.stat())
        .expect("its parent")
        .ppid;
    let guard = rustix::process::Pid::from_raw(guard).expect("a guard");
    rustix::process::kill_process(guard, rustix::process::Signal::KILL).expect("kill");
    let failure = world.failure().await;
    assert_eq!(failure.code, "build-failed");
    assert!(failure.message.contains("guards it"), "{}", failure.message);
    assert!(!alive(sleeper), "it lives");
}

#[tokio::test]
async fn a_build_that_uses_too_much_memory_is_killed_and_says_so() {
    if !has_cgroups() {
        return;
    }
    let mut world = world_with_npm("echo filling; exec tail /dev/zero");
    let (bytes, mut order) = built_by_npm();
    order
        .options
        .insert("BuildMemoryMax".to_owned(), "64".to_owned());
    world.send(&bytes).await.expect("blob");
    world.order(&[order], &[]).await;
    let failure = world.failure().await;
    assert_eq!(failure.code, "build-out-of-memory", "{failure:?}");
    assert!(failure.message.contains("64 MiB"), "{}", failure.message);
    assert_eq!(
        failure.log,
        ["$ npm install --omit=dev --no-audit --no-fund", "filling"][1..]
    );
}

#[tokio::test]
async fn a_build_that_forks_without_end_is_stopped_by_its_limit() {
    if !has_cgroups() {
        return;
    }
    let script = "for i in $(seq 60); do sleep 1000 & echo $! >>$STATE/all || exit 9; done; exit 0";
    let mut world = world_with_npm(script);
    let (bytes, mut order) = built_by_npm();
    order
        .options
        .insert("BuildProcessesMax".to_owned(), "30".to_owned());
    world.send(&bytes).await.expect("blob");
    world.order(&[order], &[]).await;
    let failure = world.failure().await;
    assert_eq!(failure.code, "build-failed", "{failure:?}");
    let started = std::fs::read_to_string(state(&world, "all")).expect("list");
    let started: Vec<i32> = started
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    assert!((10..30).contains(&started.len()), "{}", started.len());
    assert!(!started.iter().any(|pid| alive(*pid)));
}

/// Where there is no root and no cgroup, the guard process has to do.
#[test]
fn without_root() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // Not below /root and /work, which nobody may not enter.
    let place = tempfile::tempdir().expect("directory");
    let open = || std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(place.path(), open()).expect("mode");
    let test = place.path().join("deps/test");
    let agent = place.path().join("examples/agent");
    for (from, to) in [
        (std::env::current_exe().expect("this test"), &test),
        (crate::world::program(), &agent),
    ] {
        std::fs::create_dir_all(to.parent().expect("parent")).expect("make");
        std::fs::copy(from, to).expect("copy");
    }
    let tests = [
        "what_a_build_leaves_in_another_session_ends_with_it",
        "a_build_that_is_given_up_leaves_nothing",
        "an_agent_ends_what_its_killed_predecessor_was_building_first",
        "a_killed_guard_fails_the_build_and_leaves_nothing",
    ];
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&test)
        .arg("--exact")
        .args(tests.map(|name| format!("builds::{name}")))
        .current_dir("/")
        .env("HOME", "/nonexistent")
        .env("TMPDIR", "/tmp")
        .output()
        .expect("setpriv");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("4 passed"), "{said}");
}
