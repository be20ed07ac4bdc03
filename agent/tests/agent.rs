//! A whole agent as a process of its own: orders, bundles, builds, and SIGKILL at any time.

use beanpole_agent::blobs::digest_of_bytes;
use beanpole_daemon::http::{CallError, Connection, request, whole};
use beanpole_protocol::agent::{
    BlobStatus, HostOrders, HostReport, InstanceOrder, InstancePhase, Limits, Platform, Properties,
    ReleaseKey, ReleaseOrder, ReleasePhase,
};
use beanpole_protocol::{
    ApplicationName, Digest, EnvironmentId, EnvironmentName, Generation, Incarnation, InstanceId,
    ReleaseNumber, VersionLabel,
};
use futures::StreamExt;
use http::Method;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use zip::write::{SimpleFileOptions, ZipWriter};

const LIMIT: Duration = Duration::from_mins(1);

/// The agent's executable, built beside this test.
fn program() -> PathBuf {
    let me = std::env::current_exe().expect("path of this test");
    let path = me
        .ancestors()
        .nth(2)
        .expect("target directory")
        .join("examples/agent");
    assert!(
        path.exists(),
        "{} is missing: build it with `cargo build -p beanpole-agent --example agent`",
        path.display()
    );
    path
}

/// A directory with an agent in it.
struct World {
    directory: tempfile::TempDir,
    agent: Option<Child>,
    generation: u64,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            directory: tempfile::tempdir().expect("directory"),
            agent: None,
            generation: 0,
        };
        // Users of their own must get through.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(world.directory.path(), open).expect("mode");
        world.start(world.data());
        world
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    fn command(&self, data: &Path) -> Command {
        let mut command = Command::new(program());
        command
            .arg("--data")
            .arg(data)
            .arg("--socket")
            .arg(self.socket())
            .args(["--reserve", "1048576"])
            .stdin(Stdio::null());
        command
    }

    fn start(&mut self, data: PathBuf) {
        self.agent = Some(self.command(&data).spawn().expect("agent"));
    }

    fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().expect("kill");
            agent.wait().expect("wait");
        }
    }

    async fn connect(&self) -> Connection {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Ok(stream) = UnixStream::connect(self.socket()).await {
                return Connection::open(stream).await.expect("handshake");
            }
            assert!(Instant::now() < deadline, "the agent does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn report(&self) -> HostReport {
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut connection = self.connect().await;
            match connection.get("/v1/report", LIMIT).await {
                Ok(report) => return report,
                // A shim on its way to being executed may still hold a killed agent's socket.
                Err(error) => assert!(
                    error.is_transient() && Instant::now() < deadline,
                    "no report: {error}"
                ),
            }
        }
    }

    async fn order(&mut self, releases: &[ReleaseOrder], instances: &[InstanceOrder]) {
        self.generation += 1;
        let orders = HostOrders {
            generation: Generation(self.generation),
            releases: releases.to_vec(),
            instances: instances.to_vec(),
        };
        self.put(&orders).await.expect("orders");
    }

    async fn put(&self, orders: &HostOrders) -> Result<(), CallError> {
        let mut connection = self.connect().await;
        connection
            .call(Method::PUT, "/v1/orders", Some(orders), LIMIT)
            .await
    }

    async fn send(&self, bundle: &[u8]) -> Result<BlobStatus, CallError> {
        let digest = digest_of_bytes(bundle);
        let path = format!("/v1/blobs/{digest}?offset=0&size={}", bundle.len());
        let mut call = request(Method::PATCH, &path, None::<&()>)?;
        *call.body_mut() = whole(bundle.to_vec());
        let _answer = self.connect().await.send(call).await?;
        let mut connection = self.connect().await;
        connection.get(&format!("/v1/blobs/{digest}"), LIMIT).await
    }

    /// Waits for a report that satisfies `wanted`.
    async fn until(&self, what: &str, wanted: impl Fn(&HostReport) -> bool) -> HostReport {
        let deadline = Instant::now() + LIMIT;
        loop {
            let report = self.report().await;
            if wanted(&report) {
                return report;
            }
            assert!(
                Instant::now() < deadline,
                "no report with {what}: {report:#?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn failure(&self) -> beanpole_protocol::agent::Failure {
        let report = self
            .until("a failed release", |report| {
                report
                    .releases
                    .iter()
                    .any(|r| matches!(r.phase, ReleasePhase::Failed(_)))
            })
            .await;
        match &report.releases[0].phase {
            ReleasePhase::Failed(failure) => failure.clone(),
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Whatever runs must not outlive its test.
        if self.agent.is_none() {
            self.start(self.data());
        }
        let generation = self.generation + 1000;
        let orders = HostOrders {
            generation: Generation(generation),
            ..HostOrders::default()
        };
        let runtime = std::thread::spawn({
            let socket = self.socket();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("runtime");
                runtime.block_on(async {
                    let deadline = Instant::now() + LIMIT;
                    while Instant::now() < deadline {
                        if let Ok(stream) = UnixStream::connect(&socket).await
                            && let Ok(mut connection) = Connection::open(stream).await
                        {
                            let _: Result<(), _> = connection
                                .call(Method::PUT, "/v1/orders", Some(&orders), LIMIT)
                                .await;
                            if let Ok(report) =
                                connection.get::<HostReport>("/v1/report", LIMIT).await
                                && report.instances.is_empty()
                            {
                                return;
                            }
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                });
            }
        });
        let _ = runtime.join();
        self.kill();
    }
}

fn bundle(files: &[(&str, &str)]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        let options = SimpleFileOptions::default().unix_permissions(0o755);
        writer.start_file(*name, options).expect("start");
        writer.write_all(content.as_bytes()).expect("write");
    }
    writer.finish().expect("finish").into_inner()
}

fn release(number: u64, bundle: &[u8]) -> ReleaseOrder {
    ReleaseOrder {
        key: ReleaseKey {
            environment: EnvironmentId::from_bits(7),
            number: ReleaseNumber(number),
        },
        application: ApplicationName::new("shop").expect("name"),
        environment_name: EnvironmentName::new("prod").expect("name"),
        version: VersionLabel::new(format!("v{number}")).expect("label"),
        bundle: Digest::new(digest_of_bytes(bundle)).expect("digest"),
        bundle_size: bundle.len() as u64,
        platform: Platform::Auto,
        properties: Properties([("GREETING".to_owned(), "hello".to_owned())].into()),
        options: Default::default(),
        prepare_timeout_ms: 120_000,
    }
}

fn instance(number: u64, incarnation: u64) -> InstanceOrder {
    InstanceOrder {
        id: instance_id(),
        environment: EnvironmentId::from_bits(7),
        release: ReleaseNumber(number),
        incarnation: Incarnation(incarnation),
        run: true,
        port: 23_456,
        stop_grace_ms: 2000,
        limits: Limits::default(),
    }
}

fn runs(report: &HostReport, number: u64, incarnation: u64) -> bool {
    report.instances.iter().any(|instance| {
        instance.phase == InstancePhase::Running
            && instance.release == Some(ReleaseNumber(number))
            && instance.incarnation == Incarnation(incarnation)
    })
}

fn pid(report: &HostReport) -> u32 {
    report.instances[0].processes[0].pid.expect("a process")
}

/// The instance of this test: cgroups go by the id, and tests run side by side in threads.
fn instance_id() -> InstanceId {
    thread_local!(static BITS: u128 = beanpole_daemon::clock::random_bits());
    BITS.with(|bits| InstanceId::from_bits(*bits))
}

const SLEEPER: &[(&str, &str)] = &[(
    "Procfile",
    "web: echo \"$GREETING on $PORT as $BEANPOLE_VERSION in $BEANPOLE_ENVIRONMENT\"; exec sleep 1000\n",
)];

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
